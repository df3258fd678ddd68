"""The store of a worker: a server's, or this process's memory; one `Store` for each interceptor.

The worker owns it, not a generation, so that counts and sessions outlive a reload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import trio

from interceptors import Store
from interceptors.memory import MemoryEngine
from interceptors.store import Engine, Share
from interceptors.uses import Uses

from ..config import Store as StoreSettings
from ..store import KINDS, ValkeyEngine, address_of

__all__ = ["Stores"]


class Stores:
    """The store of one worker, whatever its engine."""

    def __init__(
        self, settings: StoreSettings, share: Share | None = None, local_url: str | None = None
    ) -> None:
        """`share`: this worker's part of limits that no server counts. `local_url`: the supervisor's
        server, for workers without a configured one.
        """
        self._share = share or Share()
        self._memory = MemoryEngine(self._share)
        self._server: ValkeyEngine | None = None
        url = settings.url or local_url
        if url is not None:
            address = address_of(url)
            if settings.url is not None:
                address = replace(
                    address,
                    username=address.username or settings.username,
                    password=address.password or settings.password,
                )
            self._server = ValkeyEngine(
                address,
                self._memory,
                prefix=settings.prefix,
                timeout_s=settings.timeout,
                on_error=settings.on_error,
                ca_file=settings.ca_file,
            )
        self._engine: Engine = self._server or self._memory
        self.uses: dict[str, Uses] = {}
        """How full limits are, by the name of the interceptor that counts them."""

    def of(self, name: str) -> Store:
        """The part of the interceptor of this name."""
        store = Store(self._engine, name)
        store._uses = self.uses.setdefault(name, store._uses)
        return store

    @property
    def is_up(self) -> bool:
        """Whether calls are answered; in memory always."""
        return self._server is None or self._server.link.is_up

    @property
    def failures(self) -> Mapping[str, int]:
        """Failed calls by kind."""
        return dict.fromkeys(KINDS, 0) if self._server is None else self._server.link.failures

    def describe(self) -> str:
        """Where limits are counted, for the `started` line."""
        if self._server is not None:
            return str(self._server.link.address)
        if self._share.count == 1:
            return "memory"
        return f"memory, 1/{self._share.count} of each limit"

    async def run(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        """Keep the connection until cancelled. Started after the first attempt to connect."""
        with trio.CancelScope() as scope:
            if self._server is None:
                task_status.started(scope)
                return
            async with trio.open_nursery() as nursery:
                await nursery.start(self._server.run)
                task_status.started(scope)
