"""A long stream through a chain of five: nothing lost, nothing twice, nothing out of order, and
nothing that piles up.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio
from support.client import Client
from support.interceptors import Serve, interceptor, until
from support.upstream import Peer

from interceptors import Abort, Event, EventResult, Interceptor
from interceptors.redact import Redact

EVENTS = 40_000
EARLY = range(5_000, 10_000)
LATE = range(35_000, EVENTS)
"""The events while which memory is traced, which makes everything slow; by the first of them
everything has the size it needs.
"""

GROWTH_BYTES = 48 * 1024
"""What may be held of what was taken for the late events, and how much more the most may be than it
was for the early ones. The smallest object for each event is some 250 kB.
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
    text = b"word%s" % (b"s" * (number % 40))
    return b'%sdata: {"n": %d, "text": "%s"%s%s}\n\n' % (head, number, text, usage, key)


def expected(number: int) -> bytes:
    """What a client must get, computed independently of the interceptors."""
    event = sent(number).replace(SECRET, b"[redacted]")
    if number % 11 == 3:
        return event
    if number % 10 == 7:
        return b""
    if has_usage(number):
        priced = b'{"tokens":%d,"cents":%d}' % (number, number // 10)
        event = event.replace(b'{"tokens": %d}' % number, priced)
    if number % 3 == 0:
        event = event.replace(b"}\n\n", b',"edited":true}\n\n')
    if number % 3 == 0 or has_usage(number):  # decoded, and encoded again without spaces
        event = event.replace(b'": ', b'":').replace(b', "', b',"')
    return event + (b"event: extra\ndata: after %d\n\n" % number if number % 10 == 5 else b"")


def message_of(event: Event) -> dict[str, Any] | None:
    """None where it is not JSON."""
    message: dict[str, Any] | None = event.json() if event.raw.find(b"{") >= 0 else None
    return message


def chain() -> list[type[Interceptor]]:
    """One checks the order, the others edit, drop and add, price, and redact."""
    upcoming = iter(range(EVENTS))

    def check(event: Event) -> EventResult:
        message, wanted = message_of(event), next(upcoming)
        number = int(event.data.split()[1]) if message is None else message["n"]
        if number != wanted:
            raise Abort(f"{number} has come instead of {wanted}")
        return event

    def edit(event: Event) -> EventResult:
        message = message_of(event)
        if message is None or message["n"] % 3:
            return event
        return event.replace(json=message | {"edited": True})

    def drop_and_add(event: Event) -> EventResult:
        number = (message_of(event) or {"n": 0})["n"]
        if number % 10 == 7:
            return None
        return [event, Event(f"after {number}", event="extra")] if number % 10 == 5 else event

    def price(event: Event) -> EventResult:
        """Needs few events; what the others have made it is shown all the same."""
        message = message_of(event)
        if message is None or "usage" not in message:
            return event
        usage = message["usage"] | {"cents": message["n"] // 10}
        return event.replace(json=message | {"usage": usage})

    class Hide(Redact):
        def __init__(self) -> None:
            super().__init__(patterns=[r"sk-[a-z]{10,}"])

    return [
        interceptor("Check", on_event=check),
        interceptor("Edit", on_event=edit),
        interceptor("DropAndAdd", on_event=drop_and_add),
        interceptor("Price", on_event=price, needs=(b'"usage"',)),
        Hide,
    ]


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
                chunks = cut(bytes(wire), rng, most=3000)
                framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in chunks)
                for piece in cut(framed, rng):
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


def memory() -> tuple[int, int]:
    """What is held of what was taken since tracing began, and the most that was at once."""
    gc.collect()
    _, peak = tracemalloc.get_traced_memory()
    # Not what this upstream and this client have at hand.
    ours = tracemalloc.Filter(False, str(Path(__file__).parents[1] / "*"))
    kept = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
    return sum(entry.size for entry in kept), peak


class Reader:
    """Compares every byte of a body with what is expected, counts, and keeps nothing."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rest = bytearray()
        self.counts: Counter[str] = Counter()

    async def read(self, numbers: range) -> None:
        """What becomes of these events, and nothing beyond that."""
        rest = self._rest
        for number in numbers:
            wanted = expected(number)
            while len(rest) < len(wanted):
                rest += await self._client.read_some()
            assert rest.startswith(wanted), (number, bytes(rest[:200]), wanted)
            del rest[: len(wanted)]
            passed = "passed" if wanted.startswith(sent(number)) else "changed"
            self.counts[passed if wanted else "dropped"] += 1
            self.counts["added"] += b"event: extra" in wanted
        assert rest == b""


async def test_many_events_keep_their_order_and_leak_nothing(serve_once: Serve) -> None:
    """Passed, edited, dropped, added, selected and redacted, cut anywhere on their way."""
    rests = Rests(EARLY.start, EARLY.stop, LATE.start, LATE.stop)
    async with serve_once(rests.script, *chain()) as rig:
        client, _ = await rig.start()
        reader = Reader(client)

        def made() -> int:
            pools = rig.proxy.worker.pools.statistics()
            return sum(stats.allocations * stats.size for stats in pools)

        async def read(numbers: range, *, traced: bool = False) -> tuple[int, int]:
            """What is held, and the most that was, without the buffers of pools."""
            before = made()
            if traced:
                tracemalloc.start()
            try:
                await reader.read(numbers)
                assert len(rig.proxy.worker.live) == 1
                await until(lambda: not any(rig.proxy.in_use().values()))
                held, peak = memory() if traced else (0, 0)
                return held - (made() - before), peak - (made() - before)
            finally:
                tracemalloc.stop()
                rests.go_on(numbers.stop)

        with trio.fail_after(200):
            await read(range(EARLY.start))
            _, early_peak = await read(EARLY, traced=True)
            await read(range(EARLY.stop, LATE.start))
            late_held, late_peak = await read(LATE, traced=True)
        assert await rig.outcomes() == ["completed"]
        assert rig.failures() == []
        assert rig.lines("exchange")[0]["events"] == EVENTS
        for action, count in reader.counts.items():
            assert rig.metric("weirpool_events_total", route="/", action=action) == count
            assert count > EVENTS // 20
        assert len(reader.counts) == 4
    assert late_held < GROWTH_BYTES
    # The upstream's batches are among the peaks, and differ.
    assert late_peak - early_peak < 4 * GROWTH_BYTES, (early_peak, late_peak)
