"""A relay between a real socket and a recording writer, moved by a hub or by its own task.

On Trio's mock clock: what a socket pair holds is readable at once, so that the clock jumps only when
there is nothing to move.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from inspect import iscoroutinefunction
from typing import Any

import trio

from interceptors import Event, EventResult, Request
from interceptors.chain import Chain, Part
from pools import BufferScope, Pools
from proxy.errors import ClientGone, SendStalled
from proxy.http.body import Chunked, Framing
from proxy.hub.hub import Hub
from proxy.relay import Mover, Relay, open_relay
from proxy.upstream import UpstreamBody
from proxy.upstream.connection import Connection
from proxy.upstream.origin import Origin
from support.chunks import unchunked
from support.interceptors import on_event, on_event_async

__all__ = ["WAYS", "NoPool", "Recorder", "RelayRig", "edit", "edited", "open_rig", "running_rig"]

WAYS = ["hub", "own task"] if Hub.available() else ["own task"]
SMALL = {"sse_event": (1024, 4), "http_response": (2048, 4), "json": (512, 4)}


class NoPool:
    """Takes a connection back, and closes it."""

    def release(self, connection: Connection, *, reusable: bool) -> None:
        connection.close()


class WatchedConnection(Connection):
    """Notes at each read whether the writer held something back."""

    __slots__ = ("reads", "writer")

    def __init__(self, sock: socket.socket, writer: Any) -> None:
        super().__init__(Origin("http", "up.test", 80), sock)
        self.writer = writer
        self.reads: list[bool] = []

    def receive_into(self, buffer: bytearray, at: int) -> int | None:
        self.reads.append(self.writer.stalled)
        return super().receive_into(buffer, at)


class Recorder:
    """A writer that records what leaves, and when. A write that it `refuses` leaves in as many
    `pieces`, each after awaiting `takes`.
    """

    name = "recording"
    started = True

    def __init__(
        self,
        refuses: Callable[[], bool] = lambda: False,
        takes: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        pieces: int = 1,
        leaves_after: float = math.inf,
        synchronous: bool = True,
    ) -> None:
        self.writes: list[tuple[float, bytes]] = []
        self.received = b""
        self.wire = bytearray()
        """The body as a synchronous writer frames it, but for its end."""
        self.bytes_sent = 0
        self.synchronous = self.keeps_chunks = synchronous
        self.unsent: list[bytes] = []
        self._refuses = refuses
        self._takes = takes
        self._pieces = pieces
        self._leaves_after = leaves_after

    @property
    def stalled(self) -> bool:
        return bool(self.unsent)

    def write(self, parts: Sequence[Part]) -> bool:
        assert parts
        data = b"".join(parts)
        return self._take(data, b"%x\r\n%b\r\n" % (len(data), data) if data else b"")

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        assert self.synchronous, "ASGI servers frame bodies by themselves"
        wire = b"".join(message)
        data = b"".join(unchunked(wire))
        assert 0 < size == len(data)
        return self._take(data, wire)

    def _take(self, data: bytes, wire: bytes) -> bool:
        assert not self.unsent, "written to before everything has left"
        if len(self.received) >= self._leaves_after:
            raise ClientGone
        self.writes.append((trio.current_time(), data))
        self.wire += wire
        self.bytes_sent += len(data)
        if self._refuses() or not self.synchronous:
            size = max(1, -(-len(data) // self._pieces))
            self.unsent = [data[at : at + size] for at in range(0, len(data), size)]
            return False
        self.received += data
        return True

    async def drain(self) -> bool:
        await self._takes()
        self.received += self.unsent.pop(0)
        return not self.unsent


def edit(event: Event) -> EventResult:
    """By the first letter: change, drop, double, or let pass."""
    match event.data[:1]:
        case "c":
            return event.replace(data=event.data.upper())
        case "d":
            return None
        case "2":
            return [event, Event(data="again")]
        case _:
            return event


def edited(text: bytes, block: bytes) -> bytes:
    """What `edit` makes of an event with this text, written down without the chain."""
    return {b"c": b"data: %s\n\n" % text.upper(), b"d": b"", b"2": block + b"data: again\n\n"}.get(
        text[:1], block
    )


class RelayRig:
    """One relay with both its ends in the test's hands."""

    def __init__(
        self, pools: Pools, scope: BufferScope, hub: Hub | None, far: socket.socket, relay: Relay
    ) -> None:
        self.pools = pools
        self.scope = scope
        self.hub = hub
        self.far = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        self.relay = relay
        self.idle_s = self.send_s = math.inf
        self.heartbeat_s: float | None = None
        self.error: Exception | None = None
        self.over = trio.Event()
        self.began = self.ended_at = 0.0

    async def run(self) -> None:
        """Move the body to its end, and note how that was."""
        self.began = trio.current_time()
        mover = Mover(
            self.relay,
            self.hub,
            idle_s=self.idle_s,
            flush=self._flush,
            heartbeat_s=self.heartbeat_s,
        )
        try:
            await mover.run()
        except Exception as error:
            self.error = error
        self.ended_at = trio.current_time()
        self.over.set()

    async def _flush(self) -> None:
        """As `ClientResponse.flush`."""
        done = False
        while not done:
            with trio.move_on_after(self.send_s) as scope:
                done = await self.relay.writer.drain()
            if scope.cancelled_caught:
                raise SendStalled

    async def run_fed(
        self, data: bytes, cuts: Callable[[], int] = lambda: 1 << 20, *, close: bool = False
    ) -> None:
        """Run to the end while `data` comes in pieces of the sizes that `cuts` gives."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            at = 0
            while at < len(data):
                size = cuts()
                try:
                    await self.far.send_all(data[at : at + size])
                except trio.BrokenResourceError:
                    break
                at += size
            if close:
                await self.far.aclose()
            await self.over.wait()

    def in_use(self) -> dict[str, int]:
        return {item.pool: item.in_use for item in self.pools.statistics() if item.in_use}


@asynccontextmanager
async def open_rig(
    way: str,
    writer: Any,
    framing: Framing | None = None,
    *,
    hook: Callable[[Event], Any] | None = None,
    sizes: dict[str, Any] = SMALL,
    early: bytes = b"",
    sse: bool = True,
    max_event_bytes: int = 1 << 20,
    sockets: tuple[socket.socket, socket.socket] | None = None,
    wrote_before_body: bool = False,
) -> AsyncIterator[RelayRig]:
    """A relay of a chunked body or one with another framing, and a hub that runs if that is the
    way. Nothing is on loan in the end.
    """
    pools = Pools(**sizes, leak_detection="paranoid")
    near, far = sockets or socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    pool: Any = NoPool()
    body = UpstreamBody(pool, WatchedConnection(near, writer), framing or Chunked(), early, True)
    hub = Hub(pools) if way == "hub" else None
    async with trio.open_nursery() as nursery:
        if hub is not None:
            nursery.start_soon(hub.run)
        async with pools.open_scope() as scope:
            chain = None
            if hook is not None:
                kind = (on_event_async if iscoroutinefunction(hook) else on_event)(hook)
                chain = Chain([("hook", kind())]).open_stream(
                    Request(), pools.json, scope, max_event_bytes
                )
            relay = open_relay(
                body, writer, chain, pools, scope, sse=sse, wrote_before_body=wrote_before_body
            )
            rig = RelayRig(pools, scope, hub, far, relay)
            try:
                yield rig
            finally:
                body.close()
                await trio.aclose_forcefully(rig.far)
        assert hub is None or len(hub) == 0
        nursery.cancel_scope.cancel()
    assert rig.in_use() == {}


@asynccontextmanager
async def running_rig(*args: Any, stop: bool = False, **kwargs: Any) -> AsyncIterator[RelayRig]:
    """The same, while it runs. Leaving it waits for the relay's end, or cancels it with `stop`."""
    async with open_rig(*args, **kwargs) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.run)
        yield rig
        if stop:
            nursery.cancel_scope.cancel()
