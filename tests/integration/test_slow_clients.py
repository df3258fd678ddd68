"""Clients that read slowly slow the upstream; clients that read nothing are cut after `timeouts.send`,
whichever writer serves them.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio
from support.certificates import Certificates
from support.http2_client import WIDE, http2_requests
from support.interceptors import Log, Rig, Way, on_event, until
from support.proxy import config_for, limit_send_buffers, open_proxy
from support.upstream import Peer, endless_stream_of, open_upstream, stream_of

EVENT = b"data: " + b"x" * 16000 + b"\n\n"
SEND_S = 0.3


@pytest.mark.parametrize("chained", [False, True])
async def test_a_slow_client_slows_the_upstream(
    chained: bool, log: Log, monkeypatch: pytest.MonkeyPatch
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
    async with Way().serve(log, monkeypatch)(script, *given) as rig:
        client, _ = await rig.start()
        before = -1
        while before != sent:
            before = sent
            await trio.sleep(0.2)
        assert 0 < sent < count
        assert rig.proxy.worker.hub is None or len(rig.proxy.worker.hub) == 0
        assert sum(rig.proxy.in_use().values()) <= chained  # at most an event that is not whole
        body = bytearray()
        with trio.fail_after(30):
            while isinstance(piece := await client._next(), h11.Data):
                body += piece.data
        assert isinstance(piece, h11.EndOfMessage)
        assert body == EVENT * count
        assert await rig.outcomes() == ["completed"]


async def test_the_send_deadline_is_for_each_wait(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes a little all the time is not cut, although one write takes longer."""
    send_s = 0.3
    limit_send_buffers(monkeypatch, 4096)
    event = b"data: " + b"x" * 400_000 + b"\n\n"
    async with Way().serve(log, monkeypatch)(
        stream_of(event), on_event(lambda event: event), route=f"timeouts: {{send: {send_s}}}"
    ) as rig:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", rig.proxy.port))
            sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.setblocking(False)
            received = b""
            with trio.fail_after(20):
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    await trio.lowlevel.wait_readable(sock)
                    data = sock.recv(4096)
                    assert data, "the stream was cut"
                    received += data
                    await trio.sleep(0.008)
        assert await rig.outcomes() == ["completed"]
        (line,) = rig.lines("exchange")
        assert line["bytes"] == len(event)
        assert line["duration"] > 2 * send_s  # or this would prove nothing


# Stalled


chunked = endless_stream_of(EVENT)
"""Endless events."""


async def lengthy(peer: Peer) -> None:
    """A download with a length."""
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await peer.send(EVENT)


def at_once(size: int) -> Callable[[Peer], Any]:
    """An answer before the request is complete."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await peer.wait_closed()

    return script


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


HTTP1 = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD1 = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
SETTINGS = f"timeouts: {{send: {SEND_S}, idle: 60}}"


@pytest.mark.parametrize(
    ("protocol", "request_bytes", "script", "where", "outcome"),
    [
        ("plain", HTTP1, chunked, "proxy", "send_stalled"),
        ("plain", HTTP1, chunked, "route", "send_stalled"),
        ("plain", HTTP1, lengthy, "proxy", "send_stalled"),
        ("plain", HTTP1, lengthy, "route", "send_stalled"),
        ("tls", HTTP1, chunked, "route", "send_stalled"),
        ("h2", http2_requests("GET", window=WIDE), chunked, "proxy", "send_stalled"),
        # The wait for the end of the answer has the deadline, also while the request is incomplete.
        ("plain", http2_requests("POST", complete=False), at_once(5), "proxy", "send_stalled"),
        ("plain", http2_requests("POST"), at_once(5), "proxy", "send_stalled"),
        ("plain", http2_requests("POST", "/no-route"), at_once(5), "proxy", "refused"),
        ("plain", UPLOAD1, at_once(20_000_000), "proxy", "send_stalled"),
    ],
)
async def test_a_client_that_takes_nothing_is_cut(
    protocol: str,
    request_bytes: bytes,
    script: Callable[[Peer], Any],
    where: str,
    outcome: str,
    certificates: Certificates,
    log: Log,
) -> None:
    """Soon after the deadline, with its outcome, and the upstream is closed."""
    contexts = {"plain": None, "tls": certificates.client(), "h2": certificates.client("h2")}
    tls = None if protocol == "plain" else certificates.files
    async with open_upstream(script) as upstream:
        config = config_for(upstream.url, **{where: ("  " if where == "proxy" else "") + SETTINGS})
        if outcome == "refused":
            (route,) = config.reverse_proxy.routes
            config.reverse_proxy.routes[:] = [type(route)(path="/other", upstream="up")]
        async with open_proxy(config, tls=tls) as proxy:
            rig = Rig(upstream, proxy, log)
            began = trio.current_time()
            async with stalled_client(proxy.port, request_bytes, contexts[protocol]):
                assert await rig.outcomes() == [outcome]
                assert SEND_S * 0.9 < trio.current_time() - began < SEND_S + 8
                await rig.everything_is_back()
                states = proxy.worker.routes.transports["up"].statistics()
                await until(lambda: upstream.open <= sum(state.idle for state in states))
