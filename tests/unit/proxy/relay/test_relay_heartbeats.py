"""The relay in time: its deadlines, when a heartbeat is sent and when none may be, and that a reader
gets the same events with and without heartbeats. All times are of Trio's mock clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.event_source import comments, dispatched
from support.relays import WAYS, Recorder, open_rig, running_rig
from trio.testing import MockClock, wait_all_tasks_blocked

from interceptors import Event, EventResult
from proxy.errors import ClientGone, ReadTimedOut, SendStalled
from proxy.http.body import Chunked, ContentLength, Framing, UntilClose
from proxy.relay.heartbeat import PING
from proxy.upstream import UpstreamBody

BEAT_S = 10.0
BOM = b"\xef\xbb\xbf"


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Who waits."""
    return str(request.param)


def keep(event: Event) -> EventResult:
    return event


def change(wait_s: float) -> Callable[[Event], Any]:
    async def hook(event: Event) -> EventResult:
        await trio.sleep(wait_s)
        return event.replace(data="changed")

    return hook


EVENT, CHANGED = b"data: 1\n\n", b"data: changed\n\n"


@dataclass
class Scenario:
    """Steps (bytes that arrive, or seconds that pass), and what then holds."""

    steps: list[bytes | float]
    pings: tuple[float, ...] = ()
    """When, in seconds since the relay began."""
    received: bytes | None = None
    """All bytes, if they are known."""
    fails: type[Exception] | None = None
    at_s: float = 0
    """When it fails."""
    hooks: tuple[Any, ...] = (None,)
    given: dict[str, Any] = field(default_factory=dict)
    """Of the rig: `idle_s`, `send_s`, `heartbeat_s`."""
    drains: tuple[float, ...] = ()
    """What the client takes for each drain; it is full until they are over."""
    gone: bool = False


QUIET = {"heartbeat_s": None}
IDLE = QUIET | {"idle_s": 10.0}
SCENARIOS = {
    "silence is timed from the last byte": Scenario(
        [*[9, EVENT] * 10, 11], (), EVENT * 10, ReadTimedOut, 100, (None, keep), IDLE
    ),
    "silence from the start": Scenario([11], (), b"", ReadTimedOut, 10, given=IDLE),
    "silence within the first event": Scenario(
        [b"data: unfin", 11], (), b"", ReadTimedOut, 10, (keep,), IDLE
    ),
    "without a deadline silence may last": Scenario([1e6, EVENT, 1], (), EVENT, given=QUIET),
    "a slow client's time is not the upstream's": Scenario(
        [EVENT, 34, EVENT, 1], (), EVENT * 2, given=IDLE, drains=(25.0,)
    ),
    "a hook's time is not the upstream's": Scenario(
        [EVENT, 34, EVENT, 26], (), CHANGED * 2, hooks=(change(25.0),), given=IDLE
    ),
    "the send deadline is for each wait": Scenario(
        [*[EVENT[:8], 40.0] * 3],
        (),
        EVENT[:8] * 2,
        SendStalled,
        90,
        given=QUIET | {"send_s": 10.0},
        drains=(*[9.0] * 8, math.inf),
    ),
    "silence is broken every interval, timed from what left last": Scenario(
        [25, EVENT, 21], (10, 20, 35, 45), PING * 2 + EVENT + PING * 2, hooks=(None, keep)
    ),
    "events every 0.9 of the interval leave no silence": Scenario(
        [*[9, EVENT] * 20, 1], received=EVENT * 20, hooks=(None, keep)
    ),
    "dropped events do not break the client's silence": Scenario(
        [*[4, EVENT] * 8, 1], (10, 20, 30), PING * 3, hooks=(lambda event: None,)
    ),
    **{
        f"none inside an event: {half!r}": Scenario(
            [half, 55, b"\n\n", 11], (65,), half + b"\n\n" + PING
        )
        for half in (b"data: x", b"data: x\n", b": comment\n", b"data: x\r", b"data: x\r\n")
    },
    "with a chain, half an event has not left": Scenario(
        [EVENT + b"data: ha", 11, b"lf\n\n", 1],
        (10,),
        EVENT + PING + b"data: half\n\n",
        hooks=(keep,),
    ),
    "the idle deadline counts from upstream's last byte": Scenario(
        [5, EVENT, 60], (15, 25, 35), None, ReadTimedOut, 40, given={"idle_s": 35.0}
    ),
    "an idle deadline before the first heartbeat": Scenario(
        [60], (), b"", ReadTimedOut, 5, given={"idle_s": 5.0}
    ),
    "a heartbeat notices that the client has gone": Scenario(
        [60], (), b"", ClientGone, 10, gone=True
    ),
    "a client that takes no heartbeat has stalled": Scenario(
        [60], (10,), b"", SendStalled, 40, given={"send_s": 30.0}, drains=(math.inf,)
    ),
    "also beside an async hook, which is ended": Scenario(
        [EVENT, 60],
        (10,),
        b"",
        SendStalled,
        25,
        hooks=(change(math.inf),),
        given={"send_s": 15.0},
        drains=(math.inf,),
    ),
    "a slow client's time is not silence": Scenario(
        [EVENT, 34, 2], (35,), EVENT + PING, drains=(25.0,)
    ),
    "an event waits for the heartbeat before it": Scenario(
        [EVENT, 23], (10,), PING + CHANGED, hooks=(change(15.0),), drains=(12.0,)
    ),
    "a quick async hook": Scenario(
        [7, EVENT, 5, 10], (10, 21), PING + CHANGED + PING, hooks=(change(4.0),)
    ),
    "a slow async hook": Scenario(
        [7, EVENT, 26, 10], (10, 20, 30, 42), PING * 3 + CHANGED + PING, hooks=(change(25.0),)
    ),
}


@pytest.mark.parametrize("synchronous", [True, False], ids=["direct", "asgi"])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_when_heartbeats_leave_and_deadlines_end_a_stream(
    scenario: Scenario, way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    for hook in scenario.hooks:
        drains = [*scenario.drains]

        async def drain(drains: list[float] = drains) -> None:
            await trio.sleep(drains.pop(0) if drains else 0)

        client = Recorder(
            refuses=lambda drains=drains: bool(drains),
            takes=drain,
            pieces=4 if len(drains) > 1 else 1,
            leaves_after=0 if scenario.gone else math.inf,
            synchronous=synchronous,
        )
        async with running_rig(way, client, UntilClose(), hook=hook, stop=True) as rig:
            for name, value in ({"heartbeat_s": BEAT_S} | scenario.given).items():
                setattr(rig, name, value)
            for step in scenario.steps:
                if isinstance(step, bytes):
                    await rig.far.send_all(step)
                else:
                    await trio.sleep(step)
            pings = [at - rig.began for at, data in client.writes if data == PING]
            # The hub adds the time that really passes in its wait, of which the clock knows nothing.
            assert pings == pytest.approx(list(scenario.pings), abs=1)
            assert scenario.received in (None, client.received)
            if scenario.fails is not None:
                assert type(rig.error) is scenario.fails
                assert rig.ended_at - rig.began == pytest.approx(scenario.at_s, abs=1)
            else:
                assert (rig.over.is_set(), rig.error) == (False, None)
                assert client.bytes_sent == len(client.received)
            if hook is keep and rig.relay.chain is not None:  # heartbeats are not events
                assert rig.relay.chain.counts.total == client.received.count(b"data")


async def test_what_came_in_time_is_read_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A process that stood still has not been told yet that it can read."""
    monkeypatch.setattr(UpstreamBody, "wait_readable", lambda body: trio.sleep_forever())
    client = Recorder()
    async with open_rig("own task", client, ContentLength(6)) as rig:
        rig.idle_s = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            for data in (b"one", b"two"):
                await rig.far.send_all(data)
                await trio.sleep(11.0)
        assert (rig.error, client.received) == (None, b"onetwo")


@pytest.mark.parametrize("hook", [None, keep], ids=["no chain", "chain"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3, "early"])
@pytest.mark.parametrize("framing", [Chunked, UntilClose])
async def test_a_byte_order_mark_after_a_heartbeat_is_dropped(
    framing: type[Framing], cut: Any, hook: Any, way: str, autojump_clock: MockClock
) -> None:
    """It is only one at the beginning of a stream. An early heartbeat leaves before the relay."""
    client, early = Recorder(), cut == "early"
    stream, at = BOM + b"data: 1\n\ndata: 2\n\n", 0 if early else cut
    async with running_rig(
        way, client, framing(), hook=hook, wrote_before_body=early, stop=True
    ) as rig:
        rig.heartbeat_s = BEAT_S
        await trio.sleep(0 if early else 11)
        for piece in filter(None, (stream[:at], stream[at:12], stream[12:])):
            size = len(piece)
            await rig.far.send_all(b"%x\r\n%s\r\n" % (size, piece) if framing is Chunked else piece)
            await trio.sleep(1)
        assert dispatched(client.received) == dispatched(stream)
        assert client.received.replace(PING, b"") == stream[3:]


async def test_an_event_that_passes_costs_no_more(
    way: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """No deadline is set for it, and no task is woken."""
    scope, made = trio.CancelScope, [0]

    def counting(*args: Any, **kwargs: Any) -> trio.CancelScope:
        made[0] += 1
        return scope(*args, **kwargs)

    counts = []
    for heartbeat_s in (None, BEAT_S):
        client = Recorder()
        async with running_rig(way, client, UntilClose(), stop=True) as rig:
            rig.heartbeat_s = heartbeat_s
            await wait_all_tasks_blocked()
            with monkeypatch.context() as patch:
                patch.setattr(trio, "CancelScope", counting)
                made[0] = 0
                for _ in range(200):
                    rig.far.socket._sock.send(EVENT)  # type: ignore[attr-defined]
                    await wait_all_tasks_blocked()
                counts.append(made[0])
        assert client.received == EVENT * 200
    assert counts[0] == counts[1] < 10


FIELDS = [b"data: x", b"data", b"data:", b"id: 7", b"id", b"event: e", b"retry: 5", b": note", b":"]
LINES = st.sampled_from([*FIELDS, BOM, b"x"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(
    st.lists(st.tuples(LINES, ENDS), max_size=3).flatmap(
        lambda lines: ENDS.map(lambda end: b"".join(a + b for a, b in lines) + end)
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=120)
@given(
    bom=st.sampled_from([b"", BOM, BOM[:2]]),
    stream=STREAMS,
    cuts=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([0.0, 9.0, 11.0, 25.0])),
        min_size=1,
        max_size=12,
    ),
    before_s=st.sampled_from([0.0, 11.0]),
    hook=st.sampled_from([None, keep]),
    way=st.sampled_from(WAYS),
    synchronous=st.booleans(),
    is_chunked=st.booleans(),
)
@example(BOM[:2], b"", [(1, 0.0)], 11.0, None, WAYS[0], True, False)
def test_its_events_are_the_same_as_those_without(
    bom: bytes,
    stream: bytes,
    cuts: list[tuple[int, float]],
    before_s: float,
    hook: Any,
    way: str,
    synchronous: bool,
    is_chunked: bool,
) -> None:
    """Any stream with any line ends, in any pieces with silence between any of them."""
    data = bom + stream
    client = Recorder(synchronous=synchronous)

    async def run() -> None:
        framing: Framing = Chunked() if is_chunked else UntilClose()
        async with running_rig(way, client, framing, hook=hook) as rig:
            rig.heartbeat_s = BEAT_S
            await trio.sleep(before_s)
            at = number = 0
            while at < len(data):
                size, pause_s = cuts[number % len(cuts)]
                piece = data[at : at + size]
                size = len(piece)
                await rig.far.send_all(b"%x\r\n%s\r\n" % (size, piece) if is_chunked else piece)
                at, number = at + size, number + 1
                await trio.sleep(pause_s)
            await (rig.far.send_all(b"0\r\n\r\n") if is_chunked else rig.far.send_eof())
        assert rig.error is None

    trio.run(run, clock=MockClock(autojump_threshold=0))
    received = client.received + b"".join(client.unsent)  # the end may be left to `finish`
    assert dispatched(received) == dispatched(data)
    assert received.replace(PING, b"") in (data, data.removeprefix(BOM))
    if before_s:
        assert received.startswith(PING)
        assert ": ping" in comments(received)
