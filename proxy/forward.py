"""The way of one exchange: the request up, the response down, and its interceptors' say in both.

It raises what goes wrong and leaves it to the exchange to note it, to tell the client, and to count.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import trio

from interceptors import Event, EventTooLarge, HookError, Request, Response, ResponseHead
from interceptors.chain import EventCounts, StreamChain
from interceptors.hooks import Owner
from interceptors.paths import normal_path
from pools import BufferScope

from .downstream import ClientConnection, Scope, Send, Writer, choose_writer, has_no_body
from .errors import (
    ClientGone,
    NotAStream,
    NotResumed,
    ProtocolFailure,
    ReadTimedOut,
    RequestRefused,
    SendStalled,
    UpstreamFailure,
)
from .headers import HeaderList, check_response_headers, find_header, request_headers, response_headers
from .heartbeat import PING, only_accepts_streams, while_beating
from .inbound import Inbound, too_large
from .mcp import calls_of
from .relay import Mover, Relay, open_relay
from .resume import Resume
from .routes import Route
from .upstream import UpstreamBody
from .worker import Worker

__all__ = ["Forward"]

_SMALL_BODY_BYTES = 16384
_CLOSE_S = 1.0


class Forward:
    """Takes one admitted request to its route's upstream and the response back. Call `run` once."""

    __slots__ = (
        "_client",
        "_collected_at",
        "_connection",
        "_headers",
        "_inbound",
        "_may_beat",
        "_path",
        "_route",
        "_scope",
        "_send",
        "_sse",
        "_target",
        "_upstream",
        "_worker",
        "chain",
        "finished",
        "intercepted",
        "may_say_error",
        "relay",
        "request",
        "status",
        "writer",
    )

    def __init__(
        self,
        worker: Worker,
        route: Route,
        scope: Scope,
        path: bytes,
        target: bytes,
        inbound: Inbound,
        send: Send,
        connection: ClientConnection | None,
    ) -> None:
        """`path` and `target`: as `split_target` tells them."""
        self._worker = worker
        self._route = route
        self._scope = scope
        self._path = path
        self._target = target
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._client: str | None = scope["client"][0] if scope.get("client") else None
        self._inbound = inbound
        self._send = send
        self._connection = connection
        self._sse = False
        self._may_beat = False  # a comment may go out, between events
        self._upstream: UpstreamBody | None = None  # the connection that is on loan
        self.writer: Writer | None = None
        self.relay: Relay | None = None
        self.request: Request | None = None
        """As interceptors see it; None when there is none."""
        self.chain: StreamChain | None = None
        """The interceptors of the response, from when its head has come. Whoever made this closes it."""
        self.status: int | None = None
        self.may_say_error = False
        """An error event may go out, between events."""
        self.finished = False
        """The whole body has been handed over."""
        self.intercepted = False
        """An interceptor has answered, or has ended the stream."""
        self._collected_at: float | None = None

    @property
    def counts(self) -> EventCounts | None:
        """What became of the events; None when no interceptor sees them."""
        return self.chain.counts if self.chain is not None and self.chain.wants_events else None

    @property
    def first_body_at(self) -> float | None:
        """Trio's time of the first bytes of the response's body."""
        return self.relay.first_read if self.relay is not None else self._collected_at

    async def run(
        self,
        buffers: BufferScope,
        nursery: trio.Nursery,
        watch_client: Callable[[], Awaitable[None]],
        run_task: Callable[[Owner, Callable[..., Awaitable[object]], tuple[Any, ...]], Awaitable[None]],
    ) -> None:
        """Send the request, relay the response. `watch_client` is the inbound task, `run_task` runs an interceptor's.

        Raises `UpstreamFailure`, `RequestRefused`, `InterceptorError`, `ClientGone`, `SendStalled`, and `httpx.LocalProtocolError`
        for a request that cannot be sent.
        """
        inbound, chain = self._inbound, self._route.chain
        body = await self._body_length()
        inbound.expects_body = body not in (None, b"0")
        request: Request | None = None
        stream: httpx.AsyncByteStream
        if chain.owners:
            request = self.request = self._request_for_hooks()
            request.spawn = lambda owner, async_fn, args: nursery.start_soon(run_task, owner, async_fn, args)
        if chain.wants_body:
            assert request is not None
            lease = buffers.acquire(self._worker.pools.http_response)
            size = await inbound.collect(lease.buffer)
            stream = httpx.ByteStream(b"")
            nursery.start_soon(watch_client)
            with memoryview(lease.buffer)[:size] as view:
                request.set_body(view)
                answer = await chain.on_request(request)
                request.set_body(request.body)  # a copy, which later hooks may look at
            buffers.release(lease)
            body = b"%d" % len(request.body) if size or request.body_replaced else body
            stream = httpx.ByteStream(request.body)
        else:
            stream = httpx.ByteStream(b"") if body in (None, b"0") else inbound.stream(int(body) if body else None)
            nursery.start_soon(watch_client)
            answer = await chain.on_request(request) if chain.sees_requests and request is not None else None
            if request is not None and request.body_replaced:
                inbound.forget_body()
                stream = httpx.ByteStream(request.body)
                body = b"%d" % len(request.body)
        if answer is None:
            answer = await self._ask_upstream(request, body, stream, nursery, buffers)
        if answer is not None:
            inbound.forget_body()
            self.intercepted = True
            await self._answer(answer)
        assert self.writer is not None
        self.finished = True  # the client has the whole body: if it leaves from here on, it leaves content
        # When the answer has come before the whole request had, ending the response now would close the connection, and a client
        # that is still sending would see that instead of the answer.
        with suppress(ClientGone):
            if not inbound.complete:
                while not await self.writer.drain():
                    pass
                await inbound.wait_complete()
            await self._in_time(self.writer.finish)

    async def _body_length(self) -> bytes | None:
        """The Content-Length of the request, b"" if that is not known, None if it has no body. Raises `RequestRefused`."""
        limit = self._route.limits.max_request_body_bytes
        length = find_header(self._headers, b"content-length")
        chunked = find_header(self._headers, b"transfer-encoding") is not None
        if length is not None:
            if chunked:
                # RFC 9112, section 6.3: the way to smuggle a request past one of two servers.
                raise RequestRefused(400, "bad_request", "the request has both Content-Length and Transfer-Encoding")
            if int(length) > limit:
                raise too_large(limit)
            if 0 < int(length) <= _SMALL_BODY_BYTES:
                await self._inbound.first_message()  # as a rule it brings all of it, which then goes up with the head
            return length
        if not chunked and self._scope["http_version"] == "2":
            chunked = await self._inbound.first_message()
        if not chunked:
            # RFC 9110, section 8.6: a request whose method expects a body says that it has none. HTTP/2 clients leave that out.
            http2 = self._scope["http_version"] == "2"
            return b"0" if http2 and self._scope["method"] in ("POST", "PUT", "PATCH") else None
        return b""

    def _request_for_hooks(self) -> Request:
        return Request(
            method=self._scope["method"],
            path=normal_path(self._path).decode("latin-1"),
            raw_path=self._path,
            query=self._scope["query_string"],
            headers=self._headers,
            body=None,
            route=self._route.name,
            dialect=self._route.dialect,
            client=self._client,
        )

    async def _ask_upstream(
        self,
        request: Request | None,
        body: bytes | None,
        stream: httpx.AsyncByteStream,
        nursery: trio.Nursery,
        buffers: BufferScope,
    ) -> Response | None:
        """The request to the upstream, its response to the client. What an interceptor wants to answer instead, if it does."""
        upstream_request = self._upstream_request(request, body, stream, nursery)
        try:
            response = await while_beating(partial(self._send_up, upstream_request), self._early_beat_s, self._beat_early)
            assert self._upstream is not None
            answer = await self._respond(response, self._upstream, request, buffers)
            del response, upstream_request  # a stream may last for hours, and its head has left
            if answer is None and not self._upstream.complete:
                await self._relay_body(request, body, nursery, buffers)
            return answer
        finally:
            if self._upstream is not None:
                self._upstream.close()
                self._inbound.forget_body()

    async def _send_up(self, request: httpx.Request) -> httpx.Response:
        response = await self._route.transport.handle_async_request(request)
        assert isinstance(response.stream, UpstreamBody)
        self._upstream = response.stream
        return response

    @property
    def _early_beat_s(self) -> float | None:
        """After how many seconds heartbeats begin although the upstream has not answered yet; None: they do not."""
        heartbeat = self._route.heartbeat
        if not heartbeat.early or self._scope["method"] == "HEAD":
            return None
        accept = [value for name, value in self._headers if name == b"accept"]
        return heartbeat.interval if only_accepts_streams(accept) else None

    async def _beat_early(self) -> float:
        """A heartbeat before the upstream has answered; before the first, the head of an event stream."""
        interval_s = self._route.heartbeat.interval
        assert interval_s is not None
        if not self._inbound.complete:
            return interval_s  # a client that is still sending does not read
        if self.writer is None:
            self._sse = self._may_beat = True
            self.may_say_error = self._route.error_events
            dropped = self._connection.added_headers if self._connection is not None else frozenset()
            head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            await self._start(200, response_headers(head, dropped=dropped, sse=True), chunked=True, whole=False)
        return await self._beat()

    async def _beat(self) -> float:
        """A heartbeat while no relay moves the stream."""
        interval_s = self._route.heartbeat.interval
        assert interval_s is not None
        await self._write(PING)
        return interval_s

    def _upstream_request(
        self,
        request: Request | None,
        body: bytes | None,
        stream: httpx.AsyncByteStream,
        nursery: trio.Nursery,
        last_event_id: bytes | None = None,
    ) -> httpx.Request:
        route, timeouts = self._route, self._route.timeouts
        method, headers, target = self._scope["method"], self._headers, self._target
        if request is not None:
            method = request.method
            headers = [(name.lower(), value) for name, value in request.headers.raw]
            target = request.raw_path + (b"?" + request.query if request.query else b"")
        if last_event_id is not None:
            headers = [*(item for item in headers if item[0] != b"last-event-id"), (b"last-event-id", last_event_id)]
        return httpx.Request(
            method,
            route.url,
            headers=request_headers(
                headers,
                route.headers,
                client=self._client,
                scheme=self._scope["scheme"],
                trusted=self._client in self._worker.trusted_proxies,
                identity=route.chain.sees_streams or self._early_beat_s is not None or self._may_reconnect(method, body),
                body=body,
            ),
            stream=stream,
            extensions={
                "target": route.target(target),
                "nursery": nursery,
                # A reconnection has attempts of its own, with time between them.
                "retry": route.retry if last_event_id is None else None,
                **self._affinity(request),
                "timeout": {"connect": timeouts.connect, "write": timeouts.write, "read": timeouts.first_byte},
            },
        )

    def _affinity(self, request: Request | None) -> dict[str, bytes]:
        """The session that a request names in its target, where MCP's old transport does."""
        calls = calls_of(request)
        return {} if calls is None or calls.session is None else {"affinity": calls.session}

    async def _respond(
        self, response: httpx.Response, upstream: UpstreamBody, request: Request | None, buffers: BufferScope
    ) -> Response | None:
        """Show the head to the interceptors, open the chain, choose the writer, send the head, and of a JSON body all of it."""
        route = self._route
        status, raw_headers = response.status_code, response.headers.raw
        head: ResponseHead | None = None
        if request is not None:
            if (calls := calls_of(request)) is not None:
                calls.endpoint = response.extensions["endpoint"]
            head = ResponseHead(status, raw_headers, request)
            answer = await route.chain.on_response(head) if route.chain.sees_heads else None
            if answer is not None:
                return answer
            status, raw_headers = head.status, head.headers.raw
        bodiless = has_no_body(self._scope["method"], status)
        media_type = _media_type(raw_headers)
        encoding = (_header(raw_headers, b"content-encoding") or b"").strip().lower() or b"identity"
        begun = self.writer is not None  # by an early heartbeat
        if begun and (status != 200 or media_type != "text/event-stream" or encoding != b"identity"):
            raise NotAStream(route.upstream, status)
        self._sse = not bodiless and media_type == "text/event-stream"
        json = not bodiless and not self._sse and route.chain.sees_json and _is_json(media_type)
        if (self._sse and route.chain.sees_streams) or json:
            assert request is not None
            self.chain = route.chain.open_stream(
                request, self._worker.pools.json, buffers, route.limits.max_event_bytes, json=json
            )
            if self.chain.failure is not None:
                raise self.chain.failure
        dropped = self._connection.added_headers if self._connection is not None else frozenset()
        changed: bytes | None = None
        if self.counts is not None:
            if encoding != b"identity":
                raise ProtocolFailure(
                    f"{route.upstream}: the response is encoded although identity was asked for, and an interceptor must see it"
                )
            dropped |= {b"content-length"}
        if self.chain is not None:
            assert head is not None
            self.chain.takes_emitted = self._sse and encoding == b"identity"
            if self.chain.takes_emitted and self.chain.has_members:
                dropped |= {b"content-length"}  # a task may have something to add
            await self.chain.start(head)
            raw_headers = head.headers.raw
            if json and self.chain.wants_events:
                changed = await self._json_body(self.chain, upstream, buffers)
        if begun:
            return None
        headers = response_headers(raw_headers, dropped=dropped, sse=self._sse)
        if changed is not None:
            headers.append((b"content-length", b"%d" % len(changed)))
        chunked = not bodiless and find_header(headers, b"content-length") is None
        self._may_beat = self._sse and chunked and encoding == b"identity"
        self.may_say_error = self._may_beat and route.error_events
        await self._start(status, headers, chunked=chunked, whole=changed is not None or upstream.at_hand)
        if changed:
            await self._write(changed, last=True)
        return None

    async def _start(self, status: int, headers: HeaderList, *, chunked: bool, whole: bool) -> None:
        """Choose the writer and send the head; `whole` as for `Writer.start`."""
        if self._route.chain.owners:
            check_response_headers(headers)
        self.writer = writer = choose_writer(self._scope, self._send, self._connection, chunked=chunked)
        self.status = status
        self._worker.metrics.writers[writer.name].inc()
        self._inbound.answered = True
        whole = whole and self._inbound.complete  # else the end waits for the rest of the request, and the head must not
        await self._in_time(partial(writer.start, status, headers, whole=whole))

    async def _relay_body(
        self, request: Request | None, body: bytes | None, nursery: trio.Nursery, buffers: BufferScope
    ) -> None:
        """The body, all but its end; over several connections if the route reconnects."""
        assert self.writer is not None
        assert self._upstream is not None
        route, chain = self._route, self.chain
        method = self._scope["method"] if request is None else request.method
        resume: Resume | None = None
        if self.status == 200 and self._may_beat and self._may_reconnect(method, body):
            resume = Resume(route.reconnect, route.dialect, route.limits.max_event_bytes)
        preceded = self.writer.bytes_sent > 0
        self.relay = relay = open_relay(
            self._upstream,
            self.writer,
            chain,
            self._worker.pools,
            buffers,
            sse=self._sse,
            preceded=preceded,
            resume=resume,
        )
        hub = self._worker.hub if self.writer.synchronous else None
        beat_s = route.heartbeat.interval if self._may_beat else None
        mover = Mover(relay, hub, idle_s=route.timeouts.idle, send_s=self._send_s, beat_s=beat_s)
        while True:
            failure: UpstreamFailure | None = None
            try:
                await mover.run()
            except UpstreamFailure as error:
                if resume is None:
                    raise
                failure = error
            self.intercepted = chain is not None and chain.ended
            if resume is None or self.intercepted:
                return
            if not resume.wants_more(clean=failure is None):
                if failure is not None:
                    raise failure
                return
            self._upstream.close()
            if not await self._reconnect(resume, failure, request, nursery):
                await mover.complete()
                return
            relay.go_on(self._upstream)

    def _may_reconnect(self, method: str, body: bytes | None) -> bool:
        """Whether a stream that answers such a request is resumed: one that is safe to send again, and has no body."""
        return self._route.reconnect.enabled and method == "GET" and body in (None, b"0")

    async def _reconnect(
        self, resume: Resume, failure: UpstreamFailure | None, request: Request | None, nursery: trio.Nursery
    ) -> bool:
        """Open the response in which the stream goes on. False: there is nothing more; raises why it cannot go on.

        `failure`: how the last connection ended, None for clean.
        """
        route = self._route
        beat_s = route.heartbeat.interval
        await self._write(b": reconnecting\n")
        while (delay_s := resume.next_delay_s()) is not None:
            self._worker.log.info(
                "reconnect",
                route=route.name,
                upstream=route.upstream,
                delay=round(delay_s, 3),
                error=None if failure is None else str(failure),
            )
            await while_beating(partial(trio.sleep, delay_s), beat_s, self._beat)
            again = self._upstream_request(request, None, httpx.ByteStream(b""), nursery, resume.last_event_id)
            try:
                response = await while_beating(partial(self._send_up, again), beat_s, self._beat)
            except UpstreamFailure as error:
                failure = error
                continue
            status, headers = response.status_code, response.headers.raw
            if status == 204:
                return False  # WHATWG HTML, section 9.2.1: the client is to stop reconnecting
            encoding = (_header(headers, b"content-encoding") or b"identity").strip().lower()
            if status == 200 and _media_type(headers) == "text/event-stream" and encoding == b"identity":
                resume.begin()
                await self._write(b": reconnected\n")
                return True
            failure = NotResumed(route.upstream, status)
            assert self._upstream is not None
            self._upstream.close()
            if status < 500 and status != 429:
                break  # it would say the same again
        if failure is not None:
            raise failure
        return False  # as often as it may be asked, it has ended clean without another event

    async def _json_body(self, chain: StreamChain, upstream: UpstreamBody, buffers: BufferScope) -> bytes:
        """Collect a JSON body, in a pooled buffer, and show it to the interceptors. What leaves."""
        limit, idle_s = self._route.limits.max_event_bytes, self._route.timeouts.idle
        lease = buffers.acquire(self._worker.pools.http_response)
        buffer, size = lease.buffer, 0
        while not upstream.complete:
            with trio.move_on_after(idle_s if idle_s is not None else float("inf")) as waiting:
                await upstream.wait_readable()
            if waiting.cancelled_caught:
                raise ReadTimedOut(f"{upstream.connection.origin}: silent for {idle_s} s")
            if len(buffer) - size < 1024:
                buffer.extend(bytes(len(buffer)))
            span = upstream.receive(buffer, size)
            if span is not None:
                first, last = span
                if first != size:  # where the framing has left what came first
                    buffer[size : size + last - first] = buffer[first:last]
                if self._collected_at is None and last > first:
                    self._collected_at = trio.current_time()
                size += last - first
            if size > limit:
                raise EventTooLarge(limit)
        with memoryview(buffer)[:size] as view:
            changed = await chain.process_body(view)
            result = bytes(view) if changed is None else changed
        buffers.release(lease)
        return result

    async def _answer(self, response: Response) -> None:
        """What an interceptor says instead of the upstream, all but its end."""
        sse = response.events is not None
        bodiless = has_no_body(self._scope["method"], response.status)
        dropped = self._connection.added_headers if self._connection is not None else frozenset()
        headers = response_headers(response.headers.raw, dropped=dropped | {b"content-length"}, sse=sse)
        if not sse and response.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(response.body)))
        if self.writer is None:
            await self._start(response.status, headers, chunked=sse and not bodiless, whole=not sse)
        elif not sse or response.status != 200:
            raise RequestRefused(
                response.status, "answered_too_late", "an interceptor has answered when the stream had begun"
            )
        if bodiless:
            return
        if response.events is None:
            if response.body:
                await self._write(response.body, last=True)
            return
        self.may_say_error = self._route.error_events
        beat_s = self._route.heartbeat.interval
        events = aiter(response.events) if isinstance(response.events, AsyncIterable) else _iterate(response.events)
        try:
            next_event = partial(_next_event, response.made_by, events)
            while (event := await while_beating(next_event, beat_s, self._beat)) is not None:
                await self._write(event.raw)
        finally:
            if hasattr(events, "aclose"):
                with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                    await events.aclose()  # not left to the garbage collector

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        """Write and wait until the client has it; the last, where the writer can, is left for `finish` to take along."""
        assert self.writer is not None
        all_sent = self.writer.write((data,))
        while not all_sent and not (last and not self.writer.synchronous):
            with trio.move_on_after(float("inf") if self._send_s is None else self._send_s) as scope:
                all_sent = await self.writer.drain()
            if scope.cancelled_caught:
                raise SendStalled

    @property
    def _send_s(self) -> float | None:
        """The send deadline, where one can be kept: Hypercorn may shield what it sends, and TCP_USER_TIMEOUT must do."""
        writer, connection = self.writer, self._connection
        in_vain = writer is not None and not writer.synchronous and connection is not None and connection.shields_send
        return None if in_vain else self._route.timeouts.send

    async def _in_time(self, step: Callable[[], Awaitable[None]]) -> None:
        """One step of the writer, within the send deadline. Raises `SendStalled`."""
        if self._connection is not None and self._connection.shields_send:
            await step()  # no deadline of ours could end it; TCP_USER_TIMEOUT does
            return
        send_s = self._route.timeouts.send
        with trio.move_on_after(send_s if send_s is not None else float("inf")) as scope:
            await step()
        if scope.cancelled_caught:
            raise SendStalled


async def _iterate(events: Iterable[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


async def _next_event(owner: Owner, events: AsyncIterator[Event]) -> Event | None:
    """The next event of an answer; None at its end. What is raised instead is its interceptor's failure: an `InterceptorError`.

    Also when that says `skip`: an answer that breaks off must not look whole.
    """
    try:
        event = await anext(events, None)
        if event is not None and not isinstance(event, Event):
            raise owner.misused("answer", f"holds a {type(event).__name__}, expected an Event")
    except Exception as error:
        raise owner.failed("events", error) or HookError(owner.name, "events", type(error).__name__) from error
    return event


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header; names in any case."""
    return next((value for key, value in headers if key.lower() == name), None)


def _media_type(headers: Iterable[tuple[bytes, bytes]]) -> str:
    return (_header(headers, b"content-type") or b"").partition(b";")[0].strip().lower().decode("latin-1")


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
