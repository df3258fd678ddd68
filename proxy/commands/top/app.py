"""The screen of `weirpool top`, with Textual, which runs on asyncio.

All text from the proxy becomes `Text`: Textual reads plain strings as markup.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.events import Resize
from textual.widgets import ContentSwitcher, DataTable, Footer, Input, Static

from .client import Failure
from .plain import gauge_lines, table_lines
from .state import State
from .text import clean
from .view import (
    EXCHANGES,
    TABLES,
    Column,
    Row,
    Table,
    exchange_rows,
    headline,
    matches,
    problem_lines,
    reload_line,
    store_line,
)

__all__ = ["Top"]

_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red"}
_PAGES = ("exchanges", *TABLES)
_MOST_ROWS = 200
_SIDE_COLUMNS = 62
_WIDE = 150
_STALE_S = 3.0

Watch = Callable[[], AsyncGenerator[State | Failure, None]]


class Top(App[None]):
    """Shows the states that `watch()` yields."""

    CSS = """
    #head { height: 1; background: $panel; }
    #totals { height: auto; padding: 0 1; }
    #notice { height: auto; max-height: 4; padding: 0 1; display: none; }
    #pages { height: 1; padding: 0 1; background: $surface; }
    #body { height: 1fr; }
    #side { width: 68; padding: 0 1; display: none; border-left: solid $panel; }
    #detail { height: auto; padding: 0 1; background: $panel; display: none; }
    #filter { height: 1; border: none; padding: 0 1; display: none; }
    Screen.-wide-side #side { display: block; }
    DataTable { height: 1fr; }
    DataTable:nocolor > .datatable--cursor { text-style: reverse; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        # Before widgets: keys that follow at once are for the filter.
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("s", "sort", "Sort"),
        Binding("r", "reverse", "Reverse"),
        Binding("f", "follow", "Follow"),
        Binding("space", "pause", "Pause"),
        Binding("tab", "next_page", "Page", key_display="tab", priority=True),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
        Binding("escape", "leave", "Leave", show=False),
        *(
            Binding(str(number), f"page('{name}')", name, show=False)
            for number, name in enumerate(_PAGES, 1)
        ),
    ]

    def __init__(self, url: str, watch: Watch, interval_s: float = 1.0) -> None:
        """`interval_s`: least time between two updates; the proxy sends one a second."""
        # Without colours of its own, Textual leaves them all out for NO_COLOR.
        super().__init__(ansi_color="NO_COLOR" in os.environ)
        self._url = url
        self._watch = watch
        self._interval_s = interval_s
        self._state: State | None = None
        self._before: State | None = None
        self._came_at = self._shown_at = float("-inf")
        self._failure: Failure | None = None
        self._is_paused = False
        self._words = ""
        self._page = "exchanges"
        self._sorts: dict[str, tuple[int, bool]] = {"exchanges": (0, True)}
        self._followed: Row | None = None
        self._headings: dict[str, tuple[str, ...]] = {}

    def compose(self) -> ComposeResult:
        """The parts of the screen, from top to bottom."""
        yield Static(id="head")
        yield Static(id="totals")
        yield Static(id="notice")
        yield Static(id="pages")
        with Horizontal(id="body"):
            with ContentSwitcher(initial="exchanges"):
                for name in _PAGES:
                    yield DataTable[Text](id=name, cursor_type="row", zebra_stripes=True)
            with VerticalScroll(id="side", can_focus=False):
                yield Static(id="sections")
        yield Static(id="detail")
        yield Input(
            id="filter", placeholder="words, or column:word, such as route:/v1", compact=True
        )
        yield Footer()

    def on_mount(self) -> None:
        """Start to watch."""
        self.title = "weirpool top"
        self._table("exchanges").focus()
        self.run_worker(self._follow_proxy(), exclusive=True)
        self.set_interval(1.0, self._show_head)
        self._show()

    async def _follow_proxy(self) -> None:
        async with aclosing(self._watch()) as news:
            async for item in news:
                if isinstance(item, Failure):
                    self._failure = item
                    self._show_head()
                    continue
                self._failure = None
                self._came_at = now = time.monotonic()
                if not self._is_paused and now >= self._shown_at + self._interval_s - 0.1:
                    self._shown_at = now
                    self._before, self._state = self._state, item
                    self._show()

    def on_resize(self, event: Resize) -> None:
        """Use the width of a large terminal for the other tables."""
        self.screen.set_class(event.size.width >= _WIDE, "-wide-side")
        self._show()

    # Showing

    @property
    def _is_up(self) -> bool:
        """Whether the parts can be used: events also come before and after that."""
        return self.is_running and bool(self.query(Footer))

    def _table(self, name: str) -> DataTable[Text]:
        return self.query_one(f"#{name}", DataTable)

    def _static(self, name: str) -> Static:
        return self.query_one(f"#{name}", Static)

    def _show(self) -> None:
        """Show the newest state."""
        if not self._is_up:
            return
        self._show_head()
        self._show_pages()
        if self._state is None:
            return
        state, width = self._state, self.size.width - 2
        totals = [*gauge_lines(state, width), _last_line(state)[:width]]
        self._static("totals").update(Text("\n".join(totals), no_wrap=True))
        rows = exchange_rows(state, self._before)
        self._follow(state, rows)
        if self._page == "exchanges":
            self._fill("exchanges", Table("", EXCHANGES, rows))
        else:
            self._fill(self._page, TABLES[self._page](state))
        if self.screen.has_class("-wide-side"):
            self._static("sections").update(_sections(state))

    def _show_head(self) -> None:
        """The first line, and what is wrong."""
        if not self._is_up:
            return
        silent_s = time.monotonic() - self._came_at
        mood, text = "good", "live"
        if self._failure is not None:
            mood, text = "bad", "not connected"
        elif self._state is None:
            mood, text = "warn", "connecting"
        elif silent_s > _STALE_S + self._interval_s:
            mood, text = "bad", f"no news for {silent_s:.0f} s"
        elif self._is_paused:
            mood, text = "warn", "paused"
        head = Text(" weirpool top ", "bold", no_wrap=True, overflow="ellipsis")
        head.append(text, _STYLES[mood])
        head.append(f"  {clean(self._url)}")
        if self._state is not None:
            head.append(f"  {headline(self._state)}")
        self._static("head").update(head)
        problems = []
        if self._failure is not None:
            again = f"; next attempt in {self._failure.retry_s:.0f} s"
            problems.append(clean(self._failure.text) + again)
        elif self._state is not None:
            problems += problem_lines(self._state)
        notice = self._static("notice")
        notice.display = bool(problems)
        notice.update(Text("\n".join(problems), _STYLES["bad"]))

    def _show_pages(self) -> None:
        line = Text(no_wrap=True)
        for number, name in enumerate(_PAGES, 1):
            style = "reverse bold" if name == self._page else ""
            line.append(f"{number} {name}", style)
            line.append(" ")
        self._static("pages").update(line)

    def _fill(self, name: str, table: Table) -> None:
        """Put rows into a table; the cursor stays on its row, or on the followed one."""
        widget = self._table(name)
        at, descending = self._sorts.get(name, (-1, False))
        labels = tuple(
            column.label + (" ▼" if descending else " ▲") * (number == at)
            for number, column in enumerate(table.columns)
        )
        rows = [row for row in table.rows if matches(row, self._words, table.columns)]
        if at >= 0:
            rows.sort(key=lambda row: row.order[at], reverse=descending)
        kept = self._followed.key if name == "exchanges" and self._followed else None
        if kept is None and widget.is_valid_row_index(widget.cursor_row):
            kept = widget.coordinate_to_cell_key(widget.cursor_coordinate).row_key.value
        position, scrolled = widget.cursor_row, widget.scroll_offset
        widget.clear(columns=self._headings.get(name) != labels)
        if self._headings.get(name) != labels:
            self._headings[name] = labels
            for label, column in zip(labels, table.columns, strict=True):
                widget.add_column(_cell(label, column), key=column.label or "NOTE")
        shown = rows[:_MOST_ROWS]
        for row in shown:
            style = _STYLES.get(row.mood, "")
            cells = zip(row.cells, table.columns, strict=True)
            widget.add_row(*(_cell(cell, column, style) for cell, column in cells), key=row.key)
        found = next((number for number, row in enumerate(shown) if row.key == kept), position)
        widget.move_cursor(
            row=max(0, min(found, len(shown) - 1)), scroll=self._followed is not None
        )
        widget.scroll_to(scrolled.x, scrolled.y, animate=False)

    def _follow(self, state: State, rows: list[Row]) -> None:
        """Show the followed exchange in full, also after its end."""
        detail = self._static("detail")
        detail.display = self._followed is not None
        if self._followed is None:
            return
        now = next((row for row in rows if row.key == self._followed.key), None)
        self._followed = now or self._followed
        is_listed = now is not None or state.exchanges.total <= len(rows)
        note = "following " if now else "ended     " if is_listed else "not listed"
        text = Text(f"{note} ", "bold")
        for column, cell in zip(EXCHANGES, self._followed.cells, strict=True):
            text.append(f"{column.label.lower()} ", "dim")
            text.append(f"{cell}  ")
        detail.update(text)

    # Keys

    def action_page(self, name: str) -> None:
        """Show a table."""
        self._page = name
        self.query_one(ContentSwitcher).current = name
        self._table(name).focus()
        self._show()

    def action_next_page(self) -> None:
        """Show the next table."""
        self.action_page(_PAGES[(_PAGES.index(self._page) + 1) % len(_PAGES)])

    def action_sort(self) -> None:
        """Sort by the next column: numbers from the largest."""
        columns: Sequence[Column] = EXCHANGES
        if self._page != "exchanges":
            columns = TABLES[self._page](self._state or State()).columns
        at = (self._sorts.get(self._page, (-1, False))[0] + 1) % len(columns)
        self._sorts[self._page] = at, columns[at].is_number
        self._show()

    def action_reverse(self) -> None:
        """Sort in the other order."""
        at, descending = self._sorts.get(self._page, (0, True))
        self._sorts[self._page] = at, not descending
        self._show()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sort by a column that was clicked."""
        at, descending = self._sorts.get(self._page, (-1, False))
        self._sorts[self._page] = event.column_index, at == event.column_index and not descending
        self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """A `/` in the filter is text."""
        return action != "filter" or not isinstance(self.focused, Input)

    def action_filter(self) -> None:
        """Enter a filter."""
        field = self.query_one("#filter", Input)
        field.display = True
        self.screen.set_focus(field)  # at once, for the keys that follow

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the user types."""
        self._words = event.value
        self._show()

    def on_input_submitted(self) -> None:
        """Keep the filter, which stays in sight if there is one."""
        self.query_one("#filter", Input).display = bool(self._words)
        self._table(self._page).focus()

    def action_leave(self) -> None:
        """Drop the filter, or else stop to follow."""
        field = self.query_one("#filter", Input)
        if self._words or field.display:
            field.value = self._words = ""
            field.display = False
        else:
            self._followed = None
        self._table(self._page).focus()
        self._show()

    def action_follow(self) -> None:
        """Follow the exchange under the cursor, or no longer."""
        table = self._table("exchanges")
        if self._followed is not None:
            self._followed = None
        elif self._state is not None and table.row_count:
            key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
            rows = exchange_rows(self._state, self._before)
            self._followed = next((row for row in rows if row.key == key), None)
        self.action_page("exchanges")

    def action_pause(self) -> None:
        """Keep the values, or show new ones again."""
        self._is_paused = not self._is_paused
        self._show_head()


def _last_line(state: State) -> str:
    last = state.reload
    reload = reload_line(state) if last is None or last.ok else "reload: FAILED"
    return f"{reload}   {store_line(state)}"


def _cell(text: str, column: Column, style: str = "") -> Text:
    return Text(text, style, justify="right" if column.is_number else "left")


def _sections(state: State) -> Text:
    """The other tables, for the side of a large terminal."""
    text = Text(no_wrap=True)
    for make in TABLES.values():
        table = make(state)
        if table.rows:
            lines = table_lines(table, _SIDE_COLUMNS)
            text.append(f"{table.title}\n", "bold")
            text.append(f"{lines[0]}\n", "dim")
            for line, row in zip(lines[1:], table.rows, strict=True):
                text.append(f"{line}\n", _STYLES.get(row.mood, ""))
            text.append("\n")
    return text
