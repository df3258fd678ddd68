"""One screen of plain text: `weirpool top --once`, and the side of a large terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .state import State
from .text import BARS
from .view import (
    EXCHANGES,
    TABLES,
    Column,
    Row,
    Table,
    exchange_rows,
    gauges,
    headline,
    reload_line,
    store_line,
)

__all__ = ["gauge_lines", "screen", "table_lines"]

_MOST_CELL = 40
_LEAST_EXCHANGES = 10
_PER_LINE = 3


def screen(state: State, url: str, width: int, height: int, bars: str = BARS) -> list[str]:
    """All of a state: the totals, each table that has rows, and the oldest exchanges that fit."""
    lines = [f"weirpool {url}  {headline(state)}"]
    lines += gauge_lines(state, width, bars)
    lines += [store_line(state), reload_line(state)]
    for table in (make(state) for make in TABLES.values()):
        if table.rows:
            lines += ["", table.title, *table_lines(table, width)]
    rows = exchange_rows(state)
    most = max(_LEAST_EXCHANGES, height - len(lines) - 4)
    shown = f"{min(most, len(rows))} of {state.exchanges.total}, oldest first"
    lines += ["", f"Exchanges: {shown if rows else 'none'}"]
    if rows:
        lines += table_lines(Table("", EXCHANGES, rows[:most]), width)
    return [line[:width].rstrip() for line in lines]


def gauge_lines(state: State, width: int, bars: str = BARS) -> list[str]:
    """The totals, three a line."""
    cell = max(10, (width - 2 * (_PER_LINE - 1)) // _PER_LINE)
    cells = [gauge.line(cell, bars) for gauge in gauges(state)]
    starts = range(0, len(cells), _PER_LINE)
    return ["  ".join(cells[start : start + _PER_LINE]) for start in starts]


def table_lines(table: Table, width: int) -> list[str]:
    """A table with its heading. Columns that do not fit are left out from the right."""
    widths = [_width(table, at) for at in range(len(table.columns))]
    while len(widths) > 1 and sum(widths) + 2 * (len(widths) - 1) > width:
        widths.pop()
    heading = _line([column.label for column in table.columns], table.columns, widths)
    return [heading, *(_row_line(row, table.columns, widths) for row in table.rows)]


def _width(table: Table, at: int) -> int:
    cells = (len(row.cells[at]) for row in table.rows)
    return min(_MOST_CELL, max(len(table.columns[at].label), *cells, 0))


def _row_line(row: Row, columns: Sequence[Column], widths: Sequence[int]) -> str:
    return _line(row.cells, columns, widths)


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    texts = []
    for cell, column, width in zip(cells, columns, widths, strict=False):
        text = cell if len(cell) <= width else cell[: width - 1] + "~"
        texts.append(text.rjust(width) if column.is_number else text.ljust(width))
    return "  ".join(texts).rstrip()
