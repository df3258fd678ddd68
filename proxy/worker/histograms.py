"""Histograms: counts of values by bucket, with their sum, and for each bucket the last trace.

A `CellHistogram` counts in a worker's memory, at the cost of two cells a value. It does not know
what it measures. Exemplars stay in the process: a killed worker loses them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import Exemplar, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from .counters import Cells

__all__ = ["CellHistogram", "Exemplars", "add_histogram", "cells_of", "exemplar"]

Exemplars = dict[int, Exemplar]
"""The last value with a trace, by the number of its bucket."""


def exemplar(trace_id: str, value: float) -> Exemplar:
    """The exemplar of a value that is measured now."""
    return Exemplar({"trace_id": trace_id}, value, time.time())


def cells_of(bounds: Sequence[float]) -> int:
    """How many cells a histogram needs."""
    return len(bounds) + 2


class CellHistogram:
    """A histogram in cells: the sum, one for each bound, and one for values above all."""

    __slots__ = ("_cells", "at", "bounds", "exemplars")

    def __init__(self, cells: Cells, at: int, bounds: Sequence[float]) -> None:
        self._cells = cells
        self.at = at
        """The first cell."""
        self.bounds = bounds
        self.exemplars: Exemplars = {}

    def observe(self, value: float, trace_id: str | None = None) -> None:
        """Count a value. `trace_id`: of its trace, if that is recorded."""
        bucket = bisect_left(self.bounds, value)
        self._cells[self.at] += value
        self._cells[self.at + 1 + bucket] += 1.0
        if trace_id is not None:
            self.exemplars[bucket] = exemplar(trace_id, value)

    def read(self) -> tuple[list[float], float]:
        """The number of values in each bucket, and their sum."""
        first = self.at + 1
        counts = [self._cells[first + number] for number in range(len(self.bounds) + 1)]
        return counts, self._cells[self.at]

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the histogram as a series."""
        counts, total = self.read()
        add_histogram(family, labels, self.bounds, counts, total, self.exemplars)


def add_histogram(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    bounds: Sequence[float],
    counts: Iterable[float],
    total: float,
    exemplars: Mapping[int, Exemplar],
) -> None:
    """Add a series. `counts`: of each bucket, not accumulated."""
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    names = [*map(floatToGoString, bounds), "+Inf"]
    for number, (name, count) in enumerate(zip(names, accumulate(counts), strict=True)):
        last = exemplars.get(number)
        buckets.append((name, count) if last is None else (name, count, last))
    family.add_metric(list(labels), buckets, total)
