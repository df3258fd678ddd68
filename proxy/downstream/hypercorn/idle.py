"""The timer of a connection between two requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup

from ..bound import Closable, client_connections

__all__ = ["IdleTimer", "ServerConfig"]

_SHORT_REQUEST_S = 1.0


class ServerConfig(Config):
    """Hypercorn's configuration, for a server that drains."""

    def __init__(self) -> None:
        super().__init__()
        self.drained = trio.Event()
        """Idle connections stay open until this is set, so that a request on one is answered during
        the drain.
        """


class IdleConnection(Closable, Protocol):
    """What the timer needs of Hypercorn's connection."""

    config: Config
    context: Any

    async def _initiate_server_close(self) -> None: ...


class IdleTimer:
    """Closes a connection that stays idle, or that is idle when the server ends.

    Hypercorn creates and cancels a task for each request. This task survives short requests and
    ends during a stream.
    """

    def __init__(self, server: IdleConnection) -> None:
        self._server = server
        self._scope: trio.CancelScope | None = None  # of the task, while it runs
        self._idle = False
        self._over = False

    async def restart(self, task_group: TaskGroup, action: Callable[[], Awaitable[None]]) -> None:
        """The connection is idle from now on."""
        if self._over:
            return
        self._idle = True
        client_connections.set_idle(self._server)
        if self._scope is None:
            self._scope = trio.CancelScope()
            task_group.spawn(self._run, self._scope)
        self._scope.deadline = trio.current_time() + self._server.config.keep_alive_timeout

    async def stop(self) -> None:
        """A request has arrived."""
        self._idle = False
        client_connections.set_busy(self._server)
        if self._scope is not None:
            self._scope.deadline = trio.current_time() + _SHORT_REQUEST_S

    def end(self) -> None:
        """The client has closed its side: a task that still has to write ends the connection."""
        self._over = True
        self._idle = False
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self, scope: trio.CancelScope) -> None:
        config = self._server.config
        with scope:
            await (
                config.drained
                if isinstance(config, ServerConfig)
                else self._server.context.terminated
            ).wait()
        self._scope = None
        if self._idle:
            with trio.CancelScope(shield=True):
                await self._server._initiate_server_close()
