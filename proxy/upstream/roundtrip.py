"""One request on one connection: its body on the way up, until the head of the response has come
down.

`head` writes and reads; what has to be awaited is awaited here. It does not choose connections, and
gives none back: it hands the connection to an `UpstreamBody`, or raises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import httpx
import trio

from pools import Pools

from ..errors import ProtocolFailure, ReadFailed, ReadTimedOut, Truncated
from ..http.body import Chunked, ContentLength, Framing, UntilClose
from ..http.head import BadRequest, BodyEncoder, HeadReader, ResponseHead
from .connections import Connection, ConnectionPool
from .response import UpstreamBody

__all__ = ["RoundTrip", "Upload"]

OnInterim = Callable[[httpx.Request, int, Sequence[tuple[bytes, bytes]]], Awaitable[None]]

_CLOSE_S = 1.0


class Upload:
    """The request body on its way up. `complete` once all of it has left."""

    def __init__(
        self, connection: Connection, encoder: BodyEncoder, request: httpx.Request
    ) -> None:
        self._connection = connection
        self._encoder = encoder
        self._stream: httpx.AsyncByteStream | None
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self._stream = request.stream
        self._write_timeout_s: float | None = request.extensions.get("timeout", {}).get("write")
        self.scope = trio.CancelScope()
        self.complete = False
        self.failure: Exception | None = None

    async def run(self, waiting: _HeadWait) -> None:
        """Send the body, then let the time for the head begin. Raises nothing but `Cancelled`:
        `failure` tells.
        """
        with self.scope:
            try:
                assert self._stream is not None
                chunks = aiter(self._stream)
                try:
                    async for chunk in chunks:
                        await self._send(self._encoder.data(chunk))
                finally:
                    if isinstance(chunks, AsyncGenerator):
                        with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                            await chunks.aclose()  # not left to the garbage collector
                await self._send(self._encoder.end())
                self.complete = True
            except ReadFailed:
                pass  # the answer may be there all the same, and if it is not, reading tells
            except Exception as error:  # too slow, a body that is not as long as announced, or whatever the body's source raises
                self.failure = error
                if isinstance(error, BadRequest):
                    self.failure = httpx.LocalProtocolError(str(error))
                waiting.scope.cancel()
                # After the head, the relay is who reads: it must not wait for the answer to a
                # request that stays unfinished.
                self._connection.shut_down()
        self._stream = None  # of a body in memory, which the response may outlast by hours
        waiting.start_clock()

    async def _send(self, data: bytes) -> None:
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


class RoundTrip:
    """One request on one connection, from behind its head to the head of the response."""

    def __init__(
        self,
        pools: Pools,
        pool: ConnectionPool,
        connection: Connection,
        encoder: BodyEncoder | None,
        request: httpx.Request,
    ) -> None:
        """`encoder`: of the body that is still to be sent; None when all of the request has left."""
        self._pools = pools
        self._pool = pool
        self._connection = connection
        self._encoder = encoder
        self._request = request
        self._waiting = _HeadWait(request.extensions.get("timeout", {}).get("read"))

    async def run(self) -> httpx.Response:
        if self._encoder is None:
            self._waiting.start_clock()
            return await self._response(None)
        upload = Upload(self._connection, self._encoder, self._request)
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

    async def _response(self, upload: Upload | None) -> httpx.Response:
        head = None
        with self._waiting.scope:
            head = await self._read_head()
        if head is None:
            if upload is not None and upload.failure is not None:
                raise upload.failure
            raise ReadTimedOut(
                f"{self._connection.origin}: no response within {self._waiting.timeout_s} s"
            )
        framing = _framing_of(self._request.method, head)
        body = UpstreamBody(
            self._pools,
            self._pool,
            self._connection,
            framing,
            head.early,
            keep_alive=not head.closes and not isinstance(framing, UntilClose),
            read_timeout_s=self._waiting.timeout_s,
        )
        body.upload = upload
        return httpx.Response(
            head.status,
            headers=head.headers,
            stream=body,
            extensions={"http_version": b"HTTP/" + head.version, "reason_phrase": head.reason},
            request=self._request,
        )

    async def _read_head(self) -> ResponseHead:
        connection = self._connection
        reader = HeadReader()
        on_interim: OnInterim | None = self._request.extensions.get("interim")
        while True:
            await connection.wait_readable()
            with self._pools.http_response.acquire() as lease:
                head = self._receive(reader, lease.buffer)
            if reader.interim:
                interim, reader.interim = reader.interim, []
                if on_interim is not None:
                    for each in interim:
                        await on_interim(self._request, each.status, each.headers)
            if head is not None:
                return head

    def _receive(self, reader: HeadReader, buffer: bytearray) -> ResponseHead | None:
        connection = self._connection
        try:
            count = connection.receive_into(buffer, 0)
        except Truncated:  # the same on TLS, but for the goodbye
            count = 0
        if count == 0:
            raise ReadFailed(f"{connection.origin}: closed the connection without a response")
        if count is None:
            return None
        try:
            return reader.receive(bytes(buffer[:count]))
        except ProtocolFailure as error:
            raise ProtocolFailure(f"{connection.origin}: {error}") from None


def _framing_of(method: str, head: ResponseHead) -> Framing:
    """How the body ends (RFC 9112, section 6.3)."""
    if method == "HEAD" or head.status in (204, 304):
        return ContentLength(0)
    if head.chunked:
        return Chunked()
    return UntilClose() if head.length is None else ContentLength(head.length)
