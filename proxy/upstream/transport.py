"""The upstream transport: an `httpx.AsyncBaseTransport` on pooled buffers.

It sends the `httpx.Request` it is given, byte for byte, and returns an `httpx.Response` whose stream is an `UpstreamBody`. h11
writes the request's head and parses the response's; the body is framed by `body`, in the caller's buffer. Request extensions:

- `target`: the request target as bytes; without it the URL's;
- `timeout`: httpx's dict; `connect` (waiting for a free connection, and opening one), `write` (each wait), `read` (until the head
  has come, counted from the end of the request; between body bytes when the response is read through httpx);
- `nursery`: a Trio nursery that may go on sending the request body after the head of the response has come. Without one, an
  answer that comes early ends the upload.

A request is sent a second time only when a kept connection turned out to be dead and none of the request's bytes was written.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator

import h11
import httpx
import trio

from pools import Pools

from ..errors import ProtocolFailure, ReadFailed, ReadTimedOut, Truncated
from .body import Chunked, ContentLength, Framing, UntilClose
from .connections import Connection, ConnectionPool, Origin, PoolState

__all__ = ["UpstreamBody", "UpstreamTransport"]

MAX_HEAD_BYTES = 65536
_MAX_INFORMATIONAL = 64
_CLOSE_S = 1.0
_SMALL_BODY_BYTES = 16384
_DEFAULT_PORTS = {"http": 80, "https": 443}


class UpstreamTransport(httpx.AsyncBaseTransport):
    """Connections to any number of origins, each bounded by `max_connections`. Belongs to one Trio loop."""

    def __init__(self, pools: Pools, *, max_connections: int = 10000, ca_file: str | None = None) -> None:
        """`ca_file`: verify against these certificates instead of the system's. Raises `OSError` or `ssl.SSLError`."""
        self._pools = pools
        self._max_connections = max_connections
        self._ca_file = ca_file
        self._ssl_context: ssl.SSLContext | None = None
        if ca_file is not None:
            self._ssl_context = _client_context(ca_file)
        self._origins: dict[Origin, ConnectionPool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; returns when the response's head has come. Its stream must be closed.

        Raises an `UpstreamFailure` (each is an httpx exception too), or `httpx.LocalProtocolError` for a request that cannot
        be sent. Cancelled at any point, it closes the connection and gives back its slot and every buffer.
        """
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        pool = self._pool_of(request.url)
        protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        head = _encode_head(protocol, request)
        if isinstance(request.stream, httpx.ByteStream) and _is_small(request.headers):
            head += _encode_whole_body(protocol, request.stream)
        write_timeout_s = timeouts.get("write")
        fresh = False
        while True:
            connection = await pool.acquire(connect_timeout_s=timeouts.get("connect"), fresh=fresh)
            try:
                await connection.send_all(head, write_timeout_s)
                return await _Exchange(self._pools, pool, connection, protocol, request).run()
            except BaseException as error:
                pool.release(connection, reusable=False)
                if not isinstance(error, ReadFailed) or not connection.used or connection.written:
                    raise
                fresh = True  # a kept connection was dead, and none of this request's bytes has left

    async def maintain(self) -> None:
        """Close idle connections that have had their time, every few seconds, until cancelled."""
        while True:
            await trio.sleep(5)
            for pool in self._origins.values():
                pool.expire()

    async def aclose(self) -> None:
        """Close idle connections. Those on loan belong to their responses."""
        for pool in self._origins.values():
            pool.close()

    def statistics(self) -> tuple[PoolState, ...]:
        """A snapshot of each origin's connections."""
        return tuple(pool.state() for pool in self._origins.values())

    def _pool_of(self, url: httpx.URL) -> ConnectionPool:
        try:
            origin = Origin(url.scheme, url.host, url.port or _DEFAULT_PORTS[url.scheme])
        except KeyError:
            raise httpx.UnsupportedProtocol(f"{url.scheme!r} is neither http nor https") from None
        pool = self._origins.get(origin)
        if pool is None:
            context = None
            if origin.scheme == "https":
                context = self._ssl_context = self._ssl_context or _client_context(None)
            pool = self._origins[origin] = ConnectionPool(origin, self._max_connections, context)
        return pool


class UpstreamBody(httpx.AsyncByteStream):
    """The body of one response. Read it with `receive` and `wait_readable`, or, through httpx, as an async iterator.

    Close it: `aclose` (never blocks) gives the connection back, kept alive if the exchange ended clean, closed if not.
    """

    def __init__(
        self,
        pools: Pools,
        pool: ConnectionPool,
        connection: Connection,
        framing: Framing,
        early: bytes,
        keep_alive: bool,
        read_timeout_s: float | None,
    ) -> None:
        self.connection = connection
        self._pools = pools
        self._pool = pool
        self._framing = framing
        self._early = early  # body bytes that came with the head
        self._keep_alive = keep_alive
        self._read_timeout_s = read_timeout_s
        self._closed = False
        self._tls = connection.tls
        self._broken: ProtocolFailure | None = None  # to be raised when what came before it has been handed out
        self.upload: _Upload | None = None
        self.complete = framing.complete
        """Whether the whole body has been received."""

    @property
    def pending(self) -> bool:
        """Whether there is something to receive that readiness of the socket would not tell."""
        return bool(self._early) or (self._tls and self.connection.pending) or self._broken is not None

    def receive(self, buffer: bytearray, at: int) -> tuple[int, int] | None:
        """Read once into `buffer[at:]`, which must have room, and frame in place. Never blocks.

        Returns `(first, last)`, the body bytes as `body` tells (none at all when they were all framing); None when nothing
        is there yet. Not to be called when `complete`. Raises `UpstreamFailure`.
        """
        if self._broken is not None:
            raise self._broken
        if self._early:
            count = min(len(self._early), len(buffer) - at)
            buffer[at : at + count] = self._early[:count]
            self._early = self._early[count:]
        else:
            try:
                received = self.connection.receive_into(buffer, at)
                if received == 0:
                    if self.upload is not None and self.upload.failure is not None:
                        raise self.upload.failure  # what looks like the end is our own doing
                    try:
                        self._framing.eof()
                    except Truncated as error:
                        raise Truncated(f"{self.connection.origin}: {error}") from None
                    self.complete = True
            except (ReadFailed, Truncated) as error:
                raise self._cause(error) from None
            if not received:
                return None if received is None else (at, at)
            count = received
        framing = self._framing
        try:
            span = framing.frame(buffer, at, at + count)
        except ProtocolFailure as error:
            self._broken = ProtocolFailure(f"{self.connection.origin}: {error}")
            if framing.framed[0] == framing.framed[1]:
                raise self._broken from None
            return framing.framed  # good bytes came before the bad ones
        self.complete = framing.complete
        return span

    async def wait_readable(self) -> None:
        """Wait until `receive` may find something."""
        if self._early or self._broken is not None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.connection.wait_readable()
        except ReadFailed as error:
            raise self._cause(error) from None

    def _cause(self, error: Exception) -> Exception:
        """Why the connection broke: an upload that could not go on has ended it, or it broke by itself."""
        return self.upload.failure if self.upload is not None and self.upload.failure is not None else error

    def close(self) -> None:
        """Give the connection back. Safe to call again; never blocks."""
        if self._closed:
            return
        self._closed = True
        uploaded = self.upload is None or self.upload.complete
        clean = self.complete and not self._framing.surplus and not self._early
        if self.upload is not None:
            self.upload.scope.cancel()
        self._pool.release(self.connection, reusable=self._keep_alive and clean and uploaded)

    async def aclose(self) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _BodyIterator(self)

    async def next_bytes(self) -> bytes:
        """The next piece of the body, a copy; b"" at its end. For users of httpx; the relay does not come this way."""
        while not self.complete:
            try:
                with trio.fail_after(self._read_timeout_s if self._read_timeout_s is not None else float("inf")):
                    await self.wait_readable()
            except trio.TooSlowError:
                raise ReadTimedOut(f"{self.connection.origin}: silent for {self._read_timeout_s} s") from None
            with self._pools.http_response.acquire() as lease:
                span = self.receive(lease.buffer, 0)
                if span is not None and span[0] < span[1]:
                    return bytes(lease.buffer[span[0] : span[1]])
        return b""


class _BodyIterator:
    """Iterates over a body. An object, not a generator: no async generator owns a socket."""

    def __init__(self, body: UpstreamBody) -> None:
        self._body = body

    def __aiter__(self) -> _BodyIterator:
        return self

    async def __anext__(self) -> bytes:
        data = await self._body.next_bytes()
        if not data:
            raise StopAsyncIteration
        return data


class _Upload:
    """The request body on its way up. `complete` once all of it has left."""

    def __init__(self, connection: Connection, protocol: h11.Connection, request: httpx.Request) -> None:
        self._connection = connection
        self._protocol = protocol
        self._stream = request.stream
        self._write_timeout_s: float | None = request.extensions.get("timeout", {}).get("write")
        self.scope = trio.CancelScope()
        self.complete = False
        self.failure: Exception | None = None

    async def run(self, waiting: _HeadWait) -> None:
        """Send the body, then let the time for the head begin. Raises nothing but `Cancelled`: `failure` tells."""
        with self.scope:
            try:
                assert isinstance(self._stream, httpx.AsyncByteStream)
                chunks = aiter(self._stream)
                try:
                    async for chunk in chunks:
                        await self._send(h11.Data(data=chunk))
                finally:
                    if isinstance(chunks, AsyncGenerator):
                        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                            await chunks.aclose()  # not left to the garbage collector
                await self._send(h11.EndOfMessage())
                self.complete = True
            except ReadFailed:
                pass  # the answer may be there all the same, and if it is not, reading tells
            except (
                Exception
            ) as error:  # too slow, a body that is not as long as announced, or whatever the body's source raises
                self.failure = error
                if isinstance(error, h11.LocalProtocolError):
                    self.failure = httpx.LocalProtocolError(str(error))
                waiting.scope.cancel()
                # After the head, the relay is who reads: it must not wait for the answer to a request that stays unfinished.
                self._connection.shut_down()
        waiting.start_clock()

    async def _send(self, event: h11.Event) -> None:
        data = self._protocol.send(event)
        if data:
            await self._connection.send_all(data, self._write_timeout_s)


class _HeadWait:
    """The time that the head may take, counted from the end of the request."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self.scope = trio.CancelScope()

    def start_clock(self) -> None:
        if self.timeout_s is not None:
            self.scope.deadline = trio.current_time() + self.timeout_s


class _Exchange:
    """One request on one connection, from behind its head to the head of the response."""

    def __init__(
        self, pools: Pools, pool: ConnectionPool, connection: Connection, protocol: h11.Connection, request: httpx.Request
    ) -> None:
        self._pools = pools
        self._pool = pool
        self._connection = connection
        self._protocol = protocol
        self._request = request
        self._waiting = _HeadWait(request.extensions.get("timeout", {}).get("read"))

    async def run(self) -> httpx.Response:
        if self._protocol.our_state is not h11.SEND_BODY:
            self._waiting.start_clock()
            return await self._response(None)
        upload = _Upload(self._connection, self._protocol, self._request)
        nursery: trio.Nursery | None = self._request.extensions.get("nursery")
        if nursery is not None:
            nursery.start_soon(upload.run, self._waiting)
            try:
                return await self._response(upload)
            except BaseException:
                upload.scope.cancel()
                raise
        async with trio.open_nursery() as own:
            own.start_soon(upload.run, self._waiting)
            result: httpx.Response | Exception
            try:
                result = await self._response(upload)
            except Exception as error:
                result = error  # raised outside of the nursery, which would wrap it in a group
            upload.scope.cancel()
        if isinstance(result, Exception):
            raise result
        return result

    async def _response(self, upload: _Upload | None) -> httpx.Response:
        head = None
        with self._waiting.scope:
            head = await self._read_head()
        if head is None:
            if upload is not None and upload.failure is not None:
                raise upload.failure
            raise ReadTimedOut(f"{self._connection.origin}: no response within {self._waiting.timeout_s} s")
        early, _ = self._protocol.trailing_data
        try:
            framing, ends = _framing_of(self._request.method, head)
        except ProtocolFailure as error:
            raise ProtocolFailure(f"{self._connection.origin}: {error}") from None
        body = UpstreamBody(
            self._pools,
            self._pool,
            self._connection,
            framing,
            early,
            keep_alive=ends and _keeps_alive(head),
            read_timeout_s=self._waiting.timeout_s,
        )
        body.upload = upload
        return httpx.Response(
            head.status_code,
            headers=list(head.headers.raw_items()),
            stream=body,
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
            request=self._request,
        )

    async def _read_head(self) -> h11.Response:
        connection, protocol = self._connection, self._protocol
        informational = 0
        while True:
            try:
                event = protocol.next_event()
            except h11.RemoteProtocolError:
                # Not h11's words: they quote the head, and with it whatever secret it holds.
                raise ProtocolFailure(
                    f"{connection.origin}: the response's head is not acceptable HTTP (RFC 9112)"
                ) from None
            if isinstance(event, h11.Response):
                if event.http_version not in (b"1.0", b"1.1"):
                    raise ProtocolFailure(f"{connection.origin}: the response is not HTTP/1.1")
                return event
            if event is h11.PAUSED:
                raise ProtocolFailure(f"{connection.origin}: switched to a protocol that nobody here speaks")
            if isinstance(event, h11.InformationalResponse):
                informational += 1
                if informational > _MAX_INFORMATIONAL:
                    raise ProtocolFailure(f"{connection.origin}: more than {_MAX_INFORMATIONAL} informational responses")
                continue
            await connection.wait_readable()
            with self._pools.http_response.acquire() as lease:
                try:
                    count = connection.receive_into(lease.buffer, 0)
                except Truncated:  # the same on TLS, but for the goodbye
                    count = 0
                if count == 0:
                    raise ReadFailed(f"{connection.origin}: closed the connection without a response")
                if count is not None:
                    protocol.receive_data(bytes(lease.buffer[:count]))


def _encode_head(protocol: h11.Connection, request: httpx.Request) -> bytes:
    target = request.extensions.get("target", request.url.raw_path)
    try:
        data = protocol.send(h11.Request(method=request.method, target=target, headers=request.headers.raw))
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    assert data is not None
    return data


def _is_small(headers: httpx.Headers) -> bool:
    """Whether a body, or none at all, may be written at once: nothing would be answered before it was there."""
    return "transfer-encoding" not in headers and int(headers.get("content-length", "0")) <= _SMALL_BODY_BYTES


def _encode_whole_body(protocol: h11.Connection, stream: httpx.ByteStream) -> bytes:
    """A small body that is in memory goes along with the head, and the end of the message with it."""
    try:
        data = b"".join(protocol.send(h11.Data(data=piece)) or b"" for piece in stream if piece)
        return data + (protocol.send(h11.EndOfMessage()) or b"")
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error


def _framing_of(method: str, head: h11.Response) -> tuple[Framing, bool]:
    """How the body ends (RFC 9112, section 6.3), and whether it ends before the connection does."""
    if method == "HEAD" or head.status_code in (204, 304):
        return ContentLength(0), True
    length = None
    chunked = False
    for name, value in head.headers:
        if name == b"transfer-encoding":
            chunked = True  # h11 has refused everything but "chunked"
        elif name == b"content-length":
            length = int(value)
    if chunked:
        if length is not None:
            # Section 6.3, item 3: an attempt at response splitting, or a broken server. h11 would let it pass.
            raise ProtocolFailure("the response has both Transfer-Encoding and Content-Length")
        return Chunked(), True
    if length is not None:
        return ContentLength(length), True
    return UntilClose(), False


def _keeps_alive(head: h11.Response) -> bool:
    if head.http_version < b"1.1":
        return False
    return not any(name == b"connection" and b"close" in value.lower() for name, value in head.headers)


def _client_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
