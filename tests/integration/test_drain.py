"""SIGTERM, in real processes: it ends `weirpool serve` in `drain.timeout`, whatever clients do, and
states it to those who listen.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from support.certificates import Certificates
from support.client import fetch, open_client
from support.process import Process, running, serve
from support.upstream import Peer, Script, open_upstream, stream_of

from proxy.server.serve import LAST_WORDS_S

DRAIN_S = 1
SLACK_S = 3
"""For a busy machine; the deadlines that must not count (`send`, handshakes, keep-alive) are all
much longer.
"""
EVENT = b"data: " + b"x" * 16000 + b"\n\n"


class Server:
    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port

    async def ends_in_time(self, least_s: float = 0) -> None:
        """Send SIGTERM; the process ends with status 0 and within its time."""
        began = time.monotonic()
        self.process.signal(signal.SIGTERM)
        assert await self.process.exit_status() == 0
        assert least_s <= time.monotonic() - began < DRAIN_S + LAST_WORDS_S + SLACK_S


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


async def one_event(peer: Peer) -> None:
    """A stream that sends one event, and then nothing."""
    await peer.request()
    await peer.start_stream()
    await peer.chunk(b"data: 1\n\n")
    await peer.wait_closed()


async def endless(peer: Peer) -> None:
    await peer.request()
    await peer.start_stream()
    while True:
        await peer.chunk(EVENT)


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


async def says_nothing(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    return await connect(port, None)  # under TLS, a handshake that never begins


async def says_half_a_hello(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await connect(port, None)
    await stream.send_all(b"\x16\x03\x01\x02\x00\x01" if context else b"GE")
    return stream


async def says_half_a_head(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await connect(port, context)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x")
    return stream


async def uploads_half_a_body(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await connect(port, context)
    await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf")
    return stream


async def asks_and_reads_nothing(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await connect(port, context)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return stream


async def asks_for_more_before_it_has_read(
    port: int, context: ssl.SSLContext | None
) -> trio.abc.Stream:
    stream = await connect(port, context)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
    return stream


async def asks_http2_and_reads_nothing(
    port: int, context: ssl.SSLContext | None
) -> trio.abc.Stream:
    return await http2(port, context, window=2**31 - 1)


async def opens_no_http2_window(port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    return await http2(port, context, window=0)


async def http2(port: int, context: ssl.SSLContext | None, window: int) -> trio.abc.Stream:
    stream = await connect(port, context)
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    )
    client.initiate_connection()
    client.update_settings({4: window})
    client.increment_flow_control_window(2**31 - 1 - 65535)
    for number in (1, 3, 5):
        head = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "x")]
        client.send_headers(number, head, end_stream=True)
    await stream.send_all(client.data_to_send())
    return stream


HTTP1 = [
    says_nothing,
    says_half_a_hello,
    says_half_a_head,
    uploads_half_a_body,
    asks_and_reads_nothing,
    asks_for_more_before_it_has_read,
]
HTTP2 = [asks_http2_and_reads_nothing, opens_no_http2_window]
Hold = Callable[[int, "ssl.SSLContext | None"], Awaitable[trio.abc.Stream]]


@pytest.mark.parametrize("protocol", ["plain", "tls"])
@pytest.mark.parametrize("script", [one_event, endless])
async def test_no_client_can_hold_the_process(
    protocol: str, script: Script, certificates: Certificates, tmp_path: Path
) -> None:
    """All of them at once, each several times."""
    contexts: list[tuple[Hold, ssl.SSLContext | None]] = [
        (hold, certificates.client() if protocol == "tls" else None) for hold in HTTP1
    ]
    if protocol == "tls":
        contexts += [(hold, certificates.client("h2")) for hold in HTTP2]
    async with (
        serving(tmp_path, script, certificates if protocol == "tls" else None) as server,
        AsyncExitStack() as stack,
    ):
        for hold, context in contexts * 3:
            stream = await hold(server.port, context)
            stack.push_async_callback(trio.aclose_forcefully, stream)
        await trio.sleep(0.5)  # so that those who stall, stall
        await server.ends_in_time(least_s=DRAIN_S)
        assert await server.process.event("drain_cut")
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
    """A second SIGTERM, a second later, ends the process; the status shows that it was not a drain."""
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
        assert (await fetch(server.port)).body == b"data: x\n\n"
        assert await server.process.exit_status() == 0


@pytest.mark.parametrize("begun", ["", "GET / HTTP/1.1\r\nHo"], ids=["idle", "within a head"])
async def test_a_new_request_on_an_open_connection_is_refused(begun: str, tmp_path: Path) -> None:
    """While another stream continues."""
    async with serving(tmp_path, one_event, drain="timeout: 2") as server:
        live, late = await open_client(server.port), await open_client(server.port)
        await live.send("GET", "/")
        await live.head()
        await late.stream.send_all(begun.encode())
        server.process.signal(signal.SIGTERM)
        await server.process.event("drain")
        await trio.sleep(0.2)
        await late.stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[len(begun) :])
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


async def test_a_new_stream_of_an_http2_connection_is_refused(
    certificates: Certificates, tmp_path: Path
) -> None:
    """The connection stays while a stream lives on it."""
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    )
    client.initiate_connection()
    bodies: dict[int, bytes] = {1: b"", 3: b""}
    heads: dict[int, dict[str, str]] = {}
    over: set[int] = set()

    async def ask(number: int) -> None:
        head = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "x")]
        client.send_headers(number, head, end_stream=True)
        await stream.send_all(client.data_to_send())

    async def read_until(condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():
                for event in client.receive_data(bytes(await stream.receive_some())):
                    number = getattr(event, "stream_id", None)
                    if isinstance(event, h2.events.ResponseReceived):
                        heads[number] = {
                            str(name): str(value) for name, value in event.headers or ()
                        }  # type: ignore[index]
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[number] += event.data or b""  # type: ignore[index]
                    elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                        over.add(number)  # type: ignore[arg-type]
                await stream.send_all(client.data_to_send())

    async with serving(tmp_path, one_event, certificates) as server:
        stream = await connect(server.port, certificates.client("h2"))
        await ask(1)
        await read_until(lambda: bodies[1] == b"data: 1\n\n")
        server.process.signal(signal.SIGTERM)
        await server.process.event("drain")
        await trio.sleep(0.1)
        await ask(3)
        await read_until(lambda: 3 in over)
        assert (heads.get(3), bodies[3]) == (None, b"")
        await read_until(lambda: 1 in over)
        assert b'event: error\ndata: {"error":{"type":"draining"' in bodies[1]
        await trio.aclose_forcefully(stream)
        assert await server.process.exit_status() == 0
