"""The hub: every invariant of its module's head, with scripted streams on real sockets, and with real relays.

A scripted stream answers each pump with what the test tells it to. What is on the hub's epoll is read from the kernel.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from interceptors import Event, HookError, Interceptor, StreamContext, StreamInterceptor
from interceptors.chain import Chain, Part
from pools import Pools
from proxy.errors import ClientGone, ReadFailed, Truncated
from proxy.hub import TURN_PUMPS, Hub
from proxy.relay import Need, Relay
from proxy.upstream import UpstreamBody
from proxy.upstream.body import Chunked
from proxy.upstream.connections import Connection, Origin

pytestmark = pytest.mark.skipif(not Hub.available(), reason="no epoll here")

Pump = Callable[["Scripted", bytearray, float], Need]


class Odd(BaseException):
    """Not an `Exception`."""


def take(stream: Scripted, window: bytearray, now: float) -> Need:
    """Read once; the end of the connection, or of the bytes that end with a full stop, is the end of the stream."""
    with suppress(BlockingIOError):
        data = stream.sock.recv(len(window))
        stream.received += data
        if not data or data.endswith(b"."):
            return Need.NOTHING
    return Need.READ


class Scripted:
    """A stream on one end of a socket pair, pumped by a function."""

    wants_large = False
    runs_hooks = False

    def __init__(self, pump: Pump = take, pair: tuple[socket.socket, socket.socket] | None = None) -> None:
        self.sock, self.far = pair or socket.socketpair()
        self.sock.setblocking(False)
        self._pump = pump
        self.pumps = 0
        self.received = b""
        self.task: Moved | None = None

    def fileno(self) -> int:
        return self.sock.fileno()

    def pump(self, window: bytearray, now: float) -> Need:
        self.pumps += 1
        return self._pump(self, window, now)

    def close(self) -> None:
        self.sock.close()
        self.far.close()


class Moved:
    """A task that moves one stream, once, and notes each way in which `move` ended."""

    def __init__(self, hub: Hub, stream: Any) -> None:
        self.hub = hub
        self.stream = stream
        self.scope = trio.CancelScope()
        self.ends: list[Any] = []
        self.over = trio.Event()
        stream.task = self

    async def run(self) -> None:
        try:
            with self.scope:
                try:
                    self.ends.append(await self.hub.move(self.stream))
                except BaseException as error:
                    self.ends.append(error)
                    if isinstance(error, trio.Cancelled):
                        raise
        finally:
            self.over.set()

    @property
    def cancelled(self) -> bool:
        """Whether it has ended by being cancelled, and in no other way before or after."""
        return [type(end) for end in self.ends] == [trio.Cancelled]


class Bench:
    """A running hub, and the tasks that move streams through it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.pools = Pools(leak_detection="paranoid")
        self.hub = Hub(self.pools)
        self.nursery = nursery
        self.hub_scope = trio.CancelScope()

    async def run_hub(self) -> None:
        with self.hub_scope:
            await self.hub.run()

    async def park(self, *streams: Any) -> list[Moved]:
        """Move streams, each in a task of its own; returns when all are parked."""
        tasks = [Moved(self.hub, stream) for stream in streams]
        for task in tasks:
            self.nursery.start_soon(task.run)
        await wait_all_tasks_blocked()
        return tasks

    def registered(self) -> set[int]:
        """The descriptors on the hub's epoll, as the kernel tells."""
        with open(f"/proc/self/fdinfo/{self.hub._epoll.fileno()}") as lines:
            return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}

    def in_use(self) -> int:
        return sum(item.in_use for item in self.pools.statistics())


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    """Ten seconds for a test; at the end every task is cancelled, and the hub must be empty then."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            nursery.start_soon(bench.run_hub)
            await wait_all_tasks_blocked()
            yield bench
            nursery.cancel_scope.cancel()
    assert len(bench.hub) == 0


@pytest.fixture
def new() -> Iterator[Callable[..., Scripted]]:
    """Makes scripted streams, whose sockets are closed when the test is over."""
    made: list[Scripted] = []

    def make(*args: Any, **kwargs: Any) -> Scripted:
        made.append(Scripted(*args, **kwargs))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


@pytest.fixture
def one_pump_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn is over after its first pump, so that the rest of who was ready waits in the hub's queue."""
    monkeypatch.setattr("proxy.hub.TURN_S", -1.0)


New = Callable[..., Scripted]


# Streams move


async def test_a_stream_is_pumped_when_it_is_readable_and_ends_with_what_it_needs(new: New) -> None:
    """Not before there is something, once for what came, and `move` answers with the need that is no READ."""
    async with open_bench() as bench:
        stream = new()
        (task,) = await bench.park(stream)
        assert (stream.pumps, len(bench.hub), bench.registered()) == (0, 1, {stream.fileno()})
        stream.far.send(b"one ")
        await wait_all_tasks_blocked()
        assert (stream.pumps, stream.received, task.ends) == (1, b"one ", [])
        stream.far.send(b"two.")
        await task.over.wait()
        assert (stream.pumps, stream.received, task.ends) == (2, b"one two.", [Need.NOTHING])
        assert (len(bench.hub), bench.registered()) == (0, set())


@pytest.mark.parametrize("how", ["closed", "half closed", "shut down here", "reset"])
async def test_the_end_of_the_connection_wakes_a_stream(how: str, new: New) -> None:
    """However it ends, also by a shutdown that another task does, and by a reset, whose error is the stream's."""
    async with open_bench() as bench:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        stream = new(pair=(near, far))
        (task,) = await bench.park(stream)
        if how == "closed":
            far.close()
        elif how == "half closed":
            far.shutdown(socket.SHUT_WR)
        elif how == "shut down here":
            Connection(Origin("http", "up.test", 80), near).shut_down()
        else:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
        await task.over.wait()
        (end,) = task.ends
        assert isinstance(end, ConnectionResetError) if how == "reset" else end is Need.NOTHING
        assert bench.registered() == set()


async def test_a_closed_socket_cannot_be_moved(new: New) -> None:
    """`move` says so at once, and nothing is left in the hub."""
    async with open_bench() as bench:
        stream = new()
        stream.close()
        (task,) = await bench.park(stream)
        (end,) = task.ends
        assert isinstance(end, ReadFailed)
        assert (len(bench.hub), bench.registered()) == (0, set())


async def test_a_second_mover_of_one_socket_fails_and_disturbs_nothing(new: New) -> None:
    """The mistake is the second one's; the first stream stays parked and is moved."""
    async with open_bench() as bench:
        first = new()
        second = new(pair=(first.sock, first.far))
        one, two = await bench.park(first, second)
        ended, parked = (one, two) if one.ends else (two, one)
        assert isinstance(ended.ends[0], OSError)
        assert (parked.ends, len(bench.hub)) == ([], 1)
        first.far.send(b"x.")
        await parked.over.wait()
        assert parked.ends == [Need.NOTHING]


# Exceptions


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        ClientGone(),
        MemoryError(),
        OSError(90, "Message too long"),
        ValueError("a bug"),
        trio.WouldBlock(),
        Odd(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_exception_out_of_a_pump_is_that_streams_and_the_hub_goes_on(
    error: BaseException, hooks: bool, new: New
) -> None:
    """The very exception is raised in the task of the stream; those that are ready with it, and later ones, are moved."""

    def fail(stream: Scripted, window: bytearray, now: float) -> Need:
        raise error

    async with open_bench() as bench:
        before, bad, after = new(), new(fail), new()
        bad.runs_hooks = hooks
        tasks = await bench.park(before, bad, after)
        for stream in (before, bad, after):
            stream.far.send(b"x")
        await wait_all_tasks_blocked()
        assert tasks[1].ends == [error]
        assert tasks[1].ends[0] is error
        assert (before.received, bad.pumps, after.received) == (b"x", 1, b"x")
        assert bench.registered() == {before.fileno(), after.fileno()}
        assert bench.in_use() == 0
        for stream in (before, after):
            stream.far.send(b"y.")
        await tasks[0].over.wait()
        await tasks[2].over.wait()
        assert (before.received, after.received) == (b"xy.", b"xy.")


@pytest.mark.parametrize("ending", ["NOTHING", "WRITE", "exception", "own cancel", "own cancel and exception"])
async def test_a_stream_has_left_when_its_task_is_rescheduled_and_that_happens_once(
    ending: str, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of `reschedule` neither the table nor the epoll knows the stream; there is exactly one such moment."""

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        assert stream.task is not None
        if "cancel" in ending:
            stream.task.scope.cancel()
        if "exception" in ending:
            raise ClientGone
        return Need[ending] if ending in Need.__members__ else Need.READ

    async with open_bench() as bench:
        stream = new(pump)
        woken: list[tuple[str, int, set[int]]] = []
        original = trio.lowlevel.reschedule

        def spy(task: trio.lowlevel.Task, *args: Any) -> None:
            if "Moved.run" in task.name:
                woken.append((task.name, len(bench.hub), bench.registered()))
            original(task, *args)

        (task,) = await bench.park(stream)
        monkeypatch.setattr(trio.lowlevel, "reschedule", spy)
        stream.far.send(b"x")
        await task.over.wait()
        await wait_all_tasks_blocked()
        assert [item[1:] for item in woken] == [(0, set())]
        assert len(task.ends) == 1
        assert stream.pumps == 1


# Cancellation


async def test_cancelled_while_parked(new: New) -> None:
    """The stream leaves inside `cancel()` itself; its task ends Cancelled, and what arrives later pumps nothing."""
    async with open_bench() as bench:
        stream, other = new(), new()
        task, _ = await bench.park(stream, other)
        task.scope.cancel()
        assert (len(bench.hub), bench.registered()) == (1, {other.fileno()})
        stream.far.send(b"late")
        other.far.send(b"x")
        await wait_all_tasks_blocked()
        assert task.cancelled
        assert (stream.pumps, other.received) == (0, b"x")


async def test_cancelled_while_ready_before_the_hub_has_its_turn(new: New) -> None:
    """Bytes are there and the hub is woken, by another stream as well; whoever was cancelled first is not pumped."""
    async with open_bench() as bench:
        stream, other = new(), new()
        task, _ = await bench.park(stream, other)
        stream.far.send(b"x")
        other.far.send(b"x")
        task.scope.cancel()
        await wait_all_tasks_blocked()
        assert task.cancelled
        assert (stream.pumps, other.pumps) == (0, 1)


async def test_cancelled_in_the_hubs_queue(one_pump_a_turn: None, new: New) -> None:
    """A stream that was found ready, and whose turn has not come, is cancelled by a task that runs between two turns."""
    async with open_bench() as bench:
        streams = [new() for _ in range(20)]
        tasks = await bench.park(*streams)
        for stream in streams:
            stream.far.send(b"x")
        while not any(stream.pumps for stream in streams):
            await trio.lowlevel.checkpoint()
        waiting = [task for task in tasks if not task.stream.pumps]
        assert {id(task.stream) for task in waiting} == {id(parked.stream) for parked in bench.hub._queue}
        assert len(waiting) >= 10
        for task in waiting:
            task.scope.cancel()
        await wait_all_tasks_blocked()
        assert all(task.cancelled for task in waiting)
        assert sum(stream.pumps for stream in streams) == 20 - len(waiting)


@pytest.mark.parametrize("need", list(Need), ids=lambda need: need.name)
async def test_cancelled_by_its_own_pump(need: Need, new: New) -> None:
    """The pump runs to its end; then the task ends Cancelled, once, whatever the pump said that it needs."""

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        assert stream.task is not None
        stream.task.scope.cancel()
        stream.received += b"to the end"
        return need

    async with open_bench() as bench:
        stream, other = new(pump), new()
        task, _ = await bench.park(stream, other)
        stream.far.send(b"x")
        await wait_all_tasks_blocked()
        assert task.cancelled
        assert (stream.pumps, stream.received) == (1, b"to the end")
        assert bench.registered() == {other.fileno()}
        other.far.send(b"x")
        await wait_all_tasks_blocked()
        assert other.received == b"x"


async def test_a_pump_that_cancels_its_stream_and_fails_raises_what_failed(new: New) -> None:
    """The exception is not lost to the cancellation, and the task is woken once for both."""

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        assert stream.task is not None
        stream.task.scope.cancel()
        raise ClientGone

    async with open_bench() as bench:
        stream = new(pump)
        (task,) = await bench.park(stream)
        stream.far.send(b"x")
        await task.over.wait()
        assert [type(end) for end in task.ends] == [ClientGone]


async def test_a_stream_comes_back_after_a_scope_inside_its_task_was_cancelled(new: New) -> None:
    """Cancelled by its own pump in an inner scope, a task may move its stream on; nothing of the first time is left."""
    inner = trio.CancelScope()

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        inner.cancel()
        return take(stream, window, now)

    async with open_bench() as bench:
        stream = new(pump)
        stream.far.send(b"x")
        with inner:
            await bench.hub.move(stream)
        assert inner.cancelled_caught
        stream.far.send(b"y.")
        assert await bench.hub.move(stream) is Need.NOTHING
        assert (stream.received, stream.pumps) == (b"xy.", 2)


async def test_cancelled_by_another_streams_pump_in_the_same_turn(new: New) -> None:
    """Two streams are ready in one turn; the first to be pumped cancels the other, which then is not pumped."""

    def cancel_the_other(stream: Scripted, window: bytearray, now: float) -> Need:
        (other,) = {one, two} - {stream}
        assert other.task is not None
        other.task.scope.cancel()
        return take(stream, window, now)

    async with open_bench() as bench:
        one, two = new(cancel_the_other), new(cancel_the_other)
        tasks = await bench.park(one, two)
        one.far.send(b"x")
        two.far.send(b"x")
        await wait_all_tasks_blocked()
        assert one.pumps + two.pumps == 1
        first, second = tasks if one.pumps else reversed(tasks)
        assert first.ends == []
        assert second.cancelled
        assert bench.registered() == {first.stream.fileno()}


async def test_streams_can_be_cancelled_when_the_hub_has_gone(new: New) -> None:
    """`run` was cancelled first, as at the end of a lifespan; parked and queued streams leave in order all the same."""

    def stop_the_hub(stream: Scripted, window: bytearray, now: float) -> Need:
        bench.hub_scope.cancel()
        return Need.TURN

    async with open_bench() as bench:
        parked, queued = new(), new(stop_the_hub)
        tasks = await bench.park(parked, queued)
        queued.far.send(b"x")
        await wait_all_tasks_blocked()
        assert bench.hub._epoll.closed
        assert [task.ends for task in tasks] == [[], []]
        for task in tasks:
            task.scope.cancel()
            await task.over.wait()
            assert task.cancelled
        assert len(bench.hub) == 0
        assert queued.pumps == 1


# Descriptors


async def test_a_descriptor_number_that_is_used_again_is_not_confused(one_pump_a_turn: None, new: New) -> None:
    """A stream leaves while it is in the hub's queue; its socket is closed, and the next one gets its number and parks.

    The old stream is not pumped any more, and the new one not before it has bytes of its own.
    """
    async with open_bench() as bench:
        fillers = [new() for _ in range(40)]
        old = new()
        tasks = await bench.park(*fillers, old)
        number = old.fileno()
        for stream in (*fillers, old):
            stream.far.send(b"x")
        await trio.lowlevel.checkpoint()
        while not any(parked.stream is old for parked in bench.hub._queue):
            await trio.lowlevel.checkpoint()
        tasks[-1].scope.cancel()
        old.close()
        near, far = socket.socketpair()
        if far.fileno() == number:
            near, far = far, near
        if near.fileno() != number:
            near = socket.socket(fileno=os.dup2(near.detach(), number))
        newer = new(pair=(near, far))
        assert newer.fileno() == number
        task = Moved(bench.hub, newer)
        bench.nursery.start_soon(task.run)
        while bench.registered().isdisjoint({number}):
            await trio.lowlevel.checkpoint()
        assert any(parked.stream is old for parked in bench.hub._queue), "the test is too slow to prove anything"
        await wait_all_tasks_blocked()
        assert [stream.pumps for stream in fillers] == [1] * 40
        assert (old.pumps, newer.pumps, task.ends) == (0, 0, [])
        newer.far.send(b"y.")
        await task.over.wait()
        assert (newer.received, newer.pumps, task.ends) == (b"y.", 1, [Need.NOTHING])


# Turns


async def test_turn_pumps_again_although_the_socket_has_nothing(new: New) -> None:
    """As with bytes inside TLS: pumped until it says READ, one at a time with another such stream, and with other tasks."""
    order: list[Scripted] = []
    ticks = [0]

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        stream.received += b"" if stream.pumps > 1 else stream.sock.recv(1)
        order.append(stream)
        ticks.append(ticks[0])
        return Need.TURN if stream.pumps < 50 else Need.WRITE

    async def tick() -> None:
        while True:
            ticks[0] += 1
            await trio.lowlevel.checkpoint()

    async with open_bench() as bench:
        one, two = new(pump), new(pump)
        tasks = await bench.park(one, two)
        one.far.send(b"x")
        two.far.send(b"x")
        bench.nursery.start_soon(tick)
        for task in tasks:
            await task.over.wait()
            assert task.ends == [Need.WRITE]
        assert (one.pumps, two.pumps) == (50, 50)
        assert all({order[at], order[at + 1]} == {one, two} for at in range(0, 100, 2))
        assert ticks[-1] - ticks[1] >= 20, "no task but the hub had a turn"
        assert bench.in_use() == 0


class AlwaysReady:
    """Readable for ever: an event counter that nobody reads."""

    wants_large = False
    runs_hooks = False
    task: Moved | None = None

    def __init__(self, need: Need) -> None:
        self._fd = os.eventfd(1)
        self._need = need
        self.pumps = 0

    def fileno(self) -> int:
        return self._fd

    def pump(self, window: bytearray, now: float) -> Need:
        self.pumps += 1
        return self._need

    def close(self) -> None:
        os.close(self._fd)


@pytest.mark.parametrize("needs", ["READ", "TURN", "either"])
@pytest.mark.parametrize("turn_s", [-1.0, 0.0002, 60.0])
async def test_five_hundred_busy_streams_share_the_hub_and_leave_room_for_others(
    turn_s: float, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of another task no more than two turns of the hub pass (Trio shuffles who runs first), each of at most
    64 pumps, or one when every turn's time is up at once. Every stream is pumped as often as any other, up to a few; those whose
    bytes wait in TLS, which need no word from epoll, may be up to twice as often. At no such moment is a lease on loan.
    """
    monkeypatch.setattr("proxy.hub.TURN_S", turn_s)
    two = (Need.READ, Need.TURN) if needs == "either" else (Need[needs],) * 2
    streams = [AlwaysReady(two[index % 2]) for index in range(500)]
    most = leases = 0
    async with open_bench() as bench:
        for stream in streams:
            bench.nursery.start_soon(Moved(bench.hub, stream).run)
        while len(bench.hub) < 500:
            await trio.lowlevel.checkpoint()
        for stream in streams:
            stream.pumps = 0
        before = 0
        while before < (7_500 if turn_s < 0 else 30_000):
            await trio.lowlevel.checkpoint()
            now = sum(stream.pumps for stream in streams)
            most = max(most, now - before)
            before = now
            leases = max(leases, bench.in_use())
        bench.nursery.cancel_scope.cancel()
    for stream in streams:
        stream.close()
    assert most <= 2 * (1 if turn_s < 0 else TURN_PUMPS)
    fewest, highest = min(stream.pumps for stream in streams), max(stream.pumps for stream in streams)
    assert fewest >= 10
    assert highest <= (2 * fewest if needs == "either" else 1.2 * fewest + 4)
    assert leases == 0


async def test_a_turn_ends_in_time(monkeypatch: pytest.MonkeyPatch, new: New) -> None:
    """With a clock of its own: pumps that take 0.9 ms each leave a turn after the third, the first beyond 2 ms."""
    clock = [0.0]
    monkeypatch.setattr("proxy.hub.perf_counter", lambda: clock[0])

    def slow(stream: Scripted, window: bytearray, now: float) -> Need:
        clock[0] += 0.0009
        return take(stream, window, now)

    async with open_bench() as bench:
        streams = [new(slow) for _ in range(30)]
        await bench.park(*streams)
        for stream in streams:
            stream.far.send(b"x")
        turns: list[int] = []
        original = bench.hub._turn

        def count() -> None:
            before = sum(stream.pumps for stream in streams)
            original()
            turns.append(sum(stream.pumps for stream in streams) - before)

        monkeypatch.setattr(bench.hub, "_turn", count)
        await wait_all_tasks_blocked()
        assert turns == [3] * 10


# Windows and contexts


async def test_windows_are_the_pools_and_back_whenever_the_hub_waits(new: New) -> None:
    """Each stream gets the window that it wants, all of a turn the same one; afterwards nothing is on loan."""
    seen: dict[str, list[tuple[int, int]]] = {"small": [], "large": []}

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        seen["large" if stream.wants_large else "small"].append((id(window), len(window)))
        stream.far.send(b".") if stream.pumps == 2 else None
        return take(stream, window, now)

    async with open_bench() as bench:
        streams = [new(pump) for _ in range(6)]
        for stream in streams[:3]:
            stream.wants_large = True
        tasks = await bench.park(*streams)
        assert bench.in_use() == 0
        for stream in streams:
            stream.far.send(b"x")
        await wait_all_tasks_blocked()
        assert bench.in_use() == 0
        assert {size for _, size in seen["small"]} == {bench.pools.sse_event.size}
        assert {size for _, size in seen["large"]} == {bench.pools.http_response.size}
        assert [len(set(seen[which])) for which in seen] == [1, 1]
        assert [bench.pools.sse_event.statistics().high_water, bench.pools.http_response.statistics().high_water] == [1, 1]
        for stream in streams:
            stream.far.send(b"y")
        for task in tasks:
            await task.over.wait()
        assert bench.in_use() == 0


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


async def test_a_stream_with_hooks_is_pumped_in_its_tasks_context(new: New) -> None:
    """Inside the pump the task's context variables are right, and what the pump sets the task finds afterwards."""
    seen: list[tuple[Scripted, str]] = []

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        seen.append((stream, WHO.get()))
        WHO.set(WHO.get() + "!")
        return take(stream, window, now)

    async with open_bench() as bench:
        after: dict[Scripted, str] = {}

        async def move(stream: Scripted, name: str) -> None:
            WHO.set(name)
            await bench.hub.move(stream)
            after[stream] = WHO.get()

        streams = {name: new(pump) for name in ("anna", "bert")}
        for name, stream in streams.items():
            stream.runs_hooks = True
            bench.nursery.start_soon(move, stream, name)
        await wait_all_tasks_blocked()
        for stream in streams.values():
            stream.far.send(b"x")
        await wait_all_tasks_blocked()
        for stream in streams.values():
            stream.far.send(b"y.")
        await wait_all_tasks_blocked()
        for name, stream in streams.items():
            assert [who for pumped, who in seen if pumped is stream] == [name, name + "!"]
            assert after[stream] == name + "!!"
        assert WHO.get() == "nobody"


# Real relays


class NoPool:
    """Takes connections back, as a `ConnectionPool` does, and closes them."""

    def release(self, connection: Connection, *, reusable: bool) -> None:
        connection.close()


class Sink:
    """A writer that takes everything, and has a client that leaves after `leaves_after` bytes."""

    name = "sink"
    synchronous = True
    started = True
    stalled = False

    def __init__(self, leaves_after: float) -> None:
        self.received = b""
        self.bytes_sent = 0
        self._leaves_after = leaves_after

    def write(self, parts: list[Part]) -> bool:
        if len(self.received) >= self._leaves_after:
            raise ClientGone
        self.received += b"".join(parts)
        return True


class Shouting(Interceptor):
    """Changes every event, and fails at one that says so."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _ShoutingStream()


class _ShoutingStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        if event.data == "fail":
            raise ValueError("told to")
        return event.replace(data=event.data.upper())


async def test_relays_of_all_kinds_of_fate_share_a_hub() -> None:
    """100 relays at once; some complete, some lose upstream, some the client, some to an interceptor: each as its own."""
    dice = random.Random(5)
    ends: dict[int, object] = {}
    expected: dict[int, tuple[type, bytes]] = {}
    sinks: dict[int, Sink] = {}

    async def relay(bench: Bench, number: int, near: socket.socket, chained: bool) -> None:
        body = UpstreamBody(
            bench.pools,
            NoPool(),  # type: ignore[arg-type]
            Connection(Origin("http", "up.test", 80), near),
            Chunked(),
            b"",
            True,
            None,
        )
        async with bench.pools.open_scope() as scope:
            context = StreamContext(route="/", method="GET", path="/", headers=(), client=None)
            chain = Chain([("s", Shouting())]).open_stream(context, bench.pools.json, scope, 1 << 20) if chained else None
            try:
                await Relay(body, sinks[number], chain, bench.pools, scope, sse=True).run(bench.hub, idle_s=9, send_s=9)  # type: ignore[arg-type]
                ends[number] = type(None)
            except Exception as error:
                ends[number] = type(error)
            finally:
                body.close()

    async def feed(far: socket.socket, data: bytes) -> None:
        with trio.socket.from_stdlib_socket(far) as sock, suppress(trio.BrokenResourceError):
            stream = trio.SocketStream(sock)
            at = 0
            while at < len(data):
                size = dice.choice((1, 7, 100, 3000))
                await stream.send_all(data[at : at + size])
                at += size

    async with open_bench() as bench:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                fate = ("completes", "is cut", "client leaves", "interceptor fails")[number % 4]
                chained = fate == "interceptor fails" or dice.random() < 0.5
                texts = [
                    b"%d of %d" % (item, number) + b"x" * dice.randrange(200)
                    for item in range(600 if fate == "client leaves" else 30)
                ]
                data = b"".join(b"%x\r\ndata: %s\n\n\r\n" % (len(text) + 8, text) for text in texts)
                out = b"".join(b"data: %s\n\n" % (text.upper() if chained else text) for text in texts)
                sinks[number] = Sink(300 if fate == "client leaves" else float("inf"))
                if fate == "completes":
                    expected[number], data = (type(None), out), data + b"0\r\n\r\n"
                elif fate == "is cut":
                    expected[number] = (Truncated, out)
                elif fate == "client leaves":
                    expected[number] = (ClientGone, out)
                else:
                    expected[number], data = (HookError, out), data + b"c\r\ndata: fail\n\n\r\n1\r\nx\r\n"
                near, far = socket.socketpair()
                near.setblocking(False)
                far.setblocking(False)
                nursery.start_soon(relay, bench, number, near, chained)
                nursery.start_soon(feed, far, data)
        for number, (end, out) in expected.items():
            assert ends[number] is end, number
            received = sinks[number].received
            assert received == out if end is not ClientGone else out.startswith(received) and 300 <= len(received) < len(out)
        assert bench.in_use() == 0
        assert len(bench.hub) == 0
    gc.collect()
