"""What the phases of one exchange share, and how its tasks end it.

`ExchangeContext` lives as long as the exchange's cancel scope. `Progress` outlives it: the log
line, the metrics and `/status` read there what the exchange has reached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
import trio

from interceptors import Outcome, Request
from interceptors.chain import EventCounts, StreamChain
from interceptors.hooks import Owner
from interceptors.message import forget_body
from interceptors.observing import Observer
from interceptors.operation import Operation
from pools import BufferScope

from ..inspector import Tap
from ..relay import Relay
from ..telemetry import ExchangeSpan
from ..upstream import UpstreamBody
from ..worker.collecting import CollectedBody
from ..worker.routes import Route
from ..worker.worker import Worker
from .client_response import ClientResponse
from .ending import Ending
from .request import Admission, ClientRequest
from .request_body import RequestBody
from .upstream_call import UpstreamRequest

__all__ = ["ExchangeContext", "Phase", "Progress"]

Phase = Literal[
    "admit",
    "read_body",
    "on_request",
    "call_upstream",
    "on_response",
    "send_head",
    "send_answer",
    "relay",
    "finish",
    "conclude",
]
"""Where an exchange is. `send_answer` replaces the phases after `on_request` or `call_upstream`
when an interceptor or the proxy answers.
"""


class Progress(msgspec.Struct, eq=False):
    """What an exchange has reached. None: not reached, or not needed."""

    started_at: float
    """Trio's time."""
    phase: Phase = "admit"
    request: Request | None = None
    """The request as interceptors see it."""
    operation: Operation | None = None
    """The call that `telemetry.genai` records."""
    is_observed: bool = False
    """Whether the body of the response is read for it."""
    observer: Observer | None = None
    """Reads a body that arrives in pieces, or is not a usual answer."""
    chunks: list[float] | None = None
    """The times between events that it has seen, as `CellHistogram` keeps them."""
    upstream: UpstreamRequest | None = None
    chain: StreamChain | None = None
    """The interceptors of the response. The exchange closes it."""
    relay: Relay | None = None
    tap: Tap | None = None
    """Copies the events for the views that watch this exchange; None without one."""
    first_body_at: float | None = None
    """Trio's time of the first body bytes, of a body that no relay moved."""
    answered_by: str | None = None
    """The interceptor that answered instead of the upstream."""
    answered_kind: str | None = None
    """The error type of that answer, if it is a refusal."""
    upstream_request_id: bytes | None = None
    """The upstream's own id for the request, if it has returned one."""
    span: ExchangeSpan | None = None
    """None while traces are off."""

    @property
    def trace_id(self) -> str | None:
        """The trace in exemplars of metrics; None if none is recorded."""
        span = self.span
        return span.trace_id if span is not None and span.sampled else None

    @property
    def counts(self) -> EventCounts | None:
        """Events by what happened to them; None when no interceptor sees events."""
        return self.chain.counts if self.chain is not None and self.chain.wants_events else None

    @property
    def first_read(self) -> float | None:
        """Trio's time of the first bytes of the response's body."""
        return self.first_body_at if self.relay is None else self.relay.first_read

    @property
    def first_byte_s(self) -> float | None:
        """Seconds from the start to the first bytes of the response's body."""
        first = self.first_read
        return None if first is None else first - self.started_at

    @property
    def interceptor(self) -> str | None:
        """The interceptor that answered, or ended the stream."""
        if self.answered_by is not None:
            return self.answered_by
        return None if self.chain is None else self.chain.ended_by


class ExchangeContext(msgspec.Struct, eq=False):
    """One admitted exchange. All of it belongs to the exchange's own task, except what
    `watch_client` and `run_task` start.
    """

    worker: Worker
    route: Route
    admission: Admission
    request: ClientRequest
    body: RequestBody
    response: ClientResponse
    progress: Progress
    ending: Ending
    buffers: BufferScope
    cancel: trio.CancelScope
    """Ends the exchange, with its tasks."""
    nursery: trio.Nursery | None
    """None where no second task is needed: the whole request is at hand, and no interceptor can start
    a task.
    """
    collected: CollectedBody | None = None
    """The request's body in the worker's budget, if interceptors see it."""

    def complete(self, outcome: Outcome) -> None:
        """Count the exchange: the client has the whole response. If the worker is killed from here
        on, its successor does not count the exchange as lost.
        """
        if self.ending.complete(outcome):
            tally = self.worker.metrics.routes[self.route.name]
            tally.account(outcome, None, self.progress.first_byte_s, self.progress.trace_id)

    def close(self) -> None:
        """Return what the upstream and the budget have lent. Synchronous; safe to call again."""
        if self.collected is not None:
            self.collected.release()
        if self.progress.upstream is not None:
            self.progress.upstream.close()
        self.body.forget_body()

    def forget_request_body(self, response: UpstreamBody) -> None:
        """Free the request's body once the response's head is sent: the stream may last for hours."""
        if self.progress.request is not None:
            forget_body(self.progress.request)
        if self.collected is not None and (response.upload is None or response.upload.complete):
            self.collected.release()

    def watch_client(self) -> None:
        """End the exchange when the client leaves. If the request is whole and the server calls
        back, this needs no task.
        """
        if not self.body.listen(self.on_disconnect):
            assert self.nursery is not None
            self.nursery.start_soon(self._read_body)

    def on_disconnect(self) -> None:
        """The server reports that the client has left."""
        self._client_left()

    async def _read_body(self) -> None:
        """Read the request's body, then wait until the client leaves."""
        try:
            await self.body.run()
        except Exception as error:
            self._end_with(error)
        else:
            self._client_left()

    def _client_left(self) -> None:
        if not self.response.finished:
            self.ending.stop(Outcome.CLIENT_DISCONNECTED)
            self.cancel.cancel()

    async def run_task(
        self, owner: Owner, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        """Run a task that an interceptor has started. Its failure ends the exchange, unless the
        client has the whole response.
        """
        problem = await owner.run_task(async_fn, args)
        if problem is not None and not self.response.finished:
            self._end_with(problem)

    def _end_with(self, error: Exception) -> None:
        self.ending.fail(error, self.route.name)
        self.cancel.cancel()
