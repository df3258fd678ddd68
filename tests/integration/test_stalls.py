"""A client that takes nothing is cut within the `send` deadline, whichever writer serves it: plain,
TLS, HTTP/2.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import msgspec
import pytest
import trio
from support.certificates import Certificates
from support.interceptors import until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream

EVENT = b"data: " + b"x" * 16000 + b"\n\n"
SEND_S = 1


async def chunked(peer: Peer) -> None:
    """Endless events."""
    await peer.request()
    await peer.start_stream()
    while True:
        await peer.chunk(EVENT)


async def lengthy(peer: Peer) -> None:
    """A download whose length is told, which the portable writer serves."""
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await peer.send(EVENT)


@asynccontextmanager
async def stalled_client(
    port: int, context: ssl.SSLContext | None
) -> AsyncIterator[trio.abc.Stream]:
    """A client that asks for something, and then never reads."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    stream: trio.abc.Stream = trio.SocketStream(sock)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    if context is not None:
        tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)  # type: ignore[arg-type]
        await tls.do_handshake()
        if tls.selected_alpn_protocol() == "h2":
            request = http2_request()
        stream = tls
    await stream.send_all(request)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def http2_request() -> bytes:
    """A GET, with windows as large as they can be: what stalls is the connection, not the stream."""
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    )
    client.initiate_connection()
    client.update_settings({4: 2**31 - 1})
    client.increment_flow_control_window(2**31 - 1 - 65535)
    client.send_headers(
        1,
        [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "x")],
        end_stream=True,
    )
    return client.data_to_send()


@pytest.mark.parametrize("set_for", ["all", "route"])
@pytest.mark.parametrize(
    ("protocol", "script", "writer"),
    [
        ("plain", chunked, "direct"),
        ("plain", lengthy, "asgi"),
        ("tls", chunked, "asgi"),
        ("tls", lengthy, "asgi"),
        ("h2", chunked, "asgi"),
    ],
)
async def test_a_client_that_takes_nothing_is_cut(
    protocol: str,
    script: Callable[[Peer], object],
    writer: str,
    set_for: str,
    certificates: Certificates,
    log: list[dict[str, object]],
) -> None:
    """It is cut soon after the deadline, the outcome says why, and upstream is told; whether all
    routes have it or one.
    """
    if protocol == "h2" and set_for == "route":
        pytest.skip(
            "a connection of HTTP/2 may carry streams of several routes: the common deadline counts"
        )
    context = {"plain": None, "tls": certificates.client(), "h2": certificates.client("h2")}[
        protocol
    ]
    settings = f"timeouts: {{send: {SEND_S}}}"
    async with open_upstream(script) as upstream:  # type: ignore[arg-type]
        config = config_for(
            upstream.url,
            **{"route": settings} if set_for == "route" else {"proxy": f"  {settings}"},  # type: ignore[arg-type]
        )
        async with open_proxy(config, tls=certificates.files if context else None) as proxy:
            async with stalled_client(proxy.port, context):
                await until(lambda: [line for line in log if line["event"] == "exchange"])
                (line,) = [line for line in log if line["event"] == "exchange"]
                assert line["outcome"] == "send_stalled"
                assert SEND_S * 0.9 < float(str(line["duration"])) < SEND_S + 5
                await until(lambda: upstream.open == 0)
                assert proxy.worker.metrics.writers[writer]._value.get() == 1
                assert set(proxy.in_use().values()) == {0}
                assert proxy.lent() == 0


async def at_once(peer: Peer) -> None:
    """An answer before the request is whole."""
    await peer.request(body=False)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await peer.wait_closed()


async def large_at_once(peer: Peer) -> None:
    """The same, larger than what the sockets hold."""
    await peer.request(body=False)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
    await peer.send(b"x" * 20_000_000)
    await peer.wait_closed()


def http2_upload(*, whole: bool, path: str) -> bytes:
    """A POST whose body comes later, or never, and whose client gives no window for the answer."""
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    )
    client.initiate_connection()
    client.update_settings({4: 0})
    head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
    client.send_headers(
        1, [*head, *([] if whole else [("content-length", "100000")])], end_stream=whole
    )
    return client.data_to_send()


@pytest.mark.parametrize(
    ("request_bytes", "script", "outcome"),
    [
        (http2_upload(whole=False, path="/"), at_once, "send_stalled"),
        (http2_upload(whole=True, path="/"), at_once, "send_stalled"),
        (http2_upload(whole=True, path="/no-route"), at_once, "refused"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
            large_at_once,
            "send_stalled",
        ),
    ],
    ids=["http2", "http2-whole", "http2-refused-whole", "http1"],
)
async def test_a_client_that_takes_nothing_of_the_last_bytes_is_cut(
    request_bytes: bytes,
    script: Callable[[Peer], object],
    outcome: str,
    log: list[dict[str, object]],
) -> None:
    """Also when its request is not whole: the wait for the end of the answer has the deadline, as
    all others.
    """
    settings = f"  timeouts: {{send: {SEND_S}, idle: 60}}"
    async with open_upstream(script) as upstream:  # type: ignore[arg-type]
        config = config_for(upstream.url, proxy=settings)
        route = msgspec.structs.replace(
            config.reverse_proxy.routes[0], path="/" if outcome != "refused" else "/other"
        )
        config = msgspec.structs.replace(
            config, reverse_proxy=msgspec.structs.replace(config.reverse_proxy, routes=[route])
        )
        async with open_proxy(config) as proxy:
            sock = trio.socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", proxy.port))
            await sock.send(request_bytes)
            began = trio.current_time()
            await until(lambda: [line for line in log if line["event"] == "exchange"])
            (line,) = [line for line in log if line["event"] == "exchange"]
            assert line["outcome"] == outcome
            assert SEND_S * 0.9 < trio.current_time() - began < SEND_S + 5
            await until(lambda: not proxy.worker.live)
            sock.close()
