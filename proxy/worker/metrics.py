"""Prometheus metrics of one worker. Every name and label exists from the start, at 0.

Events are counted in plain integers by the chain and read when Prometheus asks; exchanges use
prometheus-client's own types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from interceptors import Outcome
from pools import Pools

from ..downstream import WRITERS
from ..errors import ConfigError
from ..upstream import Balancer
from .collectors import (
    AuthorsCollector,
    Collectors,
    EndpointCollector,
    InterceptorCollector,
    InterceptorTotals,
    PoolCollector,
    ProcessCollector,
    RouteCollector,
    RouteTally,
    collected,
)

__all__ = [
    "REFUSALS",
    "Collectors",
    "InterceptorTotals",
    "Metrics",
    "RouteTally",
]

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
_TTFB_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client has no types here


class Metrics:
    """The metrics registry of one worker."""

    def __init__(
        self,
        pools: Pools,
        routes: Sequence[str],
        *,
        interceptor_totals: Callable[[], Mapping[str, InterceptorTotals]] = dict,
        collectors: Callable[[], Collectors] = tuple,
        upstreams: Callable[[], Mapping[str, Balancer]] = dict,
    ) -> None:
        """`interceptor_totals`, `collectors` and `upstreams` are called on each scrape. Raises
        `ConfigError` as `check` does.
        """
        self.registry = CollectorRegistry(auto_describe=False)
        self.routes: dict[str, RouteTally] = {}
        self._exchanges = Counter(
            "weirpool_exchanges",
            "Exchanges that have ended, by outcome.",
            ["route", "outcome"],
            registry=self.registry,
        )
        self._time_to_first_byte = Histogram(
            "weirpool_time_to_first_byte_seconds",
            "From the request's head to the first byte of the response's body.",
            ["route"],
            buckets=_TTFB_BUCKETS,
            registry=self.registry,
        )
        writers = Counter(
            "weirpool_writer",
            "Responses sent, by the writer that sent them.",
            ["writer"],
            registry=self.registry,
        )
        self._refused = Counter(
            "weirpool_refused",
            "Valid requests refused: a limit, no endpoint in service, a session that is gone.",
            ["route", "reason"],
            registry=self.registry,
        )
        # Created once, so that they exist from the start and an exchange needs no lookup by labels.
        self.exchanges: dict[tuple[str, Outcome], Counter] = {}
        self.time_to_first_byte: dict[str, Histogram] = {}
        self.writers = {writer: writers.labels(writer) for writer in WRITERS}
        self.refused: dict[tuple[str, str], Counter] = {}
        self.registry.register(PoolCollector(pools))
        self.registry.register(RouteCollector(self.routes))
        self.registry.register(InterceptorCollector(interceptor_totals))
        self.registry.register(EndpointCollector(upstreams))
        self.registry.register(ProcessCollector())
        self.add_routes(routes)
        self._own_names = {metric.name for metric in self.registry.collect()}
        self.check(collectors())
        self._authors = AuthorsCollector(collectors)
        self.registry.register(self._authors)

    def check(self, collectors: Collectors) -> None:
        """Check the names of interceptors' metrics. Raises `ConfigError` for a name that the proxy
        uses.
        """
        for owner, metric in collected(collectors):
            if metric.name in self._own_names:
                raise ConfigError(
                    f"interceptors: the metric {metric.name!r} of {owner.name!r} has the name"
                    " of one of the proxy's"
                )

    def keep(self, collectors: Collectors) -> None:
        """Keep the counts of interceptors that are gone."""
        self._authors.keep(collectors)

    def add_routes(self, routes: Sequence[str]) -> None:
        """Add routes, counted from 0; a known name keeps its counts."""
        for route in routes:
            if route in self.routes:
                continue
            self.routes[route] = RouteTally()
            self.time_to_first_byte[route] = self._time_to_first_byte.labels(route)
            for outcome in Outcome:
                self.exchanges[route, outcome] = self._exchanges.labels(route, outcome.value)
            for reason in REFUSALS:
                self.refused[route, reason] = self._refused.labels(route, reason)

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self.registry)
