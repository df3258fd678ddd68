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
from trio_util import wait_any

from interceptors import HookError, InterceptorError, Outcome, ResponseHead, StreamContext
from interceptors.api import find_header
from interceptors.chain import EventCounts, StreamChain
from interceptors.sse import Fields, encode_event
from pools import BufferScope, encode_json

from .downstream import ClientConnection, Receive, Scope, Send, Writer, choose_writer, has_no_body, inspect_server
from .errors import ClientGone, ProtocolFailure, RequestRefused, SendStalled, UpstreamFailure
from .headers import request_headers, response_headers, split_target
from .relay import Relay
from .routes import Route
from .upstream import UpstreamBody
from .worker import NO_ROUTE, Worker

__all__ = ["Exchange"]

_LINGER_S = 5.0
_LINGER_BYTES = 64 * 1024 * 1024
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
        self._request_complete = False
        self._request_done = trio.Event()
        self._sse = False
        self._started_at = trio.current_time()
        self._first_byte_s: float | None = None
        self._status: int | None = None
        self.bytes_upstream = 0

    @property
    def counts(self) -> EventCounts | None:
        """What became of the events; None when no interceptor sees them."""
        return self._chain.counts if self._chain is not None and self._chain.wants_events else None

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
            self._route = route = self._admit()
        except RequestRefused as refusal:
            self._failure = refusal
            tally = worker.metrics.routes[NO_ROUTE if self._route is None else self._route.name]
        else:
            tally = worker.metrics.routes[route.name]
        tally.live.add(self)
        worker.enter(self)
        try:
            if self._failure is None:
                await self._exchange(route, receive, send)
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
                with trio.CancelScope(shield=True), trio.move_on_after(_LINGER_S + _ABORT_S):
                    await self._conclude(outcome, receive, send)
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

    async def _exchange(self, route: Route, receive: Receive, send: Send) -> None:
        """Both directions, in one buffer scope and one nursery."""
        async with self._worker.pools.open_scope() as buffers, trio.open_nursery() as nursery:
            self._cancel = nursery.cancel_scope
            if route.timeouts.total is not None:
                self._cancel.deadline = self._started_at + route.timeouts.total
            try:
                await self._forward(route, buffers, nursery, receive, send)
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
        self, route: Route, buffers: BufferScope, nursery: trio.Nursery, receive: Receive, send: Send
    ) -> None:
        """Send the request, relay the response."""
        to_upstream, body = trio.open_memory_channel[bytes](1)
        request = await self._request(route, nursery, receive, body, to_upstream)
        response = await route.transport.handle_async_request(request)
        upstream = response.stream
        assert isinstance(upstream, UpstreamBody)
        try:
            await self._respond(route, response, upstream, buffers, send)
        finally:
            upstream.close()
            body.close()  # whatever else the client sends is thrown away
        assert self._writer is not None
        if not self._request_complete:
            # The upstream answered before it had the whole request. Ending the response now would close the connection, and
            # a client that is still sending would see that instead of the answer.
            with trio.move_on_after(_LINGER_S):
                await self._request_done.wait()
        self._finished = True  # from here on, a client that leaves has everything
        await self._writer.finish()

    async def _request(
        self,
        route: Route,
        nursery: trio.Nursery,
        receive: Receive,
        body: trio.MemoryReceiveChannel[bytes],
        to_upstream: trio.MemorySendChannel[bytes],
    ) -> httpx.Request:
        """Build the upstream request and start the inbound task."""
        scope = self._scope
        length = find_header(self._headers, b"content-length")
        chunked = find_header(self._headers, b"transfer-encoding") is not None
        if length is not None and chunked:
            raise RequestRefused(400, "bad_request", "the request has both Content-Length and Transfer-Encoding")
        limit = route.limits.max_request_body_bytes
        if length is not None and int(length) > limit:
            raise _too_large(limit)
        first = b""
        if length is None and not chunked and scope["http_version"] == "2":
            # HTTP/2 needs neither header for a body; its first message tells.
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            first = message.get("body", b"")
            chunked = bool(first) or message.get("more_body", False)
            self._request_complete = not message.get("more_body", False)
        nursery.start_soon(self._inbound, receive, to_upstream, first, limit)
        timeouts = route.timeouts
        target = route.target(self._target)
        return httpx.Request(
            scope["method"],
            route.url,
            headers=request_headers(
                self._headers,
                route.headers,
                client=self._client,
                scheme=scope["scheme"],
                trusted=self._client in self._worker.trusted_proxies,
                identity=route.chain.reads_body,
                body=length if length is not None else (b"" if chunked else None),
            ),
            stream=_RequestBody(body),
            extensions={
                "target": target,
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
        await self._relay.run(idle_s=route.timeouts.idle, send_s=route.timeouts.send)

    def _context(self, route: Route) -> StreamContext:
        return StreamContext(
            route=route.name,
            method=self._scope["method"],
            path=self._path.decode("latin-1"),
            headers=tuple(self._headers),
            client=self._client,
        )

    async def _inbound(self, receive: Receive, to_upstream: trio.MemorySendChannel[bytes], first: bytes, limit: int) -> None:
        """Take in the request body, at the upstream's pace, and then wait for the client to leave."""
        assert self._cancel is not None
        async with to_upstream:
            if first:
                self.bytes_upstream += len(first)
                await to_upstream.send(first)
            while not self._request_complete:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self._leave()
                    return
                data = message.get("body", b"")
                self.bytes_upstream += len(data)
                self._request_complete = not message.get("more_body", False)
                if self.bytes_upstream > limit and not self._is_discarding(to_upstream):
                    self._failure = _too_large(limit)
                    self._cancel.cancel()
                    return
                if data and not await self._hand_over(to_upstream, data):
                    self._leave()
                    return
        self._request_done.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    async def _hand_over(self, to_upstream: trio.MemorySendChannel[bytes], data: bytes) -> bool:
        """Pass a piece of the request body on. False when the client leaves while the upstream takes nothing.

        As long as we do not take what the client sent, the server does not read, and so does not see it leave. The socket
        itself tells.
        """
        try:
            to_upstream.send_nowait(data)
        except trio.BrokenResourceError:
            pass  # the response is done, or the upload has failed: discard
        except trio.WouldBlock:
            if self._connection is None:
                return await _send_or_discard(to_upstream, data)
            return await self._send_or_hangup(to_upstream, data, self._connection)
        return True

    async def _send_or_hangup(
        self, to_upstream: trio.MemorySendChannel[bytes], data: bytes, connection: ClientConnection
    ) -> bool:
        handed_over = False

        async def send() -> None:
            nonlocal handed_over
            handed_over = await _send_or_discard(to_upstream, data)

        await wait_any(send, connection.wait_hangup)
        return handed_over

    def _is_discarding(self, to_upstream: trio.MemorySendChannel[bytes]) -> bool:
        return to_upstream.statistics().open_receive_channels == 0

    def _leave(self) -> None:
        """The client is gone."""
        if self._finished or self._outcome is not None:
            return
        self._outcome = Outcome.CLIENT_DISCONNECTED
        assert self._cancel is not None
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

    async def _conclude(self, outcome: Outcome, receive: Receive, send: Send) -> None:
        """Tell the client how it ended, unless it ended well or the client is gone. Runs shielded, with a deadline."""
        if outcome is Outcome.COMPLETED:
            return
        writer = self._writer
        if writer is not None and writer.started:
            with suppress(ClientGone):
                await self._say_error(writer, outcome)
            await writer.abort()
        elif outcome is not Outcome.CLIENT_DISCONNECTED:
            await self._answer(self._refusal(outcome), receive, send)

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

    async def _answer(self, refusal: RequestRefused, receive: Receive, send: Send) -> None:
        """An answer of our own, such that a client that is still sending can read it."""
        self._status = refusal.status
        body = encode_json({"error": {"type": refusal.kind, "message": refusal.message}}) + b"\n"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if refusal.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
        http1 = self._scope["http_version"] != "2"
        if http1 and (self._worker.draining or (not self._request_complete and _has_body(self._headers))):
            headers.append((b"connection", b"close"))
        try:
            await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await self._discard(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # gone meanwhile

    async def _discard(self, receive: Receive) -> None:
        """Read and forget the rest of the request, for a bounded time and up to a bounded size."""
        discarded = 0
        with trio.move_on_after(_LINGER_S):
            while not self._request_complete and discarded < _LINGER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                discarded += len(message.get("body", b""))
                self._request_complete = not message.get("more_body", False)

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


class _RequestBody(httpx.AsyncByteStream):
    """The request body, as the inbound task hands it over."""

    def __init__(self, pieces: trio.MemoryReceiveChannel[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> trio.MemoryReceiveChannel[bytes]:
        return self._pieces


async def _send_or_discard(to_upstream: trio.MemorySendChannel[bytes], data: bytes) -> bool:
    with suppress(trio.BrokenResourceError):
        await to_upstream.send(data)
    return True


def _too_large(limit: int) -> RequestRefused:
    return RequestRefused(413, "request_too_large", f"the request body is larger than {limit} bytes")


def _has_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return (
        find_header(headers, b"transfer-encoding") is not None or (find_header(headers, b"content-length") or b"0") != b"0"
    )
