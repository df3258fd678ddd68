"""The head of an upstream response: shown to interceptors, its body classified, the chain opened,
and the client's headers made.

What an interceptor must see and cannot is refused: a coding that was not asked for, a body that
contradicts its head. It knows no relay and sends nothing but informational responses.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Literal

import msgspec

from interceptors import Request, Response, ResponseHead
from interceptors.chain import StreamChain
from interceptors.content import Contradiction, content_coding, is_json_type, media_type

from ..errors import EncodedResponse, NotAStream, interceptor_failed
from ..http.body import has_no_body
from ..http.headers import (
    HeaderList,
    client_origin,
    end_to_end,
    find_header,
    outer_prefix,
    response_headers,
    with_length_of,
    with_request_id,
    without_stale,
)
from ..http.place import ClientSide
from ..http.references import REFERENCE_FIELDS, client_headers
from ..hub import current_time
from ..relay.heartbeat import with_heartbeats
from ..upstream import Fields, UpstreamBody, UpstreamCall
from .context import ExchangeContext
from .observe import observe_body, observe_head
from .response_body import look_at, read_json
from .tapping import show_head
from .upstream_call import ReceivedHead

__all__ = ["PreparedResponse", "on_response", "pass_interim"]

# Bodies of these types begin like JSON and hold several texts: they pass unchanged, unless clients
# read them as one answer.
_JSON_LINES = re.compile("ndjson|jsonl|json-seq|json-lines|json-stream")
_LENGTH = frozenset((b"content-length",))
_NO_NAMES: frozenset[bytes] = frozenset()

BodyKind = Literal["none", "events", "json", "other"]
"""`json`: one JSON text that interceptors see. `none`: the response has no body."""


class ShownHead(msgspec.Struct, frozen=True):
    """A response's head as interceptors left it."""

    status: int
    headers: HeaderList
    media_type: str
    coding: str
    head: ResponseHead | None
    """None without interceptors."""


class _Rewrite(msgspec.Struct, eq=False):
    """What interceptors do to a body, as far as its headers depend on it."""

    stale: bool = False
    """Headers that describe the upstream's body do not describe the client's."""
    unknown_length: bool = False
    json: bytes | None = None
    """The whole body, as interceptors have left it."""


class PreparedResponse(msgspec.Struct, frozen=True):
    """A response that is ready to be sent."""

    status: int
    headers: HeaderList
    """For the client; empty if its head has been sent."""
    kind: BodyKind
    is_chunked: bool
    """The body's length is unknown."""
    may_add: bool
    """Proxy bytes may go out between its events."""
    whole: bytes | None
    """The whole body, if it is JSON that interceptors have seen, or has come with the head. None: a
    relay moves it.
    """
    body: UpstreamBody


async def on_response(ctx: ExchangeContext, received: ReceivedHead) -> PreparedResponse | Response:
    """Call the hooks of a response's head. Returns the response for the client, or an answer that
    replaces it; the response's body is then closed.
    """
    progress, headers = ctx.progress, received.headers
    progress.phase = "on_response"
    fields = dict(headers)
    if (name := ctx.request.request_id_header) is not None:
        progress.upstream_request_id = fields.get(name)
    if not REFERENCE_FIELDS.isdisjoint(fields):
        headers = _with_client_references(ctx, headers, received.call)
    if progress.operation is not None:
        observe_head(ctx, progress.operation, received)
    if progress.request is None and progress.tap is None and ctx.response.writer is None:
        return _passed(ctx, received, headers)
    return await _shown(ctx, received, headers)


async def _shown(
    ctx: ExchangeContext, received: ReceivedHead, headers: HeaderList
) -> PreparedResponse | Response:
    """A response that interceptors or a watcher see, or whose head the client has already."""
    begun = ctx.response.writer is not None
    shown = ShownHead(received.status, headers, received.media_type, received.content_coding, None)
    if ctx.progress.request is not None:
        answer = await _show_head(ctx, ctx.progress.request, received, headers)
        if isinstance(answer, Response):
            received.body.close()
            return answer
        shown = answer
    classify = _promised_kind if begun else _kind_of
    kind = await classify(ctx, shown, received.body)
    rewrite = _Rewrite(stale=kind == "none" and _stands_for_changed(ctx, shown))
    if shown.head is not None and (chain := _open_chain(ctx, shown, kind)) is not None:
        rewrite = await _start_chain(ctx, chain, shown, shown.head, kind, received.body)
        shown = msgspec.structs.replace(shown, headers=shown.head.headers.raw)
    if ctx.progress.tap is not None:
        show_head(ctx.progress, shown.status, shown.media_type, kind == "events", shown.coding)
    headers, whole = [], rewrite.json
    if not begun:
        headers = _headers_for_client(ctx, received, shown, kind, rewrite)
        if whole is None and ctx.progress.chain is None and received.body.at_hand:
            whole = _whole_body(ctx, received.body, kind)
            if whole and ctx.progress.tap is not None:
                ctx.progress.tap.show_whole(whole)
    is_chunked = kind != "none" and b"content-length" not in dict(headers)
    return PreparedResponse(
        status=shown.status,
        headers=headers,
        kind=kind,
        is_chunked=is_chunked,
        may_add=kind == "events" and is_chunked and shown.coding == "identity",
        whole=whole,
        body=received.body,
    )


def _passed(ctx: ExchangeContext, received: ReceivedHead, headers: HeaderList) -> PreparedResponse:
    """A response that neither interceptors nor a watcher see: its body passes as it is."""
    kind: BodyKind = "other"
    if has_no_body(ctx.request.method, received.status):
        kind = "none"
    elif received.media_type == "text/event-stream":
        kind = "events"
    is_chunked = kind != "none" and b"content-length" not in dict(headers)
    may_add = kind == "events" and is_chunked and received.content_coding == "identity"
    if kind == "events" or received.status == 204:
        dropped = _LENGTH if received.status == 204 else _NO_NAMES
        headers = response_headers(headers, sse=kind == "events", dropped=dropped)
    headers = _signed(ctx, headers)
    whole = _whole_body(ctx, received.body, kind) if received.body.at_hand else None
    return PreparedResponse(
        received.status, headers, kind, is_chunked, may_add, whole, received.body
    )


def _whole_body(ctx: ExchangeContext, body: UpstreamBody, kind: BodyKind) -> bytes | None:
    """The body of a response that has come with its head; None for events that a relay must see,
    because the route resumes streams, or they are watched or observed.
    """
    progress = ctx.progress
    if kind == "events" and (
        progress.tap is not None
        or progress.is_observed
        or progress.upstream is None
        or progress.upstream.may_repeat
    ):
        return None
    whole = body.take()
    if whole:
        progress.first_body_at = current_time()
        if progress.is_observed:
            observe_body(ctx, whole)
    return whole


async def _show_head(
    ctx: ExchangeContext, request: Request, received: ReceivedHead, headers: HeaderList
) -> ShownHead | Response:
    route, kind, coding = ctx.route, received.media_type, received.content_coding
    assert received.call.endpoint is not None
    route.dialect.note_response(
        request,
        received.call.endpoint,
        is_encoded=coding != "identity",
        headers=ctx.request.headers,
    )
    head = ResponseHead(received.status, headers, request)
    if route.chain.sees_heads:
        answer = await route.chain.on_response(head)
        if answer is not None:
            return answer
        try:
            kind, coding = media_type(head.headers.raw), content_coding(head.headers.raw)
        except Contradiction as error:
            raise interceptor_failed(
                f"an interceptor has changed a response whose {error}"
            ) from None
    return ShownHead(head.status, head.headers.raw, kind, coding, head)


async def _promised_kind(ctx: ExchangeContext, shown: ShownHead, body: UpstreamBody) -> BodyKind:
    """As `_kind_of`, after an early heartbeat has promised an event stream. Raises `NotAStream`."""
    if shown.status == 200 and shown.coding == "identity":
        response = ctx.response
        find_kind = partial(_kind_of, ctx, shown, body)
        kind = await with_heartbeats(find_kind, response.heartbeat_s, response.send_heartbeat)
        if kind == "events":
            return kind
    raise NotAStream(ctx.route.upstream, shown.status)


async def _kind_of(ctx: ExchangeContext, shown: ShownHead, body: UpstreamBody) -> BodyKind:
    """What the body is. Waits for its first bytes if these decide."""
    route, request = ctx.route, ctx.progress.request
    if has_no_body(ctx.request.method, shown.status):
        return "none"
    if shown.media_type == "text/event-stream":
        return "events"
    if request is None:
        return "other"
    looks_like = await look_at(ctx, shown.media_type, shown.coding, body)
    if looks_like == "events":
        return "events"
    if not route.chain.sees_json:
        return "other"
    if is_json_type(shown.media_type):
        return "json"
    one_answer = route.dialect.has_one_answer(request.path)
    if looks_like == "json" and (one_answer or not _JSON_LINES.search(shown.media_type)):
        return "json"
    # No interceptor can look into an encoded answer; clients decode it, and ignore its type.
    return "json" if one_answer and shown.coding != "identity" else "other"


def _stands_for_changed(ctx: ExchangeContext, shown: ShownHead) -> bool:
    """Whether a response without a body describes one that interceptors may change. Its validators
    and its length may then be wrong (RFC 9110, section 9.3.2). A 304 has no type, and may
    describe any body.
    """
    chain, request = ctx.route.chain, ctx.progress.request
    if request is None or not chain.sees_streams:
        return False
    if request.method != "HEAD" and shown.status != 304:
        return False
    return (
        shown.media_type == "text/event-stream"
        or (chain.sees_json and is_json_type(shown.media_type))
        or (shown.status == 304 and not shown.media_type)
        or ctx.route.dialect.may_be_mislabelled(request.path)
    )


def _open_chain(ctx: ExchangeContext, shown: ShownHead, kind: BodyKind) -> StreamChain | None:
    """The interceptors of the body; None if none of them sees it. Raises what a hook raises."""
    route, request = ctx.route, ctx.progress.request
    is_json = kind == "json"
    if request is None or not (is_json or (kind == "events" and route.chain.sees_streams)):
        return None
    ctx.progress.chain = chain = route.chain.open_stream(
        request, ctx.worker.pools.json, ctx.buffers, route.limits.max_event_bytes, json=is_json
    )
    if chain.failure is not None:
        raise chain.failure
    if ctx.progress.tap is not None:
        chain.watch(ctx.progress.tap)
    return chain


async def _start_chain(
    ctx: ExchangeContext,
    chain: StreamChain,
    shown: ShownHead,
    head: ResponseHead,
    kind: BodyKind,
    body: UpstreamBody,
) -> _Rewrite:
    """Start the stream's hooks, and run them over a JSON body. Raises `EncodedResponse` if they
    cannot read the body, and as `read_json`.
    """
    is_plain = shown.coding == "identity"
    if chain.wants_events and not is_plain and not chain.pass_unseen():
        raise EncodedResponse(ctx.route.upstream)
    chain.queue.accepts = kind == "events" and is_plain
    wants_body = chain.wants_events and is_plain
    # an interceptor's task may add events
    unknown_length = wants_body or (chain.queue.accepts and chain.has_members)
    await chain.start(head)
    if kind == "json" and chain.wants_events:
        json = await read_json(ctx, chain, body)
        if json is None:  # too large for interceptors: its length is right
            return _Rewrite()
        return _Rewrite(stale=json.changed, unknown_length=unknown_length, json=json.text)
    return _Rewrite(stale=unknown_length, unknown_length=unknown_length)


def _headers_for_client(
    ctx: ExchangeContext,
    received: ReceivedHead,
    shown: ShownHead,
    kind: BodyKind,
    rewrite: _Rewrite,
) -> HeaderList:
    raw = shown.headers
    if rewrite.stale:
        raw = without_stale(raw, received.headers, length=kind == "none")
    if shown.head is not None and kind != "none":
        had_body = not has_no_body(ctx.request.method, received.status)
        raw = with_length_of(raw, received.headers if had_body else [])
    # RFC 9110, section 8.6: a 204 has no length
    dropped = _LENGTH if rewrite.unknown_length or shown.status == 204 else _NO_NAMES
    headers = _signed(ctx, response_headers(raw, sse=kind == "events", dropped=dropped))
    if rewrite.json is not None:
        headers.append((b"content-length", b"%d" % len(rewrite.json)))
    return headers


def _signed(ctx: ExchangeContext, headers: HeaderList) -> HeaderList:
    """The headers for the client, with the request's id, which pages may read."""
    name, cors = ctx.request.request_id_header, ctx.response.cors
    headers = with_request_id(headers, name, ctx.request.request_id)
    return headers if cors is None else cors.expose(headers, name)


async def pass_interim(
    ctx: ExchangeContext, call: UpstreamCall, status: int, headers: Fields
) -> None:
    """Send an informational response of the upstream to the client at once. Raises `ClientGone`
    and `SendStalled`.
    """
    passed = end_to_end(headers)
    if not REFERENCE_FIELDS.isdisjoint(dict(passed)):
        passed = _with_client_references(ctx, passed, call)
    await ctx.response.send_interim(status, passed)


def _with_client_references(
    ctx: ExchangeContext, received: HeaderList, call: UpstreamCall
) -> HeaderList:
    """A response's headers with URL references that lead the client to this route."""
    assert call.endpoint is not None
    request = ctx.request
    origin = client_origin(request.headers, scheme=request.scheme)
    changed = ctx.progress.request
    client = ClientSide(
        path=request.target.path.decode("latin-1"),
        hosts=(
            (find_header(request.headers, b"host") or b"").decode("latin-1"),
            (find_header(call.headers, b"host") or b"").decode("latin-1"),
            "" if origin is None else origin.partition("://")[2],
        ),
        asked=None if changed is None else changed.raw_path.decode("latin-1"),
        origin=origin,
        outer=outer_prefix(request.headers).decode("latin-1"),
    )
    return client_headers(received, ctx.route.places[call.endpoint], client)
