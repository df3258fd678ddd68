"""A client's HTTP/1.1 connection (RFC 9112): its requests, one after another.

The connection's task reads a head, hands an `Http1Stream` to the app, and reads the next head. The
hub watches the socket from its first byte to its last, so that a client that leaves ends its
exchange within the turn, whatever the task waits for. Invariants:

- bytes after a request are kept for the next one, up to `_MAX_AHEAD_BYTES`; beyond it the socket is
  only watched for its end, so that a pipelined request never hides a client that has left;
- one response at a time, in the order of the requests;
- a response that is not whole ends with a reset, and a connection whose request was not read to its
  end is closed, never used again for bytes that could be a part of it;
- an end of file after a request that says that it is the last (`Connection: close`, HTTP/1.0) is not
  a disconnect (RFC 9112, section 9.6); after any other request it is.

It knows no route, no exchange and no server.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from math import inf
from typing import Protocol

import trio

from ..errors import RequestRefused
from ..http.request import Http2Assumed, RequestHead, RequestReader
from ..hub import BROKEN, LISTEN, LISTEN_FOR_HANGUP, READABLE, Hub, Wait, current_time
from .bound import client_connections
from .http1_stream import Http1Stream
from .transport import Transport

__all__ = ["Http1Connection", "Serve"]

_READ_BYTES = 65536
_MAX_AHEAD_BYTES = 65536
_MAX_IN_A_ROW = 16
"""Pipelined requests that may be served before other tasks run."""
_LINGER_CLOSED_S = 1.0
_LINGER_BYTES = 64 * 1024 * 1024

Serve = Callable[[Http1Stream], Awaitable[None]]
"""Serves one request."""


class Ending(Protocol):
    """The server of a connection."""

    keep_alive_s: float
    """How long a connection may be idle, and a head incomplete."""

    @property
    def ends(self) -> bool:
        """Idle connections are closed from now on."""
        ...

    counts: bool
    """Whether it wants to know of each request."""

    async def count_request(self) -> None:
        """A request has been served. Nothing to do unless `counts`."""
        ...


class Http1Connection:
    """One connection. Its owner awaits `run` in the connection's task, once."""

    __slots__ = (
        "_closed",
        "_in_a_row",
        "_listening",
        "_news",
        "_stream",
        "half_closed",
        "hub",
        "peer",
        "reader",
        "scope",
        "server",
        "timed_out",
        "transport",
    )

    def __init__(self, transport: Transport, hub: Hub, peer: str | None, server: Ending) -> None:
        """The connection closes `transport`."""
        self.transport = transport
        self.hub = hub
        self.peer = peer
        self.reader = RequestReader()
        self.scope = trio.CancelScope()
        """In which requests are served. An exchange that ends early cancels it."""
        self.half_closed = False
        """The client has closed its side, and all that it sent has been received."""
        self.timed_out = False
        """The kernel has given up the client because it accepted nothing."""
        self.server = server
        self._news = Wait(hub)
        self._stream: Http1Stream | None = None
        self._closed = False  # by the client, or by the server while idle
        self._in_a_row = 0
        self._listening = True

    async def run(self, serve: Serve) -> bytes | None:
        """Serve the connection to its end. Raises what `serve` raises.

        Returns what has arrived, with the socket open, if the client speaks HTTP/2.
        """
        client_connections.enter(self)
        try:
            if self._watch():
                with self.scope:
                    await self._serve_requests(serve)
                if self.scope.cancelled_caught and self._stream is not None:
                    await self.server.count_request()
                    await self._conclude(self._stream)
        except Http2Assumed:
            self.hub.forget(self.transport.fileno())
            client_connections.leave(self)
            return self.reader.data
        except BaseException:
            self._end()
            raise
        self._end()
        return None

    def _watch(self) -> bool:
        """Let the hub watch the socket. False: it is closed, because there are too many."""
        try:
            if not self._closed:
                self.hub.watch(self.transport.fileno(), self)
        except OSError:
            return False
        return not self._closed

    def _end(self) -> None:
        client_connections.leave(self)
        self._stream = None
        self.close()

    async def _serve_requests(self, serve: Serve) -> None:
        while (head := await self._next_head()) is not None:
            client_connections.set_busy(self)
            self._stream = stream = Http1Stream(self, head)
            if self.half_closed and head.keep_alive:
                self.lose()
            await serve(stream)
            if self.server.counts:
                await self.server.count_request()
            is_whole = stream.ended and stream.complete and not self._closed
            if not (is_whole and head.keep_alive and not stream.closes) and not (
                await self._conclude(stream)
            ):
                return
            self._stream = None
            client_connections.set_idle(self)

    # The socket's events

    def on_ready(self, events: int, now: float) -> None:
        """Receive what has arrived, or note that the client has left."""
        if events & READABLE and self._listening:
            self._receive()
        elif events & BROKEN:
            self.timed_out = self.timed_out or self.transport.take_error() == errno.ETIMEDOUT
            self.lose()
        else:
            self._end_of_input()

    def _receive(self) -> None:
        try:
            data = self.transport.receive(_READ_BYTES)
        except OSError as error:
            self.timed_out = error.errno == errno.ETIMEDOUT
            self.lose()
            return
        if data is None:
            return
        if not data:
            self._end_of_input()
            return
        self.reader.feed(data)
        if not self._news.wake() and len(self.reader.data) > _MAX_AHEAD_BYTES:
            self._listen(False)

    def _end_of_input(self) -> None:
        """The client has closed its side. While nothing is read, bytes before it may be unread."""
        stream = self._stream
        if stream is None:
            is_last = bool(self.reader.data) and not self._news.waiting  # it is about to be read
        else:
            is_last = not stream.head.keep_alive and not (self._listening and stream.is_cut)
        if not is_last:
            self.lose()
            return
        self.hub.listen_for(self.transport.fileno(), 0)
        if self._listening:
            self.half_closed = True
            self._news.wake()

    def lose(self) -> None:
        """The client has left."""
        self._closed = True
        self.hub.forget(self.transport.fileno())
        if self._stream is not None:
            self._stream.leave()
        self._news.wake()

    def _listen(self, reads: bool) -> None:
        if self._listening != reads and not self.half_closed:
            self._listening = reads
            self.hub.listen_for(self.transport.fileno(), LISTEN if reads else LISTEN_FOR_HANGUP)

    # What the connection's task awaits

    async def more(self, timeout_s: float = inf) -> bool:
        """Wait until more has arrived. Returns False if nothing will, or has within `timeout_s`."""
        if self._closed or self.half_closed:
            return False
        if not self._listening:
            self._listen(True)
        came = await self._news.wait(timeout_s)
        return came and not self._closed and (not self.half_closed or bool(self.reader.data))

    async def _next_head(self) -> RequestHead | None:
        """The next request; None when the connection is over. A head that does not arrive in time
        is one with a fault.
        """
        reader, head = self.reader, None
        if reader.data:
            self._in_a_row += 1
            if self._in_a_row % _MAX_IN_A_ROW == 0:
                await trio.lowlevel.checkpoint()
            if (head := reader.read()) is not None:
                return head
        due = current_time() + self.server.keep_alive_s
        left_s = self.server.keep_alive_s
        while head is None and not self.server.ends and await self.more(left_s):
            head = reader.read()
            if head is None:
                left_s = max(0, round(due - current_time()))  # lengths that repeat cost less
        if head is None and reader.has_begun and not self._closed and not self.half_closed:
            too_slow = RequestRefused(408, "request_timeout", "the head did not arrive in time")
            head = RequestHead("", b"", [], "1.1", 0, False, False, too_slow)
        return head

    async def _conclude(self, stream: Http1Stream) -> bool:
        """After a response: whether the connection can carry another request."""
        if self._closed or self.transport.fileno() < 0:
            return False
        if not stream.ended:  # the app has returned without a whole response
            if not stream.shows_its_end:
                await stream.abort()
            return False
        if not stream.complete and (self.server.ends or not await stream.discard()):
            await self._linger()
            return False
        if stream.head.keep_alive and not stream.closes:
            return True
        if self.reader.data or stream.head.fault is not None:
            await self._linger()  # the client may still be sending
        return False

    async def _linger(self) -> None:
        """Close the sending side, and read for a moment what the client still sends: closing the
        socket at once would send a reset, and the client could lose the response.
        """
        self.transport.shut_down_sending()
        left = _LINGER_BYTES
        with trio.move_on_after(_LINGER_CLOSED_S):
            while left > 0 and await self.more():
                left -= len(self.reader.data)
                self.reader.data = b""

    # How it ends

    def fileno(self) -> int:
        """The socket's descriptor; negative if closed."""
        return self.transport.fileno()

    def close_idle(self) -> None:
        """Close an idle connection. Synchronous; raises nothing."""
        self.close()
        self._closed = True
        self._news.wake()

    def announce_end(self) -> None:
        """HTTP/1.1 has no message for it: the next response says that it is the last."""

    def end_if_idle(self) -> None:
        """Close the connection if no request is served."""
        if self._stream is None:
            self.close_idle()

    def cut(self) -> None:
        """Reset the connection, whatever it waits for. Synchronous."""
        self.lose()
        self.transport.reset()

    def close(self) -> None:
        """Close the socket. Safe to call again."""
        self.transport.close()
