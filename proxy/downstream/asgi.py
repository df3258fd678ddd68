"""The portable writer: the response through ASGI's `send`.

ASGI servers may keep the bytes, so each write is copied once out of the pooled buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from interceptors.chain import Part

from ..errors import ClientGone
from ..http.headers import HeaderList
from .hypercorn import RAW_TARGET, ClientConnection
from .writer import Scope, Send

__all__ = ["AsgiWriter", "raw_target"]


def raw_target(scope: Scope) -> bytes:
    """Return the request's target as received. Without Weirpool's extension a `?` before an empty
    query is lost.
    """
    target: bytes | None = scope["extensions"].get(RAW_TARGET) if scope.get("extensions") else None
    if target is None:
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + b"?" + query if query else scope["raw_path"]
    return target


class AsgiWriter:
    """Implements `Writer` on plain ASGI."""

    name = "asgi"
    synchronous = False

    def __init__(self, send: Send, connection: ClientConnection | None) -> None:
        self._send = send
        self._connection = connection
        self._unsent = b""
        self.started = False
        self.stalled = False
        self.bytes_sent = 0

    async def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> None:
        self.started = self.stalled = (
            True  # until the head has left: a server that was stopped in it accepts nothing more
        )
        head = {"type": "http.response.start", "status": status, "headers": headers}
        if self._connection is None or not whole:
            await self._pass(head)
        else:
            self._connection.hold_head(True)
            try:
                await self._pass(head)
            finally:
                self._connection.hold_head(False)
        self.stalled = False

    def write(self, parts: Sequence[Part]) -> bool:
        self._unsent = b"".join(parts)
        self.bytes_sent += len(self._unsent)
        return False

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        raise NotImplementedError("ASGI servers frame bodies by themselves")

    async def drain(self) -> bool:
        if self._unsent:
            data, self._unsent = self._unsent, b""
            self.stalled = True  # until it has left; a cancelled drain leaves it set
            await self._pass({"type": "http.response.body", "body": data, "more_body": True})
        all_sent = self._connection is None or await self._connection.wait_sent()
        self.stalled = not all_sent
        return all_sent

    async def finish(self) -> None:
        data, self._unsent = self._unsent, b""
        await self._pass({"type": "http.response.body", "body": data, "more_body": False})

    async def _pass(self, message: dict[str, object]) -> None:
        try:
            await self._send(message)
        except (
            OSError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.BusyResourceError,
        ) as error:
            raise ClientGone from error
