"""The hub: who waits. One epoll for the streams of a worker that only need moving.

A stream's task parks here, inside its own nursery and cancel scope, and is woken only when there is something to decide: the
client's socket is full, the stream has ended or failed, a deadline has fired. Meanwhile one task, the hub's, waits for the epoll's
descriptor and pumps every stream that is readable, all through one borrowed window. So structure and cancellation stay Trio's, and
the task switch per event goes. Invariants:

- a stream leaves the table and the epoll before its task is rescheduled, and is rescheduled exactly once;
- every exception out of a pump is that stream's, none is the hub's;
- a descriptor is unregistered, never masked (EPOLLHUP arrives at mask 0), and only its own task closes it, after it has left;
- bytes that wait inside TLS are pumped without waiting for the socket;
- the hub yields to Trio after `TURN_S` or `TURN_PUMPS`, whichever is first; who was not served then is served next.

It knows relays by `pump`, and nothing of what they move.
"""

from __future__ import annotations

import select
from collections import deque
from contextlib import suppress
from contextvars import Context
from time import perf_counter
from typing import Any, Protocol

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from pools import Lease, Pools

from .errors import ReadFailed
from .relay import Need

__all__ = ["TURN_PUMPS", "TURN_S", "Hub", "Stream"]

TURN_S = 0.002
TURN_PUMPS = 64
_READ, _TURN = Need.READ, Need.TURN


class Stream(Protocol):
    """What the hub moves."""

    wants_large: bool
    """Which window the next pump wants."""

    @property
    def runs_hooks(self) -> bool:
        """Whether a pump runs a user's code, which then must find its task's context variables."""
        ...

    def fileno(self) -> int: ...

    def pump(self, window: bytearray, now: float) -> Need: ...


class _Parked:
    """A stream in the hub, with the task that waits for it."""

    __slots__ = ("context", "fd", "pump", "queued", "raise_cancel", "stream", "task")

    def __init__(self, stream: Stream, fd: int, task: Task) -> None:
        self.stream = stream
        self.pump = stream.pump
        self.fd = fd
        self.task = task
        self.context: Context | None = task.context if stream.runs_hooks else None
        self.raise_cancel: RaiseCancelT | None = None
        self.queued = False


class Hub:
    """The hub of one worker. `run` must be running wherever `move` is called."""

    def __init__(self, pools: Pools) -> None:
        """Raises `OSError` where there is no epoll to be had; ask `available` first."""
        self._pools = pools
        self._epoll = select.epoll()
        self._parked: dict[int, _Parked] = {}
        self._queue: deque[_Parked] = deque()  # to be pumped next, whatever the epoll says
        self._pumping: _Parked | None = None

    @staticmethod
    def available() -> bool:
        """Whether this platform has epoll."""
        return hasattr(select, "epoll")

    def __len__(self) -> int:
        return len(self._parked)

    async def run(self) -> None:
        """Move streams until cancelled. Borrows a window for each turn and gives it back before it waits."""
        try:
            while True:
                if self._queue:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._turn()
        finally:
            self._epoll.close()

    async def move(self, stream: Stream) -> Need:
        """Park the calling task until `stream` needs it; what it needs. Raises what `pump` raises, in this task.

        Cancelled, the stream has left the hub when this raises.
        """
        fd = stream.fileno()
        if fd < 0:
            raise ReadFailed("the connection was closed")
        parked = _Parked(stream, fd, trio.lowlevel.current_task())
        self._epoll.register(fd, select.EPOLLIN)
        self._parked[fd] = parked

        def abort(raise_cancel: RaiseCancelT) -> Abort:
            if self._pumping is parked:
                # A hook of this very stream cancels it: let the pump end first.
                parked.raise_cancel = raise_cancel
                return Abort.FAILED
            self._remove(parked)
            return Abort.SUCCEEDED

        need: Need = await trio.lowlevel.wait_task_rescheduled(abort)
        return need

    def _turn(self) -> None:
        """Pump the streams that are ready, each once, as long as the turn lasts."""
        queue = self._queue
        parked_of = self._parked.get
        for fd, _ in self._epoll.poll(0, TURN_PUMPS):
            parked = parked_of(fd)
            if parked is not None and not parked.queued:
                parked.queued = True
                queue.append(parked)
        now = trio.current_time()
        ends_at = perf_counter() + TURN_S if len(queue) > 1 else 0.0  # one pump needs no clock
        small = self._pools.sse_event.acquire()
        large: Lease | None = None
        try:
            window = small.buffer
            for _ in range(min(len(queue), TURN_PUMPS)):
                parked = queue.popleft()
                parked.queued = False
                if parked_of(parked.fd) is not parked:
                    continue  # it left meanwhile; its number may be another's
                if not parked.stream.wants_large:
                    self._pump(parked, window, now)
                else:
                    large = large or self._pools.http_response.acquire()
                    self._pump(parked, large.buffer, now)
                if not queue or perf_counter() > ends_at:
                    break
        finally:
            small.release()
            if large is not None:
                large.release()

    def _pump(self, parked: _Parked, window: bytearray, now: float) -> None:
        self._pumping = parked
        result: Any
        try:
            need = parked.pump(window, now) if parked.context is None else parked.context.run(parked.pump, window, now)
        except BaseException as error:
            result = outcome.Error(error)
        else:
            if parked.raise_cancel is None:
                if need is _READ:
                    self._pumping = None
                    return
                if need is _TURN:
                    self._pumping = None
                    parked.queued = True
                    self._queue.append(parked)
                    return
            result = outcome.Value(need)
        self._pumping = None
        self._remove(parked)
        if parked.raise_cancel is not None and isinstance(result, outcome.Value):
            result = outcome.capture(parked.raise_cancel)
        trio.lowlevel.reschedule(parked.task, result)

    def _remove(self, parked: _Parked) -> None:
        if self._parked.get(parked.fd) is parked:
            del self._parked[parked.fd]
            with suppress(OSError, ValueError):  # closed against the contract, and the hub lives on; or the hub's end
                self._epoll.unregister(parked.fd)
