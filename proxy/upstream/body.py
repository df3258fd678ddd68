"""The body of a response, framed in place in the caller's buffer.

An `UpstreamBody` owns the connection on loan until it is closed, and then returns it to its pool.
It does not parse heads and holds no buffer.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..errors import ProtocolFailure, ReadFailed, ReadTimedOut, Truncated, UpstreamFailure
from ..http.body import LAST_CHUNK, Chunked, ContentLength, Framing, Split
from .connection import Connection
from .connections import ConnectionPool
from .upload import Upload

__all__ = ["UpstreamBody"]


class UpstreamBody:
    """The body of one response. Read it with `receive` and `wait_readable`, or, if it is `at_hand`,
    with `take`; then `close` it.

    `close` keeps the connection for the next request if the exchange was complete and clean, and
    closes it otherwise.
    """

    __slots__ = (
        "_broken",
        "_closed",
        "_early",
        "_framing",
        "_keep_alive",
        "_pool",
        "_tls",
        "_unread",
        "at_hand",
        "chunked",
        "complete",
        "connection",
        "failure",
        "on_close",
        "pending",
        "upload",
    )

    def __init__(
        self,
        pool: ConnectionPool,
        connection: Connection,
        framing: Framing,
        early: bytes,
        keep_alive: bool,
        upload: Upload | None = None,
    ) -> None:
        """`early`: body bytes that arrived with the head. `upload`: of the request, if it may still
        be in progress.
        """
        self.connection = connection
        self._pool = pool
        self._framing = framing
        self._early = early
        self._unread: memoryview | None = None  # bytes that `receive` returns once more
        self._keep_alive = keep_alive
        self._closed = False
        self._tls = connection.tls
        self._broken: ProtocolFailure | None = None  # raised after the bytes before it
        self.upload = upload
        self.failure: UpstreamFailure | None = None
        """Why the body broke off, as far as that is the upstream's doing."""
        self.on_close: Callable[[], None] | None = None
        """Called once, after the connection has been returned."""
        self.chunked = isinstance(framing, Chunked)
        """Whether `receive_split` may be used."""
        self.complete = framing.complete
        """Whether the whole body has been received."""
        self.pending = bool(early) or (self._tls and connection.pending)
        """Whether there are bytes to receive that do not make the socket readable."""
        self.at_hand = framing.complete or (
            isinstance(framing, ContentLength) and len(early) >= framing.left
        )
        """Whether the whole body has arrived with the head."""
        if self.chunked and early.endswith(LAST_CHUNK):
            self._unframe(early)

    def _unframe(self, early: bytes) -> None:
        """Unframe a chunked body that has arrived with the head, if all of it has."""
        framing, data = Chunked(), bytearray(early)
        try:
            first, last = framing.frame(data, 0, len(data))
        except ProtocolFailure:
            return  # `receive` raises it, after the bytes before the malformed ones
        if framing.complete and not framing.surplus:
            self._framing, self._early = framing, b""
            self.at_hand = self.complete = True
            self.pending = self._tls and self.connection.pending
            self.unread(bytes(data[first:last]))

    def receive(self, buffer: bytearray, at: int) -> tuple[int, int] | None:
        """Read once into `buffer[at:]`, which must have room, and frame in place. Never blocks.

        Returns `(first, last)` as `Framing.frame` does (an empty range if all bytes were framing),
        or None if nothing has arrived. Do not call it once `complete`. Raises `UpstreamFailure`.
        """
        if self._unread is not None:
            return at, at + self._read_again(self._unread, buffer, at)
        count = self._read(buffer, at)
        if not count:
            return None if count is None else (at, at)
        framing = self._framing
        try:
            span = framing.frame(buffer, at, at + count)
        except ProtocolFailure as error:
            span = framing.framed  # the body bytes before the malformed ones
            self._break(error, span[1] - span[0])
        self.complete = framing.complete
        return span

    def receive_split(self, buffer: bytearray) -> Split | None:
        """As `receive(buffer, 0)` for a `chunked` body; whole chunks keep their framing."""
        if self._unread is not None:
            again = self._read_again(self._unread, buffer, 0)
            return 0, 0, 0, 0, again, again
        count = self._read(buffer, 0)
        if not count:
            return None if count is None else (0, 0, 0, 0, 0, 0)
        framing = self._framing
        assert type(framing) is Chunked
        try:
            split = framing.split(buffer, count)
        except ProtocolFailure as error:
            split = framing.was_split
            self._break(error, split[5])
        self.complete = framing.complete
        return split

    def take(self) -> bytes:
        """The rest of a body that is `at_hand`, which is then complete."""
        data = b"" if self._unread is None else bytes(self._unread)
        framing = self._framing
        if isinstance(framing, ContentLength):
            data += self._early[: framing.left]
            self._early = self._early[framing.left :]
            framing.left, framing.complete = 0, True
        self._unread = None
        self.complete, self.pending = True, False
        return data

    def unread(self, data: bytes) -> None:
        """Let `receive` return these bytes again: all of the body that has been received so far."""
        if data:
            self.at_hand = self.at_hand or self._framing.complete
            self._unread = memoryview(data)
            self.complete, self.pending = False, True

    def _read_again(self, data: memoryview, buffer: bytearray, at: int) -> int:
        """Copy bytes given to `unread` into `buffer[at:]`; return their count."""
        count = min(len(data), len(buffer) - at)
        buffer[at : at + count] = data[:count]
        self._unread = data[count:] if count < len(data) else None
        if self._unread is None:
            self.complete = self._framing.complete
        self._see_pending()
        return count

    def _read(self, buffer: bytearray, at: int) -> int | None:
        """Read into `buffer[at:]`; return the count, 0 if the body has ended with the connection,
        None if nothing has arrived.
        """
        if self._early:
            count = min(len(self._early), len(buffer) - at)
            buffer[at : at + count] = self._early[:count]
            self._early = self._early[count:]
            self._see_pending()
            return count
        if self._broken is not None:
            raise self._broken
        try:
            received = self.connection.receive_into(buffer, at)
            if received == 0:
                if self.upload is not None and self.upload.failure is not None:
                    raise self.upload.failure  # the failed upload has shut the connection down
                try:
                    self._framing.eof()
                except Truncated as error:
                    raise Truncated(f"{self.connection.origin}: {error}") from None
                self.complete = True
        except (ReadFailed, Truncated) as error:
            raise self._cause(error) from None
        if self._tls:
            self._see_pending()
        return received

    def _see_pending(self) -> None:
        self.pending = (
            bool(self._early)
            or self._unread is not None
            or (self._tls and self.connection.pending)
            or self._broken is not None
        )

    def _break(self, error: ProtocolFailure, framed: int) -> None:
        """Raise a framing error; at the next read if `framed` body bytes precede it."""
        self.failure = self._broken = ProtocolFailure(f"{self.connection.origin}: {error}")
        self._early = b""
        self._see_pending()
        if not framed:
            raise self._broken from None

    async def wait_readable(self) -> None:
        """Wait until `receive` may return something. Raises `UpstreamFailure`."""
        if self._early or self._unread is not None or self._broken is not None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.connection.wait_readable()
        except ReadFailed as error:
            raise self._cause(error) from None

    def _cause(self, error: Exception) -> Exception:
        """Why the connection broke: the failure of the upload, which shuts it down, or `error`."""
        if self.upload is not None and self.upload.failure is not None:
            error = self.upload.failure
        if isinstance(error, UpstreamFailure):
            self.failure = error
        return error

    def silent(self, idle_s: float) -> ReadTimedOut:
        """The failure for a body of which nothing has arrived for `idle_s` seconds."""
        self.failure = error = ReadTimedOut(f"{self.connection.origin}: silent for {idle_s:g} s")
        return error

    def close(self) -> None:
        """Return the connection to its pool. Never blocks; safe to call again."""
        if self._closed:
            return
        self._closed = True
        uploaded = self.upload is None or self.upload.complete
        clean = self.complete and not self._framing.surplus and not self._early
        if self.upload is not None:
            self.upload.scope.cancel()
        self._pool.release(self.connection, reusable=self._keep_alive and clean and uploaded)
        if self.on_close is not None:
            self.on_close()
        # Both reference this object: the callback, and the traceback of the failure.
        self.on_close = self.failure = None
