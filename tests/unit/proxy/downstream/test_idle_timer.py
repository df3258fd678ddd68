"""The timer of idle client connections, which lasts through short requests: when it closes a
connection, and when not.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.downstream.hypercorn.idle import IdleTimer


class Server:
    """What the timer knows of a connection."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.config = SimpleNamespace(keep_alive_timeout=75.0)
        self.context = SimpleNamespace(terminated=trio.Event())
        self.group = SimpleNamespace(spawn=nursery.start_soon)
        self.timer = IdleTimer(self)  # type: ignore[arg-type]
        self.closed_at: float | None = None

    async def idle(self) -> None:
        await self.timer.restart(self.group, never)  # type: ignore[arg-type]

    async def busy(self) -> None:
        await self.timer.stop()

    async def _initiate_server_close(self) -> None:
        self.closed_at = trio.current_time()


async def never() -> Any:
    raise AssertionError("Hypercorn's own way of waiting is not taken")


async def test_an_idle_connection_is_closed_in_time(autojump_clock: MockClock) -> None:
    """After `keep_alive_timeout`, counted from the end of the last request."""
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        began = trio.current_time()
        for _ in range(3):
            await server.idle()
            await trio.sleep(70)
            await server.busy()
            await trio.sleep(0.5)
        await server.idle()
    assert server.closed_at == began + 3 * 70.5 + 75


async def test_a_request_is_never_cut(autojump_clock: MockClock) -> None:
    """However long it takes; after a second, no task of the timer's is left under it."""
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        await server.idle()
        await trio.sleep(1)
        await server.busy()
        await trio.sleep(1.5)
        assert not nursery.child_tasks
        await trio.sleep(1000)
        assert server.closed_at is None
        await server.idle()
        began = trio.current_time()
    assert server.closed_at == began + 75


async def test_the_servers_end_closes_who_is_idle(autojump_clock: MockClock) -> None:
    """And leaves who is busy to finish."""
    async with trio.open_nursery() as nursery:
        idle, busy = Server(nursery), Server(nursery)
        for server in (idle, busy):
            await server.idle()
        await wait_all_tasks_blocked()
        await busy.busy()
        for server in (idle, busy):
            server.context.terminated.set()
    assert idle.closed_at is not None
    assert busy.closed_at is None


async def test_a_task_that_had_no_turn_yet_counts(autojump_clock: MockClock) -> None:
    """Idle, busy and idle again before the timer's task has begun."""
    async with trio.open_nursery() as nursery:
        server = Server(nursery)
        await server.idle()
        await server.busy()
        await server.idle()
        assert len(nursery.child_tasks) == 1
        began = trio.current_time()
    assert server.closed_at == began + 75


async def test_when_the_client_has_closed_there_is_nothing_to_wait_for(
    autojump_clock: MockClock,
) -> None:
    """The task ends at once."""
    for has_run in (True, False):
        async with trio.open_nursery() as nursery:
            server = Server(nursery)
            began = trio.current_time()
            await server.idle()
            if has_run:
                await wait_all_tasks_blocked()
            server.timer.end()
            await wait_all_tasks_blocked()
            await server.idle()
            assert not nursery.child_tasks
        assert trio.current_time() == began
        assert server.closed_at is None
