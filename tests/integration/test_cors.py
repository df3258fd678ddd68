"""Browsers: a page of an allowed origin can use a server through the proxy and read every refusal;
no other page can.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, fetch
from support.http2_client import Http2Requester, open_http2
from support.interceptors import until
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Script, Upstream, answering, open_upstream

from interceptors import Event, Interceptor, Request, Response
from interceptors.api_keys import hash_key
from proxy.exchange import exchange

EXPOSED = "Mcp-Session-Id, WWW-Authenticate, Retry-After, X-Request-Id"
PAGE, OTHER = "https://app.example.com", "https://evil.example.com"
ALLOWED = f'allowed_origins: ["{PAGE}", "null"]'
KEY = "gw-1"
CREDENTIAL = "upstream-credential"
INTERCEPTORS = {
    "keys": f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(KEY)}"}}, upstream: "Bearer {CREDENTIAL}"}}}}',
    "limit": "{name: limit, use: rate_limit, options: {requests_per_minute: 0.001, burst: 1}}",
    "policy": "{name: policy, use: mcp_policy, options: {tools: {deny: [shell]}}}",
    "own": f'{{name: own, use: "{__name__}:Own"}}',
    "raising": f'{{name: raising, use: "{__name__}:Raising"}}',
}

PREFLIGHT = [
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "authorization,mcp-protocol-version"),
]
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"shell"}}'
JSON = ("Content-Type", "application/json")


class Own(Interceptor):
    """Answers by itself, with CORS headers as a tape may have them; replaces one answer."""

    async def on_request(self, request: Request) -> Response | None:
        if request.path != "/own":
            return None
        parts = [line.partition(": ") for line in request.headers["x-answer"].split("|")]
        headers = [(name.encode(), value.encode()) for name, _, value in parts]
        return Response(events=[Event("a")], headers=headers)

    async def on_response(self, head: Any) -> Response | None:
        replaced = head.request.path == "/replaced"
        return Response(status=404, json={"error": "gone"}) if replaced else None


class Raising(Interceptor):
    async def on_request(self, request: Request) -> None:
        raise RuntimeError("not today")


plain = answering(
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\nContent-Length: 2\r\n\r\n{}"
)
"""A server that knows no CORS."""


async def silent(peer: Peer) -> None:
    await peer.request()
    await trio.sleep_forever()


async def closing(peer: Peer) -> None:
    await peer.request()


def readable(answer: Answer, origin: str = PAGE) -> bool:
    """Whether a page of this origin may read an answer of the proxy's, by headers that each occur
    once.
    """
    return (
        answer.all("access-control-allow-origin") == [origin.encode()]
        and answer.all("access-control-expose-headers") == [EXPOSED.encode()]
        and answer.all("vary") == [b"Origin"]
    )


def without_cors(answer: Answer) -> bool:
    return not any(
        name.startswith(b"access-control-") or name == b"vary" for name, _ in answer.headers
    )


Asked = dict[str, Any]
POST: Asked = {"method": "POST", "body": CALL, "headers": [JSON]}
NO_BODY: Asked = {"method": "POST", "headers": [("Content-Length", "9")]}


def post(name: str, value: str) -> Asked:
    return POST | {"headers": [JSON, (name, value)]}


REFUSALS: dict[str, tuple[int, str, str, Script, Asked]] = {
    # status, the route's options, interceptors, the upstream, the request
    "no key": (401, "", "keys", plain, POST),
    "the host": (403, 'allowed_hosts: ["mcp.test"]', "", plain, POST),
    "a body that does not come": (408, "timeouts: {idle: 0.1}", "", plain, NO_BODY),
    "a body too large": (413, "limits: {max_request_body_bytes: 3}", "", plain, POST),
    "a compressed body": (415, "", "policy", plain, post("Content-Encoding", "gzip")),
    "contradicting headers": (400, "", "", plain, post("MCP-Protocol-Version", "2026-07-28")),
    "a failed hook": (502, "", "raising", plain, POST),
    "a broken connection": (502, "", "", closing, POST),
    "no slot": (503, "limits: {max_streams: 1}", "", silent, POST),
    "too many streams of a client": (429, "limits: {max_streams_per_client: 1}", "", silent, POST),
    "a slow server": (504, "timeouts: {first_byte: 0.05}", "", silent, POST),
    "a replaced answer": (404, "", "own", plain, {"path": "/replaced"}),
    "a denied call": (200, "", "policy", plain, POST),
    "a denied call, as a stream": (200, "", "policy", plain, post("Accept", "text/event-stream")),
}


async def ask(proxy: Proxy, asked: Asked, *headers: tuple[str, str]) -> Answer:
    rest = {name: value for name, value in asked.items() if name not in ("path", "headers")}
    with trio.fail_after(10):
        return await fetch(
            proxy.port,
            asked.get("path", "/mcp"),
            headers=[*asked.get("headers", []), *headers],
            **rest,
        )


async def preflight(proxy: Proxy, *extra: tuple[str, str], **rest: Any) -> Answer:
    with trio.fail_after(10):
        headers = [("Origin", PAGE), *PREFLIGHT, *extra]
        return await fetch(proxy.port, "/mcp", method="OPTIONS", headers=headers, **rest)


@asynccontextmanager
async def gateway(
    script: Script, route: str, names: str = "", *, full: bool = False
) -> AsyncIterator[tuple[Proxy, Upstream]]:
    """`full`: a request is with the upstream already."""
    used = ", ".join(INTERCEPTORS[name] for name in names.split(", ") if name)
    async with open_upstream(script) as upstream:
        config = config_for(upstream.url, route=route, interceptors=used, names=names)
        async with open_proxy(config) as proxy, trio.open_nursery() as nursery:
            if full:
                nursery.start_soon(ask, proxy, POST)
                await until(lambda: upstream.requests)
            yield proxy, upstream
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_page_reads_every_answer_of_the_proxys(case: str) -> None:
    """A request without `Origin` gets the same answer and no CORS headers, and another origin 403."""
    status, route, names, script, asked = REFUSALS[case]
    options = ", ".join(filter(None, ["dialect: mcp", ALLOWED, route]))
    async with gateway(script, options, names, full="max_streams" in route) as (proxy, _):
        for page in (PAGE, "null"):
            answer = await ask(proxy, asked, ("Origin", page))
            assert (answer.status, readable(answer, page)) == (status, True), answer
            assert answer.complete
            assert len({name for name, _ in answer.headers}) == len(answer.headers)
        answer = await ask(proxy, asked)
        assert (answer.status, without_cors(answer)) == (status, True)
        answer = await ask(proxy, asked, ("Origin", OTHER))
        assert (answer.status, without_cors(answer)) == (403, True)


async def test_a_page_reads_that_the_proxy_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """500, and 502 where no server listens. A page has one origin."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with open_proxy(config_for("http://127.0.0.1:1", route=ALLOWED)) as proxy:
        answer = await ask(proxy, POST, ("Origin", PAGE))
        assert (answer.status, readable(answer)) == (502, True)
        answer = await ask(proxy, POST, ("Origin", PAGE), ("Origin", PAGE))
        assert (answer.status, without_cors(answer)) == (502, True)
        monkeypatch.setattr(exchange, "serve", fail)
        answer = await ask(proxy, POST, ("Origin", PAGE))
        assert (answer.status, readable(answer)) == (500, True)


@pytest.mark.parametrize(
    ("given", "exposed", "credentials"),
    [
        ([f"allow-origin: {OTHER}", "expose-headers: X-Own"], f"{EXPOSED}, X-Own", False),
        ([f"allow-origin: {PAGE}", "allow-credentials: true"], EXPOSED, True),
        ([f"allow-origin: {PAGE}"] * 2 + ["allow-credentials: true"], EXPOSED, False),
        (["allow-origin: *", "allow-credentials: true"], EXPOSED, False),
        (["allow-credentials: true"], EXPOSED, False),
    ],
)
async def test_an_interceptors_own_cors_headers_give_way(
    given: list[str], exposed: str, credentials: bool
) -> None:
    """`Allow-Origin` is the page's, what the answer exposes stays exposed, and `Vary` has the
    origin once. Credentials stay only where the answer has allowed this origin: browsers refuse
    them with `*`.
    """
    lines = "|".join([*(f"access-control-{line}" for line in given), "vary: Accept, origin"])
    async with gateway(plain, f"{ALLOWED}, heartbeat: {{interval: 5}}", "own") as (proxy, _):
        answer = await ask(proxy, {"path": "/own"}, ("Origin", PAGE), ("X-Answer", lines))
    assert (answer.status, answer.body) == (200, b"data: a\n\n")
    assert answer.all("access-control-allow-origin") == [PAGE.encode()]
    assert answer.all("access-control-expose-headers") == [exposed.encode()]
    assert answer.all("access-control-allow-credentials") == [b"true"] * credentials
    assert answer.all("vary") == [b"Accept, origin"]


async def test_a_page_reads_the_head_of_an_early_heartbeat() -> None:
    """The proxy makes it before the server has answered."""
    early = "heartbeat: {interval: 0.05, early: true}, timeouts: {first_byte: 0.3}"
    async with gateway(silent, f"{ALLOWED}, {early}") as (proxy, _):
        asked = {"headers": [("Accept", "text/event-stream")]}
        answer = await ask(proxy, asked, ("Origin", PAGE))
        assert (answer.status, readable(answer)) == (200, True)


async def test_a_preflight_is_answered_without_a_key_and_without_a_token() -> None:
    """It allows what the page asks for and never reaches the server; the request itself counts, and
    its refusals can be read.
    """
    async with gateway(plain, ALLOWED, "keys, limit") as (proxy, upstream):
        for _ in range(3):
            answer = await preflight(proxy)
            assert (answer.status, answer.body, answer.complete) == (204, b"", True)
            expected = {
                "access-control-allow-origin": PAGE,
                "access-control-allow-methods": "POST",
                "access-control-allow-headers": "authorization,mcp-protocol-version",
                "vary": "Access-Control-Request-Method, Access-Control-Request-Headers, Origin",
            }
            assert {name: answer.all(name) for name in expected} == {
                name: [value.encode()] for name, value in expected.items()
            }
            assert answer.all("content-length") == []
        assert upstream.accepted == 0
        for key, status in (("nobody", 401), (KEY, 200), (KEY, 429)):
            answer = await ask(proxy, POST, ("Origin", PAGE), ("Authorization", f"Bearer {key}"))
            assert (answer.status, readable(answer)) == (status, status != 200)
        headers = [("Origin", OTHER), *PREFLIGHT]
        denied = await fetch(proxy.port, "/mcp", method="OPTIONS", headers=headers)
        assert (denied.status, without_cors(denied)) == (403, True)


async def test_a_preflight_is_answered_where_the_request_would_be_refused() -> None:
    """At the limit of streams: a browser shows the refusal only when the preflight was answered.
    `access-control-request-headers` is what the page asks for.
    """
    route = f"{ALLOWED}, limits: {{max_streams: 1, max_streams_per_client: 1}}"
    async with gateway(silent, route, full=True) as (proxy, _):
        for _ in range(3):
            assert (await preflight(proxy)).status == 204
        assert (await ask(proxy, POST, ("Origin", PAGE))).status == 503


@pytest.mark.parametrize(
    ("dialect", "names"), [("generic", "keys, policy, limit"), ("mcp", "limit, policy, keys")]
)
async def test_a_preflight_may_pass_to_the_server(names: str, dialect: str) -> None:
    """Without a key, without a token, and without the upstream's credential or the client's key;
    nothing is added to the answer.
    """

    script = answering(b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\n\r\n")

    key = ("Authorization", f"Bearer {KEY}")
    ping = POST | {"body": b'{"jsonrpc":"2.0","id":7,"method":"ping"}'}
    async with gateway(script, f"dialect: {dialect}", names) as (proxy, upstream):
        for extra in ([], [("X-Api-Key", KEY)], [("Content-Length", "0")]):
            answer = await preflight(proxy, *extra)
            assert (answer.status, answer.all("access-control-allow-origin")) == (204, [b"*"])
            assert not answer.all("vary")
        for request in upstream.requests:
            assert (request.method, request.all("origin")) == ("OPTIONS", [PAGE.encode()])
            assert not request.all("authorization")
            assert not request.all("x-api-key")
        assert (await ask(proxy, ping, key)).status == 204
        refused = await ask(proxy, ping, ("Origin", PAGE), key)
        assert (refused.status, without_cors(refused)) == (429, True)


ORIGIN = ("Origin", PAGE)
FAKES: dict[str, tuple[list[tuple[str, str]], bytes | None]] = {
    "a body": ([ORIGIN, *PREFLIGHT], CALL),
    "a chunked body": ([ORIGIN, *PREFLIGHT, ("Transfer-Encoding", "chunked")], CALL),
    "two origins": ([ORIGIN, ORIGIN, *PREFLIGHT], None),
    "no origin": (PREFLIGHT, None),
    "no method asked for": ([ORIGIN], None),
}


@pytest.mark.parametrize("route", [ALLOWED, "dialect: generic", "dialect: mcp"])
async def test_what_no_browser_sends_as_a_preflight_needs_the_key(route: str) -> None:
    """It might make a server run something; so it is a request like any other, and never reaches
    the server without a key.
    """
    key = ("Authorization", f"Bearer {KEY}")
    async with gateway(plain, route, "keys") as (proxy, upstream):
        for case, (headers, body) in FAKES.items():
            fake: Asked = {"method": "OPTIONS", "headers": headers, "body": body}
            assert ((await ask(proxy, fake)).status, upstream.requests) == (401, []), case
            assert (await ask(proxy, fake, key)).status == 200, case
            (request,) = upstream.requests
            assert request.all("authorization") == [f"Bearer {CREDENTIAL}".encode()]
            upstream.requests.clear()


async def test_an_http2_body_makes_it_no_preflight(certificates: Certificates) -> None:
    """Its head does not describe a body."""
    headers = [(name.lower(), value) for name, value in [ORIGIN, *PREFLIGHT]]
    async with open_upstream(plain) as upstream:
        config = config_for(upstream.url, interceptors=INTERCEPTORS["keys"], names="keys")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            for body, status in ((None, 200), (CALL, 401)):
                requester = Http2Requester(client)
                with trio.fail_after(10):
                    await requester.send("OPTIONS", "/mcp", headers, body)
                    assert (await requester.answer()).status == status
            assert [request.method for request in upstream.requests] == ["OPTIONS"]


ANY, THIS = "Access-Control-Allow-Origin: *", f"Access-Control-Allow-Origin: {PAGE}"
SESSION, EXPOSES = "Mcp-Session-Id: s", "Access-Control-Expose-Headers: "
SERVER: dict[str, tuple[list[str], str | None]] = {
    # what the server sends, and what it must expose then (None: unchanged)
    "no CORS headers": ([SESSION], None),
    "the origin": ([SESSION, THIS], "Mcp-Session-Id, X-Request-Id"),
    "any origin": ([SESSION, ANY], "Mcp-Session-Id, X-Request-Id"),
    "something exposed": (
        [SESSION, THIS, EXPOSES + "X-A, X-B"],
        "X-A, X-B, Mcp-Session-Id, X-Request-Id",
    ),
    "the ids exposed": ([SESSION, THIS, EXPOSES + "X-request-id,mcp-session-id"], None),
    "everything exposed": ([SESSION, ANY, EXPOSES + "*"], None),
    "everything exposed, with credentials": (
        [SESSION, THIS, EXPOSES + "*", "Access-Control-Allow-Credentials: true"],
        "*, Mcp-Session-Id, X-Request-Id",
    ),
    "another origin": ([SESSION, f"Access-Control-Allow-Origin: {OTHER}"], None),
    "no session": ([THIS, "Vary: Origin"], "X-Request-Id"),
}


@pytest.mark.parametrize("route", [ALLOWED, "dialect: mcp"])
async def test_the_servers_cors_headers_pass(route: str) -> None:
    """None is added or occurs twice; only the ids of the session and the request are exposed where the
    server allows the origin. On a route without `allowed_origins` not even that.
    """

    async def script(peer: Peer) -> None:
        while True:
            case, _, kind = (await peer.request()).target.decode()[1:].partition("?")
            head = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Content-Length: 2"]
            lines = SERVER[case.replace("%20", " ")][0]
            await peer.send("\r\n".join([*head, *lines]).encode() + b"\r\n\r\n{}")

    async with gateway(script, route) as (proxy, _):
        for case, (lines, exposed) in SERVER.items():
            expected = dict(line.lower().split(": ") for line in lines)
            if route == ALLOWED and exposed is not None:
                expected["access-control-expose-headers"] = exposed.lower()
            expected.pop("mcp-session-id", None)
            for kind in ("application/json", "text/event-stream"):
                asked = POST | {"path": f"/{case.replace(' ', '%20')}?{kind}"}
                answer = await ask(proxy, asked, ("Origin", PAGE))
                assert answer.status == 200
                assert sorted(
                    (name.decode(), value.decode().lower())
                    for name, value in answer.headers
                    if name.startswith((b"access-", b"vary"))
                ) == sorted(expected.items()), case
