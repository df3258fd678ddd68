"""The dashboard's HTML: the texts, lines and rows of the layout, from the JSON of `/status`.

`_KINDS` formats values; `dashboard.js` has the same kinds for the updates that follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .layout import CHARTS, FIGURES, TABLES, Chart, Figure, Table

__all__ = ["dashboard_view"]

State = dict[str, Any]
_NONE = "–"
_NO_ROUTE = "(no route)"


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
