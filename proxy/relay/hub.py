"""The hub: who waits. One epoll for the streams of a worker that only need moving.

A stream's task parks here, inside its own nursery and cancel scope, and is woken only when there is
something to decide: the client's socket is full, the stream has ended or failed, a deadline has
fired. Meanwhile the hub pumps every stream that is readable, all through one borrowed window. So
structure and cancellation stay Trio's, and what an event costs there goes.

The hub waits *in Trio's place*: an instrument that Trio calls before it waits, with Trio's own
epoll (`loop`) among what it waits for. An event that comes then costs one wait, one read and one
write, and no pass through Trio's loop; whatever is Trio's (a socket, a thread, a signal, a
deadline, a task that a pump has woken) ends the hub's wait at once. Where Trio is not as we know
it, the hub is an ordinary task that waits for its epoll's descriptor. Invariants:

- a stream leaves the table and the epoll before its task is rescheduled, and is rescheduled exactly
  once;
- every exception out of a pump is that stream's, none is the hub's;
- a descriptor is unregistered, never masked (EPOLLHUP arrives at mask 0), and only its own task
  closes it, after it has left;
- bytes that wait inside TLS are pumped without waiting for the socket;
- the hub looks for what is Trio's after `TURN_S` or `TURN_PUMPS`, whichever is first;
- who was not served then is served in the next turn, before whoever has come since: first those
  that read little at a time, then those that fill large windows, of whom at least one is served in
  each turn. So an event waits for streams that never run dry no longer than for the end of a turn,
  and of one more for each `TURN_PUMPS` of them: so many does epoll tell of at a time;
- windows are borrowed for a turn in which there is something to read, and are back before anybody
  waits.

It knows relays by `pump`, and nothing of what they move.
"""

from __future__ import annotations

import select
from collections import deque
from contextlib import suppress
from time import perf_counter
from typing import Any, Protocol

import outcome
import trio
from trio import current_time
from trio.lowlevel import Abort, RaiseCancelT, Task

from pools import Lease, Pools

from ..errors import ReadFailed
from .loop import TrioLoop, trio_loop
from .step import Need

__all__ = ["TURN_PUMPS", "TURN_S", "Hub", "Stream"]

TURN_S = 0.002
TURN_PUMPS = 64
_READ, _TURN = Need.READ, Need.TURN
_waited_for = trio.lowlevel.RunVar(
    "proxy.relay.hub", default=False
)  # two hubs cannot wait in the place of one Trio


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
        """Trio cancels the task that waits for the stream."""
        if self.hub.is_pumping(self):
            # A hook of this very stream cancels it: let the pump end first.
            self.raise_cancel = raise_cancel
            return Abort.FAILED
        self.hub.remove(self)
        return Abort.SUCCEEDED


class Hub:
    """The hub of one worker. `run` must be running wherever `move` is called."""

    def __init__(self, pools: Pools) -> None:
        """Raises `OSError` where there is no epoll to be had; ask `available` first."""
        self._pools = pools
        self._epoll = select.epoll()
        self._parked: dict[int, _Parked] = {}
        # To be pumped next, whatever the epoll says: who reads little at a time, and who fills
        # large windows.
        self._light: deque[_Parked] = deque()
        self._heavy: deque[_Parked] = deque()
        self._pumping: _Parked | None = None
        self._loop: TrioLoop | None = None
        self._trio_fd = -1  # Trio's epoll, while the hub waits in its place
        self._trio_ready: select.poll | None = None  # asks for that one alone
        self._for_trio = False  # that epoll is ready
        self._ran_hooks = False
        self._clock = 0.0
        self._trio_ahead = 0.0  # of that clock
        self._small_window: bytearray | None = None  # of this turn
        self._large_window: bytearray | None = None
        self._leases: list[Lease] = []

    @staticmethod
    def available() -> bool:
        """Whether this platform has epoll."""
        return hasattr(select, "epoll")

    def __len__(self) -> int:
        return len(self._parked)

    async def run(self) -> None:
        """Move streams until cancelled."""
        loop = None if _waited_for.get() else trio_loop()
        try:
            if loop is not None:
                await self._run_in_trios_place(loop)
            while True:
                if self._light or self._heavy:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._trio_ahead = current_time() - perf_counter()
                self._turn(0)
        finally:
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
            await waiter.died.wait()
        finally:
            trio.lowlevel.remove_instrument(waiter)
            _waited_for.set(False)
        assert waiter.error is not None
        raise waiter.error

    async def move(self, stream: Stream) -> Need:
        """Park the calling task until `stream` needs it; what it needs. Raises what `pump` raises,
        in this task.

        Cancelled, the stream has left the hub when this raises.
        """
        fd = stream.fileno()
        if fd < 0:
            raise ReadFailed("the connection was closed")
        parked = _Parked(self, stream, fd, trio.lowlevel.current_task())
        self._epoll.register(fd, select.EPOLLIN)
        self._parked[fd] = parked
        need: Need = await trio.lowlevel.wait_task_rescheduled(parked.abort)
        return need

    def wait(self, loop: TrioLoop, timeout_s: float) -> None:
        """Wait in Trio's place and move streams meanwhile, until there is something for Trio to do,
        or `timeout_s` has passed.

        Blocks the thread, as Trio's own wait would; to be called just before that.
        """
        if not self._parked:
            self._light.clear()  # who has left is remembered no longer
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
            return  # Trio's own wait must be seen to last
        if timeout_s > 0 or not runnable:
            # Also when Trio's epoll is ready: it need not be any more, if a pump or another process
            # has been there first.
            loop.wake()

    def _turn(self, wait_s: float) -> int:
        """Wait for streams and pump those that are ready, each once, as long as a turn lasts. How
        many were pumped.
        """
        light, heavy = self._light, self._heavy
        events = self._epoll.poll(0 if light or heavy else wait_s, TURN_PUMPS)
        clock = self._clock = perf_counter()
        now = clock + self._trio_ahead
        ends_at = clock + TURN_S
        pumps = 0
        late = some_wait = bool(light)  # who was not served in the last turn goes first
        try:
            for fd, _ in events:
                ready = self._parked.get(fd)
                if ready is None:
                    self._for_trio = self._for_trio or fd == self._trio_fd
                elif ready.queued:
                    pass
                elif late or ready.stream.wants_large:
                    self._enqueue(ready)
                else:
                    self._pump(ready, now)
                    pumps += 1
                    late = perf_counter() > ends_at
            for _ in range(min(len(light), TURN_PUMPS) if some_wait else 0):
                if pumps and perf_counter() > ends_at:
                    break
                pumps += self._pump_queued(light.popleft(), now)
            for number in range(min(len(heavy), max(1, TURN_PUMPS - pumps))):
                if number and perf_counter() > ends_at:
                    break
                pumps += self._pump_queued(heavy.popleft(), now)
            if (
                self._trio_ready is not None
                and (light or heavy or len(events) == TURN_PUMPS)
                and self._trio_ready.poll(0)
            ):
                self._for_trio = True  # among so many, Trio's epoll may not have had its turn
        finally:
            self._small_window = self._large_window = None
            while self._leases:
                self._leases.pop().release()
        return pumps

    def _enqueue(self, parked: _Parked) -> None:
        parked.queued = True
        (self._heavy if parked.stream.wants_large else self._light).append(parked)

    def _pump_queued(self, parked: _Parked, now: float) -> bool:
        """Pump a stream that was queued, unless it has left meanwhile, and its number may be
        another's.
        """
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
        result = None  # an error's traceback knows this frame, and must not be known by it

    def is_pumping(self, parked: _Parked) -> bool:
        """Whether it is this stream's pump that is running."""
        return self._pumping is parked

    def remove(self, parked: _Parked) -> None:
        """Take a stream out of the table and the epoll, unless it has left."""
        if self._parked.get(parked.fd) is parked:
            del self._parked[parked.fd]
            with suppress(
                OSError, ValueError
            ):  # closed against the contract, and the hub lives on; or the hub's end
                self._epoll.unregister(parked.fd)

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
    """Lets the hub wait where Trio is about to. Nothing may be raised here: Trio would go on
    without it.
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
