"""A client's HTTP/2 connection, from its preface to its end, and the tasks of its streams.

The connection's task reads, and `Input` handles the frames; each request is a task in the
connection's nursery; all of them send through `Output`. The hub watches the socket from its first
byte to its last, so that a client that leaves ends its exchanges within the turn. Invariants:

- a stream counts against the announced limit until its exchange has ended and it is closed;
- a connection without a stream is idle, whatever else arrives; one with a stream is not, however
  quiet it is;
- the connection ends with GOAWAY, unless the client has left or the socket is full.

It knows no route, no exchange and no server.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio

from ...http import frames
from ...http.frames import ConnectionBroken
from ...http.head import MAX_HEAD_BYTES
from ...http.request import RequestHead
from ...hub import BROKEN, Hub, Wait
from ..bound import client_connections
from ..http1 import Ending
from ..transport import Transport
from .input import WINDOW, Input
from .output import Output
from .stream import DEFAULT_WINDOW, MAX_WINDOW, Http2Stream

__all__ = ["Http2Connection", "Serve"]

_READ_BYTES = 65536
_LINGER_S = 1.0
_LINGER_BYTES = 64 * 1024 * 1024

Serve = Callable[[Http2Stream], Awaitable[None]]
"""Serves one request."""


class Server(Ending, Protocol):
    """The server of a connection."""

    max_streams: int
    """How many streams of a connection may be open at one time."""

    @property
    def drains(self) -> bool:
        """The server ends soon."""
        ...


class Http2Connection:
    """One connection. Its owner awaits `run` in the connection's task, once."""

    __slots__ = (
        "_idle_since",
        "_input",
        "_is_ending",
        "_news",
        "_server",
        "hub",
        "output",
        "peer",
        "streams",
        "transport",
    )

    def __init__(self, transport: Transport, hub: Hub, peer: str | None, server: Server) -> None:
        """The connection closes `transport`."""
        self.transport = transport
        self.hub = hub
        self.peer = peer
        self.streams: dict[int, Http2Stream] = {}
        self.output = Output(transport, server.keep_alive_s, self.lose)
        self._input = Input(self, server.max_streams)
        self._server = server
        self._news = Wait(hub)
        self._is_ending = False  # the client knows that the server ends
        self._idle_since = trio.current_time()

    async def run(self, serve: Serve, early: bytes = b"") -> None:
        """Serve the connection to its end. `early`: what has arrived, from the preface on. Raises
        only what cancels it.
        """
        client_connections.enter(self)
        try:
            if self._watch():
                async with trio.open_nursery() as self.output.nursery:
                    await self._run(serve, early)
                    self.lose()
        finally:
            client_connections.leave(self)
            self._close(frames.NO_ERROR)

    def _watch(self) -> bool:
        """Let the hub watch the socket. False: it is closed, because there are too many."""
        try:
            if not self.output.lost:
                self.hub.watch(self.transport.fileno(), self)
        except OSError:
            return False
        return not self.output.lost

    async def _run(self, serve: Serve, early: bytes) -> None:
        """Read until the connection is over."""
        announced = (
            (frames.MAX_CONCURRENT_STREAMS, self._server.max_streams),
            (frames.MAX_HEADER_LIST_SIZE, MAX_HEAD_BYTES),
        )
        self.output.add(frames.settings(announced))
        self.output.add(frames.window_update(0, WINDOW - DEFAULT_WINDOW))
        self.output.flush()
        code, reason = frames.NO_ERROR, ""
        try:
            data: bytes | None = await self._read_preface(early)
            while data is not None:
                for stream in self._input.handle(data):
                    self._start(serve, stream)
                self.output.flush()
                data = await self._more()
        except ConnectionBroken as broken:
            code, reason = broken.code, str(broken)
        if not self.output.lost:
            await self._linger(code, reason)

    # The socket's events

    def on_ready(self, events: int, now: float) -> None:
        """Let the connection's task receive, or note that the client has left."""
        if events & BROKEN:
            self.output.timed_out |= self.transport.take_error() == errno.ETIMEDOUT
            self.lose()
        else:
            self._news.wake()

    def lose(self) -> None:
        """The connection is over: for the streams, the client has left."""
        if not self.output.lost:
            self.output.lost = True
            self.hub.forget(self.transport.fileno())
            self._news.wake()
        self._leave_streams()

    def _leave_streams(self) -> None:
        for stream in tuple(self.streams.values()):
            stream.leave()

    # What the connection's task awaits

    async def _read_preface(self, data: bytes) -> bytes | None:
        """What follows the preface (RFC 9113, section 3.4); None if the connection is over. Raises
        `ConnectionBroken`.
        """
        while len(data) < len(frames.PREFACE) and frames.PREFACE.startswith(data):
            more = await self._more()
            if more is None:
                return None
            data += more
        if not data.startswith(frames.PREFACE):
            raise ConnectionBroken(frames.PROTOCOL_ERROR, "not the preface of HTTP/2")
        return data[len(frames.PREFACE) :]

    async def _more(self) -> bytes | None:
        """What has arrived; None when the connection is over: the client has left, or it is idle."""
        while not self.output.lost and (left_s := self._patience_s()) > 0:
            if await self._news.wait(left_s) and not self.output.lost:
                data = self._receive()
                if data == b"":
                    self.lose()
                elif data is not None:
                    return data
        return None

    def _receive(self) -> bytes | None:
        """As `Transport.receive`; a broken connection has ended."""
        try:
            return self.transport.receive(_READ_BYTES)
        except OSError as error:
            self.output.timed_out |= error.errno == errno.ETIMEDOUT
            return b""

    def _patience_s(self) -> float:
        """How long the connection's task may wait before it looks again; 0: it is idle too long."""
        if self.streams:
            return self._server.keep_alive_s
        if self._server.ends:
            return 0
        return self._idle_since + self._server.keep_alive_s - trio.current_time()

    async def _linger(self, code: int, reason: str) -> None:
        """Send GOAWAY, and read for a moment what the client still sends: closing the socket at
        once would send a reset, and the client could lose the last frames.
        """
        self._leave_streams()
        self._close(code, reason, stays=True)
        left: int = _LINGER_BYTES
        with trio.move_on_after(_LINGER_S):
            while left > 0 and not self.output.lost:
                await self._news.wait()
                data = self._receive()
                if data == b"":
                    return
                left -= len(data or b"")

    # Streams

    def new_stream(
        self, stream_id: int, head: RequestHead, window: int, *, ended: bool
    ) -> Http2Stream:
        """Register a stream."""
        if not self.streams:
            client_connections.set_busy(self)
        self.streams[stream_id] = stream = Http2Stream(self, stream_id, head, window, ended=ended)
        return stream

    def _start(self, serve: Serve, stream: Http2Stream) -> None:
        assert self.output.nursery is not None
        self.output.nursery.start_soon(self._serve_one, serve, stream)

    async def _serve_one(self, serve: Serve, stream: Http2Stream) -> None:
        try:
            await serve(stream)
        except Exception as error:  # a fault of one stream
            structlog.get_logger("proxy").error("internal_error", exc_info=error)
        finally:
            self._conclude(stream)
        await self._server.count_request()

    def _conclude(self, stream: Http2Stream) -> None:
        """The exchange has ended: close the stream, if it is not."""
        if not stream.end_sent:
            self.reset(stream, frames.INTERNAL_ERROR)
        else:
            self._input.budget.take_back()
            if not stream.at_hand:  # the client need not send the rest (RFC 9113, section 8.1)
                self.reset(stream, frames.NO_ERROR)
        stream.closed = True
        self.forget(stream)

    def forget(self, stream: Http2Stream) -> None:
        """Remove a closed stream whose exchange has ended, or never begins."""
        del self.streams[stream.id]
        if not stream.at_hand:
            self._input.expect_late(stream.id)
        if not self.streams:
            self._idle_since = trio.current_time()
            client_connections.set_idle(self)
            if self._server.ends:
                self._news.wake()
            elif self._server.drains:
                self.announce_end()

    def reset(self, stream: Http2Stream, code: int) -> None:
        """Send RST_STREAM, unless the stream is closed. Synchronous; raises nothing."""
        if not stream.closed and not self.output.lost:
            stream.closed = True
            stream.drop()
            self.output.add(frames.rst_stream(stream.id, code))
            self.output.flush()

    def open_window(self, stream: Http2Stream, size: int) -> None:
        """Let the client send more of a stream. Synchronous; raises nothing."""
        if not stream.closed and not self.output.lost:
            self.output.add(frames.window_update(stream.id, size))
            self.output.flush()

    def limit_send(self, timeout_s: float) -> None:
        """As `ClientStream.limit_send`."""
        self.output.limit_send(timeout_s, alone=len(self.streams) == 1)

    # How it ends

    def fileno(self) -> int:
        """The socket's descriptor; negative if closed."""
        return self.transport.fileno()

    def close_idle(self) -> None:
        """Close an idle connection. Synchronous; raises nothing."""
        self._close(frames.NO_ERROR)

    def _close(self, code: int, reason: str = "", *, stays: bool = False) -> None:
        """Send GOAWAY, unless the client has left, and close the connection. `stays`: only its
        sending side, unless the socket is full.
        """
        output = self.output
        if not output.lost:
            output.add(frames.goaway(self._input.last_id, code, reason))
            output.flush()
        if stays and not output.is_full and not output.lost:
            self.transport.shut_down_sending()
            return
        self.transport.reset() if output.is_full else self.transport.close()
        self.lose()

    def announce_end(self) -> None:
        """The server drains: ask the client of an idle connection to open no more streams. Those
        that it opens meanwhile are answered (RFC 9113, section 6.8).

        While a stream is open there is no GOAWAY: clients based on `h2`, such as httpx, give up all
        of their streams at one.
        """
        if not self.streams and not self._is_ending and not self.output.lost:
            self._is_ending = True
            self.output.add(frames.goaway(MAX_WINDOW, frames.NO_ERROR))
            self.output.flush()

    def end_if_idle(self) -> None:
        """The server ends: close the connection as soon as no request is served."""
        self._news.wake()

    def cut(self) -> None:
        """Reset the connection, whatever it waits for. Synchronous."""
        self.transport.reset()
        self.lose()
