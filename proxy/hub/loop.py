"""Trio's internals that the hub uses, in one place and checked: its epoll, run queue and deadlines.

With Trio's epoll descriptor the hub can wait for Trio's sockets and its own at once, which saves a
pass through Trio's loop for each of its events. An `Instrument` (public API) is called just before
Trio waits. `trio_loop` returns None if any internal differs; the hub is then an ordinary task.
`tests/unit/proxy/hub/test_loop.py` fails when an installed Trio has changed.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

import trio
from outcome import Error, Outcome, Value
from trio.lowlevel import Abort, RaiseCancelT, Task

trio_run: Any
trio_traps: Any
try:
    from trio._core import _run as trio_run
    from trio._core import _traps as trio_traps
except ImportError:
    trio_run = trio_traps = None

__all__ = ["TrioLoop", "current_time", "park", "trio_loop"]

T = TypeVar("T")

_TRAPS = ("WaitTaskRescheduled", "CancelShieldedCheckpoint")
_OF_TASKS = (
    "_abort_func",
    "_attempt_delivery_of_any_pending_cancel",
    "_cancel_points",
    "_cancel_status",
    "_schedule_points",
    "custom_sleep_data",
)


park: Callable[[Callable[[RaiseCancelT], Abort]], Any] | None = getattr(
    trio_traps, "WaitTaskRescheduled", None
)
"""What a coroutine yields in `wait_task_rescheduled`; None in an unknown Trio."""


_run_context: Any = getattr(trio_run, "GLOBAL_RUN_CONTEXT", None)


def _current_time() -> float:
    now: float = _run_context.runner.clock.current_time()
    return now


current_time = trio.current_time if _run_context is None else _current_time
"""As `trio.current_time`, in two calls instead of four."""


class TrioLoop:
    """Trio's loop in this thread. Belongs to one `trio.run`."""

    __slots__ = (
        "_instrumented",
        "_run_context",
        "_runner",
        "fd",
        "next_deadline",
        "runnable",
        "wake",
    )

    def __init__(self, run_context: Any, runner: Any, epoll: select.epoll) -> None:
        self._run_context = run_context
        self._runner = runner
        self._instrumented: dict[str, Any] = runner.instruments.data
        self.runnable: deque[Any] = runner.runq
        """Tasks that can run now."""
        self.fd = epoll.fileno()
        """Readable when a socket of Trio's is ready, a thread or signal has woken Trio, or after
        `wake`.
        """
        self.next_deadline: Callable[[], float] = runner.deadlines.next_deadline
        """The earliest deadline of any cancel scope, in Trio's time."""
        self.wake: Callable[[], None] = runner.io_manager.force_wakeup
        """Make Trio's next wait return at once."""

    def run_as(self, task: Task, function: Callable[..., T], *args: Any) -> T:
        """Call a function between two passes of the loop as if `task` called it."""
        self._run_context.task = task
        try:
            return task.context.run(function, *args)
        finally:
            del self._run_context.task

    def step(self, task: Task, result: Outcome[Any]) -> None:
        """Run the next step of a task that waits in `wait_task_rescheduled`, between two passes of
        the loop: what `trio.lowlevel.reschedule` and Trio's loop do, without the pass.
        """
        unknown: Any = task
        unknown._abort_func = unknown.custom_sleep_data = None
        instrumented, context = self._instrumented, self._run_context
        if "before_task_step" in instrumented:
            self._runner.instruments.call("before_task_step", task)
        context.task = task
        try:
            try:
                trap = task.context.run(task.coro.send, result)
            except BaseException as error:
                self._runner.task_exited(task, _final(error))
                return
            unknown._schedule_points += 1
            if type(trap) is park:
                unknown._cancel_points += 1
                unknown._abort_func = trap.abort_func
                if unknown._cancel_status.effectively_cancelled:
                    unknown._attempt_delivery_of_any_pending_cancel()
            elif trap is trio_traps.CancelShieldedCheckpoint:
                self._runner.reschedule(task)
            else:  # `PermanentlyDetachCoroutineObject`, or a trap of another library
                raise TypeError(f"a task of the hub has yielded {trap!r}")
        finally:
            if "after_task_step" in instrumented:
                self._runner.instruments.call("after_task_step", task)
            del context.task

    @property
    def wants_idle(self) -> bool:
        """Whether a task waits for idleness: `wait_all_tasks_blocked`, an autojump clock."""
        runner = self._runner
        return bool(runner.waiting_for_idle) or runner.clock_autojump_threshold != inf


def _final(error: BaseException) -> Outcome[Any]:
    """What a task that has raised `error` has ended with."""
    return Value(error.value) if isinstance(error, StopIteration) else Error(error)


def trio_loop() -> TrioLoop | None:
    """The running loop, or None without epoll, in guest mode, or in an unknown Trio. Call it inside
    Trio.
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
        or not all(hasattr(trio_traps, name) for name in _TRAPS)
        or not all(hasattr(Task, name) for name in _OF_TASKS)
        or not callable(getattr(runner, "task_exited", None))
        or not callable(getattr(getattr(runner, "instruments", None), "call", None))
        or not isinstance(getattr(runner.instruments, "data", None), dict)
    ):
        return None
    return TrioLoop(run_context, runner, epoll)
