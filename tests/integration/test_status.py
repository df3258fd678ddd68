"""`/status` and `/status/stream`: their numbers, who may read them, and how the stream ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.client import Answer, Client, fetch, open_client
from support.interceptors import until
from support.process import free_port, port_in, running, serve
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream

from proxy.server.watching import MOST_WATCHERS, StatusStream

CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"], headers: {set: {x-api-key: "${KEY}"}}}]
  routes: [{path: /, upstream: up, interceptors: [sees]}]
interceptors: [{name: sees, use: "./sees.py:Sees"}]
admin: {port: %d, token: "${TOKEN}"}
drain: {timeout: 5}
"""
SEES = """
from interceptors import Interceptor, StreamInterceptor

class Sees(Interceptor):
    def open_stream(self, context):
        return Stream()

class Stream(StreamInterceptor):
    def on_event(self, event):
        return event
"""
TOKEN = "a-token-of-26-characters!!"
SUCCESSFUL = "weirpool_config_last_reload_successful"
SUCCESS_AT = "weirpool_config_last_reload_success_timestamp_seconds"
LOCAL = [("Host", "127.0.0.1")]
BEARER = [*LOCAL, ("Authorization", f"Bearer {TOKEN}")]


async def script(peer: Peer) -> None:
    """`/open`: two events, and no end; else one event."""
    while True:
        request = await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        if request.target.startswith(b"/open"):
            await peer.chunk(b"data: 2\n\n")
            await peer.wait_closed()
        await peer.end()


async def watch(
    port: int, headers: list[tuple[str, str]] = BEARER, path: str = "/status/stream"
) -> tuple[Client, Answer]:
    client = await open_client(port)
    await client.send("GET", path, headers)
    return client, await client.head()


async def next_state(client: Client, answer: Answer) -> dict[str, Any]:
    """The next event of a stream."""
    answer.body = b""
    await client.read_until(answer, b"}\n\n")
    block = answer.body.removeprefix(b"retry: 1000\n\n")
    assert block.startswith(b"event: status\ndata: {"), block[:80]
    return dict(json.loads(block.rpartition(b"data: ")[2]))


def sample(metrics: bytes, name: str) -> float:
    return float(metrics.decode().partition(f"\n{name} ")[2].partition("\n")[0])


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_status_and_its_stream_show_what_happens(workers: str, tmp_path: Path) -> None:
    """They agree with `/metrics`, need the token, show a failed reload, and end with the drain."""
    (tmp_path / "sees.py").write_text(SEES)
    file, admin = tmp_path / "weirpool.yaml", free_port()
    environment = {"KEY": "the-key-of-the-upstream", "TOKEN": TOKEN}
    async with open_upstream(script) as upstream:
        file.write_text(CONFIG % (upstream.url, admin))
        command = serve("--config", str(file), "--workers", workers)
        async with running(command, env=environment) as process:
            started, *_ = await process.event("started", int(workers))
            port = port_in(started)
            for page in ("/status", "/status/stream"):
                for header in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN} x"):
                    wrong = [*LOCAL, ("Authorization", header)]
                    answer = await fetch(admin, page, headers=wrong)
                    assert answer.status == 401, header
                    assert answer.all("www-authenticate") == [b'Bearer realm="weirpool"']
                assert (await fetch(admin, page, headers=LOCAL)).status == 401
            assert (await fetch(admin, "/metrics", headers=LOCAL)).status == 200

            watcher, stream = await watch(admin)
            assert stream.all("content-type") == [b"text/event-stream"]
            assert stream.all("cross-origin-resource-policy") == [b"same-origin"]
            state = await next_state(watcher, stream)
            assert (state["streams"], state["reload"]) == (0, None)
            assert len(state["workers"]) == int(workers)
            client = await open_client(port)
            await client.send("GET", "/open/x?secret=1")
            await client.read_until(await client.head(), b"data: 2\n\n")
            for _ in range(3):
                await fetch(port, "/")
            with trio.fail_after(10):
                while sum(state["routes"][-1]["outcomes"].values()) < 3 or not state["streams"]:
                    state = await next_state(watcher, stream)
            (listed,) = state["exchanges"]["oldest"]
            assert 0 <= listed.pop("age") < 60
            assert listed.pop("request_id")
            assert listed == {
                "id": listed["id"],
                "worker": listed["worker"],
                "route": "/",
                "upstream": "up",
                "endpoint": upstream.url,
                "client": "127.0.0.1",
                "method": "GET",
                "path": "/open/x",
                "call": None,
                "phase": "relay",
                "bytes": 18,
                "events": 2,
            }
            route = next(item for item in state["routes"] if item["route"] == "/")
            metrics = (await fetch(admin, "/metrics", headers=LOCAL)).body
            for name, value in route["outcomes"].items():
                counter = f'weirpool_exchanges_total{{outcome="{name}",route="/"}}'
                assert sample(metrics, counter) == value
            assert route["events"]["passed"] == 5
            assert route["bytes"]["downstream"] == 45
            assert state["times"]["first_byte"]["count"] == 3
            assert 0 < state["times"]["first_byte"]["p50"] < state["times"]["first_byte"]["p99"]
            assert state["rates"]["events"] > 0
            for pool in state["pools"]:
                for key in ("in_use", "high_water", "reuse_rate"):
                    assert pool[key] == sample(
                        metrics, f'buffer_pool_{key}{{pool="{pool["pool"]}"}}'
                    )
            (interceptor,) = state["interceptors"]
            assert (interceptor["interceptor"], interceptor["events"]) == ("sees", 5)
            assert interceptor["seconds_per_event"] > 0
            assert interceptor["calls"] >= 5
            limits = {item["limit"]: item["used"] for item in state["limits"]}
            assert limits["limits.max_streams"] == limits["upstreams[up].max_connections"] == 1
            (endpoint,) = state["upstreams"]["up"]["endpoints"]
            assert (endpoint["state"], endpoint["outstanding"]) == ("up", 1)

            file.write_text(CONFIG % ("not-a-url", admin))
            process.signal(signal.SIGHUP)
            await process.event("reload")
            state = json.loads((await fetch(admin, "/status", headers=BEARER)).body)
            assert state["reload"]["ok"] is False
            assert "endpoints[0]" in state["reload"]["errors"][0]
            metrics = (await fetch(admin, "/metrics", headers=LOCAL)).body
            before = sample(metrics, SUCCESS_AT)
            assert sample(metrics, SUCCESSFUL) == 0
            file.write_text(CONFIG % (upstream.url, admin) + "secret: " + "x" * 32)
            process.signal(signal.SIGHUP)
            await process.event("reload", 1 + int(workers))
            metrics = (await fetch(admin, "/metrics", headers=LOCAL)).body
            assert sample(metrics, SUCCESSFUL) == 1
            assert sample(metrics, SUCCESS_AT) > before
            state = json.loads((await fetch(admin, "/status", headers=BEARER)).body)
            assert (state["reload"]["ok"], state["reload"]["changed"]) == (True, ["secret"])

            process.signal(signal.SIGTERM)
            if workers == "1":  # of several, the one that answers can end before the others
                with trio.fail_after(10):
                    while not (await next_state(watcher, stream))["draining"]:
                        pass
            await client.aclose()
            assert (await watcher.rest(stream)).complete
            assert await process.exit_status() == 0
            for item in (TOKEN, environment["KEY"]):
                assert item not in "\n".join(process.lines)
            await watcher.aclose()


async def test_watchers_on_the_main_port_are_limited_and_end_when_the_drain_begins() -> None:
    """Paths are not shown there: without a token these pages are public."""
    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", "/open")
        await client.read_until(await client.head(), b"data: 2\n\n")
        watchers = [await watch(proxy.port, LOCAL) for _ in range(MOST_WATCHERS)]
        for watcher, stream in watchers:
            state = await next_state(watcher, stream)
            assert state["exchanges"]["oldest"][0]["path"] is None
        refused = await fetch(proxy.port, "/status/stream")
        assert (refused.status, refused.all("retry-after")) == (503, [b"5"])
        await watchers[0][0].aclose()
        with trio.fail_after(5):
            while True:
                watcher, stream = await watch(proxy.port, LOCAL)
                if stream.status == 200:
                    break
                await watcher.aclose()
        watchers[0] = watcher, stream
        proxy.worker.start_draining()
        for watcher, stream in watchers:
            assert (await watcher.rest(stream)).complete
            await watcher.aclose()
        await client.aclose()
        await until(lambda: not proxy.worker.live)


async def test_public_pages_show_no_detail(tmp_path: Path) -> None:
    """Without `admin.port` and `admin.token`, every client of the proxy can read them."""
    (tmp_path / "sees.py").write_text(SEES)
    file = tmp_path / "weirpool.yaml"
    text = CONFIG.replace('admin: {port: %d, token: "${TOKEN}"}', "admin: {prefix: /-}")
    text = text.replace("[sees]", "[sees, limit]").replace(
        './sees.py:Sees"}]',
        './sees.py:Sees"}, {name: limit, use: rate_limit, options: {requests_per_minute: 1}}]',
    )
    async with open_upstream(script) as upstream:
        file.write_text(text % upstream.url)
        command = serve("--config", str(file))
        async with running(command, env={"KEY": "the-key-of-the-upstream"}) as process:
            port = port_in((await process.event("started"))[0])
            client = await open_client(port)
            await client.send("GET", "/open/unseen", [("X-Request-Id", "the-id-of-another")])
            await client.read_until(await client.head(), b"data: 2\n\n")
            file.write_text(text % "no-url")
            process.signal(signal.SIGHUP)
            await process.event("reload")
            status = (await fetch(port, "/-/status")).body
            html = (await fetch(port, "/-/dashboard")).body
            watcher, stream = await watch(port, LOCAL, "/-/status/stream")
            state = await next_state(watcher, stream)
            shown = json.loads(status)
            assert shown["reload"].keys() == {"at", "ok"}
            assert shown["workers"][0]["reload"] == shown["reload"] == state["reload"]
            assert (shown["budgets"], shown["configuration"]) == ([], None)
            (exchange,) = shown["exchanges"]["oldest"]
            assert {exchange[name] for name in ("client", "path", "call", "request_id")} == {None}
            for page in (status, html, stream.body):
                for hidden in (
                    *(b"unseen", b"no-url", b"sees.py", b"the-key", b"endpoints[0]"),
                    *(b"the-id", b'<td class="text">127.0.0.1</td>'),
                ):
                    assert hidden not in page, hidden
            await watcher.aclose()
            await client.aclose()
            await process.stop()


async def test_a_slow_watcher_gets_the_newest_state(autojump_clock: trio.testing.MockClock) -> None:
    """Only this watcher loses the states before; without a watcher nothing is computed."""
    computed = 0

    async def compute() -> bytes:
        nonlocal computed
        computed += 1
        return b"%d" % computed

    stream = StatusStream(compute, lambda: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.run)
        await trio.sleep(60)
        assert computed == 0
        slow, fast = stream.events(), stream.events()
        assert await anext(slow) == await anext(fast) == b"retry: 1000\n\n"
        assert await anext(slow) == b"event: status\ndata: 1\n\n"
        for number in range(1, 6):
            assert await anext(fast) == b"event: status\ndata: %d\n\n" % number
        assert await anext(slow) == b"event: status\ndata: 5\n\n"
        await slow.aclose()
        await fast.aclose()
        await trio.sleep(60)
        assert computed <= 6
        late = stream.events()
        assert [await anext(late), await anext(late)][
            1
        ] == b"event: status\ndata: %d\n\n" % computed
        nursery.start_soon(stream.aclose)
        assert [item async for item in late] == []
        nursery.cancel_scope.cancel()
