"""`Http1Transport` against scripted servers on loopback sockets: bytes, framing, reuse, bounds,
deadlines, TLS, cancellation.
"""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from proxy.errors import (
    ConnectFailed,
    ConnectTimedOut,
    DnsFailed,
    PoolFull,
    PoolTimedOut,
    ProtocolFailure,
    ReadFailed,
    ReadTimedOut,
    Sent,
    TlsFailed,
    Truncated,
    UpstreamFailure,
    WriteTimedOut,
)
from proxy.http.head import BadRequest
from proxy.upstream import (
    CallTimeouts,
    Endpoint,
    Http1Transport,
    PoolState,
    Resolver,
    UpstreamBody,
    UpstreamCall,
    UpstreamResponse,
)
from proxy.upstream import connections as connections_module

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
MUCH = 8 * 1024 * 1024  # more than two socket buffers on loopback take
NAME = "upstream.test"


# The scripted server


class Peer:
    """One connection, from the server's side."""

    def __init__(self, stream: Any, number: int) -> None:
        self.stream = stream
        self.number = number
        """0 for the server's first connection."""
        self._buffer = bytearray()

    async def head(self) -> bytes:
        """The next request head, byte for byte. Raises `EOFError` when there is none."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        end = self._buffer.index(b"\r\n\r\n") + 4
        head = bytes(self._buffer[:end])
        del self._buffer[:end]
        return head

    async def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _more(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError
        self._buffer += data

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def gone(self) -> None:
        """Return when the client has closed or reset the connection, whatever it sends before."""
        with suppress(EOFError, trio.BrokenResourceError):
            while True:
                await self._more()

    async def end(self) -> None:
        """Close, over TLS with close_notify."""
        await self.stream.aclose()

    async def cut(self) -> None:
        """Close the socket, over TLS without close_notify."""
        await trio.aclose_forcefully(self.stream)

    def reset(self) -> None:
        sock = getattr(self.stream, "transport_stream", self.stream).socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        sock.close()


Script = Callable[[Peer], Awaitable[None]]


class Server:
    """A script for each connection, on a loopback port. After its script, a connection stays until
    the client closes it.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None) -> None:
        self._script = script
        self._tls = tls
        self.port = 0
        self.accepted = 0
        self.open = 0

    @property
    def url(self) -> str:
        scheme, host = ("http", "127.0.0.1") if self._tls is None else ("https", NAME)
        return f"{scheme}://{host}:{self.port}"

    async def run(self, task_status: trio.TaskStatus[Server]) -> None:
        async with trio.open_nursery() as nursery:
            serve = functools.partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            (listener,) = await nursery.start(serve)
            self.port = listener.socket.getsockname()[1]
            task_status.started(self)

    async def _serve(self, stream: Any) -> None:
        number, self.accepted, self.open = self.accepted, self.accepted + 1, self.open + 1
        try:
            if self._tls is not None:  # `aclose` then sends close_notify
                stream = trio.SSLStream(stream, self._tls, server_side=True)
            peer = Peer(stream, number)
            with suppress(EOFError, trio.BrokenResourceError):
                await self._script(peer)
            with suppress(trio.ClosedResourceError):
                await peer.gone()
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)

    async def wait_all_closed(self) -> None:
        """Return when every connection that was accepted is closed at the client's side."""
        while self.open:
            await trio.sleep(0.001)


def answering(*answers: bytes, then: str = "wait") -> Script:
    """On each connection, one answer after the other to one request each; then wait for the client,
    or end, or cut.
    """

    async def script(peer: Peer) -> None:
        for answer in answers:
            await peer.head()
            await peer.send(answer)
        if then == "end":
            await peer.end()
        elif then == "cut":
            await peer.cut()

    return script


async def answer_forever(peer: Peer) -> None:
    while True:
        await peer.head()
        await peer.send(OK)


# The client's side


class Pieces:
    """A request body. `ended`: its iteration has ended, also by cancellation."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                yield piece
        finally:
            self.ended = True


def upload(body: AsyncIterator[bytes] | bytes) -> dict[str, Any]:
    """The arguments of `ask` for a body of unknown length."""
    source = body if isinstance(body, bytes) else Pieces(body)
    return {"method": "POST", "headers": [(b"transfer-encoding", b"chunked")], "body": source}


class Reader:
    """The body of a response, piece by piece."""

    def __init__(self, body: UpstreamBody) -> None:
        self._body = body

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        buffer = bytearray(65536)
        while not self._body.complete:
            await self._body.wait_readable()
            span = self._body.receive(buffer, 0)
            if span is not None and span[0] < span[1]:
                return bytes(buffer[span[0] : span[1]])
        raise StopAsyncIteration


async def read(response: UpstreamResponse) -> bytes:
    try:
        return b"".join([piece async for piece in Reader(response.body)])
    finally:
        response.body.close()


class Web:
    """Servers, and the transport under test."""

    def __init__(self, nursery: trio.Nursery, resolver: Resolver, authority: trustme.CA) -> None:
        self.nursery = nursery
        self.resolver = resolver
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(NAME).configure_cert(self.tls)

    async def serve(self, script: Script, secure: bool = False) -> Server:
        server: Server = await self.nursery.start(Server(script, self.tls if secure else None).run)
        return server

    async def ask(
        self,
        server: Server | str,
        method: str = "GET",
        target: bytes = b"/",
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: Any = b"",
        **fields: Any,
    ) -> UpstreamResponse:
        """Send a request with a Host header and these."""
        endpoint = Endpoint(server if isinstance(server, str) else server.url)
        call = UpstreamCall(method, target, [(b"host", NAME.encode()), *headers], body, **fields)
        return await self.transport.call(call, endpoint)

    async def fetch(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        response = await self.ask(*args, **kwargs)
        return response.status, await read(response)

    def connect(self, **settings: Any) -> None:
        """Use a new transport."""
        self.transport = Http1Transport(self.resolver, **settings)

    @property
    def state(self) -> PoolState:
        (only,) = self.transport.statistics()
        return only

    @property
    def counts(self) -> tuple[int, int, int]:
        """Connections on loan, idle connections, and requests that wait for one."""
        return self.state.lent, self.state.idle, self.state.waiting


class Names(trio.abc.HostnameResolver):
    """Names without a network: `*.test` is loopback, `hang.test` never resolves, anything else does
    not exist.
    """

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name == "hang.test":
            await trio.sleep_forever()
        if not name.endswith(".test"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", int(port)))
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.fixture
async def web(nursery: trio.Nursery, authority: trustme.CA, ca_file: str) -> AsyncIterator[Web]:
    """No test hangs, and none asks a name server."""

    async def watch() -> None:
        await trio.sleep(10)
        raise trio.TooSlowError

    trio.socket.set_custom_hostname_resolver(Names())
    resolver = Resolver()
    await nursery.start(resolver.run)
    nursery.start_soon(watch)
    web = Web(nursery, resolver, authority)
    web.connect(ca_file=ca_file)
    yield web
    await web.transport.aclose()


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port that answers no connection attempt: its backlog is full and it accepts nothing."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    yield listener.getsockname()[1]
    for item in (*fillers, listener):
        item.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: bound, so that it stays taken, and not listening."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    yield sock.getsockname()[1]
    sock.close()


# What is sent


async def test_the_request_head_is_sent_as_given(web: Web) -> None:
    """Order, duplicates, case and target byte for byte, and no other header."""
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.send(OK)

    server = await web.serve(script)
    headers = [(b"X-B", b"1"), (b"accept", b"a"), (b"x-b", b"2"), (b"X-A", b""), (b"Accept", b"b")]
    target = b"/a/../b//%7Ec/%zz/;x?q=%20+&&=[]{}|^`<>\\\"?#'"
    assert await web.fetch(server, "OPTIONS", target, headers) == (200, b"ok")
    lines = b"".join(b"%b: %b\r\n" % field for field in [(b"host", NAME.encode()), *headers])
    assert heads == [b"OPTIONS " + target + b" HTTP/1.1\r\n" + lines + b"\r\n"]


@pytest.mark.parametrize(
    "bad",
    [
        {"headers": [(b"x", b"a\r\nb: c")]},
        {"target": b"/a b"},
        {"target": b"/\r\n"},
        {"method": "POST", "headers": [(b"content-length", b"2")], "body": b"x"},
    ],
)
async def test_a_request_that_cannot_be_written_costs_no_connection(
    web: Web, bad: dict[str, Any]
) -> None:
    server = await web.serve(answer_forever)
    with pytest.raises(BadRequest):
        await web.ask(server, **bad)
    assert server.accepted == 0
    assert web.counts == (0, 0, 0)


@pytest.mark.parametrize("size", [5, 16384, 16385, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_in_memory_is_sent_whole(web: Web, size: int, chunked: bool) -> None:
    """Small ones leave with the head, large ones beside the wait for the response."""
    length = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % size)
    wire = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size) if chunked else b"x" * size

    async def script(peer: Peer) -> None:
        await peer.head()
        assert await peer.exactly(len(wire)) == wire
        await peer.send(OK)
        await answer_forever(peer)

    server = await web.serve(script)
    answer = await web.fetch(server, "PUT", headers=[length], body=b"x" * size)
    assert answer == (200, b"ok")
    assert await web.fetch(server) == (200, b"ok")
    assert server.accepted == 1


async def test_the_upload_is_streamed(web: Web) -> None:
    """Each piece arrives, as a chunk, before the next one is asked for."""
    arrived = [trio.Event() for _ in range(3)]

    async def script(peer: Peer) -> None:
        await peer.head()
        for number, event in enumerate(arrived):
            assert await peer.exactly(9) == b"4\r\np%03d\r\n" % number
            event.set()
        assert await peer.exactly(5) == b"0\r\n\r\n"
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        for number, event in enumerate(arrived):
            yield b"p%03d" % number
            await event.wait()

    server = await web.serve(script)
    assert await web.fetch(server, **upload(body())) == (200, b"ok")


async def test_an_early_response_ends_the_upload(web: Web) -> None:
    """Without a nursery for it; the connection is not reused."""
    server = await web.serve(answering(b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n"))

    async def body() -> AsyncIterator[bytes]:
        yield b"piece"
        await trio.sleep_forever()

    arguments = upload(body())
    assert await web.fetch(server, **arguments) == (413, b"")
    assert arguments["body"].ended
    await server.wait_all_closed()
    assert web.counts == (0, 0, 0)


async def test_an_upload_continues_in_the_given_nursery(web: Web) -> None:
    """Full duplex: each piece is sent after the echo of the previous one; then the connection is
    kept.
    """

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        while (size := int(await peer.exactly(3), 16)) > 0:
            await peer.send(b"%x\r\n" % size + await peer.exactly(size + 2))
        await peer.exactly(2)
        await peer.send(b"0\r\n\r\n")
        await answer_forever(peer)

    to_body, pieces = trio.open_memory_channel[bytes](0)
    server = await web.serve(script)
    response = await web.ask(server, nursery=web.nursery, **upload(pieces))
    echo = Reader(response.body)
    for piece in (b"one", b"two", b"three"):
        await to_body.send(piece)
        assert await anext(echo) == piece
    await to_body.aclose()
    assert [piece async for piece in echo] == []
    response.body.close()
    assert await web.fetch(server) == (200, b"ok")
    assert (server.accepted, web.state.idle) == (1, 1)


@pytest.mark.parametrize("answer", [OK, b"nonsense\r\n\r\n"])
async def test_the_end_of_the_response_ends_an_upload_in_the_given_nursery(
    web: Web, answer: bytes
) -> None:
    """Closed or failed: the nursery itself is not cancelled, and the connection is not kept."""
    server = await web.serve(answering(answer))
    _kept_open, pieces = trio.open_memory_channel[bytes](0)
    arguments = upload(pieces)
    async with trio.open_nursery() as uploads:  # leaving it waits for the upload
        with nullcontext() if answer == OK else pytest.raises(ProtocolFailure):
            response = await web.ask(server, nursery=uploads, **arguments)
            assert await read(response) == b"ok"
    assert arguments["body"].ended
    assert not uploads.cancel_scope.cancelled_caught
    await server.wait_all_closed()
    assert web.counts == (0, 0, 0)


@pytest.mark.parametrize("where", ["head", "upload", "given nursery"])
async def test_a_server_that_reads_nothing_times_the_write_out(web: Web, where: str) -> None:
    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    server = await web.serve(script)
    arguments = upload(b"x" * MUCH)
    if where == "head":
        arguments = {"headers": [(b"x", b"x" * MUCH)]}
    elif where == "given nursery":
        arguments["nursery"] = web.nursery
    with pytest.raises(WriteTimedOut) as caught:
        await web.ask(server, timeouts=CallTimeouts(write_s=0.05), **arguments)
    assert caught.value.sent is (Sent.HEAD if where == "head" else Sent.BODY)
    assert web.counts == (0, 0, 0)


async def test_a_stalled_upload_fails_the_reader_of_the_response(web: Web) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        await trio.sleep_forever()

    server = await web.serve(script)
    timeouts = CallTimeouts(write_s=0.05)
    arguments = upload(b"x" * MUCH)
    response = await web.ask(server, nursery=web.nursery, timeouts=timeouts, **arguments)
    with pytest.raises(WriteTimedOut):
        await read(response)
    assert web.counts == (0, 0, 0)


async def test_a_response_counts_although_the_upload_broke(web: Web) -> None:
    """A server may refuse a body and stop reading."""

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.stream.socket.shutdown(socket.SHUT_RD)
        await peer.send(b"HTTP/1.1 413 x\r\nContent-Length: 4\r\n\r\nmuch")

    server = await web.serve(script)
    assert await web.fetch(server, **upload(b"x" * MUCH)) == (413, b"much")
    assert web.state.idle == 0


async def test_an_exception_of_the_request_body_returns_the_connection(web: Web) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"piece"
        raise LookupError("not found")

    server = await web.serve(lambda peer: peer.gone())
    with pytest.raises(LookupError):
        await web.ask(server, **upload(body()))
    await server.wait_all_closed()
    assert web.counts == (0, 0, 0)


# What is read


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 205 x\r\ncontent-length: 0\r\n\r\n", b""),
        (CHUNKED + b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nx: y\r\n\r\n", b"hello world"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: x\r\n\r\n" + OK, b"ok"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_framed_body_ends_by_itself_and_the_connection_is_reused(
    web: Web, answer: bytes, body: bytes, bytewise: bool
) -> None:
    """Informational responses without `on_interim` are skipped."""

    async def script(peer: Peer) -> None:
        peer.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            await peer.head()
            for at in range(len(answer) if bytewise else 1):
                await peer.send(answer[at : at + 1] if bytewise else answer)
                await trio.sleep(0.0003)

    server = await web.serve(script)
    for _ in range(2):
        assert (await web.fetch(server))[1] == body
    assert (server.accepted, web.state.reused, web.state.idle) == (1, 1, 1)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_body_without_framing_ends_with_the_connection(web: Web, secure: bool) -> None:
    answer = answering(UNTIL_CLOSE + b"hello", then="end")
    server = await web.serve(answer, secure)
    assert await web.fetch(server) == (200, b"hello")
    assert web.state.idle == 0


async def test_responses_without_a_body_are_complete_at_once(web: Web) -> None:
    """To HEAD, 204 and 304, whatever their heads announce (RFC 9112, section 6.3)."""
    answers = [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", CHUNKED),
        ("HEAD", UNTIL_CLOSE),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ]
    server = await web.serve(answering(*(answer for _, answer in answers), OK))
    for method, _ in answers:
        response = await web.ask(server, method)
        assert (response.body.complete, await read(response)) == (True, b"")
    assert await web.fetch(server) == (200, b"ok")
    assert server.accepted == 1


async def test_a_response_head_is_returned_as_it_was_sent(web: Web) -> None:
    headers = [
        (b"Set-Cookie", b"a"),
        (b"X", b"\xff"),
        (b"set-cookie", b"b"),
        (b"Content-Length", b"0"),
    ]
    lines = b"".join(b"%b: %b\r\n" % field for field in headers)
    server = await web.serve(answering(b"HTTP/1.1 299 Odd \xfc\r\n" + lines + b"\r\n"))
    response = await web.ask(server)
    await read(response)
    assert (response.status, response.reason, response.version) == (299, b"Odd \xfc", b"1.1")
    assert list(response.headers) == headers


async def test_informational_responses_are_passed_on_in_order(web: Web) -> None:
    """In one read or in several, each before the response."""
    seen: list[tuple[UpstreamCall, int, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 103 x\r\nLink: y\r\n\r\n")
        await come.wait()
        await peer.send(b"HTTP/1.1 102 x\r\n\r\n" + OK)

    async def on_interim(call: UpstreamCall, status: int, headers: Any) -> None:
        seen.append((call, status, tuple(headers)))
        if len(seen) == 2:
            come.set()

    come = trio.Event()
    server = await web.serve(script)
    assert await web.fetch(server, on_interim=on_interim) == (200, b"ok")
    assert [item[1:] for item in seen] == [(100, ()), (103, ((b"Link", b"y"),)), (102, ())]


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"", ReadFailed),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n", ReadFailed),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ReadFailed),
        (None, ReadFailed),
        (b"HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\n", ProtocolFailure),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", ProtocolFailure),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ProtocolFailure),
    ],
)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("uploads", [False, True])
async def test_a_bad_or_missing_head_is_a_failure_of_its_kind(
    web: Web, answer: bytes | None, failure: type[UpstreamFailure], secure: bool, uploads: bool
) -> None:
    """None: a reset. The whole request was sent, on a new connection, which is closed."""

    async def script(peer: Peer) -> None:
        if b"chunked" in await peer.head():
            await peer.exactly(len(b"1\r\nx\r\n0\r\n\r\n"))  # a close with unread bytes is a reset
        if answer is None:
            peer.reset()
        else:
            await peer.send(answer)
            await peer.end()

    server = await web.serve(script, secure)
    with pytest.raises(failure) as caught:
        await web.ask(server, **(upload(b"x") if uploads else {}))
    assert (type(caught.value), caught.value.reused) == (failure, False)
    assert caught.value.sent is Sent.ALL
    await server.wait_all_closed()
    assert web.counts == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "then", "failure"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "end", Truncated),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "cut", Truncated),
        (CHUNKED + b"2\r\nok\r\n", "end", Truncated),
        (CHUNKED + b"3\r\nok", "cut", Truncated),
        (CHUNKED + b"2\r\nok\r\n0x2\r\nno\r\n", "wait", ProtocolFailure),
    ],
)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_body_that_breaks_is_a_failure_after_what_arrived(
    web: Web, answer: bytes, then: str, failure: type[UpstreamFailure], secure: bool
) -> None:
    """A truncated or malformed body is not complete, and its connection is not kept."""
    read_ok = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer)
        await read_ok.wait()
        if then == "cut":
            await peer.cut()
        elif then == "end":
            await peer.end()

    server = await web.serve(script, secure)
    response = await web.ask(server)
    body = Reader(response.body)
    assert await anext(body) == b"ok"
    read_ok.set()
    with pytest.raises(failure) as caught:
        await anext(body)
    assert type(caught.value) is failure
    response.body.close()
    assert web.counts == (0, 0, 0)


async def test_a_reset_is_not_the_end_of_a_body(web: Web) -> None:
    read_ok = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(UNTIL_CLOSE + b"ok")
        await read_ok.wait()
        peer.reset()

    server = await web.serve(script)
    response = await web.ask(server)
    body = Reader(response.body)
    assert await anext(body) == b"ok"
    read_ok.set()
    with pytest.raises(ReadFailed):
        await anext(body)
    response.body.close()


async def test_a_body_until_close_is_truncated_without_close_notify(web: Web) -> None:
    """RFC 9112, section 9.8."""
    server = await web.serve(answering(UNTIL_CLOSE + b"hello", then="cut"), True)
    body = Reader((response := await web.ask(server)).body)
    assert await anext(body) == b"hello"
    with pytest.raises(Truncated, match="close_notify"):
        await anext(body)
    response.body.close()


async def test_receive_frames_after_carried_bytes(web: Web) -> None:
    """Into the caller's buffer at an offset, early bytes of the head's read first, never blocking."""
    more = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        await more.wait()
        await peer.send(b"2\r\nde\r\n1\r\nf\r\n")

    server = await web.serve(script)
    body = (await web.ask(server)).body
    buffer, got = bytearray(b"carried" + bytes(57)), b""
    for whole in (b"abc", b"abcdef"):
        while got != whole:
            await body.wait_readable()
            if (span := body.receive(buffer, 7)) is not None:
                got += buffer[span[0] : span[1]]
        assert whole != b"abc" or body.receive(buffer, 7) is None
        more.set()
    assert buffer[:7] == b"carried"
    body.close()
    body.close()
    assert web.counts == (0, 0, 0)


async def test_early_bytes_are_received_in_pieces_that_fit(web: Web) -> None:
    """`pending` and `at_hand` report them."""
    data = bytes(range(250)) * 4
    server = await web.serve(answering(b"HTTP/1.1 200 x\r\nContent-Length: 1000\r\n\r\n" + data))
    body = (await web.ask(server)).body
    got, buffer, was_pending = b"", bytearray(64), body.pending == body.at_hand
    while not body.complete:
        await body.wait_readable()
        if (span := body.receive(buffer, 14)) is not None:
            got += buffer[span[0] : span[1]]
    assert (got, was_pending, body.pending) == (data, True, False)
    body.close()
    assert web.state.idle == 1


# Deadlines and connecting


async def test_failures_before_a_connection_name_their_cause(web: Web, closed_port: int) -> None:
    for url, failure, text in (
        (f"http://127.0.0.1:{closed_port}", ConnectFailed, "Connection refused"),
        ("http://nowhere.invalid", DnsFailed, "http://nowhere.invalid:80: cannot resolve the name"),
    ):
        with pytest.raises(failure, match=text) as caught:
            await web.ask(url)
        assert caught.value.sent is Sent.NOTHING
    assert [pool.lent for pool in web.transport.statistics()] == [0, 0]


async def test_the_connect_timeout_covers_look_up_tcp_and_tls(web: Web, full_port: int) -> None:
    mute = await web.serve(lambda peer: peer.gone())
    for url in (
        "http://hang.test",
        f"http://127.0.0.1:{full_port}",
        f"https://{NAME}:{mute.port}",
    ):
        with pytest.raises(ConnectTimedOut, match=r"no connection within 0\.3 s"):
            await web.ask(url, timeouts=CallTimeouts(connect_s=0.3))
    await mute.wait_all_closed()
    assert [pool.lent for pool in web.transport.statistics()] == [0, 0, 0]


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: "])
@pytest.mark.parametrize("uploads", ["no upload", "own nursery", "given nursery"])
async def test_a_missing_head_times_out(web: Web, beginning: bytes, uploads: str) -> None:
    """Half a head does not stop the clock."""
    server = await web.serve(answering(beginning))
    arguments = {} if uploads == "no upload" else upload(b"x")
    if uploads == "given nursery":
        arguments["nursery"] = web.nursery
    with pytest.raises(ReadTimedOut, match=r"no response within 0\.05 s"):
        await web.ask(server, timeouts=CallTimeouts(first_byte_s=0.05), **arguments)
    await server.wait_all_closed()
    assert web.counts == (0, 0, 0)


@pytest.mark.parametrize("given", [False, True], ids=["own nursery", "given nursery"])
async def test_the_deadline_for_the_head_starts_when_the_request_has_ended(
    web: Web, given: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await trio.sleep(0.3)
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await trio.sleep_forever()

    server = await web.serve(script)
    arguments = {**upload(body()), **({"nursery": web.nursery} if given else {})}
    timeouts = CallTimeouts(first_byte_s=0.03)
    assert await web.fetch(server, timeouts=timeouts, **arguments) == (200, b"ok")


# Reuse


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", OK + b"surplus"),
        ("GET", CHUNKED + b"2\r\nok\r\n0\r\n\r\nsurplus"),
        ("GET", b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("HEAD", OK),  # a HEAD's response with a body could become the next request's
    ],
)
async def test_a_connection_that_must_not_be_reused_is_closed(
    web: Web, method: str, answer: bytes
) -> None:
    server = await web.serve(answering(answer))
    for number in (1, 2):
        assert await web.fetch(server, method) == (200, b"" if method == "HEAD" else b"ok")
        await server.wait_all_closed()
        assert server.accepted == number
    assert (web.state.idle, web.state.reused) == (0, 0)


async def test_a_response_closed_early_closes_its_connection(web: Web) -> None:
    """Unread, and half read."""
    server = await web.serve(answering(CHUNKED + b"2\r\nok\r\n"))
    for reads in (0, 1):
        response = await web.ask(server)
        for _ in range(reads):
            assert await anext(Reader(response.body)) == b"ok"
        response.body.close()
        await server.wait_all_closed()
    assert (web.state.lent, web.state.idle, server.accepted) == (0, 0, 2)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("how", ["end", "cut", "send"])
async def test_a_kept_connection_that_the_server_ended_is_replaced(
    web: Web, secure: bool, how: str
) -> None:
    """Closed, cut, or with unrequested bytes: noticed before the next request."""
    act = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await act.wait()
        if peer.number:
            return
        if how == "end":
            await peer.end()
        elif how == "cut":
            await peer.cut()
        else:
            await peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    server = await web.serve(script, secure)
    response = await web.ask(server)
    kept = response.body.connection
    assert await read(response) == b"ok"
    assert web.state.idle == 1
    while kept.is_alive():  # over TLS, session tickets may come first
        act.set()
        await trio.lowlevel.wait_readable(kept.sock)
        if how == "send" and secure:
            break  # `is_alive` would take the byte
    assert await web.fetch(server) == (200, b"ok")
    assert (server.accepted, web.state.reused) == (2, 0)


async def test_a_request_of_which_nothing_was_written_is_sent_once_more(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection was reset between the check and the write: the request goes over a new
    connection, since another kept one may be as dead.
    """

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        if peer.number < 2:
            peer.reset()

    server = await web.serve(script)
    responses = [await web.ask(server) for _ in range(2)]
    for response in responses:
        await read(response)
        while response.body.connection.is_alive():
            await trio.sleep(0.001)
    assert web.state.idle == 2
    monkeypatch.setattr(connections_module.Connection, "is_alive", lambda self: True)
    assert await web.fetch(server) == (200, b"ok")
    assert (server.accepted, web.state.reused, web.state.lent) == (3, 1, 0)


async def test_a_request_that_was_written_is_not_sent_again(web: Web) -> None:
    """The server may have carried it out; the failure states it."""
    heads = 0

    async def script(peer: Peer) -> None:
        nonlocal heads
        for _ in range(2):
            await peer.head()
            heads += 1
            await peer.send(OK) if heads == 1 else peer.reset()

    server = await web.serve(script)
    assert await web.fetch(server) == (200, b"ok")
    with pytest.raises(ReadFailed) as caught:
        await web.fetch(server)
    assert (caught.value.sent, caught.value.reused) == (Sent.ALL, True)
    assert (server.accepted, heads, web.state.lent) == (1, 2, 0)


async def test_idle_connections_expire(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await web.serve(answer_forever)
    await web.fetch(server)
    monkeypatch.setattr(connections_module, "KEEPALIVE_EXPIRY_S", 0.0)
    real_sleep = trio.sleep
    monkeypatch.setattr(trio, "sleep", lambda _: real_sleep(0.001))
    async with trio.open_nursery() as maintaining:
        maintaining.start_soon(web.transport.maintain)
        while web.state.idle:
            await trio.lowlevel.checkpoint()
        maintaining.cancel_scope.cancel()
    await server.wait_all_closed()


async def test_aclose_closes_idle_connections_and_leaves_those_on_loan(web: Web) -> None:
    finish = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number:
            await peer.send(CHUNKED)
            await finish.wait()
            await peer.send(b"2\r\nok\r\n0\r\n\r\n")
        else:
            await peer.send(OK)

    server = await web.serve(script)
    first, second = [await web.ask(server) for _ in range(2)]
    await read(first)
    await web.transport.aclose()
    assert web.counts == (1, 0, 0)
    while server.open > 1:
        await trio.sleep(0.001)
    finish.set()
    assert await read(second) == b"ok"


# Bounds


async def test_all_origins_share_one_bound(web: Web) -> None:
    """The oldest idle connection of any origin makes room."""
    web.connect(max_connections=2)
    one, two, three = [await web.serve(answer_forever) for _ in range(3)]
    held = [await web.ask(server) for server in (one, two)]
    with pytest.raises(PoolTimedOut):
        await web.ask(three, timeouts=CallTimeouts(connect_s=0.05))
    for response in held:
        await read(response)
    assert await web.fetch(three) == (200, b"ok")
    states = {item.origin: (item.lent, item.idle) for item in web.transport.statistics()}
    assert states == {one.url: (0, 0), two.url: (0, 1), three.url: (0, 1)}


async def test_the_queue_for_a_connection_is_bounded(web: Web) -> None:
    """64 may wait for the only connection; the next request is refused at once."""
    web.connect(max_connections=1)
    server = await web.serve(answer_forever)
    held = await web.ask(server)
    async with trio.open_nursery() as waiters:
        for _ in range(64):
            waiters.start_soon(web.fetch, server)
        while web.state.waiting < 64:
            await trio.lowlevel.checkpoint()
        with pytest.raises(PoolFull, match="64 requests wait") as caught:
            await web.ask(server)
        assert caught.value.sent is Sent.NOTHING
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        await read(held)


# TLS


async def test_tls_is_verified_and_names_the_server(web: Web) -> None:
    """SNI and ALPN are sent, big bodies pass both ways, and the connection is reused."""
    names: list[str | None] = []
    web.tls.sni_callback = lambda _, name, __: names.append(name)
    web.tls.set_alpn_protocols(["h2", "http/1.1"])
    body = bytes(range(256)) * 2000
    answer = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    protocols: list[str | None] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            await trio.sleep(0.05)  # the writer has to wait
            assert await peer.exactly(MUCH) == b"x" * MUCH
            protocols.append(peer.stream.selected_alpn_protocol())
            await peer.send(answer)

    server = await web.serve(script, True)
    length = [(b"content-length", b"%d" % MUCH)]
    for _ in range(2):
        got = await web.fetch(server, "POST", headers=length, body=b"x" * MUCH)
        assert got == (200, body)
    assert (names, protocols, server.accepted) == ([NAME], ["http/1.1"] * 2, 1)


@pytest.mark.parametrize(
    ("ca", "host"), [("own", "other.test"), ("own", "127.0.0.1"), ("other", NAME), (None, NAME)]
)
async def test_a_certificate_that_does_not_verify_is_a_tls_failure(
    web: Web, ca_file: str, tmp_path: Path, ca: str | None, host: str
) -> None:
    """Another host's, or of an authority that the CA file or the system does not know."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    server = await web.serve(answer_forever, True)
    files = {"own": ca_file, "other": str(tmp_path / "other.pem"), None: None}
    web.connect(ca_file=files[ca])
    with pytest.raises(TlsFailed, match="certificate not accepted") as caught:
        await web.ask(f"https://{host}:{server.port}")
    assert (caught.value.sent, web.state.lent) == (Sent.NOTHING, 0)
    await server.wait_all_closed()


@pytest.mark.parametrize("answers", [True, False])
async def test_a_server_without_tls_is_a_tls_failure(web: Web, answers: bool) -> None:
    async def script(peer: Peer) -> None:
        if answers:
            await peer.send(OK)
        else:
            await peer.stream.receive_some(1)
            await peer.end()

    server = await web.serve(script)
    with pytest.raises(TlsFailed):
        await web.ask(f"https://{NAME}:{server.port}")
    assert web.counts == (0, 0, 0)


async def test_an_unreadable_ca_file_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("nonsense")
    with pytest.raises(ssl.SSLError):
        Http1Transport(ca_file=str(tmp_path / "no.pem"))
    with pytest.raises(FileNotFoundError):
        Http1Transport(ca_file=str(tmp_path / "missing.pem"))


# Cancellation


STAGES = "connecting,resolving,big head,big body,waiting for the head,half a head,in the body"


@pytest.mark.parametrize(
    ("stage", "secure"),
    [*((stage, tls) for stage in STAGES.split(",") for tls in (False, True)), ("handshake", True)],
)
async def test_cancelled_where_it_hangs_a_request_leaks_nothing(
    web: Web, ca_file: str, full_port: int, secure: bool, stage: str
) -> None:
    """At each stage that a server can stretch, with a request in every slot; no slot is lost."""
    hanging = True

    async def script(peer: Peer) -> None:
        if not hanging:
            await answer_forever(peer)
        if stage == "waiting for the head":
            await peer.head()
        elif stage == "half a head":
            await peer.head()
            await peer.send(b"HTTP/1.1 200")
        elif stage == "in the body":
            await peer.head()
            await peer.send(CHUNKED + b"1\r\n")
        elif stage in ("big head", "big body") and secure:
            await peer.stream.do_handshake()
        if stage in ("big head", "big body"):
            await trio.sleep(0.2)  # reads nothing for a while; by then the client is gone

    server = await web.serve(script, secure)
    mute = await web.serve(lambda peer: peer.gone())
    scheme = "https" if secure else "http"
    url = {
        "connecting": f"{scheme}://127.0.0.1:{full_port}",
        "resolving": f"{scheme}://hang.test",
        "handshake": f"https://{NAME}:{mute.port}",
    }.get(stage, server.url)
    web.connect(max_connections=3, ca_file=ca_file)

    arguments: dict[str, Any] = {
        "big head": {"headers": [(b"x", b"x" * MUCH)]},
        "big body": upload(b"x" * MUCH),
    }.get(stage, {})

    async def hang() -> None:
        await web.fetch(url, **arguments)

    async with trio.open_nursery() as requests:
        for _ in range(4):  # one of them waits for a slot
            requests.start_soon(hang)
        while not web.transport.statistics() or not web.state.waiting:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert web.counts == (3, 0, 1)
        requests.cancel_scope.cancel()
    assert web.counts == (0, 0, 0)
    await mute.wait_all_closed()
    await server.wait_all_closed()
    hanging = False
    if url != server.url:
        web.connect(max_connections=3, ca_file=ca_file)
    responses = [await web.ask(server) for _ in range(3)]
    assert web.state.lent == 3
    for response in responses:
        assert (await read(response)).endswith(b"ok")
    await web.transport.aclose()
    await server.wait_all_closed()
    assert web.counts == (0, 0, 0)
