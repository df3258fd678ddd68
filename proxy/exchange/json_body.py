"""A response's body before its head has left: its first bytes, which decide what it is, and all of
a JSON body for interceptors.

Everything is read into a pooled buffer, and what was only looked at is given back to the upstream's
body.
"""

from __future__ import annotations

from typing import Literal

import trio

from interceptors.chain import StreamChain
from interceptors.sse import BOM, MAX_BLANK_BYTES, first_of_body, looks_like_sse
from pools import BufferPool, BufferScope

from ..errors import ReadTimedOut
from ..upstream import UpstreamBody

__all__ = ["JsonBody", "LooksLike", "look_at"]


LooksLike = Literal["events", "json", "other"]


async def look_at(
    upstream: UpstreamBody, pool: BufferPool, buffers: BufferScope, *, idle_s: float | None
) -> LooksLike:
    """What a body looks like. Waits for the bytes that decide it and no more, and leaves the body
    unread.

    `idle_s` bounds the silence of upstream. Raises `UpstreamFailure`.
    """
    lease = buffers.acquire(pool)
    size, found = 0, _looks_like(b"", whole=upstream.complete)
    while found is None:
        size = await _read(upstream, lease.buffer, size, idle_s)
        found = _looks_like(lease.buffer[:size], whole=upstream.complete)
    _unread(upstream, lease.buffer, size)
    buffers.release(lease)
    return found


def _looks_like(beginning: bytes | bytearray, *, whole: bool) -> LooksLike | None:
    """None: more bytes decide."""
    is_sse = looks_like_sse(beginning, whole=whole)
    if is_sse is not False:
        return None if is_sse is None else "events"
    after_bom = len(BOM) if beginning.startswith(BOM) else 0
    at, is_json = first_of_body(beginning, after_bom, len(beginning))
    if at < 0 and not whole and len(beginning) < MAX_BLANK_BYTES:
        return None  # white space so far
    return "json" if is_json else "other"


class JsonBody:
    """One body. Call `take` once."""

    __slots__ = ("changed", "first_read")

    def __init__(self) -> None:
        self.first_read: float | None = None
        """Trio's time of the first bytes of the body."""
        self.changed = False
        """An interceptor has changed it."""

    async def take(
        self,
        upstream: UpstreamBody,
        chain: StreamChain,
        pool: BufferPool,
        buffers: BufferScope,
        *,
        max_bytes: int,
        idle_s: float | None,
    ) -> bytes | None:
        """What leaves instead of it. None if it is larger than `max_bytes` and no interceptor needs
        it: then it is left unread, to pass through the chain.

        `idle_s` bounds the silence of upstream. Raises `UpstreamFailure`, and `InterceptorError`.
        """
        lease = buffers.acquire(pool)
        size = 0
        while not upstream.complete and size <= max_bytes:
            size = await _read(upstream, lease.buffer, size, idle_s)
            if self.first_read is None and size:
                self.first_read = trio.current_time()
        result: bytes | None = None
        if size > max_bytes:
            chain.begin_large_body(lease.buffer, size)
            _unread(upstream, lease.buffer, size)
        else:
            with memoryview(lease.buffer)[:size] as view:
                changed = await chain.process_body(view)
                self.changed = changed is not None
                result = bytes(view) if changed is None else changed
        buffers.release(lease)
        return result


def _unread(upstream: UpstreamBody, buffer: bytearray, size: int) -> None:
    with memoryview(buffer) as view:
        upstream.unread(bytes(view[:size]))


async def _read(upstream: UpstreamBody, buffer: bytearray, size: int, idle_s: float | None) -> int:
    """Wait for more of a body and put it after `buffer[:size]`; how much is there then. Raises
    `UpstreamFailure`.
    """
    with trio.move_on_after(idle_s if idle_s is not None else float("inf")) as waiting:
        await upstream.wait_readable()
    if waiting.cancelled_caught:
        raise ReadTimedOut(f"{upstream.connection.origin}: silent for {idle_s} s")
    if len(buffer) - size < 1024:
        buffer.extend(bytes(len(buffer)))
    span = upstream.receive(buffer, size)
    if span is None:
        return size
    first, last = span
    if first != size:  # where the framing has left what came first
        buffer[size : size + last - first] = buffer[first:last]
    return size + last - first
