"""What we know of Trio's insides, all in one place, and checked: its epoll, and what it has to do
next.

Trio waits in an epoll of its own and tells nobody its descriptor. With it, somebody else can wait
in Trio's place, for its sockets and for others, and spare each of those others a pass through
Trio's loop (`hub`). An `Instrument`, which is Trio's public API, is called at just that point.
`trio_loop` answers None where anything is not as we know it, and then the hub is an ordinary task.
`tests/unit/proxy/relay/test_loop.py` fails when an installed Trio has changed.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from trio.lowlevel import Task

trio_run: Any
try:
    from trio._core import _run as trio_run
except ImportError:
    trio_run = None

__all__ = ["TrioLoop", "trio_loop"]

T = TypeVar("T")


class TrioLoop:
    """Trio's loop in this thread. Belongs to one `trio.run`."""

    __slots__ = ("_deadlines", "_run_context", "_runner", "fd", "runnable", "wake")

    def __init__(self, run_context: Any, runner: Any, epoll: select.epoll) -> None:
        self._run_context = run_context
        self._runner = runner
        self._deadlines = runner.deadlines
        self.runnable: deque[Any] = runner.runq
        """The tasks that can run now."""
        self.fd = epoll.fileno()
        """Readable when one of Trio's sockets is ready, a thread or a signal has woken Trio, or
        `wake` was called.
        """
        self.wake: Callable[[], None] = runner.io_manager.force_wakeup
        """Let Trio's next wait return at once."""

    def run_as(self, task: Task, function: Callable[..., T], *args: Any) -> T:
        """Call a function between two passes of the loop as if a task called it: in its context,
        and as the current task.
        """
        self._run_context.task = task
        try:
            return task.context.run(function, *args)
        finally:
            del self._run_context.task

    def next_deadline(self) -> float:
        """The earliest deadline of any cancel scope, in Trio's time."""
        deadline: float = self._deadlines.next_deadline()
        return deadline

    @property
    def wants_idle(self) -> bool:
        """Whether somebody waits until nothing happens: `wait_all_tasks_blocked`, an autojump
        clock.
        """
        runner = self._runner
        return bool(runner.waiting_for_idle) or runner.clock_autojump_threshold != inf


def trio_loop() -> TrioLoop | None:
    """The running loop, or None when it is not one that we know: no epoll, guest mode, another
    Trio. Call it inside Trio.
    """
    run_context = getattr(trio_run, "GLOBAL_RUN_CONTEXT", None)
    runner: Any = getattr(run_context, "runner", None)
    manager = getattr(runner, "io_manager", None)
    epoll = getattr(manager, "_epoll", None)
    if not hasattr(select, "epoll") or not isinstance(epoll, select.epoll):
        return None
    deadlines = getattr(runner, "deadlines", None)
    if (
        not isinstance(getattr(runner, "runq", None), deque)
        or not callable(getattr(deadlines, "next_deadline", None))
        or not callable(getattr(manager, "force_wakeup", None))
        or not all(
            hasattr(runner, name) for name in ("waiting_for_idle", "clock_autojump_threshold")
        )
        or getattr(runner, "is_guest", True)
    ):
        return None
    return TrioLoop(run_context, runner, epoll)
