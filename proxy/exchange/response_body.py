"""The body of an upstream response before the head goes to the client: its first bytes, which
decide what it is, and a whole JSON body for interceptors.

Everything is read into pooled buffers; what was only looked at goes back to the upstream's body.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import trio

from interceptors.chain import StreamChain
from interceptors.sse import BOM, MAX_BLANK_BYTES, first_of_body, looks_like_sse

from ..upstream import UpstreamBody
from .context import ExchangeContext
from .observe import observe_body

__all__ = ["JsonBody", "LooksLike", "look_at", "read_json"]

_LEAST_ROOM_BYTES = 1024

LooksLike = Literal["events", "json", "other"]


class JsonBody(NamedTuple):
    """A JSON body after its interceptors."""

    text: bytes
    changed: bool


async def look_at(
    ctx: ExchangeContext, media_type: str, coding: str, body: UpstreamBody
) -> LooksLike | None:
    """What a response is by its first bytes, if interceptors must see it whatever its media type
    is. None: only the media type counts.

    Waits for the bytes that decide, and leaves the body unread. Raises `UpstreamFailure`.
    """
    if media_type == "text/event-stream":
        return "events"
    request = ctx.progress.request
    if request is None or not ctx.route.chain.sees_streams or coding != "identity":
        return None
    if not ctx.route.dialect.may_be_mislabelled(request.path):
        return None
    lease = ctx.buffers.acquire(ctx.worker.pools.sse_event)
    size, found = 0, _looks_like(b"", whole=body.complete)
    while found is None:
        size = await _read(body, lease.buffer, size, ctx.route.timeouts.idle)
        found = _looks_like(lease.buffer[:size], whole=body.complete)
    _unread(body, lease.buffer, size)
    ctx.buffers.release(lease)
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


async def read_json(
    ctx: ExchangeContext, chain: StreamChain, body: UpstreamBody
) -> JsonBody | None:
    """Read a JSON body and pass it through the chain. None if it is larger than `max_event_bytes`:
    it is then unread, and the relay passes it through the chain.

    Raises `UpstreamFailure`, and `InterceptorError`.
    """
    max_bytes = ctx.route.limits.max_event_bytes
    lease = ctx.buffers.acquire(ctx.worker.pools.http_response)
    size = 0
    while not body.complete and size <= max_bytes:
        size = await _read(body, lease.buffer, size, ctx.route.timeouts.idle)
        if ctx.progress.first_body_at is None and size:
            ctx.progress.first_body_at = trio.current_time()
    result: JsonBody | None = None
    if size > max_bytes:
        chain.begin_large_body(lease.buffer, size)
        _unread(body, lease.buffer, size)
    else:
        if ctx.progress.is_observed:
            observe_body(ctx, bytes(lease.buffer[:size]))
        with memoryview(lease.buffer)[:size] as view:
            changed = await chain.process_body(view)
            result = JsonBody(bytes(view) if changed is None else changed, changed is not None)
    ctx.buffers.release(lease)
    return result


def _unread(body: UpstreamBody, buffer: bytearray, size: int) -> None:
    with memoryview(buffer) as view:
        body.unread(bytes(view[:size]))


async def _read(body: UpstreamBody, buffer: bytearray, size: int, idle_s: float) -> int:
    """Wait for more of a body and append it to `buffer[:size]`; returns the new size. Raises
    `UpstreamFailure`, also after a silence of `idle_s`.
    """
    if not body.pending:
        with trio.move_on_after(idle_s) as waiting:
            await body.wait_readable()
        if waiting.cancelled_caught:
            raise body.silent(idle_s)
    if len(buffer) - size < _LEAST_ROOM_BYTES:
        buffer.extend(bytes(len(buffer)))
    span = body.receive(buffer, size)
    if span is None:
        return size
    first, last = span
    if first != size:  # the framing stands in between
        buffer[size : size + last - first] = buffer[first:last]
    return size + last - first
