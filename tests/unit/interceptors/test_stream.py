"""A stream's events: which bytes leave, who saw which event, and what is counted, mostly with hooks
that do not await.
"""

from __future__ import annotations

from typing import Any

import pytest
from unit.interceptors.scripted import (
    AsyncHook,
    Hook,
    OnEvent,
    counted,
    drop,
    keep,
    open_chain,
    send,
    upper,
)

from interceptors import Event, EventTooLarge
from interceptors.testing import run_chain
from pools import Pools

# --- order and results
# --------------------------------------------------------------------------------------------------


def test_hooks_run_in_the_chains_order_for_each_event() -> None:
    """Every event goes through all hooks, first to last, before the next one."""
    order: list[tuple[str, str]] = []

    def mark(name: str) -> OnEvent:
        def hook(event: Event) -> Event:
            order.append((name, event.data))
            return event.replace(event.data + name)

        return hook

    result = run_chain(
        [Hook(mark("a")), Hook(mark("b")), Hook(mark("c"))], [b"data: 1\n\ndata: 2\n\n"]
    )
    assert result.output == b"data: 1abc\n\ndata: 2abc\n\n"
    assert order == [("a", "1"), ("b", "1a"), ("c", "1ab"), ("a", "2"), ("b", "2a"), ("c", "2ab")]


def test_unchanged_hooks_share_one_event_and_its_decoding() -> None:
    """Along the chain an untouched event is the same object, so its JSON is decoded once for all."""
    seen: list[tuple[Event, Any]] = []

    def look(event: Event) -> Event:
        seen.append((event, event.json()))
        return event

    run_chain([Hook(look), Hook(look)], [b'data: {"n":1}\n\n'])
    assert seen[0][0] is seen[1][0]
    assert seen[0][1] is seen[1][1]


RESULTS: dict[str, tuple[OnEvent, bytes, tuple[int, int, int, int]]] = {
    "itself": (keep, b"data:a\n\n", (1, 0, 0, 0)),
    "None": (drop, b"", (0, 0, 1, 0)),
    "a replacement": (upper, b"data: A\n\n", (0, 1, 0, 0)),
    "a new event": (lambda event: Event("x"), b"data: x\n\n", (0, 1, 0, 0)),
    "its detached copy": (lambda event: event.detach(), b"data:a\n\n", (0, 1, 0, 0)),
    "an empty list": (lambda event: [], b"", (0, 0, 1, 0)),
    "an empty tuple": (lambda event: (), b"", (0, 0, 1, 0)),
    "a list of itself": (lambda event: [event], b"data:a\n\n", (1, 0, 0, 0)),
    "a list of another": (lambda event: [Event("x")], b"data: x\n\n", (0, 1, 0, 0)),
    "itself and another": (
        lambda event: [event, Event("x")],
        b"data:a\n\ndata: x\n\n",
        (1, 0, 0, 1),
    ),
    "a tuple, itself last": (
        lambda event: (Event("x"), event),
        b"data: x\n\ndata:a\n\n",
        (1, 0, 0, 1),
    ),
    "itself twice": (lambda event: [event, event], b"data:a\n\ndata:a\n\n", (1, 0, 0, 1)),
    "three others": (
        lambda event: [Event("x"), Event("y"), Event("z")],
        b"data: x\n\ndata: y\n\ndata: z\n\n",
        (0, 1, 0, 2),
    ),
}


@pytest.mark.parametrize("others", [0, 1, 3], ids=["alone", "before another hook", "between hooks"])
@pytest.mark.parametrize(("hook", "output", "counts"), RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
def test_what_a_hook_returns_is_what_leaves_and_what_is_counted(
    kind: Any, hook: OnEvent, output: bytes, counts: tuple[int, int, int, int], others: int
) -> None:
    """Output and passed/changed/dropped/added for each kind of result, alike alone and among hooks
    that pass.
    """
    chain = {
        0: [kind(hook)],
        1: [kind(hook), Hook(keep)],
        3: [Hook(keep), Hook(keep), kind(hook), Hook(keep)],
    }[others]
    result = run_chain(chain, [b"data:a\n\n"])
    assert result.failure is None
    assert result.output == output
    assert counted(result.counts) == counts
    assert result.counts.total == 1


def test_counts_add_up_over_a_stream() -> None:
    """Each event from upstream is passed, changed or dropped once."""

    def mixed(event: Event) -> Any:
        return {
            "pass": event,
            "drop": None,
            "change": event.replace("x"),
            "add": [event, Event("y"), Event("z")],
        }[event.data]

    names = ["pass", "drop", "change", "add", "drop", "pass", "add"]
    stream = b": hello\n\n" + b"".join(b"data: %s\n\n" % name.encode() for name in names)
    counts = run_chain([Hook(mixed)], [stream]).counts
    assert counted(counts) == (5, 1, 2, 4)
    assert counts.total == 8


def test_a_later_hook_sees_each_event_of_an_earlier_hooks_list() -> None:
    """A list continues event by event, each result standing where its event stood, also when it is a
    list again.
    """
    seen: list[str] = []

    def split(event: Event) -> list[Event]:
        return [event.replace(word) for word in event.data.split(",")]

    def second(event: Event) -> Any:
        seen.append(event.data)
        return {"drop": None, "twice": [event, event]}.get(event.data, event)

    def third(event: Event) -> Event:
        seen.append("then " + event.data)
        return event.replace(event.data + "!")

    result = run_chain([Hook(split), Hook(second), Hook(third)], [b"data: one,drop,twice,end\n\n"])
    assert seen == [
        "one",
        "drop",
        "twice",
        "end",
        "then one",
        "then twice",
        "then twice",
        "then end",
    ]
    assert result.output == b"data: one!\n\ndata: twice!\n\ndata: twice!\n\ndata: end!\n\n"


# --- comments and bytes
# -------------------------------------------------------------------------------------------------


async def test_unchanged_events_leave_as_one_view_of_the_window() -> None:
    """However many events pass, they are one part, and it is the window itself and no copy."""
    async with open_chain(("keep", Hook(keep))) as stream:
        window = bytearray(b"stale" + b"data: a\n\n: c\n\ndata: b\r\n\r\n" * 50 + b"data: unfin")
        parts, at = stream.process(window, 5, len(window))
        (part,) = parts
        assert isinstance(part, memoryview)
        assert part.obj is window
        assert bytes(part) == bytes(window[5:at])
        assert bytes(window[at:]) == b"data: unfin"
        window[5:9] = b"DATA"
        assert part[:4] == b"DATA"
        part.release()


async def test_nothing_is_borrowed_while_nothing_is_written() -> None:
    """Passing and dropping cost no lease of the json pool."""
    pools = Pools()
    hook = {"p": keep, "d": drop, "c": upper}
    async with open_chain(
        ("mixed", Hook(lambda event: hook[event.data](event))), pools=pools
    ) as stream:
        assert send(stream, bytearray(b"data: p\n\ndata: d\n\n"))[0] == [b"data: p\n\n"]
        assert pools.json.statistics().allocations == 0
        parts, _ = stream.process(bytearray(b"data: c\n\n" * 3), 0, 27)
        assert pools.json.statistics().in_use == 1
        assert [bytes(part) for part in parts] == [b"data: C\n\n" * 3]
        for part in parts:
            part.release()  # type: ignore[union-attr]
        stream.release_parts()
        stats = pools.json.statistics()
        assert (stats.in_use, stats.current_size, stats.discards) == (0, 1, 0)


async def test_parts_stand_in_the_streams_order() -> None:
    """Untouched runs and written pieces alternate as the events came, adjacent ones of a kind in
    one part.
    """

    def change(event: Event) -> Any:
        return event if event.data.islower() else Event(event.data * 2)

    async with open_chain(("change", Hook(change))) as stream:
        window = bytearray(b"".join(b"data: %c\n\n" % char for char in b"abXYcZde"))
        sent, rest = send(stream, window)
    assert [part.replace(b"\n\n", b";").replace(b"data: ", b"").decode() for part in sent] == [
        "a;b;",
        "XX;YY;",
        "c;",
        "ZZ;",
        "d;e;",
    ]
    assert rest == b""


async def test_a_large_batch_of_changes_spans_buffers_and_stays_in_order() -> None:
    """More than one json buffer of output."""
    pools = Pools(json=(64, 100))
    async with open_chain(("upper", Hook(upper)), pools=pools) as stream:
        window = bytearray(b"".join(b"data: e%d\n\n" % n for n in range(300)))
        sent, _ = send(stream, window)
        assert b"".join(sent) == bytes(window).replace(b"data: e", b"data: E")
        assert len(sent) > 1
    assert pools.json.statistics().in_use == 0


# --- the end of a stream
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"data: b", b"data: b\n", b"data: b\r", b"data: b\r\n"])
@pytest.mark.parametrize(
    ("hook", "output"),
    [(keep, None), (upper, b"data: A\n\ndata: B\n"), (drop, b"")],
    ids=["pass", "change", "drop"],
)
def test_a_tail_without_an_empty_line_is_an_event(
    tail: bytes, hook: OnEvent, output: bytes | None
) -> None:
    """What is left at the end is shown to the hooks, so that nothing slips by unseen."""
    stream = b"data: a\n\n" + tail
    result = run_chain([Hook(hook)], [stream])
    assert result.output == (stream if output is None else output)
    assert result.counts.total == 2


# --- CR at a window's end
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "output"),
    [
        (keep, b"data: a\r\n\r\n"),
        (drop, b""),
        (upper, b"data: A\n\n"),
        (lambda event: [event], b"data: a\r\n\r\n"),
    ],
    ids=["pass", "drop", "change", "list"],
)
def test_an_lf_after_a_cr_at_a_windows_end_goes_where_its_block_went(
    hook: OnEvent, output: bytes
) -> None:
    """The CR ends the event at once."""
    result = run_chain([Hook(hook)], [b"data: a\r\n\r", b"\n", b": c\r\n\r\n"])
    assert result.output == output + b": c\r\n\r\n"
    assert result.counts.total == 2


# --- BOM
# ----------------------------------------------------------------------------------------------------------------


# --- limits
# -------------------------------------------------------------------------------------------------------------


def test_an_event_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    """`max_event_bytes` counts the whole block with its empty line; what came before is delivered."""
    event = b"data: 12345\n\n"
    good = run_chain([Hook(keep)], [event * 2], max_event_bytes=len(event))
    assert (good.failure, good.output) == (None, event * 2)
    bad = run_chain([Hook(keep)], [event + b"data: 123456\n\n" + event], max_event_bytes=len(event))
    assert isinstance(bad.failure, EventTooLarge)
    assert bad.failure.max_event_bytes == len(event)
    assert bad.output == event
    assert bad.counts.total == 1
