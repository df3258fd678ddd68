"""What a worker has done in the last 15 minutes, in steps of 5 seconds, for `/status`.

Steps begin at whole multiples of 5 s of the wall clock, so that those of several workers and
machines agree. A step costs one pass over the live exchanges. It knows nothing of pages.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import msgspec
import trio

from interceptors import Outcome
from pools import Pools

from ..relay.gaps import GAP_BOUNDS
from .genai import FIRST_TOKEN_BOUNDS
from .tally import BUCKETS, DURATION_BOUNDS, RouteTally

__all__ = ["FAILURES", "LENGTH", "STEP_S", "TIMES", "Counts", "History", "PoolStep", "Step"]

STEP_S = 5.0
LENGTH = 180
"""Steps that are kept."""
_FROM_UPSTREAM = ("passed", "changed", "dropped")
_WINDOW = 12
"""Steps that the times in `/status` are about."""
_LEAST_S = 2.5
"""Rates are those of at least so many seconds."""

FAILURES = (Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_TIMEOUT, Outcome.INTERNAL_ERROR)
"""Outcomes that are counted as failures: those of the upstream, and of the proxy."""


TIMES: dict[str, Sequence[float]] = {
    "first_byte": BUCKETS,
    "first_token": FIRST_TOKEN_BOUNDS,
    "duration": DURATION_BOUNDS,
    "between_events": GAP_BOUNDS,
}
"""The bounds of the buckets of each time, in seconds."""


class PoolStep(msgspec.Struct, array_like=True):
    """One pool: buffers at the end of a step, and what happened to them in it."""

    in_use: int = 0
    idle: int = 0
    allocations: int = 0
    reuses: int = 0
    discards: int = 0


class Counts(msgspec.Struct, array_like=True):
    """What has happened, in a step or so far."""

    exchanges: int = 0
    """Exchanges that have ended."""
    failures: int = 0
    events: int = 0
    """Events that came from upstreams, of streams that interceptors see."""
    bytes: int = 0
    """Body bytes to clients."""
    times: dict[str, list[int]] = {}
    """Values by bucket, of each name in `TIMES`; a time without values is absent."""

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.exchanges - other.exchanges,
            self.failures - other.failures,
            self.events - other.events,
            self.bytes - other.bytes,
            {
                name: [one - two for one, two in zip(counts, before, strict=True)]
                if (before := other.times.get(name))
                else counts
                for name, counts in self.times.items()
            },
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.exchanges + other.exchanges,
            self.failures + other.failures,
            self.events + other.events,
            self.bytes + other.bytes,
            {
                name: [sum(pair) for pair in zip(*found, strict=True)]
                for name in TIMES
                if (found := [side.times[name] for side in (self, other) if name in side.times])
            },
        )


class Step(msgspec.Struct, array_like=True):
    """One step of one worker."""

    number: int
    """Wall clock at its end, in steps since 1970."""
    streams: int
    """Open exchanges at its end."""
    counts: Counts
    pools: list[PoolStep]
    """In the order of `pools.POOL_NAMES`."""


class History:
    """The last steps of one worker."""

    def __init__(
        self,
        pools: Pools,
        routes: Mapping[str, RouteTally],
        first_tokens: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        """`routes`: all tallies of the worker, now and later. `first_tokens`: calls by bucket."""
        self._pools = pools
        self._routes = routes
        self._first_tokens = first_tokens
        self.steps: deque[Step] = deque(maxlen=LENGTH)
        """Oldest first."""
        now, counts = time.monotonic(), self.counts()
        self._marks = deque([(now, counts)], maxlen=2)  # of the ends of steps
        self._number = int(time.time() / STEP_S)
        self._used = self._pools.statistics()

    def counts(self) -> Counts:
        """Everything so far."""
        total = Counts()
        for tally in self._routes.values():
            moved = tally.moved()
            total.bytes += moved["downstream"]
            total.events += sum(moved[action] for action in _FROM_UPSTREAM)
            for outcome in Outcome:
                ended = int(tally.exchanges(outcome))
                total.exchanges += ended
                if outcome in FAILURES:
                    total.failures += ended
        tallies = list(self._routes.values())
        measured: dict[str, list[Sequence[float]]] = {
            "first_byte": [tally.first_bytes.read()[0] for tally in tallies],
            "first_token": [self._first_tokens()],
            "duration": [tally.durations.read()[0] for tally in tallies],
            "between_events": [tally.gaps.read()[0] for tally in tallies],
        }
        for name, found in measured.items():
            counts = [int(sum(bucket)) for bucket in zip(*found, strict=True)]
            if any(counts):
                total.times[name] = counts
        return total

    def latest(self) -> tuple[float, Counts, Counts]:
        """Seconds, at least `_LEAST_S` once the worker is that old, what happened in them, and what
        happened in the last minute.
        """
        now, counts = time.monotonic(), self.counts()
        at, before = next(
            (mark for mark in reversed(self._marks) if now - mark[0] >= _LEAST_S), self._marks[0]
        )
        minute = counts - self._marks[-1][1]
        for step in islice(reversed(self.steps), _WINDOW):
            minute += step.counts
        return now - at, counts - before, minute

    def note(self, number: int) -> None:
        """End the step before `number`."""
        if number == self._number:
            return
        if number < self._number:  # the clock was set back
            self.steps.clear()
            self._number = number - 1
        counts, used = self.counts(), self._pools.statistics()
        pools = [
            PoolStep(
                new.in_use,
                new.current_size,
                new.allocations - old.allocations,
                new.reuses - old.reuses,
                new.discards - old.discards,
            )
            for old, new in zip(self._used, used, strict=True)
        ]
        streams = sum(len(tally.live) for tally in self._routes.values())
        # A busy worker can miss steps: nothing is counted in them.
        for skipped in range(max(number - LENGTH, self._number + 1), number):
            idle = [PoolStep(item.in_use, item.idle) for item in pools]
            self.steps.append(Step(skipped, streams, Counts(), idle))
        self.steps.append(Step(number, streams, counts - self._marks[-1][1], pools))
        self._marks.append((time.monotonic(), counts))
        self._number, self._used = number, used

    async def run(self) -> None:
        """Note each step until cancelled."""
        while True:
            await trio.sleep(STEP_S - time.time() % STEP_S)
            self.note(round(time.time() / STEP_S))
