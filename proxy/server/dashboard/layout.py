"""What the dashboard shows: figures, charts and tables, each by its path in the JSON of `/status`.

The page's HTML (`view`) and its script (`dashboard.js`) both follow this layout.
"""

from __future__ import annotations

import msgspec

from pools import POOL_NAMES

__all__ = ["CHARTS", "FIGURES", "TABLES", "Chart", "Column", "Figure", "Table"]


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

CHARTS = [
    *(
        Chart(
            f"pool_{pool}",
            f"Pool {pool}: buffers",
            "count",
            [("in use", f"pools.{pool}.in_use"), ("idle", f"pools.{pool}.idle")],
        )
        for pool in POOL_NAMES
    ),
    Chart(
        "pool_reuse",
        "Pools: reuse rate",
        "percent",
        [(pool, f"pools.{pool}.reuse_rate") for pool in POOL_NAMES],
    ),
    Chart(
        "pool_discards",
        "Pools: discards",
        "count",
        [(pool, f"pools.{pool}.discards") for pool in POOL_NAMES],
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
