"""`httpx.AsyncClient` on this package's connections: what its users send, read, catch and time out."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from support.upstream import Peer, open_upstream

from pools import Pools
from proxy.upstream import Http1Transport
from proxy.upstream.httpx_transport import HttpxTransport

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = HttpxTransport(Pools(), Http1Transport())
    timeout = httpx.Timeout(5, read=0.1)
    async with httpx.AsyncClient(transport=transport, timeout=timeout) as client:
        yield client


async def echo(peer: Peer) -> None:
    while True:
        request = await peer.request()
        body = b"%b %b %b" % (request.method.encode(), request.target, request.body)
        head = b"HTTP/1.1 201 Odd\r\nX-A: b\r\nContent-Length: %d\r\n\r\n" % len(body)
        await peer.send(head if request.method == "HEAD" else head + body)


async def test_requests_and_responses_pass_whole(client: httpx.AsyncClient) -> None:
    """GET, POST, HEAD and an upload of unknown length, over one connection."""

    async def upload() -> AsyncIterator[bytes]:
        yield b"up"
        yield b"load"

    async with open_upstream(echo) as upstream:
        got = await client.get(upstream.url, params={"a": "b"})
        assert (got.status_code, got.reason_phrase, got.http_version) == (201, "Odd", "HTTP/1.1")
        assert (got.text, got.headers["x-a"]) == ("GET /?a=b ", "b")
        assert (await client.post(upstream.url, json=[1])).text == "POST / [1]"
        assert (await client.post(upstream.url, content=upload())).text == "POST / upload"
        assert (await client.head(upstream.url)).content == b""
        assert upstream.accepted == 1


@pytest.mark.parametrize(
    ("answer", "waits", "expected"),
    [
        (b"", True, httpx.ReadTimeout),
        (CHUNKED + b"2\r\nok\r\n", True, httpx.ReadTimeout),
        (b"", False, httpx.ReadError),
        (b"nonsense\r\n\r\n", False, httpx.RemoteProtocolError),
        (CHUNKED + b"x", False, httpx.RemoteProtocolError),
        (CHUNKED, False, httpx.RemoteProtocolError),
    ],
)
async def test_failures_are_httpx_exceptions(
    client: httpx.AsyncClient, answer: bytes, waits: bool, expected: type[Exception]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        if waits:
            await peer.wait_closed()

    async with open_upstream(script) as upstream:
        with pytest.raises(expected):
            await client.get(upstream.url)


async def test_early_failures_are_httpx_exceptions(client: httpx.AsyncClient) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
        with pytest.raises(httpx.LocalProtocolError):
            await client.get(url, headers={"x": "a\nb"})
    with pytest.raises(httpx.UnsupportedProtocol):
        await client.get("ftp://127.0.0.1")
