"""The store in a whole proxy: faults of a real server, its keys from YAML, and an author's own use."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from support.certificates import Certificates
from support.client import fetch
from support.process import Process, free_port, port_of, running, serve
from support.proxy import Proxy, open_proxy
from support.required import lacking
from support.store_server import StoreServer
from support.upstream import Peer, Script, open_upstream

from proxy.config import check_config, parse_config


async def answers(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@asynccontextmanager
async def limited(
    store: str, *, options: str = "", burst: int = 6, script: Script = answers
) -> AsyncIterator[Proxy]:
    """A proxy with a limit that does not refill."""
    limit = f"{{requests_per_minute: 0.001, burst: {burst}{options}}}"
    async with open_upstream(script) as upstream:
        config = parse_config(f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes: [{{path: /, upstream: up, interceptors: [limit]}}]
interceptors: [{{name: limit, use: rate_limit, options: {limit}}}]
store: {store}
log: {{level: warning}}
""")
        async with open_proxy(config) as proxy:
            yield proxy


async def left(proxy: Proxy) -> int | str:
    """What is left after a request, or the type of the error."""
    with trio.fail_after(10):  # the longest wait is 0.25 s
        answer = await fetch(proxy.port)
    if answer.status != 200:
        return re.findall(rb'"type":"(\w+)"', answer.body)[0].decode()
    (field,) = answer.all("ratelimit")
    return int(re.fullmatch(rb'"limit";r=(\d+);t=\d+', field)[1])  # type: ignore[index]


async def metrics(proxy: Proxy) -> dict[str, float]:
    page = (await fetch(proxy.port, "/metrics")).body.decode()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in page.splitlines() if line[:1] != "#")
        if name.startswith("weirpool_store")
    }


async def is_up(proxy: Proxy) -> None:
    """Wait until the proxy reaches the store again."""
    with trio.fail_after(5):
        while not (await metrics(proxy))["weirpool_store_up"]:
            await trio.sleep(0.02)


async def test_the_headers_of_a_limit() -> None:
    """draft-ietf-httpapi-ratelimit-headers-11: after the upstream's own, and beside Retry-After."""

    async def limits_too(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(
                b'HTTP/1.1 200 OK\r\nRateLimit: "up";r=7;t=9\r\nContent-Length: 0\r\n\r\n'
            )

    async with limited("{}", burst=1, script=limits_too) as proxy:
        passed, refused = await fetch(proxy.port), await fetch(proxy.port)
    fields = [passed.all("ratelimit"), passed.all("ratelimit-policy")]
    assert fields == [[b'"up";r=7;t=9, "limit";r=0;t=60000'], [b'"limit";q=1;w=60000']]
    fields = [refused.all("ratelimit"), refused.all("ratelimit-policy"), refused.all("retry-after")]
    assert fields == [[b'"limit";r=0;t=60000'], [b'"limit";q=1;w=60000'], [b"60000"]]


class Relay:
    """A TCP relay before a server: it can be slow, and answer garbage instead."""

    def __init__(self, server: StoreServer) -> None:
        self.server = server
        self.delay_s = 0.0
        self.garbage = b""
        self.port = 0

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            task_status.started()
            await trio.serve_listeners(self.handle, [listener], handler_nursery=nursery)

    async def handle(self, client: trio.SocketStream) -> None:
        try:
            async with client, await trio.open_tcp_stream("127.0.0.1", self.server.port) as server:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.copy, client, server, False)
                    await self.copy(server, client, True)
                    nursery.cancel_scope.cancel()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def copy(self, source: trio.SocketStream, sink: trio.SocketStream, back: bool) -> None:
        while data := await source.receive_some(65536):
            await trio.sleep(self.delay_s / 2)
            await sink.send_all(self.garbage if back and self.garbage else data)


async def _stop(server: StoreServer, relay: Relay) -> None:
    server.stop()


async def _start(server: StoreServer, relay: Relay) -> None:
    server.start()
    await server.ready()


async def _pause(server: StoreServer, relay: Relay) -> None:
    server.pause()


async def _resume(server: StoreServer, relay: Relay) -> None:
    server.resume()


async def _fill(server: StoreServer, relay: Relay) -> None:
    await server.ask("CONFIG SET maxmemory 1")


async def _empty(server: StoreServer, relay: Relay) -> None:
    await server.ask("CONFIG SET maxmemory 0")


async def _restart(server: StoreServer, relay: Relay) -> None:
    server.stop()
    await _start(server, relay)


async def _slow(server: StoreServer, relay: Relay) -> None:
    relay.delay_s = 0.2


async def _nonsense(server: StoreServer, relay: Relay) -> None:
    relay.garbage = b"*1\r\n$3\r\nfoo\r\n"


async def _garbage(server: StoreServer, relay: Relay) -> None:
    relay.garbage = b"\x00\xffHTTP/1.1 400 Bad Request\r\n\r\n"


async def _mend(server: StoreServer, relay: Relay) -> None:
    relay.garbage, relay.delay_s = b"", 0.0


async def _flush(server: StoreServer, relay: Relay) -> None:
    await server.ask("SCRIPT FLUSH")


Act = Callable[[StoreServer, Relay], Awaitable[None]]
FAULTS: dict[
    str, tuple[Act, Act, bool]
] = {  # how it breaks, how it is mended, whether it is noticed
    "stopped": (_stop, _start, True),
    "paused": (_pause, _resume, True),
    "full": (_fill, _empty, True),
    "garbage": (_garbage, _mend, True),
    "nonsense": (_nonsense, _mend, True),
    "restarted empty": (_restart, _mend, False),
    "200 ms slower": (_slow, _mend, False),
    "without scripts": (_flush, _mend, False),
}


@pytest.mark.parametrize(("breaks", "mends", "shows"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_of_the_server_fails_no_request_and_counting_goes_on(
    breaks: Act, mends: Act, shows: bool
) -> None:
    """Every request is answered; counting neither jumps when the store goes nor when it is back."""
    server = StoreServer()
    relay = Relay(server)
    async with server.running(), trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        async with limited(f"{{url: 'redis://127.0.0.1:{relay.port}'}}") as proxy:
            with capture_logs() as logs:
                assert [await left(proxy) for _ in range(2)] == [5, 4]
                await breaks(server, relay)
                assert [await left(proxy) for _ in range(2)] == [3, 2]
                if shows:
                    seen = await metrics(proxy)
                    assert seen.pop("weirpool_store_up") == 0
                    assert {name.partition("{")[0] for name in seen} == {
                        "weirpool_store_failures_total"
                    }
                    assert sum(seen.values()) == 2  # each call that failed, by kind
                await mends(server, relay)
                await is_up(proxy)
                assert [await left(proxy) for _ in range(3)] == [1, 0, "rate_limited"]
        names = [line["event"] for line in logs if line["event"] in ("store_down", "store_up")]
        assert names == ["store_down", "store_up"] or not (names or shows)
        nursery.cancel_scope.cancel()


async def test_what_is_taken_while_the_link_goes_up_is_counted() -> None:
    """The link goes up in several round trips. Requests in between count, too."""
    server = StoreServer()
    relay = Relay(server)
    async with server.running(), trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        url = f"{{url: 'redis://127.0.0.1:{relay.port}'}}"
        async with limited(url, burst=1000) as proxy:
            with capture_logs():
                expected = [*range(999, 996, -1)]
                assert [await left(proxy) for _ in expected] == expected
                relay.delay_s = 0.1  # of each round trip
                server.stop()
                await _start(server, relay)
                is_up, after = False, 0
                while after < 3:
                    expected.append(expected[-1] - 1)
                    assert await left(proxy) == expected[-1]
                    after += is_up
                    is_up = bool((await metrics(proxy))["weirpool_store_up"])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("policy", "own", "expected"),
    [
        ("local", "", [5, 4]),
        ("open", "", [6, 6]),
        ("closed", "", ["store_unavailable"] * 2),
        ("closed", ", on_store_error: open", [6, 6]),
        ("open", ", on_store_error: closed", ["store_unavailable"] * 2),
    ],
)
async def test_the_policy_without_the_store(policy: str, own: str, expected: list[object]) -> None:
    """`on_error` of the store, and `on_store_error` of a limit; also if it is away at the start."""
    store = f"{{url: '{StoreServer().url}', on_error: {policy}}}"
    async with limited(store, options=own) as proxy:
        with capture_logs():
            assert [await left(proxy) for _ in range(2)] == expected


OWN = """# Interceptor.store, of an author
from interceptors import (
    Bucket, Interceptor, LogEntry, OnStoreError, Reservation, Response, Store, StoreUnavailable,
    StreamInterceptor, Window, WindowState,
)

POLICY: OnStoreError = "closed"

class Own(Interceptor):
    async def on_request(self, request):
        store: Store = self.store
        if request.path == "/away":
            try:
                await store.get("k")
            except StoreUnavailable as error:
                return Response(error.kind)
        bucket: Bucket = await store.take("ann", rate_per_s=0.001, burst=9, on_error=POLICY)
        held: Reservation = await store.reserve(5, [Window("ann/hour", 20, 3600.0)])
        await store.settle(held, 3)
        state: WindowState = (await store.spend(0, [Window("ann/hour", 20, 3600.0)])).states[0]
        await store.count("hour", {"requests": 1}, keep_s=60)
        await store.append("log", 1, 1, [b"first"], keep_s=60)
        entries: list[LogEntry] = await store.read("log")
        await store.put("k", b"value", keep_s=60)
        assert (await store.counts("hour"))["requests"] * 3 == state.used
        got = [bucket.remaining, state.used, entries[0].data.decode(), (await store.get("k")).decode()]
        return Response(json=got)
"""


async def test_an_author_uses_the_store(tmp_path: Path) -> None:
    """From a file, over TLS, as a user of an ACL who has only the prefix; other prefixes are apart."""
    certificates = Certificates(tmp_path, "localhost")
    (tmp_path / "own.py").write_text(OWN)
    file = tmp_path / "weirpool.yaml"
    server = StoreServer()
    tls = ["--tls-cert-file", certificates.files[0], "--tls-key-file", certificates.files[1]]
    tls += ["--tls-ca-cert-file", certificates.ca_file, "--tls-auth-clients", "no"]
    port = free_port()
    user = "ann on >p:w/d ~one:* &one:* +@all -@dangerous"
    async with server.running("--tls-port", str(port), *tls, "--user", *user.split()):
        for prefix, used in (("one:", 3), ("one:", 6), ("one:two:", 3)):
            file.write_text(f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://127.0.0.1:9"]}}]
  routes: [{{path: /, upstream: up, interceptors: [own]}}]
interceptors: [{{name: own, use: "./own.py:Own"}}]
store: {{url: "valkeys://localhost:{port}", username: ann, password: "p:w/d", ca_file: ca.pem,
  prefix: "{prefix}", timeout: 5, on_error: closed, local: auto}}
log: {{level: error}}
""")
            async with open_proxy(check_config(file).require()) as proxy:
                answer = await fetch(proxy.port)
                assert answer.body == b'[%d,%d,"first","value"]' % (9 - used // 3, used)
                if prefix == "one:two:":
                    server.stop()
                    assert (await fetch(proxy.port, "/away")).body in (b"connection", b"away")


async def reachable(port: int) -> None:
    with trio.fail_after(20):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                return
            except OSError:
                await trio.sleep(0.05)


async def count(port: int, requests: int, connections: int = 20) -> Counter[bytes]:
    """The statuses of so many requests, pipelined on several connections."""
    found: Counter[bytes] = Counter()

    async def ask() -> None:
        got = b""
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            for sent in range(25, requests // connections + 1, 25):
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 25)
                while got.count(b"\r\n\r\n") < sent:
                    got += await stream.receive_some(65536)
        found.update(re.findall(rb"HTTP/1.1 (\d+)", got))

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(ask)
    return found


WORKERS = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /, upstream: up, interceptors: [limit]}]
interceptors: [{name: limit, use: rate_limit, options: {requests_per_minute: 0.001, burst: 1000}}]
store: %s
log: {level: warning}
"""


@pytest.mark.parametrize("proxies", [1, 2])
async def test_a_limit_is_exact_over_workers_and_machines(proxies: int, tmp_path: Path) -> None:
    """Of 10,000 requests to four workers 1,000 pass; so many also of two proxies on one store."""
    server = StoreServer()
    file = tmp_path / "weirpool.yaml"
    async with server.running(), open_upstream(answers) as upstream, AsyncExitStack() as stack:
        store = "{timeout: 5}" if proxies == 1 else f"{{url: '{server.url}', timeout: 5}}"
        file.write_text(WORKERS % (upstream.url, store))
        found: Counter[bytes] = Counter()
        for _ in range(proxies):
            port = free_port()
            command = [
                *serve("--config", str(file), "--workers", "4"),
                "--bind",
                f"127.0.0.1:{port}",
            ]
            await stack.enter_async_context(running(command))
            await reachable(port)
            found += await count(port, 10_000 // proxies)
        assert found == {b"200": 1000, b"429": 9000}


@pytest.mark.parametrize("local", ["auto", "off"])
async def test_workers_without_a_server_count_their_share(local: str, tmp_path: Path) -> None:
    """`local: off`, or no server on PATH: the start says so."""
    file = tmp_path / "weirpool.yaml"
    async with open_upstream(answers) as upstream:
        text = (WORKERS % (upstream.url, f"{{local: {local}}}")).replace("warning", "info")
        file.write_text(text.replace("burst: 1000", "burst: 11"))
        path = {} if local == "off" else {"PATH": str(tmp_path)}
        async with running(serve("--config", str(file), "--workers", "2"), env=path) as process:
            lines = await process.event("started", 2)
            assert {line["store"] for line in lines} == {"memory, 1/2 of each limit"}
            found = await count(await port_of(process), 200, connections=8)
            assert 5 <= found[b"200"] <= 11


def servers_of(process: Process) -> list[int]:
    """The processes of the supervisor's own server."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].partition(") ")
        except OSError:
            continue
        if name.startswith(("redis-s", "valkey-s")) and int(rest.split()[1]) == process.process.pid:
            found.append(int(stat.parent.name))
    return found


async def test_the_supervisors_own_server(tmp_path: Path) -> None:
    """Killed, it is started again and nobody gets a new burst; it ends with the supervisor's death."""
    if not (shutil.which("valkey-server") or shutil.which("redis-server")):
        lacking("redis-server", "WEIRPOOL_REQUIRE_STORES")
    file = tmp_path / "weirpool.yaml"
    async with open_upstream(answers) as upstream:
        text = WORKERS % (upstream.url, "{timeout: 5, local: auto}")
        file.write_text(text.replace("warning", "info").replace("burst: 1000", "burst: 50"))
        async with running(serve("--config", str(file), "--workers", "2")) as process:
            (started, *_) = await process.event("started", 2)
            directory = Path(str(started["store"]).removeprefix("unix://")).parent
            assert directory.stat().st_mode & 0o777 == 0o700
            port = await port_of(process)
            assert (await count(port, 100, connections=4))[b"200"] == 50
            (pid,) = servers_of(process)
            os.kill(pid, signal.SIGKILL)
            await process.event("store_server_died")
            await process.event("store_up", 2)
            assert (await count(port, 50, connections=1))[b"200"] == 0
            (pid,) = servers_of(process)
            process.signal(signal.SIGKILL)
            with trio.fail_after(10):
                while Path(f"/proc/{pid}").exists():
                    await trio.sleep(0.02)
