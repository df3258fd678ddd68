"""Prometheus collectors: values that are read on each scrape.

Each collector reads state that another object owns and counts nothing itself, except that
`AuthorsCollector` keeps the counts of interceptors that are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from interceptors import Outcome
from interceptors.hooks import HOOK_BOUNDS, Owner

from ..upstream import Balancer
from .families import Family, as_metrics, counters_of, families_of, labelled, merge
from .histograms import add_histogram
from .tally import ACTIONS, DIRECTIONS, REFUSALS, RouteTally

__all__ = [
    "AuthorsCollector",
    "Collectors",
    "EndpointCollector",
    "InterceptedCollector",
    "InterceptorCollector",
    "InterceptorTotals",
    "RouteCollector",
    "collected",
]

Collectors = Sequence[tuple[Owner, Collector]]
"""Metrics of interceptors with their owners."""


class InterceptorTotals(NamedTuple):
    """Totals of one interceptor: seconds for which its hooks held the event loop, seconds for which
    its async hooks waited, parts of answers that it did not understand, and its calls by the time
    for which each held the loop, in the buckets of `HOOK_BOUNDS`.
    """

    seconds: float
    waited: float
    unread_parts: int
    calls: tuple[int, ...] = (0,) * (len(HOOK_BOUNDS) + 1)


class InterceptorCollector(Collector):
    def __init__(self, totals: Callable[[], Mapping[str, InterceptorTotals]]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        spent = CounterMetricFamily(
            "weirpool_interceptor_seconds",
            "Time for which hooks held the event loop.",
            labels=["interceptor"],
        )
        waited = CounterMetricFamily(
            "weirpool_interceptor_waited_seconds",
            "Time for which async hooks waited.",
            labels=["interceptor"],
        )
        unread = CounterMetricFamily(
            "weirpool_unread_parts",
            "Parts of LLM answers and MCP messages that passed without being understood.",
            labels=["interceptor"],
        )
        hooks = HistogramMetricFamily(
            "weirpool_hook_seconds",
            "Time for which one call of a hook held the event loop.",
            labels=["interceptor"],
        )
        for name, totals in self._totals().items():
            spent.add_metric([name], totals.seconds)
            waited.add_metric([name], totals.waited)
            unread.add_metric([name], totals.unread_parts)
            add_histogram(hooks, [name], HOOK_BOUNDS, totals.calls, totals.seconds, {})
        yield from (spent, waited, unread, hooks)


def collected(collectors: Collectors) -> Iterator[tuple[Owner, Family]]:
    """Yield the metrics of interceptors. A failing collector is logged and skipped."""
    for owner, collector in collectors:
        # prometheus-client's own word for how a gauge of several processes becomes one
        mode = str(getattr(collector, "_multiprocess_mode", ""))
        try:
            for family in families_of(collector.collect(), mode.removeprefix("live")):
                yield owner, family
        except Exception as error:
            owner.failed("collectors", error)


class AuthorsCollector(Collector):
    """The metrics of interceptors, one family for a name, with the label `interceptor`.

    A reload makes new interceptors: while old ones still exist, both are summed, and the counts of
    old ones are kept when they go.
    """

    def __init__(self, collectors: Callable[[], Collectors]) -> None:
        self._collectors = collectors
        self._gone: list[Family] = []

    def keep(self, collectors: Collectors) -> None:
        self._gone = merge([counters_of(_of_authors(collectors)), self._gone])

    def families(self) -> list[Family]:
        return merge([_of_authors(self._collectors()), self._gone])

    def collect(self) -> Iterable[Metric]:
        return as_metrics(self.families())


def _of_authors(collectors: Collectors) -> list[Family]:
    return [
        family
        for owner, found in collected(collectors)
        for family in labelled([found], "interceptor", owner.name)
    ]


class EndpointCollector(Collector):
    def __init__(self, upstreams: Callable[[], Mapping[str, Balancer]]) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterator[Metric]:
        labels = ["upstream", "endpoint"]
        upstreams = self._upstreams()
        states = [
            (name, state)
            for name, upstream in upstreams.items()
            for state in upstream.endpoint_states()
        ]
        up = GaugeMetricFamily("weirpool_endpoint_up", "1: in service; 0: ejected.", labels=labels)
        outstanding = GaugeMetricFamily(
            "weirpool_endpoint_outstanding", "Exchanges under way.", labels=labels
        )
        failures = CounterMetricFamily(
            "weirpool_endpoint_failures",
            "Requests and checks that failed, and responses that broke off.",
            labels=labels,
        )
        ejections = CounterMetricFamily(
            "weirpool_endpoint_ejections", "Times it was taken out of service.", labels=labels
        )
        retries = CounterMetricFamily(
            "weirpool_retries", "Attempts after one that had failed.", labels=labels
        )
        responses = CounterMetricFamily(
            "weirpool_upstream_responses",
            "Responses of endpoints by status, those to retries included.",
            labels=[*labels, "code"],
        )
        for name, state in states:
            where = [name, state.endpoint]
            up.add_metric(where, state.state == "up")
            outstanding.add_metric(where, state.outstanding)
            failures.add_metric(where, state.failures)
            ejections.add_metric(where, state.ejections)
            retries.add_metric(where, state.retries)
            for status, count in state.responses.items():
                responses.add_metric([*where, str(status)], count)
        yield from (up, outstanding, failures, ejections, retries, responses)
        waiting = GaugeMetricFamily(
            "weirpool_upstream_waiting", "Requests that wait for a connection.", labels=["upstream"]
        )
        for name, upstream in upstreams.items():
            waiting.add_metric([name], sum(pool.waiting for pool in upstream.statistics()))
        yield waiting


class RouteCollector(Collector):
    def __init__(self, routes: Mapping[str, RouteTally]) -> None:
        self._routes = routes

    def collect(self) -> Iterable[Metric]:
        active = GaugeMetricFamily(
            "weirpool_streams_active", "Exchanges under way.", labels=["route"]
        )
        events = CounterMetricFamily(
            "weirpool_events",
            "Events of streams that interceptors see, by what became of them.",
            labels=["route", "action"],
        )
        moved = CounterMetricFamily(
            "weirpool_bytes", "Bytes of bodies.", labels=["route", "direction"]
        )
        exchanges = CounterMetricFamily(
            "weirpool_exchanges",
            "Exchanges that have ended, by outcome.",
            labels=["route", "outcome"],
        )
        refused = CounterMetricFamily(
            "weirpool_refused",
            "Valid requests refused: a limit, no endpoint in service, a session that is gone.",
            labels=["route", "reason"],
        )
        first_byte = HistogramMetricFamily(
            "weirpool_time_to_first_byte_seconds",
            "From the request's head to the first byte of the response's body.",
            labels=["route"],
        )
        duration = HistogramMetricFamily(
            "weirpool_exchange_duration_seconds",
            "From the request's head to the end of the exchange.",
            labels=["route"],
        )
        gaps = HistogramMetricFamily(
            "weirpool_time_between_events_seconds",
            "Between two events of a stream that interceptors see.",
            labels=["route"],
        )
        for route, tally in self._routes.items():
            active.add_metric([route], len(tally.live))
            for action in ACTIONS:
                events.add_metric([route, action], tally.events(action))
            for direction in DIRECTIONS:
                moved.add_metric([route, direction], tally.bytes(direction))
            for outcome in Outcome:
                exchanges.add_metric([route, outcome.value], tally.exchanges(outcome))
            for reason in REFUSALS:
                refused.add_metric([route, reason], tally.refused(reason))
            tally.first_bytes.add_to(first_byte, [route])
            tally.durations.add_to(duration, [route])
            tally.gaps.add_to(gaps, [route])
        return (active, events, moved, exchanges, refused, first_byte, duration, gaps)


class InterceptedCollector(Collector):
    def __init__(self, routes: Mapping[str, RouteTally]) -> None:
        self._routes = routes

    def collect(self) -> Iterable[Metric]:
        found = CounterMetricFamily(
            "weirpool_intercepted",
            "Exchanges that an interceptor answered, ended or failed.",
            labels=["route", "interceptor"],
        )
        for route, tally in self._routes.items():
            for interceptor, count in tally.intercepted.items():
                found.add_metric([route, interceptor], count)
        return [found]
