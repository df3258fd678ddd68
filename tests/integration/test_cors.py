"""Browsers: a page of an allowed origin can use a server through the proxy and read every refusal;
no other page can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, fetch
from support.http2_client import Http2Requester, open_http2
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

from interceptors import Event, Interceptor, Request, Response
from interceptors.api_keys import hash_key
from proxy.exchange import exchange

PAGE, OTHER = "https://app.example.com", "https://evil.example.com"
ALLOWED = f'allowed_origins: ["{PAGE}", "null"]'
KEY = "gw-1"
CREDENTIAL = "upstream-credential"
KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(KEY)}"}}, upstream: "Bearer {CREDENTIAL}"}}}}'
LIMIT = "{name: limit, use: rate_limit, options: {requests_per_minute: 0.001, burst: 1}}"
POLICY = "{name: policy, use: mcp_policy, options: {tools: {deny: [shell]}}}"
OWN = f'{{name: own, use: "{__name__}:Own"}}'
RAISING = f'{{name: raising, use: "{__name__}:Raising"}}'

PREFLIGHT = [
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "authorization,mcp-protocol-version"),
]
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"shell"}}'
JSON = ("Content-Type", "application/json")


class Own(Interceptor):
    """Answers by itself, with CORS headers that are not for this page, as a tape may have them."""

    async def on_request(self, request: Request) -> Response | None:
        headers = {
            "access-control-allow-origin": OTHER,
            "access-control-expose-headers": "X-Own",
            "vary": "Accept, origin",
        }
        return Response(events=[Event("a")], headers=headers) if request.path == "/own" else None

    async def on_response(self, head: Any) -> Response | None:
        return (
            Response(status=404, json={"error": "gone"})
            if head.request.path == "/replaced"
            else None
        )


class Raising(Interceptor):
    async def on_request(self, request: Request) -> None:
        raise RuntimeError("not today")


async def plain(peer: Peer) -> None:
    """A server that knows no CORS."""
    while True:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\nContent-Length: 2\r\n\r\n{}"
        )


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
        and answer.all("access-control-expose-headers")
        == [b"Mcp-Session-Id, WWW-Authenticate, Retry-After"]
        and answer.all("vary") == [b"Origin"]
    )


def without_cors(answer: Answer) -> bool:
    return not any(
        name.startswith(b"access-control-") or name == b"vary" for name, _ in answer.headers
    )


POST: dict[str, Any] = {"method": "POST", "body": CALL, "headers": [JSON]}
REFUSALS: dict[str, tuple[int, str, str, Script, dict[str, Any]]] = {
    # status, the route's options, interceptors, the upstream, the request
    "no key": (401, "", "keys", plain, POST),
    "the host": (403, 'allowed_hosts: ["mcp.test"]', "", plain, POST),
    "a body that does not come": (
        408,
        "timeouts: {idle: 0.1}",
        "",
        plain,
        {"method": "POST", "headers": [("Content-Length", "9")]},
    ),
    "a body too large": (413, "limits: {max_request_body_bytes: 3}", "", plain, POST),
    "a compressed body": (
        415,
        "",
        "policy",
        plain,
        POST | {"headers": [JSON, ("Content-Encoding", "gzip")]},
    ),
    "headers that contradict the body": (
        400,
        "",
        "",
        plain,
        POST | {"headers": [JSON, ("MCP-Protocol-Version", "2026-07-28")]},
    ),
    "a failed hook": (502, "", "raising", plain, POST),
    "a broken connection": (502, "", "", closing, POST),
    "no slot": (503, "limits: {max_streams: 1}", "", silent, POST),
    "too many streams of a client": (429, "limits: {max_streams_per_client: 1}", "", silent, POST),
    "a slow server": (504, "timeouts: {first_byte: 0.05}", "", silent, POST),
    "a replaced answer": (404, "", "own", plain, {"path": "/replaced"}),
    "a denied call": (200, "", "policy", plain, POST),
    "a denied call, as a stream": (
        200,
        "",
        "policy",
        plain,
        POST | {"headers": [JSON, ("Accept", "text/event-stream")]},
    ),
}


async def ask(proxy: Proxy, asked: dict[str, Any], *headers: tuple[str, str]) -> Answer:
    rest = {name: value for name, value in asked.items() if name not in ("path", "headers")}
    return await fetch(
        proxy.port, asked.get("path", "/mcp"), headers=[*asked.get("headers", []), *headers], **rest
    )


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_page_reads_every_answer_of_the_proxys(case: str) -> None:
    """Whatever refuses or answers. A request without `Origin` gets the same answer and no CORS
    headers, and another origin 403.
    """
    status, route, names, script, asked = REFUSALS[case]
    options = ", ".join(filter(None, ["dialect: mcp", ALLOWED, route]))
    used = ", ".join(
        {"keys": KEYS, "policy": POLICY, "own": OWN, "raising": RAISING}[name]
        for name in names.split()
    )
    async with open_upstream(script) as upstream:
        async with open_proxy(
            config_for(upstream.url, route=options, interceptors=used, names=names)
        ) as proxy:
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    if script is silent and "max" in route:
                        nursery.start_soon(ask, proxy, asked)
                        while not upstream.requests:
                            await trio.sleep(0.005)
                    for page in (PAGE, "null"):
                        answer = await ask(proxy, asked, ("Origin", page))
                        assert (answer.status, readable(answer, page)) == (status, True), answer
                        assert answer.complete
                        assert len({name for name, _ in answer.headers}) == len(answer.headers)
                    plain_answer = await ask(proxy, asked)
                    assert (plain_answer.status, without_cors(plain_answer)) == (status, True)
                    other = await ask(proxy, asked, ("Origin", OTHER))
                    assert (other.status, without_cors(other)) == (403, True)
                    nursery.cancel_scope.cancel()


async def test_a_page_reads_that_the_proxy_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """500, and 502 where no server listens."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with open_proxy(config_for("http://127.0.0.1:1", route=ALLOWED)) as proxy:
        answer = await ask(proxy, POST, ("Origin", PAGE))
        assert (answer.status, readable(answer)) == (502, True)
        monkeypatch.setattr(exchange, "serve", fail)
        answer = await ask(proxy, POST, ("Origin", PAGE))
        assert (answer.status, readable(answer)) == (500, True)


async def test_an_interceptors_own_cors_headers_give_way() -> None:
    """`Allow-Origin` is the page's, what the answer exposes stays exposed, and `Vary` has the
    origin once. So is the head of an early heartbeat, which the proxy makes before the server has
    answered.
    """
    async with open_upstream(silent) as upstream:
        route = (
            f"{ALLOWED}, heartbeat: {{interval: 0.05, early: true}}, timeouts: {{first_byte: 0.3}}"
        )
        async with open_proxy(
            config_for(upstream.url, route=route, interceptors=OWN, names="own")
        ) as proxy:
            answer = await ask(proxy, {"path": "/own"}, ("Origin", PAGE))
            assert (answer.status, answer.body) == (200, b"data: a\n\n")
            assert answer.all("access-control-allow-origin") == [PAGE.encode()]
            assert answer.all("access-control-expose-headers") == [
                b"Mcp-Session-Id, WWW-Authenticate, Retry-After, X-Own"
            ]
            assert answer.all("vary") == [b"Accept, origin"]
            early = await ask(
                proxy, {"headers": [("Accept", "text/event-stream")]}, ("Origin", PAGE)
            )
            assert (early.status, readable(early)) == (200, True)


async def test_a_preflight_is_answered_without_a_key_and_without_a_token() -> None:
    """It allows what the page asks for and never reaches the server; the request itself counts, and
    its refusals can be read.
    """
    async with open_upstream(plain) as upstream:
        config = config_for(
            upstream.url, route=ALLOWED, interceptors=f"{KEYS}, {LIMIT}", names="keys, limit"
        )
        async with open_proxy(config) as proxy:
            for _ in range(3):
                answer = await fetch(
                    proxy.port, "/mcp", method="OPTIONS", headers=[("Origin", PAGE), *PREFLIGHT]
                )
                assert (answer.status, answer.body, answer.complete) == (204, b"", True)
                assert answer.all("access-control-allow-origin") == [PAGE.encode()]
                assert answer.all("access-control-allow-methods") == [b"POST"]
                assert answer.all("access-control-allow-headers") == [
                    b"authorization,mcp-protocol-version"
                ]
                assert answer.all("vary") == [
                    b"Access-Control-Request-Method, Access-Control-Request-Headers, Origin"
                ]
                assert answer.all("content-length") == []
            assert upstream.accepted == 0
            statuses = []
            for key in ("nobody", KEY, KEY):
                answer = await ask(
                    proxy, POST, ("Origin", PAGE), ("Authorization", f"Bearer {key}")
                )
                statuses.append(answer.status)
                assert readable(answer) == (answer.status != 200)
            assert statuses == [401, 200, 429]
            denied = await fetch(
                proxy.port, "/mcp", method="OPTIONS", headers=[("Origin", OTHER), *PREFLIGHT]
            )
            assert (denied.status, without_cors(denied)) == (403, True)


async def test_a_preflight_is_answered_where_the_request_would_be_refused() -> None:
    """At the limit of streams, and without a server: a browser shows the refusal only when the
    preflight was answered.
    """
    async with open_upstream(silent) as upstream:
        route = f"{ALLOWED}, limits: {{max_streams: 1, max_streams_per_client: 1}}"
        async with (
            open_proxy(config_for(upstream.url, route=route)) as proxy,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(ask, proxy, POST)
            with trio.fail_after(5):
                while not upstream.requests:
                    await trio.sleep(0.005)
                for _ in range(3):
                    answer = await fetch(
                        proxy.port, method="OPTIONS", headers=[("Origin", PAGE), *PREFLIGHT]
                    )
                    assert answer.status == 204
                assert (await ask(proxy, POST, ("Origin", PAGE))).status == 503
            nursery.cancel_scope.cancel()


PREFLIGHT_HEADERS = [("Origin", PAGE), *PREFLIGHT]


@pytest.mark.parametrize("dialect", ["generic", "mcp"])
@pytest.mark.parametrize("names", ["keys, policy, limit", "limit, keys"])
async def test_without_allowed_origins_a_preflight_passes_to_the_server(
    names: str, dialect: str
) -> None:
    """Without a key, without a token, and without the upstream's credential or the client's key;
    nothing is added to the answer.
    """

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\n\r\n")

    async with open_upstream(script) as upstream:
        entries = f"{KEYS}, {LIMIT}, {POLICY}"
        config = config_for(
            upstream.url, route=f"dialect: {dialect}", interceptors=entries, names=names
        )
        async with open_proxy(config) as proxy:
            for extra in ([], [("X-Api-Key", KEY)], [("Content-Length", "0")]):
                answer = await fetch(
                    proxy.port, method="OPTIONS", headers=[*PREFLIGHT_HEADERS, *extra]
                )
                assert (answer.status, answer.all("access-control-allow-origin")) == (204, [b"*"])
                assert not answer.all("vary")
            for request in upstream.requests:
                assert request.method == "OPTIONS"
                assert request.all("origin") == [PAGE.encode()]
                assert not request.all("authorization")
                assert not request.all("x-api-key")
            ping = POST | {"body": b'{"jsonrpc":"2.0","id":7,"method":"ping"}'}
            assert (await ask(proxy, ping, ("Authorization", f"Bearer {KEY}"))).status == 204
            refused = await ask(proxy, ping, ("Origin", PAGE), ("Authorization", f"Bearer {KEY}"))
            assert (refused.status, without_cors(refused)) == (429, True)


FAKES: dict[str, tuple[list[tuple[str, str]], bytes | None]] = {
    "a body": (PREFLIGHT_HEADERS, CALL),
    "a chunked body": ([*PREFLIGHT_HEADERS, ("Transfer-Encoding", "chunked")], CALL),
    "another method": ([*PREFLIGHT_HEADERS, ("X-HTTP-Method-Override", "POST")], None),
    "two origins": ([*PREFLIGHT_HEADERS, ("Origin", PAGE)], None),
    "no origin": (PREFLIGHT, None),
    "no method asked for": ([("Origin", PAGE)], None),
}


@pytest.mark.parametrize("route", [ALLOWED, "dialect: generic", "dialect: mcp"])
@pytest.mark.parametrize(("headers", "body"), FAKES.values(), ids=FAKES)
async def test_what_no_browser_sends_as_a_preflight_needs_the_key(
    headers: list[tuple[str, str]], body: bytes | None, route: str
) -> None:
    """It might make a server run something; so it is a request like any other, and never reaches
    the server without a key.
    """
    async with open_upstream(plain) as upstream:
        async with open_proxy(
            config_for(upstream.url, route=route, interceptors=KEYS, names="keys")
        ) as proxy:
            answer = await fetch(proxy.port, "/mcp", method="OPTIONS", headers=headers, body=body)
            assert answer.status == 401
            assert upstream.accepted == 0
            asked = await fetch(
                proxy.port,
                "/mcp",
                method="OPTIONS",
                headers=[*headers, ("Authorization", f"Bearer {KEY}")],
                body=body,
            )
            assert asked.status == 200
            assert upstream.requests[0].all("authorization") == [f"Bearer {CREDENTIAL}".encode()]


async def test_over_http2_a_body_without_a_length_makes_it_no_preflight(tmp_path: Path) -> None:
    """Its head does not describe a body."""
    certificates = Certificates(tmp_path)
    async with open_upstream(plain) as upstream:
        config = config_for(upstream.url, interceptors=KEYS, names="keys")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            statuses = []
            for body in (None, CALL):
                requester = Http2Requester(client)
                with trio.fail_after(10):
                    headers = [(name.lower(), value) for name, value in PREFLIGHT_HEADERS]
                    await requester.send("OPTIONS", "/mcp", headers, body)
                    statuses.append((await requester.answer()).status)
            assert statuses == [200, 401]
            assert [(request.method, request.body) for request in upstream.requests] == [
                ("OPTIONS", b"")
            ]


SERVER: dict[str, tuple[list[str], list[str] | None]] = {
    # what the server sends, and what it must expose then (None: unchanged)
    "no CORS headers": (["Mcp-Session-Id: s"], None),
    "the origin": (
        ["Mcp-Session-Id: s", f"Access-Control-Allow-Origin: {PAGE}"],
        ["Mcp-Session-Id"],
    ),
    "any origin": (["Mcp-Session-Id: s", "Access-Control-Allow-Origin: *"], ["Mcp-Session-Id"]),
    "something exposed": (
        [
            "Mcp-Session-Id: s",
            f"Access-Control-Allow-Origin: {PAGE}",
            "Access-Control-Expose-Headers: X-A, X-B",
        ],
        ["X-A, X-B, Mcp-Session-Id"],
    ),
    "the session exposed": (
        [
            "Mcp-Session-Id: s",
            f"Access-Control-Allow-Origin: {PAGE}",
            "Access-Control-Expose-Headers: X-A,mcp-session-id",
        ],
        None,
    ),
    "everything exposed": (
        ["Mcp-Session-Id: s", "Access-Control-Allow-Origin: *", "Access-Control-Expose-Headers: *"],
        None,
    ),
    "everything exposed, to a page with credentials": (
        [
            *(
                "Mcp-Session-Id: s",
                f"Access-Control-Allow-Origin: {PAGE}",
                "Access-Control-Expose-Headers: *",
            ),
            "Access-Control-Allow-Credentials: true",
        ],
        ["*, Mcp-Session-Id"],
    ),
    "another origin": (["Mcp-Session-Id: s", f"Access-Control-Allow-Origin: {OTHER}"], None),
    "no session": ([f"Access-Control-Allow-Origin: {PAGE}", "Vary: Origin"], None),
}


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize(("lines", "exposed"), SERVER.values(), ids=SERVER)
async def test_the_servers_cors_headers_pass(
    lines: list[str], exposed: list[str] | None, kind: str
) -> None:
    """None is added or occurs twice; only the session's id is exposed where the server allows the
    origin. On a route without `allowed_origins` not even that.
    """

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            head = "\r\n".join(
                ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Content-Length: 2", *lines]
            )
            await peer.send(head.encode() + b"\r\n\r\n{}")

    def cors(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
        return sorted(
            (name.decode(), value.decode())
            for name, value in headers
            if name.startswith((b"access-", b"vary"))
        )

    came = [
        (name.lower().encode(), value.encode())
        for name, _, value in (line.partition(": ") for line in lines)
    ]
    async with open_upstream(script) as upstream:
        for route in (ALLOWED, "dialect: mcp"):
            async with open_proxy(config_for(upstream.url, route=route)) as proxy:
                answer = await ask(proxy, POST, ("Origin", PAGE))
            expected = came
            if route == ALLOWED and exposed is not None:
                expected = [item for item in came if item[0] != b"access-control-expose-headers"]
                expected += [
                    (b"access-control-expose-headers", value.encode()) for value in exposed
                ]
            assert cors(answer.headers) == cors(expected)
            assert answer.status == 200
