"""Does something to one exchange at its n-th checkpoint, for tests of cancellation at every await.

A Trio `Instrument` counts the steps of the exchange's task and of the tasks below it. After the
n-th, the test's action runs, as if a signal, deadline or reset had come then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.lowlevel import Task

from proxy.downstream import ClientStream
from proxy.exchange.exchange import Exchange

__all__ = ["ARMED", "Injector", "armed_exchanges"]

ARMED = "/armed"
"""The path of the requests whose exchange is watched."""
_ROOT = Path(__file__).parents[2]
_OURS = tuple(str(_ROOT / name) for name in ("proxy", "interceptors", "pools"))


class Injector(trio.abc.Instrument):
    """Watches the next armed exchange, and calls `act` at its checkpoint `at`, counted from 1."""

    def __init__(self, at: int, act: Callable[[Injector], None]) -> None:
        self.at = at
        self.act = act
        self.count = 0
        self.exchange: Exchange | None = None
        self.scope = trio.CancelScope()
        """Around the whole exchange, as a server's scope."""
        self.ended = trio.Event()
        """The exchange has returned."""
        self.where = ""
        """The awaits at which it acted, outermost first: `module.function` of this project."""
        self.left: set[Task] = set()
        """Live tasks of the exchange."""

    @property
    def fired(self) -> bool:
        return self.count >= self.at

    async def watch(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.left.add(trio.lowlevel.current_task())
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                await Exchange.run(exchange)
        finally:
            trio.lowlevel.remove_instrument(self)
            self.left.discard(trio.lowlevel.current_task())
            self.ended.set()

    def task_spawned(self, task: Task) -> None:
        if task.parent_nursery is not None and task.parent_nursery.parent_task in self.left:
            self.left.add(task)

    def task_exited(self, task: Task) -> None:
        self.left.discard(task)

    def after_task_step(self, task: Task) -> None:
        if task in self.left and self.exchange is not None:
            self.count += 1
            if self.count == self.at:
                self.where = _where(task)
                self.act(self)


def armed_exchanges(monkeypatch: pytest.MonkeyPatch) -> Callable[[Injector], None]:
    """Watch the app's exchanges at `ARMED`. Call the result with the next one's injector."""
    waiting: list[Injector] = []

    class Watched(Exchange):
        __slots__ = ("_armed",)

        def __init__(self, worker: Any, stream: ClientStream) -> None:
            super().__init__(worker, stream)
            self._armed = stream.head.target == ARMED.encode()

        async def run(self) -> None:
            if self._armed:
                await waiting.pop().watch(self)
            else:
                await super().run()

    monkeypatch.setattr("proxy.server.app.Exchange", Watched)
    return waiting.append


def _where(task: Task) -> str:
    """What the task awaits, in code of this project."""
    names = []
    awaited: Any = task.coro
    while awaited is not None:
        frame = (
            getattr(awaited, "cr_frame", None)
            or getattr(awaited, "ag_frame", None)
            or getattr(awaited, "gi_frame", None)
        )
        if frame is not None and frame.f_code.co_filename.startswith(_OURS):
            names.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        awaited = (
            getattr(awaited, "cr_await", None)
            or getattr(awaited, "ag_await", None)
            or getattr(awaited, "gi_yieldfrom", None)
            or (
                frame is not None and frame.f_locals.get("steps")
            )  # `Owner._stepped` awaits step by step
            or None
        )
    return " > ".join(names)
