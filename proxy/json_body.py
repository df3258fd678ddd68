"""The body of a JSON response, for interceptors that want to see it: collected in a pooled buffer, and shown to them as one."""

from __future__ import annotations

import trio

from interceptors import EventTooLarge
from interceptors.chain import StreamChain
from pools import BufferPool, BufferScope

from .errors import ReadTimedOut
from .upstream import UpstreamBody

__all__ = ["JsonBody"]


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
    ) -> bytes:
        """What leaves instead of it. `idle_s` bounds the silence of upstream. Raises `UpstreamFailure` and `InterceptorError`."""
        lease = buffers.acquire(pool)
        buffer, size = lease.buffer, 0
        while not upstream.complete:
            with trio.move_on_after(idle_s if idle_s is not None else float("inf")) as waiting:
                await upstream.wait_readable()
            if waiting.cancelled_caught:
                raise ReadTimedOut(f"{upstream.connection.origin}: silent for {idle_s} s")
            if len(buffer) - size < 1024:
                buffer.extend(bytes(len(buffer)))
            span = upstream.receive(buffer, size)
            if span is not None:
                first, last = span
                if first != size:  # where the framing has left what came first
                    buffer[size : size + last - first] = buffer[first:last]
                if self.first_read is None and last > first:
                    self.first_read = trio.current_time()
                size += last - first
            if size > max_bytes:
                raise EventTooLarge(max_bytes)
        with memoryview(buffer)[:size] as view:
            changed = await chain.process_body(view)
            result = bytes(view) if changed is None else changed
        buffers.release(lease)
        return result
