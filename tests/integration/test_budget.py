"""Budgets as a client meets them: what is refused, what is left, and that every request is settled
once, however it ends. What is left is in the `RateLimit` field of a request that uses nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.client import Answer, fetch, open_client
from support.process import Done, port_of, run_command, running, serve
from support.proxy import open_proxy
from support.store_server import StoreServer
from support.upstream import Peer, open_upstream

from interceptors.api_keys import hash_key
from interceptors.budget_charge import estimate_body
from proxy.config import parse_config

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
JSON = ("content-type", "application/json")


def call(model: str = "m", **fields: Any) -> bytes:
    return json.dumps({"model": model, "stream": True, "max_tokens": 30, **fields}).encode()


PROBE = call("none")
"""The upstream refuses it, so it uses nothing."""
RESERVED = estimate_body(PROBE) + 30


def event(**message: Any) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def text(*texts: str) -> bytes:
    return b"".join(event(choices=[{"index": 0, "delta": {"content": item}}]) for item in texts)


STOP = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])


def used(prompt: int, completion: int, **more: Any) -> bytes:
    return event(
        choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion, **more}
    )


class Model:
    """An upstream. It counts what it reports; `held` streams wait for `go`."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.tokens = 0
        self.answers: dict[str, Callable[[Peer], Any]] = {}
        self.bodies: list[dict[str, Any]] = []

    async def serve(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            body = json.loads(request.body)
            self.bodies.append(body)
            model = body["model"]
            if model == "none":
                await peer.send(
                    b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\n"
                    b'Content-Length: 24\r\n\r\n{"error":{"type":"none"}}'[:-1]
                    + b"}"
                )
            elif model in self.answers:
                await self.answers[model](peer)
            else:
                await peer.start_stream()
                await peer.chunk(text("Hi"))
                await self.go.wait()
                self.tokens += RESERVED
                await peer.chunk(STOP + used(RESERVED - 30, 30) + b"data: [DONE]\n\n")
                await peer.end()


async def ask(
    port: int, body: bytes = PROBE, path: str = CHAT, key: str = "", **more: Any
) -> Answer:
    headers = [JSON, *([("x-api-key", key)] if key else [])]
    return await fetch(port, path, method="POST", headers=headers, body=body, **more)


def left(answer: Answer, limit: str = "tokens") -> int:
    (field,) = answer.all("ratelimit")
    found = re.search(rf'"budget/\w+/{limit}/\w+";r=(\d+);t=\d+'.encode(), field)
    assert found, field
    return int(found[1])


async def settles(port: int, expected: int, body: bytes = PROBE, path: str = CHAT) -> None:
    """Wait until that much is left besides what a probe reserves."""
    seen: list[int] = []
    with trio.move_on_after(10):
        while not seen or seen[-1] != expected:
            seen.append(left(await ask(port, body, path)))
            await trio.sleep(0.01)
    assert seen[-1] == expected, seen


CONFIG = """
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{url}"]}}]
  routes: [{{path: /, upstream: up, interceptors: [{names}], dialect: {dialect}}}]
interceptors: [{entries}]
store: {store}
log: {{level: error}}
"""


def configured(
    url: str,
    limits: str,
    *,
    options: str = "",
    before: str = "",
    names: str = "budget",
    dialect: str = "openai",
    store: str = "{}",
) -> str:
    entries = f"{before}{{name: budget, use: budget, options: {{limits: [{limits}]{options}}}}}"
    return CONFIG.format(url=url, names=names, entries=entries, dialect=dialect, store=store)


@asynccontextmanager
async def in_memory(text: str, directory: Path) -> AsyncIterator[int]:
    async with open_proxy(parse_config(text)) as proxy:
        with capture_logs():
            yield proxy.port


@asynccontextmanager
async def with_workers(text: str, directory: Path) -> AsyncIterator[int]:
    (directory / "weirpool.yaml").write_text(text.replace("level: error", "level: info"))
    command = serve("--config", str(directory / "weirpool.yaml"), "--workers", "2")
    async with running(command) as process:
        await process.event("started", 2)
        yield await port_of(process)


@pytest.mark.parametrize("opens", [in_memory, with_workers])
async def test_a_budget_for_half_of_200_streams(opens: Any, tmp_path: Path) -> None:
    """100 pass at once and the others get 429; what is counted is what the upstream counted."""
    model, statuses, server = Model(), Counter[int](), StoreServer()
    limit = 100 * RESERVED + RESERVED - 1
    async with server.running(), open_upstream(model.serve) as upstream:
        store = "{}" if opens is in_memory else f"{{url: '{server.url}', timeout: 5}}"
        text = configured(upstream.url, f"{{tokens: {limit}, per: month}}", store=store)
        async with opens(text, tmp_path) as port, trio.open_nursery() as nursery:

            async def stream() -> None:
                answer = await ask(port, call("held"))
                statuses[answer.status] += 1
                assert answer.complete
                # What only running requests leave no room for is soon free.
                assert answer.all("retry-after") == ([b"5"] if answer.status == 429 else [])
                if statuses[429] == 100:
                    model.go.set()

            with trio.fail_after(60):
                for _ in range(200):
                    nursery.start_soon(stream)
                while sum(statuses.values()) < 200:
                    await trio.sleep(0.02)
            assert statuses == {200: 100, 429: 100}
            assert model.tokens == 100 * RESERVED
            await settles(port, limit - model.tokens)


async def test_killed_workers_leave_no_reservation(tmp_path: Path) -> None:
    model, server = Model(), StoreServer()
    limit = 10 * RESERVED
    async with server.running(), open_upstream(model.serve) as upstream:
        (tmp_path / "weirpool.yaml").write_text(
            configured(
                upstream.url,
                f"{{tokens: {limit}, per: month}}",
                store=f"{{url: '{server.url}', timeout: 5}}",
            ).replace("level: error", "level: info")
        )
        command = serve("--config", str(tmp_path / "weirpool.yaml"), "--workers", "2")
        async with running(command) as process:
            started = await process.event("started", 2)
            port = await port_of(process)
            clients = [await open_client(port) for _ in range(10)]
            for client in clients:
                await client.send("POST", CHAT, [JSON], call("held"))
                assert (await client.head()).status == 200
            assert (await ask(port)).status == 429
            for line in started:
                os.kill(int(str(line["pid"])), signal.SIGKILL)
            for client in clients:
                await client.aclose()
            await process.event("started", 4)
            refused = await ask(port)
            assert (refused.status, left(refused)) == (429, 0)
            await server.ask("DEL weirpool:o")  # as 30 s later: the leases of the workers
            await settles(port, limit - RESERVED)


# --- What a request counts, however it ends

ANSWER = b"HTTP/1.1 %d OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"


def answering(body: bytes, status: int = 200, kind: bytes = b"application/json") -> Any:
    async def answer(peer: Peer) -> None:
        await peer.send(ANSWER % (status, kind, len(body), body))

    return answer


def streaming(*chunks: bytes, ends: bool = True) -> Any:
    async def answer(peer: Peer) -> None:
        await peer.start_stream()
        for chunk in chunks:
            await peer.chunk(chunk)
        if ends:
            await peer.end()
        else:
            await peer.wait_closed()

    return answer


async def cut(peer: Peer) -> None:
    await peer.start_stream()
    await peer.chunk(text("12345678"))
    await peer.cut()


async def silent(peer: Peer) -> None:
    await peer.wait_closed()


def anthropic(**message: Any) -> bytes:
    return b"event: %s\n" % message["type"].encode() + event(**message)


BEGUN = anthropic(
    type="message_start",
    message={
        "content": [],
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 50, "output_tokens": 1},
    },
) + anthropic(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
SAID = anthropic(
    type="content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 40}
)
USED = json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}).encode()
INPUT = -1
"""Stands for the estimate of the request."""
ENDINGS: dict[str, tuple[Any, str, list[int], str]] = {
    # How the upstream answers, what the client waits for, what counts, the path
    "whole": (streaming(text("Hi"), STOP, used(7, 2), b"data: [DONE]\n\n"), "", [9], CHAT),
    "no stream": (answering(USED), "", [13], CHAT),
    "the client leaves": (streaming(text("1234"), text("567"), ends=False), "567", [INPUT, 2], CHAT),
    "the client leaves at the end": (streaming(text("x" * 40), STOP + used(7, 2), ends=False), '"stop"', [9], CHAT),
    "the client leaves in silence": (silent, "nothing", [], CHAT),
    "the upstream breaks off": (cut, "", [INPUT, 2], CHAT),
    "no report": (streaming(text("1234"), STOP, b"data: [DONE]\n\n"), "", [INPUT, 1], CHAT),
    "zeros": (streaming(text("1234"), STOP, used(0, 0), b"data: [DONE]\n\n"), "", [INPUT, 1], CHAT),
    "an error": (answering(b'{"error":{"type":"x"}}', 500), "", [], CHAT),
    "an error in a stream": (streaming(event(error={"type": "x"})), "", [], CHAT),
    "not an answer": (answering(b"Hi", 200, b"text/plain"), "", [INPUT], CHAT),
    "anthropic, cut": (streaming(BEGUN, SAID, ends=False), "x" * 40, [10, 50, 10], MESSAGES),
}  # fmt: skip


async def test_every_ending_is_settled_by_what_was_seen(tmp_path: Path) -> None:
    """One budget for each model."""
    model = Model()
    model.answers = {f"m{at}": answer for at, (answer, *_) in enumerate(ENDINGS.values())}
    async with open_upstream(model.serve) as upstream:
        config = configured(
            upstream.url, "{by: model, tokens: 1000, per: month}", dialect="generic"
        )
        async with in_memory(config, tmp_path) as port:
            for at, (name, (_, awaited, counts, path)) in enumerate(ENDINGS.items()):
                body = call(f"m{at}")
                client = await open_client(port)
                await client.send("POST", path, [JSON], body)
                if awaited == "nothing":
                    with trio.fail_after(5):
                        while not model.bodies or model.bodies[-1]["model"] != f"m{at}":
                            await trio.sleep(0.01)
                elif awaited:
                    head, seen = await client.head(), b""
                    while awaited.encode() not in seen:
                        seen += await client.read_some()
                    assert head.status == 200
                else:
                    await client.answer()
                client.reset()
                estimate = estimate_body(body)
                expected = sum(estimate if count == INPUT else count for count in counts)
                model.answers[f"m{at}"] = answering(b'{"error":{"type":"x"}}', 400)
                found = -1
                with trio.move_on_after(10):
                    while found != expected:
                        found = 1000 - left(await ask(port, body, path)) - estimate - 30
                assert (name, found) == (name, expected)
            metrics = (await fetch(port, "/metrics")).body
            assert b'weirpool_budget_estimated_total{interceptor="budget"} 5.0' in metrics


@pytest.mark.parametrize(
    "names", ["budget, usage", "usage, budget", "asking, budget", "budget, asking"]
)
@pytest.mark.parametrize("asks", [False, True])
async def test_budget_and_usage_read_the_same(names: str, asks: bool) -> None:
    """The upstream is asked for usage once, and the client sees it only if it asked."""
    model = Model()
    model.answers = {"m": streaming(text("Hi"), STOP, used(7, 2), b"data: [DONE]\n\n")}
    own = {"stream_options": {"include_usage": True}} if asks else {}
    async with open_upstream(model.serve) as upstream:
        before = "{name: usage, use: usage}, {name: asking, use: usage, options: {ask: true}}, "
        config = configured(upstream.url, "{tokens: 500, per: hour}", before=before, names=names)
        async with open_proxy(parse_config(config)) as proxy:
            answer, metrics = await ask(proxy.port, call(**own)), ""
            with trio.move_on_after(5):
                while "weirpool_budget_spent_total{" not in metrics:
                    metrics = (await fetch(proxy.port, "/metrics")).body.decode()
    assert model.bodies[0]["stream_options"] == {"include_usage": True}
    assert (b"prompt_tokens" in answer.body) is asks
    llm = r'^weirpool_llm_tokens_total{.*kind="(\w+)".*} (.*)$'
    expected = [("input", "7.0"), ("output", "2.0")]
    assert sorted(re.findall(llm, metrics, re.MULTILINE)) == expected
    spent = r'weirpool_budget_spent_total{interceptor="budget",limit="all/tokens/hour"} (.*)'
    assert re.findall(spent, metrics) == ["9.0"]


PRICES = ", prices: {'gpt-*': {input: 2, cached: 1, output: 10}, claude: {input: 3, output: 15}}"
KEYS = {"ann": "wk-ann-Zq3xV8", "bob": "wk-bob-Kd93mW", "cat": "wk-cat-7sQ0bN"}


async def test_cost_by_team(tmp_path: Path) -> None:
    """Each team has its amount; the input that came from a cache has its price."""
    hashes = ", ".join(f'{name}: "{hash_key(key)}"' for name, key in KEYS.items())
    before = f"{{name: keys, use: api_keys, options: {{keys: {{{hashes}}}, teams: {{red: [ann], blue: [bob]}}}}}}, "
    usage = used(1000, 100, prompt_tokens_details={"cached_tokens": 400})
    model = Model()
    model.answers = {"GPT-9": streaming(text("Hi"), STOP, usage)}
    limit = "{by: team, per: month, cost: {red: 0.01, '-': 0, '*': 0.002}}"
    async with open_upstream(model.serve) as upstream:
        config = configured(
            upstream.url,
            limit,
            options=PRICES,
            before=before,
            names="keys, budget",
            dialect="openai",
        )
        async with in_memory(config, tmp_path) as port:
            body = call("GPT-9", max_tokens=100)
            answers = [await ask(port, body, key=key) for key in KEYS.values()]
            assert [answer.status for answer in answers] == [200, 200, 429]
            cost = 600 * 2 + 400 * 1 + 100 * 10
            reserved = estimate_body(body) * 2 + 100 * 10
            assert left(answers[0], "cost") == 10_000 - reserved
            with trio.fail_after(5):
                while (
                    left(await ask(port, body, key=KEYS["ann"]), "cost") != 10_000 - cost - reserved
                ):
                    model.answers["GPT-9"] = answering(b'{"error":{}}', 500)
            refused = await ask(port, body, key=KEYS["bob"])
            found = json.loads(refused.body)["error"]
            assert (refused.status, found["code"], found["type"]) == (
                429, "budget_exhausted", "rate_limit_error",
            )  # fmt: skip
            assert found["message"].startswith(
                "the budget of the team 'blue' for cost in this month"
            )
            (wait_s,) = refused.all("retry-after")
            assert 0 < int(wait_s) <= 31 * 86400
            fields = [refused.all("ratelimit-policy"), refused.all("ratelimit")]
            name = b'"budget/team/cost/month"'
            assert fields == [
                [name + b';q=2000;w=2682000;qu="cost"'], [name + b";r=0;t=" + wait_s]
            ]  # fmt: skip
            unknown = await ask(port, call("other"), key=KEYS["ann"])
            assert (unknown.status, json.loads(unknown.body)["error"]["code"]) == (
                403, "model_not_priced",
            )  # fmt: skip


async def test_a_soft_limit_counts_and_a_refusal_keeps_nothing() -> None:
    """Of several limits all have room, or nothing is reserved."""
    model = Model()
    model.answers = {"m": streaming(text("Hi"), STOP, used(7, 2))}
    limits = (
        "{requests: 3, per: month}, {by: route, tokens: 5000, per: month}, "
        "{by: model, tokens: {big: 0, none: 1, '*': 5000}, per: hour}, "
        "{tokens: 10, per: hour, soft: true}"
    )
    async with open_upstream(model.serve) as upstream:
        config = configured(upstream.url, limits).replace("level: error", "level: warning")
        async with open_proxy(parse_config(config)) as proxy:
            with capture_logs() as logs:
                # Without room for tokens no request is counted; what exceeds an unused budget passes.
                first = [(await ask(proxy.port, call(name))).status for name in ("big", "none")]
                answers = [await ask(proxy.port, call("m")) for _ in range(4)]
            page, spent = "", 'spent_total{interceptor="budget",limit="route/tokens/month"} 18.0'
            with trio.fail_after(5):
                while spent not in page:
                    page = (await fetch(proxy.port, "/metrics")).body.decode()
    assert first == [429, 400]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert [left(answer, "requests") for answer in answers] == [1, 0, 0, 0]
    assert (
        'weirpool_budget_refused_total{interceptor="budget",limit="all/requests/month"} 2.0' in page
    )
    assert (
        'weirpool_budget_over_total{interceptor="budget",limit="all/tokens/hour/soft"} 3.0' in page
    )
    over = [line for line in logs if line["event"] == "budget_over"]
    assert over[0]["limit"] == "all/tokens/hour/soft"


@pytest.mark.parametrize(
    ("policy", "own", "statuses"),
    [("closed", "", [200, 429]), ("closed", "closed", [503, 503]), ("closed", "open", [200, 200])],
)
async def test_without_the_store(
    policy: str, own: str, statuses: list[int], tmp_path: Path
) -> None:
    """A budget counts alone, unless it is told otherwise."""
    options = f", on_store_error: {own}" if own else ""
    store = f"{{url: '{StoreServer().url}', on_error: {policy}}}"
    async with open_upstream(answer_none) as upstream:
        config = configured(upstream.url, "{requests: 1, per: month}", options=options, store=store)
        async with in_memory(config, tmp_path) as port:
            assert [(await ask(port)).status for _ in range(2)] == statuses


async def test_a_calendar_day_in_a_time_zone(tmp_path: Path) -> None:
    """`t` ends at midnight there. Without `max_tokens` a request reserves `reserve_tokens`."""
    options = ", time_zone: Asia/Kathmandu, reserve_tokens: 77"
    async with open_upstream(answer_none) as upstream:
        config = configured(upstream.url, "{tokens: 1000, per: day}", options=options)
        async with in_memory(config, tmp_path) as port:
            began, body = time.time(), b'{"model":"m","n":2}'
            answer = await ask(port, body)
    assert left(answer) == 1000 - estimate_body(body) - 2 * 77
    reset_s = int(answer.all("ratelimit")[0].rpartition(b"=")[2])
    # UTC+5:45; the test may take a minute.
    assert (began + reset_s + 20_700 + 60) % 86400 < 120


async def test_no_spelling_evades_a_budget(tmp_path: Path) -> None:
    """Bodies that lenient servers read are counted for their model, with the most they may use."""
    lenient = [
        '{"model":"gpt-9","n":NaN,%s}', '\ufeff{"model":"GPT-9",%s}', '{"user":"\\ud800","model":"Gpt-9",%s}',
        '{"max_tokens":1,"max_completion_tokens":300,"model":"gpt-9","n":"2","stream":true,%s}',
        '{"max_tokens":"300","n":2.0,"model":"gpt-9","max_output_tokens":1,%s}',
    ]  # fmt: skip
    bodies = [(text % '"stop":[]').encode() for text in lenient]
    bodies += [bodies[0].decode().encode("utf-16"), b'{"model":"\\ud800","n":200}']
    reserved = [77, 77, 77, 154, 154, 77, 200 * 77]
    limit = "{by: model, tokens: {'GPT-*': 50000, '[?]': 50000}, per: day}"
    server = StoreServer()
    async with server.running(), open_upstream(answer_none) as upstream:
        config = configured(
            upstream.url,
            limit,
            options=", reserve_tokens: 77",
            store=f"{{url: '{server.url}', timeout: 5}}",
        )
        async with in_memory(config, tmp_path) as port:
            for body, output in zip(bodies, reserved, strict=True):
                await server.ask("FLUSHALL")
                answer = await ask(port, body)
                assert (answer.status, left(answer)) == (200, 50000 - estimate_body(body) - output)
            names = await server.ask("KEYS weirpool:w:*")
            assert names.endswith(b"day/?\r\n"), names
            assert b"weirpool_store_up 1.0" in (await fetch(port, "/metrics")).body


async def answer_none(peer: Peer) -> None:
    while True:
        await peer.request()
        await answering(b"{}")(peer)


async def test_the_sums_of_all_workers(tmp_path: Path) -> None:
    """`weirpool usage` prints what the workers have counted, also while the store was away."""
    model, server = Model(), StoreServer()
    model.answers = {
        name: streaming(
            text("Hi"), STOP.replace(b"{", b'{"model":"%s",' % name.encode(), 1), used(7, 2)
        )
        for name in ("big", "small")
    }
    file = str(tmp_path / "weirpool.yaml")
    async with server.running(), open_upstream(model.serve) as upstream:
        store = f"{{url: '{server.url}', timeout: 5}}"
        config = configured(
            upstream.url,
            "{requests: 99, per: day}",
            before="{name: usage, use: usage}, ",
            names="usage",
            store=store,
        )
        async with with_workers(config, tmp_path) as port:
            server.stop()
            await ask(port, call("big"))
            failures = rb'weirpool_store_failures_total{kind="\w+"} [1-9]'
            with trio.fail_after(10):
                while not re.search(failures, (await fetch(port, "/metrics")).body):
                    await trio.sleep(0.05)
            server.start()
            for name in ("big", "small"):
                assert (await ask(port, call(name))).complete
            rows: list[Any] = []
            with trio.move_on_after(10):
                while sum(row["requests"] for row in rows) < 3:
                    rows = json.loads(await usage(file, "--by", "model", "--format", "json"))
        counts = {"cached": 0, "cache_written": 0, "reasoning": 0}
        assert rows == [
            {"model": "big", "requests": 2, "input": 14, "output": 4, **counts},
            {"model": "small", "requests": 1, "input": 7, "output": 2, **counts},
        ]
        assert await usage(file, "--by", "client,route", "--since", "7d", "--format", "csv") == (
            "client,route,requests,input,output,cached,cache_written,reasoning\n-,/,3,21,6,0,0,0\n"
        )
        table = (await usage(file)).splitlines()
        assert [line.split() for line in table][1] == ["-", "big", "2", "14", "4", "0", "0", "0"]
    for mistake, message in (
        (["--by", "modle"], "--by must be some of route, model, client"),
        (["--since", "1y"], "--since must be hours or days"),
        ([], "the store cannot be read"),
    ):
        done = await run_usage(file, *mistake)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


async def run_usage(file: str, *options: str) -> Done:
    return await trio.to_thread.run_sync(run_command, "usage", "--config", file, *options)


async def usage(file: str, *options: str) -> str:
    done = await run_usage(file, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_small_limit_does_not_shrink_what_a_large_one_reserves(tmp_path: Path) -> None:
    """Each reserves as much as the request may use, up to its own amount; or neither does."""
    limits = "{tokens: 100000, per: month}, {by: route, tokens: 40, per: month}"
    model = Model()
    async with open_upstream(model.serve) as upstream:
        async with in_memory(configured(upstream.url, limits), tmp_path) as port:
            body = call("none", max_tokens=1000)
            fields = (await ask(port, body)).all("ratelimit")
            assert b'"budget/all/tokens/month";r=%d;' % (
                99_000 - estimate_body(body)
            ) in b", ".join(fields)
            held = await open_client(port)
            await held.send("POST", CHAT, [JSON], call("m"))
            await held.head()
            assert (await ask(port)).status == 429
            await held.aclose()
