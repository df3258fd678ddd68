"""A stream that is moved over as many connections as it takes: when one has ended, the next is
asked for what comes after.

What was seen of the stream, and so whether, when and where to go on, is `Resume`'s; how bytes move
is the relay's. Here is what lies between two connections: a comment to the client, the time to
wait, the request, and whether its answer is the stream's continuation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from ..errors import NotResumed, UpstreamFailure
from ..relay import Mover
from ..relay.heartbeat import with_heartbeats
from ..relay.resume import Resume
from ..upstream import UpstreamBody
from .client_response import Reply
from .json_body import LooksLike
from .upstream_call import UpstreamRequest

__all__ = ["move_over_connections"]


Look = Callable[[str, str, UpstreamBody], Awaitable[LooksLike | None]]


async def move_over_connections(
    mover: Mover, resume: Resume, asking: UpstreamRequest, reply: Reply, look: Look, log: Any
) -> None:
    """Move the stream to its end. `look` decides what a response is, by its media type, its content
    coding and its body.

    `mover` has a relay with that `resume`, on the first response to `asking`. Raises what
    `Mover.run` raises, and the last `UpstreamFailure` when the stream cannot go on.
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
        if not await _reconnect(resume, failure, asking, reply, look, log):
            await mover.complete()
            return
        assert asking.response_body is not None
        relay.continue_with(asking.response_body)


async def _reconnect(
    resume: Resume,
    failure: UpstreamFailure | None,
    asking: UpstreamRequest,
    reply: Reply,
    look: Look,
    log: Any,
) -> bool:
    """Open the response in which the stream goes on. False: there is nothing more; raises why it
    cannot go on.

    `failure`: how the last connection ended, None for clean.
    """
    route = asking.route
    await reply.write(b": reconnecting\n")
    while (delay_s := resume.next_delay_s()) is not None:
        log.info(
            "reconnect",
            route=route.name,
            upstream=route.upstream,
            delay=round(delay_s, 3),
            error=None if failure is None else str(failure),
        )
        await with_heartbeats(partial(trio.sleep, delay_s), reply.heartbeat_s, reply.send_heartbeat)
        try:
            response = await with_heartbeats(
                partial(asking.send_again, resume.last_event_id),
                reply.heartbeat_s,
                reply.send_heartbeat,
            )
            status, coding, body = response.status, asking.content_coding, asking.response_body
            assert body is not None
            goes_on = (
                status == 200
                and coding == "identity"
                and await with_heartbeats(
                    partial(look, asking.media_type, coding, body),
                    reply.heartbeat_s,
                    reply.send_heartbeat,
                )
                == "events"
            )
        except UpstreamFailure as error:
            failure = error
            if asking.response_body is not None:
                asking.response_body.close()
            continue
        if status == 204:
            return False  # WHATWG HTML, section 9.2.1: the client is to stop reconnecting
        if goes_on:
            resume.begin()
            await reply.write(b": reconnected\n")
            return True
        failure = NotResumed(route.upstream, status)
        body.close()
        if status < 500 and status != 429:
            break  # it would say the same again
    if failure is not None:
        raise failure
    return False  # as often as it may be asked, it has ended clean without another event
