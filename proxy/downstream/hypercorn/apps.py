"""The calling of the app, and what ASGI's `receive` gives it.

Hypercorn has a Trio memory channel for each request, and needs it for little: one task puts
messages in, one takes them out. Its two ends, and what it has for any number of waiting tasks, are
2 kB that stay for as long as a stream; and whoever puts a message into it waits for ever when the
app has returned without having taken everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.task_group import TaskGroup

from .requests import ClientStream

__all__ = ["RAW_TARGET", "AppTasks", "LazyEvent", "Messages"]

RAW_TARGET = "weirpool.target"
"""The ASGI extension with a request's target, byte for byte."""

Message = MutableMapping[str, Any]

_SMALL_PIECE_BYTES = 16384
_LEAST_ACKNOWLEDGED = (
    32768  # less than the window of a stream, so that there is always something that can come
)


class Messages:
    """What a client's connection has for one application: at most so many messages, for one task
    that takes them.

    `put` is for the connection, `receive` is ASGI's. Both block only while they must wait;
    `receive` is a point of cancellation always. One task may wait to put, while others say that the
    client has gone: that never waits.
    """

    __slots__ = (
        "_limit",
        "_messages",
        "_taken",
        "_waiting",
        "acknowledge",
        "on_disconnect",
        "over",
    )

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._messages: list[Message] = []
        self._waiting: trio.lowlevel.Task | None = (
            None  # who puts, when it is full; who takes, when it is empty
        )
        self._taken = 0  # bytes that `acknowledge` has not heard of
        self.acknowledge: Callable[[int], Awaitable[None]] | None = None
        """Over HTTP/2: awaited with the size of each piece that is taken. It opens the window, so
        that `put` never has to wait.
        """
        self.over = False
        """The app has returned."""
        self.on_disconnect: Callable[[], None] | None = None
        """Called, synchronously, when `http.disconnect` comes: for whoever has nothing else to wait
        for.
        """

    async def put(self, message: Message) -> None:
        """Add one, as soon as there is room; the last, a disconnect, at once, ahead of what waits
        for room. A small piece of a body joins one before it that has not been taken: a client may
        send each byte in a chunk of its own.

        Nobody wants it any more when `close` has been called.
        """
        if self._join(message):
            return
        last: bool = message["type"].endswith(".disconnect")
        while (
            len(self._messages) >= self._limit
            and self.acknowledge is None
            and not self.over
            and not last
        ):
            await self._wait()
        if self.over:
            return
        self._messages.append(message)
        self._wake()
        if self.on_disconnect is not None and message["type"] == "http.disconnect":
            self.on_disconnect()

    def _join(self, message: Message) -> bool:
        last = self._messages[-1] if self._messages else None
        if (
            last is None
            or message["type"] != "http.request"
            or not last.get("more_body", False)
            or len(last["body"]) + len(message["body"]) > _SMALL_PIECE_BYTES
        ):
            return False
        self._messages[-1] = {**message, "body": last["body"] + message["body"]}
        return True

    async def receive(self) -> Message:
        """The next one."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._taken >= _LEAST_ACKNOWLEDGED:
            await self._tell()
        while not self._messages:
            await self._wait()
        return self._take()

    async def _tell(self) -> None:
        size, self._taken = self._taken, 0
        if self.acknowledge is not None:
            await self.acknowledge(size)

    @property
    def has_ended(self) -> bool:
        """Whether the client has gone, behind whatever has not been taken."""
        return bool(self._messages) and self._messages[-1]["type"] == "http.disconnect"

    def receive_nowait(self) -> Message | None:
        """The next one, if it is there."""
        return self._take() if self._messages else None

    def close(self) -> int:
        """The app has returned. How many bytes `acknowledge` has not heard of."""
        rest = self._taken + sum(len(message.get("body", b"")) for message in self._messages)
        self.over = True
        self.acknowledge = self.on_disconnect = None
        self._messages.clear()
        self._wake()
        return rest

    def _take(self) -> Message:
        message = self._messages.pop(0)
        self._taken += len(message.get("body", b""))
        self._wake()
        return message

    async def _wait(self) -> None:
        if self._waiting is not None:
            raise trio.BusyResourceError("another task waits for this request's messages")
        self._waiting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._forget)

    def _wake(self) -> None:
        task, self._waiting = self._waiting, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _forget(self, _: Any) -> trio.lowlevel.Abort:
        """Trio cancels the task that waits."""
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED


class LazyEvent:
    """An event as Hypercorn has them, for one that hardly anybody waits for."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._event: trio.Event | None = None
        self._set = False

    async def clear(self) -> None:
        self._event = None
        self._set = False

    async def wait(self) -> None:
        """Wait until it is set, if it is not."""
        if self._event is None:
            self._event = trio.Event()
            if self._set:
                self._event.set()
        await self._event.wait()

    async def set(self) -> None:
        self._set = True
        if self._event is not None:
            self._event.set()

    def is_set(self) -> bool:
        return self._set


class AppTasks(TaskGroup):
    """Hypercorn's group of a connection's tasks, which calls the app for each request."""

    async def spawn_app(
        self, app: Any, config: Any, scope: Any, send: Any
    ) -> Callable[[Any], Awaitable[None]]:
        messages = Messages(config.max_app_queue_size)
        assert self._nursery is not None
        stream = getattr(send, "__self__", None)
        if type(stream) is ClientStream:
            scope["extensions"][RAW_TARGET] = stream.target
            stream.messages = messages
        self._nursery.start_soon(_run_app, app, config, scope, messages, send)
        return messages.put


async def _run_app(
    app: Any, config: Any, scope: Any, messages: Messages, send: Callable[[Any], Awaitable[None]]
) -> None:
    """As Hypercorn does it: what the app raises is logged, and the connection hears that it has
    returned.
    """
    receive: Any = messages.receive
    try:
        if type(app) is ASGIWrapper:
            # An app whose class tells by a plain method what serves a request saves a frame under
            # each stream. Of that very class: one that is derived from it may have a `__call__` of
            # its own.
            kind = type(app.app)
            await vars(kind).get("asgi_entry", kind.__call__)(app.app, scope, receive, send)
        else:
            await app(scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except trio.Cancelled:
        raise
    except BaseExceptionGroup as error:
        if error.split(trio.Cancelled)[1] is None:
            raise
        await config.log.exception("Error in ASGI Framework")
    except Exception:
        await config.log.exception("Error in ASGI Framework")
    finally:
        acknowledge, rest = messages.acknowledge, messages.close()
        try:
            if acknowledge is not None and rest:
                await acknowledge(rest)  # the client may send the rest, which is discarded
        finally:
            await send(None)
