"""Counters that outlive their worker, and how those of several workers become one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from interceptors import Interceptor, Outcome
from interceptors.hooks import Owner
from pools import Pools
from proxy.worker.families import RULES, Family, families_of, merge
from proxy.worker.metrics import Metrics, families_in
from proxy.worker.tally import BUCKETS, RouteTally, new_memory


def made(kind: type[Metric], value: float, **sample: str) -> Family:
    metric = kind("a", "A.")
    metric.add_sample(sample.pop("name", "a"), sample, value)
    return families_of([metric])[0]


@pytest.mark.parametrize(
    ("kind", "sample", "merged"),
    [
        (CounterMetricFamily, {"name": "a_total"}, 3),
        (CounterMetricFamily, {"name": "a_created"}, 1),
        (HistogramMetricFamily, {"name": "a_bucket", "le": "1.0"}, 3),
        (SummaryMetricFamily, {"quantile": "0.5"}, 2),
        (GaugeMetricFamily, {}, 3),
    ],
)
def test_two_values_of_a_series_become_one(
    kind: type[Metric], sample: dict[str, str], merged: float
) -> None:
    one, two = made(kind, 1, **sample), made(kind, 2, **sample)
    (family,) = merge([[one], [two]])
    assert [item.value for item in family.samples] == [merged]
    assert (one.samples[0].value, two.samples[0].value) == (1, 2)


@pytest.mark.parametrize(("rule", "merged"), [("max", 2), ("min", 1), ("mostrecent", 3)])
def test_the_rule_of_a_gauge(rule: str, merged: float) -> None:
    parts = []
    for value in (1, 2):
        gauge = GaugeMetricFamily("a", "A.", value=value)
        parts.append(families_of([gauge], rule))
    assert merge(parts)[0].samples[0].value == merged


def test_a_family_whose_type_differs_is_left_out() -> None:
    """A reload is under way: two families of one name would not be readable."""
    (family,) = merge([[made(CounterMetricFamily, 1)], [made(GaugeMetricFamily, 5)]])
    assert (family.type, family.samples[0].value) == ("counter", 1)


def test_every_rule_names_a_metric() -> None:
    root = Path(__file__).parents[4] / "proxy"
    source = "".join(path.read_text() for path in root.rglob("*.py") if path.name != "families.py")
    assert [name for name in RULES if f'"{name}"' not in source] == []


def test_a_successor_continues_in_the_memory() -> None:
    """A block for each route, however many there are; beyond the memory's, of its own."""
    memory = new_memory()
    routes = [f"/{number}" for number in range(2050)]
    first = Metrics(Pools(), routes, memory=memory)
    for route in routes:
        first.routes[route].durations.observe(2.0)
        first.routes[route].gaps_of_stream().note(3, 0.0)
        first.routes[route].account(Outcome.COMPLETED, None, BUCKETS[0])
        first.routes[route].account(Outcome.REFUSED, "no_endpoint", 1e9)
    second = Metrics(Pools(), routes, memory=memory)
    counts = [second.routes[route].exchanges(Outcome.COMPLETED) for route in routes]
    assert counts == [1] * 2048 + [0] * 2
    tally = RouteTally(memory, "/7")
    buckets = [1, *[0] * (len(BUCKETS) - 1), 1]
    assert tally.time_to_first_byte() == (buckets, BUCKETS[0] + 1e9)
    assert tally.refused("no_endpoint") == 1
    assert (sum(tally.durations.read()[0]), tally.durations.read()[1]) == (1, 2.0)
    assert (sum(tally.gaps.read()[0]), tally.gaps.read()[1]) == (2, 0.0)


@dataclass(eq=False)
class Live:
    """A live exchange."""

    bytes_downstream: int
    bytes_upstream: int = 0
    counts: None = None


def test_bytes_that_were_reported_stay() -> None:
    """Those of a live stream, too, while others end."""
    memory = new_memory()
    tally = RouteTally(memory, "/")
    exchanges: list[Any] = [Live(50), Live(2)]
    for exchange in exchanges:
        tally.begin(exchange)
    assert tally.bytes("downstream") == 52
    tally.end(exchanges[1])
    assert RouteTally(memory, "/").bytes("downstream") == 52
    tally.end(exchanges[0])
    assert tally.bytes("downstream") == 52


def test_interceptors_counters_beyond_the_memory_are_left_out() -> None:
    memory = new_memory(most_published=20_000)
    large = CounterMetricFamily("large", "Large.", labels=["a"])
    for number in range(1000):
        large.add_metric([str(number)], 1)
    collector = SimpleNamespace(collect=lambda: [large])
    owner = Owner("Author", Interceptor())
    Metrics(Pools(), ["/"], collectors=lambda: [(owner, collector)], memory=memory).publish()
    names = {family.name for family in families_in(memory)}
    assert ("large" in names, "buffer_pool_leaks" in names) == (False, True)


def test_the_memory_of_a_worker_has_all_its_counters() -> None:
    metrics = Metrics(Pools(), ["/"])
    shown = {family.name for family in metrics.families() if family.type != "gauge"}
    assert {family.name for family in families_in(metrics.memory)} == shown
