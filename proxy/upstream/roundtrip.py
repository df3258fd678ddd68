"""One request on one connection: its body on the way up, until the head of the response has come down.

h11 writes and parses; what has to be awaited is awaited here. It does not choose connections, and gives none back: it hands the
connection to an `UpstreamBody`, or raises.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import h11
import httpx
import trio

from pools import Pools

from ..errors import ProtocolFailure, ReadFailed, ReadTimedOut, Truncated
from .body import Chunked, ContentLength, Framing, UntilClose
from .connections import Connection, ConnectionPool
from .response import UpstreamBody

__all__ = ["RoundTrip", "Upload"]

_MAX_INFORMATIONAL = 64
_CLOSE_S = 1.0


class Upload:
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


class RoundTrip:
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
        upload = Upload(self._connection, self._protocol, self._request)
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
