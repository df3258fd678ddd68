"""`weirpool top`: states as text, and the screen by key presses. Textual needs asyncio, only here."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from proxy.commands.place import read_place
from proxy.commands.top import text
from proxy.commands.top.app import Top
from proxy.commands.top.client import Failure
from proxy.commands.top.plain import screen
from proxy.commands.top.state import State, decode_state
from proxy.commands.top.view import EXCHANGES, TABLES, exchange_rows, gauges

EVIL = "[bold red]/x[/]\x1b[2J\u202e\u2028"
"""Markup, and characters that control a terminal or reorder a line."""
SHOWN = "[bold red]/x[/]\\x1b[2J\\u202e\\u2028"


def exchange(number: int, **changes: object) -> dict[str, object]:
    return {
        "worker": 0, "id": number, "route": "/v1", "client": "ann", "method": "POST", "path": f"/v1/{number}",
        "phase": "relay", "age": float(number), "bytes": 100 * number, "events": 10 * number, "endpoint": "http://e",
        **changes,
    }  # fmt: skip


def state(*listed: dict[str, object], now: float = 1000.0, **changes: object) -> State:
    """A state as the proxy sends it."""
    whole = {
        "version": "1.2", "now": now, "started_at": 940.0, "streams": len(listed),
        "exchanges": {"total": len(listed), "oldest": list(listed)},
        "history": {"streams": [0, 1, 2]},
        "upstreams": {"llm": {"endpoints": [{"endpoint": "http://e", "state": "ejected", "failures": 3}]}},
        "workers": [{"worker": 0, "pid": 7, "started_at": 940.0}, {"worker": 1, "problem": "is starting"}],
        **changes,
    }  # fmt: skip
    return decode_state(json.dumps(whole).encode())


NUMBERS: list[tuple[Callable[..., str], list[object], str]] = [
    (text.count, [None], "-"),
    (text.count, [0], "0"),
    (text.count, [0.26], "0.3"),
    (text.count, [9.96], "10"),
    (text.count, [9999], "9,999"),
    (text.count, [12_345], "12.3k"),
    (text.count, [999_999], "1.0M"),
    (text.byte_count, [999], "999 B"),
    (text.byte_count, [1234], "1.2 kB"),
    (text.byte_count, [134_217_728], "134 MB"),
    (text.duration, [None], "-"),
    (text.duration, [0], "0"),
    (text.duration, [0.0000404], "40 us"),
    (text.duration, [0.00099], "990 us"),
    (text.duration, [0.0123], "12 ms"),
    (text.duration, [0.5], "500 ms"),
    (text.duration, [1.54], "1.5 s"),
    (text.durations, [None, None, None], "-"),
    (text.durations, [0.009, 0.033, 0.12], "9.0/33/120 ms"),
    (text.durations, [0.5, 1.5, 12.0], "0.5/1.5/12 s"),
    (text.age, [0.44], "0.4s"),
    (text.age, [59.9], "59s"),
    (text.age, [125], "2m05s"),
    (text.age, [12_000], "3h20m"),
    (text.age, [367_200], "4d06h"),
    (text.spark, [[0, 0], 3], " ▁▁"),
    (text.spark, [[9, 0, None, 1, 2, 4], 5], "▁ ▃▅█"),
    (text.clean, ["plain é"], "plain é"),
    (text.clean, [None], "-"),
    (text.clean, [EVIL], SHOWN),
]


@pytest.mark.parametrize(("function", "arguments", "written"), NUMBERS)
def test_numbers(function: Callable[..., str], arguments: list[object], written: str) -> None:
    assert function(*arguments) == written


def test_a_screen_fits_and_shows_nothing_that_controls_a_terminal() -> None:
    """Also of a proxy that sends much less than this one, or texts that are meant for it."""
    evil = state(exchange(1, path=EVIL, route=EVIL, client=EVIL, phase=EVIL), version=EVIL)
    for shown in (evil, decode_state(b"{}"), state(*map(exchange, range(1, 200)))):
        for width in (40, 80, 200):
            lines = screen(shown, "http://x", width, 24)
            assert all(len(line) <= width and line.isprintable() for line in lines)
    assert SHOWN in screen(evil, "http://x", 80, 24)[0]
    assert sum("relay" in line for line in lines) == 10  # what fits, and at least so many


def test_what_is_no_state_is_refused() -> None:
    for data in (b"<html>", b"[]", b'{"streams": "many"}'):
        with pytest.raises(ValueError, match="not the state of a weirpool"):
            decode_state(data)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("https://h.example/-/", "https://h.example/-"),
        ("http://h/-/dashboard", "http://h/-"),
        ("http://h/status/stream", "http://h"),
        ("http://h/-/inspect", "http://h/-"),
        ("ftp://h", None),
        ("http://", None),
        ("http://h:x", None),
        ("http://u:p@h", None),
        ("http://h/?x=1", None),
    ],
)
def test_urls(url: str, place: str | None) -> None:
    if place is None:
        with pytest.raises(ValueError, match="--url: "):
            read_place(url, None)
    else:
        assert read_place(url, None).url == place


def test_the_token_is_in_no_text() -> None:
    place = read_place("http://h", "s3cr3t")
    assert "s3cr3t" not in repr(place)
    assert place.headers == {"authorization": "Bearer s3cr3t"}
    with pytest.raises(ValueError, match="--token: must be visible ASCII"):
        read_place("http://h", "a\nb")


def test_rates_of_an_exchange_are_those_since_the_state_before() -> None:
    before, after = (
        state(exchange(5)),
        state(exchange(5, bytes=900, events=70), exchange(6), now=1002.0),
    )
    first, second = exchange_rows(after, before)
    assert (first.cells[5], first.cells[7]) == ("10", "200 B")
    assert (second.cells[5], second.cells[7]) == ("-", "-")


# The screen

Script = Callable[[Top, Pilot[None], "asyncio.Queue[State | Failure]"], Coroutine[Any, Any, None]]


def run(script: Script, size: tuple[int, int] = (80, 24)) -> None:
    """Run a script against the app; what it puts into the queue comes from the proxy."""

    async def main() -> None:
        queue: asyncio.Queue[State | Failure] = asyncio.Queue()

        async def watch() -> AsyncGenerator[State | Failure, None]:
            while True:
                yield await queue.get()
                queue.task_done()  # the app has shown it

        app = Top("http://h", watch, interval_s=0.0)
        async with app.run_test(size=size) as pilot:
            await script(app, pilot, queue)

    asyncio.run(main())


async def came(pilot: Pilot[None], queue: asyncio.Queue[State | Failure]) -> None:
    """Return when the app has shown what is in the queue."""
    await queue.join()
    await pilot.pause()


def shown(app: Top, name: str) -> str:
    return str(app.query_one(f"#{name}", Static).content)


def keys(app: Top, name: str = "exchanges") -> list[str]:
    return [str(key.value) for key in app.query_one(f"#{name}", DataTable).rows]


def test_sort_filter_and_follow() -> None:
    async def script(app: Top, pilot: Pilot[None], queue: asyncio.Queue[State | Failure]) -> None:
        listed = [exchange(1, route="/mcp"), exchange(2, client="bob"), exchange(3)]
        queue.put_nowait(state(*listed))
        await came(pilot, queue)
        assert keys(app) == ["0-3", "0-2", "0-1"]  # by age
        await pilot.press("r")
        assert keys(app) == ["0-1", "0-2", "0-3"]
        await pilot.press("s", "s")  # by route
        assert keys(app) == ["0-1", "0-2", "0-3"]
        await pilot.press("slash", *"client:BOB")
        assert keys(app) == ["0-2"]
        await pilot.press("enter", "f")
        assert "following" in shown(app, "detail")
        await pilot.press("escape")
        assert keys(app) == ["0-1", "0-2", "0-3"]
        await pilot.press("slash", *"/mcp/v1")  # a slash is text there
        assert keys(app) == []
        await pilot.press("escape")

        table = app.query_one("#exchanges", DataTable)
        queue.put_nowait(state(exchange(0, route="/a"), *listed, now=1001.0))
        await came(pilot, queue)
        assert (keys(app)[table.cursor_row], table.cursor_row) == ("0-2", 2)  # it stays there
        queue.put_nowait(state(listed[0], now=1002.0))
        await came(pilot, queue)
        assert shown(app, "detail").startswith("ended")
        assert "client bob" in shown(app, "detail")
        await pilot.press("f")
        assert not app.query_one("#detail").display

    run(script)


def test_every_page_is_shown_without_markup_and_in_colour() -> None:
    async def script(app: Top, pilot: Pilot[None], queue: asyncio.Queue[State | Failure]) -> None:
        queue.put_nowait(state(exchange(1, path=EVIL), version=EVIL))
        await came(pilot, queue)
        table = app.query_one("#exchanges", DataTable)
        assert str(table.get_cell("0-1", "PATH")) == SHOWN
        assert SHOWN in shown(app, "head")
        for number, name in enumerate(TABLES, 2):
            await pilot.press(str(number))
            expected = TABLES[name](state())
            assert keys(app, name) == [row.key for row in expected.rows]
        endpoint = app.query_one("#endpoints", DataTable).get_cell("llm http://e", "STATE")
        assert (str(endpoint), str(endpoint.style)) == ("ejected", "bold red")
        await pilot.press("tab")  # from the last one
        assert app.query_one("#exchanges").has_focus
        assert "worker 1 is starting" in shown(app, "notice")
        assert not app.query_one("#side").display
        await pilot.resize_terminal(160, 40)
        await pilot.pause()
        assert app.query_one("#side").display
        assert "ejected" in shown(app, "sections")

    run(script)


def test_it_says_what_is_wrong_and_pauses() -> None:
    async def script(app: Top, pilot: Pilot[None], queue: asyncio.Queue[State | Failure]) -> None:
        assert "connecting" in shown(app, "head")
        queue.put_nowait(Failure("http://h: Connection [red]refused", 4))
        await came(pilot, queue)
        assert "not connected" in shown(app, "head")
        assert shown(app, "notice") == "http://h: Connection [red]refused; next attempt in 4 s"
        reload = {"at": 990.0, "ok": False, "errors": ["routes[0]: no upstream has the name 'x'"]}
        queue.put_nowait(state(exchange(1), reload=reload, store={"at": "valkey://h", "up": False}))
        await came(pilot, queue)
        assert "live" in shown(app, "head")
        assert "routes[0]: no upstream" in shown(app, "notice")
        assert "store valkey://h: AWAY" in shown(app, "notice")
        await pilot.press("space")
        queue.put_nowait(state(exchange(1), exchange(2)))
        await came(pilot, queue)
        assert ("paused" in shown(app, "head"), keys(app)) == (True, ["0-1"])
        await pilot.press("space")
        queue.put_nowait(state(exchange(1), exchange(2)))
        await came(pilot, queue)
        assert keys(app) == ["0-2", "0-1"]

    run(script)


def test_totals_have_their_recent_past() -> None:
    (streams, *_) = gauges(state(exchange(1)))
    assert streams.line(20) == "streams 1        ▁▅█"


def test_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(app: Top, pilot: Pilot[None], queue: asyncio.Queue[State | Failure]) -> None:
        queue.put_nowait(Failure("lost", 1))
        await came(pilot, queue)
        segments = [segment for line in app.screen._compositor.render_strips() for segment in line]
        colours = {str(segment.style.color) for segment in segments if segment.style is not None}
        assert {name for name in colours if "default" not in name and name != "None"} == set()

    run(script)


def test_the_screens_in_the_docs_are_those_of_this_version() -> None:
    page = (Path(__file__).parents[4] / "docs" / "top.md").read_text()
    lines = [line.split() for line in page.replace(" ▼", "").splitlines()]
    exchanges = [column.label for column in EXCHANGES]
    assert [line for line in lines if line == exchanges[: len(line)] and len(line) > 6]
    pages = ("exchanges", *TABLES)
    assert " ".join(f"{number} {name}" for number, name in enumerate(pages, 1)) in page
    for table in TABLES.values():
        assert f"│ {table(state()).title}" in page
    options = re.findall(r"^\| `(--\w+)", page, re.MULTILINE)
    assert options == ["--url", "--token", "--interval", "--once"]
