"""One exchange as a story: `serve` has its phases in order, each returns what the next one needs.

    read_length -> on_request -> call_upstream -> on_response -> send_head -> relay -> finish
                        |                              |
                        +--------- send_answer <-------+      (an interceptor or the proxy answers)

Admission comes before, in `request`; telling the client of a failure, counting and logging come
after, in `exchange`. A phase raises what goes wrong: `UpstreamFailure`, `RequestRefused`,
`InterceptorError`, `ClientGone`, `SendStalled`; `serve` hands it to the ending.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from functools import partial

import msgspec

from interceptors import Outcome, Request, Response
from interceptors.message import address
from interceptors.operation import Operation

from ..http.headers import forwards_left, refuse_trace
from ..relay import EventGaps, Mover, open_relay
from ..relay.heartbeat import with_heartbeats
from ..relay.resume import Resume
from ..upstream import UpstreamBody
from ..worker.collecting import CollectedBody, too_large
from .answer import send_answer
from .context import ExchangeContext
from .observe import observe_request, open_observer
from .on_response import PreparedResponse, on_response, pass_interim
from .reconnection import move_over_connections
from .request_body import Body
from .tapping import copy_unseen
from .tracing import join_trace, pass_trace
from .upstream_call import ReceivedHead, UpstreamRequest

__all__ = ["serve"]

_COMPLETED = Outcome.COMPLETED  # reading an enum member is slower than reading a global
_SMALL_BODY_BYTES = 16384
_ADDRESS_S = 0.1
"""How long a refusal on an MCP route waits for the request's id."""
_FRAMING = frozenset((b"transfer-encoding",))
# Interceptors may change the body, and a range of the original is not a range of the changed one
# (RFC 9110, section 14.2).
_FRAMING_AND_RANGES = _FRAMING | frozenset((b"range", b"if-range"))


_FOR_PROXIES = frozenset(("OPTIONS", "TRACE"))
"""Methods that a proxy may answer itself."""


class OutgoingRequest(msgspec.Struct, frozen=True):
    """What goes upstream."""

    request: Request | None
    """As interceptors left it; None without interceptors."""
    body: Body
    length: bytes | None
    """The Content-Length; b"": not known; None: no body."""
    expects_continue: bool
    """The client waits for a 100, and the upstream decides."""


class ResponseStream(msgspec.Struct, frozen=True):
    """A response whose head the client has."""

    body: UpstreamBody
    is_sse: bool


async def serve(ctx: ExchangeContext) -> None:
    """Serve one admitted request up to the end of its response. The ending notes a failure."""
    current: OutgoingRequest | PreparedResponse | Response | ResponseStream
    outcome = _COMPLETED
    try:
        try:
            current = await on_request(ctx, await read_length(ctx))
            if isinstance(current, OutgoingRequest):
                current = await on_response(ctx, await call_upstream(ctx, current))
            if isinstance(current, Response):
                outcome = await send_answer(ctx, current)
            else:
                current = await send_head(ctx, current)
                if not current.body.complete:
                    await relay(ctx, current)
                if ctx.progress.chain is not None and ctx.progress.chain.ended:
                    outcome = Outcome.INTERCEPTED
        finally:
            ctx.close()
        ctx.progress.phase = "finish"
        await ctx.response.finish()
        ctx.complete(outcome)
    except Exception as error:
        ctx.ending.fail(error, ctx.route.name)


async def read_length(ctx: ExchangeContext) -> bytes | None:
    """The Content-Length of the request; b"" if it is not known, None if there is no body.

    An HTTP/2 request may have a body without a Content-Length, so its first message decides. If it
    has not arrived, `on_request` waits for it. Raises `RequestRefused` for bad framing.
    """
    ctx.progress.phase = "read_body"
    request, body = ctx.request, ctx.body
    length = request.content_length
    if length is None:
        if request.has_transfer_encoding:
            length = b""
        elif request.is_http2:
            # The end of a request without a body arrives with its head.
            has_body = body.has_begun() is False or await body.first_message()
            length = b"" if has_body else _no_length(ctx)
    body.expects_body = length not in (None, b"0")
    return length


def _no_length(ctx: ExchangeContext) -> bytes | None:
    # RFC 9110, section 8.6: methods that expect a body announce an empty one. HTTP/2 clients do
    # not.
    return b"0" if ctx.request.method in ("POST", "PUT", "PATCH") else None


async def on_request(ctx: ExchangeContext, length: bytes | None) -> OutgoingRequest | Response:
    """Call the request's hooks. Returns the request for the upstream, or an answer to it.

    Interceptors that need only the head run before the body is awaited.
    """
    ctx.progress.phase = "on_request"
    answer = _own_answer(ctx) if ctx.request.method.upper() in _FOR_PROXIES else None
    if answer is not None:
        ctx.watch_client()
        return answer
    has_body, chain = ctx.body.expects_body, ctx.route.chain
    if ctx.route.observer is not None and ctx.request.method == "POST":
        ctx.progress.operation = Operation(ctx.route.dialect.name)
    body: Body = b""
    expects_continue = False
    if has_body:
        ctx.body.watch(ctx.on_disconnect)
    else:
        ctx.watch_client()
    request = _request_for_hooks(ctx, has_body) if chain.owners else None
    if request is not None and chain.sees_requests:
        answer = await chain.on_request_head(request)
    if has_body:
        if answer is not None:
            await _address(ctx, request, answer, length)
        else:
            body, length, expects_continue = await _body_for_upstream(ctx, request, length)
        ctx.watch_client()
    if answer is None and request is not None and (chain.wants_body or request.body_replaced):
        if chain.wants_body:
            answer = await _show_body(ctx, request, body)
        body = request.body
        if body or request.body_replaced:
            length = b"%d" % len(body)
    if answer is not None:
        return answer
    if ctx.progress.operation is not None:
        body = await observe_request(ctx, ctx.progress.operation, request, body, length)
    return OutgoingRequest(request, body, length, expects_continue)


async def _body_for_upstream(
    ctx: ExchangeContext, request: Request | None, length: bytes | None
) -> tuple[Body, bytes | None, bool]:
    """The body that arrives, its length as far as it is known, and whether the upstream asks for
    it. Raises `RequestRefused`.
    """
    replaced = request is not None and request.body_replaced
    _check_length(ctx, length, collects=ctx.route.chain.wants_body and not replaced)
    if replaced:
        return b"", length, False
    if length and (whole := ctx.body.take_whole()):
        return whole, length, False
    upstream_asks = _upstream_asks(ctx, request)
    body, length = await _open_body(ctx, length, asks=not upstream_asks)
    return body, length, upstream_asks


def _own_answer(ctx: ExchangeContext) -> Response | None:
    """The answer to a request for the proxy itself. Raises `RequestRefused`."""
    request, cors = ctx.request, ctx.admission.cors
    refuse_trace(request.method)
    if ctx.admission.is_preflight and cors is not None:
        return cors.answer_preflight(request.headers)
    if request.method == "OPTIONS" and forwards_left(request.headers) == 0:
        return Response(status=204)
    return None


def _request_for_hooks(ctx: ExchangeContext, has_body: bool) -> Request:
    route, client = ctx.route, ctx.request
    hidden = _FRAMING_AND_RANGES if route.chain.sees_streams else _FRAMING
    request = Request(
        method=client.method,
        path=client.target.normal,
        raw_path=client.target.path,
        query=client.target.query,
        headers=[field for field in client.headers if field[0] not in hidden],
        body=None,
        route=route.name,
        dialect=route.dialect.name,
        client=client.client,
        has_body=has_body,
        request_id=client.request_id,
    )
    request.operation = ctx.progress.operation
    request.target = client.target.raw
    request.sessions = route.sessions
    if ctx.progress.span is not None:
        request.trace_id = ctx.progress.span.trace_id
    nursery = ctx.nursery
    assert nursery is not None
    request.spawn = lambda *task: nursery.start_soon(ctx.run_task, *task)
    ctx.progress.request = request
    return request


async def _address(
    ctx: ExchangeContext, request: Request | None, answer: Response, length: bytes | None
) -> None:
    """On MCP routes, put the request's id into a refusal, if the body is small and arrives at once.

    The length need not be announced: the official C# SDK sends chunks, and over HTTP/2 many clients
    leave it out.
    """
    if answer.unaddressed is None or request is None or request.body_replaced:
        return
    if ctx.body.is_withheld:
        return
    if ctx.body.complete or not length or int(length) <= _SMALL_BODY_BYTES:
        request.set_body(await ctx.body.small_body(_SMALL_BODY_BYTES, _ADDRESS_S))
        address(request, answer)


def _check_length(ctx: ExchangeContext, length: bytes | None, *, collects: bool) -> None:
    limit = ctx.route.limits.max_request_body_bytes
    if collects:
        limit = min(limit, ctx.worker.config.reverse_proxy.limits.max_collected_bytes)
    if length and int(length) > limit:
        raise too_large(limit)


def _upstream_asks(ctx: ExchangeContext, request: Request | None) -> bool:
    """Whether `Expect: 100-continue` goes up (RFC 9110, section 10.1.1): the client waits, no
    interceptor reads the body, and neither an interceptor nor the configuration has removed it.
    """
    return (
        ctx.body.is_withheld
        and not ctx.route.chain.wants_body
        and b"expect" not in ctx.route.headers.removed
        and (request is None or "expect" in request.headers)
    )


async def _open_body(
    ctx: ExchangeContext, length: bytes | None, *, asks: bool
) -> tuple[Body, bytes | None]:
    """The body for the upstream, and its length as far as it is known now. `asks`: a client that
    waits for a 100 gets it.
    """
    if asks:
        await ctx.response.ask_for_body()
        length = await _settle_length(ctx, length)
    ctx.body.has_begun()  # what has arrived and is not acceptable must not reach the upstream
    ctx.body.check_size()
    return ctx.body.stream(int(length) if length else None), length


async def _settle_length(ctx: ExchangeContext, length: bytes | None) -> bytes | None:
    """Wait for the body's first message if it decides whether there is a body, or probably contains
    all of it, so that a small body is sent with the head.
    """
    if length == b"" and ctx.request.is_http2:
        return length if await ctx.body.first_message() else _no_length(ctx)
    if length and int(length) <= _SMALL_BODY_BYTES:
        await ctx.body.first_message()
    return length


async def _show_body(ctx: ExchangeContext, request: Request, body: Body) -> Response | None:
    """Collect the body, unless an interceptor has replaced it, and call the hooks that want it."""
    if not request.body_replaced:
        worker = ctx.worker
        limit = worker.config.reverse_proxy.limits.max_collected_bytes
        ctx.collected = CollectedBody(worker.bodies, limit)
        request.set_body(await ctx.body.collect(body, ctx.collected.hold))
        if ctx.progress.span is not None:
            join_trace(ctx.progress.span, ctx.route, request)
    answer = await ctx.route.chain.on_request_body(request)
    if answer is None and ctx.progress.span is not None:
        pass_trace(ctx.progress.span, ctx.route, request)
    return answer


def call_upstream(ctx: ExchangeContext, outgoing: OutgoingRequest) -> Awaitable[ReceivedHead]:
    """Send the request and wait for the head of the response. Early heartbeats go out meanwhile."""
    ctx.progress.phase = "call_upstream"
    response = ctx.response
    heartbeat_s = response.early_heartbeat_s if ctx.route.heartbeat.early else None
    upstream = ctx.progress.upstream = UpstreamRequest(
        ctx.worker.via,
        ctx.route,
        ctx.request,
        outgoing.request,
        outgoing.length,
        ctx.nursery,
        partial(pass_interim, ctx),
        response.ask_for_body if outgoing.expects_continue else None,
        identity=(
            ctx.route.chain.sees_streams
            or heartbeat_s is not None
            or ctx.progress.operation is not None
        ),
        span=ctx.progress.span,
    )
    if heartbeat_s is None:
        return upstream.send(outgoing.body)
    return with_heartbeats(
        partial(upstream.send, outgoing.body), heartbeat_s, response.send_early_heartbeat
    )


async def send_head(ctx: ExchangeContext, prepared: PreparedResponse) -> ResponseStream:
    """Send the head, with a body that is here already; an early heartbeat has sent it before."""
    ctx.progress.phase = "send_head"
    response = ctx.response
    if response.writer is None:
        sent = response.start(
            prepared.status,
            prepared.headers,
            chunked=prepared.is_chunked,
            whole=prepared.whole is not None,
            may_add=prepared.may_add,
        )
        if not sent:
            await response.flush()
        if prepared.whole:
            await response.write(prepared.whole, last=True)
    ctx.forget_request_body(prepared.body)
    return ResponseStream(prepared.body, prepared.kind == "events")


def relay(ctx: ExchangeContext, stream: ResponseStream) -> Awaitable[None]:
    """Move the body, without its end, when awaited; over several connections if the route resumes
    streams. Not a coroutine: its frame would stay for as long as the stream.
    """
    ctx.progress.phase = "relay"
    route, response, upstream = ctx.route, ctx.response, ctx.progress.upstream
    assert response.writer is not None
    assert upstream is not None
    resume: Resume | None = None
    if response.status == 200 and response.may_add and upstream.may_repeat:
        resume = Resume(route.reconnect, route.dialect, route.limits.max_event_bytes)
    chain, observer = ctx.progress.chain, open_observer(ctx)
    gaps: EventGaps | None = None
    if stream.is_sse and chain is not None and chain.wants_events:
        gaps = ctx.worker.metrics.routes[route.name].gaps_of_stream()
    ctx.progress.relay = moved = open_relay(
        stream.body,
        response.writer,
        chain,
        ctx.worker.pools,
        ctx.buffers,
        sse=stream.is_sse,
        wrote_before_body=response.writer.bytes_sent > 0,
        resume=resume,
        gaps=gaps,
        observe=None if observer is None else observer.feed,
    )
    if ctx.progress.tap is not None:
        copy_unseen(ctx.progress.tap, moved)
    listening = stream.is_sse and ctx.request.method in route.listening
    if listening:
        response.send_probes()
    mover = Mover(
        moved,
        ctx.worker.hub if response.writer.synchronous else None,
        idle_s=math.inf if listening else route.timeouts.idle,
        flush=response.flush,
        heartbeat_s=response.heartbeat_s if response.may_add else None,
    )
    return mover.run() if resume is None else move_over_connections(ctx, upstream, mover, resume)
