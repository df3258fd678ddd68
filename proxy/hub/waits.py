"""Tasks that wait in the hub, and their timeouts.

All timeouts share one deadline of Trio's, which is moved only to an earlier time and compared when
it fires: a deadline for each wait would cost more than the wait.
"""

from __future__ import annotations

from collections.abc import Generator
from math import inf
from types import coroutine
from typing import Any, Protocol

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, wait_task_rescheduled

from .loop import current_time, park

__all__ = ["Timeouts", "Wait"]

Queue = dict[Any, float]
"""Waits with timeouts of one length, the oldest first, and when each is due in Trio's time."""


class Timeouts:
    """The timeouts of one hub."""

    __slots__ = ("_next_due", "_queues", "_timer")

    def __init__(self) -> None:
        self._queues: dict[float, Queue] = {}
        self._next_due = inf  # when the next one is due, or earlier
        self._timer = trio.CancelScope()

    def start(self, wait: Wait, timeout_s: float) -> Queue:
        """Call `wait.expire` after `timeout_s`, unless the wait is removed from the result before."""
        queue = self._queues.get(timeout_s)
        if queue is None:
            queue = self._queues[timeout_s] = {}
        due = current_time() + timeout_s
        queue[wait] = due
        if due < self._next_due:
            self._next_due = self._timer.deadline = due
        return queue

    def timer(self) -> trio.CancelScope:
        """A scope that is cancelled when `expire` must be called."""
        self._timer = trio.CancelScope(deadline=self._next_due)
        return self._timer

    def expire(self) -> None:
        """End the waits whose time has passed, if any."""
        now, next_due = current_time(), inf
        if now < self._next_due:
            return
        self._next_due = inf
        for length, queue in tuple(self._queues.items()):
            while queue:
                wait, due = next(iter(queue.items()))
                if due > now:
                    next_due = min(next_due, due)
                    break
                del queue[wait]
                wait.expire()
            if not queue:
                del self._queues[length]
        self._next_due = self._timer.deadline = min(next_due, self._next_due)


class Steps(Protocol):
    """What a wait needs of the hub."""

    timeouts: Timeouts

    def resume(self, task: Task, result: outcome.Outcome[Any]) -> None: ...


class Wait:
    """One task at a time waits for a call of `wake`. If that call comes in a turn of the hub, the
    task's next step runs in it.
    """

    __slots__ = ("_hub", "_task", "_timeouts")

    def __init__(self, hub: Steps) -> None:
        self._hub = hub
        self._task: Task | None = None
        self._timeouts: Queue | None = None  # while the wait has one

    @property
    def waiting(self) -> bool:
        """Whether a task waits."""
        return self._task is not None

    @coroutine
    def wait(self, timeout_s: float = inf) -> Generator[Any, Any, bool]:
        """Wait for the next `wake`. Returns False if `timeout_s` has passed instead. Raises
        `BusyResourceError` if another task waits, and what `fail` is called with.
        """
        if self._task is not None:
            raise trio.BusyResourceError("another task waits already")
        self._task = current_task()
        if timeout_s != inf:
            self._timeouts = self._hub.timeouts.start(self, timeout_s)
        if park is None:  # ASYNC105: a generator cannot await
            result = yield from wait_task_rescheduled(self._abort)  # noqa: ASYNC105
        else:  # as `wait_task_rescheduled` does, without its two frames
            came = yield park(self._abort)
            try:
                result = came is _CAME or came.unwrap()
            finally:
                del came  # break the reference cycle: an error's traceback references this frame
        return bool(result)

    def wake(self) -> bool:
        """End the wait, if there is one; return whether there was. In a turn of the hub the task runs
        before this returns.
        """
        task = self._task
        if task is None:
            return False
        self._task = None
        if self._timeouts is not None:
            self._timeouts.pop(self, None)
            self._timeouts = None
        self._hub.resume(task, _CAME)
        return True

    def fail(self, error: Exception) -> None:
        """End the wait, if there is one, by raising `error` there."""
        if self._task is not None:
            self._hub.resume(self._leave(), outcome.Error(error))

    def expire(self) -> None:
        """End the wait: its time has passed."""
        if self._task is not None:
            self._hub.resume(self._leave(), _PASSED)

    def _leave(self) -> Task:
        task, self._task = self._task, None
        timeouts, self._timeouts = self._timeouts, None
        if timeouts is not None:
            timeouts.pop(self, None)
        assert task is not None
        return task

    def _abort(self, _: RaiseCancelT) -> Abort:
        self._leave()
        return Abort.SUCCEEDED


class _Result:
    """A result for `reschedule`. `outcome.Value` can be used only once."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def unwrap(self) -> bool:
        return self._value


_CAME: Any = _Result(True)
_PASSED: Any = _Result(False)
