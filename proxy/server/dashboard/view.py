"""What the dashboard shows: figures, charts and tables over the JSON of `/status`.

`kind` says how a value is written: `dashboard.js` has the same kinds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

__all__ = ["CHARTS", "FIGURES", "TABLES", "dashboard_view"]

State = dict[str, Any]
_NONE = "–"
_NO_ROUTE = "(no route)"


class Column(msgspec.Struct, frozen=True):
    """A column. `key`: a path in the row, with dots. `optional`: hidden if no row has a value."""

    key: str
    label: str
    kind: str = "text"
    title: str = ""
    optional: bool = False


class Table(msgspec.Struct, frozen=True):
    """A table. `rows`: a list in the state, with dots; `*` flattens a mapping, whose keys become
    `name`. `key`: the columns that identify a row.
    """

    id: str
    title: str
    rows: str
    key: list[str]
    columns: list[Column]
    sort: str
    descending: bool = True
    filter: bool = False
    empty: str = "none"


class Figure(msgspec.Struct, frozen=True):
    """A number with the line of its last 15 minutes. `optional`: hidden while there is none."""

    id: str
    label: str
    key: str
    kind: str
    series: str
    title: str
    optional: bool = False


class Chart(msgspec.Struct, frozen=True):
    """Lines over 15 minutes. `series`: name and path in `history`."""

    id: str
    title: str
    kind: str
    series: list[tuple[str, str]]


FIGURES = [
    Figure("streams", "Open", "streams", "count", "streams", "open exchanges"),
    Figure(
        "exchanges", "Exchanges/s", "rates.exchanges", "rate", "exchanges", "ended, in a second"
    ),
    Figure(
        "failures",
        "Failures/s",
        "rates.failures",
        "rate",
        "failures",
        "upstream_error, upstream_timeout and internal_error, in a second",
    ),
    Figure(
        "events",
        "Events/s",
        "rates.events",
        "rate",
        "events",
        "from upstreams, in streams that interceptors see",
    ),
    Figure("bytes", "To clients", "rates.bytes", "byterate", "bytes", "body bytes in a second"),
    Figure(
        "first_byte_p50",
        "First byte p50",
        "times.first_byte.p50",
        "seconds",
        "first_byte.p50",
        "half of the responses of the last minute began within this time",
    ),
    Figure(
        "first_byte_p95",
        "First byte p95",
        "times.first_byte.p95",
        "seconds",
        "first_byte.p95",
        "95 of 100 responses of the last minute began within this time",
    ),
    Figure(
        "first_byte_p99",
        "First byte p99",
        "times.first_byte.p99",
        "seconds",
        "first_byte.p99",
        "99 of 100 responses of the last minute began within this time",
    ),
    *(
        Figure(
            f"first_token_{name}",
            f"First token {name}",
            f"times.first_token.{name}",
            "seconds",
            f"first_token.{name}",
            "of streams of LLM calls in the last minute (telemetry.genai)",
            optional=True,
        )
        for name in ("p50", "p95")
    ),
]

_POOLS = ("sse_event", "http_response", "json")
CHARTS = [
    *(
        Chart(
            f"pool_{pool}",
            f"Pool {pool}: buffers",
            "count",
            [("in use", f"pools.{pool}.in_use"), ("idle", f"pools.{pool}.idle")],
        )
        for pool in _POOLS
    ),
    Chart(
        "pool_reuse",
        "Pools: reuse rate",
        "percent",
        [(pool, f"pools.{pool}.reuse_rate") for pool in _POOLS],
    ),
    Chart(
        "pool_discards",
        "Pools: discards",
        "count",
        [(pool, f"pools.{pool}.discards") for pool in _POOLS],
    ),
]

TABLES = [
    Table(
        "exchanges",
        "Live exchanges",
        "exchanges.oldest",
        ["worker", "id"],
        [
            Column("route", "Route"),
            Column("client", "Client"),
            Column("method", "Method"),
            Column("path", "Path"),
            Column("call", "Call", title="model, or method and tool", optional=True),
            Column("phase", "Phase"),
            Column("age", "Age", "age"),
            Column("events", "Events", "count"),
            Column("bytes", "Bytes", "bytes"),
            Column("endpoint", "Endpoint"),
            Column("worker", "Worker", "id"),
            Column("id", "Id", "id"),
            Column("request_id", "Request id"),
        ],
        "age",
        filter=True,
        empty="no open exchange",
    ),
    Table(
        "routes",
        "Routes and outcomes",
        "routes",
        ["route"],
        [
            Column("route", "Route"),
            Column("upstream", "Upstream"),
            Column("streams", "Open", "count"),
            Column("outcomes.completed", "completed", "count"),
            Column("outcomes.client_disconnected", "client_\u200bdisconnected", "count"),
            Column("outcomes.upstream_error", "upstream_\u200berror", "bad"),
            Column("outcomes.upstream_timeout", "upstream_\u200btimeout", "bad"),
            Column("outcomes.send_stalled", "send_\u200bstalled", "bad"),
            Column("outcomes.intercepted", "intercepted", "count"),
            Column("outcomes.refused", "refused", "count"),
            Column("outcomes.internal_error", "internal_\u200berror", "bad"),
            Column("outcomes.draining", "draining", "count"),
            Column("bytes.downstream", "Bytes", "bytes", "to clients"),
        ],
        "outcomes.completed",
    ),
    Table(
        "endpoints",
        "Endpoints",
        "upstreams.*.endpoints",
        ["name", "endpoint"],
        [
            Column("name", "Upstream"),
            Column("endpoint", "Endpoint"),
            Column("state", "State", "state"),
            Column("outstanding", "Open", "count"),
            Column("failures", "Failures", "bad"),
            Column("ejections", "Ejections", "bad"),
            Column("retries", "Retries", "count"),
        ],
        "name",
        descending=False,
    ),
    Table(
        "connections",
        "Upstream connections",
        "upstreams.*.connections",
        ["name", "origin"],
        [
            Column("name", "Upstream"),
            Column("origin", "Origin"),
            Column("lent", "In use", "count"),
            Column("idle", "Idle", "count"),
            Column("waiting", "Waiting", "bad", "requests that wait for a connection"),
            Column("opened", "Opened", "count"),
            Column("reused", "Reused", "count"),
        ],
        "name",
        descending=False,
        empty="none yet",
    ),
    Table(
        "pools",
        "Buffer pools",
        "pools",
        ["pool"],
        [
            Column("pool", "Pool"),
            Column("size", "Buffer", "bytes"),
            Column("in_use", "In use", "count"),
            Column("current_size", "Idle", "count"),
            Column("max_pooled", "Most idle", "count"),
            Column("high_water", "High water", "count", "the most that were in use at once"),
            Column("reuse_rate", "Reuse rate", "percent"),
            Column("allocations", "Allocations", "count"),
            Column("reuses", "Reuses", "count"),
            Column("discards.full", "Discards: full", "count"),
            Column("discards.oversize", "oversize", "count"),
            Column("discards.exported", "exported", "bad"),
            Column("leaks", "Leaks", "bad"),
        ],
        "pool",
        descending=False,
    ),
    Table(
        "interceptors",
        "Interceptors",
        "interceptors",
        ["interceptor"],
        [
            Column("interceptor", "Interceptor"),
            Column("use", "Class"),
            Column("seconds_per_event", "Time/event", "seconds", "on the event loop"),
            Column("seconds_per_call", "Time/call", "seconds", "of a hook, on the event loop"),
            Column("calls", "Calls", "count", "of hooks"),
            Column("seconds", "On the loop", "seconds", "in total"),
            Column("waited", "Waited", "seconds", "by async hooks, in total"),
            Column("events", "Events", "count", "of its routes"),
            Column("unread_parts", "Not understood", "bad", "parts of answers"),
        ],
        "seconds",
    ),
    Table(
        "limits",
        "Limits",
        "limits",
        ["limit"],
        [
            Column("limit", "Limit"),
            Column("used", "Used", "count"),
            Column("of", "Of", "count"),
            Column("share", "Share", "share"),
        ],
        "share",
    ),
    Table(
        "budgets",
        "Budgets and rates",
        "budgets",
        ["interceptor", "key"],
        [
            Column("interceptor", "Interceptor"),
            Column("key", "Of"),
            Column("used", "Used", "count", "as of the last request"),
            Column("of", "Limit", "count"),
            Column("share", "Share", "share"),
            Column("at", "Last request", "clock", "UTC"),
        ],
        "share",
        empty="none in use",
    ),
    Table(
        "workers",
        "Workers",
        "workers",
        ["worker"],
        [
            Column("worker", "Worker", "id"),
            Column("pid", "Process", "id"),
            Column("health", "State", "state"),
            Column("streams", "Open", "count"),
            Column("connections.open", "Clients", "count", "open connections"),
            Column("generations", "Generations", "count", "configurations in use"),
            Column("memory", "Memory", "bytes", "resident"),
            Column("cpu_seconds", "CPU time", "age"),
            Column("started_at", "Started", "time"),
        ],
        "worker",
        descending=False,
    ),
]


def dashboard_view(state: State | None, configuration: Any, paths: dict[str, str]) -> State:
    """What the template needs. `state`: the JSON of `/status`; None if it needs a token."""
    spec = {"tables": TABLES, "figures": FIGURES, "charts": CHARTS, "paths": paths}
    return {
        "paths": paths,
        "spec": msgspec.json.encode(spec).decode().replace("<", "\\u003c"),
        "figures": [_figure(item, state) for item in FIGURES],
        "charts": [_chart(item, state) for item in CHARTS],
        "tables": {item.id: _table(item, state) for item in TABLES},
        "facts": [] if state is None else facts_of(state),
        "configuration": None if configuration is None else outline(configuration),
        "needs_token": state is None,
    }


def facts_of(state: State) -> list[tuple[str, str, str]]:
    """Id, label and text of the facts at the top."""
    reload, store = state["reload"], state["store"]
    if reload is None:
        reloaded = "none since the start"
    else:
        reloaded = ("done " if reload["ok"] else "FAILED ") + _time(reload["at"])
    where = store["at"] if store["up"] else f"{store['at']}: AWAY"
    return [
        ("version", "Version", state["version"]),
        ("started", "Running since", _time(state["started_at"])),
        ("store", "Store", where),
        ("reload", "Last reload", reloaded),
    ]


def outline(value: Any, indent: int = 0) -> str:
    """A configuration as YAML-like text."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            nested = isinstance(item, dict | list) and item
            lines.append(
                f"{pad}{key}:\n{outline(item, indent + 1)}"
                if nested
                else f"{pad}{key}: {outline(item)}"
            )
        return "\n".join(lines)
    if isinstance(value, list) and value:
        return "\n".join(f"{pad}- {outline(item, indent + 1).lstrip()}" for item in value)
    return pad + msgspec.json.encode(value).decode()


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def rows_of(table: Table, state: State) -> list[State]:
    """The rows of a table, unsorted."""
    head, _, tail = table.rows.partition(".*.")
    if tail:
        return [
            {"name": name, **row} for name, item in _at(state, head).items() for row in item[tail]
        ]
    rows: list[State] = _at(state, table.rows)
    if table.id == "routes":
        # Requests without a route, and routes that are gone: only if there were any.
        seen = (row for row in rows if row["upstream"] or any(row["outcomes"].values()))
        return [{**row, "route": row["route"] or _NO_ROUTE} for row in seen]
    if table.id in ("limits", "budgets"):
        return [{**row, "share": row["used"] / (row["of"] or 1)} for row in rows]
    if table.id == "workers":
        return [{**row, "health": _health(row)} for row in rows]
    return rows


def _health(row: State) -> str:
    return row.get("problem") or ("draining" if row["draining"] else "up")


_MOST_ROWS = 100


def _table(table: Table, state: State | None) -> State:
    rows = [] if state is None else rows_of(table, state)
    rows.sort(key=lambda row: _order(_at(row, table.sort)), reverse=table.descending)
    columns = [
        column
        for column in table.columns
        if not column.optional or any(_at(row, column.key) is not None for row in rows)
    ]
    return {
        "spec": table,
        "hidden": {column.key for column in table.columns} - {column.key for column in columns},
        "rows": [
            [(column.kind, text(column.kind, _at(row, column.key))) for column in columns]
            for row in rows[:_MOST_ROWS]
        ],
        "count": len(rows),
    }


def _order(value: Any) -> tuple[int, Any]:
    """Texts after numbers, none first."""
    if value is None:
        return (0, 0)
    return (2, value) if isinstance(value, str) else (1, value)


def _figure(figure: Figure, state: State | None) -> State:
    series = [] if state is None else _at(state["history"], figure.series)
    value = None if state is None else _at(state, figure.key)
    return {
        "spec": figure,
        "value": text(figure.kind, value),
        "line": line(series, _top(series)),
        "hidden": figure.optional and value is None,
    }


def _chart(chart: Chart, state: State | None) -> State:
    found = [[] if state is None else _at(state["history"], path) for _, path in chart.series]
    top = 1.0 if chart.kind == "percent" else max([_top(series) for series in found])
    return {
        "spec": chart,
        "top": text(chart.kind, top),
        "lines": [
            (name, line(series, top), text(chart.kind, series[-1] if series else None))
            for (name, _), series in zip(chart.series, found, strict=True)
        ],
    }


def _top(series: Sequence[float | None]) -> float:
    return max([item for item in series if item is not None], default=0.0) or 1.0


WIDTH, HEIGHT, STEPS = 180, 40, 180


def line(series: Sequence[float | None], top: float) -> str:
    """The path of an SVG line in a box of `WIDTH` x `HEIGHT`; the newest value is at the right."""
    parts, pen, first = [], "M", STEPS - len(series)
    for number, value in enumerate(series):
        if value is None:
            pen = "M"
            continue
        x = (first + number) * WIDTH / (STEPS - 1)
        parts.append(f"{pen}{x:.1f} {HEIGHT - 1 - value / top * (HEIGHT - 2):.1f}")
        pen = "L"
    return "".join(parts)


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _scaled(value: float, units: Sequence[str], step: float) -> str:
    number = 0
    while value >= step and number < len(units) - 1:
        value, number = value / step, number + 1
    return f"{value:.{0 if number == 0 or value >= 100 else 1}f} {units[number]}"


def _seconds(value: float) -> str:
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.{1 if value < 0.1 else 0}f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def _age(value: float) -> str:
    if value < 100:
        return f"{value:.1f} s"
    minutes, seconds = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {seconds:02} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02} h" if days else f"{hours} h {minutes:02} min"


_BYTES = ("B", "kB", "MB", "GB", "TB")
_KINDS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "state": str,
    "id": str,
    "count": lambda value: f"{value:,}".replace(",", "\u202f"),
    "rate": lambda value: f"{value:.{1 if value < 100 else 0}f}",
    "bytes": lambda value: _scaled(value, _BYTES, 1000),
    "byterate": lambda value: _scaled(value, [f"{unit}/s" for unit in _BYTES], 1000),
    "seconds": _seconds,
    "age": _age,
    "percent": lambda value: f"{value * 100:.1f} %",
    "time": _time,
    "clock": lambda value: time.strftime("%H:%M:%S", time.gmtime(value)),
}
_KINDS["bad"] = _KINDS["count"]
_KINDS["share"] = _KINDS["percent"]


def text(kind: str, value: Any) -> str:
    """A value as it is shown."""
    return _NONE if value is None else _KINDS[kind](value)
