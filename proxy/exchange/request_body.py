"""The client's side of a request: its body as it arrives, and whether the client is still there.

ASGI tells both through one `receive`, in order. A server whose application does not take what was
sent stops reading, and then it cannot see the client leave, either; Hypercorn's reading task even
waits for ever when the application returns without having taken everything. So this keeps two
promises: a client that leaves is noticed although its body goes nowhere, and `settle` leaves
nothing behind that the server would wait for.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from contextlib import suppress

import trio
from trio_util import wait_any

from ..downstream import ClientConnection, Message, Messages, Receive
from ..errors import ClientGone, RequestRefused
from ..worker.collecting import too_large

__all__ = ["RequestBody"]

LINGER_S = 10.0
"""How long a client may go on sending a body that nobody wants, before its connection is cut."""
LINGER_BYTES = 64 * 1024 * 1024
_QUIET_S = 0.5
_SMALL_PIECE_BYTES = 16384
_QUIET_HTTP2_S = 0.05  # a stream that we reset is not reported


class RequestBody:
    """Takes in one request. `run` is its task, unless `listen` does without; before and after,
    there are the other methods.
    """

    __slots__ = (
        "_begun",
        "_body",
        "_connection",
        "_disconnected",
        "_ended",
        "_first",
        "_idle_s",
        "_max_bytes",
        "_messages",
        "_receive",
        "_to_upstream",
        "answered",
        "bytes_received",
        "complete",
        "expects_body",
        "gone",
    )

    def __init__(
        self,
        receive: Receive,
        connection: ClientConnection | None,
        *,
        max_bytes: int,
        idle_s: float | None,
    ) -> None:
        """`idle_s` bounds the client's silence in the middle of its request."""
        self._receive = receive
        self._connection = connection
        self._max_bytes = max_bytes
        self._idle_s = idle_s if idle_s is not None else float("inf")
        messages = getattr(receive, "__self__", None)
        self._messages = messages if type(messages) is Messages else None
        self._begun = False  # the first message has been taken in, or is awaited
        self._to_upstream: trio.MemorySendChannel[bytes] | None = None
        self._body: trio.MemoryReceiveChannel[bytes] | None = None
        self._first = b""
        self.expects_body = True
        """Whether the request has announced a body, for whose pieces there is a time limit."""
        self.answered = False
        """A response is under way: from then on the client may be silent as long as it likes."""
        self._ended: trio.Event | None = (
            None  # set when the request has ended; made for whoever waits for that
        )
        self.complete = False
        """The whole request has arrived."""
        self.gone = False
        """The client has left: the server says so, or the socket does."""
        self._disconnected = False  # the server has said so
        self.bytes_received = 0

    @property
    def holds_connection(self) -> bool:
        """Whether the response must not end before the request has: over HTTP/1.1 the server would
        close the connection, and a client that is still sending would see that, and not the answer.
        Over HTTP/2 it ends the stream only (RFC 9113, 8.1).
        """
        return self._connection is None or not self._connection.http2

    @property
    def over(self) -> bool:
        """Whether nothing more can come that the server would wait to hand over."""
        return self.complete or self._disconnected

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Until `listen` or `run`: call `on_gone`, synchronously, when the client leaves, where its
        server calls.

        Nothing is taken in.
        """
        if self._messages is not None:
            self._messages.on_disconnect = on_gone

    def has_begun(self) -> bool | None:
        """Whether anything of the request's body has come, or its end; None where only
        `first_message` can tell. Never blocks.
        """
        if self._messages is None:
            return None
        if not self._begun and (message := self._messages.receive_nowait()) is not None:
            self._begun = True
            self._first = self._take(message)
        return self._begun

    async def first_message(self) -> bool:
        """Take in the first message. Whether the request has a body, which HTTP/2 tells in no other
        way.

        Raises `ClientGone`, and `RequestRefused` for a client that says nothing in time.
        """
        if not self._begun:
            self._begun = True
            with trio.CancelScope(deadline=trio.current_time() + self._idle_s) as scope:
                self._first = await self._next()
            if scope.cancelled_caught:
                raise _too_slow()
        if self.gone:
            raise ClientGone
        return bool(self._first) or not self.complete

    def check_size(self) -> None:
        """Raises `RequestRefused` when what has come of the body is more than it may have."""
        if self.bytes_received > self._max_bytes:
            raise too_large(self._max_bytes)

    def stream(self, length: int | None) -> bytes | AsyncIterable[bytes]:
        """The body, for the upstream or for `collect`: whole if it has come with the first message,
        else as `run` takes it in.
        """
        if self.complete or len(self._first) == length:
            first, self._first = self._first, b""
            return first
        self._to_upstream, self._body = trio.open_memory_channel[bytes](1)
        return self._body

    async def small_body(self, max_bytes: int, wait_s: float) -> bytes | None:
        """A body that is not forwarded, if it has at most `max_bytes` and is whole within `wait_s`;
        else None.
        """
        with trio.move_on_after(0 if self.complete else wait_s):
            while not self.complete and not self.gone and len(self._first) <= max_bytes:
                self._first += await self._next()
        body, self._first = self._first, b""
        self._begun = True
        return body if self.complete and len(body) <= max_bytes else None

    async def collect(
        self, body: bytes | AsyncIterable[bytes], hold: Callable[[int], None]
    ) -> bytes:
        """All of what `stream` has returned. `hold` gets the size of each piece first.

        `run` ends the exchange when the body is too large, the client silent or gone. Raises what
        `hold` raises.
        """
        if isinstance(body, bytes):
            hold(len(body))
            return body
        pieces: list[bytes] = []
        small = bytearray()  # an object for each byte would take fifty times its size
        async for piece in body:
            hold(len(piece))
            if small or len(piece) < _SMALL_PIECE_BYTES:
                small += piece
                if len(small) < _SMALL_PIECE_BYTES:
                    continue
                piece = bytes(small)
                small.clear()
            pieces.append(piece)
        # One buffer that grows would be moved again and again, and leave holes of its size.
        return pieces[0] if len(pieces) == 1 and not small else b"".join([*pieces, small])

    def forget_body(self) -> None:
        """Whatever else comes is thrown away. Synchronous."""
        if self._body is not None:
            self._body.close()

    def listen(self, on_gone: Callable[[], None]) -> bool:
        """Do without a task, if the request is whole and its server calls when the client leaves:
        `on_gone`, synchronously, which is to call `left`.

        False: `run` is needed. What has come of the request is taken in before, if nobody else
        wants it.
        """
        messages = self._messages
        if messages is None or self._first:
            return False
        while (self.complete or self._to_upstream is None) and (
            message := messages.receive_nowait()
        ) is not None:
            self._take(message)
        if not self.complete or self.gone:
            return False
        self._end_body()
        messages.on_disconnect = on_gone
        return True

    def left(self) -> None:
        """The server has said that the client is gone."""
        self.gone = self._disconnected = True

    async def run(self) -> None:
        """Hand the body over at the upstream's pace, then wait until the client leaves; returns
        then, with `gone`.

        Raises `RequestRefused` when the body is larger than it may be, or the client silent in the
        middle of it. The body's end is told to the upstream only when it has come: whoever ends the
        exchange otherwise ends the upload, too.
        """
        if self._messages is not None:
            self._messages.on_disconnect = (
                None  # what came before the client left is handed over first
            )
        if self._first:
            await self._hand_over(self._first)
        if not self.complete and not self.expects_body:
            await self._next()  # the server has the end of the request already, and says so at once
        if not self.complete:
            await self._take_in()
        if self.complete:
            self._end_body()
        if self._ended is not None:
            self._ended.set()
        while not self.gone:
            await self._next()

    def _end_body(self) -> None:
        if self._to_upstream is not None:
            self._to_upstream.close()

    async def _take_in(self) -> None:
        """The rest of the body. One scope for all of it, whose deadline moves: a scope for each
        message costs more.
        """
        while not self.complete and not self.gone:
            with trio.CancelScope() as scope:
                while not self.complete and not self.gone:
                    scope.deadline = trio.current_time() + self._idle_s
                    data = await self._next()
                    scope.deadline = float("inf")
                    if self.bytes_received > self._max_bytes and not self._is_discarding:
                        raise too_large(self._max_bytes)
                    if data:
                        await self._hand_over(data)
            if scope.cancelled_caught and not self.answered:
                raise _too_slow()

    async def wait_complete(self) -> None:
        """While `run` discards, wait for the end of the request, or for the client to leave, for a
        bounded time.
        """
        if not self.complete and not self.gone:
            self._ended = trio.Event()
            with trio.move_on_after(LINGER_S):
                await self._ended.wait()

    async def discard(self) -> bool:
        """Read and forget the rest, for a bounded time and up to a bounded size. Whether the
        request has ended.
        """
        limit = self.bytes_received + LINGER_BYTES
        with trio.move_on_after(LINGER_S):
            while not self.over and self.bytes_received < limit:
                await self._next()
        return self.over

    async def settle(self) -> None:
        """After the connection or the stream was cut: take what the server still hands over, until
        it says that the client is gone.

        The server may be closing the connection just now, and an app that returns meanwhile makes
        it write into that. Bounded.
        """
        quiet_s = (
            _QUIET_S
            if self._connection is not None and not self._connection.http2
            else _QUIET_HTTP2_S
        )
        while not self._disconnected:
            with trio.move_on_after(quiet_s) as scope:
                await self._next()
            if scope.cancelled_caught:
                return

    @property
    def _is_discarding(self) -> bool:
        return (
            self._to_upstream is None or self._to_upstream.statistics().open_receive_channels == 0
        )

    async def _next(self) -> bytes:
        return self._take(await self._receive())

    def _take(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            self.left()
            return b""
        data: bytes = message.get("body", b"")
        self.bytes_received += len(data)
        self.complete = self.complete or not message.get("more_body", False)
        return data

    async def _hand_over(self, data: bytes) -> None:
        """Pass a piece on. While that must wait, the client's socket itself tells whether the
        client leaves.
        """
        if self._to_upstream is None:
            return
        try:
            self._to_upstream.send_nowait(data)
        except trio.BrokenResourceError:
            return  # nobody wants it any more
        except trio.WouldBlock:
            if self._connection is None:
                await self._send(data)
            else:
                await wait_any(
                    lambda: self._send(data), lambda: self._wait_hangup(self._connection)
                )

    async def _send(self, data: bytes) -> None:
        assert self._to_upstream is not None
        with suppress(trio.BrokenResourceError):
            await self._to_upstream.send(data)

    async def _wait_hangup(self, connection: ClientConnection | None) -> None:
        """Its socket tells, and so does its server: of an HTTP/2 stream only that."""
        assert connection is not None
        messages = self._messages
        if messages is None:
            await connection.wait_hangup()
        else:
            ended = trio.Event()
            messages.on_disconnect = ended.set
            try:
                if not messages.has_ended:
                    await wait_any(connection.wait_hangup, ended.wait)
            finally:
                messages.on_disconnect = None
        self.gone = True


def _too_slow() -> RequestRefused:
    return RequestRefused(408, "request_timeout", "the request did not go on in time")
