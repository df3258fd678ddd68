"""Prometheus metrics of one worker. Every name and label exists from the start, at 0.

Exchanges are counted in the cells of a `CounterMemory` (see `tally.py`). Everything else is counted
in plain integers by its owner and read when Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.registry import Collector

from pools import Pools

from ..errors import ConfigError
from ..upstream import Balancer
from .collectors import (
    AuthorsCollector,
    Collectors,
    EndpointCollector,
    InterceptedCollector,
    InterceptorCollector,
    InterceptorTotals,
    RouteCollector,
    collected,
)
from .counters import CounterMemory
from .families import Family, counters_of, decode, encode, families_of, merge
from .genai import GenAiMetrics
from .process_collectors import (
    DeathCollector,
    PoolCollector,
    ProcessCollector,
    ProcessGauges,
    ReloadCollector,
    StoreCollector,
    WriterCounts,
)
from .reloads import Reloads
from .tally import RouteTally, new_memory

__all__ = [
    "Collectors",
    "InterceptorTotals",
    "Metrics",
    "RouteTally",
    "families_in",
]

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
        memory: CounterMemory | None = None,
        store: Callable[[], tuple[bool, Mapping[str, int]]] = lambda: (True, {}),
        reloads: Reloads | None = None,
        streams_limit: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`interceptor_totals`, `collectors`, `upstreams` and `store` (whether it is up, its failed
        calls by kind) and `streams_limit` are called on each scrape. `memory` has the counters of
        the worker's predecessors, if any. Raises `ConfigError` as `check` does.
        """
        self.memory = memory or new_memory()
        self.registry = CollectorRegistry(auto_describe=False)
        self.routes: dict[str, RouteTally] = {}
        self.writers = WriterCounts(self.memory)
        self.genai = GenAiMetrics()
        self._in_memory: list[Collector] = [
            self.writers,
            DeathCollector(self.memory),
            RouteCollector(self.routes),
        ]
        self._read: list[Collector] = [
            PoolCollector(pools),
            InterceptorCollector(interceptor_totals),
            InterceptedCollector(self.routes),
            EndpointCollector(upstreams),
            ProcessCollector(streams_limit),
            StoreCollector(store),
            self.genai,
            ReloadCollector(reloads or Reloads()),
        ]
        self._authors = AuthorsCollector(collectors)
        self._process = ProcessGauges()
        for collector in (*self._in_memory, *self._read, self._process):
            self.registry.register(collector)
        self.add_routes([*self.memory.routes(), *routes])
        self._own_names = {metric.name for metric in self.registry.collect()}
        self.check(collectors())
        self.registry.register(self._authors)
        self._before = _published(self.memory)
        """Counters of the worker's predecessors, except those in cells."""
        for tally in self.routes.values():
            tally.count_lost()

    def check(self, collectors: Collectors) -> None:
        """Check the names of interceptors' metrics. Raises `ConfigError` for a name that the proxy
        uses.
        """
        for owner, family in collected(collectors):
            if family.name in self._own_names:
                raise ConfigError(
                    f"interceptors: the metric {family.name!r} of {owner.name!r} has the name"
                    " of one of the proxy's"
                )

    def keep(self, collectors: Collectors) -> None:
        """Keep the counts of interceptors that are gone."""
        self._authors.keep(collectors)

    def add_interceptors(self, interceptors: Mapping[str, Sequence[str]]) -> None:
        """Add what the interceptors of each route answer, counted from 0."""
        for route, names in interceptors.items():
            for name in names:
                self.routes[route].intercepted.setdefault(name, 0)

    def add_routes(self, routes: Sequence[str]) -> None:
        """Add routes, counted from 0; a known name keeps its counts."""
        for route in routes:
            if route in self.routes:
                continue
            self.routes[route] = RouteTally(self.memory, route)

    def each(self) -> Iterator[Family]:
        """All metrics, one after the other, for a worker that is alone."""
        for metric in self.registry.collect():
            yield from families_of([metric])

    def families(self) -> list[Family]:
        """Return all metrics, with the counters of the worker's predecessors, and publish them: a
        counter that a scrape has shown must not decrease when the worker is killed.
        """
        read = merge([*self._read_families(), self._before])
        self._publish(read)
        return merge([_collect(self._in_memory), read, _collect([self._process])])

    def publish(self) -> None:
        """Keep the counters that are not in cells for the worker's successor: those of
        interceptors only as long as all of them are at most 4 MiB.
        """
        self._publish(merge([*self._read_families(), self._before]))

    def _publish(self, read: list[Family]) -> None:
        counters = counters_of(read)
        if not self.memory.publish(encode(counters)):
            own = [family for family in counters if family.name in self._own_names]
            self.memory.publish(encode(own))

    def _read_families(self) -> tuple[list[Family], list[Family]]:
        """The proxy's families that are read from their owners, and the interceptors'."""
        return _collect(self._read), self._authors.families()


def families_in(memory: CounterMemory) -> list[Family]:
    """Return the counters of a worker that cannot be asked."""
    routes = {route: RouteTally(memory, route) for route in memory.routes()}
    return merge(
        [
            counters_of(
                _collect([WriterCounts(memory), DeathCollector(memory), RouteCollector(routes)])
            ),
            _published(memory),
        ]
    )


def _collect(collectors: Iterable[Collector]) -> list[Family]:
    return families_of(metric for collector in collectors for metric in collector.collect())


def _published(memory: CounterMemory) -> list[Family]:
    data = memory.published()
    return decode(data) if data else []
