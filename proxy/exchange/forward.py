"""The way of one exchange: the request up, the response down, and its interceptors' say in both.

It raises what goes wrong and leaves it to the exchange to note it, to tell the client, and to
count.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Awaitable, Callable
from functools import partial
from typing import Any

import trio

from interceptors import Outcome, Request, Response, ResponseHead
from interceptors.chain import EventCounts, StreamChain
from interceptors.content import Contradiction, content_coding, is_json_type, media_type
from interceptors.hooks import Owner
from interceptors.message import address, forget_body
from pools import BufferScope

from ..downstream import ClientConnection, Scope, Send
from ..errors import EncodedResponse, NotAStream, interceptor_failed
from ..http import Target
from ..http.headers import (
    HeaderList,
    client_origin,
    end_to_end,
    find_header,
    forwards_left,
    outer_prefix,
    refuse_trace,
    with_length_of,
    without_stale,
)
from ..http.place import ClientSide
from ..http.references import client_headers, hold_references
from ..relay import Mover, Relay, open_relay
from ..relay.heartbeat import with_heartbeats
from ..relay.resume import Resume
from ..upstream import Endpoint, Fields, UpstreamBody, UpstreamCall, UpstreamResponse
from ..worker.collecting import CollectedBody, too_large
from ..worker.routes import Route
from ..worker.worker import Worker
from .client_response import Reply
from .cors import Cors
from .intercepted import send_intercepted
from .json_body import JsonBody, LooksLike, look_at
from .reconnection import move_over_connections
from .request_body import RequestBody
from .upstream_call import UpstreamRequest

__all__ = ["Forward"]

# Types whose bodies begin like JSON, and are streams of JSON texts: they pass as they come, except
# in answers.
_JSON_LINES = re.compile("ndjson|jsonl|json-seq|json-lines|json-stream")
_SMALL_BODY_BYTES = 16384
_FRAMING = frozenset((b"transfer-encoding",))
# Interceptors may change what they see, and a part of the server's body is not a part of that (RFC
# 9110, section 14.2).
_FRAMING_AND_RANGES = _FRAMING | frozenset((b"range", b"if-range"))
_ADDRESS_S = 0.1
"""How long a refusal on an MCP route waits for the id that it answers."""


class Forward:
    """Takes one admitted request to its route's upstream and the response back: `begin`, await what
    `move` returns, and `close`.

    What it awaits is awaited by its owner, and `begin` is over when the head has left: a stream may
    last for hours, and every frame below it is memory.
    """

    __slots__ = (
        "_answer_outcome",
        "_answered_by",
        "_collected",
        "_inbound",
        "_json",
        "_preflight",
        "_route",
        "_scope",
        "_sse",
        "_target",
        "_worker",
        "asking",
        "chain",
        "relay",
        "reply",
        "request",
    )

    def __init__(
        self,
        worker: Worker,
        route: Route,
        scope: Scope,
        target: Target,
        inbound: RequestBody,
        send: Send,
        connection: ClientConnection | None,
        *,
        cors: Cors | None = None,
        preflight: bool = False,
    ) -> None:
        """`cors`: for a request of an allowed origin; `preflight`: it is one,
        and is answered here.
        """
        self._worker = worker
        self._route = route
        self._scope = scope
        self._target = target
        self._inbound = inbound
        self._sse = False
        self._json: JsonBody | None = None
        self._preflight = preflight
        self._collected: CollectedBody | None = None
        self.reply = Reply(worker, route, scope, inbound, send, connection, cors)
        self.asking: UpstreamRequest | None = None
        """None when the upstream is not asked."""
        self.relay: Relay | None = None
        self.request: Request | None = None
        """As interceptors see it; None when there is none."""
        self.chain: StreamChain | None = None
        """The interceptors of the response, from when its head has come. Whoever made this closes
        it.
        """
        self._answered_by: str | None = None
        self._answer_outcome: Outcome | None = None  # set with an answer that is not the upstream's

    @property
    def interceptor(self) -> str | None:
        """The one that has answered, or ended the stream."""
        if self._answered_by is not None:
            return self._answered_by
        return self.chain.ended_by if self.chain is not None else None

    @property
    def outcome(self) -> Outcome:
        """Of a response that the client has got whole: whose it was."""
        if self._answer_outcome is not None:
            return self._answer_outcome
        return (
            Outcome.INTERCEPTED
            if self.chain is not None and self.chain.ended
            else Outcome.COMPLETED
        )

    @property
    def counts(self) -> EventCounts | None:
        """What became of the events; None when no interceptor sees them."""
        return self.chain.counts if self.chain is not None and self.chain.wants_events else None

    @property
    def first_body_at(self) -> float | None:
        """Trio's time of the first bytes of the response's body."""
        source = self.relay or self._json
        return source.first_read if source is not None else None

    async def begin(
        self,
        buffers: BufferScope,
        nursery: trio.Nursery,
        watch_client: Callable[[trio.Nursery], None],
        on_gone: Callable[[], None],
        run_task: Callable[
            [Owner, Callable[..., Awaitable[object]], tuple[Any, ...]], Awaitable[None]
        ],
    ) -> None:
        """Send the request, and all of the response but a body that is to be relayed.
        `watch_client` lets the exchange end when the client leaves, and takes in the body;
        `on_gone` is for the time before that; `run_task` runs an interceptor's task.

        Nothing of a body is waited for before the interceptors that do not want it have seen the
        head. Raises `UpstreamFailure`, `RequestRefused`, `InterceptorError`, `ClientGone`,
        `SendStalled`, and `BadRequest` for a request that cannot be sent.
        """
        inbound, chain = self._inbound, self._route.chain
        length = await self._announced_length()
        inbound.expects_body = has_body = length not in (None, b"0")
        if (
            own := self._own_answer()
        ) is not None:  # neither interceptors nor the upstream see the request
            watch_client(nursery)
            await self._answer(own, Outcome.COMPLETED)
            return
        if has_body:
            inbound.watch(on_gone)
        else:
            watch_client(nursery)
        request, answer = self.request, None
        if chain.owners:
            request = self.request = self._request_for_hooks(has_body=has_body)
            request.spawn = lambda owner, async_fn, args: nursery.start_soon(
                run_task, owner, async_fn, args
            )
            if chain.sees_requests:
                answer = await chain.on_request_head(request)
        body: bytes | AsyncIterable[bytes] = b""
        if has_body:
            if answer is not None:
                await self._address(answer, length)
            elif length and int(length) > (limit := self._route.limits.max_request_body_bytes):
                raise too_large(limit)
            elif not self._has_new_body:
                length = await self._length_of(length)
                inbound.check_size()
                body = inbound.stream(int(length) if length else None)
            watch_client(nursery)
        if answer is None and chain.wants_body:
            assert request is not None
            answer = await self._show_body(request, body)
            body = request.body
            if request.body or request.body_replaced:
                length = b"%d" % len(request.body)
        elif request is not None and request.body_replaced:
            body = request.body
            length = b"%d" % len(request.body)
        if answer is None:
            answer = await self._ask_upstream(request, length, body, nursery, buffers)
        if answer is not None:
            await self._answer(answer, answer.made_by.outcome)

    def _own_answer(self) -> Response | None:
        """The answer to a request that is for the proxy itself. Raises `RequestRefused`."""
        headers = self._scope["headers"]
        refuse_trace(self._scope["method"])
        if self._preflight and self.reply.cors is not None:
            return self.reply.cors.answer_preflight(headers)
        if self._scope["method"] == "OPTIONS" and forwards_left(headers) == 0:
            return Response(status=204)
        return None

    async def _announced_length(self) -> bytes | None:
        """The Content-Length of the request, b"" if it is not known, None if there is no body: by
        its head, and by what of an HTTP/2 request has come with that. Raises `RequestRefused` for
        framing that is faulty.
        """
        length = find_header(self._scope["headers"], b"content-length")
        chunked = find_header(self._scope["headers"], b"transfer-encoding") is not None
        if length is not None:
            return length
        if chunked or self._scope["http_version"] != "2":
            return b"" if chunked else None
        if self._inbound.has_begun() is False:
            return b""  # the end of a request without a body comes with its head
        return b"" if await self._inbound.first_message() else self._no_length

    async def _length_of(self, length: bytes | None) -> bytes | None:
        """The same, after a wait for a body that is small, or of which only its first message tells
        whether there is one.
        """
        if length == b"" and self._scope["http_version"] == "2":
            return length if await self._inbound.first_message() else self._no_length
        if length and int(length) <= _SMALL_BODY_BYTES:
            await (
                self._inbound.first_message()
            )  # usually it brings all of it, which then goes up with the head
        return length

    async def _address(self, answer: Response, length: bytes | None) -> None:
        """On MCP routes: put the request's id into a refusal that has been decided, if the body is
        small, and here in no time.

        Its length need not be announced: the official C# SDK sends it in chunks, and over HTTP/2
        many leave it out.
        """
        if answer.unaddressed is None or self.request is None or self._has_new_body:
            return
        if self._inbound.complete or not length or int(length) <= _SMALL_BODY_BYTES:
            self.request.set_body(await self._inbound.small_body(_SMALL_BODY_BYTES, _ADDRESS_S))
            address(self.request, answer)

    @property
    def _no_length(self) -> bytes | None:
        """RFC 9110, section 8.6: a request whose method expects a body says that it has none.
        HTTP/2 clients leave that out.
        """
        return b"0" if self._scope["method"] in ("POST", "PUT", "PATCH") else None

    @property
    def _has_new_body(self) -> bool:
        """An interceptor has replaced the body."""
        return self.request is not None and self.request.body_replaced

    async def _show_body(
        self, request: Request, body: bytes | AsyncIterable[bytes]
    ) -> Response | None:
        """Collect the body, unless there is a new one, and show it to the interceptors that want
        it; the answer of one of them.
        """
        if not request.body_replaced:
            worker = self._worker
            self._collected = CollectedBody(
                worker.bodies, worker.config.reverse_proxy.limits.max_collected_bytes
            )
            request.set_body(await self._inbound.collect(body, self._collected.hold))
        return await self._route.chain.on_request_body(request)

    def _let_go_of_body(self, request: Request | None, response: UpstreamBody) -> None:
        """The head of the response has left: a stream may last for hours, and needs the body of its
        request no more.
        """
        if request is not None:
            forget_body(request)
        if self._collected is not None and (response.upload is None or response.upload.complete):
            self._collected.release()

    async def _answer(self, answer: Response, outcome: Outcome) -> None:
        """Send what is answered instead of the upstream."""
        self._inbound.forget_body()
        self._answer_outcome = outcome
        self._answered_by = None if answer.made_by is None else answer.made_by.name
        await send_intercepted(answer, self.reply)

    def move(self, buffers: BufferScope) -> Awaitable[None] | None:
        """What moves the body of the response, all but its end, when awaited; None if none is left
        to be moved.

        Raises, when awaited, as `begin`.
        """
        if (
            self._answer_outcome is not None
            or self.asking is None
            or self.asking.response_body is None
            or self.asking.response_body.complete
        ):
            return None
        return self._relay_body(self.asking, self.asking.response_body, buffers)

    def close(self) -> None:
        """Give back what the upstream has lent. Synchronous; safe to call again."""
        if self._collected is not None:
            self._collected.release()
        if self.asking is not None and self.asking.response_body is not None:
            self.asking.response_body.close()
            self._inbound.forget_body()

    def _request_for_hooks(self, *, has_body: bool) -> Request:
        hidden = _FRAMING_AND_RANGES if self._route.chain.sees_streams else _FRAMING
        request = Request(
            method=self._scope["method"],
            path=self._target.normal,
            raw_path=self._target.path,
            query=self._target.query,
            headers=[field for field in self._scope["headers"] if field[0] not in hidden],
            body=None,
            route=self._route.name,
            dialect=self._route.dialect.name,
            client=self._scope["client"][0] if self._scope.get("client") else None,
            has_body=has_body,
        )
        request.target = self._target.raw
        request.sessions = self._route.sessions
        return request

    async def _ask_upstream(
        self,
        request: Request | None,
        body: bytes | None,
        stream: bytes | AsyncIterable[bytes],
        nursery: trio.Nursery,
        buffers: BufferScope,
    ) -> Response | None:
        """The request to the upstream, the head of its response to the client. What an interceptor
        wants to answer instead.
        """
        route, reply = self._route, self.reply
        self.asking = asking = UpstreamRequest(
            self._worker,
            route,
            self._scope,
            self._target,
            request,
            body,
            nursery,
            self._pass_interim,
            identity=route.chain.sees_streams or reply.early_beat_s is not None,
        )
        response = await with_heartbeats(
            partial(asking.send, stream), reply.early_beat_s, reply.beat_early
        )
        answer = await self._respond(response, asking, request, buffers)
        if asking.response_body is not None:
            if answer is not None:
                asking.response_body.close()
            else:
                self._let_go_of_body(request, asking.response_body)
        return answer

    async def _respond(
        self,
        response: UpstreamResponse,
        asking: UpstreamRequest,
        request: Request | None,
        buffers: BufferScope,
    ) -> Response | None:
        """Show the head to the interceptors, find out what the body is, open the chain, choose the
        writer, send the head, and of a JSON body all of it.
        """
        route, upstream = self._route, asking.response_body
        assert upstream is not None
        status, raw_headers = response.status, asking.response_headers
        kind, encoding = asking.media_type, asking.content_coding
        if hold_references(raw_headers):
            raw_headers = self._with_client_references(response.endpoint, asking.host, raw_headers)
        head: ResponseHead | None = None
        if request is not None:
            route.dialect.note_response(
                request,
                response.endpoint,
                is_encoded=encoding != "identity",
                headers=self._scope["headers"],
            )
            head = ResponseHead(status, raw_headers, request)
            answer = await route.chain.on_response(head) if route.chain.sees_heads else None
            if answer is not None:
                return answer
            status, raw_headers = head.status, head.headers.raw
            if route.chain.sees_heads:
                kind, encoding = _content_of(raw_headers)
        bodiless = self.reply.is_bodiless(status)
        begun = self.reply.writer is not None  # by an early heartbeat
        if begun and (status != 200 or encoding != "identity"):
            raise NotAStream(route.upstream, status)
        looks_like: LooksLike | None = None
        self._sse = not bodiless and kind == "text/event-stream"
        if request is not None and not bodiless and not self._sse:
            look = partial(self._looks_like, buffers, kind, encoding, upstream)
            looks_like = await with_heartbeats(
                look, self.reply.heartbeat_s if begun else None, self.reply.send_heartbeat
            )
            self._sse = looks_like == "events"
        if begun and not self._sse:
            raise NotAStream(route.upstream, status)
        json = (
            not bodiless
            and not self._sse
            and route.chain.sees_json
            and (
                is_json_type(kind)
                or (looks_like == "json" and self._is_one_json(kind))
                or self._is_hidden(encoding)
            )
        )
        if (self._sse and route.chain.sees_streams) or json:
            assert request is not None
            self.chain = route.chain.open_stream(
                request, self._worker.pools.json, buffers, route.limits.max_event_bytes, json=json
            )
            if self.chain.failure is not None:
                raise self.chain.failure
        dropped: frozenset[bytes] = frozenset()
        changed: bytes | None = None
        stale = bodiless and self._is_unseen_body(status, kind)
        if self.counts is not None:
            assert self.chain is not None
            if encoding == "identity":
                dropped = frozenset((b"content-length",))
            elif not self.chain.pass_unseen():
                raise EncodedResponse(route.upstream)
        if self.chain is not None:
            assert head is not None
            self.chain.takes_emitted = self._sse and encoding == "identity"
            if self.chain.takes_emitted and self.chain.has_members:
                dropped = frozenset((b"content-length",))  # a task may have something to add
            await self.chain.start(head)
            raw_headers = head.headers.raw
            stale = bool(dropped)
            if json and self.chain.wants_events:
                self._json = JsonBody()
                changed = await self._json.take(
                    upstream,
                    self.chain,
                    self._worker.pools.http_response,
                    buffers,
                    max_bytes=route.limits.max_event_bytes,
                    idle_s=route.timeouts.idle,
                )
                stale = self._json.changed
                if changed is None:
                    dropped = frozenset()  # too large for interceptors, and exact
        if begun:
            return None
        if stale:
            raw_headers = without_stale(raw_headers, asking.response_headers, length=bodiless)
        if head is not None and not bodiless:
            had_body = not self.reply.is_bodiless(response.status)
            raw_headers = with_length_of(raw_headers, asking.response_headers if had_body else [])
        if status == 204:
            dropped |= frozenset((b"content-length",))  # RFC 9110, section 8.6
        headers = self.reply.headers(raw_headers, sse=self._sse, dropped=dropped)
        if self.reply.cors is not None:
            headers = self.reply.cors.expose_session(headers)
        if changed is not None:
            headers.append((b"content-length", b"%d" % len(changed)))
        chunked = not bodiless and find_header(headers, b"content-length") is None
        await self.reply.start(
            status,
            headers,
            chunked=chunked,
            whole=changed is not None or upstream.at_hand,
            may_add=self._sse and chunked and encoding == "identity",
        )
        if changed:
            await self.reply.write(changed, last=True)
        return None

    async def _looks_like(
        self, buffers: BufferScope, kind: str, encoding: str, upstream: UpstreamBody
    ) -> LooksLike | None:
        """What a response is: by its head, or, where interceptors must see it whatever its head
        says, by the first bytes of its body; None where the head alone counts. Raises
        `UpstreamFailure`.
        """
        route, request = self._route, self.request
        if kind == "text/event-stream":
            return "events"
        if request is None or not route.chain.sees_streams or encoding != "identity":
            return None
        if not route.dialect.may_be_mislabelled(request.path):
            return None
        return await look_at(
            upstream, self._worker.pools.sse_event, buffers, idle_s=route.timeouts.idle
        )

    def _is_unseen_body(self, status: int, kind: str) -> bool:
        """Whether a response without a body stands for one that interceptors may change: what it
        states about that, its length too, may then be false (RFC 9110, section 9.3.2). A 304 has no
        type, and may stand for any body.
        """
        chain, request = self._route.chain, self.request
        if (
            request is None
            or not chain.sees_streams
            or not (request.method == "HEAD" or status == 304)
        ):
            return False
        return (
            kind == "text/event-stream"
            or (chain.sees_json and is_json_type(kind))
            or (status == 304 and not kind)
            or self._route.dialect.may_be_mislabelled(request.path)
        )

    def _is_hidden(self, encoding: str) -> bool:
        """Whether this is an answer that no interceptor can look at: clients decode it, and read it
        whatever its type says.
        """
        assert self.request is not None
        return encoding != "identity" and self._route.dialect.has_one_answer(self.request.path)

    def _is_one_json(self, media_type: str) -> bool:
        """Whether clients read a body of this type that begins like JSON as one JSON text."""
        assert self.request is not None
        return not _JSON_LINES.search(media_type) or self._route.dialect.has_one_answer(
            self.request.path
        )

    async def _pass_interim(self, call: UpstreamCall, status: int, headers: Fields) -> None:
        """An informational response of the upstream goes to the client at once. Raises `ClientGone`
        and `SendStalled`.
        """
        passed = end_to_end(headers)
        if hold_references(passed):
            assert call.endpoint is not None
            host = find_header(call.headers, b"host") or b""
            passed = self._with_client_references(call.endpoint, host, passed)
        await self.reply.send_interim(status, passed)

    def _with_client_references(
        self, endpoint: Endpoint, sent_host: bytes, received: HeaderList
    ) -> HeaderList:
        """A response's headers, with URL references that lead the client to this route."""
        scope = self._scope
        headers: HeaderList = scope["headers"]
        origin = client_origin(headers, scheme=scope["scheme"])
        client = ClientSide(
            path=self._target.path.decode("latin-1"),
            hosts=(
                (find_header(headers, b"host") or b"").decode("latin-1"),
                sent_host.decode("latin-1"),
                "" if origin is None else origin.partition("://")[2],
            ),
            asked=None if self.request is None else self.request.raw_path.decode("latin-1"),
            origin=origin,
            outer=outer_prefix(headers).decode("latin-1"),
        )
        return client_headers(received, self._route.places[endpoint], client)

    def _relay_body(
        self, asking: UpstreamRequest, body: UpstreamBody, buffers: BufferScope
    ) -> Awaitable[None]:
        """The body, all but its end; over several connections if the route reconnects."""
        route, reply, chain = self._route, self.reply, self.chain
        assert reply.writer is not None
        resume: Resume | None = None
        if reply.status == 200 and reply.may_add and asking.may_repeat:
            resume = Resume(route.reconnect, route.dialect, route.limits.max_event_bytes)
        self.relay = relay = open_relay(
            body,
            reply.writer,
            chain,
            self._worker.pools,
            buffers,
            sse=self._sse,
            wrote_before_body=reply.writer.bytes_sent > 0,
            resume=resume,
        )
        listening = self._sse and self._scope["method"] in route.listening
        if listening:
            reply.send_probes()
        mover = Mover(
            relay,
            self._worker.hub if reply.writer.synchronous else None,
            idle_s=None if listening else route.timeouts.idle,
            send_s=reply.send_s,
            heartbeat_s=reply.heartbeat_s if reply.may_add else None,
        )
        if resume is not None:
            return move_over_connections(
                mover, resume, asking, reply, partial(self._looks_like, buffers), self._worker.log
            )
        return mover.run()


def _content_of(headers: HeaderList) -> tuple[str, str]:
    """The media type and the content coding of a response as interceptors have left its head.
    Raises `RequestRefused`.
    """
    try:
        return media_type(headers), content_coding(headers)
    except Contradiction as error:
        raise interceptor_failed(f"an interceptor has changed a response whose {error}") from None
