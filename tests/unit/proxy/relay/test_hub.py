"""The hub: every invariant of its module's head, with scripted streams on real sockets, and with
real relays.

Each test runs in both ways of waiting, in Trio's place and as a task, unless it is about one of
them. A scripted stream answers each pump with what the test tells it to. What is on the hub's epoll
is read from the kernel.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
import structlog
import trio
from support.chunks import unchunked
from support.writers import flush_of
from trio._core import _run as trio_run
from trio.testing import MockClock, wait_all_tasks_blocked

import proxy.relay.hub
from interceptors import Event, HookError, Interceptor, Request, StreamContext, StreamInterceptor
from interceptors.chain import Chain, Part
from pools import BufferPool, Pools
from proxy.errors import ClientGone, ReadFailed, Truncated
from proxy.http.body import Chunked
from proxy.relay import Mover, Need, open_relay
from proxy.relay.hub import TURN_PUMPS, Hub
from proxy.relay.loop import trio_loop
from proxy.upstream import UpstreamBody
from proxy.upstream.connections import Connection, Origin

pytestmark = pytest.mark.skipif(not Hub.available(), reason="no epoll here")

IN_PLACE, AS_TASK = "in Trio's place", "as a task"


@pytest.fixture(params=[IN_PLACE, AS_TASK], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the hub waits."""
    if request.param == AS_TASK:
        monkeypatch.setattr("proxy.relay.hub.trio_loop", lambda: None)
    return str(request.param)


Pump = Callable[["Scripted", bytearray, float], Need]


class Odd(BaseException):
    """Not an `Exception`."""


def take(stream: Scripted, window: bytearray, now: float) -> Need:
    """Read once."""
    with suppress(BlockingIOError):
        data = stream.sock.recv(len(window))
        stream.received += data
        if not data or data.endswith(b"."):
            return Need.END
    return Need.READ


class Scripted:
    """A stream on one end of a socket pair, pumped by a function."""

    wants_large = False
    runs_hooks = False

    def __init__(
        self, pump: Pump = take, pair: tuple[socket.socket, socket.socket] | None = None
    ) -> None:
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
        self.hub_error: BaseException | None = None
        self.hub_over = trio.Event()

    async def run_hub(self) -> None:
        """Until it is cancelled, or fails."""
        try:
            with self.hub_scope:
                await self.hub.run()
        except (Exception, Odd) as error:
            self.hub_error = error
        finally:
            self.hub_over.set()

    @property
    def in_trios_place(self) -> bool:
        """Whether the hub waits there."""
        return self.hub._trio_fd >= 0

    async def park(self, *streams: Any) -> list[Moved]:
        """Move streams, each in its own task; returns when all are parked."""
        tasks = [Moved(self.hub, stream) for stream in streams]
        for task in tasks:
            self.nursery.start_soon(task.run)
        await wait_all_tasks_blocked()
        return tasks

    def registered(self) -> set[int]:
        """The streams' descriptors on the hub's epoll, from the kernel."""
        with open(f"/proc/self/fdinfo/{self.hub._epoll.fileno()}") as lines:
            registered = {int(line.split()[1]) for line in lines if line.startswith("tfd:")}
        if self.in_trios_place:
            assert self.hub._trio_fd in registered
        return registered - {self.hub._trio_fd}

    def in_use(self) -> int:
        return sum(item.in_use for item in self.pools.statistics())


@asynccontextmanager
async def open_bench(way: str | None = None) -> AsyncIterator[Bench]:
    """Ten seconds for a test."""
    if way is None:
        way = IN_PLACE if proxy.relay.hub.trio_loop is trio_loop else AS_TASK
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            nursery.start_soon(bench.run_hub)
            await wait_all_tasks_blocked()
            assert bench.in_trios_place is (way == IN_PLACE)
            yield bench
            nursery.cancel_scope.cancel()
    assert len(bench.hub) == 0
    assert bench.hub_error is None


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
    """Every turn is over after its first pump, so that the rest of who was ready waits in the hub's
    queue.
    """
    monkeypatch.setattr("proxy.relay.hub.TURN_S", -1.0)


New = Callable[..., Scripted]


class AlwaysReady:
    """Readable forever: an event counter that is not read."""

    wants_large = False
    runs_hooks = False
    task: Moved | None = None

    def __init__(self, need: Need, crowd: Crowd) -> None:
        self._fd = os.eventfd(1)
        self._need = need
        self._crowd = crowd
        self.pumps = 0

    def fileno(self) -> int:
        return self._fd

    def pump(self, window: bytearray, now: float) -> Need:
        self.pumps += 1
        self._crowd.pumps += 1
        return self._need

    def close(self) -> None:
        os.close(self._fd)


class Crowd:
    """Streams that are always ready, with one count of their pumps."""

    def __init__(self) -> None:
        self.streams: list[AlwaysReady] = []
        self.pumps = 0

    async def join(self, bench: Bench, count: int, *needs: Need) -> None:
        """Park so many streams, which need these by turns. Returns when all are parked."""
        for index in range(count):
            self.streams.append(AlwaysReady(needs[index % len(needs)], self))
            bench.nursery.start_soon(Moved(bench.hub, self.streams[-1]).run)
        expected = len(self.streams)
        while len(bench.hub) < expected:
            await trio.lowlevel.checkpoint()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """No streams yet; they are closed when the test is over."""
    crowd = Crowd()
    yield crowd
    for stream in crowd.streams:
        stream.close()


# Streams move


async def test_a_stream_is_pumped_when_it_is_readable_and_ends_with_what_it_needs(new: New) -> None:
    """Not before there is something, once for what came, and `move` answers with the need that is
    no READ.
    """
    async with open_bench() as bench:
        stream = new()
        (task,) = await bench.park(stream)
        assert (stream.pumps, len(bench.hub), bench.registered()) == (0, 1, {stream.fileno()})
        stream.far.send(b"one ")
        await wait_all_tasks_blocked()
        assert (stream.pumps, stream.received, task.ends) == (1, b"one ", [])
        stream.far.send(b"two.")
        await task.over.wait()
        assert (stream.pumps, stream.received, task.ends) == (2, b"one two.", [Need.END])
        assert (len(bench.hub), bench.registered()) == (0, set())


@pytest.mark.parametrize("how", ["closed", "half closed", "shut down here", "reset"])
async def test_the_end_of_the_connection_wakes_a_stream(how: str, new: New) -> None:
    """However it ends, also by a shutdown that another task does, and by a reset, whose error is
    the stream's.
    """
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
        assert isinstance(end, ConnectionResetError) if how == "reset" else end is Need.END
        assert bench.registered() == set()


async def test_a_closed_socket_cannot_be_moved(new: New) -> None:
    """`move` states it at once, and nothing is left in the hub."""
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
        assert parked.ends == [Need.END]


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
async def test_an_exception_out_of_a_pump_is_that_streams_and_the_hub_continues(
    error: BaseException, hooks: bool, new: New
) -> None:
    """The very exception is raised in the task of the stream."""

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


@pytest.mark.parametrize(
    "ending", ["END", "WRITE", "exception", "own cancel", "own cancel and exception"]
)
async def test_a_stream_has_left_when_its_task_is_rescheduled_and_that_happens_once(
    ending: str, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of `reschedule` neither the table nor the epoll knows the stream."""

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
        (end,) = task.ends  # an exception is not lost to a cancellation
        assert (type(end) is ClientGone) == ("exception" in ending)
        assert stream.pumps == 1


# Cancellation


async def test_cancelled_while_parked(new: New) -> None:
    """The stream leaves inside `cancel()` itself."""
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


async def test_cancelled_in_the_hubs_queue(one_pump_a_turn: None, new: New) -> None:
    """Streams that were found ready, and whose turn has not come, are cancelled by a task that runs
    between two turns. The hub forgets them.
    """
    async with open_bench() as bench:
        streams = [new() for _ in range(20)]
        streams[0].wants_large = streams[1].wants_large = True
        tasks = await bench.park(*streams)
        for stream in streams:
            stream.far.send(b"x")
        while not any(stream.pumps for stream in streams):
            await trio.lowlevel.checkpoint()
        waiting = [task for task in tasks if not task.stream.pumps]
        queued = [*bench.hub._light, *bench.hub._heavy]
        assert {id(task.stream) for task in waiting} == {id(parked.stream) for parked in queued}
        assert len(waiting) >= 10
        for task in waiting:
            task.scope.cancel()
        await wait_all_tasks_blocked()
        assert all(task.cancelled for task in waiting)
        assert sum(stream.pumps for stream in streams) == 20 - len(waiting)
        assert not bench.hub._light
        assert not bench.hub._heavy


@pytest.mark.parametrize("need", list(Need), ids=lambda need: need.name)
async def test_cancelled_by_its_own_pump(need: Need, new: New) -> None:
    """The pump runs to its end."""

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


async def test_cancelled_by_another_streams_pump_in_the_same_turn(new: New) -> None:
    """Two streams are ready in one turn."""

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
    """`run` was cancelled first, as at the end of a lifespan."""

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


async def test_a_descriptor_number_that_is_used_again_is_not_confused(
    one_pump_a_turn: None, new: New
) -> None:
    """A stream leaves while it is in the hub's queue."""
    async with open_bench() as bench:
        fillers = [new() for _ in range(40)]
        old = new()
        tasks = await bench.park(*fillers, old)
        number = old.fileno()
        for stream in (*fillers, old):
            stream.far.send(b"x")
        await trio.lowlevel.checkpoint()
        while not any(parked.stream is old for parked in bench.hub._light):
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
        assert any(parked.stream is old for parked in bench.hub._light), (
            "the test is too slow to prove anything"
        )
        await wait_all_tasks_blocked()
        assert [stream.pumps for stream in fillers] == [1] * 40
        assert (old.pumps, newer.pumps, task.ends) == (0, 0, [])
        newer.far.send(b"y.")
        await task.over.wait()
        assert (newer.received, newer.pumps, task.ends) == (b"y.", 1, [Need.END])


# Turns


async def test_turn_pumps_again_although_the_socket_has_nothing(new: New) -> None:
    """As with bytes inside TLS."""
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


@pytest.mark.parametrize("needs", ["READ", "TURN", "either"])
@pytest.mark.parametrize("turn_s", [-1.0, 0.0002, 60.0])
async def test_five_hundred_busy_streams_share_the_hub_and_leave_room_for_others(
    turn_s: float, needs: str, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of another task no more than two turns of the hub pass (Trio shuffles who
    runs first), each of at most 64 pumps, or one when every turn's time is up at once. Every stream
    is pumped as often as any other, up to a few; those whose bytes wait in TLS, which need no word
    from epoll, may be up to twice as often. At no such moment is a lease on loan.
    """
    monkeypatch.setattr("proxy.relay.hub.TURN_S", turn_s)
    most = leases = 0
    async with open_bench() as bench:
        await crowd.join(
            bench, 500, *((Need.READ, Need.TURN) if needs == "either" else (Need[needs],))
        )
        for stream in crowd.streams:
            stream.pumps = 0
        before = began = crowd.pumps
        while before - began < (7_500 if turn_s < 0 else 30_000):
            await trio.lowlevel.checkpoint()
            most = max(most, crowd.pumps - before)
            before = crowd.pumps
            leases = max(leases, bench.in_use())
        bench.nursery.cancel_scope.cancel()
    assert most <= 2 * (1 if turn_s < 0 else TURN_PUMPS)
    fewest, highest = (
        min(stream.pumps for stream in crowd.streams),
        max(stream.pumps for stream in crowd.streams),
    )
    assert fewest >= 10
    assert highest <= (2 * fewest if needs == "either" else 1.2 * fewest + 4)
    assert leases == 0


async def test_a_turn_ends_in_time(monkeypatch: pytest.MonkeyPatch, new: New) -> None:
    """With its own clock."""
    clock = [0.0]
    monkeypatch.setattr("proxy.relay.hub.perf_counter", lambda: clock[0])

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

        def count(wait_s: float) -> int:
            before = sum(stream.pumps for stream in streams)
            pumps = original(wait_s)
            turns.append(pumps)
            assert sum(stream.pumps for stream in streams) - before == pumps
            return pumps

        monkeypatch.setattr(bench.hub, "_turn", count)
        await wait_all_tasks_blocked()
        assert [pumps for pumps in turns if pumps] == [3] * 10
        assert [stream.pumps for stream in streams] == [1] * 30


async def test_a_heavy_stream_is_served_in_every_turn(
    monkeypatch: pytest.MonkeyPatch, new: New
) -> None:
    """Also where light streams fill each turn."""
    monkeypatch.setattr("proxy.relay.hub.perf_counter", lambda: 0.0)
    order: list[Scripted] = []

    def turn(stream: Scripted, window: bytearray, now: float) -> Need:
        order.append(stream)
        return Need.TURN if len(order) < 20 * TURN_PUMPS else Need.END

    async with open_bench() as bench:
        heavy, *light = (new(turn) for _ in range(1 + TURN_PUMPS))
        heavy.wants_large = True
        for stream in (heavy, *light):
            stream.far.send(b"x")
        for task in await bench.park(heavy, *light):
            await task.over.wait()
    assert heavy.pumps >= 15


@pytest.mark.parametrize("count", [20, 4 * TURN_PUMPS])
async def test_who_reads_little_does_not_wait_for_who_never_runs_dry(
    count: int, monkeypatch: pytest.MonkeyPatch, new: New
) -> None:
    """With its own clock."""
    clock = [0.0]
    monkeypatch.setattr("proxy.relay.hub.perf_counter", lambda: clock[0])
    order: list[Scripted] = []

    def fill(stream: Scripted, window: bytearray, now: float) -> Need:
        clock[0] += 0.0009
        order.append(stream)
        if len(order) % 7 == 3:
            light.far.send(b"x")
        return Need.READ if len(order) < 20 * count else Need.END

    def read(stream: Scripted, window: bytearray, now: float) -> Need:
        order.append(stream)
        return take(stream, window, now)

    async with open_bench() as bench:
        light, heavy = new(read), [new(fill) for _ in range(count)]
        for stream in heavy:
            stream.wants_large = True
            stream.far.send(b"x")
        tasks = await bench.park(light, *heavy)
        for task in tasks[1:]:
            await task.over.wait()
    sent = [at + 1 for at, stream in enumerate(order) if stream is not light and (at + 1) % 7 == 3]
    waits = [
        next((at for at in range(begin, len(order)) if order[at] is light), len(order)) - begin
        for begin in sent
    ]
    assert len(sent) > 30
    assert max(waits[:-1]) <= 3 * (1 + count // TURN_PUMPS), waits
    pumps = [stream.pumps for stream in heavy]
    assert max(pumps) - min(pumps) <= 4, pumps


# Contexts


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


async def test_a_stream_with_hooks_is_pumped_in_its_tasks_context(new: New) -> None:
    """Inside the pump the task's context variables are right, and what the pump sets the task finds
    afterwards.
    """
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


# Trio, beside the streams


class Watch(trio.abc.Instrument):
    """Calls a function at each step of Trio's."""

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.waits = 0
        self._look = look
        self.failure: BaseException | None = None

    def before_io_wait(self, timeout: float) -> None:
        self.waits += 1
        self._safely()

    def after_io_wait(self, timeout: float) -> None:
        self._safely()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._safely()

    def _safely(self) -> None:
        try:
            self._look()
        except BaseException as error:
            self.failure = self.failure or error


@contextmanager
def watching(look: Callable[[], None] = lambda: None) -> Iterator[Watch]:
    """Watch Trio; who was there before looks first. What fails in `look` is raised in the end."""
    watch = Watch(look)
    trio.lowlevel.add_instrument(watch)
    try:
        yield watch
    finally:
        trio.lowlevel.remove_instrument(watch)
    if watch.failure is not None:
        raise watch.failure


LOADS = {"idle": (), "saturated": (Need.READ,), "saturated inside TLS": (Need.TURN,)}


@pytest.fixture(params=LOADS)
async def loaded(request: pytest.FixtureRequest, way: str, crowd: Crowd) -> AsyncIterator[Bench]:
    """A bench with a parked stream that nothing comes for, and with 100 saturated ones if that is
    the load.
    """
    stream = Scripted()
    async with open_bench() as bench:
        await bench.park(stream)
        if LOADS[request.param]:
            await crowd.join(bench, 100, *LOADS[request.param])
        yield bench
        assert len(bench.hub) == 1 + len(crowd.streams)
    stream.close()


async def test_an_event_costs_no_pass_through_trios_loop_where_the_hub_waits_in_its_place(
    way: str, new: New
) -> None:
    """A thread sends 200 messages, each when the one before has been answered."""

    def answer(stream: Scripted, window: bytearray, now: float) -> Need:
        need = take(stream, window, now)
        stream.sock.send(b"!")
        return need

    async with open_bench() as bench:
        stream = new(answer)
        stream.far.settimeout(10)

        def talk() -> None:
            for _ in range(200):
                stream.far.send(b"x")
                assert stream.far.recv(10) == b"!"

        await bench.park(stream)
        with watching() as watch:
            await trio.to_thread.run_sync(talk)
        assert stream.received == b"x" * 200
        assert watch.waits < 20 if way == IN_PLACE else watch.waits >= 200


async def test_threads_are_heard(loaded: Bench) -> None:
    """Whatever the streams do, a thread can run something in Trio, and its own end is noticed."""

    async def half(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number // 2

    def work(number: int) -> int:
        return trio.from_thread.run_sync(abs, -trio.from_thread.run(half, number))

    for number in range(10):
        assert await trio.to_thread.run_sync(work, 2 * number) == number


async def test_signals_are_heard(loaded: Bench) -> None:
    """Sent by a thread that has nothing else to do with Trio."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        thread.start()
        assert await anext(signals) == signal.SIGUSR1
        thread.join()


def test_ctrl_c_ends_the_run(new: New) -> None:
    """While the hub waits and nothing comes, SIGINT is Trio's, and raised in its main task, which
    Trio then ends as ever.
    """
    thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
    stream = new()

    async def main() -> None:
        async with open_bench() as bench:
            await bench.park(stream)
            thread.start()
            await trio.sleep_forever()

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell may have it ignored in the background
    try:
        with pytest.raises(BaseExceptionGroup) as caught:
            trio.run(main)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, KeyboardInterrupt)


async def test_deadlines_are_kept(loaded: Bench) -> None:
    """Deadlines shorter than anything the hub waits for: past, now, and soon."""
    for seconds in (-1.0, 0.0, 1e-9, 0.0005, 0.01):
        began = trio.current_time()
        with trio.CancelScope(deadline=began + seconds) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert seconds <= trio.current_time() - began < 5


async def test_sockets_of_trios_are_served(loaded: Bench, crowd: Crowd) -> None:
    """Two tasks play ping-pong; the streams have their share meanwhile, all of them about the same."""
    ends = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()]
    pumps = crowd.pumps

    async def echo() -> None:
        async with ends[0]:
            async for data in ends[0]:
                await ends[0].send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        async with ends[1]:
            for number in range(50):
                await ends[1].send_all(b"%d" % number)
                assert await ends[1].receive_some() == b"%d" % number
    if crowd.streams:
        assert crowd.pumps - pumps >= 100
        shares = [stream.pumps for stream in crowd.streams]
        assert max(shares) <= 1.2 * min(shares) + 4


@pytest.mark.parametrize("size", [100, 1000])
async def test_a_socket_of_trios_waits_for_a_few_turns_however_many_streams_are_saturated(
    size: int, crowd: Crowd, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pump makes a socket ready that a task waits for."""
    monkeypatch.setattr("proxy.relay.hub.TURN_S", 60.0)
    other = new()
    sent_at: list[int] = []
    delays: list[int] = []

    def tell(window: bytearray, now: float) -> Need:
        crowd.pumps += 1
        if len(sent_at) == len(delays):
            sent_at.append(crowd.pumps)
            other.far.send(b"x")
        return Need.READ

    async with open_bench() as bench:
        await crowd.join(bench, size, Need.READ)
        teller = AlwaysReady(Need.READ, crowd)
        crowd.streams.append(teller)
        teller.pump = tell  # type: ignore[method-assign]
        bench.nursery.start_soon(Moved(bench.hub, teller).run)
        while len(delays) < 20:
            await trio.lowlevel.wait_readable(other.sock)
            other.sock.recv(1)
            delays.append(crowd.pumps - sent_at[-1])
    assert max(delays) <= 3 * TURN_PUMPS


async def test_a_hub_that_waits_leaves_trio_idle(new: New) -> None:
    """`wait_all_tasks_blocked` comes back while streams are parked, and not before what is readable
    has been moved.
    """
    async with open_bench() as bench:
        streams = [new() for _ in range(100)]
        await bench.park(*streams)
        for cushion_s in (0.0, 0.001):
            for stream in streams:
                stream.far.send(b"x")
            await wait_all_tasks_blocked(cushion_s)
            assert {stream.received for stream in streams} == {b"x"}
            for stream in streams:
                stream.received = b""


async def test_a_clock_that_jumps_jumps_while_streams_are_parked(
    autojump_clock: MockClock, new: New
) -> None:
    """And not before what is readable has been moved: it is pumped at the old time."""
    times: list[float] = []

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        times.append(now)
        return take(stream, window, now)

    async with open_bench() as bench:
        stream = new(pump)
        await bench.park(stream)
        for number in range(3):
            assert trio.current_time() == 3.0 * number
            stream.far.send(b"x")
            await trio.sleep(3.0)
        assert [int(time // 3) for time in times] == [0, 1, 2]


class WatchedEpoll:
    """The hub's epoll, with a look at things before each wait."""

    def __init__(self, epoll: Any, look: Callable[[], None]) -> None:
        self._epoll = epoll
        self._look = look

    def poll(self, wait_s: float, most: int) -> Any:
        self._look()
        return self._epoll.poll(wait_s, most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


async def test_a_turn_borrows_one_window_of_each_size_and_returns_it(new: New) -> None:
    """No window is on loan when the hub waits, when Trio does, or when any task runs."""
    in_pumps: Counter[int] = Counter()
    windows: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    async with open_bench() as bench:

        def pump(stream: Scripted, window: bytearray, now: float) -> Need:
            in_pumps[bench.in_use()] += 1
            windows[stream.wants_large].append((id(window), len(window)))
            need = take(stream, window, now)
            if stream.pumps == 3:
                trio.lowlevel.spawn_system_task(trio.lowlevel.checkpoint)
            return Need.TURN if stream.pumps % 2 and need is Need.READ else need

        def look() -> None:
            assert bench.in_use() == 0

        streams = [new(pump) for _ in range(6)]
        for stream in streams[:3]:
            stream.wants_large = True
        tasks = await bench.park(*streams)
        bench.hub._epoll = WatchedEpoll(bench.hub._epoll, look)  # type: ignore[assignment]
        with watching(look):
            for data in (b"one", b"two", b"three", b"four."):
                for stream in streams:
                    stream.far.send(data)
                await wait_all_tasks_blocked()
        assert all(task.ends == [Need.END] for task in tasks)
        assert set(in_pumps) == {1, 2}
        for large, pool in ((True, bench.pools.http_response), (False, bench.pools.sse_event)):
            assert {size for _, size in windows[large]} == {pool.size}
            assert len(set(windows[large])) == pool.statistics().high_water == 1


# What a pump does to other tasks


@pytest.mark.parametrize(
    "how",
    [
        "sets an event",
        "sends into a channel",
        "starts a task",
        "cancels",
        "makes a deadline one of the past",
        "makes a deadline earlier",
        "calls in through the token",
    ],
)
async def test_what_a_hook_does_to_another_task_happens_at_once(how: str, new: New) -> None:
    """A task waits forever, and so would Trio."""
    awaited, over = trio.Event(), trio.Event()
    sender, receiver = trio.open_memory_channel[None](1)
    scope, limiter = trio.CancelScope(deadline=trio.current_time() + 3600), trio.CapacityLimiter(1)

    async def wait() -> None:
        with scope, receiver:
            await (receiver.receive() if how == "sends into a channel" else awaited.wait())
        over.set()

    async def set_it() -> None:
        awaited.set()

    def hook(stream: Scripted, window: bytearray, now: float) -> Need:
        limiter.acquire_nowait()  # asks for the running task, as locks do
        limiter.release()
        trio.current_effective_deadline()
        if how == "sets an event":
            awaited.set()
        elif how == "sends into a channel":
            sender.send_nowait(None)
        elif how == "starts a task":
            bench.nursery.start_soon(set_it)
        elif how == "cancels":
            scope.cancel()
        elif how == "makes a deadline one of the past":
            scope.deadline = now - 1
        elif how == "makes a deadline earlier":
            scope.deadline = now + 0.01
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(awaited.set)
        return take(stream, window, now)

    async with open_bench() as bench:
        stream = new(hook)
        stream.runs_hooks = True
        (task,) = await bench.park(stream)
        bench.nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        stream.far.send(b"x")
        await over.wait()
        assert trio.current_time() - began < 5
        assert (stream.received, task.ends, len(bench.hub)) == (b"x", [], 1)
        sender.close()


async def test_a_hook_that_cancels_who_waits_for_a_ready_socket(new: New) -> None:
    """One turn finds a stream and a socket of Trio's ready."""
    other = new()
    scope, over = trio.CancelScope(), trio.Event()

    async def wait() -> None:
        with scope:
            await trio.lowlevel.wait_readable(other.sock)
        over.set()

    def hook(stream: Scripted, window: bytearray, now: float) -> Need:
        scope.cancel()
        return take(stream, window, now)

    async with open_bench() as bench:
        stream = new(hook)
        stream.runs_hooks = True
        (task,) = await bench.park(stream)
        bench.nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        other.far.send(b"x")
        stream.far.send(b"x")
        await over.wait()
        stream.far.send(b"y.")
        await task.over.wait()
        assert (stream.received, task.ends) == (b"xy.", [Need.END])


async def test_a_connection_that_another_worker_accepts_holds_nothing_up(new: New) -> None:
    """Workers share their listening sockets."""
    stream = new()
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def accept() -> None:
            if not accepted:
                with suppress(BlockingIOError):
                    accepted.append(listener.accept()[0])
                    stream.far.send(b"x.")

        async with open_bench() as bench:
            bench.nursery.start_soon(trio.lowlevel.wait_readable, listener)
            (task,) = await bench.park(stream)
            watch = Watch()
            watch.before_io_wait = lambda timeout: accept()  # type: ignore[method-assign]
            trio.lowlevel.add_instrument(watch)
            try:
                with socket.create_connection(listener.getsockname()):
                    await task.over.wait()
            finally:
                trio.lowlevel.remove_instrument(watch)
        (connection,) = accepted
        connection.close()


# The hub's own life


def around_trio() -> tuple[dict[str, list[Any]], set[str]]:
    """Who watches Trio's loop, and what is on its epoll."""
    runner = trio_run.GLOBAL_RUN_CONTEXT.runner
    with open(f"/proc/self/fdinfo/{runner.io_manager._epoll.fileno()}") as lines:
        return {name: list(found) for name, found in runner.instruments.items()}, {
            line.split()[1] for line in lines if line.startswith("tfd:")
        }


async def test_a_hub_that_is_cancelled_leaves_trio_as_it_was(new: New) -> None:
    """Streams are parked, and stay so."""
    before = around_trio()
    for _ in range(3):
        async with open_bench() as bench:
            assert around_trio() != before
            streams = [new() for _ in range(3)]
            tasks = await bench.park(*streams)
            streams[0].far.send(b"x")
            await wait_all_tasks_blocked()
            bench.hub_scope.cancel()
            await bench.hub_over.wait()
            assert around_trio() == before
            streams[1].far.send(b"x")
            await trio.to_thread.run_sync(abs, 1)
            await trio.sleep(0.001)
            await wait_all_tasks_blocked()
            assert [task.ends for task in tasks] == [[], [], []]
            assert [stream.pumps for stream in streams] == [1, 0, 0]
            assert len(bench.hub) == 3
            assert bench.in_use() == 0
        assert all(task.cancelled for task in tasks)
    assert around_trio() == before


async def test_two_hubs_share_one_run(way: str, new: New) -> None:
    """One waits in Trio's place, the other as a task."""

    async def moves(bench: Bench) -> None:
        stream = new()
        (task,) = await bench.park(stream)
        stream.far.send(b"x.")
        await task.over.wait()
        assert (stream.received, task.ends) == (b"x.", [Need.END])

    async with open_bench(way) as one:
        async with open_bench(AS_TASK) as two:
            idle = [new(), new()]
            await one.park(idle[0])
            await two.park(idle[1])
            for bench in (one, two, one, two):
                await moves(bench)
        await moves(one)
        async with open_bench(AS_TASK) as two:
            one.hub_scope.cancel()
            await one.hub_over.wait()
            await moves(two)
            async with open_bench(way) as three:
                await moves(three)
                await moves(two)


@pytest.mark.parametrize(
    "error", [OSError(9, "Bad file descriptor"), Odd()], ids=lambda error: type(error).__name__
)
async def test_an_exception_of_the_hub_itself_ends_its_run_with_it(
    error: BaseException, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised out of `run`, once, and blames no stream."""
    before = around_trio()

    def fail(wait_s: float) -> int:
        raise error

    async with open_bench() as bench:
        stream = new()
        (task,) = await bench.park(stream)
        monkeypatch.setattr(bench.hub, "_turn", fail)
        stream.far.send(b"x")
        await bench.hub_over.wait()
        assert bench.hub_error is error
        bench.hub_error = None
        assert around_trio() == before
        await wait_all_tasks_blocked()
        assert (stream.pumps, task.ends, bench.in_use()) == (0, [], 0)
        task.scope.cancel()
        await task.over.wait()
        assert task.cancelled
        assert len(bench.hub) == 0


async def test_a_window_that_cannot_be_borrowed_is_the_streams_trouble(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for a window one stream fails, and the hub lives on."""
    async with open_bench() as bench:
        one, two = new(), new()
        tasks = await bench.park(one, two)

        def acquire(pool: BufferPool) -> Any:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(BufferPool, "acquire", acquire)
            one.far.send(b"x")
            await tasks[0].over.wait()
        assert [type(end) for end in tasks[0].ends] == [MemoryError]
        two.far.send(b"x.")
        await tasks[1].over.wait()
        assert tasks[1].ends == [Need.END]


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

    def write(self, parts: Sequence[Part]) -> bool:
        if len(self.received) >= self._leaves_after:
            raise ClientGone
        self.received += b"".join(parts)
        return True

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        data = b"".join(unchunked(b"".join(message)))
        assert len(data) == size
        return self.write([data])


class Shouting(Interceptor):
    """Changes every event, and fails at one that states it."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _ShoutingStream()


class _ShoutingStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        if event.data == "fail":
            raise ValueError("told to")
        return event.replace(data=event.data.upper())


@pytest.fixture
def unlogged() -> Iterator[None]:
    """Lines with rendered tracebacks take longer than all the rest."""
    with structlog.testing.capture_logs():
        yield


async def test_relays_of_all_kinds_of_fate_share_a_hub(unlogged: None) -> None:
    """100 relays at once."""
    dice = random.Random(5)
    ends: dict[int, object] = {}
    expected: dict[int, tuple[type, bytes]] = {}
    sinks: dict[int, Sink] = {}

    async def relay(bench: Bench, number: int, near: socket.socket, chained: bool) -> None:
        body = UpstreamBody(
            NoPool(),  # type: ignore[arg-type]
            Connection(Origin("http", "up.test", 80), near),
            Chunked(),
            b"",
            True,
        )
        async with bench.pools.open_scope() as scope:
            chain = (
                Chain([("s", Shouting())]).open_stream(Request(), bench.pools.json, scope, 1 << 20)
                if chained
                else None
            )
            try:
                moved = open_relay(body, sinks[number], chain, bench.pools, scope, sse=True)  # type: ignore[arg-type]
                await Mover(moved, bench.hub, idle_s=9, flush=flush_of(moved.writer, 9)).run()
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
                out = b"".join(
                    b"data: %s\n\n" % (text.upper() if chained else text) for text in texts
                )
                sinks[number] = Sink(300 if fate == "client leaves" else float("inf"))
                if fate == "completes":
                    expected[number], data = (type(None), out), data + b"0\r\n\r\n"
                elif fate == "is cut":
                    expected[number] = (Truncated, out)
                elif fate == "client leaves":
                    expected[number] = (ClientGone, out)
                else:
                    expected[number], data = (
                        (HookError, out),
                        data + b"c\r\ndata: fail\n\n\r\n1\r\nx\r\n",
                    )
                near, far = socket.socketpair()
                near.setblocking(False)
                far.setblocking(False)
                nursery.start_soon(relay, bench, number, near, chained)
                nursery.start_soon(feed, far, data)
        for number, (end, out) in expected.items():
            assert ends[number] is end, number
            received = sinks[number].received
            assert (
                received == out
                if end is not ClientGone
                else out.startswith(received) and 300 <= len(received) < len(out)
            )
        assert bench.in_use() == 0
        assert len(bench.hub) == 0
    gc.collect()
