"""Adds up the parts of all workers to `/status`: sums, shares, rates, times, and the history.

It knows only the parts of `status.status_of` as plain data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pools import POOL_NAMES

from ..worker.history import LENGTH, STEP_S, TIMES, Counts, PoolStep, Step
from ..worker.live import MOST_LISTED

__all__ = ["Part", "add_up", "decode_part", "quantile"]

Part = dict[str, Any]
"""A worker's part."""

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MOST_BUDGETS = 200
_CHARTED = ("first_byte", "first_token")
"""Times with a series in the history."""
_RATES = ("exchanges", "failures", "events", "bytes")
"""Counts that are shown for a second."""
_WORST_FIRST = ("ejected", "probing", "up")


def decode_part(data: bytes) -> Part:
    """Return the part that `msgspec.msgpack` has encoded. Raises `msgspec.DecodeError`."""
    part: Part = msgspec.msgpack.decode(data)
    seconds, counts = part["recent"]
    part["recent"] = seconds, msgspec.convert(counts, Counts)
    part["window"] = msgspec.convert(part["window"], Counts)
    part["steps"] = msgspec.convert(part["steps"], list[Step])
    return part


def add_up(parts: Mapping[int, Part], silent_routes: Iterable[list[dict[str, Any]]]) -> Part:
    """The totals of the parts, by the number of their worker. `silent_routes`: `routes` of workers
    that cannot be asked, whose counters count.
    """
    all_parts = list(parts.values())
    listed = [
        {"worker": index, **item}
        for index, part in parts.items()
        for item in part["exchanges"]["oldest"]
    ]
    listed.sort(key=lambda item: -item["age"])
    window = _sum(part["window"] for part in all_parts)
    return {
        "draining": any(part["draining"] for part in all_parts),
        "streams": sum(part["streams"] for part in all_parts),
        "exchanges": {
            "total": sum(part["exchanges"]["total"] for part in all_parts),
            "oldest": listed[:MOST_LISTED],
        },
        "rates": _rates(all_parts),
        "times": {name: _times(name, window) for name in TIMES},
        "routes": _merged(
            [*(part["routes"] for part in all_parts), *silent_routes], ("route",), _add_route
        ),
        "pools": _merged((part["pools"] for part in all_parts), ("pool",), _add_pool),
        "upstreams": _upstreams(all_parts),
        "interceptors": _interceptors(all_parts),
        "limits": _merged((part["limits"] for part in all_parts), ("limit",), _add),
        "budgets": _budgets(all_parts),
        "store": _store(all_parts),
        "history": history_of([part["steps"] for part in all_parts]),
    }


def quantile(name: str, counts: Sequence[int], share: float) -> float | None:
    """The seconds below which a share of the values stays, as Prometheus' `histogram_quantile`:
    linear within a bucket of `TIMES[name]`, at most its last bound. None without values.
    """
    bounds = TIMES[name]
    wanted, below = share * sum(counts), 0
    if not wanted:
        return None
    for number, count in enumerate(counts[:-1]):
        if below + count >= wanted:
            lower = bounds[number - 1] if number else 0.0
            return round(lower + (bounds[number] - lower) * (wanted - below) / count, 6)
        below += count
    return float(bounds[-1])


def history_of(workers: Sequence[Sequence[Step]]) -> dict[str, Any]:
    """The last 15 minutes of all workers: `step` in seconds, `end` of the last one, and a list for
    each series, oldest first.
    """
    last, columns = _aligned(workers)
    counts = [_sum(step.counts for step in column) for column in columns]
    return {
        "step": STEP_S,
        "end": last * STEP_S,
        "streams": [sum(step.streams for step in column) for column in columns],
        **{name: [getattr(item, name) / STEP_S for item in counts] for name in _RATES},
        **{name: _time_series(name, counts) for name in _CHARTED},
        "pools": {
            name: _pool_series([[step.pools[at] for step in column] for column in columns])
            for at, name in enumerate(POOL_NAMES)
        },
    }


def _aligned(workers: Sequence[Sequence[Step]]) -> tuple[int, list[list[Step]]]:
    """The number of the last step that every worker has ended, and the workers' steps up to it,
    for each number. A worker that has stopped recording does not delay the others.
    """
    now = int(time.time() / STEP_S)
    current = [steps for steps in workers if steps and steps[-1].number >= now - 2]
    last = min((steps[-1].number for steps in current), default=now)
    first = min((steps[0].number for steps in current), default=now + 1)
    numbers = range(max(first, last - LENGTH + 1), last + 1)
    by_number: dict[int, list[Step]] = {number: [] for number in numbers}
    for steps in current:
        for step in steps:
            if step.number in by_number:
                by_number[step.number].append(step)
    return last, list(by_number.values())


def _time_series(name: str, counts: Sequence[Counts]) -> dict[str, list[float | None]]:
    return {
        label: [quantile(name, item.times.get(name, ()), share) for item in counts]
        for label, share in _QUANTILES.items()
    }


def _pool_series(columns: Sequence[Sequence[PoolStep]]) -> dict[str, list[Any]]:
    return {
        "in_use": [sum(item.in_use for item in column) for column in columns],
        "idle": [sum(item.idle for item in column) for column in columns],
        "reuse_rate": [
            _share(sum(item.reuses for item in column), sum(item.allocations for item in column))
            for column in columns
        ],
        "discards": [sum(item.discards for item in column) for column in columns],
    }


def _share(reuses: int, allocations: int) -> float | None:
    leases = reuses + allocations
    return reuses / leases if leases else None


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for item in counts:
        total += item
    return total


def _rates(parts: Sequence[Part]) -> dict[str, Any]:
    """What happens in a second, of the last 2.5 to 7.5 seconds."""
    rates = dict.fromkeys(_RATES, 0.0)
    for part in parts:
        seconds, counts = part["recent"]
        for name in rates:
            rates[name] += getattr(counts, name) / max(seconds, 0.1)
    return {name: round(rate, 2) for name, rate in rates.items()}


def _times(name: str, window: Counts) -> dict[str, Any]:
    """Quantiles of the last minute, in seconds."""
    counts = window.times.get(name, ())
    quantiles = {label: quantile(name, counts, share) for label, share in _QUANTILES.items()}
    return {"count": sum(counts), **quantiles}


def _merged(
    lists: Iterable[Sequence[dict[str, Any]]],
    keys: Sequence[str],
    add: Callable[[dict[str, Any], dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Merge records with the same keys by `add(into, other)`. The records do not change."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for records in lists:
        for record in records:
            key = tuple(record[name] for name in keys)
            if key in merged:
                add(merged[key], record)
            else:
                merged[key] = _copy(record)
    return list(merged.values())


def _copy(record: dict[str, Any]) -> dict[str, Any]:
    return {key: dict(item) if isinstance(item, dict) else item for key, item in record.items()}


def _add(into: dict[str, Any], other: dict[str, Any]) -> None:
    """Add the numbers of a record, also one level below."""
    for key, value in other.items():
        if isinstance(value, dict):
            _add(into[key], value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            into[key] = into.get(key, 0) + value


def _add_route(into: dict[str, Any], other: dict[str, Any]) -> None:
    _add(into, other)
    if into["upstream"] is None:  # of a worker that cannot be asked
        into |= {key: other[key] for key in ("upstream", "dialect", "interceptors")}


def _add_pool(into: dict[str, Any], other: dict[str, Any]) -> None:
    kept = {"size": into["size"], "high_water": max(into["high_water"], other["high_water"])}
    _add(into, other)
    into |= kept
    into["reuse_rate"] = _share(into["reuses"], into["allocations"]) or 0.0


def _add_endpoint(into: dict[str, Any], other: dict[str, Any]) -> None:
    _add(into, other)
    into["state"] = min(into["state"], other["state"], key=_WORST_FIRST.index)


def _upstreams(parts: Sequence[Part]) -> dict[str, Any]:
    names = dict.fromkeys(name for part in parts for name in part["upstreams"])
    found = {
        name: [part["upstreams"][name] for part in parts if name in part["upstreams"]]
        for name in names
    }
    return {
        name: {
            "endpoints": _merged(
                (item["endpoints"] for item in items), ("endpoint",), _add_endpoint
            ),
            "connections": _merged((item["connections"] for item in items), ("origin",), _add),
        }
        for name, items in found.items()
    }


def _interceptors(parts: Sequence[Part]) -> list[dict[str, Any]]:
    merged = _merged((part["interceptors"] for part in parts), ("interceptor",), _add)
    for item in merged:
        item["seconds_per_event"] = item["seconds"] / item["events"] if item["events"] else None
        item["seconds_per_call"] = item["seconds"] / item["calls"] if item["calls"] else None
    return merged


def _budgets(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The newest state of each limit, the fullest first."""
    merged = _merged((part["budgets"] for part in parts), ("interceptor", "key"), _take_newer)
    return sorted(merged, key=lambda item: -item["used"] / max(item["of"], 1))[:_MOST_BUDGETS]


def _take_newer(into: dict[str, Any], other: dict[str, Any]) -> None:
    if other["at"] > into["at"]:
        into |= other


def _store(parts: Sequence[Part]) -> dict[str, Any]:
    stores = _merged(([part["store"]] for part in parts), (), _add)
    store = stores[0] if stores else {"at": None, "failures": {}}
    return {**store, "up": all(part["store"]["up"] for part in parts)}
