"""What we know of Trio's insides. When an installed Trio has changed,
`test_the_installed_trio_is_known` fails.

The hub works then as before, only slower: see to it that `proxy/hub/loop.py` knows that Trio, too.
How the loop is used: `test_hub.py`.
"""

from __future__ import annotations

import importlib.util
import queue
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import outcome
import pytest
import trio
from support.tables import words
from trio._core import _run as trio_run
from trio.testing import MockClock, wait_all_tasks_blocked

import proxy.hub.loop
from proxy.hub.loop import TrioLoop, trio_loop

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")


def known() -> TrioLoop:
    """The running loop, which must be known."""
    loop = trio_loop()
    assert loop is not None, f"proxy/hub/loop.py does not know Trio {trio.__version__}"
    return loop


def is_ready(loop: TrioLoop) -> bool:
    """Whether a wait for Trio's epoll would end at once."""
    return bool(select.select([loop.fd], [], [], 0)[0])


async def test_the_installed_trio_is_known() -> None:
    """Its descriptor shows what threads and `wake` do; what can run, deadlines and waits for idleness
    are as they are now.
    """
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
    for _ in range(1000):
        loop.wake()
    assert is_ready(loop)
    await wait_all_tasks_blocked()  # however many there were, they are one
    assert not is_ready(loop)
    assert not loop.wants_idle
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_all_tasks_blocked)
        assert len(loop.runnable) == 1
        while not loop.wants_idle:
            await trio.lowlevel.checkpoint()
    assert not loop.wants_idle
    now = trio.current_time()
    assert loop.next_deadline() == float("inf")
    with trio.CancelScope(deadline=now + 300) as outer, trio.CancelScope(deadline=now + 200):
        assert loop.next_deadline() == now + 200
        outer.deadline = now + 100
        assert loop.next_deadline() == now + 100
    assert loop.next_deadline() == float("inf")


async def test_a_clock_that_jumps_wants_idle(autojump_clock: MockClock) -> None:
    loop = known()
    assert loop.wants_idle
    autojump_clock.autojump_threshold = float("inf")
    assert not loop.wants_idle


async def test_a_function_runs_as_a_task_that_waits_only_while_it_runs() -> None:
    loop, task = known(), trio.lowlevel.current_task()
    seen: list[object] = []

    class RunAs(trio.abc.Instrument):
        def before_io_wait(self, timeout: float) -> None:
            during, after = loop.run_as(task, trio.lowlevel.current_task), "none"
            with suppress(RuntimeError):
                after = repr(trio.lowlevel.current_task())
            seen.append((during, after))

    instrument = RunAs()
    trio.lowlevel.add_instrument(instrument)
    await wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(instrument)
    assert seen
    assert set(seen) == {(task, "none")}


# Where it is not as we know it


def test_outside_of_trio_there_is_no_loop() -> None:
    assert trio_loop() is None


def test_guest_mode_is_not_known() -> None:
    """There Trio's waits are in another thread, and the host's loop must not be held up."""
    todo: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
    results: list[outcome.Outcome[Any]] = []

    async def main() -> None:
        assert trio_loop() is None
        await trio.sleep(0.001)  # a wait in the other thread
        assert trio_loop() is None

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=todo.put, done_callback=results.append
    )
    while not results:
        todo.get(timeout=10)()
    results[0].unwrap()


NAMES = words(
    "deadlines runq waiting_for_idle clock_autojump_threshold is_guest io_manager task_exited"
    " instruments"
)
ABSENT, NO_WAKEUP = "absent", "an epoll, but no wakeup"
UNKNOWN = [
    *((name, ABSENT) for name in NAMES),
    *(("is_guest", True), ("runq", []), ("runq", None), ("deadlines", None)),
    ("deadlines", SimpleNamespace(next_deadline=3.0)),
    ("instruments", SimpleNamespace(call=print)),
    *(("io_manager", None), ("io_manager", SimpleNamespace(_epoll=7)), ("io_manager", NO_WAKEUP)),
]


@pytest.mark.parametrize(("name", "value"), UNKNOWN, ids=str)
async def test_a_runner_that_differs_is_not_known(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any attribute that is absent or of another kind; the real ones are enough."""
    real = trio_run.GLOBAL_RUN_CONTEXT.runner
    runner = SimpleNamespace(**{each: getattr(real, each) for each in NAMES})
    context = SimpleNamespace(GLOBAL_RUN_CONTEXT=SimpleNamespace(runner=runner))
    monkeypatch.setattr("proxy.hub.loop.trio_run", context)
    known()
    if value is ABSENT:
        delattr(runner, name)
    elif value is NO_WAKEUP:
        runner.io_manager = SimpleNamespace(_epoll=real.io_manager._epoll)
    else:
        setattr(runner, name, value)
    assert trio_loop() is None


@pytest.mark.parametrize(
    "module", [SimpleNamespace(), SimpleNamespace(GLOBAL_RUN_CONTEXT=SimpleNamespace())]
)
async def test_without_a_runner_or_epoll_no_loop_is_known(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr("select.epoll")
        assert trio_loop() is None
    monkeypatch.setattr("proxy.hub.loop.trio_run", module)
    assert trio_loop() is None


def test_a_trio_without_that_module_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name shows that it may be gone in another Trio."""
    spec = importlib.util.spec_from_file_location("loop_again", proxy.hub.loop.__file__)
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
