"""What one worker contributes to `/status`: its state as plain data, which `totals` adds up.

It only reads: one pass over the live exchanges, no awaiting. Numbers of counters are those of
`/metrics`, from the same cells.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from interceptors import Outcome
from pools import PoolStatistics

from ..downstream import client_connections
from ..upstream import Balancer
from ..worker.counters import CounterMemory
from ..worker.live import describe_live
from ..worker.tally import ACTIONS, DIRECTIONS, REFUSALS, RouteTally
from ..worker.worker import Worker

__all__ = ["routes_in", "status_of"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def status_of(worker: Worker) -> dict[str, Any]:
    """The worker's part: the keys of `workers` in docs/status.md, and

    - `exchanges`: `total`, and in `oldest` at most 1,000 of them, oldest first
    - `recent`: seconds, and `Counts` of them; `window`: `Counts` of the last minute
    - `steps`: of `History`
    """
    seconds, counts, minute = worker.history.latest()
    routes = _routes(worker)
    return {
        "pid": os.getpid(),
        "started_at": round(worker.started_at, 3),
        "draining": worker.draining,
        "streams": len(worker.live),
        "generations": len(worker.generations),
        "memory": _memory(),
        "cpu_seconds": round(time.process_time(), 3),
        "connections": {"open": len(client_connections), "limit": client_connections.limit},
        "exchanges": describe_live(worker.live),
        "pools": [_pool(item) for item in worker.pools.statistics()],
        "upstreams": {
            name: _upstream(transport) for name, transport in worker.routes.transports.items()
        },
        "routes": routes,
        "interceptors": _interceptors(worker, routes),
        "limits": _limits(worker),
        "budgets": [
            {
                "interceptor": name,
                "key": use.key,
                "used": use.used,
                "of": use.limit,
                "at": round(use.at, 3),
                "until": use.until and round(use.until, 3),
            }
            for name, uses in worker.stores.uses.items()
            for use in uses.read()
        ],
        "store": {
            "at": worker.stores.describe(),
            "up": worker.stores.is_up,
            "failures": dict(worker.stores.failures),
        },
        "reload": None if (last := worker.reloads.last) is None else msgspec.to_builtins(last),
        "recent": (seconds, counts),
        "window": minute,
        "steps": list(worker.history.steps),
    }


def routes_in(memory: CounterMemory) -> list[dict[str, Any]]:
    """The `routes` of a worker that cannot be asked."""
    return [_route(name, RouteTally(memory, name)) for name in memory.routes()]


def _memory() -> int | None:
    """Resident bytes; None if the system does not report them."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _pool(stats: PoolStatistics) -> dict[str, Any]:
    return {
        "pool": stats.pool,
        "size": stats.size,
        "max_pooled": stats.max_pooled,
        "in_use": stats.in_use,
        "current_size": stats.current_size,
        "reuse_rate": stats.reuse_rate,
        "allocations": stats.allocations,
        "reuses": stats.reuses,
        "discards": {
            "oversize": stats.discards_oversize,
            "full": stats.discards_full,
            "exported": stats.discards_exported,
        },
        "leaks": stats.leaks,
        "high_water": stats.high_water,
    }


def _upstream(transport: Balancer) -> dict[str, Any]:
    return {
        "endpoints": [
            {
                "endpoint": item.endpoint,
                "state": item.state,
                "outstanding": item.outstanding,
                "failures": item.failures,
                "ejections": item.ejections,
                "retries": item.retries,
            }
            for item in transport.endpoint_states()
        ],
        "connections": [
            {
                "origin": item.origin,
                "lent": item.lent,
                "idle": item.idle,
                "waiting": item.waiting,
                "opened": item.opened,
                "reused": item.reused,
            }
            for item in transport.statistics()
        ],
    }


def _routes(worker: Worker) -> list[dict[str, Any]]:
    """Each route of the configuration, and routes that are gone as far as they have counters."""
    compiled = {route.name: route for route in worker.routes.routes}
    found = []
    for name, tally in worker.metrics.routes.items():
        item, route = _route(name, tally), compiled.get(name)
        if route is not None:
            item["upstream"], item["dialect"] = route.upstream, route.dialect.name
            item["interceptors"] = [owner.name for owner in route.chain.owners]
        found.append(item)
    return found


def _route(name: str, tally: RouteTally) -> dict[str, Any]:
    moved = tally.moved()
    return {
        "route": name,
        "upstream": None,
        "dialect": None,
        "interceptors": [],
        "streams": len(tally.live),
        "outcomes": _whole((item.value, tally.exchanges(item)) for item in Outcome),
        "refused": _whole((reason, tally.refused(reason)) for reason in REFUSALS),
        "events": {action: moved[action] for action in ACTIONS},
        "bytes": {direction: moved[direction] for direction in DIRECTIONS},
    }


def _whole(counts: Iterable[tuple[str, float]]) -> dict[str, int]:
    return {name: int(count) for name, count in counts}


def _interceptors(worker: Worker, routes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each interceptor with its time, and the events of the routes that use it."""
    totals = worker.generations.interceptor_totals()
    events: dict[str, int] = dict.fromkeys(totals, 0)
    for route in routes:
        counts = route["events"]
        seen = counts["passed"] + counts["changed"] + counts["dropped"]
        for name in set(route["interceptors"]):
            events[name] = events.get(name, 0) + seen
    uses = {item.name: item.use for item in worker.config.interceptors}
    return [
        {
            "interceptor": name,
            "use": uses.get(name),
            "seconds": total.seconds,
            "waited": total.waited,
            "unread_parts": total.unread_parts,
            "calls": sum(total.calls),
            "events": events[name],
        }
        for name, total in totals.items()
    ]


def _limits(worker: Worker) -> list[dict[str, Any]]:
    """The limits of the configuration that have a current use, of this worker."""
    settings = worker.config.reverse_proxy
    found = [
        _limit("limits.max_streams", worker.admitted, settings.limits.max_streams),
        _limit(
            "limits.max_collected_bytes", worker.bodies.held, settings.limits.max_collected_bytes
        ),
        _limit("max_client_connections", len(client_connections), client_connections.limit),
    ]
    for route in worker.routes.routes:
        if route.max_streams is not None:
            admitted = worker.metrics.routes[route.name].admitted
            name = f"routes[{route.name}].limits.max_streams"
            found.append(_limit(name, admitted, route.max_streams))
    for upstream in settings.upstreams:
        lent = sum(item.lent for item in worker.routes.transports[upstream.name].statistics())
        name = f"upstreams[{upstream.name}].max_connections"
        found.append(_limit(name, lent, upstream.max_connections))
    return found


def _limit(name: str, used: int, limit: int) -> dict[str, Any]:
    return {"limit": name, "used": used, "of": limit}
