"""The relay's heartbeats: when one is sent, when none may be, and that a reader gets the same
events with and without them.

All times are of Trio's mock clock. What a socket pair holds is readable at once, so that the clock
jumps only when there is nothing to move.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.chunks import unchunked
from support.event_source import comments, dispatched
from support.writers import flush_of
from trio.testing import MockClock

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    EventResult,
    Interceptor,
    Request,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain, Part
from pools import Pools
from proxy.errors import ClientGone, ReadTimedOut, SendStalled
from proxy.http.body import Chunked, Framing, UntilClose
from proxy.relay import Mover, Relay, open_relay
from proxy.relay.hub import Hub
from proxy.upstream import UpstreamBody
from proxy.upstream.connections import Connection, Origin

WAYS = ["hub", "own task"] if Hub.available() else ["own task"]
BEAT_S = 10.0
FOREVER = float("inf")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Who waits."""
    return str(request.param)


@pytest.fixture(params=["direct", "asgi"])
def synchronous(request: pytest.FixtureRequest) -> bool:
    """Whether a write can leave at once, or only through a drain."""
    return bool(request.param == "direct")


class Client:
    """A writer that notes what leaves, and when. `takes`: awaited by each drain."""

    name = "recording"
    started = True

    def __init__(
        self, synchronous: bool, takes: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    ) -> None:
        self.synchronous = synchronous
        self.received = b""
        self.pings: list[float] = []
        self.bytes_sent = 0
        self.gone = False
        self.full = False
        self._takes = takes
        self._unsent = b""

    @property
    def stalled(self) -> bool:
        return bool(self._unsent)

    def write(self, parts: Sequence[Part]) -> bool:
        return self._take(b"".join(parts))

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        data = b"".join(unchunked(b"".join(message)))
        assert len(data) == size
        return self._take(data)

    def _take(self, data: bytes) -> bool:
        assert not self._unsent, "written to before everything has left"
        if self.gone:
            raise ClientGone
        self.bytes_sent += len(data)
        if data == b": ping\n":
            self.pings.append(trio.current_time())
        if self.synchronous and not self.full:
            self.received += data
            return True
        self._unsent = data
        return False

    async def drain(self) -> bool:
        await self._takes()
        self.received += self._unsent
        self._unsent = b""
        return True


class Hook(Interceptor):
    """A function of each event; with `wait_s`, awaited for so long."""

    def __init__(
        self, on_event: Callable[[Event], EventResult], wait_s: float | None = None
    ) -> None:
        self.on_event = on_event
        self.wait_s = wait_s

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        outer = self

        class Sync(StreamInterceptor):
            def on_event(self, event: Event) -> EventResult:
                return outer.on_event(event)

        class Async(AsyncStreamInterceptor):
            async def on_event(self, event: Event) -> EventResult:
                await trio.sleep(outer.wait_s or 0)
                return outer.on_event(event)

        return Sync() if outer.wait_s is None else Async()


class NoPool:
    """Takes a connection back, and closes it."""

    def release(self, connection: Connection, *, reusable: bool) -> None:
        connection.close()


class Rig:
    def __init__(self, relay: Relay, far: socket.socket, hub: Hub | None, chain: Any) -> None:
        self.relay = relay
        self.far = far
        self.hub = hub
        self.chain = chain
        self.began = 0.0
        self.ended_at = 0.0
        self.error: Exception | None = None
        self.over = trio.Event()
        self.idle_s = math.inf
        self.send_s = math.inf
        self.heartbeat_s: float | None = BEAT_S

    async def run(self) -> None:
        self.began = trio.current_time()
        try:
            await Mover(
                self.relay,
                self.hub,
                idle_s=self.idle_s,
                flush=flush_of(self.relay.writer, self.send_s),
                heartbeat_s=self.heartbeat_s,
            ).run()
        except Exception as error:
            self.error = error
        self.ended_at = trio.current_time()
        self.over.set()


@asynccontextmanager
async def open_rig(
    way: str,
    client: Client,
    framing: Framing | None = None,
    *,
    hook: Hook | None = None,
    wrote_before_body: bool = False,
) -> AsyncIterator[Rig]:
    """A running relay, of a body that ends with its connection unless `framing` is given."""
    pools = Pools(
        sse_event=(1024, 4), http_response=(2048, 4), json=(512, 4), leak_detection="paranoid"
    )
    near, far = socket.socketpair()
    near.setblocking(False)
    connection = Connection(Origin("http", "up.test", 80), near)
    body = UpstreamBody(
        NoPool(),
        connection,
        framing or UntilClose(),
        b"",
        keep_alive=True,
    )  # type: ignore[arg-type]
    hub = Hub(pools) if way == "hub" else None
    async with trio.open_nursery() as nursery:
        if hub is not None:
            nursery.start_soon(hub.run)
        async with pools.open_scope() as scope:
            chain = None
            if hook is not None:
                chain = Chain([("hook", hook)]).open_stream(Request(), pools.json, scope, 1 << 20)
            rig = Rig(
                open_relay(
                    body, client, chain, pools, scope, sse=True, wrote_before_body=wrote_before_body
                ),
                far,
                hub,
                chain,
            )  # type: ignore[arg-type]
            async with trio.open_nursery() as moving:
                moving.start_soon(rig.run)
                yield rig
                moving.cancel_scope.cancel()
            body.close()
            far.close()
        nursery.cancel_scope.cancel()


def near(times: list[float], *expected: float) -> bool:
    """The hub adds the time that really passes in its wait, of which the clock knows nothing."""
    pairs = zip(times, expected, strict=True)
    return len(times) == len(expected) and all(abs(a - b) < 1 for a, b in pairs)


KEEP = Hook(lambda event: event)
HOOKS = [None, KEEP]
EVENT, PING, CHANGED = b"data: 1\n\n", b": ping\n", b"data: changed\n\n"


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
    hooks: tuple[Hook | None, ...] = (None,)
    settings: dict[str, float | None] = field(default_factory=dict)
    """Of the rig: `idle_s`, `send_s`, `heartbeat_s`."""
    drain_s: float | None = None
    """The client is full until it has been waited for so long."""
    gone: bool = False


def change(wait_s: float) -> tuple[Hook]:
    return (Hook(lambda event: event.replace(data="changed"), wait_s),)


SCENARIOS = {
    "silence is broken every interval, timed from what left last": Scenario(
        [25, EVENT, 21],
        (10, 20, 35, 45),
        PING * 2 + EVENT + PING * 2,
        hooks=(None, KEEP),
    ),
    "events every 0.9 of the interval leave no silence": Scenario(
        [*[9, EVENT] * 20, 1], received=EVENT * 20, hooks=(None, KEEP)
    ),
    "no interval": Scenario([10_000], received=b"", settings={"heartbeat_s": None}),
    "dropped events do not break the client's silence": Scenario(
        [*[4, EVENT] * 8, 1], (10, 20, 30), PING * 3, hooks=(Hook(lambda event: None),)
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
        hooks=(KEEP,),
    ),
    "the idle deadline counts from upstream's last byte": Scenario(
        [5, EVENT, 60], (15, 25, 35), None, ReadTimedOut, 40, settings={"idle_s": 35.0}
    ),
    "an idle deadline before the first heartbeat": Scenario(
        [60], (), b"", ReadTimedOut, 5, settings={"idle_s": 5.0}
    ),
    "a heartbeat notices that the client has gone": Scenario(
        [60], (), b"", ClientGone, 10, gone=True
    ),
    "a client that takes no heartbeat has stalled": Scenario(
        [60], (10,), b"", SendStalled, 40, settings={"send_s": 30.0}, drain_s=FOREVER
    ),
    "also beside an async hook, which is ended": Scenario(
        [EVENT, 60],
        (10,),
        b"",
        SendStalled,
        25,
        hooks=change(FOREVER),
        settings={"send_s": 15.0},
        drain_s=FOREVER,
    ),
    "a slow client's time is not silence": Scenario(
        [EVENT, 34, 2], (35,), EVENT + PING, drain_s=25.0
    ),
    "an event waits for the heartbeat before it": Scenario(
        [EVENT, 23], (10,), PING + CHANGED, hooks=change(15.0), drain_s=12.0
    ),
    "a quick async hook": Scenario(
        [7, EVENT, 5, 10], (10, 21), PING + CHANGED + PING, hooks=change(4.0)
    ),
    "a slow async hook": Scenario(
        [7, EVENT, 26, 10], (10, 20, 30, 42), PING * 3 + CHANGED + PING, hooks=change(25.0)
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
async def test_when_heartbeats_leave(
    scenario: Scenario, way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """At which times, between which events, and how a stream ends that has them."""

    async def drain() -> None:
        if client.full:
            await trio.sleep(scenario.drain_s or 0)
            client.full = False

    for hook in scenario.hooks:
        client = Client(synchronous, takes=drain)
        client.full, client.gone = scenario.drain_s is not None, scenario.gone
        async with open_rig(way, client, hook=hook) as rig:
            for name, value in scenario.settings.items():
                setattr(rig, name, value)
            for step in scenario.steps:
                if isinstance(step, bytes):
                    rig.far.send(step)
                else:
                    await trio.sleep(step)
            assert near([at - rig.began for at in client.pings], *scenario.pings)
            assert scenario.received in (None, client.received)
            if scenario.fails is not None:
                assert type(rig.error) is scenario.fails
                assert near([rig.ended_at - rig.began], scenario.at_s)
            else:
                assert (rig.over.is_set(), rig.error) == (False, None)
                assert client.bytes_sent == len(client.received)
                if hook is KEEP:  # heartbeats are not events
                    assert rig.chain.counts.total == client.received.count(b"data")


@pytest.mark.parametrize("hook", HOOKS, ids=["no chain", "chain"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("framing", [Chunked, UntilClose])
async def test_a_byte_order_mark_after_a_heartbeat_is_dropped(
    framing: type[Framing],
    cut: int,
    hook: Hook | None,
    way: str,
    synchronous: bool,
    autojump_clock: MockClock,
) -> None:
    """It is only one at the beginning of a stream."""
    client = Client(synchronous)
    stream = b"\xef\xbb\xbfdata: 1\n\ndata: 2\n\n"
    async with open_rig(way, client, framing(), hook=hook) as rig:
        await trio.sleep(11)
        for piece in filter(None, (stream[:cut], stream[cut:12], stream[12:])):
            size = len(piece)
            rig.far.send(b"%x\r\n%s\r\n" % (size, piece) if framing is Chunked else piece)
            await trio.sleep(1)
        assert dispatched(client.received) == dispatched(stream)
        assert client.received.replace(b": ping\n", b"") == stream[3:]


@pytest.mark.parametrize("hook", HOOKS, ids=["no chain", "chain"])
async def test_what_was_sent_before_the_relay_counts(
    hook: Hook | None, way: str, autojump_clock: MockClock
) -> None:
    """An early heartbeat has left already."""
    client = Client(True)
    async with open_rig(way, client, hook=hook, wrote_before_body=True) as rig:
        rig.far.send(b"\xef\xbb\xbfdata: 1\n\n")
        await trio.sleep(1)
        assert client.received == b"data: 1\n\n"


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
        client = Client(True)
        async with open_rig(way, client) as rig:
            rig.heartbeat_s = heartbeat_s
            await trio.testing.wait_all_tasks_blocked()
            with monkeypatch.context() as patch:
                patch.setattr(trio, "CancelScope", counting)
                made[0] = 0
                for _ in range(1000):
                    rig.far.send(b"data: 1\n\n")
                    await trio.testing.wait_all_tasks_blocked()
                counts.append(made[0])
        assert client.received == b"data: 1\n\n" * 1000
    assert counts[0] == counts[1] < 10


FIELDS = [b"data: x", b"data", b"data:", b"id: 7", b"id", b"event: e", b"retry: 5", b": note", b":"]
LINES = st.sampled_from([*FIELDS, b"\xef\xbb\xbf", b"x"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(
    st.lists(st.tuples(LINES, ENDS), max_size=3).flatmap(
        lambda lines: ENDS.map(lambda end: b"".join(a + b for a, b in lines) + end)
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(
    bom=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    stream=STREAMS,
    cuts=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from([0.0, 9.0, 11.0, 25.0])),
        min_size=1,
        max_size=12,
    ),
    before_s=st.sampled_from([0.0, 11.0]),
    chained=st.booleans(),
    way=st.sampled_from(WAYS),
    synchronous=st.booleans(),
    is_chunked=st.booleans(),
)
@example(b"\xef\xbb", b"", [(1, 0.0)], 11.0, False, WAYS[0], True, False)
def test_its_events_are_the_same_as_those_without(
    bom: bytes,
    stream: bytes,
    cuts: list[tuple[int, float]],
    before_s: float,
    chained: bool,
    way: str,
    synchronous: bool,
    is_chunked: bool,
) -> None:
    """Any stream with any line ends, in any pieces with silence between any of them."""
    data = bom + stream
    client = Client(synchronous)

    async def run() -> None:
        framing: Framing = Chunked() if is_chunked else UntilClose()
        async with open_rig(way, client, framing, hook=HOOKS[1] if chained else None) as rig:
            await trio.sleep(before_s)
            at = number = 0
            while at < len(data):
                size, pause_s = cuts[number % len(cuts)]
                piece = data[at : at + size]
                rig.far.send(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
                at, number = at + size, number + 1
                await trio.sleep(pause_s)
            if is_chunked:
                rig.far.send(b"0\r\n\r\n")
            else:
                rig.far.shutdown(socket.SHUT_WR)
            await rig.over.wait()
            assert rig.error is None

    trio.run(run, clock=MockClock(autojump_threshold=0))
    received = client.received + client._unsent  # the end of a stream may be left to `finish`
    assert dispatched(received) == dispatched(data)
    without = re.sub(rb": ping\n", b"", received)
    assert without in (data, data.removeprefix(b"\xef\xbb\xbf"))
    if before_s:
        assert received.startswith(b": ping\n")
        assert ": ping" in comments(received)
