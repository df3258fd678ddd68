"""What the admin pages make of the other workers: their states, and questions that clients cause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from interceptors import Outcome
from proxy.config import single_upstream
from proxy.server import pages
from proxy.server.pages import Pages
from proxy.worker.counters import State
from proxy.worker.families import encode
from proxy.worker.tally import RouteTally, new_memory
from proxy.worker.worker import Worker

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
STARTING, READY, DRAINING, GONE = State
DONE = b'weirpool_exchanges_total{outcome="completed",route="/"} '


def worker_of_two(other: State = READY) -> Worker:
    worker = Worker(single_upstream("http://127.0.0.1:9"))
    worker.memories = [worker.memory, new_memory()]
    for memory, state in zip(worker.memories, (READY, other), strict=True):
        memory.state = state
        memory.seen()
    return worker


@pytest.mark.parametrize(
    ("states", "stopping", "ready"),
    [
        ((READY, READY), False, True),
        ((READY, STARTING), False, False),
        ((READY, GONE), False, True),
        ((DRAINING, READY), False, True),
        ((DRAINING, DRAINING), False, False),
        ((READY, READY), True, False),
    ],
)
def test_all_workers_decide_on_readiness(
    states: tuple[State, State], stopping: bool, ready: bool
) -> None:
    worker = worker_of_two()
    for memory, state in zip(worker.memories, states, strict=True):
        memory.state = state
    if stopping:
        worker.memories[1].stop()
    assert Pages(worker).ready() is ready


class Siblings:
    """Answers as worker 1 once `go` is set."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[set[int]] = []
        self.go = trio.Event()
        self.part_of: Any = None

    async def parts(self, page: str, others: Iterable[int]) -> dict[int, bytes]:
        self.asked.append(set(others))
        await self.go.wait()
        return dict.fromkeys(others, self.answer)


async def test_many_requests_ask_at_most_twice(autojump_clock: trio.testing.MockClock) -> None:
    """One question is under way, and one that answers all who came after it; one that is cancelled
    leaves its place to the next.
    """
    worker = worker_of_two()
    worker.siblings = siblings = Siblings(b"")  # type: ignore[assignment]
    of_all = Pages(worker)
    siblings.answer = siblings.part_of("metrics")
    found: list[bytes] = []

    async def request() -> None:
        found.append((await of_all.metrics("", by_worker=False))[0])

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await request()
        for count in (1, 9):
            for _ in range(count):
                nursery.start_soon(request)
            await trio.testing.wait_all_tasks_blocked()
        siblings.go.set()
    assert (len(found), siblings.asked) == (10, [{1}] * 3)
    assert all(b'weirpool_worker_up{worker="1"} 1.0' in text for text in found)


@pytest.mark.parametrize(
    ("state", "silent_s", "asked"),
    [(READY, 9.0, [{1}]), (READY, -1.0, [set()]), (GONE, 9.0, [set()])],
)
async def test_a_worker_without_a_whole_answer_still_counts(
    state: State, silent_s: float, asked: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed while it answered; or it is silent or gone, and not asked."""
    monkeypatch.setattr(pages, "_SILENT_S", silent_s)
    worker = worker_of_two(state)
    RouteTally(worker.memories[1], "/").account(Outcome.COMPLETED, None, None)
    worker.siblings = siblings = Siblings(encode(worker.metrics.families())[:-1])  # type: ignore[assignment]
    siblings.go.set()
    text, _ = await Pages(worker).metrics("", by_worker=False)
    assert DONE + b"1.0\n" in text
    assert b'weirpool_worker_up{worker="1"} 0.0' in text
    assert siblings.asked == asked


@pytest.mark.parametrize("alone", [True, False])
async def test_streams_run_while_a_page_of_metrics_is_made(*, alone: bool) -> None:
    """Thousands of series take longer to render than an event may wait."""
    worker, turns = worker_of_two(), 0
    if not alone:
        worker.siblings = siblings = Siblings(encode(worker.metrics.families()))  # type: ignore[assignment]
        siblings.go.set()

    async def stream() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream)
        text, _ = await Pages(worker).metrics(OPEN_METRICS, by_worker=False)
        nursery.cancel_scope.cancel()
    families = list(text_string_to_metric_families(text.decode()))
    assert "weirpool_exchanges" in [family.name for family in families]
    assert turns >= len(families)
