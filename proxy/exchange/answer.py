"""Answers that do not come from the upstream: an interceptor's response or events, or the proxy's
own to a preflight.

No other interceptor sees them. It knows no upstream and no relay.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from functools import partial

import trio

from interceptors import Event, HookError, Outcome, Response
from interceptors.hooks import Owner

from ..errors import RequestRefused
from ..http.body import has_no_body
from ..relay.heartbeat import with_heartbeats
from .client_response import ClientResponse
from .context import ExchangeContext
from .tapping import OWN, show_answer

__all__ = ["send_answer"]

_CLOSE_S = 1.0
_LENGTH = frozenset((b"content-length",))


async def send_answer(ctx: ExchangeContext, answer: Response) -> Outcome:
    """Send an answer, without its end; returns the outcome of an exchange that it ends.

    Raises as `ClientResponse` does, `InterceptorError`, and `RequestRefused` if an early heartbeat
    has sent a head that does not fit.
    """
    ctx.progress.phase = "send_answer"
    ctx.body.forget_body()
    outcome = Outcome.COMPLETED
    if answer.made_by is not None:
        ctx.progress.answered_by, outcome = answer.made_by.name, answer.made_by.outcome
        ctx.progress.answered_kind = answer.kind
        if ctx.progress.span is not None:
            ctx.progress.span.add_event(
                "answer", trio.current_time(), {"weirpool.interceptor": answer.made_by.name}
            )
    if ctx.progress.tap is not None:
        show_answer(ctx.progress, answer)
    response = ctx.response
    bodiless = has_no_body(ctx.request.method, answer.status)
    await _send_head(response, answer, streams=answer.events is not None and not bodiless)
    if bodiless:
        return outcome
    if answer.events is not None:
        await _send_events(ctx, answer.made_by, answer.events)
    elif answer.body:
        await response.write(answer.body, last=True)
    return outcome


async def _send_head(response: ClientResponse, answer: Response, *, streams: bool) -> None:
    sse = answer.events is not None
    if response.writer is not None:
        if sse and answer.status == 200:
            return
        raise RequestRefused(
            answer.status,
            "answered_too_late",
            "an interceptor answered after the stream had started",
            outcome=answer.made_by.outcome,
        )
    headers = response.own_headers(answer.headers.raw, sse=sse, dropped=_LENGTH)
    if not sse and answer.status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(answer.body)))
    if not response.start(answer.status, headers, chunked=streams, whole=not sse, may_add=streams):
        await response.flush()


async def _send_events(
    ctx: ExchangeContext, owner: Owner, given: Iterable[Event] | AsyncIterable[Event]
) -> None:
    response, progress = ctx.response, ctx.progress
    events = aiter(given) if isinstance(given, AsyncIterable) else _iterate(given)
    step = partial(_next_event, owner, events)
    try:
        while (
            event := await with_heartbeats(step, response.heartbeat_s, response.send_heartbeat)
        ) is not None:
            if progress.tap is not None:
                progress.tap.show_added(
                    event.raw, OWN if owner is None else owner.name, is_body=False
                )
            await response.write(event.raw)
    finally:
        if hasattr(events, "aclose"):
            with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                await events.aclose()  # not left to the garbage collector


async def _iterate(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


async def _next_event(owner: Owner, events: AsyncIterator[Event]) -> Event | None:
    """The next event of an answer; None at its end. Raises `InterceptorError` for whatever the
    iterator raises, also with `on_error: skip`: an answer that breaks off must not look complete.
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
