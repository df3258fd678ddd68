"""A response's body before its head has left: its first bytes, which decide what it is, and all of a JSON body for interceptors.

Everything is read into a pooled buffer, and what was only looked at is given back to the upstream's body.
"""

from __future__ import annotations

import trio

from interceptors.chain import StreamChain
from interceptors.sse import looks_like_sse
from pools import BufferPool, BufferScope

from .errors import ReadTimedOut
from .upstream import UpstreamBody

__all__ = ["JsonBody", "is_event_stream"]


async def is_event_stream(upstream: UpstreamBody, pool: BufferPool, buffers: BufferScope, *, idle_s: float | None) -> bool:
    """Whether a body looks like an event stream. Waits for the bytes that decide it and no more, and leaves the body unread.

    `idle_s` bounds the silence of upstream. Raises `UpstreamFailure`.
    """
    lease = buffers.acquire(pool)
    size, decided = 0, looks_like_sse(b"", whole=upstream.complete)
    while decided is None:
        size = await _read(upstream, lease.buffer, size, idle_s)
        decided = looks_like_sse(lease.buffer[:size], whole=upstream.complete)
    _unread(upstream, lease.buffer, size)
    buffers.release(lease)
    return decided


class JsonBody:
    """One body. Call `take` once."""

    __slots__ = ("first_read",)

    def __init__(self) -> None:
        self.first_read: float | None = None
        """Trio's time of the first bytes of the body."""

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
        """What leaves instead of it. None if it is larger than `max_bytes` and no interceptor needs it: then it is left unread, to
        pass through the chain.

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
                result = bytes(view) if changed is None else changed
        buffers.release(lease)
        return result


def _unread(upstream: UpstreamBody, buffer: bytearray, size: int) -> None:
    with memoryview(buffer) as view:
        upstream.unread(bytes(view[:size]))


async def _read(upstream: UpstreamBody, buffer: bytearray, size: int, idle_s: float | None) -> int:
    """Wait for more of a body and put it after `buffer[:size]`; how much is there then. Raises `UpstreamFailure`."""
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
