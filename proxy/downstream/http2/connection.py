"""A client's HTTP/2 connection, from its preface to its end, and the tasks of its streams.

The hub watches the socket from its first byte to its last: what arrives is handled in its turn, and
a client that leaves ends its exchanges within it. Each request is served by a task in the
connection's nursery; the connection's own task only waits for the end. Invariants:

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
_MAX_WORKERS = 4
"""Tasks that wait for the next request of a connection."""

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


class _Worker:
    """A task that serves requests."""

    __slots__ = ("_stream", "_wait", "scope")

    def __init__(self, hub: Hub) -> None:
        self.scope = trio.CancelScope()
        """In which requests are served. An exchange that ends early cancels it."""
        self._wait = Wait(hub)
        self._stream: Http2Stream | None = None

    async def next(self) -> Http2Stream | None:
        """Wait for a request; None when the connection is over."""
        await self._wait.wait()
        stream, self._stream = self._stream, None
        return stream

    def give(self, stream: Http2Stream | None) -> None:
        self._stream = stream
        self._wait.wake()


class Http2Connection:
    """One connection. Its owner awaits `run` in the connection's task, once."""

    __slots__ = (
        "_goodbye",
        "_idle_since",
        "_input",
        "_is_ending",
        "_news",
        "_serve",
        "_server",
        "_to_discard",
        "_workers",
        "hub",
        "output",
        "peer",
        "streams",
        "transport",
    )

    def __init__(
        self, transport: Transport, hub: Hub, peer: str | None, server: Server, began: float
    ) -> None:
        """The connection closes `transport`. `began`: when the client connected, in Trio's time."""
        self.transport = transport
        self.hub = hub
        self.peer = peer
        self.streams: dict[int, Http2Stream] = {}
        self.output = Output(transport, server.keep_alive_s, self.lose)
        self._input = Input(self, server.max_streams)
        self._server = server
        self._news = Wait(hub)
        self._serve: Serve
        self._workers: list[_Worker] = []  # those that wait
        self._goodbye: tuple[int, str] | None = None  # why the connection is over
        self._to_discard = _LINGER_BYTES
        self._is_ending = False  # the client knows that the server ends
        self._idle_since = began

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
            self.output.nursery = None  # closed: no task can send what the socket does not accept
            self._close(frames.NO_ERROR)
            del self._input, self.output  # break the reference cycles

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
        self._serve = serve
        self._take(early)
        while self._goodbye is None and not self.output.lost and (left_s := self._patience_s()) > 0:
            await self._news.wait(left_s)
        self._goodbye = self._goodbye or (frames.NO_ERROR, "")
        if not self.output.lost:
            await self._linger(*self._goodbye)

    # The socket's events

    def on_ready(self, events: int, now: float) -> None:
        """Handle what has arrived, or note that the client has left."""
        if events & BROKEN:
            self.output.timed_out |= self.transport.take_error() == errno.ETIMEDOUT
            self.lose()
            return
        try:
            data = self.transport.receive(_READ_BYTES)
        except OSError as error:
            self.output.timed_out |= error.errno == errno.ETIMEDOUT
            data = b""
        if data:
            self._take(data)
        elif data is not None:
            self.lose()

    def _take(self, data: bytes) -> None:
        """Handle what has arrived. Raises nothing."""
        if self._goodbye is not None:
            self._to_discard -= len(data)
            if self._to_discard < 0:
                self.lose()
            return
        try:
            requests = self._input.handle(data)
            self.output.flush()
            for stream in requests:
                if not self.output.lost:  # sending may show that the client has left
                    self._start(stream)
        except ConnectionBroken as broken:
            self._goodbye = broken.code, str(broken)
        except Exception as error:  # it must not end the hub
            structlog.get_logger("proxy").error("internal_error", exc_info=error)
            self._goodbye = frames.INTERNAL_ERROR, ""
        else:
            return
        self._news.wake()

    def lose(self) -> None:
        """The connection is over: for the streams, the client has left."""
        if not self.output.lost:
            self.output.lost = True
            self.hub.forget(self.transport.fileno())
            self._news.wake()
        self._leave_streams()
        while self._workers:
            self._workers.pop().give(None)

    def _leave_streams(self) -> None:
        for stream in tuple(self.streams.values()):
            stream.leave()

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
        with trio.move_on_after(_LINGER_S):
            while not self.output.lost:
                await self._news.wait()

    # Streams

    def new_stream(
        self, stream_id: int, head: RequestHead, window: int, *, ended: bool
    ) -> Http2Stream:
        """Register a stream."""
        if not self.streams:
            client_connections.set_busy(self)
        self.streams[stream_id] = stream = Http2Stream(self, stream_id, head, window, ended=ended)
        return stream

    def _start(self, stream: Http2Stream) -> None:
        """Let a task that waits serve the request, or else a new one: a task that waits in the hub
        continues at once, and a new one only after a pass through Trio's loop.
        """
        if self._workers:
            self._workers.pop().give(stream)
        else:
            assert self.output.nursery is not None
            self.output.nursery.start_soon(self._work, stream)

    async def _work(self, stream: Http2Stream | None) -> None:
        """Serve this request, and then others while there are few such tasks."""
        worker = _Worker(self.hub)
        with worker.scope:
            while stream is not None:
                stream.scope = worker.scope
                await self._serve_one(stream)
                await self._server.count_request()
                stream = None
                is_spare = self.output.lost or len(self._workers) >= _MAX_WORKERS
                if not is_spare and not worker.scope.cancel_called:
                    self._workers.append(worker)
                    stream = await worker.next()
        if worker.scope.cancelled_caught:  # by the exchange
            await self._server.count_request()

    async def _serve_one(self, stream: Http2Stream) -> None:
        try:
            await self._serve(stream)
        except Exception as error:  # a fault of one stream
            structlog.get_logger("proxy").error("internal_error", exc_info=error)
        finally:
            self._conclude(stream)

    def _conclude(self, stream: Http2Stream) -> None:
        """The exchange has ended: close the stream, if it is not."""
        if not stream.end_sent:
            self.reset(stream, frames.INTERNAL_ERROR)
        else:
            self._input.budget.take_back()
            if not stream.at_hand and not stream.closed and not self.output.lost:
                self._input.discard_rest(stream)
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
