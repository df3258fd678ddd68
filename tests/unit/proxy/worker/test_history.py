"""The last 15 minutes: steps of one worker, and of several added up."""

from __future__ import annotations

import pytest

from interceptors import Outcome
from pools import Pools
from proxy.server.totals import history_of, quantile
from proxy.worker.history import LENGTH, Counts, History, PoolStep, Step
from proxy.worker.tally import RouteTally, new_memory


class Clocks:
    """The wall clock and the monotonic one, from the start of a step."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    for module in ("proxy.worker.history", "proxy.server.totals"):
        monkeypatch.setattr(f"{module}.time", clocks)
    return clocks


def test_steps_have_what_happened_in_them(clocks: Clocks) -> None:
    """Missed steps have nothing, and a clock that is set back begins anew."""
    memory = new_memory()
    tally = RouteTally(memory, "/")
    history = History(Pools(), {"/": tally})

    def end(after: int, exchanges: int) -> None:
        for _ in range(exchanges):
            tally.account(Outcome.UPSTREAM_ERROR, None, 0.3)
        clocks.now += 5 * after
        history.note(int(clocks.now / 5))

    end(1, 3)
    end(3, 4)
    found = [(step.number - 200_000, step.counts.exchanges) for step in history.steps]
    assert found == [(1, 3), (2, 0), (3, 0), (4, 4)]
    assert history.steps[0].counts.times["first_byte"][6] == 3
    clocks.now += 3
    tally.account(Outcome.COMPLETED, None, 0.3)
    seconds, recent, minute = history.latest()
    assert (seconds, recent.exchanges, recent.failures) == (3, 1, 0)
    assert (minute.exchanges, minute.failures) == (8, 7)
    end(-100, 0)
    assert len(history.steps) == 1
    end(LENGTH * 3, 2)
    assert (len(history.steps), history.steps[-1].counts.exchanges) == (LENGTH, 2)


def step(number: int, streams: int, exchanges: int) -> Step:
    pools = [PoolStep(1, 2, allocations=1, reuses=3)] * 3
    return Step(200_000 + number, streams, Counts(exchanges=exchanges), pools)


def test_steps_of_workers_are_added_up(clocks: Clocks) -> None:
    """To the last step that all have ended; a worker that is silent or new does not count there."""
    clocks.now += 25
    old = [step(number, 2, 10) for number in range(1, 6)]
    new = [step(number, 1, 5) for number in range(3, 5)]
    silent = [step(number, 9, 90) for number in range(-20, -9)]
    found = history_of([old, new, silent])
    assert found["end"] == 1_000_020
    assert found["streams"] == [2, 2, 3, 3]
    assert found["exchanges"] == [2, 2, 3, 3]
    assert found["first_byte"]["p95"] == [None] * 4
    assert found["pools"]["json"] == {
        "in_use": [1, 1, 2, 2],
        "idle": [2, 2, 4, 4],
        "reuse_rate": [0.75] * 4,
        "discards": [0] * 4,
    }
    assert history_of([[], []])["streams"] == []


def test_quantiles_are_linear_within_a_bucket() -> None:
    """As PromQL's `histogram_quantile`."""
    counts = [0, 0, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]  # 0.01 to 0.025, to 0.05, above 120
    found = [quantile("first_byte", counts, share) for share in (0.2, 0.4, 0.6, 0.95)]
    assert found == [0.0175, 0.025, 0.0375, 120.0]
    assert quantile("first_byte", [], 0.5) is None
