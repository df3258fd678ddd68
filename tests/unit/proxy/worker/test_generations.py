"""Generations: who is current, who is over, what is left and closed and when, without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from interceptors import Interceptor
from proxy.config import Config, parse_config
from proxy.config import Store as StoreSettings
from proxy.errors import ConfigError
from proxy.worker.generations import Generations
from proxy.worker.stores import Stores

DIARY: list[str] = []


class Noting(Interceptor):
    def __init__(self, mark: str, seconds: float = 0, stubborn: bool = False) -> None:
        """`stubborn`: what it waits for cannot be cancelled, like a thread."""
        self.mark = mark
        self.seconds = seconds
        self.stubborn = stubborn

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        with trio.CancelScope(shield=self.stubborn):
            await trio.sleep(self.seconds)
        DIARY.append(f"{self.mark} entered")
        try:
            yield
        finally:
            DIARY.append(f"{self.mark} left")


@pytest.fixture(autouse=True)
def empty_diary() -> None:
    DIARY.clear()


def configured(
    mark: str, seconds: float = 0, upstream: str = "http://a", stubborn: bool = False
) -> Config:
    options = f'{{mark: "{mark}", seconds: {seconds}, stubborn: {str(stubborn).lower()}}}'
    return parse_config(
        f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream}"]}}]
  routes: [{{path: /, upstream: up}}]
interceptors: [{{name: noting, use: "{__name__}:Noting", options: {options}}}]
"""
    )


@pytest.fixture
async def generations(nursery: trio.Nursery) -> Generations:
    """With a first generation that has started."""
    generations = Generations(configured("1"), Stores(StoreSettings()).of)
    await generations.start(nursery)
    return generations


def open_exchange(generations: Generations) -> Any:
    """An exchange of the current generation."""
    exchange = object()
    generations.current.live.add(exchange)  # type: ignore[arg-type]
    return exchange


async def test_a_superseded_one_ends_with_its_exchanges(generations: Generations) -> None:
    """Three at once, each left when its own exchange ends, in whichever order; the current one only
    by `aclose`.
    """
    first = open_exchange(generations)
    await generations.replace(configured("2"))
    second = open_exchange(generations)
    await generations.replace(configured("3"))
    assert len(generations) == 3
    assert DIARY == ["1 entered", "2 entered", "3 entered"]
    generations.leave(second)
    await trio.testing.wait_all_tasks_blocked()
    generations.leave(first)
    await trio.testing.wait_all_tasks_blocked()
    assert DIARY[3:] == ["2 left", "1 left"]
    assert len(generations) == 1
    await generations.aclose()
    assert DIARY[5:] == ["3 left"]


async def test_a_transport_ends_with_its_last_generation(generations: Generations) -> None:
    first = generations.current.routes.transports["up"]
    await generations.replace(configured("2"))
    assert generations.current.routes.transports["up"] is first
    exchange = open_exchange(generations)
    await generations.replace(configured("3", upstream="http://b"))
    assert generations.current.routes.transports["up"] is not first
    await trio.testing.wait_all_tasks_blocked()
    assert first in generations._maintained
    generations.leave(exchange)
    await trio.testing.wait_all_tasks_blocked()
    assert list(generations._maintained) == [generations.current.routes.transports["up"]]
    await generations.aclose()
    assert generations._maintained == {}


async def test_a_lifespan_that_is_never_entered_changes_nothing(
    generations: Generations, autojump_clock: object
) -> None:
    """After a minute the attempt ends with an error, and what was current is."""
    current = generations.current
    with pytest.raises(ConfigError, match="not entered within 60 s"):
        await generations.replace(configured("2", seconds=1000))
    assert generations.current is current
    assert len(generations) == 1
    await generations.aclose()
    assert DIARY == ["1 entered", "1 left"]


async def test_a_lifespan_that_is_entered_too_late_is_left_at_once(
    generations: Generations, autojump_clock: object
) -> None:
    """It is no longer awaited: nothing of its generation stays, and the end does not wait."""
    with pytest.raises(ConfigError, match="were not entered within 60 s"):
        await generations.replace(configured("2", seconds=90, stubborn=True))
    assert len(generations) == 1
    began = trio.current_time()
    await generations.aclose()
    assert trio.current_time() == began
    assert DIARY == ["1 entered", "2 entered", "2 left", "1 left"]


async def test_what_is_entered_while_all_is_closed_is_left_at_once(
    generations: Generations, nursery: trio.Nursery, autojump_clock: object
) -> None:
    """And it never becomes current, nor are its upstreams looked after."""

    async def replace() -> None:
        with pytest.raises(ConfigError, match="this worker is ending"):
            await generations.replace(configured("2", seconds=5))

    nursery.start_soon(replace)
    await trio.testing.wait_all_tasks_blocked()
    await generations.aclose()
    await trio.sleep(6)
    assert DIARY == ["1 entered", "1 left", "2 entered", "2 left"]


async def test_an_exchange_without_a_lifespan_is_forgotten_too() -> None:
    """Under a server that has no lifespans nothing starts; what comes and goes is not kept."""
    generations = Generations(configured("1"), Stores(StoreSettings()).of)
    generations.leave(open_exchange(generations))
    assert not generations.current.live
    assert not generations.current.over.is_set()
