"""The hub: waits for the sockets of a worker, clients' and upstreams', in one epoll.

Three things wait here:

- a *stream* that only needs moving: its task is parked, and the hub pumps it through one borrowed
  window until it needs a decision (the client's socket is full, the stream has ended or failed);
- a *waiting task* (`Wait`): the hub runs its next step in its own turn;
- a *watcher*, which is called for each event of its descriptor, unless a stream is parked there.

Tasks stay in their nurseries and cancel scopes, and a pumped event costs no task switch.

The hub waits in place of Trio: an instrument calls it before Trio waits, and its epoll contains
Trio's (`loop`). An event then costs one wait, one read and one write; anything of Trio's (a socket,
a thread, a signal, a deadline, a task woken by a pump) ends the hub's wait at once. In an unknown
Trio the hub is an ordinary task that waits for its epoll, and tasks are rescheduled. Invariants:

- a stream leaves the table before its task is rescheduled, exactly once, and the epoll unless its
  descriptor is watched;
- an exception out of a pump is that stream's, never the hub's;
- a descriptor is unregistered, never masked (EPOLLHUP arrives at mask 0), and closed only by its
  own task, after it has left;
- bytes buffered inside TLS are pumped without waiting for the socket;
- a turn ends after `TURN_S` or `TURN_PUMPS`, and Trio's events are checked then;
- streams left over from one turn go first in the next: those that read little, then those that
  fill large windows, at least one of them in each turn;
- windows are borrowed for one turn, and only if there is something to read.

The hub knows streams by `pump` only, and no protocol.
"""

from __future__ import annotations

import select
from collections import deque
from contextlib import suppress
from time import perf_counter
from typing import Any

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

from pools import Lease, Pools

from ..errors import ReadFailed
from .loop import TrioLoop, current_time, trio_loop
from .stream import LISTEN, Need, Stream, Watcher
from .waits import Timeouts

__all__ = ["TURN_PUMPS", "TURN_S", "Hub", "current_hub"]

TURN_S = 0.002
TURN_PUMPS = 64
_READ, _TURN = Need.READ, Need.TURN  # reading an enum member is slower than reading a global
# Two hubs cannot wait in place of one Trio.
_waited_for = trio.lowlevel.RunVar("proxy.hub.waited_for", default=False)
_current: trio.lowlevel.RunVar[Hub | None] = trio.lowlevel.RunVar("proxy.hub.current", default=None)


def current_hub() -> Hub | None:
    """The hub that runs in this `trio.run`, or None. Call it inside Trio."""
    return _current.get()


class _Parked:
    """A stream in the hub, and its parked task."""

    __slots__ = ("fd", "hub", "pump", "queued", "raise_cancel", "runs_hooks", "stream", "task")

    def __init__(self, hub: Hub, stream: Stream, fd: int, task: Task) -> None:
        self.hub = hub
        self.stream = stream
        self.pump = stream.pump
        self.fd = fd
        self.task = task
        self.runs_hooks = stream.runs_hooks
        self.raise_cancel: RaiseCancelT | None = None
        self.queued = False

    def abort(self, raise_cancel: RaiseCancelT) -> Abort:
        """Trio cancels the parked task."""
        if self.hub.is_pumping(self):
            # A hook of this stream cancels it: finish the pump first.
            self.raise_cancel = raise_cancel
            return Abort.FAILED
        self.hub.remove(self)
        return Abort.SUCCEEDED


class Hub:
    """The hub of one worker. `run` must be running wherever `move` is called."""

    def __init__(self, pools: Pools) -> None:
        """Raises `OSError` if there is no epoll; check `available` first."""
        self._pools = pools
        self._epoll = select.epoll()
        self._parked: dict[int, _Parked] = {}
        self._watchers: dict[int, Watcher] = {}
        # Pumped next, readable or not: streams that read little, and those that fill large windows.
        self._light: deque[_Parked] = deque()
        self._heavy: deque[_Parked] = deque()
        self._pumping: _Parked | None = None
        self._loop: TrioLoop | None = None
        self._trio_fd = -1  # Trio's epoll, while the hub waits in its place
        self._trio_ready: select.poll | None = None  # polls that epoll alone
        self._for_trio = False  # that epoll is ready
        self._ran_hooks = False
        self._had_light = False  # streams were left over from the last turn
        self._may_step = False  # in a turn, and no task's step is running
        self.timeouts = Timeouts()
        self._clock = 0.0
        self._trio_ahead = 0.0  # Trio's time minus that clock
        self._small_window: bytearray | None = None  # of this turn
        self._large_window: bytearray | None = None
        self._leases: list[Lease] = []

    @staticmethod
    def available() -> bool:
        """Whether this platform has epoll."""
        return hasattr(select, "epoll")

    def __len__(self) -> int:
        """How many streams are parked."""
        return len(self._parked)

    def watch(self, fd: int, watcher: Watcher) -> None:
        """Call `watcher` for each event of a descriptor until `forget`; safe to call again. Raises
        `OSError`.
        """
        if fd not in self._watchers:
            self._epoll.register(fd, LISTEN)
            self._watchers[fd] = watcher

    def listen_for(self, fd: int, events: int) -> None:
        """Change the events of a watched descriptor: `LISTEN`, `LISTEN_FOR_HANGUP` or 0."""
        if fd in self._watchers:
            self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """End a watch. Call it before the descriptor is closed; safe to call again."""
        if self._watchers.pop(fd, None) is not None:
            self._unregister(fd)

    def _unregister(self, fd: int) -> None:
        with suppress(OSError, ValueError):  # closed too early, or the hub has ended
            self._epoll.unregister(fd)

    def resume(self, task: Task, result: outcome.Outcome[Any]) -> None:
        """Continue a task that waits in `wait_task_rescheduled`: now, if this is called in a turn
        of a hub that waits in Trio's place, and outside of any task; otherwise as Trio schedules it.
        """
        if not self._may_step or self._loop is None:
            trio.lowlevel.reschedule(task, result)
            return
        self._may_step, self._ran_hooks = False, True
        try:
            self._loop.step(task, result)
        finally:
            self._may_step = True

    async def run(self) -> None:
        """Move streams and run waiting tasks until cancelled."""
        loop = None if _waited_for.get() else trio_loop()
        _current.set(self)
        try:
            if loop is not None:
                await self._run_in_trios_place(loop)
            while True:
                if self._light or self._heavy:
                    await trio.lowlevel.checkpoint()
                else:
                    with self.timeouts.timer():
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                self.timeouts.expire()
                self._trio_ahead = current_time() - perf_counter()
                self._turn(0)
        finally:
            if _current.get() is self:
                _current.set(None)
            self._epoll.close()

    async def _run_in_trios_place(self, loop: TrioLoop) -> None:
        waiter = _Waiter(self, loop)
        self._epoll.register(loop.fd, select.EPOLLIN)
        self._loop = loop
        self._trio_fd = loop.fd
        self._trio_ready = select.poll()
        self._trio_ready.register(loop.fd, select.POLLIN)
        _waited_for.set(True)
        trio.lowlevel.add_instrument(waiter)
        try:
            while waiter.error is None:
                with self.timeouts.timer():
                    await waiter.died.wait()
                self.timeouts.expire()
        finally:
            trio.lowlevel.remove_instrument(waiter)
            _waited_for.set(False)
        raise waiter.error

    async def move(self, stream: Stream) -> Need:
        """Park the calling task until `stream` needs it; raises what `pump` raises.

        If cancelled, the stream has left the hub when this raises.
        """
        fd = stream.fileno()
        if fd < 0:
            raise ReadFailed("the connection was closed")
        parked = _Parked(self, stream, fd, trio.lowlevel.current_task())
        if fd not in self._watchers:
            self._epoll.register(fd, select.EPOLLIN)
        self._parked[fd] = parked
        need: Need = await trio.lowlevel.wait_task_rescheduled(parked.abort)
        return need

    def wait(self, loop: TrioLoop, timeout_s: float) -> None:
        """Wait in place of Trio, and move streams, until Trio has work or `timeout_s` has passed.
        Blocks the thread, as Trio's own wait would; called just before that.
        """
        if not self._parked and not self._watchers:
            self._light.clear()  # only streams that have left
            self._heavy.clear()
            return
        runnable, wants_idle, deadline = loop.runnable, loop.wants_idle, loop.next_deadline()
        began = self._clock = perf_counter()
        self._trio_ahead = current_time() - began
        self._for_trio = self._ran_hooks = False
        left_s = timeout_s
        while True:
            pumps = self._turn(left_s)
            left_s = timeout_s - (self._clock - began)
            if self._for_trio or runnable or left_s <= 0 or wants_idle:
                break
            if self._ran_hooks and loop.next_deadline() < deadline:
                break
        if wants_idle and not pumps and not self._for_trio:
            return  # Trio's own wait must reach its timeout
        if timeout_s > 0 or not runnable:
            # Also when Trio's epoll was ready: a pump or another process may have read since.
            loop.wake()

    def _turn(self, wait_s: float) -> int:
        """Wait for streams, and pump each one that is ready once, for at most the length of a turn.
        Returns how many were pumped.
        """
        light, heavy = self._light, self._heavy
        events = self._epoll.poll(0 if light or heavy else wait_s, TURN_PUMPS)
        clock = self._clock = perf_counter()
        try:
            pumps = self._handle(events, clock)
            if light or heavy:
                pumps += self._pump_queues(pumps, clock)
            if (
                (light or heavy or len(events) == TURN_PUMPS)
                and self._trio_ready is not None
                and self._trio_ready.poll(0)
            ):
                self._for_trio = True  # among so many events Trio's epoll may be missing
        finally:
            if self._leases:
                self._small_window = self._large_window = None
                while self._leases:
                    self._leases.pop().release()
        return pumps

    def _handle(self, events: list[tuple[int, int]], clock: float) -> int:
        """Call watchers, pump readable streams, and queue what must come after the streams left
        over from the last turn. Returns how many were called or pumped.
        """
        parked, watchers, light = self._parked, self._watchers, self._light
        now, pumps = clock + self._trio_ahead, 0
        self._had_light = late = bool(light)
        for fd, mask in events:
            if fd not in parked:
                watcher = watchers.get(fd)
                if watcher is None:
                    self._for_trio = self._for_trio or fd == self._trio_fd
                    continue
                self._may_step = True
                watcher.on_ready(mask, now)
                self._may_step = False
                pumps += 1
                continue
            ready = parked[fd]
            if ready.queued:
                pass
            elif late or ready.stream.wants_large:
                self._enqueue(ready)
            else:
                self._pump(ready, now)
                pumps += 1
                late = perf_counter() > clock + TURN_S
        return pumps

    def _pump_queues(self, before: int, clock: float) -> int:
        """Pump streams that are queued: light ones if they are left over from the last turn, then
        heavy ones. `before`: how many were pumped in this turn. Returns how many more were.
        """
        light, heavy, pumps = self._light, self._heavy, before
        now, ends_at = clock + self._trio_ahead, clock + TURN_S
        for _ in range(min(len(light), TURN_PUMPS) if self._had_light else 0):
            if pumps and perf_counter() > ends_at:
                break
            pumps += self._pump_queued(light.popleft(), now)
        for number in range(min(len(heavy), max(1, TURN_PUMPS - pumps))):
            if number and perf_counter() > ends_at:
                break
            pumps += self._pump_queued(heavy.popleft(), now)
        return pumps - before

    def _enqueue(self, parked: _Parked) -> None:
        parked.queued = True
        (self._heavy if parked.stream.wants_large else self._light).append(parked)

    def _pump_queued(self, parked: _Parked, now: float) -> bool:
        """Pump a queued stream, unless it has left: its descriptor may be another stream's now."""
        parked.queued = False
        if self._parked.get(parked.fd) is not parked:
            return False
        self._pump(parked, now)
        return True

    def _pump(self, parked: _Parked, now: float) -> None:
        self._pumping = parked
        result: Any
        try:
            if parked.stream.wants_large:
                window = self._large_window or self._borrow_large()
            else:
                window = self._small_window or self._borrow_small()
            if not parked.runs_hooks:
                need = parked.pump(window, now)
            elif self._loop is not None:
                self._ran_hooks = True
                need = self._loop.run_as(parked.task, parked.pump, window, now)
            else:
                need = parked.task.context.run(parked.pump, window, now)
        except BaseException as error:
            result = outcome.Error(error)
        else:
            if parked.raise_cancel is None:
                if need is _READ:
                    self._pumping = None
                    return
                if need is _TURN:
                    self._pumping = None
                    self._enqueue(parked)
                    return
            result = outcome.Value(need)
        self._pumping = None
        self.remove(parked)
        if parked.raise_cancel is not None and isinstance(result, outcome.Value):
            result = outcome.capture(parked.raise_cancel)
        trio.lowlevel.reschedule(parked.task, result)
        result = None  # break the reference cycle: the traceback references this frame

    def is_pumping(self, parked: _Parked) -> bool:
        """Whether this stream's pump is running."""
        return self._pumping is parked

    def remove(self, parked: _Parked) -> None:
        """Take a stream out of the table and the epoll, unless it has left."""
        if self._parked.get(parked.fd) is parked:
            del self._parked[parked.fd]
            if parked.fd not in self._watchers:
                self._unregister(parked.fd)

    def _borrow_small(self) -> bytearray:
        lease = self._pools.sse_event.acquire()
        self._leases.append(lease)
        self._small_window = lease.buffer
        return self._small_window

    def _borrow_large(self) -> bytearray:
        lease = self._pools.http_response.acquire()
        self._leases.append(lease)
        self._large_window = lease.buffer
        return self._large_window


class _Waiter(trio.abc.Instrument):
    """Lets the hub wait when Trio is about to. Nothing may be raised here: Trio would drop the
    instrument.
    """

    def __init__(self, hub: Hub, loop: TrioLoop) -> None:
        self._hub = hub
        self._loop = loop
        self.died = trio.Event()
        self.error: BaseException | None = None

    def before_io_wait(self, timeout: float) -> None:
        try:
            if self.error is None:
                self._hub.wait(self._loop, timeout)
        except BaseException as error:
            self.error = error
            self.died.set()
            self._loop.wake()
