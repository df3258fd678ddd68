"""The request to the upstream: made from the client's as interceptors left it, sent once, or again
where a stream is resumed.

It owns the connection that is on loan. It knows no response beyond its head, and no client
connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterable

import msgspec
import trio

from interceptors import Request
from interceptors.content import Contradiction, unify

from ..errors import ProtocolFailure, RequestRefused, UpstreamFailure, interceptor_failed
from ..http import is_target
from ..http.head import BadRequest
from ..http.headers import (
    HeaderList,
    Via,
    are_fields,
    end_to_end,
    one_forward_less,
    refuse_trace,
    request_headers,
    without_doubles,
    without_stale,
)
from ..telemetry import TRACE_FIELDS, ExchangeSpan
from ..upstream import AskForBody, Endpoint, OnInterim, UpstreamBody, UpstreamCall
from ..worker.routes import Route
from .request import ClientRequest

__all__ = ["ReceivedHead", "UpstreamRequest"]


class ReceivedHead(msgspec.Struct, frozen=True):
    """The head of an upstream response, with its body on loan."""

    status: int
    headers: HeaderList
    """Names in lower case, without fields of the hop; equal media types and codings on one line."""
    media_type: str
    content_coding: str
    """Both "" if the response contradicts itself and no interceptor sees it."""
    body: UpstreamBody
    call: UpstreamCall
    """The call that it answers."""


class UpstreamRequest(msgspec.Struct, eq=False):
    """One request. Call `close` at the end of the exchange."""

    via: Via
    route: Route
    client: ClientRequest
    """The request as received."""
    request: Request | None
    """As interceptors left it; None without interceptors."""
    length: bytes | None
    """The Content-Length; b"": not known; None: no body."""
    nursery: trio.Nursery | None
    """Of the task that sends the body; None if the body is sent with the head."""
    on_interim: OnInterim | None
    ask_for_body: AskForBody | None
    """Send `Expect: 100-continue`, and ask the client if the upstream does not; None: send none."""
    identity: bool
    """Ask for a response without content coding."""
    span: ExchangeSpan | None = None
    """Its context goes upstream; None while traces are off."""
    body: UpstreamBody | None = None
    """Of the response."""
    endpoint: Endpoint | None = None
    """The endpoint that was asked last; None before the first."""
    waiting: UpstreamCall | None = None
    """The call whose response is awaited."""

    @property
    def asked(self) -> Endpoint | None:
        """As `endpoint`, also while its response is awaited."""
        return (self.waiting and self.waiting.endpoint) or self.endpoint

    @property
    def may_repeat(self) -> bool:
        """Whether its stream can be resumed: the request is safe to repeat, and has no body."""
        method = self.client.method if self.request is None else self.request.method
        return self.route.reconnect.enabled and method == "GET" and self.length in (None, b"0")

    async def send(
        self, body: bytes | AsyncIterable[bytes], *, last_event_id: bytes | None = None
    ) -> ReceivedHead:
        """Send the request; returns when the response's head has arrived. With `last_event_id`, ask
        for what follows that event, after `close` and without a body. Raises `UpstreamFailure`, and
        `RequestRefused` for a request that cannot be sent.
        """
        route = self.route
        self.waiting = call = self._make(body, last_event_id)
        try:
            response = await route.transport.call(call)
        except BadRequest:
            raise self._unsendable() from None
        finally:
            self.waiting, self.endpoint = None, call.endpoint or self.endpoint
        self.body = response.body
        headers, kind, coding = end_to_end(response.headers), "", ""
        try:
            headers, kind, coding = unify(headers)
        except Contradiction as error:
            if route.chain.sees_responses:
                raise ProtocolFailure(
                    f"{route.upstream}: the response's {error}, and an interceptor must see it"
                ) from None
        return ReceivedHead(response.status, headers, kind, coding, response.body, call)

    def close(self) -> None:
        """Return the connection. Synchronous; safe to call again."""
        if self.body is not None:
            self.body.close()

    def forget(self) -> None:
        """Break the reference cycles through the callbacks."""
        self.on_interim = self.ask_for_body = None

    def _make(
        self, body: bytes | AsyncIterable[bytes], last_event_id: bytes | None
    ) -> UpstreamCall:
        route, client = self.route, self.client
        method, target, headers = client.method, client.target.raw, client.headers
        if self.request is not None:
            method, target, headers = self._changed_head(self.request)
            refuse_trace(method)
        if self.request is not None or route.headers.removed:
            headers = without_doubles(headers, client.headers, route.headers.removed)
        if method == "OPTIONS":
            headers = one_forward_less(headers)
        if self.span is not None and self.span.propagates:
            if self.span.replaces or self.request is not None:
                headers = [item for item in headers if item[0] not in TRACE_FIELDS]
            headers = [*headers, *self.span.fields()]
        if last_event_id is not None:
            headers = [item for item in headers if item[0] != b"last-event-id"]
            headers.append((b"last-event-id", last_event_id))
        return UpstreamCall(
            method,
            route.target(target),
            request_headers(
                headers,
                route.headers,
                client=client.peer,
                scheme=client.scheme,
                identity=self.identity or self.may_repeat,
                body=self.length if last_event_id is None else None,
                via=self.via.entry(client.http_version),
                expects_continue=self.ask_for_body is not None,
            ),
            body,
            timeouts=route.call_timeouts,
            # A reconnection has its own attempts, with delays between them.
            retry=route.retry if last_event_id is None else None,
            session=None if self.request is None else route.dialect.session_of(self.request),
            on_interim=self.on_interim,
            ask_for_body=self.ask_for_body,
            is_sound=last_event_id is None and self._is_sound(body),
            nursery=self.nursery,
            on_retry=None if self.span is None else self._note_retry,
        )

    def _is_sound(self, body: bytes | AsyncIterable[bytes]) -> bool:
        """Whether the request is as the proxy's own server has read and checked it, besides fields
        that the proxy and its configuration add.
        """
        length = self.length
        return (
            self.request is None
            and not self.client.unchecked
            and isinstance(body, bytes)
            and length != b""
            and len(body) == int(length or 0)
        )

    def _note_retry(self, endpoint: Endpoint, failure: UpstreamFailure) -> None:
        assert self.span is not None
        self.span.add_event(
            "retry",
            trio.current_time(),
            {"weirpool.endpoint": endpoint.origin, "error.type": failure.kind},
        )

    def _changed_head(self, request: Request) -> tuple[str, bytes, HeaderList]:
        """Method, target and headers as interceptors left them. Raises `RequestRefused`."""
        client = self.client
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        if request.body_replaced:
            headers = without_stale(headers, client.headers)
        target = client.target.raw
        if request.raw_path != client.target.path or request.query != client.target.query:
            target = request.raw_path + (b"?" + request.query if request.query else b"")
            if not is_target(target):
                raise interceptor_failed(
                    "an interceptor has set a path or a query that cannot be sent"
                )
        return request.method, target, headers

    def _unsendable(self) -> RequestRefused:
        """The refusal of a request that cannot be sent: the fault is the client's, or that of the
        interceptor that changed it.
        """
        if self.request is None or not are_fields(self.client.headers):
            return RequestRefused(
                400, "bad_request", "a header or the target of the request cannot be forwarded"
            )
        return interceptor_failed(
            "an interceptor has set a method or a header of the request that cannot be sent"
        )
