"""Outcomes of exchanges that no upstream fault ends: what the proxy, an interceptor, a limit, a drain
or a defect ends, in the answer, in the log line and in the metric. Upstream faults: the fault matrix.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, fetch, open_client
from support.interceptors import Feed, Log, Rig, Serve, Way, interceptor, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_stream_of, open_upstream, stream_of

from interceptors import Abort, Event, Interceptor, Outcome, Request, Response, ResponseHead
from proxy.config import parse_config
from proxy.dialects.mcp_interceptors import _First
from proxy.exchange import phases
from proxy.exchange.context import ExchangeContext

EVENTS = stream_of(b"data: 1\n\n")
LINE = "route upstream endpoint method status outcome events bytes duration time_to_first_byte"


async def only_outcome(rig: Rig, outcome: str) -> dict[str, Any]:
    """The log line of the one exchange, which has this outcome in the log and in the metric."""
    assert await rig.outcomes() == [outcome]
    (line,) = rig.lines("exchange")
    for each in Outcome:
        assert rig.metric("weirpool_exchanges_total", route=line["route"], outcome=each.value) == (
            each == outcome
        )
    return dict(line)


def kind_of(answer: Answer) -> tuple[int, str]:
    assert answer.complete
    assert answer.all("content-type") == [b"application/json"]
    return answer.status, json.loads(answer.body)["error"]["type"]


# Refused by the proxy

LARGE = {"method": "POST", "body": bytes(3_000_000)}
CHUNKED = {"headers": [("Transfer-Encoding", "chunked")]}
SMALL_BODY = "limits: {max_request_body_bytes: 10}"
FROM_BAD = {"headers": [("Origin", "https://bad.test")]}
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"}}'
LIST = [
    ("content-type", "application/json"),
    ("mcp-protocol-version", "2026-07-28"),
    ("mcp-method", "tools/list"),
]


@pytest.mark.parametrize(
    ("route", "request_of", "status", "kind"),
    [
        ('allowed_hosts: ["good.test"]', {}, 403, "host_not_allowed"),
        ('allowed_origins: ["https://good.test"]', FROM_BAD, 403, "origin_not_allowed"),
        (SMALL_BODY, LARGE, 413, "request_too_large"),
        (SMALL_BODY, LARGE | CHUNKED, 413, "request_too_large"),
        (
            "timeouts: {idle: 0.1}",
            {"method": "POST", "headers": [("Content-Length", "9")]},
            408,
            "request_timeout",
        ),
        ("dialect: mcp", {"method": "POST", "headers": LIST, "body": CALL}, 400, None),
    ],
)
async def test_a_refused_request(
    route: str, request_of: dict[str, Any], status: int, kind: str | None, serve_once: Serve
) -> None:
    """The answer arrives whole, also at a client that is still sending."""
    async with serve_once(EVENTS, route=route) as rig:
        answer = await rig.fetch(**request_of)
        assert answer.status == status
        assert kind is None or kind_of(answer) == (status, kind)
        assert answer.all("connection") == [b"close"] or status not in (413, 408)
        assert (await only_outcome(rig, "refused"))["status"] == status
        assert "headers" in request_of or not rig.upstream.requests


async def test_allowed_hosts_and_origins_pass(serve_once: Serve) -> None:
    """An answered preflight is completed."""
    route = 'allowed_hosts: ["good.test"], allowed_origins: ["https://app.test"]'
    headers = [("Host", "good.test:8000"), ("Origin", "https://app.test")]
    async with serve_once(EVENTS, route=route) as rig:
        assert (await rig.fetch(headers=headers)).status == 200
        headers.append(("Access-Control-Request-Method", "POST"))
        assert (await rig.fetch(method="OPTIONS", headers=headers)).status == 204
        assert await rig.outcomes(2) == ["completed"] * 2


@pytest.mark.parametrize(
    ("limit", "status"), [("max_streams", 503), ("max_streams_per_client", 429)]
)
async def test_a_limit_of_streams(limit: str, status: int, serve_once: Serve) -> None:
    feed = Feed()
    async with serve_once(feed.script, route=f"limits: {{{limit}: 1}}") as rig:
        feed.send(b"data: 1\n\n")
        await rig.start()
        answer = await rig.fetch()
        assert (answer.status, answer.all("retry-after")) == (status, [b"1"])
        assert await rig.outcomes() == ["refused"]


TWO_ROUTES = """
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{url}"]}}]
  routes: [{{path: {first}, upstream: up}}, {{path: /small, upstream: up, {small}}}]
log: {{level: error}}
"""


live = open_stream_of(b"data: 1\n\n")


async def test_a_routes_own_limit_counts_its_own_streams_only() -> None:
    """Streams of other routes and refused requests take no place."""
    async with open_upstream(live) as upstream:
        text = TWO_ROUTES.format(url=upstream.url, first="/", small="limits: {max_streams: 2}")
        async with open_proxy(parse_config(text)) as proxy:
            clients = []

            async def begin(target: str) -> int:
                clients.append(client := await open_client(proxy.port))
                await client.send("GET", target)
                return (await client.head()).status

            assert [await begin("/large") for _ in range(4)] == [200] * 4
            assert [await begin("/small") for _ in range(4)] == [200, 200, 503, 503]
            clients[4].reset()
            await until(lambda: proxy.worker.metrics.routes["/small"].admitted == 1)
            assert [await begin("/small") for _ in range(2)] == [200, 503]
            for client in clients:
                await client.aclose()


async def test_an_unknown_route_is_404(log: Log) -> None:
    """After the body was read; it counts on the pseudo-route, which exists from the start."""
    text = TWO_ROUTES.format(url="http://127.0.0.1:9", first="/a", small="")
    async with open_upstream(EVENTS) as upstream, open_proxy(parse_config(text)) as proxy:
        answer = await fetch(proxy.port, "/no-route", method="POST", body=bytes(1_000_000))
        assert kind_of(answer) == (404, "no_route")
        await only_outcome(Rig(upstream, proxy, log), "refused")


@pytest.mark.parametrize(
    ("head", "status", "kind"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"x" * 70_000), 431, "head_too_large"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "version_not_supported"),
    ],
    ids=["large", "version"],
)
async def test_a_head_that_cannot_be_read(head: bytes, status: int, kind: str, log: Log) -> None:
    """It has no route, and is answered, logged and counted as every refused request."""
    config = config_for("http://127.0.0.1:9")
    async with open_upstream(EVENTS) as upstream, open_proxy(config) as proxy:
        client = await open_client(proxy.port)
        await client.stream.send_all(head)
        assert kind_of(await client.answer()) == (status, kind)
        await client.aclose()
        await only_outcome(Rig(upstream, proxy, log), "refused")


SPELLINGS = """/small /small/ /small/more?x=1 /%73mall /%73%6D%61%6c%6C/more /x/../small /x/%2e%2E/small
/x/.%2e/small/more /./small /%2e/small //small ///small//more /../small http://proxy.test/small
http://proxy.test//small"""


async def test_no_spelling_of_a_path_goes_around_its_routes_checks() -> None:
    """A path that an upstream may take for /small has the checks of /small, and goes up unchanged."""
    evil, good = ([("Origin", f"https://{name}.test")] for name in ("evil", "app"))
    async with open_upstream(EVENTS) as upstream:
        small = 'allowed_origins: ["https://app.test"]'
        text = TWO_ROUTES.format(url=upstream.url, first="/", small=small)
        async with open_proxy(parse_config(text)) as proxy:
            for target in SPELLINGS.split():
                refused = await fetch(proxy.port, target, headers=evil)
                assert kind_of(refused) == (403, "origin_not_allowed"), target
                assert (await fetch(proxy.port, target, headers=good)).status == 200
                sent = upstream.requests.pop().target
                assert sent == target.removeprefix("http://proxy.test").encode()
            assert (await fetch(proxy.port, "/smaller", headers=evil)).status == 200


# Ended by an interceptor


async def answers(request: Request) -> Response:
    return Response(status=401)


async def answers_events(request: Request) -> Response:
    return Response(events=[Event("1")])


async def aborts(request: Request) -> None:
    raise Abort("enough")


async def fails(request: Request) -> None:
    raise ValueError


async def sets_nonsense(head: ResponseHead) -> None:
    head.headers["x-a"] = "a\r\nb"


@pytest.mark.parametrize(
    ("cls", "named"),
    [
        *((interceptor("X", on_request=each), "X") for each in (answers, answers_events)),
        *((interceptor("X", on_request=each), "X") for each in (aborts, fails)),
        (interceptor("X", on_response=sets_nonsense), None),
    ],
    ids=["answers", "events", "aborts", "fails", "sets nonsense"],
)
async def test_an_interceptor_ends_the_exchange(
    cls: type[Interceptor], named: str | None, serve_once: Serve
) -> None:
    async with serve_once(EVENTS, cls) as rig:
        await rig.fetch()
        assert (await only_outcome(rig, "intercepted")).get("interceptor") == named


# No connection to the upstream


class NoNames(trio.abc.HostnameResolver):
    """`nowhere.invalid` is unknown."""

    async def getaddrinfo(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (b"nowhere.invalid", "nowhere.invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await trio.to_thread.run_sync(lambda: socket.getaddrinfo(host, *args, **kwargs))

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("upstream_connect_failed", "http://127.0.0.1:1"),
        ("upstream_dns_failed", "http://nowhere.invalid"),
        ("upstream_tls_failed", ""),
    ],
)
async def test_an_upstream_that_cannot_be_reached_is_502(
    kind: str, url: str, certificates: Certificates, log: Log
) -> None:
    """A closed port, an unknown name, an untrusted certificate; the answer names no address."""
    trio.socket.set_custom_hostname_resolver(NoNames())
    async with open_upstream(EVENTS, ssl_context=certificates.server) as upstream:
        async with open_proxy(config_for(url or upstream.url)) as proxy:
            answer = await fetch(proxy.port)
            assert kind_of(answer) == (502, kind)
            for secret in (b"127.0.0.1", b"invalid", str(upstream.port).encode()):
                assert secret not in answer.body
            await only_outcome(Rig(upstream, proxy, log), "upstream_error")


# Ended by a drain


async def test_cancelled_at_the_graceful_timeout_an_exchange_was_draining(
    certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under plain Hypercorn nothing stops the exchange before the server cancels it."""
    serve = Way(certificates=certificates).serve(log, monkeypatch)
    async with trio.open_nursery() as nursery, serve(live, drains=True) as rig:
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        nursery.start_soon(client.rest, answer)
    assert not answer.complete
    await only_outcome(rig, "draining")
    await until(lambda: rig.upstream.open == 0)


# Ended by a defect


class Defect(Exception):
    """A bug of the proxy."""


def fail(*_: object, **__: object) -> None:
    raise Defect


async def fail_later(*_: object, **__: object) -> None:
    raise Defect


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [
        ("proxy.worker.worker", "Worker.is_full", fail),
        (phases, "call_upstream", fail_later),
        (phases, "on_response", fail_later),
        (phases, "open_relay", fail),
        (ExchangeContext, "watch_client", fail),
        (_First, "on_request", fail_later),
    ],
    ids=["admission", "request", "response", "relay", "watching", "mcp"],
)
@pytest.mark.parametrize("http_method", ["GET", "POST"])
async def test_a_defect_of_the_proxy_is_an_internal_error(
    owner: Any, name: str, act: Any, http_method: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every phase: 500 or a broken response, one traceback in the log, its own outcome."""
    where = (f"{owner}.{name}", act) if isinstance(owner, str) else (owner, name, act)
    monkeypatch.setattr(*where)
    async with Way().serve(log, monkeypatch)(live, route="dialect: mcp") as rig:
        answer = await rig.fetch(method=http_method, body=b"{}" if http_method == "POST" else None)
        in_body = name == "open_relay"
        assert (answer.status, answer.complete) == ((200, False) if in_body else (500, True))
        await only_outcome(rig, "internal_error")
        assert len([*rig.lines("internal_error"), *rig.lines("interceptor_failed")]) == 1
        log[:] = [line for line in log if line["event"] != "internal_error"]  # the rig checks it


# The client, and what is counted


async def test_one_client_resets_in_a_burst_and_the_others_continue(serve_once: Serve) -> None:
    """A reset connection ends its own stream only. Nearly all leases take a pooled buffer."""
    burst = [b"data: %d %s\n\n" % (number, b"x" * 200) for number in range(500)]
    answers: list[Answer] = []

    async def good() -> None:
        answers.append(await fetch(rig.proxy.port))

    async def bad() -> None:
        client, answer = await rig.start()
        await client.read_until(answer, answer.body[-1:])
        client.reset()

    async with serve_once(stream_of(*burst)) as rig:
        async with trio.open_nursery() as nursery:
            for one in [good, bad] * 10:
                nursery.start_soon(one)
        assert [answer.complete for answer in answers] == [True] * 10
        assert {answer.body for answer in answers} == {b"".join(burst)}
        assert rig.proxy.worker.pools.sse_event.statistics().allocations <= 2


async def test_the_log_line_has_the_documented_fields_and_no_secret(serve_once: Serve) -> None:
    """Neither a credential, nor the query, nor a body."""
    async with serve_once(stream_of(b"data: hush-body\n\n")) as rig:
        await rig.fetch("/?key=hush-query", headers=[("Authorization", "Bearer hush-key")])
        line = await only_outcome(rig, "completed")
        assert "hush" not in repr(rig.log)
        assert set(line) >= set(LINE.split())
        assert (line["status"], line["events"], line["bytes"]) == (200, None, 17)


async def test_the_time_to_first_byte_is_that_of_the_body(serve_once: Serve) -> None:
    """Not of the head, in the log and in the metric; without a body there is none."""
    head_seen = trio.Event()

    async def script(peer: Peer) -> None:
        if (await peer.request()).method == "HEAD":
            await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        await peer.start_stream()
        await head_seen.wait()
        for number in range(2):
            await trio.sleep(0.06)
            await peer.chunk(b"data: %d\n\n" % number)
        await peer.end()

    async with serve_once(script) as rig:
        client, answer = await rig.start()
        head_seen.set()
        assert (await client.rest(answer)).complete
        line = await only_outcome(rig, "completed")
        first = line["time_to_first_byte"]
        assert first >= 0.05
        assert line["duration"] - first >= 0.05
        measured = rig.metric("weirpool_time_to_first_byte_seconds_sum", route="/")
        assert measured == pytest.approx(first, abs=1e-5)
        assert (await rig.fetch(method="HEAD")).status == 204
        await rig.outcomes(2)
        assert rig.lines("exchange")[1]["time_to_first_byte"] is None
