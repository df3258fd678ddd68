"""Any chain over any stream in any reads does what a naive model does: what hooks see, what leaves,
what is counted and logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from unit.interceptors.scripted import (
    BOM,
    counted,
    emitted,
    errors,
    feed,
    is_comment,
    next_block,
    open_chain,
    splits,
)

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    Interceptor,
    StreamContext,
    StreamInterceptor,
)
from interceptors.errors import StaleEvent
from interceptors.needs import Needs
from interceptors.watcher import Watcher
from interceptors.wire_event import WireEvent
from pools import Pools

# Hooks that do one thing after the other

Act = Callable[["Scripted", Event], Any]


@dataclass(frozen=True)
class Member:
    """One interceptor of a chain. Its `on_event` does one act of the script for each call."""

    script: tuple[str, ...]
    on_error: str = "skip"
    needs: Needs = None
    is_async: bool = False
    emits: tuple[str, ...] = ()
    """What it emits after each read, of `MADE`."""
    completes: str = "None"
    """What its `on_complete` does, of `MADE`."""


class Scripted(Interceptor):
    def __init__(self, member: Member, name: str) -> None:
        self.member, self.name, self.on_error = member, name, member.on_error  # type: ignore[assignment]
        self.seen: list[Any] = []
        self.kept: list[Event] = []
        self.detached = [Event("kept before anything came")]
        self.own = Event(json={"own": 1})

    def open_stream(self, context: StreamContext) -> Any:
        self.context = context
        return (_AsyncScriptedStream if self.member.is_async else _ScriptedStream)(self)

    def wants(self, event: Event) -> bool:
        """Whether `needs` includes it: it is about bytes that came from upstream."""
        needs = self.member.needs
        if needs is None or not isinstance(event, WireEvent):
            return True
        if event._buffer is None:
            return False
        if isinstance(needs, re.Pattern):
            return needs.search(event.raw) is not None
        return any(item in event.raw for item in needs)

    def on_event(self, event: Event) -> Any:
        act = self.member.script[len(self.seen) % len(self.member.script)]
        self.seen.append((act, *told(event)))
        self.kept.append(event)
        return ACTS[act](self, event)

    def on_complete(self) -> Any:
        return MADE[self.member.completes](self)


class _ScriptedStream(StreamInterceptor):
    def __init__(self, scripted: Scripted) -> None:
        self.scripted, self.needs = scripted, scripted.member.needs

    def on_event(self, event: Event) -> Any:
        return self.scripted.on_event(event)

    def on_complete(self) -> Any:
        return self.scripted.on_complete()


class _AsyncScriptedStream(AsyncStreamInterceptor):
    def __init__(self, scripted: Scripted) -> None:
        self.scripted, self.needs = scripted, scripted.member.needs

    async def on_event(self, event: Event) -> Any:
        before = told(event)
        await trio.lowlevel.checkpoint()
        assert told(event) == before
        return self.scripted.on_event(event)

    async def on_complete(self) -> Any:
        return self.scripted.on_complete()


def told(event: Event) -> tuple[Any, ...]:
    """What a hook can read of an event, exceptions included; not the last line end, of which half
    can be missing.
    """
    said: list[Any] = []
    for ask in (
        lambda: event.json(),
        lambda: event.event,
        lambda: event.data,
        lambda: event.raw.rstrip(b"\r\n"),
        lambda: (event.id, event.retry),
    ):
        try:
            said.append(repr(ask()))
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return tuple(said)


def is_over(event: Event) -> bool:
    """Whether it is stale, or owns its bytes and so may be kept."""
    if type(event) is not WireEvent or type(event._buffer) is bytes:
        return True
    for ask in (lambda: event.raw, lambda: event.data, lambda: event.json(), lambda: event.event):
        try:
            ask()
        except StaleEvent:
            continue
        return False
    return True


def _raise(error: BaseException) -> Any:
    raise error


def _keep_a_copy(scripted: Scripted, event: Event) -> Event:
    scripted.detached.append(event.detach())
    return event


UNENCODABLE = repr  # JSON has no word for a function
NONSENSE: dict[str, tuple[Any, str]] = {
    "text": ("data", "str"),
    "False": (False, "bool"),
    "0": (0, "int"),
    "an iterator": (iter([Event("x")]), "list_iterator"),
    "[text]": (["x"], "a list of str"),
    "[None, event]": ([None, Event("x")], "a list of Event, NoneType"),
    "End(text)": (End("x"), "End"),  # type: ignore[arg-type]
    "End": (End, "the class End"),
}
"""What no hook may return, and how the error describes it."""

ACTS: dict[str, Act] = {
    "pass": lambda scripted, event: event,
    "json": lambda scripted, event: event.replace(json={"n": len(scripted.seen)}),
    "much json": lambda scripted, event: event.replace(json=["x" * 50] * 3),
    "its json": lambda scripted, event: event.replace(json=event.json()),
    "json twice": lambda scripted, event: event.replace(json=1).replace(json=2),
    "json, then a type": lambda scripted, event: event.replace(json=1).replace(event="t"),
    "data": lambda scripted, event: event.replace("new\ndata"),
    "typed json": lambda scripted, event: event.replace(json=None, event="t", id="7", retry=5),
    "a new event": lambda scripted, event: Event("new"),
    "nothing at all": lambda scripted, event: Event(),
    "its own, again and again": lambda scripted, event: scripted.own,
    "a copy": lambda scripted, event: event.detach(),
    "keep a copy": _keep_a_copy,
    "an older copy": lambda scripted, event: scripted.detached[-1],
    "one that is over": lambda scripted, event: scripted.kept[0],
    "drop": lambda scripted, event: None,
    "[]": lambda scripted, event: [],
    "[event]": lambda scripted, event: [event],
    "[json]": lambda scripted, event: [event.replace(json=3)],
    "(event, new)": lambda scripted, event: (event, Event("new")),
    "[new, event]": lambda scripted, event: [Event("new"), event],
    "[json, event, json]": lambda scripted, event: [
        event.replace(json=1),
        event,
        event.replace(json=2),
    ],
    "[event, event]": lambda scripted, event: [event, event],
    "[new, new]": lambda scripted, event: [new := Event("new"), new],
    "[new, one that is over]": lambda scripted, event: [Event("new"), scripted.kept[0]],
    "[json, unencodable]": lambda scripted, event: [
        event.replace(json=1),
        event.replace(json=UNENCODABLE),
    ],
    "unencodable": lambda scripted, event: event.replace(json=["x" * 20, UNENCODABLE]),
    "unencodable, typed": lambda scripted, event: event.replace(json=UNENCODABLE, event="t"),
    "raise": lambda scripted, event: _raise(KeyError("in the hook")),
    **{name: lambda *_, value=value: value for name, (value, _) in NONSENSE.items()},
}
LAST: dict[str, Act] = {
    "End()": lambda scripted, event: End(),
    "End(event)": lambda scripted, event: End(event),
    "End(new, event, new)": lambda scripted, event: End(Event("x"), event, Event("y")),
    "End(json)": lambda scripted, event: End(event.replace(json=1)),
    "End(event, unencodable)": lambda scripted, event: End(event, event.replace(json=UNENCODABLE)),
    "Abort": lambda scripted, event: _raise(Abort("because")),
}
ACTS |= LAST
MADE: dict[str, Callable[[Scripted], Any]] = {
    "None": lambda scripted: None,
    "new": lambda scripted: Event(f"by {scripted.name}"),
    "typed": lambda scripted: Event(json=[scripted.name], event="t", id="8"),
    "unencodable": lambda scripted: Event(json=UNENCODABLE),
    "two": lambda scripted: [Event("one"), Event("two")],
    "text": lambda scripted: "text",
    "[text]": lambda scripted: ["text"],
    "raise": lambda scripted: _raise(KeyError("in the hook")),
    "Abort": lambda scripted: _raise(Abort("because")),
}
"""Events that are no answer to one of the upstream's."""
EMITTED = ("new", "typed", "unencodable")


@dataclass
class Run:
    """Everything that is visible of a run from outside."""

    output: bytes = b""
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    failure: str | None = None
    ended: bool = False
    seen: list[Any] = field(default_factory=list)
    logged: list[Any] = field(default_factory=list)


# The model


class _Failed(Exception):
    """The stream ends here."""


class Model:
    """A chain over whole blocks, as simple as it can be written down."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.chain = [Scripted(member, f"i{at}") for at, member in enumerate(members)]
        self.run, self.counts = Run(seen=[item.seen for item in self.chain]), [0, 0, 0, 0]
        self.ender: Scripted | None = None

    def read(self, reads: Iterable[bytes]) -> Run:
        try:
            is_whole = self._read(reads)
            for at, scripted in enumerate(self.chain):
                if is_whole and not self.run.ended and scripted.member.completes != "None":
                    self._complete(at, scripted)
        except _Failed as failure:
            self.run.failure = str(failure)
        self.run.counts = tuple(self.counts)  # type: ignore[assignment]
        return self.run

    def _read(self, reads: Iterable[bytes]) -> bool:
        """Whether the stream ended between two events."""
        is_whole = True
        for number, rest in enumerate([*reads, b""]):
            while rest and not self.run.ended:
                if not self.run.output and rest.startswith(BOM):
                    self.run.output, rest = BOM, rest[len(BOM) :]
                    continue
                block, is_whole = next_block(rest)
                rest = rest[len(block) :]
                if is_comment(block):
                    self.run.output += block
                    self.counts[0] += 1
                else:
                    event = WireEvent(bytearray(block), 0, len(block), is_whole)
                    try:
                        self._answer(event)
                    finally:
                        event.end_of_life()
            for at, scripted in enumerate(self.chain):
                if not self.run.ended and number < len(scripted.member.emits):
                    made = MADE[scripted.member.emits[number]](scripted)
                    made.made_by = scripted
                    self._add(at, [made])
        return is_whole

    def _answer(self, event: WireEvent) -> None:
        events = self._through(self.chain, [event])
        written = [event.raw] if events == [event] else self._write(event, events)
        if written is None:  # it passes as it came
            events, written = [event], [event.raw]
        self.run.output += b"".join(written)
        action = 2 if not events else 0 if any(item is event for item in events) else 1
        self.counts[action] += 1
        self.counts[3] += max(0, len(events) - 1)
        self.run.ended = self.ender is not None

    def _through(self, chain: Iterable[Scripted], events: list[Event]) -> list[Event]:
        """All events through one hook after the other."""
        for scripted in chain:
            following: list[Event] = []
            for event in events:
                answer: Any = event
                made: list[Event] | None = [event]
                if scripted.wants(event):
                    try:
                        answer = scripted.on_event(event)
                        made = self._events_of(answer)
                        if made is None:
                            wrong = NONSENSE[scripted.seen[-1][0]][1]
                            raise TypeError(
                                f"Misused: Scripted's on_event returned {wrong}, "
                                "expected an Event, a list of Events, End(...) or None"
                            )
                    except Exception as error:
                        self._fail(scripted, "on_event", error)
                        answer, made = event, [event]
                for item in made or ():
                    if item is not event:
                        item.made_by = scripted
                following += made or ()
                if isinstance(answer, End):
                    self.ender = scripted
                    break  # the rest comes later than the end
            events = following
        return events

    @staticmethod
    def _events_of(answer: Any) -> list[Event] | None:
        if answer is None or isinstance(answer, Event):
            return [] if answer is None else [answer]
        events = answer.events if isinstance(answer, End) else answer
        is_right = isinstance(events, (list, tuple)) and all(
            isinstance(item, Event) for item in events
        )
        return list(events) if is_right else None

    def _write(self, event: WireEvent, events: list[Event]) -> list[bytes] | None:
        """The bytes of each event, or None. The last one is as unfinished as the one it replaces."""
        written = []
        for number, item in enumerate(events, 1):
            try:
                raw = item.raw
            except Exception as error:
                self._fail(item.made_by, "on_event", error)
                self.ender = None if self.ender is item.made_by else self.ender
                return None
            is_last = number == len(events)
            if isinstance(item, WireEvent):
                raw += b"" if item.whole or is_last else b"\n\n"
            elif is_last and not event.whole:
                raw = raw[:-1]
            written.append(raw)
        return written

    def _add(self, at: int, events: list[Event]) -> None:
        """Events that the member at that place adds, through the hooks after it."""
        for item in self._through(self.chain[at + 1 :], events):
            try:
                self.run.output += item.raw
                self.counts[3] += 1
            except Exception as error:
                self._fail(item.made_by, "on_event", error)
        self.run.ended = self.ender is not None

    def _complete(self, at: int, scripted: Scripted) -> None:
        events: list[Event] = []
        try:
            answer = scripted.on_complete()
            found = None if isinstance(answer, str) else self._events_of(answer)
            if found is None:
                wrong = "str" if isinstance(answer, str) else "a list of str"
                raise TypeError(
                    f"Misused: Scripted's on_complete returned {wrong}, "
                    "expected an Event, a list of Events or None"
                )
            events = found
        except Exception as error:
            self._fail(scripted, "on_complete", error)
        for item in events:
            item.made_by = scripted
        self._add(at, events)

    def _fail(self, scripted: Scripted, hook: str, error: Exception) -> None:
        """Raise `_Failed`, unless the failure is skipped."""
        if isinstance(error, Abort):
            raise _Failed(f"StreamAborted: {error}")
        self.run.logged.append((scripted.name, hook, scripted.on_error))
        if scripted.on_error == "abort":
            text = str(error)
            if not text.startswith("Misused"):
                text = f"{type(error).__name__}: {text}"
            raise _Failed(f"HookError: {scripted.name}.{hook}: {text}")


# The chain


class Looks(Watcher):
    """Reads every event that it is shown."""

    def arrived(self, event: Event) -> None:
        assert told(event)

    def called(self, owner: Any, event: Event, result: Any, seconds: float) -> None:
        assert told(event)

    def added(self, events: Any) -> None:
        self.left(events)

    def left(self, events: Any) -> None:
        assert all(map(told, events))


async def run(members: Iterable[Member], reads: Iterable[bytes], watched: str = "") -> Run:
    """`watched`: `always`, or in every second `read`."""
    chain = [Scripted(member, f"i{at}") for at, member in enumerate(members)]
    pools = Pools(json=(64, 4), leak_detection="paranoid")
    result = Run(seen=[item.seen for item in chain])
    with capture_logs() as logs:
        async with open_chain(*((item.name, item) for item in chain), pools=pools) as stream:
            if watched:
                stream.watch(Looks())

            async def emit(number: int) -> bytes:
                if watched == "read":
                    stream.watch(Looks() if number % 2 else None)
                assert all(is_over(event) for item in chain for event in item.kept)
                output = b""
                for item in chain:
                    if number < len(item.member.emits) and not stream.ended:
                        await item.context.emit(MADE[item.member.emits[number]](item))
                        output += await emitted(stream)
                        if stream.failure is not None:
                            break
                return output

            result.output = await feed(stream, reads, emit)
            result.counts, failure = counted(stream.counts), stream.failure
            result.failure = None if failure is None else f"{type(failure).__name__}: {failure}"
            result.ended = stream.ended
            if stream.ended and result.output.endswith(b"\r\n\r"):
                result.output += b"\n"  # of a CRLF that was cut: it comes after the end
    assert all(is_over(event) for item in chain for event in item.kept)
    assert not any(stats.in_use for stats in pools.statistics())
    result.logged = errors(logs)
    return result


async def check(
    members: Iterable[Member], blocks: Iterable[bytes], *reads: Iterable[bytes]
) -> None:
    """The chain does what the model does with the blocks, in each of these reads, also if it is
    watched.
    """
    expected = Model(members).read(blocks)
    for each in reads:
        assert await run(members, each) == expected
    for watched in ("always", "read"):
        assert await run(members, each, watched) == expected


USUAL = [
    b'data: {"a":1}\n\n',
    b'data:{"a":"x"}\n\n',
    b"data: [DONE]\n\n",
    b"data: \xff!\n\n",
    b'event: t\ndata: {"a":2}\n\n',
    b"event:t\ndata:3!\n\n",
    b"id: 1\nevent: t\ndata: 4\n\n",
    b"data: 1\ndata: 2\n\n",
    b'data: "' + b"y" * 100 + b'"\n\n',
]
ODD = [
    *(b"data\n\n", b"data:\n\n", b"data: \n\n", b"event:\ndata: 1\n\n", b"event: \n\n", b"x\n\n"),
    *(b"retry: 10\n\n", b"id: a\0b\n\n", b": hb\n\n", b":\n\n", b"\n", b"\n\n", b"\0\n\n"),
    *(b": c\ndata: 5!\n\n", b"data: 6\n: c\n\n", b" data: 7\n\n", b"0\n\n"),
    *(BOM, BOM + b"data: 11\n\n", b"data: \xef\xbb\xbf\n\n"),
    *(b"data: 12", b"data: 13\n", b"event: t\nda", b"dat", b"data: 14\ni"),
]
AMONG: list[tuple[list[Member], list[Member]]] = [
    ([], []),
    ([Member(("pass",))], [Member(("pass",))]),
    ([], [Member(("pass", "json"))]),
    ([Member(("json",), needs=(b"a",))], [Member(("pass",), needs=(b"!",))]),
    ([Member(("[json, event, json]",))], [Member(("pass", "drop"), needs=(b"a",), is_async=True)]),
    ([Member(("pass",), is_async=True)], []),
    ([], [Member(("raise", "text", "pass"))]),
]
"""What is before and after a hook: which of the stream's ways its events go."""


@pytest.mark.parametrize("act", ACTS)
async def test_every_act_among_others(act: str) -> None:
    """Sync and async, with either `on_error`, also at an unfinished end."""
    stream, unfinished = b"".join(USUAL), b": c\n\ndata: a!\n"
    script = ("pass", "json", act, "json", "pass", act, act, "much json")
    for (before, after), on_error, is_async in product(AMONG, ("skip", "abort"), (False, True)):
        acts = Member(script, on_error, is_async=is_async)
        await check([*before, acts, *after], [stream], [stream])
        acts = Member((act,), on_error, is_async=is_async)
        await check([*before, acts, *after], [unfinished], [unfinished])


@pytest.mark.parametrize("act", ["pass", "drop", "data", "[event]", "(event, new)"])
@pytest.mark.parametrize(
    "stream",
    [
        BOM + b"data: a\n\n: c\n\n" + BOM + b"data: b\n\n",
        b"data: a\n\n" + BOM + b"data: b\n\n",
        b"data: a\r\n\r\n: c\r\n\r\ndata: b\r\n\r\n",
        b"data: a\r\r:c\r\rdata: b\r",
    ],
)
async def test_a_bom_and_every_line_end_cut_anywhere(stream: bytes, act: str) -> None:
    """A BOM is the stream's where nothing has left; a cut LF goes where its event went."""
    for is_async in (False, True):
        await check([Member((act, "pass"), is_async=is_async)], [stream], *splits(stream))


@pytest.mark.parametrize("made", MADE)
async def test_everything_that_a_member_adds(made: str) -> None:
    """Emitted after each read, or at the end; later hooks see it, earlier ones do not."""
    answers = ("pass", "data", "drop", "[event, event]", "raise", "End(event)")
    blocks = [b"data: a\n\n", b": c\n\n", b"data: b!\n\n"]
    for is_async, on_error, answer in product((False, True), ("skip", "abort"), answers):
        own = Member(("json",), on_error, is_async=is_async, completes=made)
        if made in EMITTED:
            own = Member(("pass",), on_error, is_async=is_async, emits=(made,) * 3)
        later = Member(("pass", "pass", answer), on_error, is_async=is_async, completes="new")
        needy = Member(("its json", "data"), "skip", (b"!",), emits=("typed", "new"))
        for chain in ([own], [own, later], [later, own], [needy, own, later, needy]):
            await check(chain, blocks, blocks)
            await check(chain, [*blocks, b"data: unfin"], [*blocks, b"data: unfin"])


blocks = st.one_of(*[st.sampled_from(USUAL)] * 3, st.sampled_from(ODD))
streams = st.one_of(
    st.lists(st.sampled_from(USUAL), max_size=12), st.lists(blocks, max_size=12)
).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=4)
acts = st.one_of(
    st.sampled_from(["pass", "json", "json", "typed json"]),
    st.sampled_from(sorted(ACTS.keys() - LAST.keys())),
)
scripts = st.builds(
    lambda acts, last: (*acts, *last),
    st.lists(acts, min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(LAST)), max_size=1),
)
needs = st.sampled_from([
    None, None, (b"!",), (b"data",), (b'"a"', b"[DONE]"), (b"a", b"1"),
    re.compile(rb"[0-9]!"), re.compile(rb"event"), re.compile(b""),
])  # fmt: skip
members = st.builds(
    Member,
    scripts,
    st.sampled_from(["skip", "skip", "abort"]),
    needs,
    st.sampled_from([False, False, True]),
)
chains = st.lists(members, min_size=1, max_size=3)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(stream), *(position % (len(stream) + 1) for position in at)})
    return [stream[a:b] for a, b in pairwise(bounds)]


@given(chains, streams, cuts, st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"]))
@settings(deadline=None, max_examples=150)
async def test_any_stream_in_any_reads(
    chain: list[Member], stream: bytes, at: list[int], line_end: bytes
) -> None:
    """Whole, cut at random and byte by byte."""
    stream = stream.replace(b"\n", line_end)
    await check(chain, [stream], [stream], cut(stream, at), [bytes([byte]) for byte in stream])
