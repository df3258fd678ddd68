"""`Http1Transport` against scripted servers on loopback sockets: bytes, framing, reuse, bounds,
deadlines, TLS, cancellation.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from support.certificates import Certificates
from support.names import Names
from support.upstream import Peer, Script, Upstream, open_upstream

from proxy.errors import (
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
from proxy.upstream.connection import Connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
MUCH = 8 * 1024 * 1024  # more than two socket buffers on loopback take


def answering(*answers: bytes) -> Script:
    """On each connection, one answer after the other to one request each."""

    async def script(peer: Peer) -> None:
        for answer in answers:
            await peer.raw_head()
            await peer.send(answer)

    return script


async def answer_forever(peer: Peer) -> None:
    while True:
        await peer.raw_head()
        await peer.send(OK)


def upload(body: AsyncIterator[bytes] | bytes) -> dict[str, Any]:
    """The arguments of `ask` for a body of unknown length."""
    return {"method": "POST", "headers": [(b"transfer-encoding", b"chunked")], "body": body}


async def endless(ended: trio.Event) -> AsyncIterator[bytes]:
    """A body without an end, until it is closed or cancelled."""
    try:
        yield b"piece"
        await trio.sleep_forever()
    finally:
        ended.set()


async def pieces_of(body: UpstreamBody, room: int = 65536) -> AsyncIterator[bytes]:
    buffer = bytearray(14 + room)
    while not body.complete:
        await body.wait_readable()
        span = body.receive(buffer, 14)
        if span is not None and span[0] < span[1]:
            yield bytes(buffer[span[0] : span[1]])
    assert buffer[:14] == bytes(14)


async def read(response: UpstreamResponse) -> bytes:
    try:
        return b"".join([piece async for piece in pieces_of(response.body)])
    finally:
        response.body.close()


class Web:
    """Servers, and the transport under test."""

    def __init__(self, nursery: trio.Nursery, resolver: Resolver, tls: ssl.SSLContext) -> None:
        self.nursery = nursery
        self.resolver = resolver
        self.tls = tls

    async def serve(self, script: Script, secure: bool = False) -> Upstream:
        """After its script, a connection stays until the client closes it."""

        async def play(peer: Peer) -> None:
            with suppress(EOFError):
                await script(peer)
            await peer.wait_closed()

        async def run(task_status: trio.TaskStatus[Upstream]) -> None:
            async with open_upstream(play, ssl_context=self.tls if secure else None) as server:
                task_status.started(server)
                await trio.sleep_forever()

        server: Upstream = await self.nursery.start(run)
        return server

    async def ask(
        self,
        server: Upstream | str,
        method: str = "GET",
        target: bytes = b"/",
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: Any = b"",
        **fields: Any,
    ) -> UpstreamResponse:
        """Send a request with a Host header and these."""
        endpoint = Endpoint(server if isinstance(server, str) else server.url)
        call = UpstreamCall(method, target, [(b"host", b"h"), *headers], body, **fields)
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

    async def all_closed(self, server: Upstream) -> None:
        """Wait until the server has no connection; then the transport has none either."""
        while server.open:
            await trio.sleep(0.001)
        assert (self.state.lent, self.state.idle, self.state.waiting) == (0, 0, 0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def web(nursery: trio.Nursery, certificates: Certificates) -> AsyncIterator[Web]:
    """No test hangs, and none asks a name server."""

    async def watch() -> None:
        await trio.sleep(20)
        raise trio.TooSlowError

    Names(localhost=0)
    resolver = Resolver()
    await nursery.start(resolver.run)
    nursery.start_soon(watch)
    web = Web(nursery, resolver, certificates.server)
    web.connect(ca_file=certificates.ca_file)
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


# What is sent


async def test_a_request_that_cannot_be_written_costs_no_connection(web: Web) -> None:
    server = await web.serve(answer_forever)
    with pytest.raises(BadRequest):
        await web.ask(server, target=b"/a b")
    with pytest.raises(BadRequest):
        await web.ask(server, "POST", headers=[(b"content-length", b"2")], body=b"x")
    assert server.accepted == 0
    await web.all_closed(server)


async def test_a_body_in_memory_is_sent_whole(web: Web) -> None:
    """Up to 16384 bytes with the head, larger ones while the response is awaited."""
    wires: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.raw_head()
            assert await peer.exactly(len(wires[-1])) == wires[-1]
            await peer.send(OK)

    server = await web.serve(script)
    for size in (5, 16384, 16385, 1_000_000):
        body = b"x" * size
        for length, wire in (
            ((b"content-length", b"%d" % size), body),
            ((b"transfer-encoding", b"chunked"), b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)),
        ):
            wires.append(wire)
            assert await web.fetch(server, "PUT", headers=[length], body=body) == (200, b"ok")
    assert server.accepted == 1


@pytest.mark.parametrize("given", [False, True], ids=["own nursery", "given nursery"])
@pytest.mark.parametrize("answer", [OK, b"nonsense\r\n\r\n"])
async def test_the_end_of_the_response_ends_the_upload(
    web: Web, answer: bytes, given: bool
) -> None:
    """Received or failed: a given nursery is not cancelled, and the connection is not kept."""
    server = await web.serve(answering(answer))
    ended = trio.Event()
    arguments = upload(endless(ended))
    async with trio.open_nursery() as uploads:  # leaving it waits for the upload
        try:
            got = await web.fetch(server, nursery=uploads if given else None, **arguments)
            assert got == (200, b"ok")
        except ProtocolFailure:
            assert answer != OK
    assert ended.is_set()
    assert not uploads.cancel_scope.cancelled_caught
    await web.all_closed(server)


@pytest.mark.parametrize("where", ["head", "body", "body in given nursery", "after the head"])
async def test_a_server_that_reads_nothing_times_the_write_out(web: Web, where: str) -> None:
    """After the response's head, the reader of its body gets the failure."""

    async def script(peer: Peer) -> None:
        if where == "after the head":
            await peer.raw_head()
            await peer.send(CHUNKED)
        await trio.sleep_forever()

    server = await web.serve(script)
    arguments = {"headers": [(b"x", b"x" * MUCH)]} if where == "head" else upload(b"x" * MUCH)
    if where in ("body in given nursery", "after the head"):
        arguments["nursery"] = web.nursery
    with pytest.raises(WriteTimedOut) as caught:
        await web.fetch(server, timeouts=CallTimeouts(write_s=0.05), **arguments)
    if where != "after the head":
        assert caught.value.sent is (Sent.HEAD if where == "head" else Sent.BODY)
    assert web.state.lent == 0


async def test_a_body_can_be_read_again_only_if_nothing_of_it_was_taken(web: Web) -> None:
    """`Sent.HEAD`. A generator is closed with its attempt."""

    async def reset(peer: Peer) -> None:
        await peer.raw_head()
        peer.reset()

    async def generator() -> AsyncIterator[bytes]:
        await trio.sleep_forever()
        yield b""

    server = await web.serve(reset)
    to_body, body = trio.open_memory_channel[bytes](9)
    for source, sent in ((body, Sent.HEAD), (body, Sent.BODY), (generator(), Sent.BODY)):
        with pytest.raises(ReadFailed) as caught:
            await web.ask(server, **upload(source), nursery=web.nursery)
        assert caught.value.sent is sent
        to_body.send_nowait(b"")


async def test_a_response_counts_although_the_upload_broke(web: Web) -> None:
    """A server may refuse a body and stop reading."""

    async def script(peer: Peer) -> None:
        await peer.raw_head()
        peer.stream.socket.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]
        await peer.send(b"HTTP/1.1 413 x\r\nContent-Length: 4\r\n\r\nmuch")

    server = await web.serve(script)
    assert await web.fetch(server, **upload(b"x" * MUCH)) == (413, b"much")
    assert web.state.idle == 0


async def test_an_exception_of_the_request_body_returns_the_connection(web: Web) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"piece"
        raise LookupError("not found")

    server = await web.serve(lambda peer: peer.wait_closed())
    with pytest.raises(LookupError):
        await web.ask(server, **upload(body()))
    await web.all_closed(server)


# What is read


@pytest.mark.parametrize(
    ("answer", "failure", "secure", "uploads"),
    [
        (b"", ReadFailed, False, False),
        (b"", ReadFailed, True, True),
        (b"HTTP/1.1 200 OK\r\nx: y\r\n", ReadFailed, False, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ReadFailed, True, False),
        ("cut", ReadFailed, True, False),
        ("reset", ReadFailed, False, True),
        ("reset", ReadFailed, True, False),
        (b"HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\n", ProtocolFailure, False, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", ProtocolFailure, False, True),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ProtocolFailure, False, False),
    ],
)
async def test_a_bad_or_missing_head_is_a_failure_of_its_kind(
    web: Web, answer: bytes | str, failure: type[UpstreamFailure], secure: bool, uploads: bool
) -> None:
    """The whole request was sent, on a new connection, which is closed."""

    async def script(peer: Peer) -> None:
        if b"chunked" in await peer.raw_head():
            await peer.exactly(len(b"1\r\nx\r\n0\r\n\r\n"))  # a close with unread bytes is a reset
        if answer == "reset":
            peer.reset()
        elif answer == "cut":
            await peer.cut()
        else:
            await peer.send(answer)  # type: ignore[arg-type]
            await peer.close()

    server = await web.serve(script, secure)
    with pytest.raises(failure) as caught:
        await web.ask(server, **(upload(b"x") if uploads else {}))
    assert (type(caught.value), caught.value.reused) == (failure, False)
    assert caught.value.sent is Sent.ALL
    await web.all_closed(server)


LENGTH_3 = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "then", "failure", "secure"),
    [
        (LENGTH_3 + b"ok", "close", Truncated, False),
        (LENGTH_3 + b"ok", "cut", Truncated, True),
        (CHUNKED + b"2\r\nok\r\n", "close", Truncated, True),
        (CHUNKED + b"3\r\nok", "cut", Truncated, False),
        (CHUNKED + b"2\r\nok\r\n0x2\r\nno\r\n", "wait", ProtocolFailure, False),
        (UNTIL_CLOSE + b"ok", "reset", ReadFailed, False),
        (UNTIL_CLOSE + b"ok", "cut", Truncated, True),  # RFC 9112, section 9.8
    ],
)
async def test_a_body_that_breaks_is_a_failure_after_what_arrived(
    web: Web, answer: bytes, then: str, failure: type[UpstreamFailure], secure: bool
) -> None:
    """A truncated or malformed body is not complete, and its connection is not kept."""
    read_ok = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.raw_head()
        await peer.send(answer)
        await read_ok.wait()
        if then == "reset":
            peer.reset()
        elif then != "wait":
            await (peer.close() if then == "close" else peer.cut())

    response = await web.ask(await web.serve(script, secure))
    body = pieces_of(response.body)
    assert await anext(body) == b"ok"
    read_ok.set()
    with pytest.raises(failure) as caught:
        await anext(body)
    assert type(caught.value) is failure
    response.body.close()
    assert (web.state.lent, web.state.idle) == (0, 0)


async def test_early_bytes_are_received_in_pieces_that_fit(web: Web) -> None:
    """At an offset of the caller's buffer. `pending` and `at_hand` report them."""
    data = bytes(range(250)) * 4
    server = await web.serve(answering(b"HTTP/1.1 200 x\r\nContent-Length: 1000\r\n\r\n" + data))
    body = (await web.ask(server)).body
    assert (body.pending, body.at_hand) == (True, True)
    pieces = [piece async for piece in pieces_of(body, 50)]
    assert (b"".join(pieces), len(pieces), body.pending) == (data, 20, False)
    for _ in range(2):
        body.close()
        assert (web.state.lent, web.state.idle) == (0, 1)


@pytest.mark.parametrize(
    ("chunks", "data"),
    [
        (b"2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n", b"abcde"),
        (b"0\r\n\r\n", b""),
        (b"7\r\n0\r\n\r\nab\r\n0\r\n\r\n", b"0\r\n\r\nab"),
        (b"9\r\n0\r\n\r\n", None),  # data that looks like the end
        (b"2\r\nab\r\n", None),
    ],
)
@pytest.mark.parametrize("taken", [True, False])
async def test_chunks_that_come_with_the_head_are_at_hand(
    web: Web, chunks: bytes, data: bytes | None, taken: bool
) -> None:
    """If the last one is among them; then their connection is kept."""
    server = await web.serve(
        answering(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    )
    body = (await web.ask(server)).body
    assert body.at_hand is (data is not None)
    if data is not None:
        got = body.take() if taken else b"".join([piece async for piece in pieces_of(body, 2)])
        assert (got, body.complete, body.pending) == (data, True, False)
    body.close()
    assert (web.state.lent, web.state.idle) == (0, int(data is not None))


# Deadlines and connecting


@pytest.mark.parametrize("uploads", ["no upload", "own nursery", "given nursery"])
async def test_a_missing_head_times_out(web: Web, uploads: str) -> None:
    """Half a head does not stop the clock."""
    half = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: "
    server = await web.serve(answering(half if uploads != "own nursery" else b""))
    arguments = {} if uploads == "no upload" else upload(b"x")
    if uploads == "given nursery":
        arguments["nursery"] = web.nursery
    with pytest.raises(ReadTimedOut, match=r"no response within 0\.05 s"):
        await web.ask(server, timeouts=CallTimeouts(first_byte_s=0.05), **arguments)
    await web.all_closed(server)


@pytest.mark.parametrize("given", [False, True], ids=["own nursery", "given nursery"])
async def test_the_heads_deadline_starts_after_the_request(web: Web, given: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.raw_head()
        await trio.sleep(0.1)
        await peer.send(OK)

    server = await web.serve(script)
    arguments = {**upload(endless(trio.Event())), **({"nursery": web.nursery} if given else {})}
    timeouts = CallTimeouts(first_byte_s=0.02)
    assert await web.fetch(server, timeouts=timeouts, **arguments) == (200, b"ok")


# Reuse


async def test_a_connection_that_must_not_be_reused_is_closed(web: Web) -> None:
    answers = [
        ("GET", OK + b"surplus"),
        ("GET", CHUNKED + b"2\r\nok\r\n0\r\n\r\nsurplus"),
        ("GET", b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("HEAD", OK),  # the body could be taken for the next response
    ]

    async def script(peer: Peer) -> None:
        await peer.raw_head()
        await peer.send(answers[server.accepted - 1][1])

    server = await web.serve(script)
    for method, _ in answers:
        assert await web.fetch(server, method) == (200, b"" if method == "HEAD" else b"ok")
        await web.all_closed(server)
    assert (server.accepted, web.state.reused) == (len(answers), 0)


async def test_an_unwritten_request_is_sent_again(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection was reset between the check and the write: the request goes over a new
    connection, since another kept one may be dead, too.
    """

    async def script(peer: Peer) -> None:
        number = peer.upstream.accepted
        await peer.raw_head()
        await peer.send(OK)
        if number <= 2:
            peer.reset()

    server = await web.serve(script)
    responses = [await web.ask(server) for _ in range(2)]
    for response in responses:
        await read(response)
        while response.body.connection.is_alive():
            await trio.sleep(0.001)
    assert web.state.idle == 2
    monkeypatch.setattr(Connection, "is_alive", lambda self: True)
    assert await web.fetch(server) == (200, b"ok")
    assert (server.accepted, web.state.reused, web.state.lent) == (3, 1, 0)


async def test_a_request_that_was_written_is_not_sent_again(web: Web) -> None:
    """The server may have carried it out; the failure states it."""
    heads = 0

    async def script(peer: Peer) -> None:
        nonlocal heads
        for _ in range(2):
            await peer.raw_head()
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
        await web.all_closed(server)
        maintaining.cancel_scope.cancel()


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

    async def script(peer: Peer) -> None:
        while True:
            await peer.raw_head()
            await trio.sleep(0.05)  # the writer has to wait
            assert await peer.exactly(MUCH) == b"x" * MUCH
            names.append(peer.stream.selected_alpn_protocol())  # type: ignore[attr-defined]
            await peer.send(answer)

    server = await web.serve(script, True)
    length = [(b"content-length", b"%d" % MUCH)]
    for _ in range(2):
        got = await web.fetch(server, "POST", headers=length, body=b"x" * MUCH)
        assert got == (200, body)
    assert (names, server.accepted) == (["localhost", "http/1.1", "http/1.1"], 1)


async def test_what_does_not_verify_is_a_tls_failure(web: Web, tmp_path: Path) -> None:
    """A certificate of an authority that the CA file or the system does not know, and no TLS."""
    other = str(tmp_path / "other.pem")
    trustme.CA().cert_pem.write_to_path(other)
    plain = await web.serve(lambda peer: peer.send(OK))
    ends = await web.serve(lambda peer: peer.cut())
    secure = await web.serve(answer_forever, True)
    for server, ca_file, text in (
        (secure, other, "certificate not accepted"),
        (secure, None, "certificate not accepted"),
        (plain, other, "TLS failed"),
        (ends, other, None),
    ):
        web.connect(ca_file=ca_file)
        with pytest.raises(TlsFailed, match=text) as caught:
            await web.ask(f"https://localhost:{server.port}")
        assert caught.value.sent is Sent.NOTHING
        await web.all_closed(server)


def test_an_unreadable_ca_file_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("nonsense")
    with pytest.raises(ssl.SSLError):
        Http1Transport(ca_file=str(tmp_path / "no.pem"))
    with pytest.raises(FileNotFoundError):
        Http1Transport(ca_file=str(tmp_path / "missing.pem"))


# Cancellation


@pytest.mark.parametrize(
    "stage", ["connecting", "handshake", "big head", "big body", "big body, TLS", "body, TLS"]
)
async def test_cancelled_where_it_hangs_a_request_leaks_nothing(
    web: Web, certificates: Certificates, full_port: int, stage: str
) -> None:
    """With a request in every slot, and one in the queue."""
    secure = stage.endswith("TLS")

    async def script(peer: Peer) -> None:
        if requests.cancel_scope.cancel_called:
            await answer_forever(peer)
        elif not stage.startswith("big"):
            await peer.raw_head()
            await peer.send(CHUNKED + b"1\r\n")
        else:
            if secure:
                await peer.stream.do_handshake()  # type: ignore[attr-defined]
            await trio.sleep(0.1)  # by then the client has left

    server = await web.serve(script, secure)
    mute = await web.serve(lambda peer: peer.wait_closed())
    url = {
        "connecting": f"http://127.0.0.1:{full_port}",
        "handshake": f"https://localhost:{mute.port}",
    }.get(stage, server.url)
    arguments = upload(b"x" * MUCH) if stage.startswith("big body") else {}
    if stage == "big head":
        arguments = {"headers": [(b"x", b"x" * MUCH)]}
    web.connect(max_connections=3, ca_file=certificates.ca_file)

    async def hang() -> None:
        await web.fetch(url, **arguments)

    async with trio.open_nursery() as requests:
        for _ in range(4):
            requests.start_soon(hang)
        while not web.transport.statistics() or not web.state.waiting:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert (web.state.lent, web.state.idle, web.state.waiting) == (3, 0, 1)
        requests.cancel_scope.cancel()
    await web.all_closed(server if url == server.url else mute)
    with trio.fail_after(2):  # no slot is lost
        for response in [await web.ask(server) for _ in range(3)]:
            assert await read(response) == b"ok"
