"""A long stream through a chain of five: nothing lost, nothing twice, nothing out of order, and
nothing that piles up.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from support.client import Client
from support.interceptors import Log, Serve, Way, until
from support.upstream import Peer

from interceptors import Abort, Event, EventResult, Interceptor, StreamContext, StreamInterceptor
from interceptors.redact import Redact

EVENTS = 100_000
EARLY = range(10_000, 20_000)
LATE = range(90_000, EVENTS)
"""The events while which memory is traced, which makes everything slow; by the first of them
everything has the size it needs.
"""

GROWTH_BYTES = 64 * 1024
"""What may be held of what was taken for the late events, and how much more the most may be than it
was for the early ones. A byte for each event is 10 kB, the smallest object for each some 500 kB.
"""

SECRET = b"sk-abcdefghijklmnop"


def has_usage(number: int) -> bool:
    return number % 50 == 20


def sent(number: int) -> bytes:
    """What upstream sends."""
    if number % 11 == 3:
        return b"event: text\ndata: plain %d\ndata: %s\n\n" % (number, SECRET)
    usage = b', "usage": {"tokens": %d}' % number if has_usage(number) else b""
    key = b', "key": "%s"' % SECRET if number % 13 == 0 else b""
    head = b"id: %d\n" % number if number % 7 == 0 else b""
    return b'%sdata: {"n": %d, "text": "word%s"%s%s}\n\n' % (
        head,
        number,
        b"s" * (number % 40),
        usage,
        key,
    )


def expected(number: int) -> bytes:
    """What a client must get, computed independently of the interceptors."""
    event = sent(number).replace(SECRET, b"[redacted]")
    if number % 11 == 3:
        return event
    if number % 10 == 7:
        return b""
    if has_usage(number):
        event = event.replace(
            b'{"tokens": %d}' % number, b'{"tokens":%d,"cents":%d}' % (number, number // 10)
        )
    if number % 3 == 0:
        event = event.replace(b"}\n\n", b',"edited":true}\n\n')
    if number % 3 == 0 or has_usage(number):  # decoded, and encoded again without spaces
        event = event.replace(b'": ', b'":').replace(b', "', b',"')
    return event + (b"event: extra\ndata: after %d\n\n" % number if number % 10 == 5 else b"")


def message_of(event: Event) -> dict[str, Any] | None:
    """None where it is not JSON."""
    message: dict[str, Any] | None = event.json() if event.raw.find(b"{") >= 0 else None
    return message


class Pass(Interceptor):
    """Sees every event and touches none, but ends a stream in which one is out of order."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return PassStream()


class PassStream(StreamInterceptor):
    def __init__(self) -> None:
        self.next = 0

    def on_event(self, event: Event) -> EventResult:
        message = message_of(event)
        number = int(event.data.split()[1]) if message is None else message["n"]
        if number != self.next:
            raise Abort(f"{number} has come instead of {self.next}")
        self.next += 1
        return event


class Edit(Interceptor):
    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return EditStream()


class EditStream(StreamInterceptor):
    def on_event(self, event: Event) -> EventResult:
        message = message_of(event)
        return (
            event
            if message is None or message["n"] % 3
            else event.replace(json=message | {"edited": True})
        )


class DropAndAdd(Interceptor):
    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return DropAndAddStream()


class DropAndAddStream(StreamInterceptor):
    def on_event(self, event: Event) -> EventResult:
        message = message_of(event)
        if message is None:
            return event
        if message["n"] % 10 == 7:
            return None
        return (
            [event, Event(f"after {message['n']}", event="extra")]
            if message["n"] % 10 == 5
            else event
        )


class Price(Interceptor):
    """Needs few events; what the others have made it is shown all the same."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return PriceStream()


class PriceStream(StreamInterceptor):
    needs = (b'"usage"',)

    def on_event(self, event: Event) -> EventResult:
        message = message_of(event)
        if message is None or "usage" not in message:
            return event
        return event.replace(
            json=message | {"usage": message["usage"] | {"cents": message["n"] // 10}}
        )


class Hide(Redact):
    def __init__(self) -> None:
        super().__init__(patterns=[r"sk-[a-z]{10,}"])


CHAIN = [Pass, Edit, DropAndAdd, Price, Hide]


class Rests:
    """Upstream stops after so many events until a test lets it continue."""

    def __init__(self, *after: int) -> None:
        self._reached = {number: trio.Event() for number in after}

    async def script(self, peer: Peer) -> None:
        rng = random.Random(5)
        await peer.request()
        await peer.start_stream()
        wire = bytearray()
        for number in range(EVENTS):
            wire += sent(number)
            rest = self._reached.get(number + 1)
            if len(wire) > 30_000 or rest is not None:
                for piece in cut(framed(wire, rng), rng):
                    await peer.send(piece)
                wire.clear()
            if rest is not None:
                await rest.wait()
        await peer.end()

    def go_on(self, number: int) -> None:
        self._reached[number].set()


def cut(data: bytes, rng: random.Random, most: int = 9000) -> Iterator[bytes]:
    """Pieces of any length, one byte now and then."""
    at = 0
    while at < len(data):
        size = 1 if rng.random() < 0.1 else rng.randrange(1, most)
        yield data[at : at + size]
        at += size


def framed(data: bytes, rng: random.Random) -> bytes:
    """In chunks that end anywhere."""
    return b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(bytes(data), rng, most=3000)
    )


@dataclass
class Memory:
    held: int
    peak: int

    @classmethod
    def now(cls, pooled: int) -> Memory:
        """What is held of what was taken since tracing began, and the most that was at once."""
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
        # Not what this upstream and this client have at hand.
        ours = tracemalloc.Filter(False, str(Path(__file__).parents[1] / "*"))
        kept = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
        return cls(sum(entry.size for entry in kept) - pooled, peak - pooled)


class Reader:
    """Compares every byte of a body with what is expected, counts, and keeps nothing."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rest = bytearray()
        self.counts = {"passed": 0, "changed": 0, "dropped": 0, "added": 0}

    async def read(self, numbers: range) -> None:
        """What becomes of these events, and nothing beyond that."""
        rest, counts = self._rest, self.counts
        for number in numbers:
            wanted = expected(number)
            while len(rest) < len(wanted):
                rest += await self._client.read_some()
            assert rest.startswith(wanted), (number, bytes(rest[:200]), wanted)
            del rest[: len(wanted)]
            counts[
                "dropped"
                if not wanted
                else "passed"
                if wanted.startswith(sent(number))
                else "changed"
            ] += 1
            counts["added"] += b"event: extra" in wanted
        assert rest == b""


@pytest.fixture
def serve(log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
    return Way().serve(log, monkeypatch)


async def test_a_hundred_thousand_events_keep_their_order_and_leak_nothing(
    serve: Serve,
) -> None:
    """Passed, edited, dropped, added, selected and redacted, cut anywhere on their way."""
    rests = Rests(EARLY.start, EARLY.stop, LATE.start, LATE.stop)
    async with serve(rests.script, *CHAIN) as rig:
        client, _ = await rig.start()
        reader = Reader(client)

        def made() -> int:
            return sum(
                stats.allocations * stats.size for stats in rig.proxy.worker.pools.statistics()
            )

        async def read(numbers: range, traced: bool) -> Memory:
            before = made()
            if traced:
                tracemalloc.start()
            try:
                await reader.read(numbers)
                assert len(rig.proxy.worker.live) == 1
                await until(lambda: not any(rig.proxy.in_use().values()))
                return Memory.now(made() - before) if traced else Memory(0, 0)
            finally:
                tracemalloc.stop()
                rests.go_on(numbers.stop)

        with trio.fail_after(200):
            await read(range(EARLY.start), traced=False)
            early = await read(EARLY, traced=True)
            await read(range(EARLY.stop, LATE.start), traced=False)
            late = await read(LATE, traced=True)
        assert await rig.outcomes() == ["completed"]
        assert rig.failures() == []
        assert rig.lines("exchange")[0]["events"] == EVENTS
        counted = {
            action: rig.metric("weirpool_events_total", route="/", action=action)
            for action in reader.counts
        }
        assert counted == reader.counts
        assert min(reader.counts.values()) > EVENTS // 20
    assert late.held < GROWTH_BYTES, (early, late)
    assert late.peak - early.peak < 4 * GROWTH_BYTES, (
        early,
        late,
    )  # the upstream's batches are among it, and differ
