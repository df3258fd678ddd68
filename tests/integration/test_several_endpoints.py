"""Several endpoints in a whole proxy, on real sockets: choice, ejection and return, retries,
sessions, limits, checks.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trustme
from support.client import Answer, Client, fetch, open_client
from support.interceptors import Log, until
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, Script, open_upstream

from proxy.config import Config, parse_config

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def config(*urls: str, upstream: str = "", route: str = "", proxy: str = "") -> Config:
    """One route to an upstream with these endpoints; each further argument is more YAML for its
    place.
    """
    return parse_config(
        f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: [{", ".join(f'"{url}"' for url in urls)}]{", " + upstream if upstream else ""}}}]
  routes: [{{path: /, upstream: up{", " + route if route else ""}}}]
  leak_detection: paranoid
{proxy}
drain: {{timeout: 1}}
log: {{level: error}}
"""
    )


@pytest.fixture(autouse=True)
async def never_hang(nursery: trio.Nursery) -> None:
    """A test that waits forever fails instead."""

    async def watch() -> None:
        await trio.sleep(30)
        raise AssertionError("the test hangs")

    nursery.start_soon(watch)


@asynccontextmanager
async def unheard() -> AsyncIterator[str]:
    """An endpoint that refuses: its port is bound and not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


async def good(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


def reset(peer: Peer) -> None:
    sock = peer.stream.socket  # type: ignore[attr-defined]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def resets(peer: Peer) -> None:
    await peer.request()
    reset(peer)


async def closes(peer: Peer) -> None:
    await peer.request()


async def hangs(peer: Peer) -> None:
    await peer.request()
    await peer.wait_closed()


async def hangs_in_head(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-")
    await peer.wait_closed()


async def closes_in_head(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-")


async def listens(peer: Peer) -> None:
    await peer.request()
    await peer.start_stream()
    await peer.wait_closed()


async def says_garbage(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"what?\r\n\r\n")
    await peer.wait_closed()


BAD: list[Script] = [resets, closes, hangs, hangs_in_head, closes_in_head, says_garbage]
SOON = "timeouts: {first_byte: 0.3}"


def metric(proxy: Proxy, name: str, **labels: str) -> float | None:
    return proxy.worker.metrics.registry.get_sample_value(f"weirpool_{name}", labels)


async def endpoint_states(proxy: Proxy) -> dict[str, str]:
    status = json.loads((await fetch(proxy.port, "/status")).body)
    return {item["endpoint"]: item["state"] for item in status["upstreams"]["up"]["endpoints"]}


async def until_state(proxy: Proxy, url: str, state: str) -> None:
    with trio.fail_after(10):
        while (await endpoint_states(proxy))[url] != state:
            await trio.sleep(0.005)


async def all_back(proxy: Proxy) -> None:
    """Wait until no exchange is live; then nothing is on loan, and no endpoint has anything
    outstanding.
    """
    await until(lambda: not proxy.worker.live)
    assert set(proxy.in_use().values()) == {0}
    assert proxy.lent() == 0
    for transport in proxy.worker.routes.transports.values():
        assert [item.outstanding for item in transport.endpoint_states()] == [0] * len(
            transport.endpoint_states()
        )


def kind(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["type"])


# Choice


async def endpoints_in(log: Log, count: int) -> list[object]:
    """What the lines of so many exchanges name as their endpoint."""
    await until(lambda: len([line for line in log if line["event"] == "exchange"]) >= count)
    return [line["endpoint"] for line in log if line["event"] == "exchange"]


async def test_streams_go_to_the_endpoint_with_the_fewest() -> None:
    """Ten streams that last are five and five; when those of one end, the next go there."""
    done = trio.Event()

    async def streams(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await done.wait()
        await peer.end()

    async def short(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.start_stream()
            await release.wait()
            await peer.end()

    release = trio.Event()
    async with open_upstream(streams) as one, open_upstream(short) as two:
        async with open_proxy(config(one.url, two.url)) as proxy:
            clients = []
            for _ in range(10):
                clients.append(await open_client(proxy.port))
                await clients[-1].send("GET", "/")
                await clients[-1].head()
            assert (len(one.requests), len(two.requests)) == (5, 5)
            release.set()
            states = proxy.worker.routes.transports["up"].endpoint_states
            await until(lambda: [item.outstanding for item in states()] == [5, 0])
            for _ in range(3):
                assert (await fetch(proxy.port)).complete
            assert (len(one.requests), len(two.requests)) == (5, 8)
            done.set()
            for client in clients:
                await client.aclose()
            await all_back(proxy)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("upstream", None), ("preserve", b"proxy.test"), ("other.test", b"other.test")],
)
async def test_path_scheme_and_host_follow_the_endpoint(
    host: str, expected: bytes | None, tmp_path: Path, log: Log
) -> None:
    """Each has a base path; one has TLS. The target stays byte for byte after the base, and the log
    has the origin.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with open_upstream(good) as plain, open_upstream(good, ssl_context=context) as tls:
        urls = f"{plain.url}/a/", f"{tls.url}/b/c"
        async with open_proxy(
            config(*urls, upstream=f"host: {host}, ca_file: {tmp_path}/ca.pem")
        ) as proxy:
            for number, upstream in enumerate([plain, tls] * 2, 1):
                assert (await fetch(proxy.port, "/v1//x?y=%20")).body == b"ok"
                assert (await endpoints_in(log, number))[-1] == upstream.url
    assert [request.target for request in plain.requests] == [b"/a/v1//x?y=%20"] * 2
    assert [request.target for request in tls.requests] == [b"/b/c/v1//x?y=%20"] * 2
    for upstream in (plain, tls):
        netloc = f"{upstream.host}:{upstream.port}".encode()
        assert [request.all("host") for request in upstream.requests] == [[expected or netloc]] * 2


@pytest.mark.parametrize(
    ("scripts", "answer"),
    [
        ((None, good), None),
        ((None, closes), "upstream_connection_lost"),
        ((closes, None), "upstream_connect_failed"),
    ],
)
async def test_the_log_names_the_endpoint_that_was_tried_last(
    scripts: tuple[Script | None, Script | None], answer: str | None, log: Log
) -> None:
    """After a retry, the endpoint that it moved to; None refuses connections."""
    async with AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(unheard())
            if script is None
            else (await stack.enter_async_context(open_upstream(script))).url
            for script in scripts
        ]
        proxy = await stack.enter_async_context(open_proxy(config(*urls)))
        got = await fetch(proxy.port)
        assert (kind(got) if got.status >= 400 else None) == answer
        assert await endpoints_in(log, 1) == [urls[1]]


async def test_the_log_names_no_endpoint_where_none_was_asked(log: Log) -> None:
    """A client's mistake; every endpoint ejected. One that was asked and did not answer is named."""
    async with open_upstream(hangs) as upstream:
        one_strike = "  health: {consecutive_failures: 1, eject: 60}\n  retry: {max_attempts: 1}"
        async with open_proxy(config(upstream.url, route=SOON, proxy=one_strike)) as proxy:
            assert (
                await fetch(proxy.port, method="POST", headers=[("Content-Length", "999999999")])
            ).status == 413
            assert (await fetch(proxy.port)).status == 504
            assert kind(await fetch(proxy.port)) == "no_endpoint"
            assert await endpoints_in(log, 3) == [None, upstream.url, None]


# Retries


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refusing_endpoint_is_not_noticed_by_clients(method: str, log: Log) -> None:
    """Nothing was written there, so a POST may go to the other one, too. After two failures nothing
    does.
    """
    body = b"x" * 1000 if method == "POST" else None
    async with unheard() as dead, open_upstream(good) as upstream:
        settings = config(
            dead, upstream.url, proxy="  health: {consecutive_failures: 2, eject: 60}"
        )
        async with open_proxy(settings) as proxy:
            for _ in range(20):
                assert (await fetch(proxy.port, method=method, body=body)).status == 200
            assert await endpoint_states(proxy) == {dead: "ejected", upstream.url: "up"}
            for name, url, count in (
                ("endpoint_up", dead, 0),
                ("endpoint_up", upstream.url, 1),
                ("endpoint_failures_total", dead, 2),
                ("endpoint_ejections_total", dead, 1),
                ("retries_total", upstream.url, 2),
            ):
                assert metric(proxy, name, upstream="up", endpoint=url) == count
            await all_back(proxy)
    assert len(upstream.requests) == 20
    assert {request.body for request in upstream.requests} == {body or b""}
    (ejected,) = [line for line in log if line["event"] == "endpoint_ejected"]
    assert (ejected["upstream"], ejected["endpoint"], ejected["seconds"]) == ("up", dead, 60)


async def test_an_upload_that_has_not_begun_goes_whole_to_the_next() -> None:
    """A chunked POST too big to be held in memory, whose first endpoint refuses."""
    body = bytes(range(256)) * 4000
    async with unheard() as dead, open_upstream(good) as upstream:
        async with open_proxy(config(dead, upstream.url)) as proxy:
            client = await open_client(proxy.port)
            await client.send("POST", "/", [("Transfer-Encoding", "chunked")], body)
            assert (await client.answer()).status == 200
            await client.aclose()
            await all_back(proxy)
    assert [request.body for request in upstream.requests] == [body]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_post_that_may_have_been_read_is_never_sent_twice(bad: Script, method: str) -> None:
    """Whatever becomes of it. Each client gets its error, and the upstreams have as many requests
    as there were clients.
    """
    async with open_upstream(bad) as one, open_upstream(bad) as two:
        settings = config(
            one.url, two.url, route=SOON, proxy="  health: {consecutive_failures: 100}"
        )
        async with open_proxy(settings) as proxy:
            for body in (b"x", b"x" * 100_000) * 2:
                assert (await fetch(proxy.port, method=method, body=body)).status in (502, 504)
            await all_back(proxy)
            retries = [
                metric(proxy, "retries_total", upstream="up", endpoint=item.url)
                for item in (one, two)
            ]
    assert (len(one.requests) + len(two.requests), retries) == (4, [0, 0])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_an_idempotent_request_is_tried_at_another_endpoint(bad: Script, method: str) -> None:
    """With its body, if it has one, for that was in memory."""
    body = b"x" * 1000 if method == "PUT" else None
    async with open_upstream(bad) as one, open_upstream(good) as two:
        async with open_proxy(config(one.url, two.url, route=SOON)) as proxy:
            assert (await fetch(proxy.port, method=method, body=body)).status == 200
            await all_back(proxy)
    assert [request.method for request in one.requests + two.requests] == [method] * 2
    assert two.requests[0].body == (body or b"")


async def test_a_streamed_body_is_not_sent_again() -> None:
    """A PUT could be, but its body was not kept."""
    async with open_upstream(resets) as one, open_upstream(good) as two:
        async with open_proxy(config(one.url, two.url)) as proxy:
            client = await open_client(proxy.port)
            await client.send("PUT", "/", [("Transfer-Encoding", "chunked")], b"x" * 100_000)
            assert (await client.head()).status == 502
            await client.aclose()
            await all_back(proxy)
    assert (len(one.requests), len(two.requests)) == (1, 0)


@pytest.mark.parametrize(
    ("proxy_settings", "route", "attempts"),
    [
        ("", "", 2),
        ("  retry: {max_attempts: 4}", "", 4),
        ("  retry: {max_attempts: 4}", "retry: {max_attempts: 3}", 3),
        ("  retry: {max_attempts: 1}", "", 1),
        ("  retry: {budget: 0}", "", 1),
        ("  retry: {budget: 0}", "retry: {budget: 1}", 2),
    ],
)
async def test_attempts_are_counted_in_all(proxy_settings: str, route: str, attempts: int) -> None:
    """`max_attempts` holds the first one; a route may have its own; without a budget there is no
    second.
    """
    async with open_upstream(resets) as upstream:
        settings = config(
            upstream.url,
            route=route,
            proxy=proxy_settings + "\n  health: {consecutive_failures: 100}",
        )
        async with open_proxy(settings) as proxy:
            assert (await fetch(proxy.port)).status == 502
            await all_back(proxy)
    assert len(upstream.requests) == attempts


async def test_retries_cannot_multiply_an_outage() -> None:
    """100 requests to an upstream that fails: ten retries to begin with and a tenth of the
    requests, not as many again.
    """
    async with open_upstream(resets) as upstream:
        settings = config(
            upstream.url,
            proxy="  retry: {max_attempts: 5, budget: 0.1}\n  health: {consecutive_failures: 1000}",
        )
        async with open_proxy(settings) as proxy:
            for _ in range(100):
                assert (await fetch(proxy.port)).status == 502
            await all_back(proxy)
    assert len(upstream.requests) == 120


async def test_total_holds_over_all_attempts(log: Log) -> None:
    """Of many attempts that could take 0.4 s each, the one that is under way at 0.6 s is the last."""
    async with open_upstream(hangs) as upstream:
        settings = config(
            upstream.url,
            route="timeouts: {first_byte: 0.4, total: 0.6}, retry: {max_attempts: 100, budget: 1}",
        )
        async with open_proxy(settings) as proxy:
            with trio.fail_after(5):
                answer = await fetch(proxy.port)
            assert (answer.status, kind(answer)) == (504, "total_timeout")
            await all_back(proxy)
    assert len(upstream.requests) <= 2


# Out and back


async def test_the_circuit_breaker_answers_at_once(log: Log) -> None:
    """When every endpoint is out: 503 with the seconds until one may be back, and nothing is tried."""
    async with open_upstream(hangs) as upstream:
        health = "  health: {consecutive_failures: 2, eject: 30}"
        settings = config(upstream.url, route=SOON, proxy=health)
        async with open_proxy(settings) as proxy:
            assert (await fetch(proxy.port, method="POST", body=b"x")).status == 504
            assert (await fetch(proxy.port, method="POST", body=b"x")).status == 504
            for _ in range(5):
                answer = await fetch(proxy.port)
                assert (answer.status, kind(answer)) == (503, "no_endpoint")
                assert 1 <= int(answer.all("retry-after")[0]) <= 30
            await all_back(proxy)
            assert metric(proxy, "refused_total", route="/", reason="no_endpoint") == 5
    assert upstream.accepted == 2
    lines = [line for line in log if line["event"] == "exchange"][2:]
    assert {line["outcome"] for line in lines} == {"upstream_error"}
    assert all(
        isinstance(line["duration"], float) and line["duration"] < 0.25 for line in lines
    )  # first_byte is 0.3


async def test_an_endpoint_comes_back_by_a_probe(log: Log) -> None:
    """One request finds that it answers again, and then all do."""
    well = False

    async def script(peer: Peer) -> None:
        await (good if well else resets)(peer)

    async with open_upstream(script) as upstream:
        settings = config(upstream.url, proxy="  health: {consecutive_failures: 1, eject: 0.2}")
        async with open_proxy(settings) as proxy:
            assert (await fetch(proxy.port, method="POST", body=b"x")).status == 502
            assert await endpoint_states(proxy) == {upstream.url: "ejected"}
            well = True
            with trio.fail_after(10):
                while (await fetch(proxy.port)).status != 200:
                    pass
            assert await endpoint_states(proxy) == {upstream.url: "up"}
            await all_back(proxy)
    assert [line["event"] for line in log if str(line["event"]).startswith("endpoint_")] == [
        "endpoint_ejected",
        "endpoint_back",
    ]


async def test_a_client_that_leaves_is_not_the_endpoints_failure(log: Log) -> None:
    """Before the head has come, nor is a body that turns out too large. The log has the endpoint."""
    async with open_upstream(hangs) as upstream:
        settings = config(
            upstream.url,
            proxy="  limits: {max_request_body_bytes: 100000}\n  health: {consecutive_failures: 1, eject: 60}",
        )
        async with open_proxy(settings) as proxy:
            for _ in range(3):
                upstream.requests.clear()
                client = await open_client(proxy.port)
                await client.send("GET", "/")
                await until(lambda: len(upstream.requests) == 1)
                client.reset()
                await all_back(proxy)
            client = await open_client(proxy.port)
            await client.send("POST", "/", [("Transfer-Encoding", "chunked")], b"x" * 200_000)
            assert (await client.head()).status == 413
            await client.aclose()
            await all_back(proxy)
            assert await endpoint_states(proxy) == {upstream.url: "up"}
            assert await endpoints_in(log, 4) == [upstream.url] * 4


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_an_answer_is_an_answer(status: int) -> None:
    """Whatever its status: the client gets it with its headers, it is not retried, and the endpoint
    stays in service.
    """

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(
                b"HTTP/1.1 %d No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy" % status
            )

    async with open_upstream(script) as upstream:
        async with open_proxy(
            config(upstream.url, proxy="  health: {consecutive_failures: 1}")
        ) as proxy:
            for _ in range(3):
                answer = await fetch(proxy.port)
                assert (answer.status, answer.body, answer.all("retry-after")) == (
                    status,
                    b"busy",
                    [b"7"],
                )
            assert await endpoint_states(proxy) == {upstream.url: "up"}
    assert len(upstream.requests) == 3


# Sessions


def mcp(name: str) -> Script:
    """An MCP server, as far as its sessions go: it knows those that it has made, and no other."""
    sessions: set[bytes] = set()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            session = request.all("mcp-session-id")
            if not session:
                sessions.add(f"{name}-{len(sessions)}".encode())
                made = f"{name}-{len(sessions) - 1}".encode()
                await peer.send(
                    b"HTTP/1.1 200 OK\r\nMcp-Session-Id: "
                    + made
                    + b"\r\nContent-Length: 2\r\n\r\nok"
                )
            elif session[0] not in sessions:
                await peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")
            elif request.method == "DELETE":
                sessions.remove(session[0])
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            elif request.method == "GET":
                await peer.start_stream()
                await peer.wait_closed()
            else:
                await peer.send(OK)

    return script


async def call(proxy: Proxy, session: bytes, method: str = "POST") -> Answer:
    headers = [("Mcp-Session-Id", session.decode())]
    return await fetch(
        proxy.port, "/mcp", method=method, headers=headers, body=b"{}" if method == "POST" else None
    )


async def test_a_session_stays_with_the_endpoint_that_made_it() -> None:
    """However busy that is. It is forgotten when it has ended, or when the endpoint no longer knows
    it.
    """
    async with open_upstream(mcp("a")) as one, open_upstream(mcp("b")) as two:
        async with open_proxy(config(one.url, two.url)) as proxy:
            sessions = [
                (await fetch(proxy.port, "/mcp", method="POST", body=b"{}")).all("mcp-session-id")[
                    0
                ]
                for _ in range(6)
            ]
            assert Counter(session[:1] for session in sessions) == {b"a": 3, b"b": 3}
            session = next(item for item in sessions if item.startswith(b"a"))
            listeners: list[Client] = []
            for _ in range(5):
                listeners.append(await open_client(proxy.port))
                await listeners[-1].send("GET", "/mcp", [("Mcp-Session-Id", session.decode())])
                assert (await listeners[-1].head()).status == 200
            for item in sessions * 3:
                assert (await call(proxy, item)).status == 200
            transport = proxy.worker.routes.transports["up"]
            assert transport.find(session) is transport.endpoints.all[0]
            assert (await call(proxy, session, "DELETE")).status == 200
            assert transport.find(session) is None
            other = sessions[1] if sessions[1] != session else sessions[2]
            transport.remember(b"b-99", transport.endpoints.all[1])
            assert (await call(proxy, b"b-99")).status == 404
            assert transport.find(b"b-99") is None
            assert (await call(proxy, other)).status == 200
            for client in listeners:
                await client.aclose()
            await all_back(proxy)


async def test_a_session_never_goes_to_an_endpoint_that_does_not_know_it() -> None:
    """Not even when its own is out: it fails as it fails, and the session is still there when that
    is back.
    """
    async with open_upstream(mcp("a")) as one:
        async with unheard() as dead:
            settings = config(dead, one.url, proxy="  health: {consecutive_failures: 1, eject: 60}")
            async with open_proxy(settings) as proxy:
                transport = proxy.worker.routes.transports["up"]
                transport.remember(b"lost", transport.endpoints.all[0])
                for _ in range(3):
                    answer = await call(proxy, b"lost")
                    assert (answer.status, kind(answer)) == (502, "upstream_connect_failed")
                assert await endpoint_states(proxy) == {dead: "ejected", one.url: "up"}
                assert transport.find(b"lost") is transport.endpoints.all[0]
                assert (await fetch(proxy.port, method="POST", body=b"{}")).status == 200
                await all_back(proxy)
    assert len(one.requests) == 1


@pytest.mark.parametrize("strip", [False, True])
async def test_a_session_of_the_old_transport_stays_where_its_stream_is(strip: bool) -> None:
    """HTTP+SSE (MCP 2024-11-05): the session is in the target that the `endpoint` event announces;
    both endpoints have paths.
    """
    posted: list[tuple[str, bytes]] = []

    def old(name: str, base: bytes) -> Script:
        async def script(peer: Peer) -> None:
            while True:
                request = await peer.request()
                if request.method == "POST":
                    posted.append((name, request.target))
                    await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
                    continue
                await peer.start_stream()
                session = f"{name}-{len(peer.upstream.requests)}".encode()
                await peer.chunk(
                    b"event: endpoint\ndata: " + base + b"/messages?session_id=" + session + b"\n\n"
                )
                await peer.wait_closed()
                return

        return script

    prefix = "/tools" if strip else ""
    async with open_upstream(old("a", b"/one")) as one, open_upstream(old("b", b"/two")) as two:
        settings = config(
            one.url + "/one",
            two.url + "/two",
            route=f"dialect: mcp, strip_prefix: {str(strip).lower()}",
        )
        if strip:
            (route,) = settings.reverse_proxy.routes
            route = msgspec.structs.replace(route, path="/tools")
            settings = msgspec.structs.replace(
                settings,
                reverse_proxy=msgspec.structs.replace(settings.reverse_proxy, routes=[route]),
            )
        async with open_proxy(settings) as proxy:
            clients, targets = [], []
            for _ in range(6):
                clients.append(await open_client(proxy.port))
                await clients[-1].send("GET", prefix + "/sse")
                answer = await clients[-1].head()
                await clients[-1].read_until(answer, b"\n\n")
                targets.append(answer.body.split(b"data: ")[1].split(b"\n")[0].decode())
            assert all(target.startswith(prefix + "/messages?session_id=") for target in targets)
            for target in targets * 2:
                assert (await fetch(proxy.port, target, method="POST", body=b"{}")).status == 202
            assert Counter(name for name, _ in posted) == {"a": 6, "b": 6}
            for name, upstream_target in posted:
                base = b"/one" if name == "a" else b"/two"
                assert upstream_target.startswith(
                    base + b"/messages?session_id=" + name.encode() + b"-"
                )
            for client in clients:
                await client.aclose()
            await all_back(proxy)


# Limits


async def test_no_connection_is_left(log: Log) -> None:
    """`max_connections` is the upstream's, over its endpoints. A wait without success gets 503,
    Retry-After, and is counted.
    """
    async with open_upstream(listens) as one, open_upstream(listens) as two:
        settings = config(
            one.url, two.url, upstream="max_connections: 2", route="timeouts: {connect: 0.2}"
        )
        async with open_proxy(settings) as proxy:
            clients = [await open_client(proxy.port) for _ in range(2)]
            for client in clients:
                await client.send("GET", "/")
                await client.head()
            answer = await fetch(proxy.port)
            assert (answer.status, kind(answer)) == (503, "upstream_connections_exhausted")
            assert answer.all("retry-after") == [b"1"]
            assert [line["outcome"] for line in log if line["event"] == "exchange"] == [
                "refused"
            ]  # by our own limit
            reason = "upstream_connections_exhausted"
            assert metric(proxy, "refused_total", route="/", reason=reason) == 1
            assert await endpoint_states(proxy) == {one.url: "up", two.url: "up"}
            for client in clients:
                await client.aclose()
            await all_back(proxy)


async def test_a_client_has_so_many_streams_at_once() -> None:
    """The next gets 429, another client does not, and one that ends leaves its place. A trusted
    proxy's clients are distinguished.
    """
    async with open_upstream(listens) as upstream:
        settings = config(
            upstream.url,
            proxy="  limits: {max_streams_per_client: 2}\n  trusted_proxies: [127.0.0.1, 10.0.0.0/8]",
        )
        async with open_proxy(settings) as proxy:

            async def ask(client: str | None) -> tuple[Client, Answer]:
                connection = await open_client(proxy.port)
                await connection.send("GET", "/", [("X-Forwarded-For", client)] if client else [])
                return connection, await connection.head()

            opened = [await ask("192.0.2.1") for _ in range(2)]
            refused, answer = await ask("6.6.6.6, 192.0.2.1, 10.1.2.3")
            answer = await refused.rest(answer)
            assert (answer.status, kind(answer), answer.all("retry-after")) == (
                429,
                "too_many_client_streams",
                [b"1"],
            )
            opened += [await ask("192.0.2.2"), await ask(None)]
            assert [item.status for _, item in opened] == [200] * 4
            await opened[0][0].aclose()
            await until(lambda: proxy.worker.client_streams["", "192.0.2.1"] == 1)
            opened.append(await ask("192.0.2.1"))
            assert opened[-1][1].status == 200
            reason = "too_many_client_streams"
            assert metric(proxy, "refused_total", route="/", reason=reason) == 1
            for client, _ in opened:
                await client.aclose()
            await refused.aclose()
            await all_back(proxy)
            assert proxy.worker.client_streams == {}


async def test_metrics_are_there_from_the_start() -> None:
    """Each with all its labels, at 0, before any request."""
    urls = "http://127.0.0.1:1", "http://127.0.0.1:2/base"
    async with open_proxy(config(*urls)) as proxy:
        for name in (
            "endpoint_outstanding", "endpoint_failures_total", "endpoint_ejections_total",
            "retries_total",
        ):  # fmt: skip
            for url in urls:
                assert metric(proxy, name, upstream="up", endpoint=url) == 0
        assert metric(proxy, "upstream_waiting", upstream="up") == 0
        for reason in (
            "too_many_streams", "too_many_client_streams", "upstream_connections_exhausted",
            "no_endpoint",
        ):  # fmt: skip
            for route in ("", "/"):
                assert metric(proxy, "refused_total", route=route, reason=reason) == 0


# Checks


async def test_checks_find_what_no_request_has_found() -> None:
    """An endpoint whose check fails is out before a client meets it, and back when it succeeds.
    Checks carry what is set.
    """
    well = False

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(
                b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n"
                % (b"302 Elsewhere" if well else b"500 Ill")
            )

    async with open_upstream(script) as sick, open_upstream(good) as other:
        settings = config(
            f"{sick.url}/base",
            other.url,
            upstream="headers: {set: {Authorization: Bearer xyz}}",
            proxy="  health: {consecutive_failures: 2, eject: 0.2, check_path: '/health?x=1', check_interval: 0.1}",
        )
        async with open_proxy(settings) as proxy:
            await until_state(proxy, f"{sick.url}/base", "ejected")
            assert (await endpoint_states(proxy))[other.url] == "up"
            well = True
            await until_state(proxy, f"{sick.url}/base", "up")
    for upstream in (sick, other):
        request = upstream.requests[0]
        assert (request.method, request.target) == ("GET", b"/health?x=1")
        assert request.all("host") == [f"127.0.0.1:{upstream.port}".encode()]
        assert request.all("authorization") == [b"Bearer xyz"]


async def test_a_check_that_hangs_holds_up_nothing() -> None:
    """Neither requests nor the end of the server, which `open_proxy` waits for."""

    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.target == b"/health":
            await peer.wait_closed()
        else:
            await peer.send(OK)

    async with open_upstream(script) as upstream:
        async with open_proxy(
            config(upstream.url, proxy="  health: {check_path: /health, check_interval: 600}")
        ) as proxy:
            await until(lambda: upstream.accepted == 1)
            assert (await fetch(proxy.port)).status == 200
            began = trio.current_time()
        assert trio.current_time() - began < 4


async def test_a_check_that_gets_no_answer_in_its_interval_has_failed() -> None:
    async with open_upstream(hangs) as upstream:
        settings = config(
            upstream.url,
            proxy="  health: {consecutive_failures: 1, eject: 60, check_path: /, check_interval: 0.2}",
        )
        async with open_proxy(settings) as proxy:
            await until_state(proxy, upstream.url, "ejected")
