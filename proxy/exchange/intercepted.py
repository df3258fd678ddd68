"""What an interceptor answers instead of the upstream: its response, or its events, on their way to
the client.

It knows no upstream and no relay: the events are an interceptor's, and no other interceptor sees
them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from functools import partial

import trio

from interceptors import Event, HookError, Response
from interceptors.hooks import Owner

from ..errors import RequestRefused
from ..relay.heartbeat import with_heartbeats
from .client_response import Reply

__all__ = ["send_intercepted"]

_CLOSE_S = 1.0


async def send_intercepted(response: Response, reply: Reply) -> None:
    """Send all but the end. Raises as `Reply` does, `InterceptorError`, and `RequestRefused` when
    it comes too late.
    """
    sse = response.events is not None
    bodiless = reply.is_bodiless(response.status)
    headers = reply.own_headers(
        response.headers.raw, sse=sse, dropped=frozenset((b"content-length",))
    )
    if not sse and response.status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(response.body)))
    if reply.writer is None:
        streams = sse and not bodiless
        await reply.start(response.status, headers, chunked=streams, whole=not sse, may_add=streams)
    elif not sse or response.status != 200:
        raise RequestRefused(
            response.status,
            "answered_too_late",
            "an interceptor has answered when the stream had begun",
            outcome=response.made_by.outcome,
        )
    if bodiless:
        return
    if response.events is None:
        if response.body:
            await reply.write(response.body, last=True)
        return
    events = (
        aiter(response.events)
        if isinstance(response.events, AsyncIterable)
        else _iterate(response.events)
    )
    try:
        next_event = partial(_next_event, response.made_by, events)
        while (
            event := await with_heartbeats(next_event, reply.heartbeat_s, reply.send_heartbeat)
        ) is not None:
            await reply.write(event.raw)
    finally:
        if hasattr(events, "aclose"):
            with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                await events.aclose()  # not left to the garbage collector


async def _iterate(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


async def _next_event(owner: Owner, events: AsyncIterator[Event]) -> Event | None:
    """The next event of an answer; None at its end. What is raised instead is its interceptor's
    failure: an `InterceptorError`.

    Also when that says `skip`: an answer that breaks off must not look whole.
    """
    try:
        event = await anext(events, None)
        if event is not None and not isinstance(event, Event):
            raise owner.misused("answer", f"holds a {type(event).__name__}, expected an Event")
    except Exception as error:
        raise owner.failed("events", error) or HookError(
            owner.name, "events", type(error).__name__
        ) from error
    return event
