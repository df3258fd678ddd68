"""The timer of idle client connections: when it closes a connection, and when not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.downstream.hypercorn.idle import IdleTimer


class Server:
    """What the timer knows of a connection."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.config = SimpleNamespace(keep_alive_timeout=75.0)
        self.context = SimpleNamespace(terminated=trio.Event())
        self.group: Any = SimpleNamespace(spawn=nursery.start_soon)
        self.timer = IdleTimer(self)  # type: ignore[arg-type]
        self.closed_at: float | None = None

    async def idle(self) -> None:
        await self.timer.restart(self.group, trio.sleep_forever)

    async def _initiate_server_close(self) -> None:
        self.closed_at = trio.current_time()


@pytest.mark.parametrize("request_s", [0.0, 0.5, 1000.0])
async def test_an_idle_connection_is_closed_in_time(
    request_s: float, autojump_clock: MockClock
) -> None:
    """`keep_alive_timeout` after the end of the last request, which is never cut; after a second no
    task is left under it. A task that had no turn yet counts.
    """
    async with trio.open_nursery() as nursery:
        server, began = Server(nursery), trio.current_time()
        for _ in range(3):
            await server.idle()
            await trio.sleep(70 if request_s else 0)
            await server.timer.stop()
            await trio.sleep(request_s)
            assert len(nursery.child_tasks) == (request_s < 1)
        assert server.closed_at is None
        await server.idle()
    idle_s = 3 * 70 if request_s else 0
    assert server.closed_at == began + idle_s + 3 * request_s + 75


async def test_the_servers_end_closes_idle_connections_only(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        idle, busy = Server(nursery), Server(nursery)
        for server in (idle, busy):
            await server.idle()
        await wait_all_tasks_blocked()
        await busy.timer.stop()
        for server in (idle, busy):
            server.context.terminated.set()
    assert (idle.closed_at is None, busy.closed_at is None) == (False, True)


@pytest.mark.parametrize("has_run", [True, False])
async def test_when_the_client_has_closed_there_is_nothing_to_wait_for(
    has_run: bool, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        server, began = Server(nursery), trio.current_time()
        await server.idle()
        if has_run:
            await wait_all_tasks_blocked()
        server.timer.end()
        await wait_all_tasks_blocked()
        await server.idle()
        assert not nursery.child_tasks
    assert (trio.current_time(), server.closed_at) == (began, None)
