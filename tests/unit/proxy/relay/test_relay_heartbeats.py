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
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
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
        data, wire = b"", b"".join(message)
        while wire:
            head, _, rest = wire.partition(b"\r\n")
            data += rest[: int(head, 16)]
            wire = rest[int(head, 16) + 2 :]
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
        self._on_event = on_event
        self._wait_s = wait_s

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        on_event, wait_s = self._on_event, self._wait_s

        class Sync(StreamInterceptor):
            def on_event(self, event: Event) -> EventResult:
                return on_event(event)

        class Async(AsyncStreamInterceptor):
            async def on_event(self, event: Event) -> EventResult:
                assert wait_s is not None
                await trio.sleep(wait_s)
                return on_event(event)

        return Sync() if wait_s is None else Async()


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
    return len(times) == len(expected) and all(
        abs(a - b) < 1.0 for a, b in zip(times, expected, strict=True)
    )


def since(rig: Rig, client: Client) -> list[float]:
    return [at - rig.began for at in client.pings]


HOOKS = [None, Hook(lambda event: event)]


@pytest.mark.parametrize("hook", HOOKS, ids=["no chain", "chain"])
async def test_silence_is_broken_every_interval(
    hook: Hook | None, way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """From the head on, before the first event as well as after it, timed from what left last,
    heartbeats included.
    """
    client = Client(synchronous)
    async with open_rig(way, client, hook=hook) as rig:
        await trio.sleep(25)
        rig.far.send(b"data: 1\n\n")
        await trio.sleep(21)
        assert near(since(rig, client), 10, 20, 35, 45)
        assert client.received == b": ping\n: ping\ndata: 1\n\n: ping\n: ping\n"
        assert client.bytes_sent == len(client.received)
        if rig.chain is not None:
            assert rig.chain.counts.total == 1


@pytest.mark.parametrize("hook", HOOKS, ids=["no chain", "chain"])
async def test_a_stream_that_speaks_gets_none(
    hook: Hook | None, way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """Events every 0.9 of the interval leave no silence."""
    client = Client(synchronous)
    async with open_rig(way, client, hook=hook) as rig:
        for _ in range(20):
            await trio.sleep(9)
            rig.far.send(b"data: 1\n\n")
        assert client.pings == []


async def test_without_an_interval_there_are_none(way: str, autojump_clock: MockClock) -> None:
    client = Client(True)
    async with open_rig(way, client) as rig:
        rig.heartbeat_s = None
        await trio.sleep(10_000)
        assert client.received == b""


async def test_an_upstream_that_speaks_to_nobody_is_silence(
    way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """What an interceptor drops does not reach the client: it is the client's silence that counts."""
    client = Client(synchronous)
    async with open_rig(way, client, hook=Hook(lambda event: None)) as rig:
        for _ in range(8):
            await trio.sleep(4)
            rig.far.send(b"data: dropped\n\n")
        await trio.sleep(1)
        assert near(since(rig, client), 10, 20, 30)


@pytest.mark.parametrize(
    "unfinished",
    [b"data: half", b"data: half\n", b": a comment\n", b"data: half\r", b"data: half\r\n"],
)
async def test_none_in_the_middle_of_an_event(
    unfinished: bytes, way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """However long upstream takes for the rest; once the event is whole, silence is timed anew."""
    client = Client(synchronous)
    async with open_rig(way, client) as rig:
        rig.far.send(unfinished)
        await trio.sleep(55)
        assert client.received == unfinished
        rig.far.send(b"\n\n")
        await trio.sleep(11)
        assert client.received == unfinished + b"\n\n: ping\n"
        assert near(since(rig, client), 65)


async def test_with_a_chain_half_an_event_has_not_left(
    way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """It waits in the proxy for its end, and heartbeats go out before it."""
    client = Client(synchronous)
    async with open_rig(way, client, hook=HOOKS[1]) as rig:
        rig.far.send(b"data: 1\n\ndata: ha")
        await trio.sleep(11)
        rig.far.send(b"lf\n\n")
        await trio.sleep(1)
        assert client.received == b"data: 1\n\n: ping\ndata: half\n\n"


async def test_a_heartbeat_is_no_sign_of_life_of_the_upstream(
    way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """The idle deadline counts from upstream's last byte only, whatever the proxy sends in between."""
    client = Client(synchronous)
    async with open_rig(way, client) as rig:
        rig.idle_s = 35.0
        await trio.sleep(5)
        rig.far.send(b"data: 1\n\n")
        await rig.over.wait()
        assert isinstance(rig.error, ReadTimedOut)
        assert near([rig.ended_at - rig.began], 40)
        assert near(since(rig, client), 15, 25, 35)


async def test_an_idle_deadline_before_the_first_heartbeat_still_holds(
    way: str, autojump_clock: MockClock
) -> None:
    client = Client(True)
    async with open_rig(way, client) as rig:
        rig.idle_s = 5.0
        await rig.over.wait()
        assert (type(rig.error), client.pings) == (ReadTimedOut, [])


async def test_a_client_that_has_gone_is_noticed_by_a_heartbeat(
    way: str, autojump_clock: MockClock
) -> None:
    client = Client(True)
    async with open_rig(way, client) as rig:
        client.gone = True
        await rig.over.wait()
        assert isinstance(rig.error, ClientGone)
        assert near([rig.ended_at - rig.began], 10)


async def test_a_client_that_takes_no_heartbeat_has_stalled(
    way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """The send deadline applies to a heartbeat as to any write, and no second heartbeat is written
    after the first.
    """
    client = Client(synchronous, takes=trio.sleep_forever)
    client.full = True
    async with open_rig(way, client) as rig:
        rig.send_s = 30.0
        await rig.over.wait()
        assert isinstance(rig.error, SendStalled)
        assert near([rig.ended_at - rig.began], 40)
        assert len(client.pings) == 1


async def test_a_slow_clients_time_is_no_silence(way: str, autojump_clock: MockClock) -> None:
    """A client that takes 25 s for an event has got something just now."""

    async def slowly() -> None:
        await trio.sleep(25.0)
        client.full = False

    client = Client(True, takes=slowly)
    client.full = True
    async with open_rig(way, client) as rig:
        rig.far.send(b"data: 1\n\n")
        await trio.sleep(34)
        assert client.pings == []
        await trio.sleep(2)
        assert near(since(rig, client), 35)


@pytest.mark.parametrize("wait_s", [4.0, 25.0])
async def test_an_async_hook_may_take_its_time(
    wait_s: float, way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """While one is awaited upstream is not read, and the client hears heartbeats all the same."""
    client = Client(synchronous)
    async with open_rig(
        way, client, hook=Hook(lambda event: event.replace(data="changed"), wait_s)
    ) as rig:
        await trio.sleep(7)
        rig.far.send(b"data: 1\n\n")
        await trio.sleep(wait_s + 1)
        if wait_s < 10:
            assert client.received == b": ping\ndata: changed\n\n"
        else:
            assert client.received == b": ping\n" * 3 + b"data: changed\n\n"
            assert near(since(rig, client), 10, 20, 30)
        await trio.sleep(10)
        assert client.received.endswith(b"data: changed\n\n: ping\n")


async def test_a_client_that_takes_no_heartbeat_beside_a_hook_has_stalled(
    way: str, synchronous: bool, autojump_clock: MockClock
) -> None:
    """The hook is ended for it."""
    client = Client(synchronous, takes=trio.sleep_forever)
    client.full = True
    async with open_rig(way, client, hook=Hook(lambda event: event, FOREVER)) as rig:
        rig.send_s = 15.0
        rig.far.send(b"data: 1\n\n")
        await rig.over.wait()
        assert isinstance(rig.error, SendStalled)
        assert near([rig.ended_at - rig.began], 25)


async def test_a_slow_client_takes_a_heartbeat_beside_a_hook(
    way: str, autojump_clock: MockClock
) -> None:
    """The hook is done before the heartbeat has left: the event waits its turn."""

    async def slowly() -> None:
        await trio.sleep(12.0)
        client.full = False

    client = Client(True, takes=slowly)
    client.full = True
    async with open_rig(way, client, hook=Hook(lambda event: event, 15.0)) as rig:
        rig.far.send(b"data: 1\n\n")
        await trio.sleep(23)
        assert client.received == b": ping\ndata: 1\n\n"


@pytest.mark.parametrize("hook", HOOKS, ids=["no chain", "chain"])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
@pytest.mark.parametrize("framing", [Chunked, UntilClose])
async def test_a_byte_order_mark_behind_a_heartbeat_is_dropped(
    framing: type[Framing],
    cut: int,
    hook: Hook | None,
    way: str,
    synchronous: bool,
    autojump_clock: MockClock,
) -> None:
    """At the beginning of a stream it means nothing."""
    client = Client(synchronous)
    stream = b"\xef\xbb\xbfdata: 1\n\ndata: 2\n\n"
    async with open_rig(way, client, framing(), hook=hook) as rig:
        wire = lambda data: b"%x\r\n%s\r\n" % (len(data), data) if framing is Chunked else data  # noqa: E731
        await trio.sleep(11)
        for piece in (stream[:cut], stream[cut:12], stream[12:]):
            if piece:
                rig.far.send(wire(piece))
            await trio.sleep(1)
        assert dispatched(client.received) == dispatched(stream)
        assert client.received.replace(b": ping\n", b"") == stream[3:]


@pytest.mark.parametrize("hook", HOOKS, ids=["no chain", "chain"])
async def test_what_was_said_before_the_relay_counts(
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


LINES = st.sampled_from(
    [
        b"data: x",
        b"data",
        b"data:",
        b"id: 7",
        b"id",
        b"event: e",
        b"retry: 5",
        b": note",
        b":",
        b"\xef\xbb\xbf",
        b"x",
    ]
)
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
def test_nobody_can_tell_its_events_from_those_without(
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
