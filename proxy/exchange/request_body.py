"""The body of a request as it arrives, and whether the client is still connected.

A client that leaves is noticed, even if its body is not read. This module knows no route and no
interceptor.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import msgspec
import trio
from trio_util import wait_any

from ..downstream import ClientStream
from ..errors import ClientGone, RequestRefused
from ..worker.collecting import too_large

__all__ = ["LINGER_S", "Body", "RequestBody"]

Body = bytes | AsyncIterator[bytes]
"""A request's body on its way: whole, or in pieces."""

LINGER_S = 10.0
"""How long a client may send a body that is not read before its connection is closed."""
LINGER_BYTES = 64 * 1024 * 1024
_SMALL_PIECE_BYTES = 16384


class RequestBody(msgspec.Struct, eq=False):
    """Receives one request. `listen` watches a client whose request is complete; otherwise `run`
    must be a task. The other methods serve the time before and after.
    """

    _stream: ClientStream
    _max_bytes: int
    _idle_s: float
    """The limit of the client's silence in the middle of its request."""
    expects_body: bool = True
    """The request has a body; without one, no time limit applies to the end of the request."""
    answered: bool = False
    """A response has begun; from then on the client may be silent."""
    bytes_received: int = 0
    _begun: bool = False
    """The first piece has been received, or is awaited."""
    _first: bytes = b""
    _to_reader: trio.MemorySendChannel[bytes] | None = None
    _pieces: trio.MemoryReceiveChannel[bytes] | None = None
    _silence: trio.CancelScope | None = None
    """While `run` awaits the body."""
    _ended: trio.Event | None = None
    """Made by `wait_complete`, set by `run`."""

    @property
    def complete(self) -> bool:
        """The whole request has arrived."""
        return self._stream.complete

    @property
    def gone(self) -> bool:
        """The client has left."""
        return self._stream.gone

    @property
    def holds_connection(self) -> bool:
        """Whether the response must not end before the request."""
        return self._stream.holds_response

    @property
    def over(self) -> bool:
        """Whether the server has nothing left to hand over."""
        return self._stream.complete or self._stream.gone

    @property
    def is_withheld(self) -> bool:
        """Whether the client sends the body only after a 100 (RFC 9110, section 10.1.1)."""
        return self._stream.waits_for_continue

    def note_continue(self) -> None:
        """The client gets its 100 now: from now on its silence has a limit."""
        if self._silence is not None:
            self._silence.deadline = trio.current_time() + self._idle_s

    # Before `listen` or `run`

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Until `listen` or `run`, call `on_gone` when the client leaves, if the server supports
        it. Receives nothing.
        """
        self._stream.on_gone = on_gone

    def has_begun(self) -> bool | None:
        """Whether some of the body, or its end, has arrived; None if only `first_message` can find
        out. Never blocks.
        """
        if not self._stream.calls_back:
            return None
        if not self._begun and (data := self._receive_nowait()) is not None:
            self._begun = True
            self._first = data
        return self._begun

    def take_whole(self) -> bytes:
        """The whole body if it has arrived, else b"". Never blocks."""
        stream = self._stream
        if not stream.at_hand or stream.gone or not self.has_begun() or not stream.complete:
            return b""
        first, self._first = self._first, b""
        return first

    async def first_message(self) -> bool:
        """Receive the first message. Returns whether the request has a body, which over HTTP/2
        nothing else shows.

        Raises `ClientGone`, and `RequestRefused` if it does not arrive in time.
        """
        if not self._begun and not self.has_begun() and not self.complete:
            self._begun = True
            with trio.CancelScope(deadline=trio.current_time() + self._idle_s) as scope:
                self._first = await self._next()
            if scope.cancelled_caught:
                raise _too_slow()
        if self.gone:
            raise ClientGone
        return bool(self._first) or not self.complete

    def check_size(self) -> None:
        """Raise `RequestRefused` if more than the limit has arrived."""
        if self.bytes_received > self._max_bytes:
            raise too_large(self._max_bytes)

    def stream(self, length: int | None) -> Body:
        """The body for the upstream or for `collect`: bytes if all of it is here, else an iterator
        that `run` fills. `length`: as announced.
        """
        if self.complete or len(self._first) == length:
            first, self._first = self._first, b""
            return first
        self._to_reader, self._pieces = trio.open_memory_channel[bytes](1)
        return self._pieces

    async def small_body(self, max_bytes: int, wait_s: float) -> bytes | None:
        """A body that is not forwarded, if it is complete within `wait_s` and `max_bytes`; else
        None.
        """
        with trio.move_on_after(0 if self.complete else wait_s):
            while not self.complete and not self.gone and len(self._first) <= max_bytes:
                self._first += await self._next()
        body, self._first = self._first, b""
        self._begun = True
        return body if self.complete and len(body) <= max_bytes else None

    def listen(self, on_gone: Callable[[], None]) -> bool:
        """Watch the client without a task: possible if the request is complete and the server calls
        back. `on_gone` must be synchronous.

        False: `run` is needed. What has arrived is received first, unless a reader wants it.
        """
        stream = self._stream
        if not stream.calls_back or self._first:
            return False
        while not stream.complete:
            if self._to_reader is not None or self._receive_nowait() is None:
                return False
        if stream.gone:
            return False
        if self._to_reader is not None:
            self._to_reader.close()
        stream.on_gone = on_gone
        return True

    # While `run` is a task

    async def run(self) -> None:
        """Pass the body on at its reader's pace, then wait until the client leaves; `gone` is then
        set.

        Raises `RequestRefused` if the body is too large or the client is silent in the middle of
        it. The upload completes only after the whole body has arrived; any other end of the
        exchange aborts it.
        """
        self._stream.on_gone = None  # what came before the end is passed on first
        if self._first:
            await self._hand_over(self._first)
        if not self.complete and not self.expects_body:
            await self._next()  # the server already has the end of the request
        if not self.complete:
            await self._read_rest()
        if self.complete and self._to_reader is not None:
            self._to_reader.close()
        if self._ended is not None:
            self._ended.set()
        while not self.gone:
            await self._next()

    async def _read_rest(self) -> None:
        # One scope with a moving deadline costs less than a scope for each message.
        while not self.complete and not self.gone:
            with trio.CancelScope() as scope:
                self._silence = scope
                while not self.complete and not self.gone:
                    if not self.is_withheld:
                        scope.deadline = trio.current_time() + self._idle_s
                    data = await self._next()
                    scope.deadline = math.inf
                    if self.bytes_received > self._max_bytes and not self._is_discarding:
                        raise too_large(self._max_bytes)
                    if data:
                        await self._hand_over(data)
            self._silence = None
            if scope.cancelled_caught and not self.answered:
                raise _too_slow()

    async def collect(self, body: Body, hold: Callable[[int], None]) -> bytes:
        """Read all of a body from `stream`. `hold` is called with the size of each piece before it
        is kept; what it raises is raised here.

        `run` ends the exchange if the body is too large, or the client silent or gone.
        """
        if isinstance(body, bytes):
            hold(len(body))
            return body
        pieces: list[bytes] = []
        small = bytearray()  # one object for each byte would take fifty times its size
        async for piece in body:
            hold(len(piece))
            if small or len(piece) < _SMALL_PIECE_BYTES:
                small += piece
                if len(small) < _SMALL_PIECE_BYTES:
                    continue
                piece = bytes(small)
                small.clear()
            pieces.append(piece)
        # A single growing buffer would be moved again and again, and leave holes of its size.
        return pieces[0] if len(pieces) == 1 and not small else b"".join([*pieces, small])

    def forget_body(self) -> None:
        """Discard whatever else arrives. Synchronous."""
        if self._pieces is not None:
            self._pieces.close()

    async def wait_complete(self) -> None:
        """Wait, for a limited time, for the end of the request or for the client to leave; `run`
        discards the rest.
        """
        if not self.complete and not self.gone:
            self._ended = trio.Event()
            with trio.move_on_after(LINGER_S):
                await self._ended.wait()

    # After `run`

    async def discard(self) -> bool:
        """Receive and drop the rest, within limits of time and size. Returns whether the request
        has ended.
        """
        limit = self.bytes_received + LINGER_BYTES
        with trio.move_on_after(LINGER_S):
            while not self.over and self.bytes_received < limit:
                await self._next()
        return self.over

    @property
    def _is_discarding(self) -> bool:
        return self._to_reader is None or self._to_reader.statistics().open_receive_channels == 0

    async def _next(self) -> bytes:
        data = await self._stream.receive()
        self.bytes_received += len(data)
        return data

    def _receive_nowait(self) -> bytes | None:
        data = self._stream.receive_nowait()
        if data:
            self.bytes_received += len(data)
        return data

    async def _hand_over(self, data: bytes) -> None:
        """Pass a piece on. While that blocks, watch the client's socket."""
        if self._to_reader is None:
            return
        try:
            self._to_reader.send_nowait(data)
        except trio.BrokenResourceError:
            return  # the reader has stopped
        except trio.WouldBlock:
            await wait_any(lambda: self._send(data), self._stream.wait_hangup)

    async def _send(self, data: bytes) -> None:
        assert self._to_reader is not None
        with suppress(trio.BrokenResourceError):
            await self._to_reader.send(data)


def _too_slow() -> RequestRefused:
    return RequestRefused(408, "request_timeout", "the rest of the request did not arrive in time")
