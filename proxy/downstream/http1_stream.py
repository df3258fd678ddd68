"""One HTTP/1.1 request of a client and its response: `ClientStream` and `Writer` in one object.

It frames both bodies. What it needs of the connection is `Connection`; it does not watch the socket
and does not decide whether the connection is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from math import inf
from typing import Any, Protocol

import trio

from interceptors.chain import Part

from ..errors import ClientGone, ProtocolFailure, RequestRefused
from ..http.body import LAST_CHUNK, Chunked, has_no_body
from ..http.headers import HeaderList
from ..http.request import RequestHead, RequestReader
from .date import http_date
from .transport import Transport

__all__ = ["Http1Stream"]

_LINGER_S = 10.0
_LINGER_BYTES = 64 * 1024 * 1024


class Server(Protocol):
    """The server of a connection."""

    @property
    def ends(self) -> bool:
        """The server ends: the next response of a connection is its last."""
        ...


class Connection(Protocol):
    """The connection of a stream."""

    @property
    def server(self) -> Server: ...

    transport: Transport
    peer: str | None
    reader: RequestReader
    """What has arrived and is not taken."""
    timed_out: bool

    scope: trio.CancelScope
    """In which requests are served."""

    async def more(self, timeout_s: float = inf) -> bool:
        """Wait until more has arrived. Returns False if nothing will, or has within `timeout_s`."""
        ...

    def lose(self) -> None:
        """The client has left."""
        ...

    def cut(self) -> None:
        """Reset the connection. Synchronous."""
        ...


class Http1Stream:
    """One request and its response: `ClientStream` and its `Writer`."""

    __slots__ = (
        "_bodiless",
        "_broken",
        "_chunked",
        "_connection",
        "_continues",
        "_framing",
        "_head",
        "_left",
        "_to_receive",
        "_unsent",
        "_whole",
        "bytes_sent",
        "closes",
        "complete",
        "ended",
        "gone",
        "head",
        "on_gone",
        "peer",
        "scheme",
        "scope",
        "started",
    )

    name = "direct"
    synchronous = True
    holds_response = False
    calls_back = True

    def __init__(self, connection: Connection, head: RequestHead) -> None:
        self._connection = connection
        self.head = head
        self.peer = connection.peer
        self.scheme = "https" if connection.transport.secure else "http"
        self.scope: trio.CancelScope | None = connection.scope
        self.on_gone: Callable[[], None] | None = None
        self.complete = head.length == 0
        self.gone = False
        self._framing = Chunked(of_request=True) if head.length is None else None
        self._to_receive = head.length or 0  # of a body with a length
        self._broken = False  # its framing
        self._continues = head.expects_continue and not self.complete
        # The response
        self.started = self.ended = False
        self.closes = False
        """The response says that the connection is closed."""
        self.bytes_sent = 0
        self._head = b""  # held until the body's first bytes
        self._unsent: memoryview | None = None
        self._chunked = False
        self._whole = False  # the next write is the whole chunked body, and brings its end
        self._bodiless = False
        self._left: int | None = None  # of a body with a Content-Length

    # The request

    @property
    def at_hand(self) -> bool:
        return self.complete or 0 < self._to_receive <= len(self._connection.reader.data)

    @property
    def is_cut(self) -> bool:
        """Whether the request is known to be incomplete, if nothing more arrives."""
        return self._to_receive > len(self._connection.reader.data)

    @property
    def waits_for_continue(self) -> bool:
        return self._continues and not self._connection.reader.data

    @property
    def timed_out(self) -> bool:
        return self._connection.timed_out

    def leave(self) -> None:
        """The client has left."""
        if not self.gone:
            self.gone = True
            if self.on_gone is not None:
                self.on_gone()

    def receive_nowait(self) -> bytes | None:
        if self.complete:
            return None
        data = self._take()
        return data if data or self.complete else None

    async def receive(self) -> bytes:
        connection = self._connection
        if self.complete or self.gone:
            await self.wait_hangup()
            return b""
        data = self._take()
        while not data and not self.complete:
            if not await connection.more():
                connection.lose()
                return b""
            data = self._take()
        return data

    def _take(self) -> bytes:
        """The bytes of the body that have arrived. Raises `RequestRefused`."""
        reader = self._connection.reader
        if not reader.data:
            return b""
        self._continues = False
        if self._framing is None:
            data = reader.take(self._to_receive)
            self._to_receive -= len(data)
            self.complete = not self._to_receive
            return data
        buffer = bytearray(reader.data)
        reader.data = b""
        try:
            first, last = self._framing.frame(buffer, 0, len(buffer))
        except ProtocolFailure as error:
            self._broken = self.closes = True
            raise RequestRefused(
                400, "bad_request", f"the request's body is not acceptable HTTP: {error}"
            ) from None
        if self._framing.complete:
            self.complete = True
            if self._framing.surplus:
                reader.data = bytes(buffer[self._framing.surplus_at :])
        return bytes(buffer[first:last])

    async def discard(self) -> bool:
        """Receive and drop the rest of the request, within limits of time and size. Returns whether
        it has ended.
        """
        if self._continues or self._broken:
            return False  # the client sends it only after a 100, or its end cannot be found
        left = _LINGER_BYTES
        try:
            with trio.move_on_after(_LINGER_S):
                while not self.complete and not self.gone and left > 0:
                    left -= len(await self.receive())
        except RequestRefused:
            return False
        return self.complete

    async def wait_hangup(self) -> None:
        if not self.gone:
            left = trio.Event()
            self.on_gone, before = left.set, self.on_gone
            try:
                await left.wait()
            finally:
                self.on_gone = before

    @property
    def names(self) -> tuple[Any, Any]:
        """As `Transport.names`."""
        return self._connection.transport.names

    def limit_send(self, timeout_s: float) -> None:
        self._connection.transport.limit_send(timeout_s)

    def send_probes(self) -> None:
        self._connection.transport.send_probes()

    # The response

    def writer(self, *, chunked: bool) -> Http1Stream:
        return self

    @property
    def stalled(self) -> bool:
        return self._unsent is not None

    @property
    def keeps_chunks(self) -> bool:
        return self._chunked

    @property
    def shows_its_end(self) -> bool:
        """A client sees from the framing alone that the response is incomplete."""
        return self._chunked or bool(self._left)

    def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> bool:
        request, names = self.head, dict(headers)
        self.started = True
        self._bodiless = has_no_body(request.method, status)
        length = names.get(b"content-length")
        self._left = int(length) if length is not None else None
        self.closes = self.closes or names.get(b"connection") == b"close"
        if b"connection" in names:
            headers = [field for field in headers if field[0] != b"connection"]
        lines = [_STATUS_LINES.get(status) or status_line(status), *map(b": ".join, headers)]
        if not self._bodiless and length is None:
            if request.version == "1.0":
                self.closes = True
            else:
                self._chunked = True
                lines.append(b"transfer-encoding: chunked")
        if b"date" not in names:
            lines.append(b"date: " + http_date())
        if not request.keep_alive or self.closes or self._continues or self._connection.server.ends:
            self.closes = True
            lines.append(b"connection: close")
        self._head = b"\r\n".join(lines) + b"\r\n\r\n"
        self._whole = whole and self._chunked
        return True if whole else self._write((), 0)

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        self._continues = self._continues and status != 100
        lines = [status_line(status), *map(b": ".join, headers)]
        await self._send_all(b"\r\n".join(lines) + b"\r\n\r\n")

    async def _send_all(self, data: bytes) -> None:
        if not self._write((data,), 0):
            while not await self.drain():
                pass

    def write(self, parts: Sequence[Part]) -> bool:
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if not size or self._bodiless:
            return True  # a chunk of size 0 would end the body
        if self._left is not None and size > self._left:
            raise ValueError("the response is longer than its Content-Length")
        if not self._chunked:
            return self._write(parts, size)
        if self._whole:
            self._chunked = False  # nothing more is written
            return self._write((b"%x\r\n" % size, *parts, b"\r\n", LAST_CHUNK), size)
        return self._write((b"%x\r\n" % size, *parts, b"\r\n"), size)

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        return self._write(message, size)

    def _write(self, message: Sequence[Part], size: int) -> bool:
        """Send what the socket takes, and keep the rest."""
        if self._head:
            message = (self._head, *message) if message else (self._head,)
            self._head = b""
        if self.gone:
            raise ClientGone
        self._unsent = self._connection.transport.send(message)
        self.bytes_sent += size
        if self._left is not None:
            self._left -= size
        return self._unsent is None

    async def drain(self) -> bool:
        if self._unsent is not None:
            self._unsent = await self._connection.transport.send_rest(self._unsent)
        return self._unsent is None

    def finish(self) -> bool:
        assert self._unsent is None, "finish() before drain()"
        if self._left and not self._bodiless:
            raise ValueError(f"the response is {self._left} bytes shorter than its Content-Length")
        self.ended = True
        if self._chunked:
            return self._write((LAST_CHUNK,), 0)
        return self._write((), 0) if self._head else True

    async def abort(self) -> None:
        """Reset the connection. Earlier bytes get a second to leave."""
        await self._connection.transport.let_last_bytes_leave()
        self._connection.cut()


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """A status line without its CRLF."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
