"""What a route has served: its counters, and its live exchanges.

The counters live in the cells of a `CounterMemory`. An exchange is in `live` from `begin` to `end`,
and `account` counts its outcome.
"""

from __future__ import annotations

from interceptors import Outcome

from ..relay.gaps import GAP_BOUNDS, EventGaps
from .counters import CounterMemory
from .histograms import CellHistogram, cells_of
from .live import LiveExchange

__all__ = [
    "ACTIONS",
    "BUCKETS",
    "DIRECTIONS",
    "DURATION_BOUNDS",
    "REFUSALS",
    "RouteTally",
    "new_memory",
]

ACTIONS = ("passed", "changed", "dropped", "added")
DIRECTIONS = ("downstream", "upstream")
REFUSALS = (
    "too_many_streams",
    "too_many_client_streams",
    "too_many_bodies",
    "upstream_connections_exhausted",
    "out_of_resources",
    "no_endpoint",
    "session_gone",
)
"""Reasons for refusing a valid request: the error types of the answers."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Upper bounds of the time to the first byte, in seconds; one more bucket has no bound."""
DURATION_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Upper bounds of an exchange's duration, in seconds."""

_MOVED = (*DIRECTIONS, *ACTIONS)
# The cells of a route's block:
_BEGUN = 0
_OUTCOMES = {outcome: 1 + number for number, outcome in enumerate(Outcome)}
_REFUSALS = {reason: 1 + len(Outcome) + number for number, reason in enumerate(REFUSALS)}
_FIRST_BYTE = 1 + len(Outcome) + len(REFUSALS)
_FIRST_MOVED = _FIRST_BYTE + cells_of(BUCKETS)
_DURATION = _FIRST_MOVED + len(_MOVED)
_GAPS = _DURATION + cells_of(DURATION_BOUNDS)
_BLOCK = _GAPS + cells_of(GAP_BOUNDS)


def new_memory(most_published: int = 1 << 22) -> CounterMemory:
    """Make the memory for one worker's counters. `most_published`: bytes that it can publish."""
    return CounterMemory(_BLOCK, most_published)


class RouteTally:
    """A route's counters and live exchanges; of another worker, only what its memory has."""

    __slots__ = (
        *("_at", "_cells", "_ended", "admitted", "durations", "first_bytes", "gaps"),
        *("intercepted", "live"),
    )

    def __init__(self, memory: CounterMemory, route: str) -> None:
        """Continue the counters that the memory has for the route."""
        self._cells, self._at = memory.block_of(route)
        first = self._at + _FIRST_MOVED
        self._ended = [self._cells[first + number] for number in range(len(_MOVED))]
        self.first_bytes = CellHistogram(self._cells, self._at + _FIRST_BYTE, BUCKETS)
        """Seconds from the request's head to the first byte of the response's body."""
        self.durations = CellHistogram(self._cells, self._at + _DURATION, DURATION_BOUNDS)
        """Seconds from the request's head to the end of the exchange."""
        self.gaps = CellHistogram(self._cells, self._at + _GAPS, GAP_BOUNDS)
        """Seconds between two events, of streams that are framed."""
        self.live: set[LiveExchange] = set()
        self.admitted = 0
        """How many live exchanges are forwarded rather than refused."""
        self.intercepted: dict[str, int] = {}
        """Exchanges that an interceptor answered, ended or failed, by its name."""

    def begin(self, exchange: LiveExchange) -> None:
        """Add a live exchange."""
        self.live.add(exchange)
        self._cells[self._at + _BEGUN] += 1.0

    def end(self, exchange: LiveExchange) -> None:
        """Remove a live exchange, and add what it moved to the counters."""
        self.live.discard(exchange)
        self._ended[0] += exchange.bytes_downstream
        self._ended[1] += exchange.bytes_upstream
        self._raise(0, self._ended[0])
        self._raise(1, self._ended[1])
        if (counts := exchange.counts) is not None:
            for number, action in enumerate(ACTIONS, len(DIRECTIONS)):
                self._ended[number] += getattr(counts, action)
                self._raise(number, self._ended[number])

    def account(
        self,
        outcome: Outcome,
        kind: str | None,
        first_byte_s: float | None,
        trace_id: str | None = None,
    ) -> None:
        """Count an exchange that has ended. `kind`: the error type of a refusal. `first_byte_s`:
        seconds to the first byte, if there was one. `trace_id`: of its trace, if that is recorded.
        """
        cells, at = self._cells, self._at
        cells[at + _OUTCOMES[outcome]] += 1.0
        if kind in _REFUSALS:
            cells[at + _REFUSALS[kind]] += 1.0
        if first_byte_s is not None:
            self.first_bytes.observe(first_byte_s, trace_id)

    def gaps_of_stream(self) -> EventGaps:
        """Count the times between the events of one stream."""
        return EventGaps(self._cells, self.gaps.at)

    def count_intercepted(self, interceptor: str | None) -> None:
        """Count an exchange that an interceptor answered, ended or failed; None: it is not known
        which.
        """
        name = interceptor or "-"
        self.intercepted[name] = self.intercepted.get(name, 0) + 1

    def count_lost(self) -> None:
        """Count the exchanges that a predecessor of the worker had when it was killed. Call this
        before the first `begin`.
        """
        cells, at = self._cells, self._at
        lost = cells[at + _BEGUN] - sum(cells[at + number] for number in _OUTCOMES.values())
        cells[at + _OUTCOMES[Outcome.INTERNAL_ERROR]] += lost

    def exchanges(self, outcome: Outcome) -> float:
        """Exchanges that have ended with this outcome."""
        return self._cells[self._at + _OUTCOMES[outcome]]

    def refused(self, reason: str) -> float:
        """Refused requests."""
        return self._cells[self._at + _REFUSALS[reason]]

    def time_to_first_byte(self) -> tuple[list[float], float]:
        """The number of exchanges in each bucket, and the sum in seconds."""
        return self.first_bytes.read()

    def events(self, action: str) -> int:
        """The route's events so far, live streams included."""
        live = [item.counts for item in self.live if item.counts is not None]
        return self._so_far(action, sum(int(getattr(counts, action)) for counts in live))

    def bytes(self, direction: str) -> int:
        """Body bytes so far, live streams included: `downstream` (to clients) or `upstream`."""
        return self._so_far(
            direction, sum(getattr(item, f"bytes_{direction}") for item in self.live)
        )

    def moved(self) -> dict[str, int]:
        """All of `bytes` and `events`, by direction and action, in one pass over the live streams."""
        live = dict.fromkeys(_MOVED, 0)
        for item in self.live:
            live["downstream"] += item.bytes_downstream
            live["upstream"] += item.bytes_upstream
            if (counts := item.counts) is not None:
                for action in ACTIONS:
                    live[action] += getattr(counts, action)
        return {name: self._so_far(name, count) for name, count in live.items()}

    def _so_far(self, moved: str, live: int) -> int:
        """What has been moved. A reported value stays in the memory: a counter must not decrease
        when the worker is killed.
        """
        number = _MOVED.index(moved)
        return int(self._raise(number, self._ended[number] + live))

    def _raise(self, number: int, value: float) -> float:
        """Raise a counter to `value`, if it is lower. Returns the counter."""
        at = self._at + _FIRST_MOVED + number
        if value > self._cells[at]:
            self._cells[at] = value
        return self._cells[at]
