"""The request to the upstream: made from the client's, as interceptors have left it; sent once, or
again where a stream goes on.

It holds the connection that is on loan. It knows no response beyond that, and no client.
"""

from __future__ import annotations

from collections.abc import AsyncIterable

import trio

from interceptors import Request
from interceptors.content import Contradiction, unify

from ..downstream import Scope
from ..errors import ProtocolFailure, interceptor_failed
from ..http import Target, is_target
from ..http.headers import (
    HeaderList,
    end_to_end,
    find_header,
    one_forward_less,
    refuse_trace,
    request_headers,
    without_doubles,
    without_stale,
)
from ..upstream import Endpoint, OnInterim, UpstreamBody, UpstreamCall, UpstreamResponse
from ..worker.routes import Route
from ..worker.worker import Worker

__all__ = ["UpstreamRequest"]


class UpstreamRequest:
    """One request. Whoever made it closes `response_body`."""

    __slots__ = (
        "_body",
        "_identity",
        "_nursery",
        "_on_interim",
        "_request",
        "_scope",
        "_target",
        "_worker",
        "content_coding",
        "endpoint",
        "host",
        "media_type",
        "response_body",
        "response_headers",
        "route",
    )

    def __init__(
        self,
        worker: Worker,
        route: Route,
        scope: Scope,
        target: Target,
        request: Request | None,
        body: bytes | None,
        nursery: trio.Nursery,
        on_interim: OnInterim,
        *,
        identity: bool,
    ) -> None:
        """`request`: as interceptors have left it, if there are any. `body`: as for
        `request_headers`. `nursery`: of the task that sends a body. `identity`: ask for an
        unencoded response. `on_interim`: gets informational responses.
        """
        self._worker = worker
        self.route = route
        self._scope = scope
        self._target = target
        self._request = request
        self._body = body
        self._nursery = nursery
        self._on_interim = on_interim
        self._identity = identity
        self.endpoint: Endpoint | None = None
        """The one that was asked last; None when none was."""
        self.host = b""
        """The Host header of the last call."""
        self.response_body: UpstreamBody | None = None
        """Of the last response: the connection that is on loan."""
        self.response_headers: HeaderList = []
        """Of the last response, names in lower case, without the fields of the hop; equal media
        types and codings on one line.
        """
        self.media_type = self.content_coding = ""
        """Of the last response; both "" where it contradicts itself and no interceptor looks at it.
        """

    @property
    def may_repeat(self) -> bool:
        """Whether a stream that answers it is resumed: it is safe to send again, and has no body."""
        method = self._scope["method"] if self._request is None else self._request.method
        return self.route.reconnect.enabled and method == "GET" and self._body in (None, b"0")

    async def send(self, body: bytes | AsyncIterable[bytes]) -> UpstreamResponse:
        """Send it with this body; return when the response's head has arrived. Raises
        `UpstreamFailure`, and `RequestRefused` and `BadRequest` for what cannot be sent.
        """
        return await self._send(self._build(body, self._body, None))

    async def send_again(self, last_event_id: bytes) -> UpstreamResponse:
        """Ask for what follows that event; `response_body` must have been closed. Raises as
        `send`.
        """
        return await self._send(self._build(b"", None, last_event_id))

    async def _send(self, call: UpstreamCall) -> UpstreamResponse:
        try:
            response = await self.route.transport.call(call)
        finally:
            self.endpoint = call.endpoint or self.endpoint
        self.response_body = response.body
        self.host = find_header(call.headers, b"host") or b""
        self.response_headers = end_to_end(response.headers)
        self.media_type = self.content_coding = ""
        try:
            self.response_headers, self.media_type, self.content_coding = unify(
                self.response_headers
            )
        except Contradiction as error:
            if self.route.chain.sees_responses:
                raise ProtocolFailure(
                    f"{self.route.upstream}: the response's {error}, and an interceptor must see it"
                ) from None
        return response

    def _build(
        self,
        body: bytes | AsyncIterable[bytes],
        length: bytes | None,
        last_event_id: bytes | None,
    ) -> UpstreamCall:
        route, scope, request = self.route, self._scope, self._request
        method, headers, target = scope["method"], scope["headers"], self._target.raw
        if request is not None:
            method = request.method
            headers = [(name.lower(), value) for name, value in request.headers.raw]
            if request.body_replaced:
                headers = without_stale(headers, scope["headers"])
            if request.raw_path != self._target.path or request.query != self._target.query:
                target = request.raw_path + (b"?" + request.query if request.query else b"")
                if not is_target(target):
                    raise interceptor_failed(
                        "an interceptor has set a path or a query that cannot be sent"
                    )
        headers = without_doubles(headers, scope["headers"], route.headers.removed)
        refuse_trace(method)  # also one that an interceptor has made
        if method == "OPTIONS":
            headers = one_forward_less(headers)
        if last_event_id is not None:
            headers = [
                *(item for item in headers if item[0] != b"last-event-id"),
                (b"last-event-id", last_event_id),
            ]
        client: str | None = scope["client"][0] if scope.get("client") else None
        return UpstreamCall(
            method,
            route.target(target),
            request_headers(
                headers,
                route.headers,
                client=client,
                scheme=scope["scheme"],
                identity=self._identity or self.may_repeat,
                body=length,
                via=self._worker.via.append_to(headers, scope["http_version"]),
            ),
            body,
            timeouts=route.call_timeouts,
            # A reconnection has its own attempts, with delays between them.
            retry=route.retry if last_event_id is None else None,
            # On MCP's old transport the target that the client asked for is the session.
            session=route.dialect.session_of(request),
            on_interim=self._on_interim,
            nursery=self._nursery,
        )
