"""One HTTP/2 request of a client and its response: `ClientStream` and `Writer` in one object.

The request's body arrives through `take_data`, and its window opens as the exchange takes it. The
response waits here, as a copy, while the client's windows or the socket are full; the connection
asks for it a frame at a time (`next_frame`). It does not touch the socket, and its end is not the
end of the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from interceptors.chain import Part

from ...errors import ClientGone, RequestRefused
from ...http.blocks import encode_block
from ...http.body import has_no_body
from ...http.frames import (
    DATA,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    INTERNAL_ERROR,
    MAX_FRAME_BYTES,
    frame_head,
    header_frames,
)
from ...http.headers import HeaderList
from ...http.request import RequestHead
from ...hub import Hub, Wait
from ..date import http_date
from ..transport import Transport

__all__ = ["DEFAULT_WINDOW", "MAX_WINDOW", "Http2Stream"]

DEFAULT_WINDOW = 65535
"""The initial window of RFC 9113: so much of a request's body may wait to be taken."""
MAX_WINDOW = 2**31 - 1
_LEAST_OPENED = 16384
_OF_CONNECTION = frozenset(
    b"connection proxy-connection keep-alive transfer-encoding upgrade".split()
)
_NO_NAMES: frozenset[bytes] = frozenset()


class Output(Protocol):
    """The sending side of a connection, as a stream sees it."""

    timed_out: bool

    def send(self, stream: Http2Stream, parts: Sequence[Part], size: int, *, ends: bool) -> None:
        """Send a stream's frames. What cannot leave now is given to `hold`."""
        ...

    def block_prefix(self) -> bytes:
        """What precedes the next field block."""
        ...


class Connection(Protocol):
    """The connection of a stream."""

    hub: Hub
    peer: str | None
    transport: Transport

    @property
    def output(self) -> Output: ...

    def open_window(self, stream: Http2Stream, size: int) -> None:
        """Let the client send more of a stream."""
        ...

    def reset(self, stream: Http2Stream, code: int) -> None:
        """Send RST_STREAM, unless the stream is closed. Synchronous; raises nothing."""
        ...

    def limit_send(self, timeout_s: float) -> None: ...


class Http2Stream:
    """One request and its response: `ClientStream` and its `Writer`."""

    __slots__ = (
        "_arrived",
        "_bodiless",
        "_connection",
        "_continues",
        "_data",
        "_ends",
        "_expected",
        "_fault",
        "_frames",
        "_gone",
        "_held",
        "_left",
        "_receive_window",
        "_room",
        "_unopened",
        "_unsent",
        "at_hand",
        "bytes_sent",
        "closed",
        "complete",
        "end_sent",
        "ended",
        "head",
        "id",
        "in_socket",
        "on_gone",
        "peer",
        "queued",
        "scheme",
        "scope",
        "started",
        "window",
    )

    name = "direct"
    synchronous = True
    keeps_chunks = False
    added_headers = _NO_NAMES
    holds_response = False  # only the stream ends (RFC 9113, section 8.1)
    cancellable = True
    calls_back = True

    def __init__(
        self, connection: Connection, stream_id: int, head: RequestHead, window: int, *, ended: bool
    ) -> None:
        """`window`: of the client, for the response. `ended`: the request has no body."""
        self._connection = connection
        self.id = stream_id
        self.head = head
        self.peer = connection.peer
        self.scheme = "https" if connection.transport.secure else "http"
        self.scope: trio.CancelScope | None = None
        self.on_gone: Callable[[], None] | None = None
        self.complete = False
        self.at_hand = ended
        self.closed = False
        """RST_STREAM was sent or received: no frame may follow."""
        self._gone = False
        self._data = bytearray()
        self._fault: RequestRefused | None = None  # of the body
        self._expected = head.length
        self._receive_window = DEFAULT_WINDOW
        self._unopened = 0
        self._continues = head.expects_continue
        self._arrived = Wait(connection.hub)
        # The response
        self.started = self.ended = self.end_sent = False
        self.bytes_sent = 0
        self.window = window
        self.queued = False
        """It waits in the connection for its turn."""
        self.in_socket = False
        """Its last frame has left in part."""
        self._held: bytes | None = None  # the head's block, until the body's first bytes
        self._frames = b""  # header blocks that must go first
        self._unsent: memoryview | None = None
        self._ends = False  # END_STREAM follows what is unsent
        self._bodiless = False
        self._left: int | None = None  # of a body with a Content-Length
        self._room = Wait(connection.hub)

    # The request, as the connection receives it

    def take_data(self, data: bytes, size: int, *, ended: bool) -> int:
        """Keep a piece of the body; `size`: with its padding. Returns an error code for the stream,
        or 0.
        """
        self._receive_window -= size
        if self._receive_window < 0:
            return FLOW_CONTROL_ERROR
        self.at_hand = ended
        if self._expected is not None:
            self._expected -= len(data)
            if self._expected < 0 or (ended and self._expected):
                self._fault = RequestRefused(
                    400, "bad_request", "the request's body has not the length of Content-Length"
                )
        if self._fault is None:
            self._data += data
            size -= len(data)
        if size:
            self._open(size)
        self._arrived.wake()
        return 0

    def leave(self) -> None:
        """The client has left, or has reset the stream."""
        if not self._gone:
            self._gone = True
            self.drop()
            if self.on_gone is not None:
                self.on_gone()
            self._arrived.wake()
            self._room.wake()

    # The request, as the exchange takes it

    @property
    def waits_for_continue(self) -> bool:
        return self._continues and not self._data

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def timed_out(self) -> bool:
        return self._connection.output.timed_out

    def receive_nowait(self) -> bytes | None:
        if self._fault is not None:
            raise self._fault
        if self.complete or not (self._data or self.at_hand):
            return None
        self._continues = False
        data = bytes(self._data)
        self._data.clear()
        self.complete = self.at_hand
        self._open(len(data))
        return data

    async def receive(self) -> bytes:
        while not self.complete and not self._gone:
            data = self.receive_nowait()
            if data is not None:
                return data
            await self._arrived.wait()
        await self.wait_hangup()
        return b""

    def _open(self, size: int) -> None:
        """Open the window for what was taken, in steps (RFC 9113, section 6.9)."""
        self._unopened += size
        if self._unopened >= _LEAST_OPENED and not self.at_hand:
            self._receive_window += self._unopened
            self._connection.open_window(self, self._unopened)
            self._unopened = 0

    @property
    def unreturned(self) -> int:
        """What the client's window lacks."""
        return DEFAULT_WINDOW - self._receive_window

    async def wait_hangup(self) -> None:
        if not self._gone:
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
        self._connection.limit_send(timeout_s)

    def send_probes(self) -> None:
        self._connection.transport.send_probes()

    # The response, as the exchange writes it

    def writer(self, *, chunked: bool) -> Http2Stream:
        return self

    @property
    def stalled(self) -> bool:
        return bool(self.in_socket or self._unsent or self._frames or self._ends)

    def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> bool:
        self.started = True
        self._bodiless = has_no_body(self.head.method, status)
        fields, has_date = [], False
        for field in headers:
            name = field[0]
            if name == b"content-length":
                self._left = int(field[1])
            elif name == b"date":
                has_date = True
            elif name in _OF_CONNECTION:
                continue
            fields.append(field)
        if not has_date:
            fields.append((b"date", http_date()))
        self._held = encode_block(status, fields)
        if self._bodiless or self._left == 0:
            return self._send((), 0, ends=True)
        return True if whole else self._send((), 0)

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        self._continues = self._continues and status != 100
        fields = [field for field in headers if field[0] not in _OF_CONNECTION]
        self._held = encode_block(status, fields)
        if not self._send((), 0):
            while not await self.drain():
                pass

    def write(self, parts: Sequence[Part]) -> bool:
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if not size or self._bodiless:
            return True
        if self._left is not None:
            if size > self._left:
                raise ValueError("the response is longer than its Content-Length")
            self._left -= size
        self.bytes_sent += size
        return self._send(parts, size, ends=self._left == 0)

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        raise NotImplementedError("HTTP/2 has no chunks")

    async def drain(self) -> bool:
        """As in `Writer`; returns after each of its frames that leaves."""
        if self.stalled:
            await self._room.wait()
        if self._gone:
            raise ClientGone
        return not self.stalled

    def finish(self) -> bool:
        assert not self.stalled, "finish() before drain()"
        if self._left and not self._bodiless:
            raise ValueError(f"the response is {self._left} bytes shorter than its Content-Length")
        self.ended = True
        return True if self.end_sent else self._send((), 0, ends=True)

    async def abort(self) -> None:
        """Reset the stream. What has not left is dropped."""
        self._connection.reset(self, INTERNAL_ERROR)

    def _send(self, parts: Sequence[Part], size: int, *, ends: bool = False) -> bool:
        if self._gone:
            raise ClientGone
        if self._held is not None:
            block, self._held = self._connection.output.block_prefix() + self._held, None
            in_head = ends and not size
            self._frames += header_frames(self.id, block, END_STREAM if in_head else 0)
            if in_head:
                self.end_sent, ends = True, False
        self._connection.output.send(self, parts, size, ends=ends)
        if self._gone:
            raise ClientGone
        return not self.stalled

    # The response, as the connection sends it

    def hold(self, parts: Sequence[Part], size: int, *, ends: bool) -> None:
        """Keep a copy of what cannot be sent now."""
        if size:
            self._unsent = memoryview(b"".join(parts))
        self._ends = ends

    def can_send(self, window: int) -> bool:
        """Whether it has a frame for this window of the connection and its own."""
        if self._unsent:
            return bool(self._frames) or (window > 0 and self.window > 0)
        return bool(self._frames) or self._ends

    def take_frames(self) -> bytes:
        """Remove and return the header blocks that go first."""
        frames, self._frames = self._frames, b""
        return frames

    def next_frame(self, window: int) -> tuple[bytes, memoryview | None]:
        """Remove what goes out in one turn: header blocks, and at most one DATA frame."""
        unsent = self._unsent
        size = max(0, min(len(unsent), window, self.window, MAX_FRAME_BYTES)) if unsent else 0
        piece = None
        if unsent and size:
            piece = unsent[:size]
            self._unsent = unsent[size:] or None
            self.window -= size
        flags = END_STREAM if self._ends and not self._unsent else 0
        frames = self.take_frames()
        if piece is not None or flags:
            frames += frame_head(size, DATA, flags, self.id)
        if flags:
            self.end_sent, self._ends = True, False
        return frames, piece

    def progress(self) -> None:
        """One of its frames has left."""
        self.in_socket = False
        self._room.wake()

    def drop(self) -> None:
        """Forget what waits to be taken or sent."""
        self._data.clear()
        self._unsent = self._held = None
        self._frames = b""
        self._ends = False
