"""What an HTTP/2 connection sends: control frames first, then streams in turns of one frame.

Invariants:

- while the socket is full no DATA is framed: `_rest` is at most one message of one turn;
- a control frame waits for that message only, never for a stream;
- a stream that has something to send and a window is in `_ready`; one that only waits for the
  connection's window is in `_starved`;
- the wait for a full socket belongs to `_empty_socket`, which cuts the connection at its deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from interceptors.chain import Part

from ...errors import ClientGone, SendStalled
from ...http.blocks import EMPTY_TABLE
from ...http.frames import (
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    MAX_FRAME_BYTES,
    ConnectionBroken,
    frame_head,
)
from ..transport import Transport
from .stream import DEFAULT_WINDOW, MAX_WINDOW, Http2Stream

__all__ = ["Output"]

_MAX_CONTROL_BYTES = 65536


class Output:
    """The sending side of one connection. No method blocks; only `queue` raises."""

    __slots__ = (
        "_control",
        "_emptying",
        "_in_socket",
        "_on_lost",
        "_prefix",
        "_ready",
        "_rest",
        "_send_s",
        "_starved",
        "_transport",
        "lost",
        "nursery",
        "timed_out",
        "window",
    )

    def __init__(self, transport: Transport, send_s: float, on_lost: Callable[[], None]) -> None:
        """`send_s`: how long the socket may be full while no request has said so. `on_lost` is
        called when a send shows that the client has left.
        """
        self._transport = transport
        self._send_s = send_s
        self._on_lost = on_lost
        self.nursery: trio.Nursery | None = None
        self.lost = False
        """Nothing can be sent any more."""
        self.timed_out = False
        """The client was given up because it accepted nothing."""
        self.window = DEFAULT_WINDOW
        """What the client accepts of DATA on this connection."""
        self._prefix = EMPTY_TABLE
        self._control = bytearray()
        self._rest: memoryview | None = None  # what the socket has not taken of the last message
        self._in_socket: Http2Stream | None = None  # whose message it is
        self._ready: deque[Http2Stream] = deque()  # in the order of their turns
        self._starved: deque[Http2Stream] = deque()
        self._emptying = False

    @property
    def is_full(self) -> bool:
        """The socket does not accept everything."""
        return self._rest is not None

    def add(self, frame: bytes) -> None:
        """Send a control frame with the next message."""
        self._control += frame

    def queue(self, frame: bytes) -> None:
        """As `add`, for an answer to a frame. Raises `ConnectionBroken` if the client does not read
        them.
        """
        self._control += frame
        if len(self._control) > _MAX_CONTROL_BYTES:
            raise ConnectionBroken(ENHANCE_YOUR_CALM, "too many frames wait to be read")

    def block_prefix(self) -> bytes:
        """What precedes the next field block. It must be sent in this order."""
        prefix, self._prefix = self._prefix, b""
        return prefix

    def send(self, stream: Http2Stream, parts: Sequence[Part], size: int, *, ends: bool) -> None:
        """Send a stream's frames. What cannot leave now is given to `hold`."""
        if (
            self._rest is None
            and not self._control
            and not self._ready
            and size <= MAX_FRAME_BYTES
            and (not size or (size <= stream.window and size <= self.window))
        ):
            self.window -= size
            stream.window -= size
            head = stream.take_frames()
            if size or ends:
                head += frame_head(size, DATA, END_STREAM if ends else 0, stream.id)
                stream.end_sent = stream.end_sent or ends
            self._transmit((head, *parts), stream)
        else:
            stream.hold(parts, size, ends=ends)
            self.enqueue(stream)
            self.flush()

    def enqueue(self, stream: Http2Stream) -> None:
        """Give a stream its turn, if it has something to send."""
        if not stream.queued and stream.can_send(MAX_WINDOW):
            stream.queued = True
            self._ready.append(stream)

    def widen(self, size: int) -> None:
        """The client accepts more. The caller checks the new `window`."""
        self.window += size
        self._ready.extend(self._starved)
        self._starved.clear()

    def flush(self) -> None:
        """Send while the socket accepts something."""
        while self._rest is None and not self.lost:
            if self._control:
                message = (bytes(self._control),)
                self._control.clear()
                self._transmit(message, None)
                continue
            stream = self._next_stream()
            if stream is None:
                return
            head, piece = stream.next_frame(self.window)
            if piece is not None:
                self.window -= len(piece)
            self._transmit((head,) if piece is None else (head, piece), stream)
            self.enqueue(stream)
            if not stream.in_socket:
                stream.progress()

    def _next_stream(self) -> Http2Stream | None:
        while self._ready:
            stream = self._ready.popleft()
            if stream.can_send(self.window):
                stream.queued = False
                return stream
            if stream.can_send(MAX_WINDOW):
                self._starved.append(stream)
            else:
                stream.queued = False
        return None

    def _transmit(self, message: Sequence[Part], stream: Http2Stream | None) -> None:
        try:
            self._rest = self._transport.send(message)
        except (ClientGone, SendStalled) as error:
            self._fail(isinstance(error, SendStalled))
            return
        if self._rest is not None:
            self._in_socket = stream
            if stream is not None:
                stream.in_socket = True
            if not self._emptying and self.nursery is not None:
                self._emptying = True
                self.nursery.start_soon(self._empty_socket)

    def _fail(self, timed_out: bool) -> None:
        self.timed_out = self.timed_out or timed_out
        self._on_lost()

    async def _empty_socket(self) -> None:
        """Send the rest, and whatever waits. A client that accepts nothing for `send_s` is cut."""
        try:
            while self._rest is not None and not self.lost:
                with trio.move_on_after(self._send_s) as scope:
                    self._rest = await self._transport.send_rest(self._rest)
                if scope.cancelled_caught:
                    self._fail(True)
                elif self._rest is None:
                    stream, self._in_socket = self._in_socket, None
                    if stream is not None:
                        stream.progress()
                    self.flush()
        except (ClientGone, SendStalled) as error:
            self._fail(isinstance(error, SendStalled))
        except trio.Cancelled:  # the server ends: no task is left to send the rest
            self._on_lost()
            raise
        finally:
            self._emptying = False

    def limit_send(self, timeout_s: float, *, alone: bool) -> None:
        """As `ClientStream.limit_send`: of several streams, the longest time counts."""
        self._send_s = timeout_s if alone else max(self._send_s, timeout_s)
        self._transport.limit_send(self._send_s)
