"""What the frames of an HTTP/2 connection mean (RFC 9113, sections 5 to 8).

`Input.handle` takes what one read brought, gives streams their frames, and returns the requests
that have begun and were not reset by the same read. A fault of one stream ends that stream
(section 5.4.2); `ConnectionBroken` is raised only for what breaks the connection's own state: HPACK,
the order and size of frames, its window, and floods. What a client may make the connection do
without asking for anything is bounded by `Budget`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import trio

from ...http import frames
from ...http.blocks import BlockReader
from ...http.fields import are_trailers, read_request_head
from ...http.frames import ConnectionBroken, Frame, FrameReader
from ...http.head import MAX_HEAD_BYTES
from ...http.request import RequestHead
from .output import Output
from .stream import MAX_WINDOW, Http2Stream

__all__ = ["WINDOW", "Budget", "Input"]

WINDOW = 1 << 20
"""Of the connection for requests. It opens at once: the streams' windows bound what waits."""
_MAX_LATE_STREAMS = 1024
_MAX_LATE_BYTES = 64 * 1024 * 1024
_DROPPED = 0, 0


class Budget:
    """What a client may spend on frames that ask for nothing (RFC 9113, section 10.5)."""

    __slots__ = ("_at", "_left", "_resets")

    MAX_FRAMES = 1000
    FRAMES_A_SECOND = 20
    LARGE_BLOCK = 100
    """What a block beyond the limit of a head costs: decoding it may take 50 ms."""
    MAX_RESETS = 400
    """Resets of streams without a response; each response takes one back."""

    def __init__(self) -> None:
        self._left: float = self.MAX_FRAMES
        self._at = trio.current_time()
        self._resets = 0

    def spend(self, count: int = 1) -> None:
        """Frames need work and ask for nothing. Raises `ConnectionBroken`."""
        self._left -= count
        if self._left < 0:
            now = trio.current_time()
            self._left += (now - self._at) * self.FRAMES_A_SECOND
            self._left, self._at = min(self.MAX_FRAMES, self._left), now
            if self._left < 0:
                raise ConnectionBroken(frames.ENHANCE_YOUR_CALM, "too many control frames")

    def spend_reset(self) -> None:
        """A stream ends without a response, because of the client. Raises `ConnectionBroken`."""
        self._resets += 1
        if self._resets > self.MAX_RESETS:
            raise ConnectionBroken(frames.ENHANCE_YOUR_CALM, "too many resets")

    def take_back(self) -> None:
        """A stream has its response."""
        self._resets = max(0, self._resets - 1)


class Streams(Protocol):
    """The connection, as its input sees it."""

    streams: dict[int, Http2Stream]
    """Those whose exchange runs, or that are not closed."""
    output: Output

    def new_stream(
        self, stream_id: int, head: RequestHead, window: int, *, ended: bool
    ) -> Http2Stream:
        """Register a stream."""
        ...

    def forget(self, stream: Http2Stream) -> None:
        """Remove a stream that is never served."""
        ...


class Input:
    """The receiving side of one connection."""

    __slots__ = (
        "_arrived",
        "_blocks",
        "_connection",
        "_initial_window",
        "_late",
        "_max_streams",
        "_output",
        "_reader",
        "_receive_window",
        "_unopened",
        "budget",
        "last_id",
    )

    def __init__(self, connection: Streams, max_streams: int) -> None:
        self._connection = connection
        self._output = connection.output
        self._max_streams = max_streams
        self._reader = FrameReader()
        self._blocks = BlockReader(4 * MAX_HEAD_BYTES)
        self._initial_window = connection.output.window
        self._receive_window = WINDOW
        self._unopened = 0
        self._arrived: list[Http2Stream] = []  # with this read
        # Streams that have ended here and whose client had not ended its request: what arrives is
        # dropped. How much of it the client may send, and what its window lacks.
        self._late: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.budget = Budget()
        self.last_id = 0
        """The highest stream that the client has opened."""

    def handle(self, data: bytes) -> list[Http2Stream]:
        """Handle what one read brought. Returns the requests to serve. Raises `ConnectionBroken`;
        the requests of this read are then forgotten.
        """
        reader = self._reader
        reader.feed(data)
        try:
            while (frame := reader.next()) is not None:
                _HANDLERS[frame.kind](self, frame)
        except ConnectionBroken:
            for stream in self._arrived:
                self._connection.forget(stream)
            raise
        finally:
            arrived, self._arrived = self._arrived, []
        return arrived

    def expect_late(self, stream_id: int, max_bytes: int = 0) -> None:
        """Frames of this stream, which has ended here, may still arrive. `max_bytes`: of a body for
        which its window opens.
        """
        self._late.setdefault(stream_id, (max_bytes, 0))
        if len(self._late) > _MAX_LATE_STREAMS:
            self._late.popitem(last=False)

    # The kinds of frames

    def _on_data(self, frame: Frame) -> None:
        self._receive_window -= frame.size
        if self._receive_window < 0:
            raise ConnectionBroken(frames.FLOW_CONTROL_ERROR, "DATA beyond the window")
        self._unopened += frame.size
        if self._unopened >= WINDOW // 4:
            self._output.queue(frames.window_update(0, self._unopened))
            self._receive_window += self._unopened
            self._unopened = 0
        ended = bool(frame.flags & frames.END_STREAM)
        if not frame.payload and not ended:
            self.budget.spend()
        stream = self._receiving(frame)
        if stream is None:
            self._drop(frame, ended)
        else:
            self._fail(stream, stream.take_data(frame.payload, frame.size, ended=ended))

    def discard_rest(self, stream: Http2Stream) -> None:
        """Drop what arrives of a request that has its response. A reset in its place would hide the
        response from clients that send on, such as httpx and curl.
        """
        self.expect_late(stream.id, _MAX_LATE_BYTES)
        if stream.unreturned:
            self._output.add(frames.window_update(stream.id, stream.unreturned))
            self._output.flush()

    def _drop(self, frame: Frame, ended: bool) -> None:
        stream_id = frame.stream_id
        left, lacks = self._late.get(stream_id, _DROPPED)
        if not left:
            return
        left, lacks = max(0, left - frame.size), lacks + frame.size
        if ended:
            left = 0
        elif not left:
            self._output.queue(frames.rst_stream(stream_id, frames.NO_ERROR))
        elif lacks >= frames.MAX_FRAME_BYTES:
            self._output.queue(frames.window_update(stream_id, lacks))
            lacks = 0
        self._late[stream_id] = left, lacks

    def _on_headers(self, frame: Frame) -> None:
        if frame.size > MAX_HEAD_BYTES:
            self.budget.spend(self.budget.LARGE_BLOCK)
        fields = self._blocks.read(frame.payload)
        stream_id, ended = frame.stream_id, bool(frame.flags & frames.END_STREAM)
        if stream_id <= self.last_id or not stream_id & 1:
            stream = self._receiving(frame)
            if stream is not None:
                is_good = ended and are_trailers(fields)
                code = stream.take_data(b"", 0, ended=True) if is_good else frames.PROTOCOL_ERROR
                self._fail(stream, code)
            return
        self.last_id = stream_id
        if len(self._connection.streams) >= self._max_streams:
            if not ended:
                self.expect_late(stream_id)
            self._output.queue(frames.rst_stream(stream_id, frames.REFUSED_STREAM))
            self.budget.spend_reset()
            return
        head = read_request_head(fields, ended=ended)
        self._arrived.append(
            self._connection.new_stream(stream_id, head, self._initial_window, ended=ended)
        )

    def _receiving(self, frame: Frame) -> Http2Stream | None:
        """The stream of DATA or trailers; None if they are dropped. What a closed stream must not
        get is answered (RFC 9113, section 5.1).
        """
        stream_id = frame.stream_id
        stream = self._connection.streams.get(stream_id)
        if stream is not None and not stream.closed:
            if not stream.at_hand:
                return stream
            self._fail(stream, frames.STREAM_CLOSED)
            return None
        self._check_known(stream_id)
        if stream is not None or stream_id in self._late:
            return None
        if frame.kind == frames.HEADERS:
            raise ConnectionBroken(frames.STREAM_CLOSED, "HEADERS for a closed stream")
        self.budget.spend()
        self._output.queue(frames.rst_stream(stream_id, frames.STREAM_CLOSED))
        return None

    def _open(self, stream_id: int) -> Http2Stream | None:
        """A stream that is not closed. Raises `ConnectionBroken` for an idle one."""
        stream = self._connection.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
        return None if stream is None or stream.closed else stream

    def _check_known(self, stream_id: int) -> None:
        if stream_id > self.last_id or not stream_id & 1:
            raise ConnectionBroken(frames.PROTOCOL_ERROR, "a frame for an idle stream")

    def _on_rst_stream(self, frame: Frame) -> None:
        stream = self._open(frame.stream_id)
        if stream is None:
            self.budget.spend()
        else:
            self._end_early(stream)

    def _on_window_update(self, frame: Frame) -> None:
        stream_id, size = frame.stream_id, int.from_bytes(frame.payload, "big") & MAX_WINDOW
        if not stream_id:
            self._output.widen(size)
            if not size or self._output.window > MAX_WINDOW:
                code = frames.FLOW_CONTROL_ERROR if size else frames.PROTOCOL_ERROR
                raise ConnectionBroken(code, "a window update of 0, or beyond 2^31 - 1")
            return
        stream = self._open(stream_id)
        if stream is None:
            if not size:
                self.budget.spend()
            return
        stream.window += size
        if not size or stream.window > MAX_WINDOW:
            self._fail(stream, frames.FLOW_CONTROL_ERROR if size else frames.PROTOCOL_ERROR)
        else:
            self._output.enqueue(stream)

    def _on_settings(self, frame: Frame) -> None:
        self.budget.spend()
        found = frames.read_settings(frame.payload)
        window = found.get(frames.INITIAL_WINDOW_SIZE, self._initial_window)
        change, self._initial_window = window - self._initial_window, window
        for stream in self._connection.streams.values() if change else ():
            stream.window += change  # it may become negative (section 6.9.2)
            if stream.window > MAX_WINDOW:
                raise ConnectionBroken(frames.FLOW_CONTROL_ERROR, "a window beyond 2^31 - 1")
            self._output.enqueue(stream)
        self._output.queue(frames.settings(()))

    def _on_ping(self, frame: Frame) -> None:
        self.budget.spend()
        self._output.queue(frames.ping_ack(frame.payload))

    def _on_priority(self, frame: Frame) -> None:
        """PRIORITY of a wrong size; all others are ignored (RFC 9113, section 5.3.2)."""
        self.budget.spend()
        stream = self._connection.streams.get(frame.stream_id)
        if stream is not None and not stream.closed:
            self._fail(stream, frames.FRAME_SIZE_ERROR)

    def _on_goaway(self, frame: Frame) -> None:
        """The client opens no more streams; those that are open continue."""

    # Streams that end because of the client

    def _fail(self, stream: Http2Stream, code: int) -> None:
        """A stream error, unless `code` is 0 (RFC 9113, section 5.4.2)."""
        if code:
            self._output.queue(frames.rst_stream(stream.id, code))
            self._end_early(stream)

    def _end_early(self, stream: Http2Stream) -> None:
        stream.closed = True
        if stream in self._arrived:
            self._arrived.remove(stream)
            self._connection.forget(stream)
        stream.leave()
        if not stream.started:
            self.budget.spend_reset()


_HANDLERS: dict[int, Callable[[Input, Frame], None]] = {
    frames.DATA: Input._on_data,
    frames.HEADERS: Input._on_headers,
    frames.PRIORITY: Input._on_priority,
    frames.RST_STREAM: Input._on_rst_stream,
    frames.SETTINGS: Input._on_settings,
    frames.PING: Input._on_ping,
    frames.GOAWAY: Input._on_goaway,
    frames.WINDOW_UPDATE: Input._on_window_update,
}
