"""One exchange: one request in, one stream out, one outcome.

It opens its buffer scope and its nursery: the *inbound* task takes in the request body as it arrives and then waits for the
client to leave; the exchange's own task sends the request upstream and relays the response. Either one ending ends the other.
Whatever happens inside is noted, not raised: when the nursery is done, one place tells the client, and one place counts and logs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import structlog
import trio

from interceptors import InterceptorError, Outcome, ResponseHead, StreamContext
from interceptors.api import find_header
from interceptors.chain import EventCounts, StreamChain
from pools import BufferScope

from .answer import error_event, refusal_of, send_answer
from .downstream import ClientConnection, Receive, Scope, Send, Writer, choose_writer, has_no_body, inspect_server
from .errors import ClientGone, ProtocolFailure, RequestRefused, SendStalled, UpstreamFailure, outcome_of
from .headers import request_headers, response_headers, split_target
from .inbound import LINGER_S, Inbound, too_large
from .relay import Relay
from .routes import Route
from .upstream import UpstreamBody
from .worker import NO_ROUTE, Worker

__all__ = ["Exchange"]

_CONCLUDE_S = LINGER_S + 5.0
_SMALL_BODY_BYTES = 16384


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
        self._started_at = self._ended_at = trio.current_time()
        self._may_say_error = False  # an error event may go out, between events
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
        if self._outcome is None and self._cancel is not None and not self._finished:
            self._outcome = Outcome.DRAINING
            self._cancel.cancel()

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Serve it to its end. Raises only what cancels it; everything borrowed has been given back then."""
        worker = self._worker
        self._connection = inspect_server(send)
        route: Route | None = None
        try:
            route = self._admit()
        except RequestRefused as refusal:
            self._failure = refusal
        limits, timeouts = (route.limits, route.timeouts) if route is not None else (None, None)
        self._inbound = inbound = Inbound(
            receive,
            self._connection,
            max_bytes=limits.max_request_body_bytes if limits is not None else 0,
            idle_s=timeouts.idle if timeouts is not None else None,
        )
        worker.enter(self, self._route_name, admitted=route is not None)
        try:
            if route is not None:
                await self._exchange(route, inbound, send)
        finally:
            outcome = self._decide()
            if self._chain is not None:
                self._chain.close(outcome)
            self._ended_at = trio.current_time()
            try:
                if outcome is not Outcome.COMPLETED:
                    with trio.CancelScope(shield=True), trio.move_on_after(_CONCLUDE_S):
                        await self._conclude(outcome, inbound, send)
            finally:
                worker.leave(self, self._route_name, admitted=route is not None)
                self._account(outcome)

    @property
    def _route_name(self) -> str:
        return NO_ROUTE if self._route is None else self._route.name

    def _admit(self) -> Route:
        """Find the route and check what can be checked before anything is opened. Raises `RequestRefused`."""
        worker = self._worker
        path, self._target = split_target(self._scope["raw_path"], self._scope["query_string"])
        self._path = path
        self._route = route = worker.routes.find(path)
        if route is None:
            raise RequestRefused(404, "no_route", "no route matches this path")
        if worker.draining:
            raise refusal_of(None, Outcome.DRAINING)
        if worker.is_full(route):
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
                self._fail(failure)
            except httpx.LocalProtocolError:
                self._fail(RequestRefused(400, "bad_request", "a header or the target of the request cannot be forwarded"))
            except Exception as error:
                self._fail_internally(error)
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
            writer = await self._respond(route, response, upstream, buffers, inbound, send)
        finally:
            upstream.close()
            inbound.forget_body()
        self._finished = True  # the client has the whole body: if it leaves from here on, it leaves content
        # When the upstream has answered before it had the whole request, ending the response now would close the connection, and
        # a client that is still sending would see that instead of the answer.
        with suppress(ClientGone):
            if not inbound.complete:
                while not await writer.drain():
                    pass
                await inbound.wait_complete()
            await self._in_time(writer.finish, route.timeouts.send)

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
            if 0 < int(length) <= _SMALL_BODY_BYTES:
                await inbound.first_message()  # as a rule it brings all of it, which then goes up with the head
            return length
        if not chunked and self._scope["http_version"] == "2":
            chunked = await inbound.first_message()
        if not chunked:
            # RFC 9110, section 8.6: a request whose method expects a body says that it has none. HTTP/2 clients leave that out.
            http2 = self._scope["http_version"] == "2"
            return b"0" if http2 and self._scope["method"] in ("POST", "PUT", "PATCH") else None
        return b""

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
            stream=httpx.ByteStream(b"") if body in (None, b"0") else inbound.stream(int(body) if body else None),
            extensions={
                "target": route.target(self._target),
                "nursery": nursery,
                "timeout": {"connect": timeouts.connect, "write": timeouts.write, "read": timeouts.first_byte},
            },
        )

    async def _respond(
        self,
        route: Route,
        response: httpx.Response,
        upstream: UpstreamBody,
        buffers: BufferScope,
        inbound: Inbound,
        send: Send,
    ) -> Writer:
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
        encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
        if self.counts is not None:
            if encoding != "identity":
                raise ProtocolFailure(
                    f"{route.upstream}: the response is encoded although identity was asked for, and an interceptor must see it"
                )
            dropped |= {b"content-length"}
        headers = response_headers(response.headers.raw, dropped=dropped, sse=self._sse)
        if self._chain is not None:
            self._chain.start(ResponseHead(response.status_code, tuple(headers)))
        chunked = not bodiless and find_header(headers, b"content-length") is None
        self._may_say_error = self._sse and chunked and encoding == "identity" and route.error_events
        self._writer = writer = choose_writer(scope, send, self._connection, chunked=chunked)
        self._status = response.status_code
        self._worker.metrics.writers[writer.name].inc()
        inbound.answered = True
        await self._in_time(partial(writer.start, response.status_code, headers), route.timeouts.send)
        if not upstream.complete:
            self._relay = relay = Relay(
                upstream,
                writer,
                self._chain if self.counts is not None else None,
                self._worker.pools,
                buffers,
                sse=self._sse,
            )
            hub = self._worker.hub if writer.synchronous else None
            in_vain = not writer.synchronous and self._connection is not None and self._connection.shields_send
            await relay.run(hub, idle_s=route.timeouts.idle, send_s=None if in_vain else route.timeouts.send)
        return writer

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
            self._fail(refusal)
        except Exception as error:
            self._fail_internally(error)
        else:
            if self._finished:
                return
            self._outcome = self._outcome or Outcome.CLIENT_DISCONNECTED
        self._cancel.cancel()

    async def _in_time(self, step: Callable[[], Awaitable[None]], send_s: float | None) -> None:
        """One step of the writer, within the send deadline. Raises `SendStalled`."""
        if self._connection is not None and self._connection.shields_send:
            await step()  # no deadline of ours could end it; TCP_USER_TIMEOUT does
            return
        with trio.move_on_after(send_s if send_s is not None else float("inf")) as scope:
            await step()
        if scope.cancelled_caught:
            raise SendStalled

    def _fail(self, failure: Exception) -> None:
        """Note why the exchange failed; the first reason counts."""
        self._failure = self._failure or failure

    def _fail_internally(self, error: Exception) -> None:
        structlog.get_logger("proxy").error("internal_error", route=self._route_name, exc_info=error)
        self._fail(RequestRefused(500, "internal_error", "the proxy failed"))

    def _decide(self) -> Outcome:
        """The exchange's one outcome."""
        if self._outcome is not None:
            return self._outcome
        if self._failure is not None:
            return outcome_of(self._failure)
        if self._finished:
            return Outcome.COMPLETED
        if self._cancel is not None and trio.current_time() >= self._cancel.deadline:
            return Outcome.UPSTREAM_TIMEOUT  # the total deadline
        return Outcome.DRAINING  # cancelled from outside: the server has run out of patience with its shutdown

    async def _conclude(self, outcome: Outcome, inbound: Inbound, send: Send) -> None:
        """Tell the client how it ended, unless it is gone. Runs shielded, with a deadline."""
        writer = self._writer
        try:
            if writer is not None and writer.started:
                if outcome not in (Outcome.CLIENT_DISCONNECTED, Outcome.SEND_STALLED):
                    with suppress(ClientGone):
                        await self._say_error(writer, refusal_of(self._failure, outcome))
            elif outcome is not Outcome.CLIENT_DISCONNECTED:
                refusal = refusal_of(self._failure, outcome)
                self._status = refusal.status
                http1 = self._scope["http_version"] != "2"
                close = http1 and (self._worker.draining or (not inbound.over and _announces_body(self._headers)))
                if await send_answer(refusal, inbound, send, close=close):
                    return
        finally:
            await self._cut()
            await inbound.settle()

    async def _cut(self) -> None:
        """End the response such that the client sees that it is not whole. Without access to the connection, the app just returns
        in the middle of it, and servers then close the connection.
        """
        if self._connection is not None:
            await self._connection.abort()

    async def _say_error(self, writer: Writer, refusal: RequestRefused) -> None:
        """An error event, where one can be said: in a plain event stream, between two events, to a client that reads."""
        if self._may_say_error and not writer.stalled and (self._relay is None or self._relay.at_boundary):
            with trio.move_on_after(1):
                all_sent = writer.write((error_event(refusal),))
                while not all_sent:
                    all_sent = await writer.drain()

    def _account(self, outcome: Outcome) -> None:
        """One metric, one log line."""
        route = self._route_name
        first_byte_s = None
        if self._relay is not None and self._relay.first_read is not None:
            first_byte_s = self._relay.first_read - self._started_at
        metrics = self._worker.metrics
        metrics.exchanges[route, outcome].inc()
        if first_byte_s is not None:
            metrics.time_to_first_byte[route].observe(first_byte_s)
        line: dict[str, Any] = {
            "route": route,
            "upstream": None if self._route is None else self._route.upstream,
            "method": self._scope["method"],
            "status": self._status,
            "outcome": outcome.value,
            "events": None if self.counts is None else self.counts.total,
            "bytes": self.bytes_downstream,
            "duration": round(self._ended_at - self._started_at, 6),
            "time_to_first_byte": None if first_byte_s is None else round(first_byte_s, 6),
        }
        if self._failure is not None and not isinstance(self._failure, ClientGone | SendStalled):
            line["error"] = str(self._failure)
        self._worker.log.info("exchange", **line)


def _announces_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
