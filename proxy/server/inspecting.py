"""The messages of `/inspect/stream`: of a view of this worker, and of one in each of its siblings,
which see the streams that this worker does not have.

Each worker decodes and encodes what it shows; this one passes the bytes of the others on. A client
that reads slowly fills the queues of the views, which then lose events. No stream waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import structlog
import trio

from ..inspector import BEGIN, GONE, PING, Inspector, TooManyViews, View, Wanted, message
from ..worker.siblings import Siblings

__all__ = ["MOST_CLIENTS", "Inspecting"]

MOST_CLIENTS = 16
"""Clients that watch through one worker."""
_TAKE_S = 0.05
"""How often the messages of a view are taken. Records carry their own times."""
_PING_S = 15.0
_AGAIN_S = 1.0
"""When a worker that has ended is asked again: its replacement answers once it has started."""
_CLOSE_S = 1.0

Send = Callable[[list[bytes]], Awaitable[None]]
"""Sends messages to a client or a sibling."""


class Inspecting:
    """Serves views of all workers to the clients of this one."""

    def __init__(
        self, inspector: Inspector, siblings: Siblings | None, over: Callable[[], bool]
    ) -> None:
        """`over`: whether streams must end."""
        self._inspector = inspector
        self._siblings = siblings
        self._over = over
        self._nursery: trio.Nursery | None = None
        self._clients = 0
        self._left = trio.Event()
        if siblings is not None:
            siblings.show = self._show_sibling

    @property
    def full(self) -> bool:
        """Whether no further client can watch."""
        return self._clients >= MOST_CLIENTS

    async def run(self) -> None:
        """Own the tasks of all clients, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def aclose(self) -> None:
        """End all streams. Waits at most `_CLOSE_S` for their clients."""
        self._over = lambda: True
        with trio.move_on_after(_CLOSE_S):
            while self._clients:
                await self._left.wait()

    async def events(self, wanted: Wanted) -> AsyncGenerator[bytes, None]:
        """Yield messages until nothing is left to watch. Ends at once if it is `full`."""
        if self.full or self._nursery is None:
            return
        sends, receives = trio.open_memory_channel[bytes](0)
        scope = trio.CancelScope()
        self._clients += 1
        try:
            self._nursery.start_soon(self._gather, wanted, sends, scope)
            yield b"retry: 1000\n\n"
            while True:
                data = PING
                with trio.move_on_after(_PING_S):
                    try:
                        data = await receives.receive()
                    except trio.EndOfChannel:
                        return
                yield data
        finally:
            scope.cancel()
            receives.close()
            self._clients -= 1
            self._left.set()
            self._left = trio.Event()

    async def _gather(
        self,
        wanted: Wanted,
        sends: trio.MemorySendChannel[bytes],
        scope: trio.CancelScope,
    ) -> None:
        """Send the messages of all workers to a client."""
        try:
            with scope:
                async with sends:
                    sources = _Sources(wanted, sends)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(sources.run, self._local)
                        for other in () if self._siblings is None else self._siblings.others:
                            nursery.start_soon(sources.run, partial(self._remote, other))
                    if wanted.exchange is not None and not sources.shown:
                        await sends.send(GONE)
        except Exception:
            structlog.get_logger("proxy").error("internal_error", exc_info=True)

    async def _local(self, wanted: Wanted, send: Send) -> None:
        try:
            view = self._inspector.open(wanted)
        except TooManyViews:
            await send([message("lost", {"worker": self._inspector.worker})])
            return
        try:
            await self._send_view(view, send)
        finally:
            self._inspector.close(view)

    async def _send_view(self, view: View, send: Send) -> None:
        while not self._over():
            messages = view.take()
            if messages:
                await send(messages)
            if view.over:
                return
            # Between two slices, streams go first.
            await trio.sleep(_TAKE_S if view.is_empty else 0)

    async def _remote(self, other: int, wanted: Wanted, send: Send) -> None:
        """Send the messages of a sibling, and of those that replace it."""
        assert self._siblings is not None
        while not self._over():
            stream = await self._siblings.connect(other, {"view": msgspec.to_builtins(wanted)})
            if stream is not None and await self._pass_on(stream, send) and wanted.once:
                return
            if wanted.exchange is not None:  # no replacement has it
                if stream is None:
                    await send([message("lost", {"worker": other})])
                return
            await trio.sleep(_AGAIN_S)
            if not self._over():
                await send([message("lost", {"worker": other})])

    async def _pass_on(self, stream: trio.SocketStream, send: Send) -> bool:
        """Send the messages of a view until its worker ends it. Returns whether it had a stream."""
        began, pending = False, b""
        async with stream:
            with suppress(trio.BrokenResourceError):  # the worker has ended
                async for chunk in stream:
                    *whole, pending = (pending + chunk).split(b"\n\n")
                    if whole:
                        began = began or any(data.startswith(BEGIN) for data in whole)
                        await send([data + b"\n\n" for data in whole])
        return began

    async def _show_sibling(self, asked: dict[str, Any], stream: trio.SocketStream) -> None:
        """Send this worker's messages to the sibling that asked, until it closes the stream."""

        async def send(messages: list[bytes]) -> None:
            await stream.send_all(b"".join(messages))

        wanted = msgspec.convert(asked, Wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_closed, stream, nursery.cancel_scope)
            with suppress(trio.BrokenResourceError):
                await self._local(wanted, send)
            nursery.cancel_scope.cancel()


async def _wait_closed(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)  # a sibling sends nothing
    scope.cancel()


class _Sources:
    """The workers that one client watches. With `once`, only the first that shows a stream."""

    def __init__(self, wanted: Wanted, sends: trio.MemorySendChannel[bytes]) -> None:
        self._wanted = wanted
        self._sends = sends
        self._running: dict[object, trio.CancelScope] = {}
        self.shown = False

    async def run(self, source: Callable[[Wanted, Send], Any]) -> None:
        """Send the messages of one worker."""
        own = object()

        async def send(messages: list[bytes]) -> None:
            if any(data.startswith(BEGIN) for data in messages):
                self.shown = True
                if self._wanted.once:
                    for other, scope in tuple(self._running.items()):
                        if other is not own:
                            scope.cancel()
            await self._sends.send(b"".join(messages))

        with trio.CancelScope() as self._running[own]:
            await source(self._wanted, send)
        del self._running[own]
