"""Several endpoints in a whole proxy, on real sockets: choice, ejection and return, retries,
sessions, limits, checks.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.interceptors import Log, Rig, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, Upstream, answering, open_stream_of, open_upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = [("Transfer-Encoding", "chunked")]
POST: dict[str, Any] = {"method": "POST", "body": b"x"}


@pytest.fixture(autouse=True)
async def never_hang(nursery: trio.Nursery) -> None:
    """A test that waits forever fails instead."""

    async def watch() -> None:
        await trio.sleep(30)
        raise AssertionError("the test hangs")

    nursery.start_soon(watch)


@dataclass
class Several(Rig):
    """A proxy with an upstream of several endpoints. `urls`: of all, `upstreams`: of those that
    listen.
    """

    urls: list[str] = field(default_factory=list)
    upstreams: list[Upstream] = field(default_factory=list)

    async def status(self, **request: Any) -> int:
        return (await self.fetch(**request)).status

    async def states(self) -> list[str]:
        status = json.loads((await self.fetch("/status")).body)
        return [item["state"] for item in status["upstreams"]["up"]["endpoints"]]

    async def until_states(self, *states: str) -> None:
        while await self.states() != list(states):
            await trio.sleep(0.005)

    def counts(self, name: str) -> list[float | None]:
        """A metric of each endpoint."""
        return [self.metric(f"weirpool_{name}", upstream="up", endpoint=url) for url in self.urls]

    async def endpoints(self, count: int) -> list[object]:
        """What the lines of so many exchanges name as their endpoint."""
        await self.outcomes(count)
        return [line["endpoint"] for line in self.lines("exchange")]


@asynccontextmanager
async def serving(
    log: Log, *scripts: Script | None, path: str = "", checked: bool = False, **settings: str
) -> AsyncIterator[Several]:
    """An endpoint for each script; None refuses connections. Afterwards nothing is on loan, and no
    endpoint has anything outstanding; `checked`: except a check.
    """
    async with AsyncExitStack() as stack:
        urls, upstreams = [], []
        for script in scripts:
            if script is None:
                bound = stack.enter_context(socket.socket())  # and not listening
                bound.bind(("127.0.0.1", 0))
                urls.append(f"http://127.0.0.1:{bound.getsockname()[1]}")
            else:
                upstreams.append(await stack.enter_async_context(open_upstream(script)))
                urls.append(upstreams[-1].url + path)
        proxy = await stack.enter_async_context(open_proxy(config_for(urls, **settings)))
        rig = Several(upstreams[0], proxy, log, urls=urls, upstreams=upstreams)
        yield rig
        for client in rig.clients:
            await client.aclose()
        await until(lambda: not proxy.worker.live)
        assert set(rig.counts("endpoint_outstanding")) == {0}
        if not checked:
            await rig.everything_is_back()


good = answering(OK)


def breaking(data: bytes, then: str) -> Script:
    """It takes a request, sends these bytes, and resets, closes, or sends no more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        if then == "resets":
            peer.reset()
        elif then == "hangs":
            await peer.wait_closed()

    return script


HALF = b"HTTP/1.1 200 OK\r\nContent-"
resets, closes, hangs = [breaking(b"", then) for then in ("resets", "closes", "hangs")]


streams = open_stream_of()


def kind(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["type"])


# Choice


async def test_streams_go_to_the_endpoint_with_the_fewest(log: Log) -> None:
    """Ten streams that last are five and five; when those of one end, the next go there."""
    release = trio.Event()

    async def short(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.start_stream()
            await release.wait()
            await peer.end()

    async with serving(log, streams, short) as rig:
        one, two = rig.upstreams
        for _ in range(10):
            await rig.start()
        assert (len(one.requests), len(two.requests)) == (5, 5)
        release.set()
        await until(lambda: rig.counts("endpoint_outstanding") == [5, 0])
        for _ in range(3):
            assert (await rig.fetch()).complete
        assert (len(one.requests), len(two.requests)) == (5, 8)


@pytest.mark.parametrize("host", ["upstream", "preserve", "other.test"])
async def test_path_scheme_and_host_follow_the_endpoint(
    host: str, certificates: Certificates, log: Log
) -> None:
    """Each has a base path; one has TLS. The target stays byte for byte after the base, and the log
    has the origin.
    """
    tls = certificates.server
    async with open_upstream(good) as plain, open_upstream(good, ssl_context=tls) as secure:
        urls = [f"{plain.url}/a/", f"{secure.url}/b/c"]
        upstream = f"host: {host}, ca_file: {certificates.ca_file}"
        async with open_proxy(config_for(urls, upstream=upstream)) as proxy:
            rig = Several(plain, proxy, log)
            for _ in range(4):
                assert (await rig.fetch("/v1//x?y=%20")).body == b"ok"
            assert await rig.endpoints(4) == [plain.url, secure.url] * 2
    for server, base in ((plain, b"/a"), (secure, b"/b/c")):
        netloc = f"{server.host}:{server.port}"
        expected = {"upstream": netloc, "preserve": "proxy.test"}.get(host, host).encode()
        for request in server.requests:
            assert (request.target, request.all("host")) == (base + b"/v1//x?y=%20", [expected])


@pytest.mark.parametrize(
    ("scripts", "error"),
    [
        ((None, good), None),
        ((None, closes), "upstream_connection_lost"),
        ((closes, None), "upstream_connect_failed"),
    ],
)
async def test_the_log_names_the_endpoint_that_was_tried_last(
    scripts: tuple[Script | None, ...], error: str | None, log: Log
) -> None:
    async with serving(log, *scripts) as rig:
        answer = await rig.fetch()
        assert (kind(answer) if answer.status >= 400 else None) == error
        assert await rig.endpoints(1) == rig.urls[1:]


# Retries


async def test_a_refusing_endpoint_is_not_noticed_by_clients(log: Log) -> None:
    """Nothing was written there, so a POST may go to the other one, even if it is too big to be
    held in memory. After two failures nothing goes there.
    """
    health = "  health: {consecutive_failures: 2, eject: 60}"
    bodies = [bytes(range(256)) * 4000, *[b"x" * 1000] * 9]
    async with serving(log, None, good, proxy=health) as rig:
        for body in bodies:
            headers = CHUNKED if len(body) > 1000 else []
            assert await rig.status(method="POST", headers=headers, body=body) == 200
        assert await rig.states() == ["ejected", "up"]
        assert rig.counts("endpoint_up") == [0, 1]
        assert rig.counts("endpoint_failures_total") == [2, 0]
        assert rig.counts("endpoint_ejections_total") == [1, 0]
        assert rig.counts("retries_total") == [0, 2]
        assert [request.body for request in rig.upstream.requests] == bodies
        (ejected,) = rig.lines("endpoint_ejected")
        assert (ejected["upstream"], ejected["endpoint"]) == ("up", rig.urls[0])
        assert ejected["seconds"] == 60


@pytest.mark.parametrize("data", [b"", HALF, b"what?\r\n\r\n"], ids=["", "half", "garbage"])
@pytest.mark.parametrize("then", ["resets", "closes", "hangs"])
async def test_only_an_idempotent_request_is_sent_twice(data: bytes, then: str, log: Log) -> None:
    """Whatever becomes of a POST that may have been read: its client gets the error. A GET is tried
    at both endpoints.
    """
    settings = {"route": "timeouts: {first_byte: 0.1}", "proxy": "  health: {eject: 60}"}
    async with serving(log, *[breaking(data, then)] * 2, **settings) as rig:
        for method, body in (("POST", b"x"), ("PATCH", b"x" * 100_000), ("GET", None)):
            assert await rig.status(method=method, body=body) in (502, 504)
        requests = [request.method for one in rig.upstreams for request in one.requests]
        assert sorted(requests) == ["GET", "GET", "PATCH", "POST"]
        assert sum(count or 0 for count in rig.counts("retries_total")) == 1


async def test_a_body_is_sent_again_if_it_is_in_memory(log: Log) -> None:
    async with serving(log, resets, good) as rig:
        one, two = rig.upstreams
        assert await rig.status(method="PUT", body=b"x" * 1000) == 200
        assert two.requests[0].body == b"x" * 1000
        assert await rig.status(method="PUT", headers=CHUNKED, body=b"x" * 100_000) == 502
        assert (len(one.requests), len(two.requests)) == (2, 1)


@pytest.mark.parametrize(
    ("retry", "route", "attempts"),
    [
        ("{}", "", [2]),
        ("{max_attempts: 4}", "", [4]),
        ("{max_attempts: 4}", "retry: {max_attempts: 3}", [3]),
        ("{max_attempts: 1}", "", [1]),
        ("{budget: 0}", "", [1]),
        ("{budget: 0}", "retry: {budget: 1}", [2]),
        # Ten retries to begin with, and then a tenth of the requests: no outage is multiplied.
        ("{max_attempts: 5, budget: 0.1}", "", [5, 5, *([3] + [1] * 6 + [2] + [1] * 9 + [2])]),
    ],
)
async def test_attempts_are_counted_in_all(
    retry: str, route: str, attempts: list[int], log: Log
) -> None:
    """`max_attempts` includes the first one. A route may have its own budget."""
    proxy = f"  retry: {retry}\n  health: {{consecutive_failures: 1000}}"
    async with serving(log, resets, route=route, proxy=proxy) as rig:
        got = []
        for _ in attempts:
            rig.upstream.requests.clear()
            assert await rig.status() == 502
            got.append(len(rig.upstream.requests))
        assert got == attempts


async def test_total_holds_over_all_attempts(log: Log) -> None:
    """Of many attempts that could take 0.2 s each, the one that is under way at 0.3 s is the last."""
    route = "timeouts: {first_byte: 0.2, total: 0.3}, retry: {max_attempts: 100, budget: 1}"
    async with serving(log, hangs, route=route) as rig:
        answer = await rig.fetch()
        assert (answer.status, kind(answer)) == (504, "total_timeout")
        assert len(rig.upstream.requests) <= 2


# Ejection and return


async def test_the_circuit_breaker_answers_at_once(log: Log) -> None:
    """When every endpoint is out: 503 with the seconds until one may be back, and nothing is tried.
    The log then names no endpoint, and none either for a client's mistake.
    """
    route, health = "timeouts: {first_byte: 0.3}", "  health: {consecutive_failures: 2, eject: 30}"
    async with serving(log, hangs, route=route, proxy=health) as rig:
        assert await rig.status(method="POST", headers=[("Content-Length", "999999999")]) == 413
        assert [await rig.status(**POST) for _ in range(2)] == [504, 504]
        for _ in range(3):
            answer = await rig.fetch()
            assert (answer.status, kind(answer)) == (503, "no_endpoint")
            assert 1 <= int(answer.all("retry-after")[0]) <= 30
        assert rig.metric("weirpool_refused_total", route="/", reason="no_endpoint") == 3
        assert rig.upstream.accepted == 2
        assert await rig.endpoints(6) == [None, *rig.urls * 2, None, None, None]
        assert (await rig.outcomes(6))[3:] == ["upstream_error"] * 3
        assert all(line["duration"] < 0.25 for line in rig.lines("exchange")[3:])


async def test_an_endpoint_comes_back_by_a_probe(log: Log) -> None:
    """One request finds that it answers again, and then all do."""
    well = False

    async def script(peer: Peer) -> None:
        await (good if well else resets)(peer)

    health = "  health: {consecutive_failures: 1, eject: 0.2}"
    async with serving(log, script, proxy=health) as rig:
        assert await rig.status(**POST) == 502
        assert await rig.states() == ["ejected"]
        well = True
        while await rig.status() != 200:
            pass
        assert await rig.states() == ["up"]
        events = [line["event"] for line in log if str(line["event"]).startswith("endpoint_")]
        assert events == ["endpoint_ejected", "endpoint_back"]


async def test_a_client_that_leaves_is_not_the_endpoints_failure(log: Log) -> None:
    """Nor is a body that turns out to be too large. The log names the endpoint."""
    proxy = (
        "  limits: {max_request_body_bytes: 100000}\n  health: {consecutive_failures: 1, eject: 60}"
    )
    async with serving(log, hangs, proxy=proxy) as rig:
        client = await rig.client()
        await client.send("GET", "/")
        await until(lambda: rig.upstream.requests)
        client.reset()
        await rig.outcomes(1)
        client = await rig.client()
        await client.send("POST", "/", CHUNKED, b"x" * 200_000)
        assert (await client.head()).status == 413
        await client.aclose()
        assert await rig.states() == ["up"]
        assert await rig.endpoints(2) == rig.urls * 2


async def test_an_answer_is_an_answer(log: Log) -> None:
    """Whatever its status: the client gets it with its headers, it is not retried, and the endpoint
    stays in service.
    """

    async def script(peer: Peer) -> None:
        while True:
            status = (await peer.request()).target[1:]
            await peer.send(
                b"HTTP/1.1 " + status + b" No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"
            )

    async with serving(log, script, proxy="  health: {consecutive_failures: 1}") as rig:
        for status in (429, 500, 502, 503, 504):
            answer = await rig.fetch(f"/{status}")
            assert (answer.status, answer.body) == (status, b"busy")
            assert answer.all("retry-after") == [b"7"]
        assert await rig.states() == ["up"]
        assert len(rig.upstream.requests) == 5


BEGUN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BROKEN = {
    "resets": (b"Content-Length: 99\r\n\r\ndata: 1\n\n", "resets"),
    "ends": (b"Content-Length: 99\r\n\r\ndata: 1\n\n", "closes"),
    "ends its chunks": (b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n", "closes"),
    "sends no chunk": (b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\nzz", "hangs"),
    "goes silent": (b"Content-Length: 99\r\n\r\ndata: 1\n\n", "hangs"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_response_that_breaks_is_its_endpoints_failure(case: str, log: Log) -> None:
    """Several in a row eject it, if another endpoint is in service. Its responses are counted by
    status, those of other endpoints and to retries, too.
    """
    rest, then = BROKEN[case]
    broken = breaking(BEGUN + rest, then)
    health = "  health: {consecutive_breaks: %s, eject: 60}"
    settings = {"route": "timeouts: {idle: 0.1}"}
    async with serving(log, broken, good, proxy=health % 3, **settings) as rig:
        while "ejected" not in await rig.states():
            await rig.fetch()
        assert await rig.states() == ["ejected", "up"]
        assert rig.counts("endpoint_failures_total") == [3, 0]
        where = {"upstream": "up", "endpoint": rig.urls[0], "code": "200"}
        assert rig.metric("weirpool_upstream_responses_total", **where) == 3
        (ejected,) = rig.lines("endpoint_ejected")
        assert ejected["error"].startswith(rig.urls[0])
        lines = [line for line in rig.lines("exchange") if line["endpoint"] == rig.urls[0]]
        assert {line["outcome"] for line in lines} <= {"upstream_error", "upstream_timeout"}
    for count, setting in ((1, "1"), (2, "null")):  # the only endpoint; never
        async with serving(log, *[broken] * count, proxy=health % setting, **settings) as rig:
            for _ in range(4):
                await rig.fetch()
            assert await rig.states() == ["up"] * count
            assert sum(item or 0 for item in rig.counts("endpoint_failures_total")) == 4


# Sessions


def mcp(name: str) -> Script:
    """An MCP server, as far as its sessions go: it knows those that it has made, and no other."""
    sessions: set[str] = set()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            session = b"".join(request.all("mcp-session-id")).decode()
            length = b"\r\nContent-Length: 0\r\n\r\n"
            if not session:
                sessions.add(made := f"{name}-{len(sessions)}")
                await peer.send(f"HTTP/1.1 200 OK\r\nMcp-Session-Id: {made}".encode() + length)
            elif session not in sessions:
                await peer.send(b"HTTP/1.1 404 Not Found" + length)
            elif request.method == "GET":
                await peer.start_stream()
                await peer.wait_closed()
            else:
                if request.method == "DELETE":
                    sessions.remove(session)
                await peer.send(b"HTTP/1.1 200 OK" + length)

    return script


async def test_a_session_stays_at_its_endpoint(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy that is. It is forgotten when it has ended, when the endpoint no longer knows
    it, and at its age unless it has an open response.
    """
    async with serving(log, mcp("a"), mcp("b")) as rig:
        balancer = rig.proxy.worker.routes.transports["up"]
        a, b = balancer.endpoints.all

        async def ask(session: bytes, method: str = "POST") -> int:
            headers = [("Mcp-Session-Id", session.decode())]
            body = b"{}" if method == "POST" else None
            return await rig.status(method=method, headers=headers, body=body)

        sessions = [(await rig.fetch(**POST)).all("mcp-session-id")[0] for _ in range(6)]
        assert Counter(session[:1] for session in sessions) == {b"a": 3, b"b": 3}
        first, other, *_, last = sorted(sessions)
        for _ in range(5):
            client = await rig.client()
            await client.send("GET", "/mcp", [("Mcp-Session-Id", first.decode())])
            assert (await client.head()).status == 200
        assert [await ask(session) for session in sessions * 3] == [200] * 18
        assert balancer.sessions.find(last) is b
        assert await ask(last, "DELETE") == 200
        assert balancer.sessions.find(last) is None
        balancer.sessions.remember(b"b-99", b)
        assert await ask(b"b-99") == 404
        assert balancer.sessions.find(b"b-99") is None
        assert await ask(other) == 200
        monkeypatch.setattr("proxy.upstream.affinity.MAX_SESSION_AGE_S", 0)
        assert (balancer.sessions.find(other), balancer.sessions.find(first)) == (None, a)


async def test_a_session_never_goes_to_an_endpoint_that_does_not_know_it(log: Log) -> None:
    """Not even when its own is out: the session is still there when that is back."""
    health = "  health: {consecutive_failures: 1, eject: 60}"
    async with serving(log, None, mcp("a"), proxy=health) as rig:
        balancer = rig.proxy.worker.routes.transports["up"]
        balancer.sessions.remember(b"lost", balancer.endpoints.all[0])
        for _ in range(3):
            answer = await rig.fetch(headers=[("Mcp-Session-Id", "lost")], **POST)
            assert (answer.status, kind(answer)) == (502, "upstream_connect_failed")
        assert await rig.states() == ["ejected", "up"]
        assert balancer.sessions.find(b"lost") is balancer.endpoints.all[0]
        assert await rig.status(**POST) == 200
        assert len(rig.upstream.requests) == 1


async def test_a_session_of_the_old_transport_stays_where_its_stream_is(log: Log) -> None:
    """HTTP+SSE (MCP 2024-11-05): the session is in the target that the `endpoint` event announces;
    both endpoints have paths.
    """
    posted: list[tuple[str, bytes]] = []

    def old(name: str) -> Script:
        async def script(peer: Peer) -> None:
            while (request := await peer.request()).method == "POST":
                posted.append((name, request.target))
                await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            await peer.start_stream()
            target = f"/base/messages?session_id={name}-{len(peer.upstream.requests)}"
            await peer.chunk(f"event: endpoint\ndata: {target}\n\n".encode())
            await peer.wait_closed()

        return script

    async with serving(log, old("a"), old("b"), path="/base", route="dialect: mcp") as rig:
        targets = []
        for _ in range(6):
            client, answer = await rig.start("/sse")
            await client.read_until(answer, b"\n\n")
            targets.append(answer.body.split(b"data: ")[1].split(b"\n")[0].decode())
        assert all(target.startswith("/messages?session_id=") for target in targets)
        for target in targets * 2:
            assert (await rig.fetch(target, **POST)).status == 202
        assert Counter(name for name, _ in posted) == {"a": 6, "b": 6}
        for name, target in posted:
            assert target.startswith(f"/base/messages?session_id={name}-".encode())


# Limits


async def test_no_connection_is_left(log: Log) -> None:
    """`max_connections` is the upstream's, over its endpoints. A wait without success gets 503,
    Retry-After, and is counted.
    """
    settings = {"upstream": "max_connections: 2", "route": "timeouts: {connect: 0.2}"}
    async with serving(log, streams, streams, **settings) as rig:
        for _ in range(2):
            await rig.start()
        answer = await rig.fetch()
        assert (answer.status, kind(answer)) == (503, "upstream_connections_exhausted")
        assert answer.all("retry-after") == [b"1"]
        assert await rig.outcomes() == ["refused"]
        labels = {"route": "/", "reason": "upstream_connections_exhausted"}
        assert rig.metric("weirpool_refused_total", **labels) == 1
        assert await rig.states() == ["up", "up"]


async def test_a_client_has_so_many_streams_at_once(log: Log) -> None:
    """The next gets 429, another client does not, and one that ends leaves its place. A trusted
    proxy's clients are distinguished.
    """
    proxy = "  limits: {max_streams_per_client: 2}\n  trusted_proxies: [127.0.0.1, 10.0.0.0/8]"
    async with serving(log, streams, proxy=proxy) as rig:

        async def ask(address: str) -> tuple[Client, Answer]:
            client = await rig.client()
            await client.send("GET", "/", [("X-Forwarded-For", address)] if address else [])
            return client, await client.head()

        asked = [await ask("192.0.2.1") for _ in range(2)]
        client, refused = await ask("6.6.6.6, 192.0.2.1, 10.1.2.3")
        assert (refused.status, refused.all("retry-after")) == (429, [b"1"])
        assert kind(await client.rest(refused)) == "too_many_client_streams"
        asked += [await ask("192.0.2.2"), await ask("")]
        await asked[0][0].aclose()
        await until(lambda: rig.proxy.worker.client_streams["", "192.0.2.1"] == 1)
        asked.append(await ask("192.0.2.1"))
        assert [answer.status for _, answer in asked] == [200] * 5
        labels = {"route": "/", "reason": "too_many_client_streams"}
        assert rig.metric("weirpool_refused_total", **labels) == 1
    assert rig.proxy.worker.client_streams == {}


async def test_metrics_are_there_from_the_start(log: Log) -> None:
    """Each with all its labels, at 0, before any request."""
    async with serving(log, good, good, path="/base") as rig:
        for name in ("outstanding", "failures_total", "ejections_total"):
            assert rig.counts(f"endpoint_{name}") == [0, 0]
        assert rig.counts("retries_total") == [0, 0]
        assert rig.metric("weirpool_upstream_waiting", upstream="up") == 0
        for reason in (
            *("too_many_streams", "too_many_client_streams", "no_endpoint"),
            "upstream_connections_exhausted",
        ):
            for route in ("", "/"):
                assert rig.metric("weirpool_refused_total", route=route, reason=reason) == 0


# Checks


async def test_checks_find_what_no_request_has_found(log: Log) -> None:
    """An endpoint whose check fails is out before a client meets it, and back when it succeeds.
    Checks carry what is set.
    """
    well = False

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            status = b"302 Elsewhere" if well else b"500 Ill"
            await peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    settings = {
        "upstream": "headers: {set: {Authorization: Bearer xyz}}",
        "proxy": "  health: {consecutive_failures: 2, eject: 0.1, check_path: '/health?x=1',"
        " check_interval: 0.05}",
    }
    async with serving(log, script, good, path="/base", checked=True, **settings) as rig:
        await rig.until_states("ejected", "up")
        well = True
        await rig.until_states("up", "up")
        await until(lambda: rig.proxy.lent() == 0)
    for upstream in rig.upstreams:
        request = upstream.requests[0]
        assert (request.method, request.target) == ("GET", b"/health?x=1")
        assert request.all("host") == [f"127.0.0.1:{upstream.port}".encode()]
        assert request.all("authorization") == [b"Bearer xyz"]


async def test_a_check_that_hangs_holds_up_nothing(log: Log) -> None:
    """Neither requests nor the end of the server, which `open_proxy` waits for."""

    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.target == b"/health":
            await peer.wait_closed()
        else:
            await peer.send(OK)

    health = "  health: {check_path: /health, check_interval: 600}"
    async with serving(log, script, proxy=health, checked=True) as rig:
        await until(lambda: rig.upstream.accepted == 1)
        assert await rig.status() == 200
        began = trio.current_time()
    assert trio.current_time() - began < 4


async def test_a_check_that_gets_no_answer_in_its_interval_has_failed(log: Log) -> None:
    health = "{consecutive_failures: 1, eject: 60, check_path: /, check_interval: 0.1}"
    async with serving(log, hangs, proxy=f"  health: {health}", checked=True) as rig:
        await rig.until_states("ejected")
