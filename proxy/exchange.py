"""One exchange: one request in, one stream out, one outcome.

It opens its buffer scope and its nursery: the *inbound* task takes in the request body as it arrives and then waits for the
client to leave; the exchange's own task sends the request upstream and relays the response. Either one ending ends the other.
Whatever happens inside is noted, not raised: when the nursery is done, one place tells the client, and one place counts and logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx
import structlog
import trio

from interceptors import HookError, InterceptorError, Outcome, ResponseHead, StreamContext
from interceptors.api import find_header
from interceptors.chain import EventCounts, StreamChain
from interceptors.sse import Fields, encode_event
from pools import BufferScope, encode_json

from .downstream import ClientConnection, Receive, Scope, Send, Writer, choose_writer, has_no_body, inspect_server
from .errors import ClientGone, ProtocolFailure, RequestRefused, SendStalled, UpstreamFailure
from .headers import request_headers, response_headers, split_target
from .inbound import LINGER_S, Inbound, too_large
from .relay import Relay
from .routes import Route
from .upstream import UpstreamBody
from .worker import NO_ROUTE, Worker

__all__ = ["Exchange"]

_ABORT_S = 5.0


class Exchange:
    """Serves one ASGI request that is for an upstream. Call it once."""

    def __init__(self, worker: Worker, scope: Scope) -> None:
        self._worker = worker
        self._scope = scope
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._client: str | None = scope["client"][0] if scope.get("client") else None
        self._route: Route | None = None
        self._cancel: trio.CancelScope | None = None
        self._connection: ClientConnection | None = None
        self._writer: Writer | None = None
        self._relay: Relay | None = None
        self._chain: StreamChain | None = None
        self._failure: Exception | None = None  # why it did not complete
        self._outcome: Outcome | None = None  # set early only by what has no exception: a client that left, a drain
        self._finished = False  # the whole body has been handed over
        self._sse = False
        self._started_at = trio.current_time()
        self._first_byte_s: float | None = None
        self._status: int | None = None
        self._inbound: Inbound | None = None

    @property
    def counts(self) -> EventCounts | None:
        """What became of the events; None when no interceptor sees them."""
        return self._chain.counts if self._chain is not None and self._chain.wants_events else None

    @property
    def bytes_upstream(self) -> int:
        """Body bytes taken from the client."""
        return self._inbound.bytes_received if self._inbound is not None else 0

    @property
    def bytes_downstream(self) -> int:
        """Body bytes handed to the client's connection."""
        return self._writer.bytes_sent if self._writer is not None else 0

    def stop(self) -> None:
        """End the exchange because the worker drains. Synchronous; the exchange's own task does the rest."""
        if self._outcome is None and self._cancel is not None:
            self._outcome = Outcome.DRAINING
            self._cancel.cancel()

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Serve it to its end. Raises nothing but `Cancelled`; everything borrowed has been given back then."""
        worker = self._worker
        self._connection = inspect_server(send)
        try:
            route = self._admit()
        except RequestRefused as refusal:
            self._failure = refusal
            tally = worker.metrics.routes[NO_ROUTE if self._route is None else self._route.name]
        else:
            tally = worker.metrics.routes[route.name]
        tally.live.add(self)
        worker.enter(self)
        limit = self._route.limits.max_request_body_bytes if self._route is not None else 0
        self._inbound = inbound = Inbound(receive, self._connection, limit)
        try:
            if self._failure is None:
                await self._exchange(route, inbound, send)
        except trio.Cancelled:
            # The server has run out of patience with its shutdown.
            if not self._finished and self._outcome is None:
                self._outcome = Outcome.DRAINING
            raise
        finally:
            outcome = self._decide()
            if self._chain is not None:
                self._chain.close(outcome)
            try:
                with trio.CancelScope(shield=True), trio.move_on_after(LINGER_S + _ABORT_S):
                    await self._conclude(outcome, inbound, send)
            finally:
                worker.leave(self)
                self._account(outcome)

    def _admit(self) -> Route:
        """Find the route and check what can be checked before anything is opened. Raises `RequestRefused`."""
        worker = self._worker
        path, self._target = split_target(self._scope["raw_path"], self._scope["query_string"])
        self._path = path
        self._route = route = worker.routes.find(path)
        if route is None:
            raise RequestRefused(404, "no_route", "no route matches this path")
        if worker.draining:
            raise RequestRefused(503, "draining", "this server is shutting down", retry_after_s=1)
        if len(worker.live) >= route.limits.max_streams:
            raise RequestRefused(503, "too_many_streams", "this server is at its limit of streams", retry_after_s=1)
        if route.allowed_hosts is not None:
            host = (find_header(self._headers, b"host") or b"").decode("latin-1").lower()
            if host not in route.allowed_hosts and host.rsplit(":", 1)[0] not in route.allowed_hosts:
                raise RequestRefused(403, "host_not_allowed", "this Host is not allowed here")
        if route.allowed_origins is not None:
            origin = find_header(self._headers, b"origin")
            if origin is not None and origin.decode("latin-1").lower() not in route.allowed_origins:
                raise RequestRefused(403, "origin_not_allowed", "this Origin is not allowed here")
        return route

    async def _exchange(self, route: Route, inbound: Inbound, send: Send) -> None:
        """Both directions, in one buffer scope and one nursery."""
        async with self._worker.pools.open_scope() as buffers, trio.open_nursery() as nursery:
            self._cancel = nursery.cancel_scope
            if route.timeouts.total is not None:
                self._cancel.deadline = self._started_at + route.timeouts.total
            try:
                await self._forward(route, buffers, nursery, inbound, send)
            except (UpstreamFailure, RequestRefused, InterceptorError, ClientGone, SendStalled) as failure:
                self._failure = failure
            except httpx.LocalProtocolError as error:
                self._failure = RequestRefused(400, "bad_request", f"the request cannot be forwarded: {error}")
            except Exception as error:
                structlog.get_logger("proxy").exception("internal_error", route=route.name)
                self._failure = RequestRefused(500, "internal_error", "the proxy failed")
                self._failure.__cause__ = error
            nursery.cancel_scope.cancel()

    async def _forward(
        self, route: Route, buffers: BufferScope, nursery: trio.Nursery, inbound: Inbound, send: Send
    ) -> None:
        """Send the request, relay the response."""
        body = await self._body_length(route, inbound)
        nursery.start_soon(self._watch_client, inbound)
        response = await route.transport.handle_async_request(self._request(route, nursery, inbound, body))
        upstream = response.stream
        assert isinstance(upstream, UpstreamBody)
        try:
            await self._respond(route, response, upstream, buffers, send)
        finally:
            upstream.close()
            inbound.forget_body()
        assert self._writer is not None
        # When the upstream has answered before it had the whole request, ending the response now would close the connection, and
        # a client that is still sending would see that instead of the answer.
        if not inbound.complete and not await inbound.wait_complete():
            raise RequestRefused(408, "request_not_ended", "the request went on long after it was answered")
        self._finished = True  # from here on, a client that leaves has everything
        await self._writer.finish()

    async def _body_length(self, route: Route, inbound: Inbound) -> bytes | None:
        """The Content-Length of the request, b"" if that is not known, None if it has no body. Raises `RequestRefused`."""
        length = find_header(self._headers, b"content-length")
        chunked = find_header(self._headers, b"transfer-encoding") is not None
        if length is not None:
            if chunked:
                # RFC 9112, section 6.3: the way to smuggle a request past one of two servers.
                raise RequestRefused(400, "bad_request", "the request has both Content-Length and Transfer-Encoding")
            if int(length) > route.limits.max_request_body_bytes:
                raise too_large(route.limits.max_request_body_bytes)
            return length
        if not chunked and self._scope["http_version"] == "2":
            chunked = await inbound.first_message()
        return b"" if chunked else None

    def _request(self, route: Route, nursery: trio.Nursery, inbound: Inbound, body: bytes | None) -> httpx.Request:
        """The upstream request."""
        timeouts = route.timeouts
        return httpx.Request(
            self._scope["method"],
            route.url,
            headers=request_headers(
                self._headers,
                route.headers,
                client=self._client,
                scheme=self._scope["scheme"],
                trusted=self._client in self._worker.trusted_proxies,
                identity=route.chain.reads_body,
                body=body,
            ),
            stream=inbound.stream(),
            extensions={
                "target": route.target(self._target),
                "nursery": nursery,
                "timeout": {"connect": timeouts.connect, "write": timeouts.write, "read": timeouts.first_byte},
            },
        )

    async def _respond(
        self, route: Route, response: httpx.Response, upstream: UpstreamBody, buffers: BufferScope, send: Send
    ) -> None:
        """Head, then body, all but the end."""
        scope = self._scope
        bodiless = has_no_body(scope["method"], response.status_code)
        content_type = response.headers.get("content-type", "")
        self._sse = not bodiless and content_type.partition(";")[0].strip().lower() == "text/event-stream"
        if self._sse and route.chain.interceptors:
            self._chain = route.chain.open_stream(
                self._context(route), self._worker.pools.json, buffers, route.limits.max_event_bytes
            )
        dropped = self._connection.added_headers if self._connection is not None else frozenset()
        if self.counts is not None:
            encoding = response.headers.get("content-encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise ProtocolFailure(
                    f"{route.upstream}: the response is encoded ({encoding}) although identity was asked for, "
                    "and an interceptor must see it"
                )
            dropped |= {b"content-length"}
        headers = response_headers(response.headers.raw, dropped=dropped, sse=self._sse)
        if self._chain is not None:
            self._chain.start(ResponseHead(response.status_code, tuple(headers)))
        chunked = not bodiless and find_header(headers, b"content-length") is None
        self._writer = writer = choose_writer(scope, send, self._connection, chunked=chunked)
        self._status = response.status_code
        self._worker.metrics.writers.labels(writer.name).inc()
        await writer.start(response.status_code, headers)
        self._first_byte_s = trio.current_time() - self._started_at
        if upstream.complete:
            return
        self._relay = Relay(
            upstream,
            writer,
            self._chain if self.counts is not None else None,
            self._worker.pools,
            buffers,
            sse=self._sse,
        )
        await self._relay.run(self._worker.hub, idle_s=route.timeouts.idle, send_s=route.timeouts.send)

    def _context(self, route: Route) -> StreamContext:
        return StreamContext(
            route=route.name,
            method=self._scope["method"],
            path=self._path.decode("latin-1"),
            headers=tuple(self._headers),
            client=self._client,
        )

    async def _watch_client(self, inbound: Inbound) -> None:
        """The inbound task: take in the request, then end the exchange when the client leaves."""
        assert self._cancel is not None
        try:
            await inbound.run()
        except RequestRefused as refusal:
            self._failure = self._failure or refusal
        else:
            if self._finished or self._outcome is not None:
                return
            self._outcome = Outcome.CLIENT_DISCONNECTED
        self._cancel.cancel()

    def _decide(self) -> Outcome:
        """The exchange's one outcome."""
        failure = self._failure
        if self._outcome is not None:
            return self._outcome
        if self._finished and failure is None:
            return Outcome.COMPLETED
        if isinstance(failure, UpstreamFailure):
            return failure.outcome
        if isinstance(failure, ClientGone):
            return Outcome.CLIENT_DISCONNECTED
        if isinstance(failure, SendStalled):
            return Outcome.SEND_STALLED
        if isinstance(failure, HookError | RequestRefused):
            return Outcome.INTERCEPTED
        if isinstance(failure, InterceptorError):  # an event too large
            return Outcome.UPSTREAM_ERROR
        return Outcome.UPSTREAM_TIMEOUT  # the total deadline has cancelled it

    async def _conclude(self, outcome: Outcome, inbound: Inbound, send: Send) -> None:
        """Tell the client how it ended, unless it ended well or the client is gone. Runs shielded, with a deadline."""
        if outcome is Outcome.COMPLETED:
            return
        writer = self._writer
        if writer is not None and writer.started:
            with suppress(ClientGone):
                await self._say_error(writer, outcome)
            await writer.abort()
        else:
            gone = outcome is Outcome.CLIENT_DISCONNECTED
            if (gone or not await self._answer(self._refusal(outcome), inbound, send)) and not inbound.over:
                await self._cut()
        await inbound.settle()

    async def _cut(self) -> None:
        """End the connection, or the HTTP/2 stream, without an answer. Without access to it, the server does it in its own time."""
        if self._connection is not None:
            await self._connection.abort()

    async def _say_error(self, writer: Writer, outcome: Outcome) -> None:
        """An error event, where one can be said: in an event stream, between two events, to a client that reads."""
        relay, route = self._relay, self._route
        if outcome in (Outcome.CLIENT_DISCONNECTED, Outcome.SEND_STALLED) or relay is None or route is None:
            return
        if not self._sse or not route.error_events or not relay.at_boundary or writer.stalled:
            return
        refusal = self._refusal(outcome)
        data = encode_json({"error": {"type": refusal.kind, "message": refusal.message}}).decode()
        with trio.move_on_after(1):
            if not writer.write((encode_event(Fields("error", data, None, None)),)):
                await writer.drain()

    def _refusal(self, outcome: Outcome) -> RequestRefused:
        """What to tell the client of a failure; nothing of the upstream's insides but which part failed."""
        failure = self._failure
        if isinstance(failure, RequestRefused):
            return failure
        if isinstance(failure, UpstreamFailure):
            return RequestRefused(failure.status, failure.kind, str(failure))
        if isinstance(failure, HookError):
            return RequestRefused(502, "interceptor_failed", f"the interceptor {failure.interceptor!r} failed")
        if isinstance(failure, InterceptorError):
            return RequestRefused(502, "event_too_large", str(failure))
        if outcome is Outcome.DRAINING:
            return RequestRefused(503, "draining", "this server is shutting down", retry_after_s=1)
        return RequestRefused(504, "total_timeout", "the exchange took longer than it may")

    async def _answer(self, refusal: RequestRefused, inbound: Inbound, send: Send) -> bool:
        """An answer of our own, such that a client that is still sending can read it. False when that client sends on and on."""
        self._status = refusal.status
        body = encode_json({"error": {"type": refusal.kind, "message": refusal.message}}) + b"\n"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
        sending = not inbound.over and any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)
        if self._scope["http_version"] != "2" and (self._worker.draining or sending):
            headers.append((b"connection", b"close"))
        try:
            await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if not await inbound.discard():
                return False
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone meanwhile
        return True

    def _account(self, outcome: Outcome) -> None:
        """One metric, one log line."""
        route = NO_ROUTE if self._route is None else self._route.name
        metrics = self._worker.metrics
        metrics.ended(self, route)
        metrics.exchanges.labels(route, outcome.value).inc()
        if self._first_byte_s is not None:
            metrics.time_to_first_byte.labels(route).observe(self._first_byte_s)
        line: dict[str, Any] = {
            "route": route,
            "upstream": None if self._route is None else self._route.upstream,
            "method": self._scope["method"],
            "status": self._status,
            "outcome": outcome.value,
            "events": None if self.counts is None else self.counts.total,
            "bytes": self.bytes_downstream,
            "duration": round(trio.current_time() - self._started_at, 6),
            "time_to_first_byte": None if self._first_byte_s is None else round(self._first_byte_s, 6),
        }
        if self._failure is not None and not isinstance(self._failure, ClientGone | SendStalled):
            line["error"] = str(self._failure)
        structlog.get_logger("proxy").info("exchange", **line)
