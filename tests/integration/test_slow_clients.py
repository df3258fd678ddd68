"""Clients that read slowly slow the upstream; clients that read nothing are cut after `timeouts.send`,
whichever writer serves them.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h11
import pytest
import support.proxy
import trio
from support.certificates import Certificates
from support.interceptors import Log, Way, on_event, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from proxy.server.serve import bind_sockets

EVENT = b"data: " + b"x" * 16000 + b"\n\n"
SEND_S = 1


async def last_line(log: Log) -> dict[str, Any]:
    with trio.fail_after(20):
        while not (lines := [line for line in log if line["event"] == "exchange"]):
            await trio.sleep(0.01)
    return dict(lines[0])


# Slow


@pytest.mark.parametrize("hub", [True, False], ids=["hub", "task"])
@pytest.mark.parametrize("chained", [False, True])
async def test_a_slow_client_slows_the_upstream(
    chained: bool, hub: bool, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it reads nothing, only the kernel's buffers fill; when it reads, everything arrives."""
    count, sent = 1000, 0  # 16 MB

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.start_stream()
        for _ in range(count):
            await peer.chunk(EVENT)
            sent += 1
        await peer.end()

    given = (on_event(lambda event: event),) if chained else ()
    async with Way(hub).serve(log, monkeypatch)(script, *given) as rig:
        client, _ = await rig.start()
        before = -1
        while before != sent:
            before = sent
            await trio.sleep(0.2)
        assert 0 < sent < count
        assert rig.proxy.worker.hub is None or len(rig.proxy.worker.hub) == 0
        assert sum(rig.proxy.in_use().values()) <= chained  # at most an event that is not whole
        body = bytearray()
        with trio.fail_after(20):
            while isinstance(piece := await client._next(), h11.Data):
                body += piece.data
        assert isinstance(piece, h11.EndOfMessage)
        assert body == EVENT * count
        assert await rig.outcomes() == ["completed"]


async def test_the_send_deadline_limits_each_wait_not_the_whole(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """A client that takes a little all the time is not cut, although the whole takes longer."""
    send_s = 0.3

    def bind_small(binds: Sequence[str], send_timeout_s: float | None) -> list[socket.socket]:
        sockets = bind_sockets(binds, send_timeout_s)
        for sock in sockets:  # accepted sockets inherit it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sockets

    monkeypatch.setattr(support.proxy, "bind_sockets", bind_small)
    event = b"data: " + b"x" * 1000 + b"\n\n"
    async with (
        open_upstream(stream_of(*[event] * 400)) as upstream,
        open_proxy(config_for(upstream.url, route=f"timeouts: {{send: {send_s}}}")) as proxy,
    ):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", proxy.port))
            sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.setblocking(False)
            received = b""
            with trio.fail_after(10):
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    await trio.lowlevel.wait_readable(sock)
                    data = sock.recv(4096)
                    assert data, "the stream was cut"
                    received += data
                    await trio.sleep(0.008)
        line = await last_line(log)
        assert (line["outcome"], line["bytes"]) == ("completed", 400 * len(event))
        assert line["duration"] > 2 * send_s  # or this would prove nothing


# Stalled


async def chunked(peer: Peer) -> None:
    """Endless events."""
    await peer.request()
    await peer.start_stream()
    while True:
        await peer.chunk(EVENT)


async def lengthy(peer: Peer) -> None:
    """A download with a length, which the portable writer serves."""
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await peer.send(EVENT)


async def at_once(peer: Peer) -> None:
    """An answer before the request is complete."""
    await peer.request(body=False)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await peer.wait_closed()


async def large_at_once(peer: Peer) -> None:
    """The same, larger than the sockets' buffers."""
    await peer.request(body=False)
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n")
    await peer.send(b"x" * 20_000_000)
    await peer.wait_closed()


@asynccontextmanager
async def stalled_client(
    port: int, request: bytes, context: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """A client that sends a request and never reads."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    stream: trio.abc.Stream = trio.SocketStream(sock)
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)  # type: ignore[arg-type]
        await stream.do_handshake()
    await stream.send_all(request)
    try:
        yield
    finally:
        await trio.aclose_forcefully(stream)


def http2(method: str, path: str = "/", *, window: int, complete: bool = True) -> bytes:
    """A request over HTTP/2 with this window for its response; its body may never come."""
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    )
    client.initiate_connection()
    client.update_settings({4: window})
    if window:
        client.increment_flow_control_window(window - 65535)
    head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "x")]
    length = [] if complete else [("content-length", "100000")]
    client.send_headers(1, [*head, *length], end_stream=complete)
    return client.data_to_send()


HTTP1 = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD1 = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
WIDE = 2**31 - 1  # the connection stalls, not the stream


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
    script: Callable[[Peer], Any],
    writer: str,
    set_for: str,
    certificates: Certificates,
    log: Log,
) -> None:
    """Soon after the deadline, with its outcome, and the upstream is closed."""
    if protocol == "h2" and set_for == "route":
        pytest.skip("streams of several routes share an HTTP/2 connection: the common value counts")
    context = {"plain": None, "tls": certificates.client(), "h2": certificates.client("h2")}
    request = http2("GET", window=WIDE) if protocol == "h2" else HTTP1
    settings = f"timeouts: {{send: {SEND_S}}}"
    where = {"route": settings} if set_for == "route" else {"proxy": f"  {settings}"}
    tls = None if protocol == "plain" else certificates.files
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **where), tls=tls) as proxy,
        stalled_client(proxy.port, request, context[protocol]),
    ):
        line = await last_line(log)
        assert line["outcome"] == "send_stalled"
        assert SEND_S * 0.9 < line["duration"] < SEND_S + 5
        await until(lambda: upstream.open == 0)
        assert proxy.worker.metrics.writers[writer]._value.get() == 1
        assert set(proxy.in_use().values()) == {0}
        assert proxy.lent() == 0


@pytest.mark.parametrize(
    ("request_bytes", "script", "outcome"),
    [
        (http2("POST", window=0, complete=False), at_once, "send_stalled"),
        (http2("POST", window=0), at_once, "send_stalled"),
        (http2("POST", "/no-route", window=0), at_once, "refused"),
        (UPLOAD1, large_at_once, "send_stalled"),
    ],
    ids=["http2", "http2-complete", "http2-refused", "http1"],
)
async def test_a_client_that_takes_nothing_of_the_end_is_cut(
    request_bytes: bytes, script: Callable[[Peer], Any], outcome: str, log: Log
) -> None:
    """The wait for the end of the answer has the deadline, also while the request is incomplete."""
    async with open_upstream(script) as upstream:
        config = config_for(upstream.url, proxy=f"  timeouts: {{send: {SEND_S}, idle: 60}}")
        if outcome == "refused":
            config.reverse_proxy.routes[:] = [
                type(route)(path="/other", upstream="up") for route in config.reverse_proxy.routes
            ]
        async with open_proxy(config) as proxy, stalled_client(proxy.port, request_bytes):
            began = trio.current_time()
            assert (await last_line(log))["outcome"] == outcome
            assert SEND_S * 0.9 < trio.current_time() - began < SEND_S + 5
            await until(lambda: not proxy.worker.live)
