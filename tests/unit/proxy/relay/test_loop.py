"""What we know of Trio's insides. When an installed Trio has changed,
`test_the_installed_trio_is_known` fails.

The hub works then as before, only slower: see to it that `proxy/loop.py` knows that Trio, too.
"""

from __future__ import annotations

import importlib.util
import queue
import select
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import trio
from trio._core import _run as trio_run
from trio.testing import MockClock, wait_all_tasks_blocked

import proxy.relay.loop
from proxy.relay.loop import TrioLoop, trio_loop

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")


def known() -> TrioLoop:
    """The running loop, which must be known."""
    loop = trio_loop()
    assert loop is not None, f"proxy/loop.py does not know Trio {trio.__version__}"
    return loop


def is_ready(loop: TrioLoop) -> bool:
    """Whether a wait for Trio's epoll would end at once."""
    return bool(select.select([loop.fd], [], [], 0)[0])


async def test_the_installed_trio_is_known() -> None:
    """With the Trio that is installed, the hub can wait in its place."""
    known()


# What it reports


async def test_the_descriptor_is_ready_when_a_socket_is() -> None:
    """Of a socket that a task waits for; not before, and not after."""
    loop = known()
    near, far = socket.socketpair()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, near)
            await wait_all_tasks_blocked()
            assert not is_ready(loop)
            far.send(b"x")
            assert is_ready(loop)
        await wait_all_tasks_blocked()
        assert not is_ready(loop)


async def test_the_descriptor_is_ready_when_a_thread_calls() -> None:
    """Called in from outside while this thread does not run Trio."""
    loop, token, called = known(), trio.lowlevel.current_trio_token(), trio.Event()
    await wait_all_tasks_blocked()
    assert not is_ready(loop)
    thread = threading.Thread(target=token.run_sync_soon, args=(called.set,))
    thread.start()
    thread.join()
    assert is_ready(loop)
    await called.wait()
    await wait_all_tasks_blocked()
    assert not is_ready(loop)


async def test_runnable_are_the_tasks_that_can_run() -> None:
    """Those that an event has woken and that are new are there at once, and are there no longer
    when they have run.
    """
    loop, event = known(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(event.wait)
        await wait_all_tasks_blocked()
        assert not loop.runnable
        event.set()
        assert len(loop.runnable) == 1
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert len(loop.runnable) == 2
    await wait_all_tasks_blocked()
    assert not loop.runnable


async def test_the_next_deadline_is_the_earliest() -> None:
    """Of the scopes that are open, as they are now."""
    loop, now = known(), trio.current_time()
    assert loop.next_deadline() == float("inf")
    with trio.CancelScope(deadline=now + 300) as outer:
        assert loop.next_deadline() == now + 300
        with trio.CancelScope(deadline=now + 200):
            assert loop.next_deadline() == now + 200
            outer.deadline = now + 100
            assert loop.next_deadline() == now + 100
        outer.deadline = now + 400
        assert loop.next_deadline() == now + 400
    assert loop.next_deadline() == float("inf")


async def test_somebody_wants_idle_while_a_task_waits_for_the_others_to_be_blocked() -> None:
    """`wait_all_tasks_blocked` in another task, and only as long as it waits."""
    loop = known()
    assert not loop.wants_idle
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_all_tasks_blocked)
        while not loop.wants_idle:
            await trio.lowlevel.checkpoint()
    assert not loop.wants_idle


async def test_a_clock_that_jumps_wants_idle(autojump_clock: MockClock) -> None:
    """As long as it jumps."""
    loop = known()
    assert loop.wants_idle
    autojump_clock.autojump_threshold = float("inf")
    assert not loop.wants_idle


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


async def test_a_function_can_be_run_as_a_task_that_waits() -> None:
    """Where no task runs, before Trio waits."""
    loop, over = known(), trio.Event()
    waiting: list[trio.lowlevel.Task] = []
    seen: list[object] = []

    async def wait() -> None:
        WHO.set("anna")
        waiting.append(trio.lowlevel.current_task())
        await over.wait()
        seen.append(WHO.get())

    def look(number: int) -> int:
        seen.append((trio.lowlevel.current_task(), WHO.get()))
        WHO.set("anna!")
        return 10 // number

    class RunAs(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            if len(seen) < 2:
                seen.append(loop.run_as(waiting[0], look, 2))
                with suppress(ZeroDivisionError):
                    loop.run_as(waiting[0], look, 0)
                with suppress(RuntimeError):
                    seen.append(trio.lowlevel.current_task())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            me = trio.lowlevel.current_task()
            instrument = RunAs()
            trio.lowlevel.add_instrument(instrument)
            await trio.lowlevel.checkpoint()
            trio.lowlevel.remove_instrument(instrument)
            assert trio.lowlevel.current_task() is me
            over.set()
    assert seen == [(waiting[0], "anna"), 5, (waiting[0], "anna!"), "anna!"]
    assert WHO.get() == "nobody"


# Waking


class Waker(trio.abc.Instrument):
    """Before each of Trio's first waits that would last: wakes it. Then ends them with an event."""

    def __init__(self, wake: Callable[[], None], woken: trio.Event) -> None:
        self.waits: list[float] = []
        self._wake = wake
        self._woken = woken

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 1:
            self.waits.append(timeout)
            if len(self.waits) == 3:
                self._woken.set()
            self._wake()


@pytest.mark.parametrize("who", ["this thread", "another thread"])
async def test_wake_ends_a_wait(who: str) -> None:
    """Just before it, three times; Trio then waits as long as ever."""
    loop, woken = known(), trio.Event()

    def wake() -> None:
        if who == "this thread":
            loop.wake()
        else:
            thread = threading.Thread(target=loop.wake)
            thread.start()
            thread.join()

    waker = Waker(wake, woken)
    with trio.fail_after(10):
        began = trio.current_time()
        trio.lowlevel.add_instrument(waker)
        await woken.wait()
        trio.lowlevel.remove_instrument(waker)
        assert trio.current_time() - began < 5
    assert len(waker.waits) == 3


async def test_wakes_are_not_kept() -> None:
    """However many there were, they are one, and gone when Trio has seen it."""
    loop = known()
    await wait_all_tasks_blocked()
    for _ in range(1000):
        loop.wake()
    assert is_ready(loop)
    await wait_all_tasks_blocked()
    assert not is_ready(loop)


# Where it is not as we know it


def test_outside_of_trio_there_is_no_loop() -> None:
    assert trio_loop() is None


def test_guest_mode_is_not_known() -> None:
    """There Trio's waits are in another thread, and the host's loop must not be held up."""
    todo: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    results: list[outcome.Outcome[Any]] = []
    found: list[TrioLoop | None] = []

    async def main() -> None:
        found.append(trio_loop())
        await trio.sleep(0.001)  # a wait in the other thread
        found.append(trio_loop())

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=todo.put, done_callback=results.append
    )
    while not results:
        todo.get(timeout=10)()
    results[0].unwrap()
    assert found == [None, None]


class Runner(SimpleNamespace):
    """The attributes of Trio's runner that the hub uses, with their real values."""

    NAMES = (
        *("deadlines", "runq", "waiting_for_idle"),
        *("clock_autojump_threshold", "is_guest", "io_manager"),
    )

    @classmethod
    def copy(cls) -> Runner:
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        return cls(**{name: getattr(runner, name) for name in cls.NAMES})


def put(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `proxy.relay.loop` find this runner."""
    monkeypatch.setattr(
        "proxy.relay.loop.trio_run",
        SimpleNamespace(GLOBAL_RUN_CONTEXT=SimpleNamespace(runner=runner)),
    )


ABSENT = "absent"
UNKNOWN = [
    *((name, ABSENT) for name in Runner.NAMES),
    *(("is_guest", True), ("runq", []), ("runq", None), ("deadlines", None)),
    ("deadlines", SimpleNamespace(next_deadline=3.0)),
    *(("io_manager", None), ("io_manager", SimpleNamespace(_epoll=7))),
    ("io_manager", "an epoll, but no wakeup"),
]


@pytest.mark.parametrize(("name", "value"), UNKNOWN, ids=str)
async def test_a_runner_that_differs_is_not_known(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any attribute that is absent or of another kind; the real ones are enough."""
    runner = Runner.copy()
    put(runner, monkeypatch)
    known()
    if value is ABSENT:
        delattr(runner, name)
    elif value == "an epoll, but no wakeup":
        runner.io_manager = SimpleNamespace(_epoll=runner.io_manager._epoll)
    else:
        setattr(runner, name, value)
    assert trio_loop() is None


@pytest.mark.parametrize(
    "module", [SimpleNamespace(), SimpleNamespace(GLOBAL_RUN_CONTEXT=SimpleNamespace())]
)
async def test_without_a_runner_no_loop_is_known(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.relay.loop.trio_run", module)
    assert trio_loop() is None


async def test_without_epoll_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a platform that has none."""
    monkeypatch.delattr("select.epoll")
    assert trio_loop() is None


def test_a_trio_without_that_module_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name shows that it may be gone in another Trio."""
    spec = importlib.util.spec_from_file_location("loop_again", proxy.relay.loop.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.delattr("trio._core._run")
        patch.setitem(sys.modules, "trio._core._run", None)
        spec.loader.exec_module(again)

    async def main() -> None:
        assert again.trio_loop() is None

    trio.run(main)
