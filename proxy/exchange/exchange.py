"""One exchange: one request in, one response out, one ending.

It admits the request, opens the buffer scope, and a nursery if a second task may be needed, runs
`phases.serve`, and afterwards reports a failure to the client, counts and logs. Invariants:

- the exchange's own task serves; a second one reads the request's body and watches the client, if
  the request is incomplete or the server cannot call back when the client leaves;
- a failure is noted in `Ending`, not raised: one place reports it to the client, one counts and
  logs;
- everything borrowed is back when the call returns, however it ends.
"""

from __future__ import annotations

import math
from typing import Any

import trio

from interceptors import Outcome
from interceptors.chain import EventCounts
from interceptors.operation import Operation
from pools import BufferScope

from ..dialects import GENERIC, Dialect
from ..downstream import ClientStream
from ..errors import UpstreamFailure
from ..hub import current_time
from ..inspector import Tap
from ..telemetry import ExchangeSpan
from ..worker.logs import EXCHANGE
from ..worker.routes import Route
from ..worker.worker import NO_ROUTE, Worker
from .client_response import ClientResponse
from .context import ExchangeContext, Progress
from .ending import Ending
from .line import exchange_line, interceptor_of, is_failure
from .observe import record_operation
from .phases import serve
from .refusal import refusal_of
from .request import Admission, read_request
from .request_body import LINGER_S, RequestBody
from .tapping import AT_END, OWN, show_own, watch
from .tracing import Ended, finish_span

__all__ = ["Exchange"]

_COMPLETED = Outcome.COMPLETED  # reading an enum member is slower than reading a global
_CONCLUDE_S = LINGER_S + 5.0
_MOST_SHOWN = 256
"""Characters of a path in `/status`."""


class Exchange:
    """Serves one request of a client that is for an upstream. Await `run` once."""

    __slots__ = (
        "_admission",
        "_body",
        "_cancel",
        "_ended_at",
        "_ending",
        "_log",
        "_progress",
        "_request",
        "_response",
        "_stream",
        "_worker",
        "client_place",
        "is_counted",
        "number",
        "route_name",
        "started_at",
    )

    def __init__(self, worker: Worker, stream: ClientStream) -> None:
        self._worker = worker
        self._stream = stream
        generation = worker.generations.current
        self._log = log = generation.log
        self._request = read_request(stream, generation.trusted_proxies, log.request_id_header)
        self._admission = Admission()
        self._ending = Ending()
        self._cancel: trio.CancelScope | None = None  # while its nursery is open
        self.started_at = self._ended_at = current_time()
        self._progress = Progress(self.started_at)
        self.number = 0
        if worker.tracing is not None:
            self._progress.span = worker.tracing.begin(self._request.headers, self.started_at)
        self.route_name = NO_ROUTE
        self.is_counted = False
        self.client_place: tuple[str, str] | None = None

    def __repr__(self) -> str:
        request = self._request
        return f"<Exchange {request.method} {self.route_name} {self._progress.phase}>"

    async def run(self) -> None:
        """Serve the request to its end. Raises only what cancels it."""
        worker, ending = self._worker, self._ending
        EXCHANGE.set(self)
        route = self._admit()
        worker.enter(self)
        try:
            if route is not None:
                async with BufferScope() as buffers:
                    if self._needs_tasks(route):
                        async with trio.open_nursery() as nursery:
                            await serve(
                                self._context(route, buffers, nursery.cancel_scope, nursery)
                            )
                            nursery.cancel_scope.cancel()
                    elif (scope := self._stream.scope) and route.timeouts.total == math.inf:
                        await serve(self._context(route, buffers, scope, None))
                    else:
                        with trio.CancelScope() as scope:
                            await serve(self._context(route, buffers, scope, None))
        except Exception as error:  # of a task in the nursery, or of a scope
            ending.fail(error, self.route_name)
        finally:
            await self._end()
            EXCHANGE.set(None)  # the task of a connection serves the next request

    def _needs_tasks(self, route: Route) -> bool:
        """Whether a second task may be needed. Its nursery costs as much as reading the head."""
        stream = self._stream
        whole = stream.at_hand and stream.calls_back and not stream.gone
        return not whole or bool(route.chain.owners)

    def _context(
        self,
        route: Route,
        buffers: BufferScope,
        cancel: trio.CancelScope,
        nursery: trio.Nursery | None,
    ) -> ExchangeContext:
        """What the phases share. `cancel` ends them from now on."""
        self._cancel = cancel
        if route.timeouts.total != math.inf:
            cancel.deadline = self.started_at + route.timeouts.total
        return ExchangeContext(
            self._worker,
            route,
            self._admission,
            self._request,
            self._body,
            self._response,
            self._progress,
            self._ending,
            buffers,
            cancel,
            nursery,
        )

    def _admit(self) -> Route | None:
        """Find the route and check the request; None if it is refused, which `ending` knows."""
        worker, admission, route = self._worker, self._admission, None
        try:
            route = admission.decide(worker, self._request)
        except Exception as error:
            self._ending.fail(error, "" if admission.route is None else admission.route.name)
        if admission.route is not None:
            self.route_name = admission.route.name
        self.is_counted, self.client_place = admission.counted, admission.client_place
        if route is None:
            self._body = RequestBody(self._stream, 0, math.inf)
        else:
            self._body = RequestBody(
                self._stream, route.limits.max_request_body_bytes, route.timeouts.idle
            )
            self._stream.limit_send(route.timeouts.send)
        self._response = ClientResponse(
            worker, admission.route, self._request, self._body, self._stream, admission.cors
        )
        return route

    async def _end(self) -> None:
        """Close the chain, report to the client, count and log. Every wait here has a deadline."""
        cancel, progress = self._cancel, self._progress
        self._ended_at = current_time()
        outcome = self._ending.settle(
            deadline_passed=self._ending.outcome is None
            and cancel is not None
            and self._ended_at >= cancel.deadline,
            client_timed_out=self._stream.timed_out,
        )
        progress.phase = "conclude"
        if progress.observer is not None:
            progress.observer.end(complete=outcome is Outcome.COMPLETED)
        if progress.chain is not None:
            await progress.chain.aclose(outcome)
            self._ended_at = current_time()
        try:
            if not self._ending.whole:
                with trio.CancelScope(shield=True), trio.move_on_after(_CONCLUDE_S):
                    await self._conclude(outcome)
        finally:
            self._worker.leave(self)
            self._account(outcome)
            self._break_cycles()

    async def _conclude(self, outcome: Outcome) -> None:
        """Report the ending to the client, unless it has left."""
        response, answered = self._response, False
        gone = outcome is Outcome.CLIENT_DISCONNECTED
        try:
            if response.writer is None or not response.writer.started:
                if not gone:
                    answered = await self._refuse(outcome)
            elif not gone and outcome is not Outcome.SEND_STALLED and not response.finished:
                await self._send_error(outcome)
        finally:
            if not answered:
                await self._stream.abort()

    async def _refuse(self, outcome: Outcome) -> bool:
        """Send the failure as a response."""
        refusal, request = refusal_of(self._ending.failure, outcome), self._request
        body = self._dialect.error_body(refusal, self._progress.request)
        if self._progress.tap is not None:
            show_own(self._progress, refusal.status, "application/json", OWN, body)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
        unread = not self._body.over and request.announces_body
        if not request.is_http2 and (self._worker.draining or unread):
            headers.append((b"connection", b"close"))
        return await self._response.send_refusal(refusal.status, headers, body)

    async def _send_error(self, outcome: Outcome) -> None:
        """Send the failure as events, if the stream is between two events and the client reads."""
        progress, failure = self._progress, self._ending.failure
        lost = outcome is Outcome.DRAINING or isinstance(failure, UpstreamFailure)
        if lost and self._dialect.can_resume(progress.request):
            return  # an error would answer the requests that the client can resume
        if self._response.takes_error and (progress.relay is None or progress.relay.at_boundary):
            events = self._dialect.error_events(
                refusal_of(failure, outcome), progress.request, self._request.target.normal
            )
            if (tap := progress.tap) is not None:
                for event in events:
                    tap.show_added(event, OWN, is_body=False)
            await self._response.send_error_events(events)

    def _account(self, outcome: Outcome) -> None:
        """Count the exchange, unless it is complete and has been counted, and write its log line."""
        route, progress, ending = self.route_name, self._progress, self._ending
        status, log, span = self._response.status, self._log, progress.span
        tally = self._worker.metrics.routes[route]
        tally.durations.observe(self._ended_at - self.started_at, progress.trace_id)
        if progress.operation is not None:
            record_operation(self._worker, progress, ending, status, self._ended_at)
        if not ending.whole:
            kind = getattr(ending.failure, "kind", None)
            tally.account(outcome, kind, progress.first_byte_s, progress.trace_id)
        if outcome is Outcome.INTERCEPTED:
            tally.count_intercepted(interceptor_of(ending, progress))
        log_id = self._request.request_id if span is None else span.trace_id
        if span is not None and span.sampled:
            self._end_span(span)
        failed = is_failure(ending, status, progress)
        succeeded = outcome is _COMPLETED and status is not None and status < 400
        takes = log.takes(failed=failed, succeeded=succeeded, id=log_id)
        if not takes and progress.tap is None:
            return
        line = {
            "route": route,
            "upstream": None if self._admission.route is None else self._admission.route.upstream,
            "bytes": self.bytes_downstream,
            "duration": round(self._ended_at - self.started_at, 6),
            **exchange_line(self._request, progress, ending, status),
        }
        if span is not None:
            line["trace_id"], line["span_id"] = span.trace_id, span.span_id
        if takes:
            log.write(line, failed=failed, succeeded=succeeded)
        if progress.tap is not None:
            progress.tap.end({name: line[name] for name in AT_END if name in line})
            progress.tap = None

    def _end_span(self, span: ExchangeSpan) -> None:
        """Export a sampled span."""
        tracing, route = self._worker.tracing, self._admission.route
        if tracing is not None:
            ended = Ended(self._ending, self._response.status, self._ended_at)
            tracing.end(finish_span(span, self._request, route, self._progress, ended))

    def _break_cycles(self) -> None:
        """Free everything now: the garbage collector runs rarely."""
        progress = self._progress
        self._ending.failure = None  # its traceback references this frame
        self._stream.on_gone = None
        if progress.upstream is not None:
            progress.upstream.forget()
            progress.upstream = None
        if progress.request is not None:
            progress.request.spawn = None

    # What log lines have: `Served`

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._request.request_id

    @property
    def client_name(self) -> str | None:
        """The client's name, if an interceptor knows it, or else its address."""
        return (self._progress.request or self._request).client_name

    @property
    def path(self) -> str:
        """The path as servers interpret it, without the query."""
        return (self._progress.request or self._request).path

    @property
    def span(self) -> ExchangeSpan | None:
        """None while traces are off."""
        return self._progress.span

    # What the worker knows: `LiveExchange`

    @property
    def counts(self) -> EventCounts | None:
        """Events by what happened to them; None when no interceptor sees events."""
        return self._progress.counts

    @property
    def bytes_upstream(self) -> int:
        """Body bytes taken from the client."""
        return self._body.bytes_received

    @property
    def bytes_downstream(self) -> int:
        """Body bytes handed to the client's connection."""
        writer = self._response.writer
        return 0 if writer is None else writer.bytes_sent

    def stop(self) -> None:
        """End the exchange because the worker drains. Synchronous."""
        if self._cancel is not None and not self._response.finished:
            self._ending.stop(Outcome.DRAINING)
            self._cancel.cancel()

    def describe(self) -> dict[str, Any]:
        """The exchange in `/status`."""
        counts, upstream = self.counts, self._progress.upstream
        endpoint, operation = None if upstream is None else upstream.asked, self._progress.operation
        path = self._request.target.path.decode("utf-8", "backslashreplace")
        return {
            "id": self.number,
            "request_id": self.request_id,
            "route": self.route_name,
            "upstream": None if self._admission.route is None else self._admission.route.upstream,
            "endpoint": None if endpoint is None else endpoint.origin,
            "client": self.client_name,
            "method": self._request.method[:_MOST_SHOWN],
            "path": path[:_MOST_SHOWN],
            "call": None if operation is None else _call_of(operation),
            "phase": self._progress.phase,
            "age": round(current_time() - self.started_at, 3),
            "bytes": self.bytes_downstream,
            "events": None if counts is None else counts.total,
        }

    @property
    def tap(self) -> Tap | None:
        """Copies the events for the views that watch this exchange; None without one."""
        return self._progress.tap

    def watch(self, tap: Tap | None) -> None:
        """Show the exchange to `tap` from now on; None: stop."""
        response = self._response
        watch(self._progress, tap, response.status, is_plain=response.may_add)

    @property
    def dialect_name(self) -> str:
        """The dialect of the route; "" without a route."""
        route = self._admission.route
        return "" if route is None else route.dialect.name

    @property
    def _dialect(self) -> Dialect:
        route = self._admission.route
        return GENERIC if route is None else route.dialect


def _call_of(operation: Operation) -> str | None:
    """The model of an LLM call, or the method and tool of an MCP call, as far as they are known."""
    names = (operation.mcp_method, operation.tool or operation.prompt)
    if operation.mcp_method is None:
        names = (operation.response_model or operation.request_model, None)
    return " ".join(filter(None, names))[:_MOST_SHOWN] or None
