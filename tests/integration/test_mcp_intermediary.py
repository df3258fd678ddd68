"""A correct MCP intermediary, on real sockets: what passes as it is, is checked, is rewritten, and
is never made up.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from support.client import Answer, Client, fetch, open_client
from support.interceptors import config_with, on_event, until
from support.mcp_server import open_mcp_server
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Upstream, open_upstream

from interceptors import Interceptor, Request
from interceptors.dialects.mcp_headers import VERSION_KEY

REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]
ROUTES = pytest.mark.parametrize("route", ["", "dialect: mcp"], ids=["no chain", "dialect: mcp"])
JSON = ("Content-Type", "application/json")
BOTH = ("Accept", "application/json, text/event-stream")


class Recorder(trio.abc.Stream):
    """The upstream's side of a connection, and the very bytes that came."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.received = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        self.received += data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Rig:
    """An upstream that gives every request the same answer, and the proxy in front of it."""

    def __init__(self, upstream: Upstream, proxy: Proxy, wire: list[Recorder]) -> None:
        self.upstream, self.proxy, self._wire = upstream, proxy, wire

    @property
    def wire(self) -> bytes:
        """What came on all of upstream's connections."""
        return b"".join(recorder.received for recorder in self._wire)

    async def fetch(
        self,
        method: str,
        target: str = "/mcp",
        *headers: tuple[str, str],
        body: bytes | None = None,
    ) -> Answer:
        with trio.fail_after(10):
            return await fetch(
                self.proxy.port, target, method=method, headers=list(headers), body=body
            )


@asynccontextmanager
async def serving(
    answer: bytes,
    *given: type[Interceptor],
    route: str = "dialect: mcp",
    path: str = "/",
    base: str = "",
) -> AsyncIterator[Rig]:
    """`answer`: the bytes of a response."""
    wire: list[Recorder] = []

    async def script(peer: Peer) -> None:
        recorder = Recorder(peer.stream)
        peer.stream = recorder
        wire.append(recorder)
        while True:
            await peer.request()
            await peer.send(answer)

    async with open_upstream(script) as upstream:
        config = config_with(upstream.url + base, *given, route=route)
        if path != "/":
            (only,) = config.reverse_proxy.routes
            config = replaced(config, only, path)
        async with open_proxy(config) as proxy:
            yield Rig(upstream, proxy, wire)


def replaced(config: Any, route: Any, path: str) -> Any:
    """The configuration with its route at another path."""
    routes = [msgspec.structs.replace(route, path=path)]
    return msgspec.structs.replace(
        config, reverse_proxy=msgspec.structs.replace(config.reverse_proxy, routes=routes)
    )


def whole(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status.encode(), *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def streamed(*events: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks
        + b"0\r\n\r\n"
    )


def call(name: str = "add", ident: Any = 1, **arguments: Any) -> bytes:
    meta = {VERSION_KEY: "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    params = {"_meta": meta, "name": name, "arguments": arguments}
    return json.dumps(
        {"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": params}
    ).encode()


def modern(**named: str) -> list[tuple[str, str]]:
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "add"}
    headers |= {name.replace("_", "-"): value for name, value in named.items()}
    return [JSON, BOTH, *((name, value) for name, value in headers.items() if value)]


PROTOCOL_ERROR = (
    b'{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"Unsupported protocol version"}}'
)


# What passes as it is


@ROUTES
@pytest.mark.parametrize(
    ("method", "status", "body", "headers"),
    [
        (
            "POST",
            "200 OK",
            b'{"jsonrpc":"2.0",  "id":1,"result":{}}',
            [b"Content-Type: application/json", b"Mcp-Session-Id: s-1"],
        ),
        ("POST", "202 Accepted", b"", []),
        ("POST", "400 Bad Request", PROTOCOL_ERROR, [b"Content-Type: application/json"]),
        (
            "POST",
            "404 Not Found",
            b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"x"}}',
            [],
        ),
        ("POST", "404 Not Found", b"Session not found", [b"Content-Type: text/plain"]),
        ("POST", "405 Method Not Allowed", b"", [b"Allow: GET, POST"]),
        ("GET", "405 Method Not Allowed", b"no stream here", [b"Allow: POST, DELETE"]),
        ("GET", "404 Not Found", b"", []),
        ("DELETE", "200 OK", b"", []),
        ("DELETE", "204 No Content", b"", []),
        ("DELETE", "404 Not Found", b"", []),
        ("DELETE", "405 Method Not Allowed", b'{"jsonrpc":"2.0"}', [b"Allow: POST"]),
    ],
)
async def test_answers_pass_as_they_are(
    method: str, status: str, body: bytes, headers: list[bytes], route: str
) -> None:
    """Clients distinguish old servers from new ones, and ended sessions from errors, by these
    statuses and bodies.
    """
    length = [] if "204" in status else [b"Content-Length: %d" % len(body)]
    raw = b"\r\n".join([b"HTTP/1.1 " + status.encode(), *headers, *length]) + b"\r\n\r\n" + body
    async with serving(raw, route=route) as rig:
        asked = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}' if method == "POST" else None
        answer = await rig.fetch(method, "/mcp", JSON, BOTH, body=asked)
    assert (answer.status, answer.body, answer.complete) == (int(status[:3]), body, True)
    for line in headers:
        name, _, value = line.partition(b": ")
        assert answer.all(name.decode().lower()) == [value]
    assert len(rig.upstream.requests) == 1


@ROUTES
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_a_request_goes_up_to_the_byte(method: str, revision: str, route: str) -> None:
    """Target, session, version, cursor, what it accepts, and the body: all of the request as the
    client wrote it.
    """
    sent = [
        ("Host", "proxy.test"),
        BOTH,
        ("Mcp-Session-Id", "s-~!1"),
        ("Last-Event-ID", "7/é".encode().decode("latin-1")),
    ]
    sent += [("MCP-Protocol-Version", revision)] if revision > "2025-03-26" else []
    body = None
    if method == "POST":
        sent += [
            JSON,
            ("Mcp-Method", "tools/call"),
            ("Mcp-Name", "add"),
            ("Mcp-Param-Region", "=?base64?w6k=?="),
        ]
        body = call(region="é").replace(b": ", b" :  ")
    async with serving(whole("202 Accepted"), route=route) as rig:
        await rig.fetch(
            method,
            "/a/../mcp?x=%2F",
            *((name, value.encode("latin-1")) for name, value in sent),
            body=body,
        )  # type: ignore[arg-type]
        identity = "dialect" in route
        port = rig.upstream.port
    lines = [
        f"{method} /a/../mcp?x=%2F HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        *(f"{name}: {value}" for name, value in sent[1:]),
    ]
    lines += ["accept-encoding: identity"] if identity else []
    lines += [f"content-length: {len(body)}"] if body is not None else []
    lines += [
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: proxy.test",
        "via: 1.1 us",
    ]
    head, _, rest = rig.wire.partition(b"\r\n\r\n")
    assert rest == (body or b"")
    got = re.sub("weirpool-[0-9a-f]{16}", "us", head.decode("latin-1")).split("\r\n")
    assert got[0] == lines[0]
    assert [line.partition(":")[0].lower() + ":" + line.partition(":")[2] for line in got[1:]] == [
        line.partition(":")[0].lower() + ":" + line.partition(":")[2] for line in lines[1:]
    ]


EVENTS = [
    b"id: 1\r\ndata:\r\n\r\n",  # priming
    b": keep-alive\n\n",
    b'event: message\nid: 2\ndata: {"jsonrpc": "2.0",\ndata: "method": "notifications/progress", "params": {}}\n\n',
    b'data: {"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","params":{}}\n\n',
    b"event: endpoint\ndata: http://elsewhere.test/\n\n",
    b"retry: 50\nid: 3\ndata:\n\n",
    b'event: message\rid: 4\rdata: {"jsonrpc":"2.0","id":1,"result":{"text":"\xe2\x80\xa8"}}\r\r',
    b"retry: 1000\n\n",
]


@ROUTES
@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("chunking", ["events", "bytes", "one"])
async def test_streams_pass_to_the_byte(method: str, chunking: str, route: str) -> None:
    """Priming events, `retry`, comments, ids, requests of the server; and its closing the stream is
    an end and no error.
    """
    body = b"".join(EVENTS)
    chunks = {
        "events": EVENTS,
        "bytes": [body[at : at + 1] for at in range(len(body))],
        "one": [body],
    }[chunking]
    async with serving(streamed(*chunks), route=route) as rig:
        asked = (
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}'
            if method == "POST"
            else None
        )
        answer = await rig.fetch(method, "/mcp", JSON, BOTH, ("Mcp-Session-Id", "s"), body=asked)
    assert (answer.status, answer.body, answer.complete) == (200, body, True)


@ROUTES
async def test_a_stream_that_ends_after_a_retry_is_whole(route: str) -> None:
    """A server may close after an event with an id, before the response: the client comes back.
    It is not reported.
    """
    events = (b"id: 1\ndata:\n\n", b"retry: 10\n\n")
    async with serving(streamed(*events), route=route) as rig:
        answer = await rig.fetch(
            "POST", "/mcp", JSON, BOTH, body=b'{"jsonrpc":"2.0","id":1,"method":"x"}'
        )
    assert (answer.body, answer.complete) == (b"".join(events), True)


async def test_what_must_be_seen_and_cannot_is_refused() -> None:
    """A stream of responses that is compressed although identity was asked for: 502, with the
    request's id. Others pass so.
    """
    raw = streamed(b"\x1f\x8b").replace(
        b"Transfer-Encoding", b"Content-Encoding: gzip\r\nTransfer-Encoding"
    )
    async with serving(raw) as rig:
        answer = await rig.fetch(
            "POST", "/mcp", JSON, body=b'{"jsonrpc":"2.0","id":5,"method":"x"}'
        )
        assert (answer.status, json.loads(answer.body)["id"]) == (502, 5)
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        note = await rig.fetch("POST", "/mcp", JSON, body=b'{"jsonrpc":"2.0","method":"x"}')
        assert (note.status, note.body) == (200, b"\x1f\x8b")


async def test_an_event_that_is_too_large_is_an_event_too_large() -> None:
    """Above `max_event_bytes`, where an interceptor needs it, the open request gets an error
    although the stream could be resumed: it would not get better. Where none does, it passes.
    """
    events = (b"id: 1\ndata:\n\n", b"data: " + b"x" * 5000 + b"\n\n")
    limited = "dialect: mcp, limits: {max_event_bytes: 1000}"
    async with serving(streamed(*events), route=limited) as rig:
        answer = await rig.fetch(
            "POST", "/mcp", JSON, body=b'{"jsonrpc":"2.0","id":5,"method":"x"}'
        )
        assert (answer.body, answer.complete) == (b"".join(events), True)
    async with serving(streamed(*events), on_event(lambda event: event), route=limited) as rig:
        answer = await rig.fetch(
            "POST", "/mcp", JSON, body=b'{"jsonrpc":"2.0","id":5,"method":"x"}'
        )
    assert not answer.complete
    before, _, said = answer.body.partition(b"event: message\ndata: ")
    assert before == events[0]
    assert (json.loads(said)["id"], json.loads(said)["error"]["data"]) == (
        5,
        {"type": "event_too_large"},
    )


# A client that leaves


@ROUTES
@pytest.mark.parametrize("revision", [None, *REVISIONS])
@pytest.mark.parametrize("when", ["before the head", "in the stream"])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_client_that_leaves_closes_upstream_and_nothing_is_made_up(
    method: str, when: str, revision: str | None, route: str
) -> None:
    """At once, in every revision; upstream has seen one request, and no notification of the proxy's
    own.
    """
    closed, arrived = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        if when == "in the stream":
            await peer.start_stream()
            await peer.chunk(b"id: 1\ndata:\n\n")
        await peer.wait_closed()
        closed.set()

    headers = [JSON, BOTH, *([("MCP-Protocol-Version", revision)] if revision else [])]
    headers += [("Mcp-Method", "tools/call"), ("Mcp-Name", "add")] if method == "POST" else []
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, route=route)) as proxy,
    ):
        client: Client = await open_client(proxy.port)
        with trio.fail_after(10):
            await client.send(method, "/mcp", headers, call() if method == "POST" else None)
            if when == "in the stream":
                await client.read_until(await client.head(), b"data:\n\n")
            await arrived.wait()
        client.reset()
        with trio.fail_after(5):
            await closed.wait()
            await until(lambda: not proxy.worker.live)
        assert len(upstream.requests) == upstream.accepted == 1


# Headers that mirror the body


@pytest.mark.parametrize(
    "headers", [modern(Mcp_Name="sub"), modern(Mcp_Method="tools/list"), modern(Mcp_Name="")]
)
async def test_headers_that_do_not_match_are_refused(headers: list[tuple[str, str]]) -> None:
    """400 with -32020 and the request's id; upstream sees nothing."""
    async with serving(whole("200 OK")) as rig:
        answer = await rig.fetch("POST", "/mcp", *headers, body=call(ident="a-1"))
        assert answer.status == 400
        said = json.loads(answer.body)
        assert (said["jsonrpc"], said["id"], said["error"]["code"]) == ("2.0", "a-1", -32020)
        assert rig.upstream.accepted == 0


async def test_a_body_that_cannot_be_read_cannot_be_verified() -> None:
    """From 2026-07-28 on it is refused with a parse error; before, the server decides."""
    async with serving(whole("400 Bad Request", b"server")) as rig:
        answer = await rig.fetch("POST", "/mcp", *modern(), body=b'{"jsonrpc":')
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, -32700)
        assert rig.upstream.accepted == 0
        batch = await rig.fetch("POST", "/mcp", *modern(), body=b"[" + call() + b"]")
        assert (batch.status, json.loads(batch.body)["error"]["code"]) == (400, -32600)
        assert rig.upstream.accepted == 0
        old = await rig.fetch(
            "POST", "/mcp", JSON, ("MCP-Protocol-Version", "2025-11-25"), body=b'{"jsonrpc":'
        )
        assert (old.status, old.body) == (400, b"server")
        assert rig.upstream.requests[0].body == b'{"jsonrpc":'


async def test_other_routes_verify_nothing() -> None:
    """Who does not read the body need not; the server will."""
    async with serving(whole("200 OK"), route="") as rig:
        assert (await rig.fetch("POST", "/mcp", *modern(Mcp_Name="sub"), body=call())).status == 200


class Renames(Interceptor):
    """Calls another tool than the client has asked for, with other arguments."""

    wants_body = True

    async def on_request(self, request: Request) -> None:
        message = request.json()
        message["params"]["name"] = "sub é"
        message["params"]["arguments"]["region"] = "us"
        request.replace_body(json=message)


async def test_headers_follow_a_body_that_an_interceptor_has_changed() -> None:
    """`Mcp-Name` is that of the new body, in the encoding that servers read; a parameter's header
    follows its argument, and one whose argument is unknown stays.
    """
    async with serving(whole("200 OK"), Renames) as rig:
        headers = modern(Mcp_Param_Region="eu", Mcp_Param_Unknown="x")
        assert (
            await rig.fetch("POST", "/mcp", *headers, body=call(region="eu", n=1))
        ).status == 200
    (request,) = rig.upstream.requests
    assert json.loads(request.body)["params"]["name"] == "sub é"
    assert request.all("mcp-name") == [b"=?base64?c3ViIMOp?="]
    assert request.all("mcp-method") == [b"tools/call"]
    assert (request.all("mcp-param-region"), request.all("mcp-param-unknown")) == ([b"us"], [b"x"])


@pytest.mark.parametrize("length", [0, 1000, 200_000, 2_000_000])
async def test_big_bodies_of_other_types_pass(length: int) -> None:
    """What is not JSON is collected and passes to the byte, up to `max_request_body_bytes`, and is
    refused beyond.
    """
    body = bytes(range(256)) * (length // 256)
    headers = [("Content-Type", "application/octet-stream"), ("MCP-Protocol-Version", "2026-07-28")]
    async with serving(
        whole("200 OK"), route="dialect: mcp, limits: {max_request_body_bytes: 1000000}"
    ) as rig:
        answer = await rig.fetch("POST", "/upload", *headers, body=body)
    assert answer.status == (200 if length < 1_000_000 else 413)
    assert [request.body for request in rig.upstream.requests if answer.status == 200] == [body] * (
        answer.status == 200
    )


# The old transport


@pytest.mark.parametrize(
    ("path", "base", "strip", "told", "expected"),
    [
        ("/tools", "", True, b"/messages?s=1", b"/tools/messages?s=1"),
        ("/tools", "/base", True, b"/base/messages?s=1", b"/tools/messages?s=1"),
        ("/", "/base", False, b"/base/messages?s=1", b"/messages?s=1"),
        ("/", "", False, b"http://UPSTREAM/messages?s=1", b"/messages?s=1"),
        ("/", "", False, b"/messages?s=1", b"/messages?s=1"),
        ("/", "", False, b"http://other.test/messages", b"http://other.test/messages"),
    ],
)
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
async def test_the_first_endpoint_event_leads_back_to_this_route(
    path: str, base: str, strip: bool, told: bytes, expected: bytes, ends: bytes
) -> None:
    """The first only; what is right already, and every other event, passes as it is. The client's
    POST goes where it should.
    """

    async def script(peer: Peer) -> None:
        authority = f"127.0.0.1:{peer.upstream.port}".encode()
        head = ends.join(
            [b"event: endpoint", b"data: " + told.replace(b"UPSTREAM", authority), b"", b""]
        )
        while True:
            request = await peer.request()
            if request.method == "POST":
                await peer.send(whole("202 Accepted"))
                continue
            await peer.start_stream()
            await peer.chunk(b": hello\n\n" + head)
            await peer.chunk(
                b'event: message\ndata: {"endpoint": "/messages"}\n\nevent: endpoint\ndata: /messages\n\n'
            )
            await peer.end()

    async with open_upstream(script) as upstream:
        config = config_for(
            upstream.url + base, route=f"dialect: mcp, strip_prefix: {str(strip).lower()}"
        )
        config = replaced(config, config.reverse_proxy.routes[0], path)
        async with open_proxy(config) as proxy:
            prefix = path.rstrip("/")
            answer = await fetch(
                proxy.port, prefix + "/sse", headers=[("Accept", "text/event-stream")]
            )
            assert answer.complete
            before, first, *rest = (
                answer.body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
            )
            assert before == b": hello"
            assert first == b"event: endpoint\ndata: " + expected
            assert rest == [
                b'event: message\ndata: {"endpoint": "/messages"}',
                b"event: endpoint\ndata: /messages",
                b"",
            ]
            if expected.startswith(b"/"):
                posted = await fetch(
                    proxy.port, expected.decode(), method="POST", headers=[JSON], body=b"{}"
                )
                assert posted.status == 202
                assert upstream.requests[-1].target == base.encode() + b"/messages?s=1"


async def test_an_encoded_stream_passes_only_where_nothing_in_it_is_for_the_proxy() -> None:
    """It was asked for without an encoding. One with a session id is Streamable HTTP's; any other
    may be the old transport's.
    """
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n"
    async with serving(head + b"xyz") as rig:
        assert (await rig.fetch("GET", "/sse", ("Mcp-Session-Id", "s"))).body == b"xyz"
        assert (await rig.fetch("GET", "/sse")).status == 502


@pytest.mark.filterwarnings("default")
async def test_the_old_transports_client_works_behind_a_stripped_prefix() -> None:
    """The official SDK's client and server over HTTP+SSE: without the rewriting the POST would miss
    the route.
    """
    from mcp import ClientSession
    from mcp.client.sse import sse_client

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with trio.fail_after(30):
            async with open_mcp_server("sse") as server:
                config = config_for(server.url, route="dialect: mcp, strip_prefix: true")
                config = replaced(config, config.reverse_proxy.routes[0], "/tools")
                async with open_proxy(config) as proxy:
                    async with (
                        sse_client(proxy.url + "/tools/sse") as streams,
                        ClientSession(*streams) as session,
                    ):
                        await session.initialize()
                        result = await session.call_tool("add", {"a": 19, "b": 23})
                        assert result.structured_content == {"result": 42}


# Origin and Host


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Host", "mcp.test")], 200), ([("Host", "MCP.Test:8443")], 200),
        ([("Host", "other.test:8443")], 200), ([("Host", "other.test")], 403),
        ([("Host", "other.test:80")], 403), ([("Host", "mcp.test.evil.test")], 403),
        ([("Host", "[::1]")], 200), ([("Host", "[::1]:8000")], 200),
        ([("Host", "[::2]:8000")], 403),
        ([("Host", "mcp.test"), ("Origin", "https://App.test")], 200),
        ([("Host", "mcp.test"), ("Origin", "https://app.test:8443")], 403),
        ([("Host", "mcp.test"), ("Origin", "http://app.test")], 403),
        ([("Host", "mcp.test"), ("Origin", "null")], 403),
        ([("Host", "mcp.test"), ("Origin", "")], 403),
        ([("Host", "mcp.test"), ("Origin", "https://app.test"), ("Origin", "https://evil.test")], 403),
        ([("Host", "mcp.test"), ("Origin", "https://evil.test"), ("Origin", "https://app.test")], 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_origin_and_host_are_checked(
    method: str, headers: list[tuple[str, str]], status: int
) -> None:
    """Names in any case; one without a port stands for every port; an absent Origin passes. 403 has
    a JSON-RPC error.
    """
    route = 'dialect: mcp, allowed_hosts: ["mcp.test", "other.test:8443", "[::1]"], allowed_origins: ["https://app.test"]'
    async with serving(whole("200 OK"), route=route) as rig:
        answer = await rig.fetch(
            method, "/mcp", *headers, JSON, body=b"{}" if method == "POST" else None
        )
        assert answer.status == status
        assert rig.upstream.accepted == (status == 200)
        if status == 403:
            said = json.loads(answer.body)
            assert (said["jsonrpc"], said["id"], said["error"]["code"]) == ("2.0", None, -32600)
