"""A stream over several connections: when one ends, the next is asked for what follows.

`Resume` decides whether, when and where to continue; the relay moves the bytes. This module does
what lies between two connections: a comment to the client, the wait, the request, and the check
that its response continues the stream.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import structlog
import trio

from ..errors import NotResumed, UpstreamFailure
from ..relay import Mover
from ..relay.heartbeat import with_heartbeats
from ..relay.resume import Resume
from ..upstream import UpstreamBody
from .context import ExchangeContext
from .response_body import look_at
from .upstream_call import UpstreamRequest

__all__ = ["move_over_connections"]


async def move_over_connections(
    ctx: ExchangeContext, upstream: UpstreamRequest, mover: Mover, resume: Resume
) -> None:
    """Move the stream to its end. `mover` has a relay with that `resume`, on the first response to
    `upstream`.

    Raises what `Mover.run` raises, and the last `UpstreamFailure` if the stream cannot continue.
    """
    relay = mover.relay
    while True:
        failure: UpstreamFailure | None = None
        try:
            await mover.run()
        except UpstreamFailure as error:
            failure = error
        if relay.chain is not None and relay.chain.ended:
            return
        if not resume.can_resume(clean=failure is None):
            if failure is not None:
                raise failure
            return
        relay.body.close()
        body = await _reconnect(ctx, upstream, resume, failure)
        if body is None:
            await mover.complete()
            return
        relay.continue_with(body)


async def _reconnect(
    ctx: ExchangeContext, upstream: UpstreamRequest, resume: Resume, failure: UpstreamFailure | None
) -> UpstreamBody | None:
    """Open the response that continues the stream. None: the stream is complete; raises the reason
    if it cannot continue.

    `failure`: how the last connection ended, None for a clean end.
    """
    response = ctx.response
    await response.write(b": reconnecting\n")
    while (delay_s := resume.next_delay_s()) is not None:
        structlog.get_logger("proxy").info(
            "reconnect",
            route=ctx.route.name,
            upstream=ctx.route.upstream,
            delay=round(delay_s, 3),
            error=None if failure is None else str(failure),
        )
        if ctx.progress.span is not None:
            ctx.progress.span.add_event(
                "reconnect",
                trio.current_time(),
                {} if failure is None else {"error.type": failure.kind},
            )
        heartbeat_s, heartbeat = response.heartbeat_s, response.send_heartbeat
        await with_heartbeats(partial(trio.sleep, delay_s), heartbeat_s, heartbeat)
        try:
            next_part = await _ask_again(ctx, upstream, resume.last_event_id)
        except UpstreamFailure as error:
            failure = error
            upstream.close()
            continue
        if next_part.status == 204:
            return None  # WHATWG HTML, section 9.2.1: the client must stop reconnecting
        if next_part.continues:
            resume.begin()
            await response.write(b": reconnected\n")
            return next_part.body
        failure = NotResumed(ctx.route.upstream, next_part.status)
        upstream.close()
        if next_part.status < 500 and next_part.status != 429:
            break  # another attempt would get the same response
    if failure is not None:
        raise failure
    return None  # all attempts ended clean without another event


class _NextPart(NamedTuple):
    status: int
    continues: bool
    body: UpstreamBody


async def _ask_again(
    ctx: ExchangeContext, upstream: UpstreamRequest, last_event_id: bytes
) -> _NextPart:
    heartbeat_s, heartbeat = ctx.response.heartbeat_s, ctx.response.send_heartbeat
    received = await with_heartbeats(
        partial(upstream.send, b"", last_event_id=last_event_id), heartbeat_s, heartbeat
    )
    status, coding, body = received.status, received.content_coding, received.body
    continues = False
    if status == 200 and coding == "identity":
        look = partial(look_at, ctx, received.media_type, coding, body)
        continues = await with_heartbeats(look, heartbeat_s, heartbeat) == "events"
    return _NextPart(status, continues, body)
