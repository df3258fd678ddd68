"""A state as lines and tables of text. It knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .state import Exchange, State
from .text import BARS, age, byte_count, clean, count, duration, durations, spark

__all__ = [
    "EXCHANGES",
    "TABLES",
    "Column",
    "Gauge",
    "Row",
    "Table",
    "exchange_rows",
    "gauges",
    "headline",
    "matches",
    "problem_lines",
    "reload_line",
    "store_line",
]

_STATES = {"up": "good", "probing": "warn", "ejected": "bad"}
_GOOD = ("completed", "client_disconnected")


class Column(NamedTuple):
    """A column: its heading, and whether its values are numbers, which align to the right."""

    label: str
    is_number: bool = False


class Row(NamedTuple):
    """A line of a table."""

    key: str
    cells: tuple[str, ...]
    order: tuple[Any, ...]
    """Values to sort by, one for each cell."""
    mood: str = ""
    """`good`, `warn`, `bad` or nothing."""


class Table(NamedTuple):
    """A table with a title."""

    title: str
    columns: tuple[Column, ...]
    rows: list[Row]


class Gauge(NamedTuple):
    """A number with its recent past."""

    label: str
    value: str
    past: Sequence[float | None] = ()
    mood: str = ""

    def line(self, width: int, bars: str = BARS) -> str:
        """Label, value and bars in exactly `width` columns."""
        text = f"{self.label} {self.value}"
        if not self.past:
            return text[:width].ljust(width)
        return f"{text[: width - 2]} {spark(self.past, width - len(text) - 1, bars)}"[:width]


def headline(state: State) -> str:
    """The proxy in one line."""
    serving = sum(worker.problem is None for worker in state.workers)
    parts = [f"v{clean(state.version)}", f"up {age(state.now - state.started_at)}"]
    if len(state.workers) > 1:
        parts.append(f"{serving} of {len(state.workers)} workers")
    if state.draining:
        parts.append("DRAINING")
    if not state.store.up:
        parts.append("STORE AWAY")
    if state.reload is not None and not state.reload.ok:
        parts.append("RELOAD FAILED")
    return "  ".join(parts)


def gauges(state: State) -> list[Gauge]:
    """The totals. Times are the quantiles 50, 95 and 99 %."""
    rates, past, times = state.rates, state.history, state.times.first_byte
    found = [
        Gauge("streams", count(state.streams), past.streams),
        Gauge("exchanges/s", count(rates.exchanges), past.exchanges),
        Gauge("events/s", count(rates.events), past.events),
        Gauge("failures/s", count(rates.failures), past.failures, "bad" if rates.failures else ""),
        Gauge("bytes/s", byte_count(rates.bytes), past.bytes),
        Gauge("first byte", durations(times.p50, times.p95, times.p99)),
    ]
    if (token := state.times.first_token) is not None and token.count:
        found.append(Gauge("first token", durations(token.p50, token.p95, token.p99)))
    return found


def reload_line(state: State) -> str:
    """The last reload."""
    last = state.reload
    if last is None:
        return "reload: none since the start"
    when = f"reload {age(state.now - last.at)} ago: "
    if not last.ok:
        return clean(f"{when}FAILED: {'; '.join(last.errors) or 'see the log'}")
    changed = ", ".join(last.changed) or "nothing"
    needs = f"; needs a restart: {', '.join(last.needs_restart)}" if last.needs_restart else ""
    return clean(f"{when}ok, changed {changed}{needs}")


def problem_lines(state: State) -> list[str]:
    """What an operator must see at once."""
    lines = [
        f"worker {item.worker} {clean(item.problem)}" for item in state.workers if item.problem
    ]
    if not state.store.up:
        lines.append(store_line(state))
    if state.reload is not None and not state.reload.ok:
        lines.append(reload_line(state))
    return lines


def store_line(state: State) -> str:
    """The store."""
    failures = sum(state.store.failures.values())
    up = "up" if state.store.up else "AWAY"
    return clean(f"store {state.store.at or '-'}: {up}, {count(failures)} failures")


# Exchanges

EXCHANGES = (
    Column("AGE", True),
    Column("PHASE"),
    Column("ROUTE"),
    Column("CLIENT"),
    Column("EVENTS", True),
    Column("EV/S", True),
    Column("BYTES", True),
    Column("B/S", True),
    Column("ENDPOINT"),
    Column("CALL"),
    Column("METHOD"),
    Column("PATH"),
    Column("REQUEST"),
    Column("ID"),
)
"""`ID` is the worker and the number of the exchange in it."""


def exchange_rows(state: State, before: State | None = None) -> list[Row]:
    """The live exchanges. Their rates are those since the state `before`."""
    earlier = {} if before is None else {item.key: item for item in before.exchanges.oldest}
    passed_s = 0.0 if before is None else state.now - before.now
    rows = []
    for item in state.exchanges.oldest:
        past = earlier.get(item.key)
        events = bytes_ = None
        if past is not None and passed_s > 0:
            bytes_ = (item.bytes - past.bytes) / passed_s
            if item.events is not None and past.events is not None:
                events = (item.events - past.events) / passed_s
        rows.append(_exchange_row(item, events, bytes_))
    return rows


def _exchange_row(item: Exchange, events_s: float | None, bytes_s: float | None) -> Row:
    cells = (
        age(item.age),
        clean(item.phase),
        clean(item.route),
        clean(item.client),
        count(item.events),
        count(events_s),
        byte_count(item.bytes),
        byte_count(bytes_s),
        clean(item.endpoint),
        clean(item.call),
        clean(item.method),
        clean(item.path),
        clean(item.request_id),
        item.key,
    )
    numbers = (item.events, events_s, item.bytes, bytes_s)
    order = (
        item.age,
        *cells[1:4],
        *(-1 if number is None else number for number in numbers),
        *cells[8:13],
        (item.worker, item.id),
    )
    return Row(item.key, cells, order)


def matches(row: Row, words: str, columns: Sequence[Column] = EXCHANGES) -> bool:
    """Whether a row has all words of a filter, in any cell; `column:word` in that cell. Case does
    not matter.
    """
    labels = [column.label.lower() for column in columns]
    for word in words.lower().split():
        label, colon, rest = word.partition(":")
        if colon and label in labels:
            if rest not in row.cells[labels.index(label)].lower():
                return False
        elif not any(word in cell.lower() for cell in row.cells):
            return False
    return True


# The other tables


def endpoints(state: State) -> Table:
    """Endpoints with their health and connections."""
    columns = ("UPSTREAM", "ENDPOINT", "STATE", "STREAMS#", "IDLE#", "WAIT#", "FAILED#", "EJECT#")
    rows = []
    for name, upstream in state.upstreams.items():
        pooled = {item.origin: item for item in upstream.connections}
        for item in upstream.endpoints:
            pool = pooled.get(item.endpoint)
            numbers = (
                item.outstanding,
                None if pool is None else pool.idle,
                None if pool is None else pool.waiting,
                item.failures,
                item.ejections,
            )
            texts = (clean(name), clean(item.endpoint), clean(item.state))
            rows.append(
                _row(f"{name} {item.endpoint}", texts, numbers, _STATES.get(item.state, ""))
            )
    return Table("Endpoints", _columns(*columns), rows)


def routes(state: State) -> Table:
    """Routes with their outcomes."""
    names = [name for name in _outcomes(state) if name != "completed"]
    labels = [name.upper().replace("_", " ") for name in names]
    columns = ("ROUTE", "STREAMS#", "COMPLETED#", *(f"{label}#" for label in labels))
    rows = []
    for item in state.routes:
        if not (item.route or any(item.outcomes.values())):
            continue  # requests that matched no route, and there were none
        numbers = [item.streams, item.outcomes.get("completed", 0)]
        numbers += [item.outcomes.get(name, 0) for name in names]
        rows.append(_row(item.route, (clean(item.route) or "(none)",), numbers))
    return Table("Outcomes", _columns(*columns), rows)


def _outcomes(state: State) -> list[str]:
    """The outcomes that have occurred, and `completed`."""
    found = {"completed": None}
    for route in state.routes:
        found |= {clean(name): None for name, number in route.outcomes.items() if number}
    return list(found)


def interceptors(state: State) -> Table:
    """Interceptors with their time on the event loop."""
    times = ("EVENTS#", "PER EVENT#", "CALLS#", "PER CALL#", "ON LOOP#", "WAITED#")
    rows = []
    for item in state.interceptors:
        cells = (
            clean(item.interceptor),
            clean(item.use),
            count(item.events),
            duration(item.seconds_per_event),
            count(item.calls),
            duration(item.seconds_per_call),
            duration(item.seconds),
            duration(item.waited),
            count(item.unread_parts),
        )
        means = (item.events, item.seconds_per_event or 0, item.calls, item.seconds_per_call or 0)
        order = (*cells[:2], *means, item.seconds, item.waited, item.unread_parts)
        rows.append(Row(item.interceptor, cells, order))
    return Table("Interceptors", _columns("INTERCEPTOR", "USE", *times, "UNREAD#"), rows)


def workers(state: State) -> Table:
    """The processes."""
    columns = ("WORKER", "PID#", "UP#", "STREAMS#", "CLIENTS#", "MEMORY#", "CPU#", "CONFIGS#", "")
    rows = []
    for item in state.workers:
        note, mood = ("draining", "warn") if item.draining else ("", "")
        if item.problem is not None:
            blank = ("-",) * (len(columns) - 2)
            cells = (str(item.worker), *blank, clean(item.problem))
            rows.append(Row(str(item.worker), cells, (item.worker, *(0,) * 7, item.problem), "bad"))
            continue
        up_s = state.now - item.started_at
        cells = (
            str(item.worker),
            str(item.pid),
            age(up_s),
            count(item.streams),
            count(item.connections.open),
            byte_count(item.memory),
            age(item.cpu_seconds),
            count(item.generations),
            note,
        )
        numbers = (item.streams, item.connections.open, item.memory or 0, item.cpu_seconds)
        order = (item.worker, item.pid, up_s, *numbers, item.generations, note)
        rows.append(Row(str(item.worker), cells, order, mood))
    return Table("Workers", _columns(*columns), rows)


def pools(state: State) -> Table:
    """Buffer pools."""
    columns = ("POOL", "IN USE#", "IDLE#", "MOST IDLE#", "REUSED#", "DISCARDED#", "PEAK#", "LEAKS#")
    rows = []
    for item in state.pools:
        discards = sum(item.discards.values())
        rate = f"{100 * item.reuse_rate:.1f} %"
        cells = (
            clean(item.pool),
            count(item.in_use),
            count(item.current_size),
            count(item.max_pooled),
            rate,
            count(discards),
            count(item.high_water),
            count(item.leaks),
        )
        numbers = (item.in_use, item.current_size, item.max_pooled, item.reuse_rate, discards)
        order = (cells[0], *numbers, item.high_water, item.leaks)
        rows.append(Row(item.pool, cells, order, "bad" if item.leaks else ""))
    return Table("Pools", _columns(*columns), rows)


def limits(state: State) -> Table:
    """Limits and budgets, and their use."""
    found = [(item.limit, item.used, item.of) for item in state.limits]
    found += [(f"{item.interceptor}: {item.key}", item.used, item.of) for item in state.budgets]
    rows = []
    for name, used, of in found:
        share = used / of if of else 0.0
        shown = byte_count if name.endswith("_bytes") else count
        cells = (clean(name), shown(used), shown(of), f"{100 * share:.0f} %")
        mood = "bad" if share >= 1 else "warn" if share >= 0.8 else ""
        rows.append(Row(name, cells, (cells[0], used, of or 0, share), mood))
    return Table("Limits", _columns("LIMIT", "USED#", "OF#", "SHARE#"), rows)


def _columns(*labels: str) -> tuple[Column, ...]:
    """Columns; a label with `#` at its end has numbers."""
    return tuple(Column(label.rstrip("#"), label.endswith("#")) for label in labels)


def _row(key: str, texts: Sequence[str], numbers: Sequence[float | None], mood: str = "") -> Row:
    cells = (*texts, *map(count, numbers))
    return Row(key, cells, (*texts, *(-1 if item is None else item for item in numbers)), mood)


TABLES: dict[str, Callable[[State], Table]] = {
    "endpoints": endpoints,
    "outcomes": routes,
    "interceptors": interceptors,
    "pools": pools,
    "workers": workers,
    "limits": limits,
}
"""The tables besides that of the exchanges, in the order in which they are shown."""
