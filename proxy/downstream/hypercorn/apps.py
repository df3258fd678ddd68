"""Calling the app, and the messages of ASGI's `receive`.

Hypercorn has a Trio memory channel for each request, although one task puts messages in and one
takes them out. The channel is 2 kB for the life of a stream, and its sender blocks forever if the
app returns without having taken everything.
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
_LEAST_ACKNOWLEDGED = 32768  # less than a stream's window, so that more data can always arrive


class Messages:
    """The messages of a client's connection for one app: a bounded queue with one reader.

    `put` is for the connection, `receive` is ASGI's. Both block only as long as they must;
    `receive` is always a checkpoint. One task may wait in `put` while another reports the
    disconnect, which never waits.
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
            None  # the sender of a full queue, or the reader of an empty one
        )
        self._taken = 0  # bytes not reported to `acknowledge` yet
        self.acknowledge: Callable[[int], Awaitable[None]] | None = None
        """Over HTTP/2: awaited with the size of each piece taken. It opens the window, so `put`
        never waits.
        """
        self.over = False
        """Whether the app has returned."""
        self.on_disconnect: Callable[[], None] | None = None
        """Called synchronously on `http.disconnect`."""

    async def put(self, message: Message) -> None:
        """Add a message as soon as there is room. The last one, a disconnect, is added at once,
        ahead of a waiting one. A small body piece joins an untaken one before it: a client may send
        each byte in its own chunk.

        Discards the message after `close`.
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
        """Return the next message."""
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
        """Whether the client has gone, after the messages that were not taken."""
        return bool(self._messages) and self._messages[-1]["type"] == "http.disconnect"

    def receive_nowait(self) -> Message | None:
        """Return the next message if there is one."""
        return self._take() if self._messages else None

    def close(self) -> int:
        """Note that the app has returned. Returns the bytes not reported to `acknowledge`."""
        rest = self._taken + sum(len(message.get("body", b"")) for message in self._messages)
        self.over = True
        self.acknowledge = self.on_disconnect = None
        self._messages.clear()
        self._wake()
        return rest

    def _take(self) -> Message:
        message = self._messages.pop(0)
        self._taken += len(message.get("body", b""))
        if self._waiting is not None:
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
        """Trio's abort: the waiting task is cancelled."""
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED


class LazyEvent:
    """Hypercorn's event class, without the cost of an event that rarely has a waiter."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._event: trio.Event | None = None
        self._set = False

    async def clear(self) -> None:
        self._event = None
        self._set = False

    async def wait(self) -> None:
        """Wait until it is set."""
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
    """Hypercorn's task group of a connection, which calls the app for each request."""

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
    """As in Hypercorn: log what the app raises, and notify the connection of its return."""
    receive: Any = messages.receive
    try:
        if type(app) is ASGIWrapper:
            # An app class with a plain method that returns the awaitable saves a frame under each
            # stream. Only that exact class: a subclass may override `__call__`.
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
