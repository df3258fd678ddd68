"""The body of one request on its way to the upstream.

It writes to a connection that its owner has on loan, and raises nothing but `Cancelled`: a failure
is kept for the task that reads the response.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

import trio

from ..errors import ReadFailed
from ..http.head import BodyEncoder
from .connection import Connection

__all__ = ["Upload"]

_CLOSE_S = 1.0


class Upload:
    """Sends a request body in one task; another task reads the response at the same time."""

    def __init__(
        self,
        connection: Connection,
        encoder: BodyEncoder,
        body: bytes | AsyncIterable[bytes],
        write_timeout_s: float,
    ) -> None:
        self._connection = connection
        self._encoder = encoder
        self._body: bytes | AsyncIterable[bytes] | None = body
        self._write_timeout_s = write_timeout_s
        self.scope = trio.CancelScope()
        """Cancel it to abort the upload."""
        self.taken = False
        """A piece of the body has been taken from its source, or the source is closed."""
        self.ended = trio.Event()
        """Set when `run` is over, unless that was cancelled from outside."""
        self.complete = False
        """Whether the whole body has been written."""
        self.failure: Exception | None = None
        """Why the upload failed; None for a broken connection, which the reader notices itself."""

    async def run(self, head_scope: trio.CancelScope, first_byte_s: float) -> None:
        """Send the body, then set the deadline of `head_scope`, in which the response's head is
        awaited.
        """
        assert self._body is not None
        with self.scope:
            try:
                await self._send_all(self._body)
                self.complete = True
            except ReadFailed:
                pass  # the response may have arrived; if not, reading it fails, too
            except Exception as error:  # a deadline, a wrong length, or an error of the body itself
                self.failure = error
                head_scope.cancel()
                # Wake the reader of the response: no response follows an unfinished request.
                self._connection.shut_down()
        self._body = None  # a body in memory must not live as long as the response
        head_scope.deadline = trio.current_time() + first_byte_s
        self.ended.set()

    async def _send_all(self, body: bytes | AsyncIterable[bytes]) -> None:
        if isinstance(body, bytes):
            await self._send(self._encoder.data(body))
        else:
            await self._send_pieces(aiter(body))
        await self._send(self._encoder.end())

    async def _send_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        try:
            async for piece in pieces:
                self.taken = True
                await self._send(self._encoder.data(piece))
        finally:
            if isinstance(pieces, AsyncGenerator):
                self.taken = True
                with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                    await pieces.aclose()  # do not leave it to the garbage collector

    async def _send(self, data: bytes) -> None:
        if data:
            await self._connection.send_all(data, self._write_timeout_s)
