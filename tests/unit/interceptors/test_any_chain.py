"""Any chain over any stream in any reads: what hooks see, what leaves, what is counted and logged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from unit.interceptors.scripted import BOM, Hook, counted, errors, open_chain

from interceptors import Abort, Event, Interceptor, StreamContext, StreamInterceptor
from interceptors.api import End
from interceptors.errors import StaleEvent
from interceptors.needs import Needs
from interceptors.wire_event import WireEvent
from pools import Pools

Act = Callable[["Scripted", Event], Any]


# --- hooks that do one thing after the other
# ----------------------------------------------------------------------------


class Scripted(Interceptor):
    """Runs its script, one line for each call, and starts again at its end."""

    def __init__(self, script: Sequence[str], on_error: Any, needs: Needs) -> None:
        self.script, self.on_error, self.needs = script, on_error, needs
        self.seen: list[Any] = []
        self.kept: list[Event] = []
        self.detached = [Event("kept before anything came")]
        self.own = Event(json={"own": 1})

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _ScriptedStream(self)


class _ScriptedStream(StreamInterceptor):
    def __init__(self, scripted: Scripted) -> None:
        self.scripted = scripted
        self.needs = scripted.needs

    def on_event(self, event: Event) -> Any:
        scripted = self.scripted
        act = scripted.script[len(scripted.seen) % len(scripted.script)]
        scripted.seen.append((act, *told(event)))
        scripted.kept.append(event)
        return ACTS[act](scripted, event)


def told(event: Event) -> tuple[Any, ...]:
    """What a hook can read of an event, exceptions included."""
    said: list[Any] = []
    for ask in (
        lambda: event.json(),
        lambda: event.event,
        lambda: event.data,
        lambda: event.raw,
        lambda: (event.id, event.retry),
    ):
        try:
            said.append(repr(ask()))
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return tuple(said)


def _raise(error: BaseException) -> Any:
    raise error


def _keep_a_copy(scripted: Scripted, event: Event) -> Event:
    scripted.detached.append(event.detach())
    return event


UNENCODABLE = repr  # JSON has no word for a function
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
    "[json, event, json]": lambda scripted, event: [
        event.replace(json=1),
        event,
        event.replace(json=2),
    ],
    "[event, event]": lambda scripted, event: [event, event],
    "[new, new]": lambda scripted, event: [new := Event("new"), new],
    "[json, unencodable]": lambda scripted, event: [
        event.replace(json=1),
        event.replace(json=UNENCODABLE),
    ],
    "unencodable": lambda scripted, event: event.replace(json=["x" * 20, UNENCODABLE]),
    "unencodable, typed": lambda scripted, event: event.replace(json=UNENCODABLE, event="t"),
    "raise": lambda scripted, event: _raise(KeyError("in the hook")),
    "nonsense": lambda scripted, event: "nonsense",
    "[nonsense]": lambda scripted, event: [event, 5],
}
LAST: dict[str, Act] = {
    "End()": lambda scripted, event: End(),
    "End(event)": lambda scripted, event: End(event),
    "End(json, event)": lambda scripted, event: End(event.replace(json=1), event),
    "End(unencodable)": lambda scripted, event: End(event.replace(json=UNENCODABLE)),
    "Abort": lambda scripted, event: _raise(Abort("because")),
}
ACTS |= LAST


@dataclass(frozen=True)
class Member:
    """One interceptor of a chain."""

    script: list[str]
    on_error: str = "skip"
    needs: Needs = None


# --- one run, in either way
# ---------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Everything that is visible of a run from outside."""

    output: bytes = b""
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    failure: str | None = None
    ended: bool = False
    consumed: int = 0
    seen: list[Any] = field(default_factory=list)
    logged: list[Any] = field(default_factory=list)


def run(
    members: Iterable[Member],
    chunks: Iterable[bytes],
    *,
    max_event_bytes: int = 1 << 20,
) -> Run:
    """Every window is overwritten when it has been processed: an event that outlives it shows."""
    chain = [Scripted(member.script, member.on_error, member.needs) for member in members]
    pools = Pools(json=(64, 4), leak_detection="paranoid")
    result = Run()

    async def main() -> None:
        interceptors = [(f"i{at}", interceptor) for at, interceptor in enumerate(chain)]
        async with open_chain(
            *interceptors, pools=pools, max_event_bytes=max_event_bytes
        ) as stream:
            arriving = list(chunks)
            left = b""
            for index in range(len(arriving) + 1):
                final = index == len(arriving)
                window = bytearray(
                    b"##" + left + (b"" if final else arriving[index]) + b"data: old\n\n"
                )
                end = len(window) - len(b"data: old\n\n")
                parts, at = stream.process(window, 2, end, final=final)
                result.output += b"".join(parts)
                for part in parts:
                    assert isinstance(part, memoryview)
                    part.release()
                stream.release_parts()
                result.consumed += at - 2
                left = bytes(window[at:end])
                window[:] = b"!" * len(window)
                window.clear()  # no longer used: a remaining view would make this fail
                if stream.failure is not None or stream.ended:
                    break
                for interceptor in chain:
                    assert all(is_over(event) for event in interceptor.kept)
            result.counts = counted(stream.counts)
            result.failure = (
                None
                if stream.failure is None
                else f"{type(stream.failure).__name__}: {stream.failure}"
            )
            result.ended = stream.ended

    with capture_logs() as logs:
        trio.run(main)
    assert all(is_over(event) for interceptor in chain for event in interceptor.kept)
    assert not any(stats.in_use for stats in pools.statistics())
    result.seen = [interceptor.seen for interceptor in chain]
    result.logged = errors(logs)
    return result


def is_over(event: Event) -> bool:
    """Whether it is stale, or owns its bytes and so may be kept."""
    if type(event) is not WireEvent or type(event._buffer) is bytes:
        return True
    for ask in (lambda: event.raw, lambda: event.data, lambda: event.json(), lambda: event.event):
        with pytest.raises(StaleEvent):
            ask()
    return True


# --- what comes
# ---------------------------------------------------------------------------------------------------------

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
    *(
        b"data\n\n",
        b"data:\n\n",
        b"data: \n\n",
        b"event:\ndata: 1\n\n",
        b"event: \n\n",
        b"retry: 10\n\n",
        b"id: a\0b\n\n",
        b"x\n\n",
    ),
    *(
        b": hb\n\n",
        b":\n\n",
        b"\n",
        b"\n\n",
        b": c\ndata: 5!\n\n",
        b"data: 6\n: c\n\n",
        b"\0\n\n",
        b" data: 7\n\n",
        b"0\n\n",
    ),
    *(
        b'data: {"a":1}\r\n\r\n',
        b"data: 8\r\r",
        b"event: t\r\ndata: 9\r\n\r\n",
        b"\r\n",
        b"\r",
        b"data: 10\n\r",
        b"data: 1\r2\n\n",
    ),
    *(BOM, BOM + b"data: 11\n\n", b"data: \xef\xbb\xbf\n\n"),
    *(b"data: 12", b"data: 13\n", b"event: t\nda", b"dat", b"data: 14\ni"),
]
blocks = st.one_of(
    st.sampled_from(USUAL), st.sampled_from(USUAL), st.sampled_from(USUAL), st.sampled_from(ODD)
)
streams = st.one_of(
    st.lists(st.sampled_from(USUAL), max_size=12), st.lists(blocks, max_size=12)
).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=4)
acts = st.one_of(
    st.sampled_from(["pass", "json", "json", "typed json"]),
    st.sampled_from(sorted(ACTS.keys() - LAST.keys())),
)
scripts = st.builds(
    lambda acts, last: [*acts, *last],
    st.lists(acts, min_size=1, max_size=6),
    st.lists(st.sampled_from(sorted(LAST)), max_size=1),
)
needs = st.sampled_from(
    [
        None,
        None,
        (b"!",),
        (b"data",),
        (b'"a"', b"[DONE]"),
        re.compile(rb"[0-9]!?\n"),
        re.compile(rb"event"),
    ]
)
members = st.builds(Member, scripts, st.sampled_from(["skip", "skip", "abort"]), needs)
chains = st.lists(members, min_size=1, max_size=3)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(stream), *(position % (len(stream) + 1) for position in at)})
    return [stream[a:b] for a, b in pairwise(bounds)]


@given(chains, streams.filter(lambda stream: b"\r" not in stream), cuts)
@settings(deadline=None, max_examples=300)
def test_reads_make_no_difference(chain: list[Member], stream: bytes, at: list[int]) -> None:
    """Whole, cut at random and byte by byte: the same for hooks, client, counts and logs."""
    whole, *others = (
        run(chain, chunks)
        for chunks in ([stream], cut(stream, at), [bytes([byte]) for byte in stream])
    )
    for other in others:
        other.consumed = whole.consumed
        assert other == whole


@pytest.mark.parametrize("on_error", ["skip", "abort"])
@pytest.mark.parametrize(
    "others",
    [[], [Member(["pass"])], [Member(["pass", "json"])]],
    ids=["alone", "before one that looks", "before one that replaces"],
)
@pytest.mark.parametrize("act", ACTS)
def test_every_act_among_replacements(act: str, others: list[Member], on_error: str) -> None:
    """As above, for each result of a hook between replaced and unchanged events."""
    for script in (
        ["pass", "json", "json", act, "json", act, "pass"],
        ["pass", act, "pass", act, act, "json", "much json", act],
    ):
        chain = [Member(script, on_error), *others]
        whole, apart = run(chain, [b"".join(USUAL)]), run(chain, USUAL)
        apart.consumed = whole.consumed
        assert apart == whole


class Odd(BaseException):
    """Not an `Exception`: it is not a failure of a hook, and the caller gets it."""


@pytest.mark.parametrize("number", [1, 2])
async def test_an_event_is_over_however_its_hook_ends(number: int) -> None:
    """The first event of a stream, which goes the general way, and the second, which does not."""
    kept: list[Event] = []

    def hook(event: Event) -> Event:
        kept.append(event)
        if len(kept) == number:
            raise Odd
        return event

    async with open_chain(("i", Hook(hook))) as stream:
        window = bytearray(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
        with pytest.raises(Odd):
            stream.process(window, 0, len(window))
    assert len(kept) == number
    assert all(is_over(event) for event in kept)


def test_a_copy_is_shown_to_whom_it_is_needed_by() -> None:
    """`needs` is a promise about all that came from upstream."""
    chain = [Member(["a copy"]), Member(["pass"], needs=(b"!",))]
    result = run(chain, [b"data: 1\n\ndata: 2\n\ndata: 3!\n\ndata: 4\n\n"])
    assert [data for _, _, _, data, *_ in result.seen[1]] == ["'3!'"]


@pytest.mark.parametrize("result", ["[new, new]", "[event, event]"])
def test_one_event_twice_at_an_unfinished_end(result: str) -> None:
    """What replaces an unfinished event is unfinished only at its end."""
    output = run([Member([result])], [b"data: new\n"]).output
    assert output.startswith(b"data: new\n\n")
    assert output.rstrip(b"\n").endswith(b"\ndata: new")
    assert output.endswith(b"w\n")
