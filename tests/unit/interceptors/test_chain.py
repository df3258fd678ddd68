"""The chain: which bytes leave, who saw which event, what is counted, and what a failing hook does to its stream."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from interceptors import (
    Event,
    EventTooLarge,
    HookError,
    Interceptor,
    Outcome,
    ResponseHead,
    StaleEvent,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain, StreamChain
from interceptors.testing import run_chain
from pools import Pools

OnEvent = Callable[[Event], Any]
CONTEXT = StreamContext(route="/", method="GET", path="/v1", headers=(), client=None)
HEAD = ResponseHead(200, ((b"content-type", b"text/event-stream"),))


class Hook(Interceptor):
    """An interceptor whose one hook is a function."""

    def __init__(self, on_event: OnEvent, on_error: Any = "abort") -> None:
        self.hook = on_event
        self.on_error = on_error

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _HookStream(self.hook)


class _HookStream(StreamInterceptor):
    def __init__(self, hook: OnEvent) -> None:
        self.hook = hook

    def on_event(self, event: Event) -> Any:
        return self.hook(event)


class Life(Interceptor):
    """An interceptor that writes down every call, and fails where it is told to."""

    def __init__(self, name: str, calls: list[Any], fails_in: str = "", on_error: Any = "abort") -> None:
        self.name, self.calls, self.fails_in, self.on_error = name, calls, fails_in, on_error

    def note(self, hook: str, value: Any = None) -> None:
        self.calls.append((self.name, hook) if value is None else (self.name, hook, value))
        if self.fails_in == hook:
            raise KeyError(hook)

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        self.note("open_stream")
        return _LifeStream(self)


class _LifeStream(StreamInterceptor):
    def __init__(self, life: Life) -> None:
        self.life = life

    def on_start(self, head: ResponseHead) -> None:
        self.life.note("on_start")

    def on_event(self, event: Event) -> Event:
        self.life.note("on_event")
        return event

    def on_end(self, outcome: Outcome) -> None:
        self.life.note("on_end", outcome)


def keep(event: Event) -> Event:
    return event


def drop(event: Event) -> None:
    return None


def upper(event: Event) -> Event:
    return event.replace(event.data.upper())


def fail(event: Event) -> Event:
    raise KeyError("in the hook")


@asynccontextmanager
async def open_chain(
    *interceptors: tuple[str, Interceptor], max_event_bytes: int = 1 << 20, pools: Pools | None = None
) -> AsyncIterator[StreamChain]:
    pools = pools or Pools()
    async with pools.open_scope() as scope:
        stream = Chain(interceptors).open_stream(CONTEXT, pools.json, scope, max_event_bytes)
        try:
            yield stream
        finally:
            stream.close(Outcome.COMPLETED)


def send(stream: StreamChain, window: bytearray, *, final: bool = False) -> tuple[list[bytes], bytes]:
    """The parts as bytes, one by one, and what is left in the window."""
    parts, at = stream.process(window, 0, len(window), final=final)
    sent = [bytes(part) for part in parts]
    for part in parts:
        assert isinstance(part, memoryview)
        part.release()
    stream.release_parts()
    return sent, bytes(window[at:])


def counted(counts: Any) -> tuple[int, int, int, int]:
    return counts.passed, counts.changed, counts.dropped, counts.added


def errors(logs: Iterable[Any]) -> list[tuple[str, str, str]]:
    return [(log["interceptor"], log["hook"], log["on_error"]) for log in logs if log["event"] == "interceptor_failed"]


# --- what is compiled ---------------------------------------------------------------------------------------------------


class Silent(Interceptor):
    """Opens streams that override nothing."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return StreamInterceptor()


class StaysOut(Interceptor):
    """Opens no stream."""

    def open_stream(self, context: StreamContext) -> None:
        return None


@pytest.mark.parametrize(
    ("interceptor", "reads_body", "wants_events"),
    [(Interceptor(), False, False), (StaysOut(), True, False), (Silent(), True, False), (Hook(keep), True, True)],
)
async def test_only_an_overridden_on_event_makes_a_stream_want_events(
    interceptor: Interceptor, reads_body: bool, wants_events: bool
) -> None:
    """`reads_body` follows open_stream, `wants_events` on_event: bytes that no hook wants may pass unframed."""
    assert Chain([("i", interceptor)]).reads_body is reads_body
    async with open_chain(("i", interceptor)) as stream:
        assert stream.wants_events is wants_events


async def test_a_chain_of_nothing_wants_nothing() -> None:
    """Without interceptors no event has to be framed; what is framed all the same passes."""
    assert not Chain().reads_body
    async with open_chain() as stream:
        assert not stream.wants_events
        assert send(stream, bytearray(b"data: a\n\n")) == ([b"data: a\n\n"], b"")


async def test_each_stream_has_its_own_objects_and_one_context() -> None:
    """`open_stream` is called once per interceptor and stream, with the exchange's context; `state` is the streams' own."""
    seen: list[StreamContext] = []

    class Asks(Interceptor):
        def open_stream(self, context: StreamContext) -> None:
            seen.append(context)

    pools = Pools()
    chain = Chain([("a", Asks()), ("b", Asks())])
    async with pools.open_scope() as scope:
        for path in ("/1", "/2"):
            context = StreamContext("/", "GET", path, (), None)
            chain.open_stream(context, pools.json, scope, 100).close(Outcome.COMPLETED)
    assert [context.path for context in seen] == ["/1", "/1", "/2", "/2"]
    assert seen[0].state is seen[1].state
    assert seen[0].state is not seen[2].state


# --- order and results --------------------------------------------------------------------------------------------------


def test_hooks_run_in_the_chains_order_for_each_event() -> None:
    """Every event goes through all hooks, first to last, before the next one; a replacement is what the next hook sees."""
    order: list[tuple[str, str]] = []

    def mark(name: str) -> OnEvent:
        def hook(event: Event) -> Event:
            order.append((name, event.data))
            return event.replace(event.data + name)

        return hook

    result = run_chain([Hook(mark("a")), Hook(mark("b")), Hook(mark("c"))], [b"data: 1\n\ndata: 2\n\n"])
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
    "itself and another": (lambda event: [event, Event("x")], b"data:a\n\ndata: x\n\n", (1, 0, 0, 1)),
    "a tuple, itself last": (lambda event: (Event("x"), event), b"data: x\n\ndata:a\n\n", (1, 0, 0, 1)),
    "itself twice": (lambda event: [event, event], b"data:a\n\ndata:a\n\n", (1, 0, 0, 1)),
    "three others": (
        lambda event: [Event("x"), Event("y"), Event("z")],
        b"data: x\n\ndata: y\n\ndata: z\n\n",
        (0, 1, 0, 2),
    ),
}


@pytest.mark.parametrize("others", [0, 1, 3], ids=["alone", "before another hook", "between hooks"])
@pytest.mark.parametrize(("hook", "output", "counts"), RESULTS.values(), ids=RESULTS)
def test_what_a_hook_returns_is_what_leaves_and_what_is_counted(
    hook: OnEvent, output: bytes, counts: tuple[int, int, int, int], others: int
) -> None:
    """Output and passed/changed/dropped/added for each kind of result, alike alone and among hooks that pass."""
    chain = {0: [Hook(hook)], 1: [Hook(hook), Hook(keep)], 3: [Hook(keep), Hook(keep), Hook(hook), Hook(keep)]}[others]
    result = run_chain(chain, [b"data:a\n\n"])
    assert result.failure is None
    assert result.output == output
    assert counted(result.counts) == counts
    assert result.counts.total == 1


def test_counts_add_up_over_a_stream() -> None:
    """Each event from upstream is passed, changed or dropped once; comments pass; added ones come on top."""

    def mixed(event: Event) -> Any:
        return {"pass": event, "drop": None, "change": event.replace("x"), "add": [event, Event("y"), Event("z")]}[
            event.data
        ]

    names = ["pass", "drop", "change", "add", "drop", "pass", "add"]
    stream = b": hello\n\n" + b"".join(b"data: %s\n\n" % name.encode() for name in names)
    counts = run_chain([Hook(mixed)], [stream]).counts
    assert counted(counts) == (5, 1, 2, 4)
    assert counts.total == 8


def test_a_later_hook_sees_each_event_of_an_earlier_hooks_list() -> None:
    """A list goes on event by event, each result standing where its event stood, also when it is a list again."""
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
    assert seen == ["one", "drop", "twice", "end", "then one", "then twice", "then twice", "then end"]
    assert result.output == b"data: one!\n\ndata: twice!\n\ndata: twice!\n\ndata: end!\n\n"


def test_a_dropped_event_is_not_seen_by_later_hooks() -> None:
    """None is the end of an event's way: no hook behind it is called."""
    run = run_chain([Hook(drop), Hook(fail)], [b"data: a\n\ndata: b\n\n"])
    assert (run.failure, run.output, run.counts.dropped) == (None, b"", 2)


# --- comments and bytes -------------------------------------------------------------------------------------------------


def test_comments_and_stray_line_ends_pass_unseen() -> None:
    """Heartbeats go by without a call, also where every event is dropped."""
    seen: list[str] = []
    stream = b": ping\n\n\n\r\ndata: a\n\n:\n:x\n\ndata: b\n\n\n"

    def see(event: Event) -> None:
        seen.append(event.data)

    result = run_chain([Hook(see)], [stream])
    assert seen == ["a", "b"]
    assert result.output == b": ping\n\n\n\r\n:\n:x\n\n\n"
    assert counted(result.counts) == (5, 0, 2, 0)


def test_a_comment_inside_an_event_is_part_of_it() -> None:
    """A block with a field is one event, its comments with it: they go where it goes."""
    stream = b": c\ndata: a\n: d\n\n"
    assert run_chain([Hook(keep)], [stream]).output == stream
    assert run_chain([Hook(drop)], [stream]).output == b""


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
    """Passing and dropping cost no lease of the json pool; a change costs one, until `release_parts`."""
    pools = Pools()
    hook = {"p": keep, "d": drop, "c": upper}
    async with open_chain(("mixed", Hook(lambda event: hook[event.data](event))), pools=pools) as stream:
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
    """Untouched runs and written pieces alternate as the events came, adjacent ones of a kind in one part."""

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
    """More than one json buffer of output: every event is whole and in its place, and every lease comes back."""
    pools = Pools(json=(64, 100))
    async with open_chain(("upper", Hook(upper)), pools=pools) as stream:
        window = bytearray(b"".join(b"data: e%d\n\n" % n for n in range(300)))
        sent, _ = send(stream, window)
        assert b"".join(sent) == bytes(window).replace(b"data: e", b"data: E")
        assert len(sent) > 1
    assert pools.json.statistics().in_use == 0


def test_an_event_is_seen_once_and_whole_however_it_arrives() -> None:
    """Pieces of an event wait for its end; the hook sees it once, with all its bytes."""
    seen: list[bytes] = []

    def see(event: Event) -> Event:
        seen.append(event.raw)
        return event

    chunks = [b"data: a", b"\n", b"\n", b"data: b\n\nda", b"ta: c"]
    run_chain([Hook(see)], chunks)
    assert seen == [b"data: a\n\n", b"data: b\n\n", b"data: c"]


async def test_a_window_larger_than_its_content_ends_where_it_is_told() -> None:
    """Another stream's bytes behind `end` neither end an event nor leave."""
    async with open_chain(("keep", Hook(keep))) as stream:
        window = bytearray(b"data: mine\n" + b"\nSECRET\n\n")
        parts, at = stream.process(window, 0, 11)
        assert (parts, at) == ([], 0)
        parts, at = stream.process(window, 0, 11, final=True)
        assert [bytes(part) for part in parts] == [b"data: mine\n"]
        assert at == 11


# --- the end of a stream ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"data: b", b"data: b\n", b"data: b\r", b"data: b\r\n"])
@pytest.mark.parametrize(
    ("hook", "output"), [(keep, None), (upper, b"data: A\n\ndata: B\n"), (drop, b"")], ids=["pass", "change", "drop"]
)
def test_a_tail_without_an_empty_line_is_an_event(tail: bytes, hook: OnEvent, output: bytes | None) -> None:
    """What is left at the end is shown to the hooks, so that nothing slips by unseen; what replaces it stays as unfinished."""
    stream = b"data: a\n\n" + tail
    result = run_chain([Hook(hook)], [stream])
    assert result.output == (stream if output is None else output)
    assert result.counts.total == 2


def test_no_tail_is_no_event() -> None:
    """A stream that ends with an empty line, or is empty, has no further event."""
    assert run_chain([Hook(fail)], [b""]).counts.total == 0
    assert run_chain([Hook(keep)], [b"data: a\n\n"]).counts.total == 1


def test_a_tail_of_comments_passes_unseen() -> None:
    """A half-sent heartbeat is no event, either."""
    assert run_chain([Hook(fail)], [b": ping"]).output == b": ping"


# --- CR at a window's end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "output"),
    [(keep, b"data: a\r\n\r\n"), (drop, b""), (upper, b"data: A\n\n"), (lambda event: [event], b"data: a\r\n\r")],
    ids=["pass", "drop", "change", "list"],
)
def test_an_lf_after_a_cr_at_a_windows_end_goes_where_its_block_went(hook: OnEvent, output: bytes) -> None:
    """The CR ends the event at once; the LF of the next window passes with a passed block and vanishes with another."""
    result = run_chain([Hook(hook)], [b"data: a\r\n\r", b"\n", b": c\r\n\r\n"])
    assert result.output == output + b": c\r\n\r\n"
    assert result.counts.total == 2


async def test_a_cr_ends_an_event_without_waiting_for_the_lf() -> None:
    """The event leaves with the CR: an LF may never come."""
    async with open_chain(("keep", Hook(keep))) as stream:
        assert send(stream, bytearray(b"data: a\r\r")) == ([b"data: a\r\r"], b"")
        assert send(stream, bytearray(b"data: b\r\r")) == ([b"data: b\r\r"], b"")


async def test_only_one_lf_belongs_to_the_cr() -> None:
    """A second LF is an empty line of its own; and an empty window in between changes nothing."""
    async with open_chain(("drop", Hook(drop))) as stream:
        assert send(stream, bytearray(b"data: a\r\r")) == ([], b"")
        assert send(stream, bytearray()) == ([], b"")
        assert send(stream, bytearray(b"\n\n")) == ([b"\n"], b"")
        assert counted(stream.counts) == (1, 0, 1, 0)


async def test_an_lf_belongs_only_to_a_cr_that_was_last() -> None:
    """A dropped event that ended with LF takes nothing of the next window along."""
    async with open_chain(("drop", Hook(drop))) as stream:
        assert send(stream, bytearray(b"data: a\r\r\n")) == ([], b"")
        assert send(stream, bytearray(b"\n")) == ([b"\n"], b"")


# --- BOM ----------------------------------------------------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("step", [1, 2, 100])
def test_a_streams_bom_is_no_part_of_its_first_event(step: int) -> None:
    """The first event's fields are read behind the BOM, cut anywhere; passed on, the BOM stays."""
    stream = BOM + b"data: a\n\n" + BOM + b"data: b\n\n"
    seen: list[str] = []

    def see(event: Event) -> Event:
        seen.append(event.data)
        return event

    chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert run_chain([Hook(see)], chunks).output == stream
    assert seen == ["a", ""]  # the second BOM is part of a field's name that nobody knows


def test_a_bom_before_a_comment_is_silent() -> None:
    """BOM and comments are no event, and the BOM of a later block is not one."""
    stream = BOM + b": hello\n\n"
    assert run_chain([Hook(fail)], [stream]).output == stream


# --- limits -------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("what", [b"data: ", b": ", b""], ids=["event", "comment", "one line"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_unfinished_event_is_refused_as_soon_as_it_is_too_large(what: bytes, step: int) -> None:
    """An event that never ends does not fill the memory: it fails before its end, which never comes, is seen."""
    stream = b"data: ok\n\n" + what + b"x" * 500
    chunks = [stream[at : at + step] for at in range(0, len(stream), step)]
    result = run_chain([Hook(keep)], chunks, max_event_bytes=100)
    assert isinstance(result.failure, EventTooLarge)
    assert result.output == b"data: ok\n\n"


async def test_an_unfinished_event_may_be_as_large_as_the_limit() -> None:
    """The last byte that fits is accepted, the next one is not."""
    async with open_chain(("keep", Hook(keep)), max_event_bytes=10) as stream:
        window = bytearray(b"data: 1234")
        assert send(stream, window) == ([], bytes(window))
        assert stream.failure is None
        window += b"5"
        assert send(stream, window) == ([], bytes(window))
        assert isinstance(stream.failure, EventTooLarge)


# --- failures -----------------------------------------------------------------------------------------------------------


class Guard(Hook):
    """Its class's name is the name that `run_chain` gives it."""


NONSENSE: dict[str, tuple[Any, str]] = {
    "text": ("data", "str"),
    "bytes": (b"data: x\n\n", "bytes"),
    "a dict": ({"data": "x"}, "dict"),
    "True": (True, "bool"),
    "0": (0, "int"),
    "a list of text": (["x"], "list"),
    "a list with None": ([None], "list"),
    "an iterator": (iter([Event("x")]), "list_iterator"),
}


@pytest.mark.parametrize(("nonsense", "kind"), NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("place", ["first", "second", "behind a list"])
def test_a_nonsense_result_aborts_and_the_error_says_whose_it_is(nonsense: Any, kind: str, place: str) -> None:
    """A HookError names interceptor, hook, what came and what is expected, wherever in the chain."""
    guard = Guard(lambda event: nonsense if event.data == "b" else event)
    before = {"first": [], "second": [Hook(keep)], "behind a list": [Hook(lambda event: [event])]}[place]
    with capture_logs() as logs:
        result = run_chain([*before, guard, Hook(keep)], [b"data: a\n\ndata: b\n\ndata: c\n\n"])
    error = result.failure
    assert isinstance(error, HookError)
    assert (error.interceptor, error.hook) == ("Guard", "on_event")
    assert str(error) == f"Guard.on_event: TypeError: returned {kind}, expected an Event, a list of Events, or None"
    assert result.output == b"data: a\n\n"
    assert errors(logs) == [("Guard", "on_event", "abort")]


@pytest.mark.parametrize("before", [[], [Hook(lambda event: [event, Event("x")])]], ids=["first", "behind a list"])
@pytest.mark.parametrize("wrong", [fail, lambda event: "nonsense"], ids=["raises", "nonsense"])
def test_skip_logs_and_lets_the_event_pass_as_it_was(wrong: OnEvent, before: list[Hook]) -> None:
    """With `on_error = "skip"` the event passes the failed hook unchanged, and the hooks behind it still run."""
    stream = b"data: a\n\ndata: b\n\n"
    with capture_logs() as logs:
        result = run_chain([*before, Guard(wrong, on_error="skip"), Hook(upper)], [stream])
    assert result.failure is None
    assert result.output == (b"data: A\n\ndata: X\n\ndata: B\n\ndata: X\n\n" if before else b"data: A\n\ndata: B\n\n")
    assert set(errors(logs)) == {("Guard", "on_event", "skip")}
    assert len(errors(logs)) == (4 if before else 2)


def test_skip_leaves_the_very_bytes() -> None:
    """A failed hook that is skipped does not rewrite the event."""
    stream = b"data:a\r\n:c\r\n\r\n"
    with capture_logs():
        result = run_chain([Hook(fail, on_error="skip")], [stream])
    assert result.output == stream
    assert counted(result.counts) == (1, 0, 0, 0)


@pytest.mark.parametrize("earlier", [keep, upper, lambda event: [event, event]], ids=["passed", "changed", "listed"])
async def test_what_came_before_a_failing_event_is_still_delivered(earlier: OnEvent) -> None:
    """`failure` is set, the parts before it are valid, and neither the failing event nor a later one leaves."""

    def bomb(event: Event) -> Any:
        return fail(event) if event.data == "bomb" else earlier(event)

    async with open_chain(("bomb", Hook(bomb))) as stream:
        with capture_logs():
            sent, rest = send(stream, bytearray(b"data: a\n\n: c\n\ndata: b\n\ndata: bomb\n\ndata: d\n\n"))
        a, b = {keep: (b"data: a\n\n", b"data: b\n\n"), upper: (b"data: A\n\n", b"data: B\n\n")}.get(
            earlier, (b"data: a\n\n" * 2, b"data: b\n\n" * 2)
        )
        assert b"".join(sent) == a + b": c\n\n" + b
        assert rest.startswith(b"data: bomb")
        assert isinstance(stream.failure, HookError)
        assert isinstance(stream.failure.__cause__, KeyError)
        assert str(stream.failure) == "bomb.on_event: KeyError: 'in the hook'"


def test_an_event_that_json_cannot_say_aborts_behind_what_was_written() -> None:
    """A value that cannot be encoded ends the stream cleanly: nothing of the half-written event leaves."""

    def unspeakable(event: Event) -> Any:
        return event.replace(json={"a": ["x" * 9000, object()]}) if event.data == "b" else event.replace(json=event.data)

    result = run_chain([Guard(unspeakable)], [b"data: a\n\ndata: b\n\n"])
    assert isinstance(result.failure, HookError)
    assert (result.failure.interceptor, result.failure.hook) == ("Guard", "on_event")
    assert result.output == b'data: "a"\n\n'


def test_skip_also_covers_an_event_that_cannot_be_written() -> None:
    """`on_error = "skip"` holds for what shows only when the event is written: it is logged and the event passes as it came."""
    stream = b"data:a\r\n:c\r\n\r\ndata: b\n\n"
    with capture_logs() as logs:
        result = run_chain([Guard(lambda event: event.replace(json=object()), on_error="skip")], [stream])
    assert (result.failure, result.output) == (None, stream)
    assert errors(logs) == [("Guard", "on_event", "skip")] * 2


def test_an_event_list_with_one_bad_event_leaves_as_a_whole_or_not_at_all() -> None:
    """When the second of a list cannot be written, the first does not leave either."""
    result = run_chain([Hook(lambda event: [Event("good"), Event(json=object())])], [b"data: a\n\n"])
    assert isinstance(result.failure, HookError)
    assert result.output == b""


# --- kept events --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [keep, drop, upper, lambda event: [event]], ids=["passed", "dropped", "changed", "listed"])
def test_an_event_that_a_hook_kept_is_stale_when_its_hook_has_returned(first: OnEvent) -> None:
    """Whatever became of it: touched during a later event, a kept event raises and shows no bytes."""
    kept: list[Event] = []
    caught: list[StaleEvent] = []

    def hold(event: Event) -> Any:
        for old in kept:
            with pytest.raises(StaleEvent) as stale:
                _ = old.data
            caught.append(stale.value)
        kept.append(event)
        return first(event)

    run_chain([Hook(hold)], [b"data: secret\n\ndata: b\n\n"])
    assert len(caught) == 1
    with pytest.raises(StaleEvent):
        _ = kept[1].raw


@pytest.mark.parametrize("wrap", [lambda event: event, lambda event: [event]], ids=["alone", "in a list"])
def test_a_kept_event_returned_later_fails_and_leaks_nothing(wrap: Callable[[Event], Any]) -> None:
    """Returning an earlier event is a HookError, and not somebody's bytes on the wire."""
    kept: list[Event] = []

    def late(event: Event) -> Any:
        kept.append(event)
        return wrap(kept[0])

    result = run_chain([Guard(late)], [b"data: first\n\n", b"data: other\n\n"])
    assert result.output == b"data: first\n\n"
    assert isinstance(result.failure, HookError)
    assert isinstance(result.failure.__cause__, StaleEvent)
    assert "Guard.on_event" in str(result.failure)


def test_a_kept_detached_event_can_be_returned_later() -> None:
    """`detach()` is the way to hold events back: they leave later, byte for byte, in any order."""
    kept: list[Event] = []

    def swap(event: Event) -> Any:
        if not kept:
            kept.append(event.detach())
            return None
        return [event, kept.pop()]

    result = run_chain([Hook(swap)], [b"data:1\n\n", b"data:2\n\ndata:3\n\n", b"data:4\n\n"])
    assert result.output == b"data:2\n\ndata:1\n\ndata:4\n\ndata:3\n\n"


def test_a_failing_event_goes_stale_too() -> None:
    """Also an event whose hook raised: the exception's traceback keeps it alive, and it must not answer."""
    kept: list[Event] = []

    def hold_and_fail(event: Event) -> Event:
        kept.append(event)
        raise KeyError

    with capture_logs():
        run_chain([Hook(hold_and_fail)], [b"data: secret\n\n"])
    with pytest.raises(StaleEvent):
        _ = kept[0].data


# --- the life of a stream -----------------------------------------------------------------------------------------------


def test_a_streams_hooks_run_in_order_and_end_once() -> None:
    """open_stream, on_start, on_event, on_end: each for every interceptor in the chain's order."""
    calls: list[Any] = []
    run_chain([Life("a", calls), Life("b", calls)], [b"data: x\n\n"])
    assert calls == [
        *[(name, "open_stream") for name in "ab"],
        *[(name, "on_start") for name in "ab"],
        *[(name, "on_event") for name in "ab"],
        *[(name, "on_end", Outcome.COMPLETED) for name in "ab"],
    ]


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_on_end_hears_the_outcome_exactly_once(outcome: Outcome) -> None:
    """However it ended, and however often `close` is called: the first outcome is the one."""
    calls: list[Any] = []
    async with open_chain(("a", Life("a", calls))) as stream:
        stream.close(outcome)
        stream.close(Outcome.COMPLETED)
    assert calls == [("a", "open_stream"), ("a", "on_end", outcome)]


async def test_closing_gives_back_what_was_written() -> None:
    """Parts that were never released are no lost leases: `close` returns them, before the scope does."""
    pools = Pools()
    async with open_chain(("upper", Hook(upper)), pools=pools) as stream:
        parts, _ = stream.process(bytearray(b"data: a\n\n"), 0, 9)
        assert pools.json.statistics().in_use == 1
        for part in parts:
            part.release()  # type: ignore[union-attr]
        stream.close(Outcome.CLIENT_DISCONNECTED)
        assert pools.json.statistics().in_use == 0


async def test_a_failing_open_stream_aborts_and_ends_those_before_it() -> None:
    """HookError names it; the earlier streams hear on_end once, the later ones were never asked."""
    calls: list[Any] = []
    chain = [("a", Life("a", calls)), ("b", Life("b", calls, "open_stream")), ("c", Life("c", calls))]
    with capture_logs() as logs, pytest.raises(HookError, match=r"^b\.open_stream: KeyError: 'open_stream'$") as caught:
        async with open_chain(*chain):
            pytest.fail("the chain opened")
    assert (caught.value.interceptor, caught.value.hook) == ("b", "open_stream")
    assert isinstance(caught.value.__cause__, KeyError)
    assert calls == [("a", "open_stream"), ("b", "open_stream"), ("a", "on_end", Outcome.INTERCEPTED)]
    assert errors(logs) == [("b", "open_stream", "abort")]


def test_a_skipped_open_stream_leaves_the_others() -> None:
    """With skip the stream goes on without that interceptor: none of its other hooks is called."""
    calls: list[Any] = []
    with capture_logs() as logs:
        result = run_chain([Life("a", calls, "open_stream", "skip"), Life("b", calls)], [b"data: x\n\n"])
    assert result.output == b"data: x\n\n"
    assert [call[:2] for call in calls] == [
        ("a", "open_stream"), ("b", "open_stream"), ("b", "on_start"), ("b", "on_event"), ("b", "on_end"),
    ]  # fmt: skip
    assert errors(logs) == [("Life", "open_stream", "skip")]


@pytest.mark.parametrize(
    "nonsense", ["text", 1, StreamInterceptor, Interceptor()], ids=["text", "int", "class", "Interceptor"]
)
async def test_an_open_stream_that_returns_nonsense_is_told_what_is_expected(nonsense: Any) -> None:
    """A class instead of an object, say: refused when the stream opens, and not at its first event."""

    class Wrong(Interceptor):
        def open_stream(self, context: StreamContext) -> Any:
            return nonsense

    with capture_logs(), pytest.raises(HookError, match=r"^wrong\.open_stream: .*expected a StreamInterceptor or None$"):
        async with open_chain(("wrong", Wrong())):
            pytest.fail("the chain opened")


async def test_a_failing_on_start_aborts_and_every_stream_still_ends() -> None:
    """HookError names it, later on_starts do not run, and `close` calls each on_end once."""
    calls: list[Any] = []
    chain = [("a", Life("a", calls)), ("b", Life("b", calls, "on_start")), ("c", Life("c", calls))]
    async with open_chain(*chain) as stream:
        with capture_logs() as logs, pytest.raises(HookError, match=r"^b\.on_start: KeyError: 'on_start'$"):
            stream.start(HEAD)
        stream.close(Outcome.INTERCEPTED)
    assert errors(logs) == [("b", "on_start", "abort")]
    assert calls == [
        *[(name, "open_stream") for name in "abc"],
        *[(name, "on_start") for name in "ab"],
        *[(name, "on_end", Outcome.INTERCEPTED) for name in "abc"],
    ]


def test_a_skipped_on_start_leaves_the_stream_whole() -> None:
    """With skip, the interceptor whose on_start failed still sees events and the end."""
    calls: list[Any] = []
    with capture_logs() as logs:
        result = run_chain([Life("a", calls, "on_start", "skip"), Life("b", calls)], [b"data: x\n\n"])
    assert (result.failure, result.output) == (None, b"data: x\n\n")
    assert [hook for name, hook, *_ in calls if name == "a"] == ["open_stream", "on_start", "on_event", "on_end"]
    assert errors(logs) == [("Life", "on_start", "skip")]


def test_a_failing_on_event_ends_every_stream_as_intercepted() -> None:
    """After a failure each on_end is called once with `intercepted`, the failing interceptor's own included."""
    calls: list[Any] = []
    with capture_logs():
        result = run_chain([Life("a", calls), Life("b", calls, "on_event")], [b"data: x\n\ndata: y\n\n"])
    assert isinstance(result.failure, HookError)
    assert calls[4:] == [("a", "on_event"), ("b", "on_event"), *[(name, "on_end", Outcome.INTERCEPTED) for name in "ab"]]


@pytest.mark.parametrize("on_error", ["abort", "skip"])
async def test_a_failing_on_end_is_logged_and_stops_no_other(on_error: str) -> None:
    """The stream is over already, so neither setting raises; the others still hear of it."""
    calls: list[Any] = []
    chain = [(name, Life(name, calls, "on_end" if name != "c" else "", on_error)) for name in "abc"]
    with capture_logs() as logs:
        async with open_chain(*chain) as stream:
            stream.close(Outcome.DRAINING)
    assert calls[3:] == [(name, "on_end", Outcome.DRAINING) for name in "abc"]
    assert errors(logs) == [("a", "on_end", on_error), ("b", "on_end", on_error)]


async def test_the_window_is_free_again_once_the_parts_are_released() -> None:
    """No event, decoding or failure keeps a view of the window: it can go back to its pool."""

    def look(event: Event) -> Event:
        event.json()
        return event

    async with open_chain(("look", Hook(look, on_error="skip")), ("upper", Hook(upper))) as stream:
        window = bytearray(b"data: 1\n\ndata: nojson\n\n: c\n\n")
        with capture_logs():
            send(stream, window)
        gc.collect()
        window.extend(b"x")  # BufferError if something still saw it
