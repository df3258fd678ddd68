"""SIGTERM, in real processes: it ends `weirpool serve` in `drain.timeout`, whatever clients do, and
states it to those who listen.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from support.certificates import Certificates
from support.client import fetch, open_client
from support.http2_client import WIDE, http2_requests, open_http2
from support.interceptors import until
from support.process import Process, running, serve
from support.upstream import (
    Peer,
    Script,
    endless_stream_of,
    open_stream_of,
    open_upstream,
    stream_of,
)

from proxy.server.serve import LAST_WORDS_S

DRAIN_S = 1
SLACK_S = 3
"""For a busy machine; the deadlines that must not count (`send`, handshakes, keep-alive) are all
much longer.
"""
EVENT = b"data: " + b"x" * 16000 + b"\n\n"


@dataclass
class Server:
    process: Process
    port: int


@asynccontextmanager
async def serving(
    directory: Path,
    script: Script,
    certificates: Certificates | None = None,
    *,
    drain: str = "",
    workers: int = 1,
) -> AsyncIterator[Server]:
    async with open_upstream(script) as upstream:
        file = directory / "weirpool.yaml"
        file.write_text(
            f'reverse_proxy: {{upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}], routes: [{{path: /, upstream: up}}]}}\n'
            f"drain: {{{drain or f'timeout: {DRAIN_S}'}}}\n"
        )
        command = serve("--config", str(file), "--workers", str(workers))
        if certificates is not None:
            command += ["--certfile", certificates.files[0], "--keyfile", certificates.files[1]]
        async with running(command) as process:
            (started, *_) = await process.event("started", workers)
            yield Server(process, int(str(started["bind"][0]).rsplit(":", 1)[1]))  # type: ignore[index]


one_event = open_stream_of(b"data: 1\n\n")
"""A stream that sends one event, and then nothing."""


endless = endless_stream_of(EVENT)


# Clients that hold a connection, each in its own way


async def connect(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    stream: trio.abc.Stream = trio.SocketStream(sock)
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)  # type: ignore[arg-type]
        await stream.do_handshake()  # type: ignore[attr-defined]
    return stream


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BEFORE_TLS = [b"", b"\x16\x03\x01\x02\x00\x01"]
"""A handshake that never begins, and half of a hello."""
HTTP1 = [
    b"",
    b"GE",
    b"GET / HTTP/1.1\r\nHost: x",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf",
    GET,
    GET * 20,
]
HTTP2 = [http2_requests(window=window, count=3) for window in (WIDE, 0)]


@pytest.mark.parametrize(("tls", "script"), [(False, one_event), (True, endless)])
async def test_no_client_can_hold_the_process(
    tls: bool, script: Script, certificates: Certificates, tmp_path: Path
) -> None:
    """Clients that send this and then nothing, and read nothing: all at once, each several times."""
    http1 = certificates.client() if tls else None
    sent = [(http1, data) for data in HTTP1]
    if tls:
        sent += [(None, data) for data in BEFORE_TLS]
        sent += [(certificates.client("h2"), data) for data in HTTP2]
    given = certificates if tls else None
    async with serving(tmp_path, script, given) as server, AsyncExitStack() as stack:
        for context, data in sent * 3:
            stream = await connect(server.port, context)
            stack.push_async_callback(trio.aclose_forcefully, stream)
            await stream.send_all(data)
        await trio.sleep(0.5)  # so that those who stall, stall
        began = time.monotonic()
        server.process.signal(signal.SIGTERM)
        assert await server.process.exit_status() == 0
        assert DRAIN_S <= time.monotonic() - began < DRAIN_S + LAST_WORDS_S + SLACK_S
        reports = await server.process.event("buffer_pool_report", 3)
        assert {line["in_use"] for line in reports} == {0}
        assert not [line for line in server.process.lines if "Traceback" in line]
        outcomes = {line["outcome"] for line in await server.process.event("exchange")}
        assert outcomes <= {"draining", "client_disconnected", "send_stalled"}


async def test_a_live_stream_hears_that_it_ends(tmp_path: Path) -> None:
    """It continues for `drain.timeout`; then it gets an error event, and is cut rather than ended."""
    async with serving(tmp_path, one_event) as server:
        client = await open_client(server.port)
        await client.send("GET", "/")
        answer = await client.head()
        began = time.monotonic()
        server.process.signal(signal.SIGTERM)
        await client.rest(answer)
        assert DRAIN_S <= time.monotonic() - began < DRAIN_S + SLACK_S
        assert answer.body.startswith(b"data: 1\n\nevent: error\n")
        assert b'"type":"draining"' in answer.body
        assert not answer.complete
        assert await server.process.exit_status() == 0
        (line,) = await server.process.event("exchange")
        assert line["outcome"] == "draining"
        await client.aclose()


async def test_with_nothing_to_wait_for_it_ends_at_once(tmp_path: Path) -> None:
    """A drain does not wait for idle client connections."""
    async with serving(tmp_path, stream_of(b"data: x\n\n"), drain="timeout: 60") as server:
        client = await open_client(server.port)
        await client.send("GET", "/")
        assert (await client.answer()).complete
        began = time.monotonic()
        server.process.signal(signal.SIGTERM)
        assert await server.process.exit_status() == 0
        assert time.monotonic() - began < SLACK_S
        await client.aclose()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, workers: int) -> None:
    """A second later; the status shows that it was not a drain."""
    async with serving(tmp_path, one_event, drain="timeout: 60", workers=workers) as server:
        client = await open_client(server.port)
        await client.send("GET", "/")
        await client.head()
        server.process.signal(signal.SIGTERM)
        await server.process.event("drain", workers)
        await trio.sleep(1.2)
        began = time.monotonic()
        server.process.signal(signal.SIGTERM)
        assert await server.process.exit_status() == 1
        assert time.monotonic() - began < SLACK_S
        await client.aclose()


async def test_a_signal_that_reaches_supervisor_and_workers_counts_once(tmp_path: Path) -> None:
    """As systemd and container runtimes do it, who signal every process."""
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await go_on.wait()
        await peer.chunk(b"data: 2\n\n")
        await peer.end()

    async with serving(tmp_path, script, drain="timeout: 20", workers=2) as server:
        client = await open_client(server.port)
        await client.send("GET", "/")
        answer = await client.head()
        pids = [int(str(line["pid"])) for line in await server.process.event("started", 2)]
        for pid in [*pids, server.process.process.pid]:
            os.kill(pid, signal.SIGTERM)
        assert len(await server.process.event("drain", 2)) == 2
        await trio.sleep(0.3)
        go_on.set()
        assert (await client.rest(answer)).complete
        assert await server.process.exit_status() == 0
        await client.aclose()


async def test_during_the_delay_everything_works_but_readyz(tmp_path: Path) -> None:
    """/readyz is 503 at once."""
    async with serving(
        tmp_path, stream_of(b"data: x\n\n"), drain="timeout: 5, delay: 1.5"
    ) as server:
        assert (await fetch(server.port, "/readyz")).status == 200
        server.process.signal(signal.SIGTERM)
        await server.process.event("drain")
        assert (await fetch(server.port, "/readyz")).status == 503
        assert (await fetch(server.port, "/healthz")).status == 200
        assert (await fetch(server.port)).body == b"data: x\n\n"
        assert await server.process.exit_status() == 0


@pytest.mark.parametrize("begun", ["", "GET / HTTP/1.1\r\nHo"], ids=["idle", "within a head"])
async def test_a_new_request_on_an_open_connection_is_refused(begun: str, tmp_path: Path) -> None:
    """While another stream continues. It is not the first one on its connection, which is served
    for a second (`test_systemd.py`).
    """

    async def script(peer: Peer) -> None:
        while (await peer.request()).target == b"/short":
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await peer.start_stream()
        await peer.wait_closed()

    async with serving(tmp_path, script, drain="timeout: 2") as server:
        live, late = await open_client(server.port), await open_client(server.port)
        await late.send("GET", "/short")
        assert (await late.answer()).complete
        await live.send("GET", "/")
        await live.head()
        await late.stream.send_all(begun.encode())
        server.process.signal(signal.SIGTERM)
        await server.process.event("drain")
        await trio.sleep(0.2)
        await late.stream.send_all(GET[len(begun) :])
        answer = b""
        with trio.fail_after(5):
            while data := await late.stream.receive_some():
                answer += bytes(data)
        head, _, body = answer.lower().partition(b"\r\n\r\n")
        assert head.startswith(b"http/1.1 503")
        assert b"connection: close" in head
        assert b"retry-after: " in head
        assert b'"draining"' in body
        assert await server.process.exit_status() == 0
        await live.aclose()
        await late.aclose()


async def test_a_new_http2_stream_is_answered(certificates: Certificates, tmp_path: Path) -> None:
    """The connection stays while a stream lives on it."""
    async with serving(tmp_path, one_event, certificates) as server:
        async with open_http2(server, certificates) as client:  # type: ignore[arg-type]
            live = client.streams[await client.start()]
            await until(lambda: live.body == b"data: 1\n\n")
            server.process.signal(signal.SIGTERM)
            await server.process.event("drain")
            await trio.sleep(0.1)
            late = client.streams[await client.start()]
            await until(lambda: late.over)
            assert (late.status, late.ended) == (503, True)
            await until(lambda: live.over)
            assert b'event: error\ndata: {"error":{"type":"draining"' in live.body
        assert await server.process.exit_status() == 0
