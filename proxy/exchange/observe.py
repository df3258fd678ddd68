"""What `telemetry.genai` adds to an exchange: the reading of its request and of its answer, and the
end of its record.

It changes nothing that the upstream or the client gets, and refuses nothing.
"""

from __future__ import annotations

import trio

from interceptors import Outcome, Request
from interceptors.dialects.answers import has_messages
from interceptors.metering import cut_name
from interceptors.observing import Observer
from interceptors.operation import Operation, provider_of
from interceptors.operation_bodies import read_answer, read_mcp_answer, read_request

from ..http.headers import find_header
from ..relay.gaps import GAP_BOUNDS, EventGaps
from ..worker.collecting import CollectedBody
from ..worker.histograms import cells_of
from ..worker.worker import Worker
from .context import ExchangeContext, Progress
from .ending import Ending
from .line import error_type_of
from .request_body import Body
from .upstream_call import ReceivedHead

__all__ = [
    "observe_body",
    "observe_head",
    "observe_request",
    "open_observer",
    "record_operation",
]

_LEFT = Outcome.CLIENT_DISCONNECTED
_MOST_COLLECTED_BYTES = 1 << 20
"""A larger body is not collected to find its model: the answer names one, too."""


async def observe_request(
    ctx: ExchangeContext,
    operation: Operation,
    request: Request | None,
    body: Body,
    length: bytes | None,
) -> Body:
    """Read the request as it goes upstream. Returns its body, which has then arrived if its length
    is known, small, and within the budget of the worker. Raises as `RequestBody.collect`.
    """
    if not isinstance(body, bytes) and length and not ctx.body.is_withheld:
        size = int(length)
        limit = ctx.worker.config.reverse_proxy.limits.max_collected_bytes
        if size <= _MOST_COLLECTED_BYTES and ctx.worker.bodies.held + size <= limit:
            ctx.collected = CollectedBody(ctx.worker.bodies, limit)
            ctx.collected.hold(size)
            body = await ctx.body.collect(body, _ignore)
    operation.asked_at = trio.current_time()
    path = ctx.request.target.normal if request is None else request.path
    read_request(operation, path, request, body if isinstance(body, bytes) else None)
    return body


def observe_head(ctx: ExchangeContext, operation: Operation, received: ReceivedHead) -> None:
    """Read a head of the upstream. The body that follows is observed unless it is encoded."""
    operation.status = received.status
    if has_messages(operation.dialect) and operation.mcp_session is None:
        session = find_header(received.headers, b"mcp-session-id")
        if session is not None:
            operation.mcp_session = cut_name(session.decode("latin-1"))
    ctx.progress.is_observed = received.content_coding == "identity"


def observe_body(ctx: ExchangeContext, body: bytes) -> None:
    """Read a whole body, of a response that is observed."""
    operation, owner = ctx.progress.operation, ctx.route.observer
    assert operation is not None
    assert owner is not None
    if body.startswith(b"{"):
        if read_answer(operation, owner, _path(ctx), body):
            return
        if has_messages(operation.dialect):
            read_mcp_answer(operation, body)
            return
    if (observer := open_observer(ctx)) is not None:
        observer.read_body(body, trio.current_time())


def open_observer(ctx: ExchangeContext) -> Observer | None:
    """Observe a body that a relay moves; None if it is not observed. The exchange ends it."""
    operation, owner, progress = ctx.progress.operation, ctx.route.observer, ctx.progress
    if operation is None or owner is None or not progress.is_observed:
        return None
    progress.chunks = chunks = [0.0] * cells_of(GAP_BOUNDS)
    progress.observer = Observer(
        operation,
        owner,
        _path(ctx),
        max_bytes=ctx.route.limits.max_event_bytes,
        note_events=EventGaps(chunks, 0).note,
    )
    return progress.observer


def _path(ctx: ExchangeContext) -> str:
    request = ctx.progress.request
    return ctx.request.target.normal if request is None else request.path


def _ignore(size: int) -> None:
    return


def record_operation(
    worker: Worker,
    progress: Progress,
    ending: Ending,
    status: int | None,
    ended_at: float,
) -> None:
    """Complete the record of a call at the exchange's end, and count it. `status`: the client's."""
    operation = progress.operation
    assert operation is not None
    endpoint = None if progress.upstream is None else progress.upstream.endpoint
    if endpoint is not None:
        server = endpoint.server
        operation.server_address, operation.server_port = server.host, server.port
        operation.provider = provider_of(server.host, operation.dialect)
    if operation.error_type is None:
        has_all = operation.is_answered or operation.last_token_at is not None
        if ending.outcome is not Outcome.COMPLETED and not (ending.outcome is _LEFT and has_all):
            operation.error_type = error_type_of(ending, status, progress)
        elif operation.status is not None and operation.status >= 400:
            operation.error_type = str(operation.status)
    worker.metrics.genai.record(
        operation,
        started_at=progress.started_at,
        ended_at=ended_at,
        first_read_at=progress.first_read if operation.streams else None,
        gaps=progress.chunks,
        trace_id=progress.trace_id,
    )
