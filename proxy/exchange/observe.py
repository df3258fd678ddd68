"""What `telemetry.genai` adds to an exchange: the reading of its request, and the end of its record.

It changes nothing that the upstream or the client gets, and refuses nothing.
"""

from __future__ import annotations

import trio

from interceptors import Outcome, Request
from interceptors.metering import cut_name
from interceptors.observing import Observer, read_request
from interceptors.operation import Operation, provider_of

from ..http.headers import find_header
from ..relay.gaps import GAP_BOUNDS, EventGaps
from ..worker.collecting import CollectedBody
from ..worker.histograms import cells_of
from ..worker.worker import Worker
from .context import ExchangeContext, Progress
from .request_body import Body
from .upstream_call import ReceivedHead

__all__ = ["observe_request", "open_observer", "record_operation"]

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


def open_observer(ctx: ExchangeContext, operation: Operation, received: ReceivedHead) -> None:
    """Observe the body that follows a head of the upstream, unless it is encoded."""
    operation.status = received.status
    session = find_header(received.headers, b"mcp-session-id")
    if session is not None and operation.mcp_session is None:
        operation.mcp_session = cut_name(session.decode("latin-1"))
    route, request = ctx.route, ctx.progress.request
    if received.content_coding != "identity" or route.observer is None:
        return
    ctx.progress.chunks = chunks = [0.0] * cells_of(GAP_BOUNDS)
    ctx.progress.observer = Observer(
        operation,
        route.observer,
        route.name,
        ctx.request.target.normal if request is None else request.path,
        max_bytes=route.limits.max_event_bytes,
        note_events=EventGaps(chunks, 0).note,
    )


def _ignore(size: int) -> None:
    return


def record_operation(
    worker: Worker,
    progress: Progress,
    outcome: Outcome,
    failure: Exception | None,
    ended_at: float,
) -> None:
    """Complete the record of a call at the exchange's end, and count it."""
    operation = progress.operation
    assert operation is not None
    endpoint = None if progress.upstream is None else progress.upstream.endpoint
    if endpoint is not None:
        server = endpoint.server
        operation.server_address, operation.server_port = server.host, server.port
        operation.provider = provider_of(server.host, operation.dialect)
    if operation.error_type is None:
        if outcome is not Outcome.COMPLETED:
            operation.error_type = getattr(failure, "kind", None) or outcome.value
        elif operation.status is not None and operation.status >= 400:
            operation.error_type = str(operation.status)
    worker.metrics.genai.record(
        operation,
        started_at=progress.started_at,
        ended_at=ended_at,
        first_read_at=progress.first_read,
        gaps=progress.chunks,
        most=worker.config.telemetry.max_label_values,
        trace_id=progress.trace_id,
    )
