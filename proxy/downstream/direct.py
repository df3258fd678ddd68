"""The direct writer: chunks from the pooled buffer to the client's socket, with one `sendmsg`.

For chunked HTTP/1.1 responses without TLS under a known Hypercorn. The head and the last chunk go
through ASGI and h11, whose state machine only knows that a chunked body is under way, so keep-alive
works as usual. Between the two, Hypercorn itself writes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import trio

from interceptors.chain import Part

from ..errors import ClientGone, SendStalled
from .asgi import AsgiWriter
from .hypercorn import ClientConnection
from .writer import Send, Writer

__all__ = ["DirectWriter", "choose_writer"]

_IOV_MAX = 1024  # on Linux


class DirectWriter(AsgiWriter):
    """Implements `Writer` on the client's socket. Nothing else may be written while bytes are
    unsent.
    """

    name = "direct"
    synchronous = True

    def __init__(self, send: Send, connection: ClientConnection) -> None:
        super().__init__(send, connection)
        self._sock = connection.sock
        self._send_bytes = connection.sock.send
        self._sendmsg = connection.sock.sendmsg
        self._rest: memoryview | None = None

    def write(self, parts: Sequence[Part]) -> bool:
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if not size:
            return True  # a chunk of size 0 would end the body
        return self.write_chunks((b"%x\r\n" % size, *parts, b"\r\n"), size)

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        try:
            if len(message) == 1:
                sent = self._send_bytes(message[0])
            elif len(message) <= _IOV_MAX:
                sent = self._sendmsg(message)
            else:
                message = (b"".join(message),)
                sent = self._send_bytes(message[0])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise _lost(error) from error
        self.bytes_sent += size
        if sent == (len(message[0]) if len(message) == 1 else sum(map(len, message))):
            return True
        self._rest = memoryview(b"".join(message))[sent:]
        self.stalled = True
        return False

    async def drain(self) -> bool:
        rest = self._rest
        if rest is not None:
            try:
                if self._sock.fileno() < 0:
                    raise ClientGone
                await trio.lowlevel.wait_writable(self._sock)
                rest = rest[self._send_bytes(rest) :]
            except (BlockingIOError, InterruptedError):
                return False
            except (OSError, trio.ClosedResourceError) as error:
                raise _lost(error) from error
            self._rest = rest or None
            self.stalled = self._rest is not None
        return self._rest is None

    async def finish(self) -> None:
        assert self._rest is None, "finish() before drain()"
        await super().finish()


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


def _lost(error: Exception) -> ClientGone | SendStalled:
    """The kernel may be the first to give up a stalled client."""
    return (
        SendStalled()
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT
        else ClientGone()
    )
