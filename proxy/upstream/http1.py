"""HTTP/1.1 to the endpoints of one upstream, on pooled connections.

`Http1Transport` sends one attempt of an `UpstreamCall` and returns when the response's head has
arrived; the body is read later, through `UpstreamBody`. Heads are sent byte for byte as given.

Invariants:

- a request is written a second time only if a kept connection was dead and no byte had left;
- each connection goes back to its pool exactly once, whatever is cancelled;
- each `UpstreamFailure` states what was sent and whether the connection had been used before.

It does not choose endpoints and does not retry: `Balancer` does.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable
from math import inf

import msgspec
import trio

from ..errors import ProtocolFailure, ReadFailed, ReadTimedOut, Sent, Truncated, UpstreamFailure
from ..http.body import UntilClose, framing_of
from ..http.head import BodyEncoder, HeadReader, ResponseHead, encode_head, join_head
from ..hub import current_time
from .body import UpstreamBody
from .call import UpstreamCall, UpstreamResponse
from .connection import Connection
from .connections import ConnectionPool, ConnectTime, PoolState, Slots
from .endpoints import Endpoint
from .origin import Origin, server_name
from .resolver import Resolver
from .upload import Upload

__all__ = ["CONTINUE_S", "Http1Transport"]

CONTINUE_S = 1.0
"""How long a request with `Expect: 100-continue` waits for a 100 or a response before its body is
asked for anyway (RFC 9110, section 10.1.1: a server may not know the expectation).
"""

_SMALL_BODY_BYTES = 16384
_READ_BYTES = 16384
_EXPIRE_EVERY_S = 5


class Http1Transport:
    """Connections to any number of origins, together at most `max_connections`. Belongs to one Trio
    loop.
    """

    def __init__(
        self,
        resolver: Resolver | None = None,
        *,
        max_connections: int = 10000,
        tls: bool = False,
        ca_file: str | None = None,
        tls_server_name: str | None = None,
    ) -> None:
        """`resolver`: the worker's; without one, origins must be addresses. `tls`: load the
        certificate authorities now instead of with the first connection, when no file descriptor
        may be left. `ca_file`: verify against these instead of the system's. `tls_server_name`:
        send and verify this name, or verify this address, instead of the origin's host.

        Raises `OSError`, `ssl.SSLError`, `ValueError`.
        """
        self._resolver = Resolver() if resolver is None else resolver
        self._slots = Slots(max_connections)
        self._tls_server_name = None if tls_server_name is None else server_name(tls_server_name)
        self._ssl_context: ssl.SSLContext | None = None
        if tls or ca_file is not None:
            self._ssl_context = _client_context(ca_file)
        self._origins: dict[Origin, ConnectionPool] = {}

    async def call(
        self,
        call: UpstreamCall,
        endpoint: Endpoint,
        *,
        target: bytes | None = None,
        host: bytes | None = None,
        new_connection: bool = False,
    ) -> UpstreamResponse:
        """Send one attempt; return when the response's head has arrived. Its body must be closed.

        `target`, `host`: instead of the call's. Raises `UpstreamFailure`, and `BadRequest` for a
        request that cannot be written as HTTP/1.1. When cancelled, it closes the connection and
        returns its slot.
        """
        pool = self._origins.get(endpoint.server) or self._open_pool(endpoint.server)
        message = _Message(call, call.target if target is None else target, host)
        while True:
            connection = None if new_connection else pool.lend_kept()
            if connection is None:
                time = ConnectTime(call.timeouts.connect_s)
                try:
                    connection = await pool.acquire(time, fresh=new_connection)
                except UpstreamFailure as failure:
                    failure.sent = Sent.NOTHING
                    raise
            attempt = _Attempt(pool, connection, call, message)
            try:
                return attempt.response(endpoint, await attempt.run())
            except BaseException as error:
                pool.release(connection, reusable=False)
                if isinstance(error, UpstreamFailure):
                    error.sent, error.reused = attempt.sent, connection.used
                if not isinstance(error, ReadFailed) or not connection.used or connection.written:
                    raise
                new_connection = True  # another kept connection may be dead as well

    async def maintain(self) -> None:
        """Close expired idle connections every few seconds, until cancelled."""
        while True:
            await trio.sleep(_EXPIRE_EVERY_S)
            for pool in self._origins.values():
                pool.expire()

    async def aclose(self) -> None:
        """Close idle connections. Those on loan belong to their responses."""
        for pool in self._origins.values():
            pool.close()

    def statistics(self) -> tuple[PoolState, ...]:
        """A snapshot of each origin's connections."""
        return tuple(pool.state() for pool in self._origins.values())

    def _open_pool(self, origin: Origin) -> ConnectionPool:
        context = None
        if origin.scheme == "https":
            context = self._ssl_context = self._ssl_context or _client_context(None)
        pool = self._origins[origin] = ConnectionPool(
            origin, self._slots, self._resolver, context, self._tls_server_name
        )
        return pool


class _Message:
    """A request as bytes: what is written first, and an encoder for the rest."""

    __slots__ = ("encoder", "first", "head_bytes")

    def __init__(self, call: UpstreamCall, target: bytes, host: bytes | None) -> None:
        """Raises `BadRequest`."""
        self.encoder: BodyEncoder | None = None
        """None if the whole request is in `first`."""
        body = call.body
        if call.is_sound and isinstance(body, bytes) and len(body) <= _SMALL_BODY_BYTES:
            head = join_head(call.method, target, call.headers, host)
            self.first, self.head_bytes = head + body, len(head)
            return
        self.first, length = encode_head(call.method, target, call.headers, host=host)
        self.head_bytes = len(self.first)
        if isinstance(body, bytes) and len(body) == length and len(body) <= _SMALL_BODY_BYTES:
            self.first += body
            return
        self.encoder = encoder = BodyEncoder(length)
        if isinstance(body, bytes) and length is not None and length <= _SMALL_BODY_BYTES:
            self.first += encoder.data(body) + encoder.end()  # raises: it has another length


class _Attempt(msgspec.Struct, eq=False):
    """One request on one connection, until the response's head has arrived.

    It neither chooses the connection nor returns it.
    """

    _pool: ConnectionPool
    _connection: Connection
    _call: UpstreamCall
    _message: _Message
    _upload: Upload | None = None

    @property
    def sent(self) -> Sent:
        """How much of the request has been written so far."""
        written, message = self._connection.written, self._message
        if not written:
            return Sent.NOTHING
        in_first = message.encoder is None and written == len(message.first)
        if in_first or (self._upload is not None and self._upload.complete):
            return Sent.ALL
        has_begun = self._upload is not None and self._upload.taken
        return Sent.HEAD if written <= message.head_bytes and not has_begun else Sent.BODY

    def run(self) -> Awaitable[ResponseHead]:
        """Send the request; return the response's head. Raises `UpstreamFailure`, `BadRequest`, and
        whatever the iteration of the body raises.
        """
        encoder = self._message.encoder
        return self._send_whole() if encoder is None else self._send_and_upload(encoder)

    async def _send_whole(self) -> ResponseHead:
        """Send a request of one piece, and read the head."""
        connection, timeouts = self._connection, self._call.timeouts
        rest: bytes | memoryview = self._message.first
        if connection.tls or (rest := connection.send(rest)):
            await connection.send_all(rest, timeouts.write_s)
        head = await self._read_head(timeouts.first_byte_s, HeadReader())
        if head is None:
            raise self._no_response()
        return head

    async def _send_and_upload(self, encoder: BodyEncoder) -> ResponseHead:
        """Send the beginning of a request, and the rest in another task; read the head."""
        write_s, first_byte_s = self._call.timeouts.write_s, self._call.timeouts.first_byte_s
        await self._connection.send_all(self._message.first, write_s)
        self._upload = upload = Upload(self._connection, encoder, self._call.body, write_s)
        due = trio.CancelScope()  # the head's deadline, which starts when the upload ends
        if self._call.nursery is None:
            return await self._upload_until_head(upload, due)
        self._call.nursery.start_soon(upload.run, due, first_byte_s)
        try:
            return await self._receive_head(upload, due)
        except BaseException as error:
            upload.scope.cancel()
            if isinstance(error, UpstreamFailure):
                await upload.ended.wait()  # until then it may take a piece, which rules out a retry
            raise

    def response(self, endpoint: Endpoint, head: ResponseHead) -> UpstreamResponse:
        """The response to hand out: the connection belongs to its body from now on."""
        framing, upload = framing_of(self._call.method, head), self._upload
        # A server that answers an expectation may take the body after that for the next request.
        is_early = self._call.ask_for_body is not None and upload and not upload.complete
        body = UpstreamBody(
            self._pool,
            self._connection,
            framing,
            head.early,
            keep_alive=not (head.closes or is_early or isinstance(framing, UntilClose)),
            upload=upload,
        )
        return UpstreamResponse(
            head.status, head.headers, body, endpoint, version=head.version, reason=head.reason
        )

    async def _upload_until_head(self, upload: Upload, due: trio.CancelScope) -> ResponseHead:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload.run, due, self._call.timeouts.first_byte_s)
            result: ResponseHead | Exception
            try:
                result = await self._receive_head(upload, due)
            except Exception as error:
                result = error  # raised outside of the nursery, which would wrap it in a group
            upload.scope.cancel()
        if isinstance(result, Exception):
            raise result
        return result

    async def _receive_head(self, upload: Upload, due: trio.CancelScope) -> ResponseHead:
        """Wait for the head while the request is being sent."""
        reader, ask_for_body = HeadReader(), self._call.ask_for_body
        with due:
            head: ResponseHead | None = None
            if ask_for_body is not None:
                head = await self._read_head(CONTINUE_S, reader)
                if head is None:
                    await ask_for_body()
            head = head or await self._read_head(inf, reader)
            assert head is not None
            return head
        if upload.failure is not None:
            raise upload.failure
        raise self._no_response()

    async def _read_head(self, timeout_s: float, reader: HeadReader) -> ResponseHead | None:
        """Read the head, and pass on the informational responses before it. None if `timeout_s` has
        passed; it may be called again with the same `reader`.
        """
        connection, left_s = self._connection, timeout_s
        due = inf if timeout_s == inf else current_time() + timeout_s
        while await connection.wait_readable(left_s):
            try:
                data = connection.receive(_READ_BYTES)
            except Truncated:  # an end like any other, over TLS and without close_notify
                data = b""
            if data == b"":
                raise ReadFailed(f"{connection.origin}: closed the connection without a response")
            try:
                head = None if data is None else reader.receive(data)
            except ProtocolFailure as error:
                raise ProtocolFailure(f"{connection.origin}: {error}") from None
            if reader.interim:
                await self._pass_interim(reader)
            if head is not None:
                return head
            left_s = max(0.0, due - current_time())
        return None

    def _no_response(self) -> ReadTimedOut:
        first_byte_s = self._call.timeouts.first_byte_s
        return ReadTimedOut(f"{self._connection.origin}: no response within {first_byte_s} s")

    async def _pass_interim(self, reader: HeadReader) -> None:
        interim, reader.interim = reader.interim, []
        on_interim = self._call.on_interim
        if on_interim is not None:
            for each in interim:
                await on_interim(self._call, each.status, each.headers)


def _client_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
