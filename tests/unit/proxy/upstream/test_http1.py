"""The upstream transport against raw scripted servers on loopback sockets: bytes, framing, reuse,
bounds, cancellation, TLS.
"""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from pools import Pools
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


def bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """No test hangs, and none asks a name server."""

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        trio.socket.set_custom_hostname_resolver(Names())
        with trio.fail_after(10):
            await test(*args, **kwargs)

    return run


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
        return (
            f"http://127.0.0.1:{self.port}" if self._tls is None else f"https://{NAME}:{self.port}"
        )

    async def run(self, task_status: trio.TaskStatus[Server]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                functools.partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            )
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started(self)

    async def _serve(self, stream: Any) -> None:
        number, self.accepted, self.open = self.accepted, self.accepted + 1, self.open + 1
        try:
            if self._tls is not None:
                stream = trio.SSLStream(
                    stream, self._tls, server_side=True
                )  # `aclose` sends close_notify
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


async def serve(nursery: trio.Nursery, script: Script, tls: ssl.SSLContext | None = None) -> Server:
    server: Server = await nursery.start(Server(script, tls).run)
    return server


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


async def ask(
    transport: Http1Transport,
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
    return await transport.call(call, endpoint)


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


async def fetch(transport: Http1Transport, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
    response = await ask(transport, *args, **kwargs)
    return response.status, await read(response)


def state(transport: Http1Transport) -> PoolState:
    (only,) = transport.statistics()
    return only


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
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    return context


@pytest.fixture
def pools() -> Pools:
    return Pools()


@pytest.fixture
async def resolver(nursery: trio.Nursery) -> Resolver:
    resolver = Resolver()
    await nursery.start(resolver.run)
    return resolver


@pytest.fixture
async def transport(
    pools: Pools, resolver: Resolver, ca_file: str
) -> AsyncIterator[Http1Transport]:
    transport = Http1Transport(pools, resolver, ca_file=ca_file)
    yield transport
    await transport.aclose()


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port that answers no connection attempt: its backlog is full and nobody accepts."""
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
    """A port that refuses: bound, so that nobody else gets it, and not listening."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    yield sock.getsockname()[1]
    sock.close()


# What is sent


@bounded
async def test_the_request_head_is_sent_as_given(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Order, duplicates, the names' case and the target byte for byte, and no header that was not
    given.
    """
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.head())
        await peer.send(OK)

    server = await serve(nursery, script)
    headers = [
        (b"X-B", b"1"),
        (b"accept", b"a"),
        (b"x-b", b"2"),
        (b"X-A", b""),
        (b"Accept", b"b"),
        (b"cookie", b"a=1; b=2"),
    ]
    target = b"/a/../b//%7Ec/%zz/;x?q=%20+&&=[]{}|^`<>\\\"?#'"
    assert await fetch(transport, server, "OPTIONS", target, headers) == (
        200,
        b"ok",
    )
    assert heads == [
        b"OPTIONS "
        + target
        + b" HTTP/1.1\r\nhost: upstream.test\r\nX-B: 1\r\naccept: a\r\nx-b: 2\r\nX-A: \r\nAccept: b\r\n"
        b"cookie: a=1; b=2\r\n\r\n"
    ]


@bounded
async def test_a_request_that_cannot_be_sent_costs_no_connection(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """A header that would end the line or a target with a space: refused before anything is opened."""
    server = await serve(nursery, answer_forever)
    for bad in (
        {"headers": [(b"x", b"a\r\nb: c")]},
        {"target": b"/a b"},
        {"target": b"/\r\n"},
        {**upload(b"x"), "headers": [(b"content-length", b"2")]},
    ):
        with pytest.raises(BadRequest):
            await ask(transport, server, **bad)
    assert server.accepted == 0
    assert state(transport).lent == 0


@bounded
async def test_a_body_of_known_length_is_sent_as_it_is(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    async def script(peer: Peer) -> None:
        assert b"content-length: 5\r\n" in await peer.head()
        body = await peer.exactly(5)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
        await answer_forever(peer)

    server = await serve(nursery, script)
    body = b"hello"
    assert await fetch(
        transport, server, "PUT", headers=[(b"content-length", b"5")], body=body
    ) == (200, b"hello")
    assert await fetch(transport, server) == (200, b"ok")
    assert server.accepted == 1


@bounded
async def test_the_upload_is_streamed(nursery: trio.Nursery, transport: Http1Transport) -> None:
    """Each piece arrives before the next one is asked for, as a chunk of its own."""
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

    server = await serve(nursery, script)
    assert await fetch(transport, server, **upload(body())) == (200, b"ok")


@bounded
async def test_an_early_response_ends_the_upload(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Without a nursery for it, and the connection, in the middle of a request, carries no other."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        yield b"piece"
        await trio.sleep_forever()

    server = await serve(nursery, script)
    arguments = upload(body())
    assert await fetch(transport, server, **arguments) == (413, b"")
    assert arguments["body"].ended
    await server.wait_all_closed()
    assert (state(transport).lent, state(transport).idle) == (0, 0)


@bounded
async def test_an_upload_goes_on_in_the_nursery_it_is_given(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Full duplex: each piece is sent only when the echo of the one before has been read; then the
    connection is kept.
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
    server = await serve(nursery, script)
    response = await ask(transport, server, nursery=nursery, **upload(pieces))
    echo = Reader(response.body)
    for piece in (b"one", b"two", b"three"):
        await to_body.send(piece)
        assert await anext(echo) == piece
    await to_body.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(echo)
    response.body.close()
    assert state(transport).idle == 1
    assert await fetch(transport, server) == (200, b"ok")
    assert server.accepted == 1


@bounded
async def test_closing_the_response_ends_an_upload_in_a_given_nursery(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """The nursery itself, and what else runs in it, goes on; the connection is not kept."""
    server = await serve(nursery, answering(OK))
    _kept_open, pieces = trio.open_memory_channel[bytes](0)
    async with trio.open_nursery() as uploads:
        arguments = upload(pieces)
        response = await ask(transport, server, nursery=uploads, **arguments)
        assert await read(response) == b"ok"
        # Leaving the nursery waits for the upload.
    assert arguments["body"].ended
    assert not uploads.cancel_scope.cancelled_caught
    await server.wait_all_closed()
    assert state(transport).idle == 0


@bounded
async def test_a_failure_ends_an_upload_in_a_given_nursery(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """An upload to nowhere would keep the nursery open."""
    server = await serve(nursery, answering(b"nonsense\r\n\r\n"))
    _kept_open, pieces = trio.open_memory_channel[bytes](0)
    arguments = upload(pieces)
    async with trio.open_nursery() as uploads:
        with pytest.raises(ProtocolFailure):
            await ask(transport, server, nursery=uploads, **arguments)
    assert arguments["body"].ended
    assert state(transport).lent == 0


@bounded
async def test_a_server_that_takes_nothing_times_the_write_out(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """With the head, with an upload, and with an upload in a given nursery."""

    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    server = await serve(nursery, script)
    patience = {"timeouts": CallTimeouts(write_s=0.05)}
    for arguments in (
        {"headers": [(b"x", b"x" * MUCH)]},
        upload(b"x" * MUCH),
        {**upload(b"x" * MUCH), "nursery": nursery},
    ):
        with pytest.raises(WriteTimedOut):
            await ask(transport, server, **arguments, **patience)
        assert state(transport).lent == 0


@bounded
async def test_an_upload_that_stalls_after_the_head_tells_the_reader_of_the_body(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Who reads the response learns why it will not go on, instead of waiting for it."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED)
        await trio.sleep_forever()

    server = await serve(nursery, script)
    response = await ask(
        transport,
        server,
        nursery=nursery,
        timeouts=CallTimeouts(write_s=0.05),
        **upload(b"x" * MUCH),
    )
    with pytest.raises(WriteTimedOut):
        await read(response)
    assert state(transport).lent == 0


@bounded
async def test_an_answer_is_read_although_the_upload_broke(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """A server may refuse a body and stop reading; its answer counts."""

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.stream.socket.shutdown(socket.SHUT_RD)
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nmuch")

    server = await serve(nursery, script)
    assert await fetch(transport, server, **upload(b"x" * MUCH)) == (413, b"much")
    assert state(transport).idle == 0


# What is read


@bounded
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (CHUNKED + b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nx: y\r\n\r\n", b"hello world"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n1\r\n!\r\n0\r\n\r\n", b"!"),
        (b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_a_framed_body_ends_by_itself_and_the_connection_is_kept(
    nursery: trio.Nursery, transport: Http1Transport, answer: bytes, body: bytes
) -> None:
    """And carries the next request."""
    server = await serve(nursery, answering(answer, answer))
    for _ in range(2):
        assert (await fetch(transport, server))[1] == body
    assert server.accepted == 1
    assert (state(transport).opened, state(transport).reused, state(transport).idle) == (1, 1, 1)


@bounded
async def test_a_body_split_at_every_byte_is_read(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Head and framing alike, byte by byte on the wire."""

    async def script(peer: Peer) -> None:
        await peer.head()
        peer.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in CHUNKED + b"5\r\nhello\r\n0\r\n\r\n":
            await peer.send(bytes([byte]))
            await trio.sleep(0.0005)

    server = await serve(nursery, script)
    assert await fetch(transport, server) == (200, b"hello")


@bounded
async def test_a_body_without_framing_ends_with_the_connection(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    server = await serve(nursery, answering(UNTIL_CLOSE + b"hello", then="end"))
    assert await fetch(transport, server) == (200, b"hello")
    assert state(transport).idle == 0


@bounded
async def test_head_204_and_304_have_no_body(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Whatever their heads announce (RFC 9112, section 6.3), and the connection goes on."""

    async def script(peer: Peer) -> None:
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            OK,
        ):
            await peer.head()
            await peer.send(answer)

    server = await serve(nursery, script)
    for method, status in (("HEAD", 200), ("HEAD", 200), ("HEAD", 200), ("GET", 204), ("GET", 304)):
        response = await ask(transport, server, method)
        assert response.body.complete
        assert (response.status, await read(response)) == (status, b"")
    assert await fetch(transport, server) == (200, b"ok")
    assert server.accepted == 1


@bounded
async def test_response_headers_come_as_they_were_sent(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Order, duplicates and bytes beyond ASCII; the status and its reason."""
    server = await serve(
        nursery,
        answering(
            b"HTTP/1.1 299 Odd \xfc\r\nSet-Cookie: a\r\nX-A: \xff\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n"
        ),
    )
    response = await ask(transport, server)
    await read(response)
    assert response.status == 299
    assert response.reason == b"Odd \xfc"
    assert response.version == b"1.1"
    assert list(response.headers) == [
        (b"Set-Cookie", b"a"),
        (b"X-A", b"\xff"),
        (b"set-cookie", b"b"),
        (b"Content-Length", b"0"),
    ]


@bounded
async def test_informational_responses_are_skipped(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """In one read with the response and in reads of their own."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK
        )
        await peer.head()
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await trio.sleep(0.01)
        await peer.send(OK)

    server = await serve(nursery, script)
    assert await fetch(transport, server) == (200, b"ok")
    assert await fetch(transport, server) == (200, b"ok")
    assert server.accepted == 1


@bounded
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            id="101",
        ),
        pytest.param(
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * 65 + OK, id="endless informational responses"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            id="Transfer-Encoding and Content-Length",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="Content-Length and Transfer-Encoding",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            id="another coding",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", id="identity"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", id="two lengths"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", id="a length that is no number"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nok",
            id="a length that is no length",
        ),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", id="SSH"),
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", id="a header without a colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n", id="NUL in a header"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n", id="a TLS alert"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000, id="an endless head"),
    ],
)
async def test_a_head_that_is_not_http_as_we_accept_it_is_refused(
    nursery: trio.Nursery, transport: Http1Transport, answer: bytes
) -> None:
    """With the failure of its kind, which is httpx's too, and the connection is closed."""
    server = await serve(nursery, answering(answer))
    with pytest.raises(ProtocolFailure):
        await ask(transport, server)
    await server.wait_all_closed()
    assert (state(transport).lent, state(transport).idle) == (0, 0)


@bounded
@pytest.mark.parametrize(
    "beginning",
    [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nx: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_connection_closed_before_a_whole_head_is_a_read_failure(
    nursery: trio.Nursery,
    transport: Http1Transport,
    tls: ssl.SSLContext,
    beginning: bytes,
    secure: bool,
) -> None:
    """Nothing came, or not all of it; with an upload or without."""

    async def script(peer: Peer) -> None:
        if b"chunked" in await peer.head():
            await peer.exactly(
                len(b"1\r\nx\r\n0\r\n\r\n")
            )  # a close with bytes unread would be a reset
        await peer.send(beginning)
        await peer.end()

    server = await serve(nursery, script, tls if secure else None)
    for arguments in ({}, upload(b"x")):
        with pytest.raises(ReadFailed):
            await ask(transport, server, **arguments)
        assert state(transport).lent == 0


@bounded
async def test_a_reset_before_a_head_is_a_read_failure(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        peer.reset()

    server = await serve(nursery, script)
    with pytest.raises(ReadFailed):
        await ask(transport, server)
    assert state(transport).lent == 0


@bounded
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        CHUNKED + b"2\r\nok\r\n",
        CHUNKED + b"3\r\nok",
    ],
)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("then", ["end", "cut"])
async def test_a_framed_body_is_truncated_when_the_connection_ends_in_it(
    nursery: trio.Nursery,
    transport: Http1Transport,
    tls: ssl.SSLContext,
    answer: bytes,
    secure: bool,
    then: str,
) -> None:
    """Orderly or not, over TLS or not: after what has come, `Truncated`, and no reuse."""
    server = await serve(nursery, answering(answer, then=then), tls if secure else None)
    response = await ask(transport, server)
    body = Reader(response.body)
    assert await anext(body) == b"ok"
    with pytest.raises(Truncated):
        await anext(body)
    response.body.close()
    assert (state(transport).lent, state(transport).idle) == (0, 0)


@bounded
async def test_a_reset_inside_a_body_is_a_read_failure(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Also of one that ends with the connection: a reset is no end."""
    come = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(UNTIL_CLOSE + b"ok")
        await come.wait()
        peer.reset()

    server = await serve(nursery, script)
    response = await ask(transport, server)
    body = Reader(response.body)
    assert await anext(body) == b"ok"
    come.set()
    with pytest.raises(ReadFailed):
        await anext(body)
    response.body.close()


@bounded
async def test_a_broken_chunk_is_a_protocol_failure(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    server = await serve(nursery, answering(CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n"))
    response = await ask(transport, server)
    with pytest.raises(ProtocolFailure):
        await read(response)
    assert (state(transport).lent, state(transport).idle) == (0, 0)


@bounded
async def test_receive_reads_behind_what_was_carried_over(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """The relay's way: into its own buffer, at an offset, early bytes of the head's read first, and
    never blocking.
    """
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        await go_on.wait()
        await peer.send(b"2\r\nde\r\n1\r\nf\r\n")

    server = await serve(nursery, script)
    response = await ask(transport, server)
    body = response.body
    assert isinstance(body, UpstreamBody)
    buffer = bytearray(b"carried" + bytes(57))
    got = b""
    while got != b"abc":
        await body.wait_readable()
        if (span := body.receive(buffer, 7)) is not None:
            got += buffer[span[0] : span[1]]
    assert body.receive(buffer, 7) is None
    go_on.set()
    while got != b"abcdef":
        await body.wait_readable()
        if (span := body.receive(buffer, 7)) is not None:
            assert span[0] == 7
            got += buffer[span[0] : span[1]]
    assert buffer[:7] == b"carried"
    body.close()
    body.close()
    assert state(transport).lent == 0


@bounded
async def test_early_bytes_are_read_in_pieces_that_fit(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """What came with the head may be more than the caller's buffer has room for; `pending` says
    that there is some.
    """
    server = await serve(
        nursery,
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(range(250)) * 4),
    )
    response = await ask(transport, server)
    body = response.body
    assert isinstance(body, UpstreamBody)
    got = b""
    buffer = bytearray(64)
    was_pending = False
    while not body.complete:
        was_pending |= body.pending
        await body.wait_readable()
        if (span := body.receive(buffer, 14)) is not None:
            got += buffer[span[0] : span[1]]
    assert got == bytes(range(250)) * 4
    assert was_pending
    assert not body.pending
    body.close()
    assert state(transport).idle == 1


# Connecting


@bounded
async def test_a_refused_connection_is_a_connect_failure(
    transport: Http1Transport, closed_port: int
) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await ask(transport, f"http://127.0.0.1:{closed_port}")
    assert "Connection refused" in str(caught.value)
    assert state(transport).lent == 0


@bounded
async def test_a_name_that_does_not_resolve_is_a_dns_failure(transport: Http1Transport) -> None:
    with pytest.raises(DnsFailed, match=r"http://nowhere\.invalid:80: cannot resolve the name"):
        await ask(transport, "http://nowhere.invalid")
    assert state(transport).lent == 0


@bounded
async def test_the_connect_timeout_bounds_resolving_connecting_and_the_handshake(
    nursery: trio.Nursery, transport: Http1Transport, full_port: int
) -> None:
    """Each of the three may hang; none of these ever gets further, so that the deadline cannot be
    late by chance.
    """

    async def mute(peer: Peer) -> None:
        await peer.gone()

    server = await serve(nursery, mute)
    for url in (
        "http://hang.test",
        f"http://127.0.0.1:{full_port}",
        f"https://{NAME}:{server.port}",
    ):
        with pytest.raises(ConnectTimedOut, match=r"no connection within 0\.05 s"):
            await ask(transport, url, timeouts=CallTimeouts(connect_s=0.05))
    await server.wait_all_closed()
    assert [pool.lent for pool in transport.statistics()] == [0, 0, 0]


@bounded
async def test_silence_instead_of_a_head_times_out(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Without an upload, with one, and with one in a given nursery."""

    async def script(peer: Peer) -> None:
        await peer.gone()

    server = await serve(nursery, script)
    for arguments in ({}, upload(b"x"), {"nursery": nursery, **upload(b"x")}):
        with pytest.raises(ReadTimedOut, match=r"no response within 0\.05 s"):
            await ask(transport, server, timeouts=CallTimeouts(first_byte_s=0.05), **arguments)
    await server.wait_all_closed()
    assert state(transport).lent == 0


@bounded
async def test_half_a_head_does_not_stop_the_clock(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    server = await serve(nursery, answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: "))
    with pytest.raises(ReadTimedOut):
        await ask(transport, server, timeouts=CallTimeouts(first_byte_s=0.1))


@bounded
@pytest.mark.parametrize("given", [False, True], ids=["own nursery", "given nursery"])
async def test_the_time_for_the_head_begins_when_the_request_has_ended(
    nursery: trio.Nursery, transport: Http1Transport, given: bool
) -> None:
    """An upload that takes ten times as long is no silence of the server's."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await trio.sleep(0.3)
        await peer.send(OK)

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await trio.sleep_forever()

    server = await serve(nursery, script)
    extra = {"nursery": nursery} if given else {}
    assert await fetch(
        transport, server, timeouts=CallTimeouts(first_byte_s=0.03), **upload(body()), **extra
    ) == (
        200,
        b"ok",
    )


# Reuse


@bounded
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"surplus", id="surplus behind a length"),
        pytest.param(CHUNKED + b"2\r\nok\r\n0\r\n\r\nsurplus", id="surplus behind chunks"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\nContent-Length: 2\r\n\r\nok",
            id="connection: close",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
            id="Connection: x, Close",
        ),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", id="HTTP/1.0"),
    ],
)
async def test_a_connection_that_cannot_go_on_is_closed(
    nursery: trio.Nursery, transport: Http1Transport, answer: bytes
) -> None:
    """And the next request goes over a new one."""
    server = await serve(nursery, answering(answer))
    for number in (1, 2):
        assert await fetch(transport, server) == (200, b"ok")
        await server.wait_all_closed()
        assert server.accepted == number
    assert (state(transport).idle, state(transport).reused) == (0, 0)


@bounded
async def test_surplus_behind_a_response_without_a_body_forbids_reuse(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """A HEAD's answer with a body is how responses are moved from one request to the next."""
    server = await serve(nursery, answering(OK))
    assert await fetch(transport, server, "HEAD") == (200, b"")
    await server.wait_all_closed()
    assert state(transport).idle == 0


@bounded
async def test_a_response_closed_early_closes_its_connection(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Unread, and half read; the server sees it, at once."""
    server = await serve(nursery, answering(CHUNKED + b"2\r\nok\r\n"))
    response = await ask(transport, server)
    response.body.close()
    await server.wait_all_closed()
    response = await ask(transport, server)
    assert await anext(Reader(response.body)) == b"ok"  # type: ignore[arg-type]
    response.body.close()
    await server.wait_all_closed()
    assert (state(transport).lent, state(transport).idle, server.accepted) == (0, 0, 2)


@bounded
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("how", ["end", "cut", "speak"])
async def test_a_kept_connection_that_the_server_ended_is_not_used(
    nursery: trio.Nursery, transport: Http1Transport, tls: ssl.SSLContext, secure: bool, how: str
) -> None:
    """Closed, cut, or spoken on out of turn: it is noticed before the next request is written, and
    a new one is made.
    """
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await go_on.wait()
        if peer.number:
            return
        if how == "end":
            await peer.end()
        elif how == "cut":
            await peer.cut()
        else:
            await peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    server = await serve(nursery, script, tls if secure else None)
    response = await ask(transport, server)
    kept = response.body.connection
    assert await read(response) == b"ok"
    assert state(transport).idle == 1
    while kept.is_alive():  # over TLS, session tickets may come first
        go_on.set()
        await trio.lowlevel.wait_readable(kept.sock)
        if how == "speak" and secure:
            break  # looking would take the byte away
    assert await fetch(transport, server) == (200, b"ok")
    assert (server.accepted, state(transport).reused) == (2, 0)


@bounded
async def test_a_dead_connection_that_only_shows_when_writing_is_replaced(
    nursery: trio.Nursery, transport: Http1Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reset it between the look and the write. None of the request's bytes was written: it is sent again, once,
    and not over another kept connection, which may be as dead."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        if peer.number < 2:
            peer.reset()

    server = await serve(nursery, script)
    responses = [await ask(transport, server) for _ in range(2)]
    for response in responses:
        await read(response)
        while response.body.connection.is_alive():
            await trio.sleep(0.001)
    assert state(transport).idle == 2
    monkeypatch.setattr(connections_module.Connection, "is_alive", lambda self: True)
    assert await fetch(transport, server) == (200, b"ok")
    assert (server.accepted, state(transport).reused, state(transport).lent) == (3, 1, 0)


@bounded
async def test_a_request_whose_bytes_were_written_is_not_sent_again(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """A server that drops a kept connection with the request in it may have carried it out."""
    heads = 0

    async def script(peer: Peer) -> None:
        nonlocal heads
        await peer.head()
        heads += 1
        await peer.send(OK)
        await peer.head()
        heads += 1
        peer.reset()

    server = await serve(nursery, script)
    assert await fetch(transport, server) == (200, b"ok")
    with pytest.raises(UpstreamFailure):
        await fetch(transport, server)
    assert (server.accepted, heads, state(transport).lent) == (1, 2, 0)


@bounded
async def test_idle_connections_expire(
    nursery: trio.Nursery, transport: Http1Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`maintain` closes those that have had their time; the server sees it."""
    server = await serve(nursery, answer_forever)
    await fetch(transport, server)
    monkeypatch.setattr(connections_module, "KEEPALIVE_EXPIRY_S", 0.0)
    real_sleep = trio.sleep
    monkeypatch.setattr(trio, "sleep", lambda _: real_sleep(0.001))
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel_when, scope, lambda: state(transport).idle == 0)
        await transport.maintain()
    await server.wait_all_closed()


async def _cancel_when(scope: trio.CancelScope, condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()
    scope.cancel()


@bounded
async def test_aclose_closes_what_is_idle_and_leaves_what_is_lent(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    finish = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        if peer.number:
            await peer.send(CHUNKED)
            await finish.wait()
            await peer.send(b"2\r\nok\r\n0\r\n\r\n")
        else:
            await peer.send(OK)

    server = await serve(nursery, script)
    first = await ask(transport, server)
    second = await ask(transport, server)
    await read(first)
    await transport.aclose()
    assert (state(transport).lent, state(transport).idle) == (1, 0)
    while server.open > 1:
        await trio.sleep(0.001)
    finish.set()
    assert await read(second) == b"ok"


# Bounds


@bounded
async def test_max_connections_bounds_and_a_waiter_gets_what_is_released(
    nursery: trio.Nursery, pools: Pools
) -> None:
    """One too many times out; one that waits gets the connection that comes back, used again."""
    transport = Http1Transport(pools, max_connections=2)
    server = await serve(nursery, answer_forever)
    held = [await ask(transport, server) for _ in range(2)]
    with pytest.raises(PoolTimedOut, match="all 2 connections are in use"):
        await ask(transport, server, timeouts=CallTimeouts(connect_s=0.05))
    assert (state(transport).lent, state(transport).waiting) == (2, 0)

    done: list[tuple[int, bytes]] = []

    async def wait() -> None:
        done.append(await fetch(transport, server))

    async with trio.open_nursery() as waiters:
        waiters.start_soon(wait)
        while not state(transport).waiting:
            await trio.lowlevel.checkpoint()
        assert done == []
        assert await read(held[0]) == b"ok"
    assert done == [(200, b"ok")]
    assert (server.accepted, state(transport).lent) == (2, 1)
    await read(held[1])
    assert (state(transport).lent, state(transport).idle) == (0, 2)
    await transport.aclose()


@bounded
async def test_more_requests_than_connections_all_get_their_turn(
    nursery: trio.Nursery, pools: Pools
) -> None:
    """Forty requests over three connections, and never more than three are open."""
    transport = Http1Transport(pools, max_connections=3)
    server = await serve(nursery, answer_forever)
    most = 0

    async def one() -> None:
        nonlocal most
        response = await ask(transport, server)
        most = max(most, server.open)
        assert await read(response) == b"ok"

    async with trio.open_nursery() as many:
        for _ in range(40):
            many.start_soon(one)
    assert most <= 3
    assert server.accepted <= 3
    assert state(transport).opened + state(transport).reused == 40
    await transport.aclose()


@bounded
async def test_all_origins_share_one_bound(nursery: trio.Nursery, pools: Pools) -> None:
    """`max_connections` is the upstream's: what one origin has on loan another lacks; of the idle
    the oldest makes room.
    """
    transport = Http1Transport(pools, max_connections=2)
    one, two, three = [await serve(nursery, answer_forever) for _ in range(3)]
    held = [await ask(transport, server) for server in (one, two)]
    with pytest.raises(PoolTimedOut):
        await ask(transport, three, timeouts=CallTimeouts(connect_s=0.05))
    for response in held:
        await read(response)
    assert await fetch(transport, three) == (200, b"ok")
    states = {item.origin: (item.lent, item.idle, item.waiting) for item in transport.statistics()}
    assert states == {one.url: (0, 0, 0), two.url: (0, 1, 0), three.url: (0, 1, 0)}
    await transport.aclose()


@bounded
async def test_no_more_wait_for_a_connection_than_may(nursery: trio.Nursery, pools: Pools) -> None:
    """64 may wait for the only one. The next, which would wait for ever, is refused at once, and
    none of its bytes left.
    """
    transport = Http1Transport(pools, max_connections=1)
    server = await serve(nursery, answer_forever)
    held = await ask(transport, server)
    done = 0

    async def wait() -> None:
        nonlocal done
        await fetch(transport, server)
        done += 1

    async with trio.open_nursery() as waiters:
        for _ in range(64):
            waiters.start_soon(wait)
        while state(transport).waiting < 64:
            await trio.lowlevel.checkpoint()
        with pytest.raises(PoolFull, match="64 requests wait") as caught:
            await ask(transport, server)
        assert caught.value.sent is Sent.NOTHING
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        await read(held)
    assert done == 64
    await transport.aclose()


# TLS


@bounded
async def test_tls_is_verified_and_names_the_server(
    nursery: trio.Nursery, transport: Http1Transport, tls: ssl.SSLContext
) -> None:
    """SNI and ALPN are sent, a big body comes whole through it, and the connection is kept."""
    names: list[str | None] = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    body = bytes(range(256)) * 2000
    answer = (
        CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(body), body) for _ in range(2)) + b"0\r\n\r\n"
    )
    protocols: list[str | None] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.head()
            protocols.append(peer.stream.selected_alpn_protocol())
            await peer.send(answer)

    server = await serve(nursery, script, tls)
    for _ in range(2):
        assert await fetch(transport, server) == (200, body * 2)
    assert names == [NAME]
    assert protocols == ["http/1.1"] * 2
    assert server.accepted == 1


@bounded
async def test_an_upload_goes_through_tls(
    nursery: trio.Nursery, transport: Http1Transport, tls: ssl.SSLContext
) -> None:
    """Megabytes of it, to a server that begins to read late, so that the writer has to wait."""

    async def script(peer: Peer) -> None:
        await peer.head()
        await trio.sleep(0.05)
        received = await peer.exactly(MUCH)
        await peer.send(
            OK if received == b"x" * MUCH else b"HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n"
        )

    server = await serve(nursery, script, tls)
    headers = [(b"content-length", b"%d" % MUCH)]
    body = b"x" * MUCH
    assert await fetch(transport, server, "POST", headers=headers, body=body) == (200, b"ok")
    assert state(transport).idle == 1


@bounded
async def test_a_certificate_that_does_not_verify_is_a_tls_failure(
    nursery: trio.Nursery,
    pools: Pools,
    resolver: Resolver,
    authority: trustme.CA,
    tls: ssl.SSLContext,
    ca_file: str,
    tmp_path: Path,
) -> None:
    """Another host's, an unknown authority's, and, without a CA file, one that the system does not
    know.
    """
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    server = await serve(nursery, answer_forever, tls)
    for ca, host in (
        (ca_file, "other.test"),
        (str(tmp_path / "other.pem"), NAME),
        (None, NAME),
        (ca_file, "127.0.0.1"),
    ):
        transport = Http1Transport(pools, resolver, ca_file=ca)
        with pytest.raises(TlsFailed, match="certificate not accepted"):
            await ask(transport, f"https://{host}:{server.port}")
        assert state(transport).lent == 0
    await server.wait_all_closed()


@bounded
async def test_a_server_that_speaks_no_tls_is_a_tls_failure(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """It answers in plain text, or hangs up."""

    async def plain(peer: Peer) -> None:
        await peer.send(OK)

    async def hang_up(peer: Peer) -> None:
        await peer.stream.receive_some(1)
        await peer.end()

    for script in (plain, hang_up):
        server = await serve(nursery, script)
        with pytest.raises(TlsFailed):
            await ask(transport, f"https://{NAME}:{server.port}")
    assert [pool.lent for pool in transport.statistics()] == [0, 0]


@bounded
async def test_close_notify_ends_a_body_and_its_absence_truncates_it(
    nursery: trio.Nursery, transport: Http1Transport, tls: ssl.SSLContext
) -> None:
    """For a body that ends with the connection it is the only sign that nobody cut it (RFC 9112,
    section 9.8).
    """
    server = await serve(nursery, answering(UNTIL_CLOSE + b"hello", then="end"), tls)
    assert await fetch(transport, server) == (200, b"hello")
    server = await serve(nursery, answering(UNTIL_CLOSE + b"hello", then="cut"), tls)
    response = await ask(transport, server)
    body = Reader(response.body)
    assert await anext(body) == b"hello"
    with pytest.raises(Truncated, match="close_notify"):
        await anext(body)
    response.body.close()
    assert [pool.lent for pool in transport.statistics()] == [0, 0]


@bounded
async def test_an_unreadable_ca_file_is_an_error_at_once(pools: Pools, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("nonsense")
    with pytest.raises(ssl.SSLError):
        Http1Transport(pools, ca_file=str(tmp_path / "no.pem"))
    with pytest.raises(FileNotFoundError):
        Http1Transport(pools, ca_file=str(tmp_path / "missing.pem"))


# Cancellation


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the tasks under `nursery` have been resumed and have paused again `step`
    times.
    """

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.nursery: trio.Nursery | None = None
        self.left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        while nursery is not None and nursery is not self.nursery:
            nursery = nursery.parent_task.parent_nursery
        if nursery is not None:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def good_requests(transport: Http1Transport, server: Server, count: int) -> None:
    """So many at the same time succeed: no slot was lost."""
    with trio.fail_after(5):
        responses = [await ask(transport, server) for _ in range(count)]
        assert state(transport).lent == count
        for response in responses:
            assert (await read(response)).endswith(b"ok")
    await transport.aclose()
    await server.wait_all_closed()
    assert (state(transport).lent, state(transport).idle, state(transport).waiting) == (0, 0, 0)


@bounded
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "given", [None, False, True], ids=["no upload", "own nursery", "given nursery"]
)
async def test_cancelled_at_any_pause_a_request_leaves_nothing_behind(
    nursery: trio.Nursery,
    pools: Pools,
    resolver: Resolver,
    ca_file: str,
    tls: ssl.SSLContext,
    secure: bool,
    given: bool | None,
) -> None:
    """Cancelled at its first pause, its second, and so on until one gets through: each time the server sees its connection
    closed, no slot is lost and no buffer is out, and as many good requests as there may be connections succeed afterwards."""

    async def script(peer: Peer) -> None:
        while True:
            if b"chunked" in await peer.head():
                received = b""
                while not received.endswith(b"0\r\n\r\n"):
                    received += await peer.exactly(1)
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await peer.send(CHUNKED)
            await trio.sleep(0.001)
            await peer.send(b"1\r\n.\r\n")
            await trio.sleep(0.001)
            await peer.send(b"2\r\nok\r\n0\r\n\r\n")

    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            await trio.sleep(0.001)
            yield b"piece"

    async def one(transport: Http1Transport, server: Server, own: trio.Nursery) -> None:
        arguments: dict[str, Any] = {} if given is None else upload(body())
        if given:
            arguments["nursery"] = own
        nonlocal got_through
        got_through = await fetch(transport, server, **arguments) == (200, b".ok")

    server = await serve(nursery, script, tls if secure else None)
    got_through = False
    cancelled = 0
    for step in range(1, 200):
        transport = Http1Transport(pools, resolver, max_connections=2, ca_file=ca_file)
        got_through = False
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with trio.open_nursery() as own:
                    instrument.nursery = own
                    own.start_soon(one, transport, server, own)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        if transport.statistics():
            assert (state(transport).lent, state(transport).waiting) == (0, 0)
        await transport.aclose()
        await server.wait_all_closed()
        assert all(pool.statistics().in_use == 0 for pool in pools)
        if scope.cancelled_caught:
            cancelled += 1
            await good_requests(transport, server, 2)
        if got_through and not scope.cancelled_caught and instrument.left > 0:
            break
    assert got_through
    assert cancelled >= 3


STAGES = (
    "connecting",
    "resolving",
    "big head",
    "big body",
    "waiting for the head",
    "half a head",
    "in the body",
)


@bounded
@pytest.mark.parametrize(
    ("stage", "secure"),
    [
        *((stage, secure) for stage in STAGES for secure in (False, True)),
        ("handshake", True),
    ],
)
async def test_cancelled_where_it_hangs_a_request_leaves_nothing_behind(
    nursery: trio.Nursery,
    pools: Pools,
    resolver: Resolver,
    ca_file: str,
    tls: ssl.SSLContext,
    full_port: int,
    secure: bool,
    stage: str,
) -> None:
    """At each stage that a server can stretch for ever, with every slot hanging there; afterwards
    none is lost.
    """
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

    # For a handshake that hangs, a server that speaks no TLS; its good requests go to one that
    # does.
    server = await serve(nursery, script, tls if secure else None)
    mute = await serve(nursery, lambda peer: peer.gone())
    url = {
        "connecting": f"{server.url.partition(':')[0]}://127.0.0.1:{full_port}",
        "resolving": f"{server.url.partition(':')[0]}://hang.test",
        "handshake": f"https://{NAME}:{mute.port}",
    }.get(stage, server.url)
    transport = Http1Transport(pools, resolver, max_connections=3, ca_file=ca_file)

    async def hang() -> None:
        arguments: dict[str, Any] = {}
        if stage == "big head":
            arguments = {"headers": [(b"x", b"x" * MUCH)]}
        elif stage == "big body":
            arguments = upload(b"x" * MUCH)
        await fetch(transport, url, **arguments)

    async with trio.open_nursery() as requests:
        for _ in range(4):  # one of them waits for a slot
            requests.start_soon(hang)
        while not transport.statistics() or not state(transport).waiting:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert (state(transport).lent, state(transport).waiting) == (3, 1)
        requests.cancel_scope.cancel()
    assert (state(transport).lent, state(transport).idle, state(transport).waiting) == (0, 0, 0)
    await mute.wait_all_closed()
    await server.wait_all_closed()
    hanging = False
    if url != server.url:
        transport = Http1Transport(pools, resolver, max_connections=3, ca_file=ca_file)
    await good_requests(transport, server, 3)


@bounded
async def test_an_exception_in_the_request_body_gives_the_connection_back(
    nursery: trio.Nursery, transport: Http1Transport
) -> None:
    """Whatever it is: no slot is lost and the server sees the connection closed."""

    async def body() -> AsyncIterator[bytes]:
        yield b"piece"
        raise LookupError("not found")

    server = await serve(nursery, lambda peer: peer.gone())
    with pytest.raises((LookupError, ExceptionGroup)):
        await ask(transport, server, **upload(body()))
    await server.wait_all_closed()
    assert state(transport).lent == 0
