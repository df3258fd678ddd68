"""A route with `dialect: mcp` on real sockets: what passes unchanged, is checked, is rewritten, and
is never made up.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import trio
from support.client import fetch
from support.interceptors import Serve, on_event, until
from support.proxy import open_proxy
from support.upstream import Peer, answering, open_upstream

from interceptors import Interceptor, Request
from interceptors.dialects.mcp_headers import VERSION_KEY
from proxy.config import parse_config

MCP = "dialect: mcp"
JSON = ("Content-Type", "application/json")
BOTH = ("Accept", "application/json, text/event-stream")
ASKED = b'{"jsonrpc":"2.0","id":5,"method":"x"}'


def whole(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status.encode(), *headers]
    lines += [] if status[:3] == "204" else [b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def streamed(*events: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in events]
    return b"".join([head, headers, b"\r\n", *chunks, b"0\r\n\r\n"])


def call(ident: Any = 1, **arguments: Any) -> bytes:
    meta = {VERSION_KEY: "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    params = {"_meta": meta, "name": "add", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": params}
    return json.dumps(message).encode()


def modern(**named: str) -> list[tuple[str, str]]:
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "add"}
    headers |= {name.replace("_", "-"): value for name, value in named.items()}
    return [JSON, BOTH, *((name, value) for name, value in headers.items() if value)]


# What passes unchanged

JSON_LINE, TEXT_LINE = b"Content-Type: application/json", b"Content-Type: text/plain"
UNSUPPORTED = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"Unsupported version"}}'
ANSWERS: list[tuple[str, str, bytes, list[bytes]]] = [
    (
        "POST",
        "200 OK",
        b'{"jsonrpc":"2.0",  "id":1,"result":{}}',
        [JSON_LINE, b"Mcp-Session-Id: s"],
    ),
    ("POST", "202 Accepted", b"", []),
    ("POST", "400 Bad Request", UNSUPPORTED, [JSON_LINE]),
    ("POST", "404 Not Found", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601}}', []),
    ("POST", "404 Not Found", b"Session not found", [TEXT_LINE]),
    ("POST", "405 Method Not Allowed", b"", [b"Allow: GET, POST"]),
    ("GET", "405 Method Not Allowed", b"no stream here", [b"Allow: POST, DELETE"]),
    ("GET", "404 Not Found", b"", []),
    ("DELETE", "200 OK", b"", []),
    ("DELETE", "204 No Content", b"", []),
    ("DELETE", "404 Not Found", b"", []),
    ("DELETE", "405 Method Not Allowed", b'{"jsonrpc":"2.0"}', [b"Allow: POST"]),
]


async def test_answers_pass_unchanged(serve_once: Serve) -> None:
    """Clients distinguish old servers from new ones, and ended sessions from errors, by these."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            _, status, body, headers = ANSWERS[int(request.target[1:])]
            await peer.send(whole(status, body, *headers))

    async with serve_once(script, route=MCP) as rig:
        for number, (method, status, body, headers) in enumerate(ANSWERS):
            asked = ASKED if method == "POST" else None
            answer = await rig.fetch(f"/{number}", method=method, headers=[JSON, BOTH], body=asked)
            assert (answer.status, answer.body, answer.complete) == (int(status[:3]), body, True)
            for line in headers:
                name, _, value = line.partition(b": ")
                assert answer.all(name.decode().lower()) == [value]
        assert len(rig.upstream.requests) == len(ANSWERS)


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_a_request_goes_up_to_the_byte(method: str, serve_once: Serve) -> None:
    """Target, session, version, cursor, `Accept` and body are as the client wrote them."""
    sent = [BOTH, ("Mcp-Session-Id", "s-~!1"), ("Last-Event-ID", "7/\xc3\xa9")]
    sent += [("X-Request-Id", "id-1")]
    body = None
    if method == "POST":
        sent += [*modern()[2:], JSON, ("Mcp-Param-Region", "=?base64?w6k=?=")]
        body = call(region="é").replace(b": ", b" :  ")
    async with serve_once(answering(whole("202 Accepted")), route=MCP) as rig:
        headers: Any = [(name, value.encode("latin-1")) for name, value in sent]
        await rig.fetch("/a/../mcp?x=%2F", method=method, headers=headers, body=body)
    (request,) = rig.upstream.requests
    assert (request.method, request.target) == (method, b"/a/../mcp?x=%2F")
    assert request.body == (body or b"")
    expected = [("Host", f"127.0.0.1:{rig.upstream.port}"), *sent]
    expected += [("content-length", str(len(body)))] if body is not None else []
    expected += [("x-forwarded-for", "127.0.0.1"), ("x-forwarded-proto", "http")]
    expected += [("x-forwarded-host", "proxy.test"), ("via", "1.1 us")]
    expected += [("accept-encoding", "identity")]
    got = [(name.decode().lower(), value.decode("latin-1")) for name, value in request.headers]
    got[-2] = (got[-2][0], re.sub("weirpool-[0-9a-f]{16}", "us", got[-2][1]))
    assert got == [(name.lower(), value) for name, value in expected]


EVENTS = [
    b"id: 1\r\ndata:\r\n\r\n",  # priming
    b": keep-alive\n\n",
    b'event: message\nid: 2\ndata: {"jsonrpc": "2.0",\ndata: "method": "notifications/x"}\n\n',
    b'data: {"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","params":{}}\n\n',
    b"event: endpoint\ndata: http://elsewhere.test/\n\n",
    b"retry: 50\nid: 3\ndata:\n\n",
    b'event: message\rid: 4\rdata: {"jsonrpc":"2.0","id":5,"result":{"t":"\xe2\x80\xa8"}}\r\r',
    b"retry: 1000\n\n",
]


async def test_streams_pass_to_the_byte(serve_once: Serve) -> None:
    """However they are cut. A server may end one before its response: the client comes back."""
    body = b"".join(EVENTS)
    streams = [EVENTS, [body], [body[at : at + 1] for at in range(len(body))], EVENTS[:2]]

    async def script(peer: Peer) -> None:
        while True:
            await peer.send(streamed(*streams[int((await peer.request()).target[1:])]))

    async with serve_once(script, route=MCP) as rig:
        for number, stream in enumerate(streams):
            for method, asked in (("POST", ASKED), ("GET", None)):
                headers = [JSON, BOTH, ("Mcp-Session-Id", "s")]
                target = f"/{number}"
                answer = await rig.fetch(target, method=method, headers=headers, body=asked)
                assert (answer.status, answer.complete) == (200, True)
                assert answer.body == b"".join(stream)


async def test_an_unneeded_compressed_stream_passes(serve_once: Serve) -> None:
    """It was asked for without a coding. With an open request, or where it may be the old
    transport's, it is a 502.
    """
    encoded = streamed(b"\x1f\x8b", headers=b"Content-Encoding: gzip\r\n")
    async with serve_once(answering(encoded), route=MCP) as rig:
        answer = await rig.fetch("/mcp", method="POST", headers=[JSON], body=ASKED)
        assert (answer.status, json.loads(answer.body)["id"]) == (502, 5)
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        note = b'{"jsonrpc":"2.0","method":"x"}'
        answer = await rig.fetch("/mcp", method="POST", headers=[JSON], body=note)
        assert (answer.status, answer.body) == (200, b"\x1f\x8b")
        answer = await rig.fetch("/sse", headers=[("Mcp-Session-Id", "s")])
        assert (answer.status, answer.body) == (200, b"\x1f\x8b")
        assert (await rig.fetch("/sse")).status == 502


@pytest.mark.parametrize("needed", [False, True])
async def test_an_event_that_is_too_large_ends_the_call(needed: bool, serve_once: Serve) -> None:
    """Although the stream could be resumed. Where no interceptor needs the event, it passes."""
    events = (b"id: 1\ndata:\n\n", b"data: " + b"x" * 5000 + b"\n\n")
    chain = [on_event(lambda event: event)] if needed else []
    route = "dialect: mcp, limits: {max_event_bytes: 1000}"
    async with serve_once(answering(streamed(*events)), *chain, route=route) as rig:
        answer = await rig.fetch("/mcp", method="POST", headers=[JSON], body=ASKED)
    assert answer.complete is not needed
    assert answer.body.startswith(events[0])
    rest = answer.body.removeprefix(events[0])
    if needed:
        error = json.loads(rest.removeprefix(b"event: message\ndata: "))
        assert (error["id"], error["error"]["data"]) == (5, {"type": "event_too_large"})
    else:
        assert rest == events[1]


@pytest.mark.parametrize(
    ("method", "revision", "in_stream"),
    [
        ("POST", "2026-07-28", False),
        ("POST", "2025-11-25", True),
        ("GET", "2025-11-25", False),
        ("GET", None, True),
    ],
)
async def test_a_client_that_leaves_closes_upstream_and_nothing_is_made_up(
    method: str, revision: str | None, in_stream: bool, serve_once: Serve
) -> None:
    """At once; the upstream has seen one request, and no notification from the proxy."""
    closed, arrived = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        if in_stream:
            await peer.start_stream()
            await peer.chunk(b"id: 1\ndata:\n\n")
        await peer.wait_closed()
        closed.set()

    headers = [JSON, BOTH, *([("MCP-Protocol-Version", revision)] if revision else [])]
    headers += [("Mcp-Method", "tools/call"), ("Mcp-Name", "add")] if method == "POST" else []
    async with serve_once(script, route=MCP) as rig:
        client = await rig.client()
        with trio.fail_after(10):
            await client.send(method, "/mcp", headers, call() if method == "POST" else None)
            if in_stream:
                await client.read_until(await client.head(), b"data:\n\n")
            await arrived.wait()
            client.reset()
            await closed.wait()
            await until(lambda: not rig.proxy.worker.live)
        assert len(rig.upstream.requests) == rig.upstream.accepted == 1
        rig.clients.clear()


# Headers that mirror the body


async def test_headers_that_do_not_match_are_refused(serve_once: Serve) -> None:
    """400 with the request's id; so is a body that cannot be verified. Before 2026-07-28 the
    server decides.
    """
    old = [JSON, ("MCP-Protocol-Version", "2025-11-25")]
    async with serve_once(answering(whole("400 Bad Request", b"server")), route=MCP) as rig:
        for headers, body, ident, code in (
            (modern(Mcp_Name="sub"), call("a-1"), "a-1", -32020),
            (modern(Mcp_Method="tools/list"), call("a-1"), "a-1", -32020),
            (modern(Mcp_Name=""), call("a-1"), "a-1", -32020),
            (modern(), b'{"jsonrpc":', None, -32700),
            (modern(), b"[" + call() + b"]", None, -32600),
            (old, b"[" + b",".join([ASKED] * 101) + b"]", None, -32600),
        ):
            answer = await rig.fetch("/mcp", method="POST", headers=headers, body=body)
            error = json.loads(answer.body)
            assert (answer.status, error["jsonrpc"], error["id"]) == (400, "2.0", ident)
            assert error["error"]["code"] == code
        assert rig.upstream.accepted == 0
        answer = await rig.fetch("/mcp", method="POST", headers=old, body=b'{"jsonrpc":')
        assert (answer.status, answer.body) == (400, b"server")
        assert rig.upstream.requests[0].body == b'{"jsonrpc":'


class Renames(Interceptor):
    """Calls another tool than the client has asked for, with other arguments."""

    wants_body = True

    async def on_request(self, request: Request) -> None:
        message = request.json()
        message["params"]["name"] = "sub é"
        message["params"]["arguments"]["region"] = "us"
        request.replace_body(json=message)


async def test_headers_follow_a_body_that_an_interceptor_has_changed(serve_once: Serve) -> None:
    async with serve_once(answering(whole("200 OK")), Renames, route=MCP) as rig:
        headers = modern(Mcp_Param_Region="eu", Mcp_Param_Unknown="x")
        await rig.fetch("/mcp", method="POST", headers=headers, body=call(region="eu", n=1))
    (request,) = rig.upstream.requests
    assert json.loads(request.body)["params"]["name"] == "sub é"
    assert request.all("mcp-name") == [b"=?base64?c3ViIMOp?="]
    assert request.all("mcp-method") == [b"tools/call"]
    assert (request.all("mcp-param-region"), request.all("mcp-param-unknown")) == ([b"us"], [b"x"])


# The old transport


@pytest.mark.parametrize(
    ("path", "base", "announced", "expected", "end"),
    [
        ("/tools", "/base", b"/base/messages?s=1", b"/tools/messages?s=1", b"\n"),
        ("/", "/base", b"/base/messages?s=1", b"/messages?s=1", b"\r\n"),
        ("/", "", b"http://UPSTREAM/messages?s=1", b"/messages?s=1", b"\r"),
        ("/", "", b"/messages?s=1", b"/messages?s=1", b"\r"),
    ],
)
async def test_the_first_endpoint_event_leads_back_to_this_route(
    path: str, base: str, announced: bytes, expected: bytes, end: bytes
) -> None:
    """The first only; every other event passes unchanged. The client's POST goes where it should."""
    rest = b'event: message\ndata: {"endpoint": "/messages"}\n\nevent: endpoint\ndata: /m\n\n'

    async def script(peer: Peer) -> None:
        uri = announced.replace(b"UPSTREAM", f"127.0.0.1:{peer.upstream.port}".encode())
        while (await peer.request()).method == "GET":
            await peer.start_stream()
            await peer.chunk(b": hello\n\n" + end.join([b"event: endpoint", b"data: " + uri]))
            await peer.chunk(end * 2 + rest)
            await peer.end()
        await peer.send(whole("202 Accepted"))

    async with open_upstream(script) as upstream:
        config = f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}{base}"]}}]
  routes: [{{path: {path}, upstream: up, dialect: mcp, strip_prefix: {str(path != "/").lower()}}}]
"""
        async with open_proxy(parse_config(config)) as proxy:
            answer = await fetch(proxy.port, path.rstrip("/") + "/sse")
            begins = b": hello\n\n" + end.join([b"event: endpoint", b"data: " + expected, b"", b""])
            if announced != expected:  # written anew
                begins = begins.replace(end, b"\n")
            assert (answer.complete, answer.body) == (True, begins + rest)
            target = expected.decode()
            posted = await fetch(proxy.port, target, method="POST", headers=[JSON], body=b"{}")
            assert posted.status == 202
            assert upstream.requests[-1].target == base.encode() + b"/messages?s=1"


# Origin and Host

HERE = ("Host", "mcp.test")
CHECKED: list[tuple[int, list[tuple[str, str]]]] = [
    (200, [HERE]),
    (200, [("Host", "MCP.Test:8443")]),
    (200, [("Host", "other.test:8443")]),
    (403, [("Host", "other.test")]),
    (403, [("Host", "other.test:80")]),
    (403, [("Host", "mcp.test.evil.test")]),
    (200, [("Host", "[::1]")]),
    (200, [("Host", "[::1]:8000")]),
    (403, [("Host", "[::2]:8000")]),
    (200, [HERE, ("Origin", "https://App.test")]),
    (403, [HERE, ("Origin", "https://app.test:8443")]),
    (403, [HERE, ("Origin", "http://app.test")]),
    (403, [HERE, ("Origin", "null")]),
    (403, [HERE, ("Origin", "")]),
    (403, [HERE, ("Origin", "https://app.test"), ("Origin", "https://evil.test")]),
    (403, [HERE, ("Origin", "https://evil.test"), ("Origin", "https://app.test")]),
]


async def test_origin_and_host_are_checked(serve_once: Serve) -> None:
    """A name without a port stands for every port. 403 has a JSON-RPC error."""
    hosts, origins = '["mcp.test", "other.test:8443", "[::1]"]', '["https://app.test"]'
    route = f"dialect: mcp, allowed_hosts: {hosts}, allowed_origins: {origins}"
    async with serve_once(answering(whole("200 OK")), route=route) as rig:
        for status, headers in CHECKED:
            for method, body in (("POST", b"{}"), ("GET", None)):
                before = len(rig.upstream.requests)
                answer = await rig.fetch("/mcp", method=method, headers=[*headers, JSON], body=body)
                assert answer.status == status, headers
                assert len(rig.upstream.requests) - before == (status == 200)
                if status == 403:
                    error = json.loads(answer.body)
                    assert (error["id"], error["error"]["code"]) == (None, -32600)
