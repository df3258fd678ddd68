"""What `telemetry.genai` adds to an exchange: the reading of its request, and the end of its record.

It changes nothing that the upstream or the client gets, and refuses nothing.
"""

from __future__ import annotations

import trio

from interceptors import Outcome, Request
from interceptors.observing import read_request
from interceptors.operation import Operation, provider_of

from ..worker.collecting import CollectedBody
from ..worker.worker import Worker
from .context import ExchangeContext, Progress
from .request_body import Body

__all__ = ["observe_request", "record_operation"]

_MOST_COLLECTED_BYTES = 1 << 20
"""A larger body is not collected to find its model: the answer names one, too."""


async def observe_request(
    ctx: ExchangeContext, request: Request, operation: Operation, body: Body, length: bytes | None
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
    read_request(request, operation, body if isinstance(body, bytes) else None)
    return body


def _ignore(size: int) -> None:
    return


def record_operation(
    worker: Worker,
    progress: Progress,
    operation: Operation,
    outcome: Outcome,
    failure: Exception | None,
    ended_at: float,
) -> None:
    """Complete the record of a call at the exchange's end, and count it."""
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
    gaps = None if progress.relay is None else progress.relay.gaps
    worker.metrics.genai.record(
        operation,
        started_at=progress.started_at,
        ended_at=ended_at,
        first_read_at=progress.first_read,
        gaps=None if gaps is None else gaps.own,
        most=worker.config.telemetry.max_label_values,
        trace_id=progress.trace_id,
    )
