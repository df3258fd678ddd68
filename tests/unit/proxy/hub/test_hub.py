"""The hub: every invariant of its module's head, with scripted streams on real sockets.

Each test runs in both ways of waiting, in Trio's place and as a task. A scripted stream answers each
pump with what the test tells it to. What is on the hub's epoll is read from the kernel.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import pytest
import trio
from trio._core import _run as trio_run
from trio.testing import wait_all_tasks_blocked

import proxy.hub.hub
from pools import Pools
from proxy.errors import ClientGone, ReadFailed
from proxy.hub.hub import TURN_PUMPS, Hub
from proxy.hub.loop import trio_loop
from proxy.relay import Need
from proxy.upstream.connection import Connection
from proxy.upstream.origin import Origin

pytestmark = pytest.mark.skipif(not Hub.available(), reason="no epoll here")

IN_PLACE, AS_TASK = "in Trio's place", "as a task"


@pytest.fixture(params=[IN_PLACE, AS_TASK], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the hub waits."""
    if request.param == AS_TASK:
        monkeypatch.setattr("proxy.hub.hub.trio_loop", lambda: None)
    return str(request.param)


CONTEXT: ContextVar[str] = ContextVar("CONTEXT", default="another")
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

    runs_hooks = False

    def __init__(
        self,
        pump: Pump = take,
        pair: tuple[socket.socket, socket.socket] | None = None,
        large: bool = False,
    ) -> None:
        self.sock, self.far = pair or socket.socketpair()
        self.sock.setblocking(False)
        self.wants_large = large
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
        self.context = ""
        stream.task = self

    async def run(self) -> None:
        CONTEXT.set("the stream's")
        try:
            with self.scope:
                try:
                    self.ends.append(await self.hub.move(self.stream))
                except BaseException as error:
                    self.ends.append(error)
                    if isinstance(error, trio.Cancelled):
                        raise
        finally:
            self.context = CONTEXT.get()
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
        try:
            with self.hub_scope:
                await self.hub.run()
        except (Exception, Odd) as error:
            self.hub_error = error
        finally:
            self.hub_over.set()

    async def park(self, *streams: Any) -> list[Moved]:
        """Move streams, each in its own task; returns when all are parked."""
        tasks = [Moved(self.hub, stream) for stream in streams]
        for task in tasks:
            self.nursery.start_soon(task.run)
        await wait_all_tasks_blocked()
        return tasks

    def registered(self) -> set[int]:
        """The streams' descriptors on the hub's epoll, from the kernel."""
        return _on_epoll(self.hub._epoll) - {self.hub._trio_fd}

    def in_use(self) -> int:
        return sum(item.in_use for item in self.pools.statistics())


def _on_epoll(epoll: Any) -> set[int]:
    with open(f"/proc/self/fdinfo/{epoll.fileno()}") as lines:
        return {int(line.split()[1]) for line in lines if line.startswith("tfd:")}


@asynccontextmanager
async def open_bench(way: str | None = None) -> AsyncIterator[Bench]:
    """Ten seconds for a test."""
    if way is None:
        way = IN_PLACE if proxy.hub.hub.trio_loop is trio_loop else AS_TASK
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            nursery.start_soon(bench.run_hub)
            await wait_all_tasks_blocked()
            assert (bench.hub._trio_fd >= 0) is (way == IN_PLACE)
            yield bench
            nursery.cancel_scope.cancel()
    assert len(bench.hub) == 0
    assert bench.hub_error is None


New = Callable[..., Scripted]


@pytest.fixture
def new() -> Iterator[New]:
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
    """The rest of the ready streams waits in the hub's queue."""
    monkeypatch.setattr("proxy.hub.hub.TURN_S", -1.0)


class Clock:
    """The hub's clock: it passes 0.9 ms for each slow pump."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("proxy.hub.hub.perf_counter", clock)
    return clock


class Crowd:
    """Streams that are always ready, as what comes is not read, with one count of their pumps."""

    def __init__(self, new: New) -> None:
        self.streams: list[Scripted] = []
        self.pumps = 0
        self.on_pump: Callable[[], None] = lambda: None
        self._new = new

    def pump(self, need: Need) -> Need:
        self.pumps += 1
        self.on_pump()
        return need

    async def join(self, bench: Bench, count: int, *needs: Need) -> None:
        """Park so many streams, which need these by turns. Returns when all are parked."""
        expected = len(bench.hub) + count
        for index in range(count):
            need = needs[index % len(needs)]
            self.streams.append(self._new(lambda *_, need=need: self.pump(need)))
            self.streams[-1].far.send(b"x")
            bench.nursery.start_soon(Moved(bench.hub, self.streams[-1]).run)
        while len(bench.hub) < expected:
            await trio.lowlevel.checkpoint()


@pytest.fixture
def crowd(new: New) -> Crowd:
    return Crowd(new)


# Streams move


@pytest.mark.parametrize("how", ["closed", "half closed", "shut down here", "reset", "a last byte"])
async def test_a_readable_stream_is_pumped(how: str, new: New) -> None:
    """Once for what came. A reset is the stream's error."""
    async with open_bench() as bench:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        stream = new(pair=(near, far))
        (task,) = await bench.park(stream)
        assert (stream.pumps, len(bench.hub), bench.registered()) == (0, 1, {stream.fileno()})
        far.send(b"one ")
        await wait_all_tasks_blocked()
        assert (stream.pumps, stream.received, task.ends) == (1, b"one ", [])
        if how == "a last byte":
            far.send(b".")
        elif how == "closed":
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
        assert (len(bench.hub), bench.registered()) == (0, set())


async def test_a_closed_socket_cannot_be_moved(new: New) -> None:
    async with open_bench() as bench:
        closed = new()
        closed.close()
        (task,) = await bench.park(closed)
        assert [type(end) for end in task.ends] == [ReadFailed]


# Exceptions


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("error", [ClientGone(), trio.WouldBlock(), MemoryError(), Odd()], ids=repr)
async def test_an_exception_out_of_a_pump_is_that_streams_and_the_hub_continues(
    error: BaseException, hooks: bool, new: New
) -> None:
    def fail(stream: Scripted, window: bytearray, now: float) -> Need:
        raise error

    async with open_bench() as bench:
        before, bad, after = new(), new(fail), new()
        bad.runs_hooks = hooks
        tasks = await bench.park(before, bad, after)
        for stream in (before, bad, after):
            stream.far.send(b"x")
        await wait_all_tasks_blocked()
        assert tasks[1].ends[0] is error
        assert (before.received, bad.pumps, after.received) == (b"x", 1, b"x")
        assert bench.registered() == {before.fileno(), after.fileno()}
        assert bench.in_use() == 0
        before.far.send(b"y.")
        await tasks[0].over.wait()


@pytest.mark.parametrize("need", [*Need, "exception"])
@pytest.mark.parametrize("cancels", [False, True])
async def test_a_stream_has_left_when_its_task_is_rescheduled_and_that_happens_once(
    need: Any, cancels: bool, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the table nor the epoll knows it then. A pump that cancels its own task runs to its
    end, and its exception is not lost.
    """

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        assert stream.task is not None
        if cancels:
            stream.task.scope.cancel()
        stream.received = stream.sock.recv(1)
        if need == "exception":
            raise ClientGone
        return need

    if not cancels and need in (Need.READ, Need.TURN):
        pytest.skip("the stream stays")
    async with open_bench() as bench:
        stream = new(pump)
        woken: list[tuple[int, set[int]]] = []
        original = trio.lowlevel.reschedule

        def spy(task: trio.lowlevel.Task, *args: Any) -> None:
            if "Moved.run" in task.name:
                woken.append((len(bench.hub), bench.registered()))
            original(task, *args)

        (task,) = await bench.park(stream)
        monkeypatch.setattr(trio.lowlevel, "reschedule", spy)
        stream.far.send(b"x")
        await task.over.wait()
        await wait_all_tasks_blocked()
        assert woken == [(0, set())]
        assert (stream.pumps, stream.received) == (1, b"x")
        if need == "exception":
            assert [type(end) for end in task.ends] == [ClientGone]
        else:
            assert task.cancelled if cancels else task.ends == [need]


# Cancellation


async def test_a_parked_stream_is_cancelled_by_a_task_or_by_another_streams_pump(new: New) -> None:
    """It leaves inside `cancel()` itself, also when both are ready in one turn."""

    def cancel_the_other(stream: Scripted, window: bytearray, now: float) -> Need:
        (other,) = {one, two} - {stream}
        assert other.task is not None
        other.task.scope.cancel()
        return take(stream, window, now)

    async with open_bench() as bench:
        one, two, three = new(cancel_the_other), new(cancel_the_other), new()
        *tasks, task = await bench.park(one, two, three)
        task.scope.cancel()
        assert (len(bench.hub), bench.registered()) == (2, {one.fileno(), two.fileno()})
        for stream in (one, two, three):
            stream.far.send(b"x")
        await wait_all_tasks_blocked()
        assert (task.cancelled, three.pumps, one.pumps + two.pumps) == (True, 0, 1)
        first, second = tasks if one.pumps else reversed(tasks)
        assert (first.ends, second.cancelled) == ([], True)
        assert bench.registered() == {first.stream.fileno()}


async def test_cancelled_in_the_hubs_queue(one_pump_a_turn: None, new: New) -> None:
    """By a task that runs between two turns: the hub forgets them."""
    async with open_bench() as bench:
        streams = [new(large=number < 2) for number in range(20)]
        tasks = await bench.park(*streams)
        for stream in streams:
            stream.far.send(b"x")
        while not any(stream.pumps for stream in streams):
            await trio.lowlevel.checkpoint()
        waiting = [task for task in tasks if not task.stream.pumps]
        assert len(waiting) >= 10
        for task in waiting:
            task.scope.cancel()
        await wait_all_tasks_blocked()
        assert all(task.cancelled for task in waiting)
        assert sum(stream.pumps for stream in streams) == 20 - len(waiting)
        assert not [*bench.hub._light, *bench.hub._heavy]


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
        assert (len(bench.hub), queued.pumps) == (0, 1)


async def test_a_reused_descriptor_is_not_confused(one_pump_a_turn: None, new: New) -> None:
    """A stream leaves while it is in the hub's queue."""
    async with open_bench() as bench:
        fillers, old = [new() for _ in range(40)], new()
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
        task = Moved(bench.hub, newer)
        bench.nursery.start_soon(task.run)
        while number not in bench.registered():
            await trio.lowlevel.checkpoint()
        assert any(parked.stream is old for parked in bench.hub._light), "the test is too slow"
        await wait_all_tasks_blocked()
        assert [stream.pumps for stream in fillers] == [1] * 40
        assert (old.pumps, newer.pumps, task.ends) == (0, 0, [])
        newer.far.send(b"y.")
        await task.over.wait()
        assert (newer.received, newer.pumps, task.ends) == (b"y.", 1, [Need.END])


# Turns


@pytest.mark.parametrize(
    ("turn_s", "needs"),
    [(-1.0, [Need.READ]), (0.0002, [Need.TURN]), (60.0, [Need.READ, Need.TURN])],
)
async def test_many_busy_streams_share_the_hub_and_leave_room_for_others(
    turn_s: float, needs: list[Need], crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of another task no more than two turns of the hub pass (Trio shuffles which
    runs first), each of at most 64 pumps, or one when every turn's time is up at once. Every stream
    is pumped as often as any other, up to a few; those whose bytes wait in TLS may be up to twice
    as often. At no such moment is a lease on loan.
    """
    monkeypatch.setattr("proxy.hub.hub.TURN_S", turn_s)
    most = 0
    async with open_bench() as bench:
        await crowd.join(bench, 150, *needs)
        for stream in crowd.streams:
            stream.pumps = 0
        before = began = crowd.pumps
        while before - began < (2_000 if turn_s < 0 else 6_000):
            await trio.lowlevel.checkpoint()
            most = max(most, crowd.pumps - before)
            before = crowd.pumps
            assert bench.in_use() == 0
        bench.nursery.cancel_scope.cancel()
    assert most <= 2 * (1 if turn_s < 0 else TURN_PUMPS)
    pumps = sorted(stream.pumps for stream in crowd.streams)
    assert pumps[0] >= 10
    assert pumps[-1] <= (2 * pumps[0] if len(needs) == 2 else 1.2 * pumps[0] + 4)


async def test_turn_pumps_again_although_the_socket_has_nothing(new: New) -> None:
    """As with bytes inside TLS."""

    def pump(stream: Scripted, window: bytearray, now: float) -> Need:
        stream.received += b"" if stream.pumps > 1 else stream.sock.recv(1)
        return Need.TURN if stream.pumps < 50 else Need.WRITE

    async with open_bench() as bench:
        streams = [new(pump), new(pump)]
        tasks = await bench.park(*streams)
        for stream in streams:
            stream.far.send(b"x")
        for task in tasks:
            await task.over.wait()
            assert (task.ends, task.stream.pumps) == ([Need.WRITE], 50)


async def test_a_heavy_stream_is_served_in_every_turn(clock: Clock, new: New) -> None:
    """Also where light streams fill each turn."""
    order: list[Scripted] = []

    def turn(stream: Scripted, window: bytearray, now: float) -> Need:
        order.append(stream)
        return Need.TURN if len(order) < 20 * TURN_PUMPS else Need.END

    async with open_bench() as bench:
        streams = [new(turn, large=number == 0) for number in range(1 + TURN_PUMPS)]
        for stream in streams:
            stream.far.send(b"x")
        for task in await bench.park(*streams):
            await task.over.wait()
    assert streams[0].pumps >= 15


@pytest.mark.parametrize("count", [20, 4 * TURN_PUMPS])
async def test_a_light_stream_has_its_turn(count: int, clock: Clock, new: New) -> None:
    """A turn borrows one window of each size."""
    order: list[Scripted] = []

    def fill(stream: Scripted, window: bytearray, now: float) -> Need:
        assert (len(window), bench.in_use()) in ((16384, 1), (16384, 2))
        clock.now += 0.0009
        order.append(stream)
        if len(order) % 7 == 3:
            light.far.send(b"x")
        return Need.READ if len(order) < 10 * count else Need.END

    def read(stream: Scripted, window: bytearray, now: float) -> Need:
        order.append(stream)
        return take(stream, window, now)

    async with open_bench() as bench:
        light, heavy = new(read), [new(fill, large=True) for _ in range(count)]
        for stream in heavy:
            stream.far.send(b"x")
        tasks = await bench.park(light, *heavy)
        for task in tasks[1:]:
            await task.over.wait()
        assert [pool.statistics().high_water for pool in bench.pools] == [1, 1, 0]
    sent = [at + 1 for at, stream in enumerate(order) if stream is not light and (at + 1) % 7 == 3]
    assert len(sent) > 20
    most = 3 * (1 + count // TURN_PUMPS)
    for at in sent[:-1]:
        assert light in order[at : at + most + 1]
    pumps = [stream.pumps for stream in heavy]
    assert max(pumps) - min(pumps) <= 4, pumps


# Trio, beside the streams


class Watch(trio.abc.Instrument):
    """Counts Trio's waits, and calls a function before each."""

    def __init__(self, look: Callable[[], None] = lambda: None) -> None:
        self.waits = 0
        self._look = look

    def before_io_wait(self, timeout: float) -> None:
        self.waits += 1
        self._look()


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    trio.lowlevel.add_instrument(watch)
    yield watch
    trio.lowlevel.remove_instrument(watch)


async def test_an_event_costs_no_pass_of_trios_loop(way: str, new: New) -> None:
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
        with watching(Watch()) as watch:
            await trio.to_thread.run_sync(talk)
        assert stream.received == b"x" * 200
        assert watch.waits < 20 if way == IN_PLACE else watch.waits >= 200


@pytest.mark.parametrize("needs", [[], [Need.READ], [Need.TURN]], ids=["idle", "busy", "TLS"])
async def test_trio_works_as_ever(needs: list[Need], crowd: Crowd, new: New) -> None:
    """Threads, signals, deadlines shorter than anything the hub waits for, and sockets; while the
    streams have their share.
    """

    def work(number: int) -> int:
        return trio.from_thread.run_sync(abs, -number)

    async with open_bench() as bench:
        await bench.park(new())
        if needs:
            await crowd.join(bench, 100, *needs)
        for number in range(5):
            assert await trio.to_thread.run_sync(work, number) == number
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
            thread.start()
            assert await anext(signals) == signal.SIGUSR1
            thread.join()
        for seconds in (-1.0, 0.0, 1e-9, 0.0005, 0.01):
            began = trio.current_time()
            with trio.CancelScope(deadline=began + seconds):
                await trio.sleep_forever()
            assert seconds <= trio.current_time() - began < 5
        ends = [
            trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair()
        ]
        pumps = crowd.pumps

        async def echo() -> None:
            async with ends[0]:
                async for data in ends[0]:
                    await ends[0].send_all(data)

        bench.nursery.start_soon(echo)
        async with ends[1]:
            for number in range(50):
                await ends[1].send_all(b"%d" % number)
                assert await ends[1].receive_some() == b"%d" % number
        if needs:
            assert crowd.pumps - pumps >= 100
            shares = sorted(stream.pumps for stream in crowd.streams)
            assert shares[-1] <= 1.2 * shares[0] + 4
        assert len(bench.hub) == 1 + len(crowd.streams)


async def test_a_socket_of_trios_waits_for_a_few_turns_however_many_streams_are_saturated(
    crowd: Crowd, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pump makes a socket ready that a task waits for."""
    monkeypatch.setattr("proxy.hub.hub.TURN_S", 60.0)
    other = new()
    sent_at: list[int] = []
    delays: list[int] = []

    def send() -> None:
        if len(sent_at) == len(delays):
            sent_at.append(crowd.pumps)
            other.far.send(b"x")

    async with open_bench() as bench:
        await crowd.join(bench, 400, Need.READ)
        crowd.on_pump = send
        while len(delays) < 20:
            await trio.lowlevel.wait_readable(other.sock)
            other.sock.recv(1)
            delays.append(crowd.pumps - sent_at[-1])
        crowd.on_pump = lambda: None
    assert max(delays) <= 3 * TURN_PUMPS


async def test_trio_is_idle_when_what_is_readable_has_been_moved(new: New) -> None:
    """`wait_all_tasks_blocked` comes back while streams are parked."""
    async with open_bench() as bench:
        streams = [new() for _ in range(100)]
        await bench.park(*streams)
        for cushion_s, received in ((0.0, b"x"), (0.001, b"xx")):
            for stream in streams:
                stream.far.send(b"x")
            await wait_all_tasks_blocked(cushion_s)
            assert {stream.received for stream in streams} == {received}


# What a pump does to other tasks


EFFECTS: dict[str, Callable[[Any, float], object]] = {
    "sets an event": lambda rig, now: rig.awaited.set(),
    "starts a task": lambda rig, now: rig.nursery.start_soon(rig.set),
    "cancels": lambda rig, now: rig.scope.cancel(),
    "makes a deadline one of the past": lambda rig, now: setattr(rig.scope, "deadline", now - 1),
    "makes a deadline earlier": lambda rig, now: setattr(rig.scope, "deadline", now + 0.01),
    "calls in through the token": lambda rig, now: rig.token.run_sync_soon(rig.awaited.set),
}


class Waiting:
    """A task that waits forever, for an event or a socket, and so would Trio."""

    def __init__(self, nursery: trio.Nursery, sock: socket.socket | None) -> None:
        self.nursery = nursery
        self.awaited = trio.Event()
        self.over = trio.Event()
        self.scope = trio.CancelScope(deadline=trio.current_time() + 3600)
        self.token = trio.lowlevel.current_trio_token()
        self._sock = sock

    async def set(self) -> None:
        self.awaited.set()

    async def run(self) -> None:
        with self.scope:
            await (trio.lowlevel.wait_readable(self._sock) if self._sock else self.awaited.wait())
        self.over.set()


@pytest.mark.parametrize("how", [*EFFECTS, "cancels a wait for a ready socket"])
async def test_what_a_hook_does_to_another_task_happens_at_once(how: str, new: New) -> None:
    """A hook runs in its task's context."""

    def hook(stream: Scripted, window: bytearray, now: float) -> Need:
        if not stream.received:
            assert CONTEXT.get() == "the stream's"
            CONTEXT.set("the hook's")
        limiter.acquire_nowait()  # asks for the running task, as locks do
        limiter.release()
        trio.current_effective_deadline()
        EFFECTS.get(how, EFFECTS["cancels"])(waiting, now)
        return take(stream, window, now)

    async with open_bench() as bench:
        limiter, stream, other = trio.CapacityLimiter(1), new(hook), new()
        waiting = Waiting(bench.nursery, None if how in EFFECTS else other.sock)
        stream.runs_hooks = True
        (task,) = await bench.park(stream)
        bench.nursery.start_soon(waiting.run)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        other.far.send(b"x")
        stream.far.send(b"x")
        await waiting.over.wait()
        assert trio.current_time() - began < 5
        assert (stream.received, task.ends, len(bench.hub)) == (b"x", [], 1)
        stream.far.send(b".")
        await task.over.wait()
        assert (task.ends, task.context, CONTEXT.get()) == ([Need.END], "the hook's", "another")


async def test_a_connection_that_another_worker_accepts_holds_nothing_up(new: New) -> None:
    """Workers share their listening sockets."""
    stream = new()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def accept() -> None:
            with suppress(BlockingIOError):
                listener.accept()[0].close()
                stream.far.send(b"x.")

        async with open_bench() as bench:
            bench.nursery.start_soon(trio.lowlevel.wait_readable, listener)
            (task,) = await bench.park(stream)
            with watching(Watch(accept)), socket.create_connection(listener.getsockname()):
                await task.over.wait()


# The hub's own life


def around_trio() -> tuple[dict[str, list[Any]], set[int]]:
    """What watches Trio's loop, and what is on its epoll."""
    runner = trio_run.GLOBAL_RUN_CONTEXT.runner
    instruments = {name: list(found) for name, found in runner.instruments.items()}
    return instruments, _on_epoll(runner.io_manager._epoll)


@pytest.mark.parametrize("error", [None, OSError(9, "Bad file descriptor"), Odd()], ids=repr)
async def test_a_hub_that_is_cancelled_or_fails_leaves_trio_as_it_was(
    error: BaseException | None, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams stay parked. An exception is raised out of `run`, and blames no stream."""
    before = around_trio()

    def fail(wait_s: float) -> int:
        assert error is not None
        raise error

    for _ in range(2):
        async with open_bench() as bench:
            assert around_trio() != before
            streams = [new(), new()]
            tasks = await bench.park(*streams)
            if error is None:
                bench.hub_scope.cancel()
            else:
                monkeypatch.setattr(bench.hub, "_turn", fail)
                streams[0].far.send(b"x")
            await bench.hub_over.wait()
            streams[1].far.send(b"x")
            assert bench.hub_error is error
            bench.hub_error = None
            assert around_trio() == before
            await trio.to_thread.run_sync(abs, 1)
            await wait_all_tasks_blocked()
            assert [task.ends for task in tasks] == [[], []]
            assert [stream.pumps for stream in streams] == [0, 0]
            assert (len(bench.hub), bench.in_use()) == (2, 0)
        assert all(task.cancelled for task in tasks)


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
            await one.park(new())
            await two.park(new())
            for bench in (one, two, one, two):
                await moves(bench)
            one.hub_scope.cancel()
            await one.hub_over.wait()
            await moves(two)
            async with open_bench(way) as three:
                await moves(three)
                await moves(two)
