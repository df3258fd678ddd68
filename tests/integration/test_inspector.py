"""The inspector: live streams, event by event, before and after each interceptor, for
clients with the token.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.client import Answer, Client, fetch, open_client
from support.interceptors import until
from support.process import free_port, port_in, running, serve
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, open_upstream

from interceptors import Event, Interceptor, Request, Response, StreamContext, StreamInterceptor
from proxy.config import parse_config
from proxy.inspector import view as views
from proxy.inspector.decoder import Decoder

TOKEN = "token-of-a-test-0123"
SECRET = [("Host", "127.0.0.1"), ("Authorization", f"Bearer {TOKEN}")]
CHUNK = b'data: {"model":"m-%d","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes:
    - {path: /hooked, upstream: up, dialect: openai, interceptors: [upper, double, slow]}
    - {path: /answered, upstream: up, interceptors: [answer]}
    - {path: /resumed, upstream: up, reconnect: {max_attempts: 1}}
    - {path: /, upstream: up}
  leak_detection: paranoid
interceptors:
  - {name: upper, use: "integration.test_inspector:Upper"}
  - {name: double, use: "integration.test_inspector:Double"}
  - {name: slow, use: "integration.test_inspector:Slow"}
  - {name: answer, use: "integration.test_inspector:Answers"}
admin: {inspect: true, token: "token-of-a-test-0123"}
drain: {timeout: 1}
log: {level: error}
"""

Message = tuple[str, dict[str, Any]]


class _Hook(StreamInterceptor):
    def __init__(self, hook: Callable[[Event], Any]) -> None:
        self.on_event = hook  # type: ignore[method-assign]


class Upper(Interceptor):
    """Changes what has a `secret`, and needs nothing else."""

    wants_json = True

    async def on_request(self, request: Request) -> None:
        request.state["client_key"] = "ann"

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        class Stream(StreamInterceptor):
            needs = (b"secret",)

            def on_event(self, event: Event) -> Event:
                return event.replace(event.data.replace("secret", "SECRET"))

        return Stream()


class Double(Interceptor):
    """Drops, doubles, and adds one event at the end."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        class Stream(StreamInterceptor):
            def on_event(self, event: Event) -> Any:
                if "drop" in event.data:
                    return None
                return [event, Event("again")] if "twice" in event.data else event

            def on_complete(self) -> Event:
                return Event("last")

        return Stream()


class Slow(Interceptor):
    """Awaits."""

    def open_stream(self, context: StreamContext) -> Any:
        from interceptors import AsyncStreamInterceptor

        class Stream(AsyncStreamInterceptor):
            async def on_event(self, event: Event) -> Event:
                await trio.lowlevel.checkpoint()
                return event

        return Stream()


class Answers(Interceptor):
    async def on_request(self, request: Any) -> Response:
        if request.path.endswith("/events"):
            return Response(events=[Event("one"), Event("two")])
        return Response(json={"answer": 1})


class Watching:
    """A client of `/inspect/stream` and the messages that it got."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.over = trio.Event()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.messages if name == kind]

    def stages(self) -> list[tuple[Any, ...]]:
        """Number, stage, what, and the texts, of each event."""
        return [
            (item["number"], item["stage"], item["what"], *item.get("texts", ()))
            for item in self.of("event")
        ]

    async def read(self, client: Client) -> None:
        rest = b""
        try:
            while True:
                *blocks, rest = (rest + await client.read_some()).split(b"\n\n")
                for block in blocks:
                    if block.startswith(b"event: "):
                        kind, data = block.decode().split("\n")
                        self.messages.append(
                            (kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
                        )
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.over.set()

    async def kinds(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """The messages of a kind, once there are as many."""
        await until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)


@asynccontextmanager
async def watching(port: int, query: str = "") -> AsyncIterator[Watching]:
    client = await open_client(port)
    await client.send("GET", f"/inspect/stream{query}", SECRET)
    head = await client.head()
    assert head.status == 200
    assert head.all("cross-origin-resource-policy") == [b"same-origin"]
    found = Watching()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.read, client)
        yield found
        await client.aclose()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def inspected(script: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[Proxy]:
    """A proxy. At the end everything is back, and nothing watches."""
    async with open_upstream(script) as upstream:
        async with open_proxy(parse_config(CONFIG % upstream.url)) as proxy:
            with trio.fail_after(60):  # some tests start several processes
                yield proxy
                worker = proxy.worker
                assert worker.inspector is not None
                await until(lambda: not worker.live and not worker.inspector.views)
            assert set(proxy.in_use().values()) == {0}


class Steps:
    """An upstream that sends a chunk whenever the test wants."""

    def __init__(self, content_type: bytes = b"text/event-stream") -> None:
        self.sends, self.receives = trio.open_memory_channel[bytes | None](100)
        self.content_type = content_type

    def send(self, data: bytes | None) -> None:
        self.sends.send_nowait(data)

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
            % self.content_type
        )
        async for data in self.receives:
            await (peer.end() if data is None else peer.chunk(data))
            if data is None:
                break


@pytest.mark.parametrize("hub", [True, False])
async def test_events_before_and_after_each_interceptor(
    hub: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over ASGI."""
    if not hub:
        monkeypatch.setattr("proxy.hub.hub.Hub.available", staticmethod(lambda: False))
    steps = Steps()
    async with inspected(steps.script) as proxy, watching(proxy.port, "?once=true") as found:
        await until(lambda: proxy.worker.inspector.views)  # type: ignore[union-attr]
        for word in (b"a secret", b"drop", b"twice"):
            steps.send(CHUNK % (1, word))
        steps.send(None)
        answer = await fetch(proxy.port, "/hooked/v1/chat/completions?key=of-the-query")
        (end,) = await found.kinds("end")
        await found.over.wait()  # with `once`, nothing follows
    secret, drop, twice = (
        (CHUNK % (1, word)).decode() for word in (b"a secret", b"drop", b"twice")
    )
    changed, again, last = secret.replace("secret", "SECRET"), "data: again\n\n", "data: last\n\n"
    assert answer.body.decode() == changed + twice + again + last
    assert found.stages() == [
        (1, "upstream", "arrived", secret),
        (1, "upper", "changed", changed),
        (1, "double", "unchanged"),
        (1, "slow", "unchanged"),
        (1, "client", "sent", changed),
        (2, "upstream", "arrived", drop),
        (2, "double", "dropped"),
        (2, "client", "dropped"),
        (3, "upstream", "arrived", twice),
        (3, "double", "added", twice, again),
        (3, "slow", "unchanged"),
        (3, "slow", "unchanged"),
        (3, "client", "sent", twice, again),
        (4, "double", "added", last),
        (4, "slow", "unchanged"),
        (4, "client", "sent", last),
    ]
    (begin,), (head,) = found.of("begin"), found.of("head")
    assert begin["path"] == "/hooked/v1/chat/completions"
    assert (begin["route"], begin["method"], begin["client"]) == ("/hooked", "GET", "127.0.0.1")
    assert (head["status"], head["content_type"]) == (200, "text/event-stream")
    assert head["interceptors"] == ["upper", "double", "slow"]
    assert (end["outcome"], end["bytes"]) == ("completed", len(answer.body))
    parts = [part for item in found.of("event") for part in item.get("parts", ())]
    assert parts[:3] == [
        {"kind": "model", "model": "m-1"},
        {"kind": "text", "text": "a SECRET"},
        {"kind": "text", "text": "twice"},
    ]
    times = [item["at"] for item in found.of("event")]
    assert times == sorted(times)
    assert all(item["us"] > 0 for item in found.of("event") if item["stage"] == "upper")


@pytest.mark.parametrize(
    ("path", "content_type", "sent", "shown"),
    [
        ("/", b"text/event-stream", [b"data: 1\n\nda", b"ta: 2\r\n\r\n"], ["data: 1\n\n", "data: 2\r\n\r\n"]),
        ("/resumed", b"text/event-stream", [b"id: 1\ndata: 1\n\nda", b"ta: 2\n\n"], ["id: 1\ndata: 1\n\n", "data: 2\n\n"]),
        ("/", b"text/event-stream", [b"data: " + b"x" * 70_000, b"x" * 9_000, b"yz\n\ndata: 2\n\n"], ["data: " + "x" * 65_530, "data: 2\n\n"]),
        ("/", b"application/json", [b'{"a":', b"1}"], ['{"a":1}']),
        ("/hooked", b"application/json", [b'{"a":', b'"secret"}'], ['{"a":"secret"}']),
        ("/", b"image/png", [b"\x89PNG"], []),
        ("/answered", b"", [], ['{"answer":1}']),
        ("/answered/events", b"", [], ["data: one\n\n", "data: two\n\n"]),
    ],
)  # fmt: skip
async def test_what_no_hook_sees_is_shown_too(
    path: str, content_type: bytes, sent: list[bytes], shown: list[str]
) -> None:
    steps = Steps(content_type)
    async with inspected(steps.script) as proxy, watching(proxy.port) as found:
        await until(lambda: proxy.worker.inspector.views)  # type: ignore[union-attr]
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await fetch(proxy.port, path))

            nursery.start_soon(ask)
            for data in sent:
                await until(lambda: proxy.worker.live)
                await trio.sleep(0.02)  # as reads of their own
                steps.send(data)
            steps.send(None)
        assert answers[0].complete
        await found.kinds("end")
    events = [item for item in found.of("event") if item["what"] in ("arrived", "added")]
    assert [item["texts"][0] for item in events] == shown
    if sent and shown and path != "/hooked":
        assert b"".join(sent).startswith(shown[0].encode())
        assert answers[0].body == b"".join(sent)
        if content_type == b"text/event-stream":
            seen = sum(len(item["texts"][0]) + item.get("cut", 0) for item in events)
            assert seen == len(answers[0].body)


@pytest.mark.parametrize("path", ["/", "/hooked"])
@pytest.mark.parametrize("leaves", ["watcher", "client", "upstream"])
async def test_a_stream_is_joined_and_left_in_its_middle(path: str, leaves: str) -> None:
    """A joined stream begins with the next whole event. Nothing is kept after either side leaves."""
    steps = Steps()
    async with inspected(steps.script) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", path)
        answer = await client.head()
        steps.send(b"data: 1\n\ndata: be")
        await client.read_until(answer, b"1\n\n" if path == "/hooked" else b"be")
        (exchange,) = proxy.worker.live
        async with watching(proxy.port, f"?exchange=0-{exchange.number}") as found:  # type: ignore[attr-defined]
            (head,) = await found.kinds("head")
            assert head["status"] == 200
            steps.send(b"fore\n\ndata: 2\n\n")
            await found.kinds("event", 2)
            first = "before" if path == "/hooked" else "2"
            assert found.of("event")[0]["texts"] == [f"data: {first}\n\n"]
            if leaves == "client":
                await client.aclose()
                (end,) = await found.kinds("end")
                assert end["outcome"] == "client_disconnected"
            elif leaves == "upstream":
                steps.send(None)
                await found.kinds("end")
            else:
                await until(lambda: exchange.tap is not None)
        if leaves == "watcher":
            await until(lambda: exchange.tap is None)
            steps.send(b"data: 3\n\n")
            steps.send(None)
            answer = await client.rest(answer)
            body = b"data: 1\n\ndata: before\n\ndata: 2\n\ndata: 3\n\n"
            assert answer.body == body + (b"data: last\n\n" if path == "/hooked" else b"")
        await client.aclose()


@pytest.mark.parametrize(
    ("query", "paths"),
    [
        ("route=/hooked", ["/hooked/v1/chat/completions"]),
        ("client=127.0.0.1", ["/", "/other"]),
        ("client=192.0.2.1", []),
        ("client=ann", ["/hooked/v1/chat/completions"]),
        ("model=m-2", ["/hooked/v1/chat/completions"]),
        ("model=m-3", []),
        ("text=told", ["/", "/other", "/hooked/v1/chat/completions"]),
        ("text=told&once=true", ["/"]),
        ("text=none", []),
        ("events=false", ["/", "/hooked/v1/chat/completions", "/other"]),
    ],
)
async def test_a_view_shows_the_streams_that_match(query: str, paths: list[str]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 0\n\n")
        await peer.chunk(CHUNK % (2, b"told"))
        await peer.end()

    async with inspected(script) as proxy, watching(proxy.port, f"?{query}") as found:
        await until(lambda: proxy.worker.inspector.views)  # type: ignore[union-attr]
        for path in ("/", "/hooked/v1/chat/completions", "/other"):
            await fetch(proxy.port, path)
        await found.kinds("end", len(paths))
        await trio.sleep(0.15)  # nothing else is shown
    assert sorted(item["path"] for item in found.of("begin")) == sorted(paths)
    assert len(found.of("end")) == len(paths)
    assert bool(found.of("event")) is (bool(paths) and "events=" not in query)


async def test_what_the_proxy_itself_sends_is_shown() -> None:
    """A refusal, and the error event of a stream that breaks."""

    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.target == b"/":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
        await peer.cut()

    async with inspected(script) as proxy, watching(proxy.port) as found:
        await until(lambda: proxy.worker.inspector.views)  # type: ignore[union-attr]
        refused = await fetch(proxy.port, "/none")
        broken = await fetch(proxy.port, "/")
        await found.kinds("end", 2)
    assert (refused.status, broken.complete) == (502, False)
    own = [item for item in found.of("event") if item["stage"] == "weirpool"]
    assert [item["what"] for item in own] == ["added", "added"]
    assert own[0]["texts"] == [refused.body.decode()]
    assert broken.body == b"data: 1\n\n" + own[1]["texts"][0].encode()
    assert [item.get("answered_by") for item in found.of("head")] == ["weirpool", None]


CHAT = b'{"model":"m-1","choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
CALL = b'{"model":"m-1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]}}]}'
MODEL = {"kind": "model", "model": "m-1"}


@pytest.mark.parametrize(
    ("dialect", "path", "texts", "parts"),
    [
        ("openai", "/v1/chat/completions", [CHAT], [MODEL, {"kind": "text", "text": "Hi"}, {"kind": "finish", "reason": "stop"}]),
        ("openai", "/v1/chat/completions", [b"data: %s\n\n" % CALL, b"data: [DONE]\n\n"], [MODEL, {"kind": "tool_call", "id": "c", "name": "f", "arguments": "{}"}]),
        ("anthropic", "/v1/messages", [b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'],
         [{"kind": "error", "type": "overloaded_error", "code": None, "text": "busy"}]),
        ("mcp", "/mcp", [b'data: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n', b'data: {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}\n\n'],
         [{"kind": "message", "id": None, "method": "notifications/progress"}, {"kind": "error", "id": 1, "code": "-32601", "text": "no"}]),
        ("openai", "/v1/chat/completions", [b"data: no JSON\n\n", b'data: {"choices":7}\n\n', b"\xff"], []),
        ("generic", "/", [b"data: 1\n\n"], []),
    ],
)  # fmt: skip
def test_answers_are_decoded_by_dialect(
    dialect: str, path: str, texts: list[bytes], parts: list[dict[str, Any]]
) -> None:
    decoder = Decoder(dialect, path)
    found = [part for text in texts for part in decoder.read(text, is_body=text.startswith(b"{"))]
    assert found == parts


async def test_a_slow_view_loses_events_and_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client reads nothing, and the stream goes on. It shows whole events only."""
    monkeypatch.setattr(views, "MAX_ITEMS", 40)
    count = 3_000
    body = b"".join(b"data: %s %d\n\n" % (b"x" * 200, number) for number in range(count))

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(body)
        await peer.end()

    async with inspected(script) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", "/inspect/stream", SECRET)
        await client.head()
        await until(lambda: proxy.worker.inspector.views)  # type: ignore[union-attr]
        assert (await fetch(proxy.port, "/hooked")).complete
        found = Watching()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.read, client)
            (end,) = await found.kinds("end")
            nursery.cancel_scope.cancel()
        await client.aclose()
    lost = sum(item["events"] for item in found.of("lost"))
    numbers = {item["number"] for item in found.of("event")}
    assert lost > 0
    assert end["lost"] == lost
    assert lost + len(numbers) == count + 1  # with the one that is added
    assert {item["number"] for item in found.of("event") if item["stage"] == "client"} == numbers


@pytest.mark.parametrize(
    ("large", "last", "numbers"),
    [(0, 10, range(1, 12)), (0, 40, range(28, 42)), (30, 40, range(31, 42))],
)
async def test_events_before_the_text_that_is_wanted_are_shown_or_counted_as_lost(
    large: int, last: int, numbers: range
) -> None:
    """`large`: the event that is too large to keep."""
    texts = [b"%d " % number + b"x" * (5_000 * (number == large)) for number in range(1, last)]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for text in [*texts, b"wanted", b"after"]:
            await peer.chunk(b"data: %s\n\n" % text)
        await peer.end()

    async with inspected(script) as proxy, watching(proxy.port, "?text=wanted") as found:
        await until(lambda: proxy.worker.inspector.views)  # type: ignore[union-attr]
        assert (await fetch(proxy.port, "/")).complete
        (end,) = await found.kinds("end")
    assert [name for name, _ in found.messages][:2] == ["begin", "head"]
    assert {item["number"] for item in found.of("event")} == set(numbers)
    lost = sum(item["events"] for item in found.of("lost"))
    assert (lost, end.get("lost", 0)) == (numbers[0] - 1,) * 2


async def test_who_may_watch() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nupstream")

    def of(text: str) -> list[tuple[str, str]]:
        return [("Host", "127.0.0.1"), ("Authorization", text)]

    async with inspected(script) as proxy:
        for headers in (None, of("Bearer wrong"), of(f"Basic {TOKEN}")):
            answer = await fetch(proxy.port, "/inspect/stream", headers=headers)
            assert (answer.status, answer.all("www-authenticate")) == (
                401,
                [b'Bearer realm="weirpool"'],
            )
        answer = await fetch(proxy.port, "/inspect/stream?rout=/v1", headers=SECRET)
        assert (answer.status, b"unknown parameter 'rout'" in answer.body) == (400, True)
        answer = await fetch(proxy.port, "/inspect/stream?once=1", headers=SECRET)
        assert (answer.status, answer.body) == (400, b"once: must be true or false\n")
        async with watching(proxy.port, "?exchange=0-4711") as found:
            await found.kinds("gone")
            await found.over.wait()
        for path, kind in (
            ("", b"text/html"),
            ("/inspect.js", b"text/javascript"),
            ("/inspect.css", b"text/css"),
        ):
            answer = await fetch(proxy.port, f"/inspect{path}")
            assert (answer.status, answer.all("content-type")[0].split(b";")[0]) == (200, kind)
            assert b"default-src 'none'" in answer.all("content-security-policy")[0]
            assert answer.all("x-content-type-options") == [b"nosniff"]
    async with open_upstream(script) as upstream:
        config = CONFIG.replace("inspect: true, ", "") % upstream.url
        async with open_proxy(parse_config(config)) as proxy:
            assert proxy.worker.inspector is None
            assert (await fetch(proxy.port, "/inspect", headers=SECRET)).body == b"upstream"


async def test_every_worker_shows_the_streams_of_all(tmp_path: Any) -> None:
    steps_of: list[Peer] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        steps_of.append(peer)
        await peer.wait_closed()

    async with open_upstream(script) as upstream:
        admin = free_port()
        file = tmp_path / "weirpool.yaml"
        file.write_text(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes: [{{path: /, upstream: up}}]
admin: {{port: {admin}, inspect: true, token: "{TOKEN}"}}
drain: {{timeout: 1}}
"""
        )
        async with running(serve("--config", str(file), "--workers", "3")) as process:
            started = await process.event("started", 3)
            one, *others = (line["pid"] for line in started)
            clients = []
            for stopped in ([one], others):  # so that two workers have streams
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                for _ in range(6):
                    clients.append(await open_client(port_in(started[0])))
                    await clients[-1].send("GET", "/")
                    await clients[-1].head()
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
            async with watching(admin) as found:
                await found.kinds("begin", 12)
                assert len({item["worker"] for item in found.of("begin")}) > 1
                for peer in steps_of:
                    await peer.chunk(b"data: all\n\n")
                await until(lambda: len(found.of("event")) == 24)
                assert {tuple(item.get("texts", ())) for item in found.of("event")} == {
                    ("data: all\n\n",),
                    (),
                }
                last = found.of("begin")[-1]
                async with watching(admin, f"?exchange={last['exchange']}") as alone:
                    await alone.kinds("begin")
                    for client in clients:
                        await client.aclose()
                    await alone.kinds("end")
                    await alone.over.wait()
                await found.kinds("end", 12)
            await process.stop()
