"""The writers under an ASGI server: the portable one through `send`, and the direct one.

The direct writer puts chunks from the pooled buffer on the client's socket, with one `sendmsg`: for
chunked HTTP/1.1 responses without TLS on a known Hypercorn's connection, where `http1` does not
serve (no hub, or a `read_timeout`). The head and the last chunk go
through ASGI and h11, whose state machine only knows that a chunked body is under way, so keep-alive
works as usual. Between the two, Hypercorn itself writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from interceptors.chain import Part

from ..errors import ClientGone
from ..http.headers import HeaderList
from .hypercorn import ClientConnection
from .port import Message, Send, Writer
from .sockets import send_now, send_rest

__all__ = ["AsgiWriter", "DirectWriter", "choose_writer"]


class AsgiWriter:
    """Implements `Writer` on plain ASGI; with a known connection it can also reset."""

    name = "asgi"
    synchronous = False
    keeps_chunks = False

    def __init__(self, send: Send, connection: ClientConnection | None) -> None:
        self._send = send
        self._connection = connection
        self._head: Message | None = None
        self._unsent = b""
        self._last = False
        self._holds_head = False
        self.started = False
        self.stalled = False
        self.bytes_sent = 0

    def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> bool:
        self.started = True
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        self._holds_head = whole and self._connection is not None
        # Until the head has left: a server that was stopped in it accepts nothing more.
        self.stalled = not whole
        return whole

    def write(self, parts: Sequence[Part]) -> bool:
        self._unsent = b"".join(parts)
        self.bytes_sent += len(self._unsent)
        return False

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        raise NotImplementedError("ASGI servers frame bodies by themselves")

    def finish(self) -> bool:
        self._last = True
        return False

    async def drain(self) -> bool:
        self.stalled = True  # until everything has left; a cancelled drain leaves it set
        if self._head is not None:
            head, self._head = self._head, None
            await self._pass_head(head)
        if self._unsent or self._last:
            data, self._unsent = self._unsent, b""
            more = not self._last
            await self._pass({"type": "http.response.body", "body": data, "more_body": more})
        wrote = self.bytes_sent > 0 and not self._last
        all_sent = not wrote or self._connection is None or await self._connection.wait_sent()
        self.stalled = not all_sent
        return all_sent

    async def _pass_head(self, head: Message) -> None:
        connection = self._connection
        if connection is None or not self._holds_head:
            await self._pass(head)
            return
        connection.hold_head(True)
        try:
            await self._pass(head)
        finally:
            connection.hold_head(False)

    async def _pass(self, message: Message) -> None:
        try:
            await self._send(message)
        except (
            OSError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.BusyResourceError,
        ) as error:
            raise ClientGone from error


class DirectWriter(AsgiWriter):
    """Implements `Writer` on the client's socket. Nothing else may be written while bytes are
    unsent.
    """

    name = "direct"
    synchronous = True
    keeps_chunks = True

    def __init__(self, send: Send, connection: ClientConnection) -> None:
        super().__init__(send, connection)
        self._sock = connection.sock
        self._rest: memoryview | None = None

    def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> bool:
        return super().start(status, headers)  # chunks do not pass Hypercorn: nothing may be held

    def write(self, parts: Sequence[Part]) -> bool:
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if not size:
            return True  # a chunk of size 0 would end the body
        return self.write_chunks((b"%x\r\n" % size, *parts, b"\r\n"), size)

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        self._rest = send_now(self._sock, message)
        self.bytes_sent += size
        self.stalled = self._rest is not None
        return self._rest is None

    def finish(self) -> bool:
        assert self._rest is None, "finish() before drain()"
        return super().finish()

    async def drain(self) -> bool:
        if self._head is not None or self._last:
            return await super().drain()
        if self._rest is not None:
            self._rest = await send_rest(self._sock, self._rest)
            self.stalled = self._rest is not None
        return self._rest is None


def choose_writer(
    http_version: str, send: Send, connection: ClientConnection | None, *, chunked: bool
) -> Writer:
    """Choose the direct writer where possible, else the portable one. `chunked`: the body has
    unknown length.
    """
    if (
        connection is None
        or connection.tls
        or connection.http2
        or not chunked
        or http_version != "1.1"
    ):
        return AsgiWriter(send, connection)
    return DirectWriter(send, connection)
