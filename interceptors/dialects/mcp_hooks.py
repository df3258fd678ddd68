"""Interceptors that think in MCP's messages: subclass `McpInterceptor`, and mark methods with what they are for.

    class NoShell(McpInterceptor):
        strict = True

        @on_mcp_request("tools/call")
        def no_shell(self, message: McpMessage) -> McpError | None:
            return McpError(INVALID_PARAMS, "no shells here") if message.name == "shell" else None

Built on the plug-in API alone. Invariants: each message is shown once to each hook; a request that a hook has answered never goes
upstream, and its answer reaches the client once; what no hook has changed leaves as the very bytes that came; what is no MCP passes
unseen, or, where the interceptor says `strict`, ends in an error of its own. Messages are `mcp`'s, headers `mcp_headers`'.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, ClassVar, NamedTuple, Self, TypeVar
from urllib.parse import parse_qsl

from pools import decode_json, encode_json

from ..api import EventResult, Interceptor, Outcome, StreamContext, StreamInterceptor
from ..errors import Abort, NotJson, StreamOver
from ..event import Event
from ..message import Request, Response, ResponseHead
from .mcp import INVALID_REQUEST, PARSE_ERROR, Kind, McpError, McpMessage, Payload, parse
from .mcp_answers import answer, events_of, refuse, refuse_disguised, response_to, status_of
from .mcp_calls import Call, Calls, RequestId
from .mcp_headers import mirror, revision_of

__all__ = ["McpInterceptor", "on_mcp_notification", "on_mcp_request", "on_mcp_response"]

F = TypeVar("F", bound=Callable[..., Any])

SESSION_ID = "mcp-session-id"
# How the old transport's servers name the session in the endpoint's query: the SDKs of TypeScript and Python.
_SESSION_PARAMETERS = ("sessionId", "session_id")
_MARKS = "__mcp_hooks__"


def on_mcp_request(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for requests whose method matches a glob, in either direction; None: for all.

    It may return a result (a dict) or an `McpError`: a client's request is then answered with that, and never goes upstream.
    """
    return _mark(Kind.REQUEST, pattern)


def on_mcp_response(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for responses, results and errors, to requests whose method matches a glob.

    None: for all, also for those whose request is not known (`message.request` is None), which no glob matches.
    """
    return _mark(Kind.RESPONSE, pattern)


def on_mcp_notification(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for notifications whose method matches a glob, in either direction; None: for all."""
    return _mark(Kind.NOTIFICATION, pattern)


def _mark(kind: Kind, pattern: str | None) -> Callable[[F], F]:
    if pattern is not None and not isinstance(pattern, str):
        raise TypeError(f"write @on_mcp_{kind}() or @on_mcp_{kind}('a/glob*'), with parentheses")

    def mark(function: F) -> F:
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is async, but hooks for MCP messages are not")
        setattr(function, _MARKS, [(kind, pattern), *getattr(function, _MARKS, [])])
        return function

    return mark


class _Hook(NamedTuple):
    name: str
    matches: Callable[[str], Any] | None


@dataclass
class _Exchange:
    """What is known of one HTTP request and its response."""

    request: Request
    session: str | None
    revision: str | None
    old: bool
    """It speaks the old transport of HTTP and SSE, whose responses come on another stream."""
    pending: list[dict[str, Any]]
    """Of a batch that goes upstream without the requests that a hook has answered: the responses to these, until they are merged.
    Shared by all such interceptors of the exchange, for another one may answer the rest."""
    calls: dict[RequestId, Call] = field(default_factory=dict)

    def take_pending(self) -> list[dict[str, Any]]:
        taken = self.pending[:]
        self.pending.clear()
        return taken

    def describe(self, message: McpMessage) -> None:
        message.session, message.revision, message.http = self.session, self.revision, self.request


class McpInterceptor(Interceptor):
    """One per process, as any interceptor. Mark methods with `on_mcp_request`, `on_mcp_response`, `on_mcp_notification`; they are
    synchronous, take one `McpMessage`, and run in the order of their definition. Their names must not begin with `on_`.

    Who overrides `on_request`, `on_response` or `open_stream` as well, calls `super()`'s.
    """

    wants_body = True
    wants_json = True

    strict: bool = False
    """What becomes of that which is no MCP. False: it passes, unseen. True: a client's body is refused with 400 when it is no
    JSON-RPC, when two readers may understand it differently, when it is a request without an id, or when it contradicts its
    headers, and with 415 when it is compressed; a successful response or an event that is no JSON breaks off. For interceptors
    that must not be passed by."""

    _hooks: ClassVar[dict[Kind, tuple[_Hook, ...]]] = {}
    # Made in `__new__`, so that a subclass's `__init__` need not call another.
    _calls: Calls
    _old_streams: dict[str, StreamContext]  # of the old transport, by session

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        marks: dict[str, list[tuple[Kind, str | None]]] = {}
        for base in reversed(cls.__mro__):
            marks |= {name: getattr(item, _MARKS) for name, item in vars(base).items() if hasattr(item, _MARKS)}
        found: dict[Kind, tuple[_Hook, ...]] = {}
        for name, items in marks.items():
            for kind, pattern in items:
                matches = None if pattern is None else re.compile(translate(pattern)).match
                found[kind] = (*found.get(kind, ()), _Hook(name, matches))
        cls._hooks = found

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        made = super().__new__(cls)
        made._calls = Calls()
        made._old_streams = {}
        return made

    async def on_request(self, request: Request) -> Response | None:
        """Show what the client says to the hooks."""
        exchange = self._exchange(request)
        body = request.body
        if not body:
            return None
        if (request.headers.get("content-encoding") or "identity").strip().lower() != "identity":
            return refuse(415, INVALID_REQUEST, "a compressed body cannot be read here") if self.strict else None
        try:
            payload = parse(body, from_client=True)
        except NotJson as error:
            return refuse(400, PARSE_ERROR, str(error)) if self.strict else None
        if self.strict and (refusal := refuse_disguised(body, payload, request.headers)) is not None:
            return refusal
        responses, status = self._from_client(exchange, payload)
        left = payload.encode()
        if left is payload.data:
            return None
        if left is not None:
            request.replace_body(left)
            if not payload.is_batch:
                mirror(request.headers, payload.messages[0].json(), decode_json(body))
        if exchange.old and responses:
            return await self._answer_on_stream(exchange, responses, nothing_left=left is None)
        exchange.pending.extend(responses)
        if left is not None:
            return None
        responses = exchange.take_pending()
        if not responses:
            return Response(status=202)  # notifications, all of them dropped
        return answer(request.headers, responses, status=200 if payload.is_batch else status, is_batch=payload.is_batch)

    async def on_response(self, head: ResponseHead) -> Response | None:
        """What was answered of a batch must reach the client also where the rest has no answer of its own."""
        exchange = self._exchange(head.request)
        if head.status >= 300:
            exchange.take_pending()  # refused as a whole: that is what the client must see
        if not exchange.pending:
            return None
        if head.status in (202, 204) or not (head.media_type == "text/event-stream" or _is_json(head.media_type)):
            return answer(head.request.headers, exchange.take_pending(), is_batch=True)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _McpStream(self, self._exchange(context.request), context)

    def _exchange(self, request: Request) -> _Exchange:
        key = f"mcp.{id(self)}"
        exchange: _Exchange | None = request.state.get(key)
        if exchange is None:
            headers = request.headers
            session: str | None = headers.get(SESSION_ID)
            revision = revision_of(headers)
            old = False
            if session is None and "text/event-stream" not in headers.get("accept", "").lower():
                session = _session_in(request.query.decode("latin-1"))
                old = session is not None
            pending = request.state.setdefault("mcp.pending", [])
            exchange = request.state[key] = _Exchange(request, session, revision, old, pending)
        return exchange

    def _from_client(self, exchange: _Exchange, payload: Payload) -> tuple[list[dict[str, Any]], int]:
        """Run the hooks; the responses that they gave, and the HTTP status of the last."""
        responses, status = [], 200
        for message in payload.messages:
            exchange.describe(message)
            if message.kind is Kind.RESPONSE and message.id is not None and exchange.session is not None:
                message.request = self._calls.find(exchange.session, message.id, from_client=False)
            given = self._run(message)
            if given is not None:
                message.dropped = True
                responses.append(response_to(message, given))
                status = status_of(message, given)
            elif message.kind is Kind.REQUEST:
                call = message.call
                exchange.calls[call.id] = call
                if exchange.session is not None:
                    self._calls.remember(exchange.session, call)
        return responses, status

    def _from_server(self, exchange: _Exchange, payload: Payload) -> None:
        """Run the hooks. Raises what they raise, and `TypeError` for an answer."""
        for message in payload.messages:
            exchange.describe(message)
            session = exchange.session
            if message.kind is Kind.RESPONSE and message.id is not None:
                message.request = exchange.calls.get(message.id)
                if message.request is None and session is not None:
                    message.request = self._calls.find(session, message.id, from_client=True)
            if self._run(message) is not None:
                raise TypeError(
                    "a request of the server can be changed, not answered: the answer would be the client's to send"
                )
            if message.kind is Kind.REQUEST and session is not None:
                self._calls.remember(session, message.call)

    def _run(self, message: McpMessage) -> dict[str, Any] | McpError | None:
        """Show a message to the hooks that are for it; what one of them answers."""
        for hook in self._hooks.get(message.kind, ()):
            if hook.matches is not None:
                method = message.method or (message.request.method if message.request is not None else None)
                if method is None or not hook.matches(method):
                    continue
            given: Any = getattr(self, hook.name)(message)
            if given is not None:
                if message.kind is not Kind.REQUEST or not isinstance(given, (dict, McpError)):
                    expected = "a dict, an McpError or None" if message.kind is Kind.REQUEST else "None"
                    raise TypeError(
                        f"{type(self).__qualname__}.{hook.name} returned {type(given).__name__}, expected {expected}"
                    )
                return given
            if message.dropped:
                return None
        return None

    async def _answer_on_stream(
        self, exchange: _Exchange, responses: list[dict[str, Any]], *, nothing_left: bool
    ) -> Response | None:
        """2024-11-05, "HTTP with SSE": the answer to a POST comes on the session's stream, and the POST gets 202."""
        stream = self._old_streams.get(exchange.session or "")
        try:
            if stream is None:
                raise StreamOver
            for event in events_of(responses):
                await stream.emit(event)
        except StreamOver:
            # Its stream is over, or another worker's. A client that is told so need not wait for an answer.
            return Response(status=403, json=responses[0])
        return Response("Accepted", status=202) if nothing_left else None


class _McpStream(StreamInterceptor):
    """One response: an event stream, or a JSON body as one event."""

    def __init__(self, interceptor: McpInterceptor, exchange: _Exchange, context: StreamContext) -> None:
        self._interceptor = interceptor
        self._exchange = exchange
        self._context = context
        self._is_body = False
        self._succeeds = True

    def on_start(self, head: ResponseHead) -> None:
        self._is_body = head.media_type != "text/event-stream"
        self._succeeds = head.status < 300
        exchange = self._exchange
        session: str | None = head.headers.get(SESSION_ID)
        if session is not None and exchange.session is None:  # the answer to `initialize`
            exchange.session = session
            for call in exchange.calls.values():
                self._interceptor._calls.remember(session, call)

    def on_event(self, event: Event) -> EventResult:
        if self._is_body:
            return self._on_body(event)
        if event.event == "endpoint":
            self._learn(event.data)
        data = event.data
        if event.event not in (None, "", "message") or not data:  # not MCP's, or a priming event
            return event
        payload = self._read(data)
        if payload is None:
            return event
        left = payload.encode()
        changed: Event | None = event
        if left is not payload.data:
            changed = None if left is None else event.replace(left.decode())
        # The responses to the others of a batch (2025-03-26) go first, as soon as the server has begun to answer.
        if self._exchange.pending:
            return [*self.on_complete(), *([changed] if changed is not None else [])]
        return changed

    def _on_body(self, event: Event) -> EventResult:
        pending = self._exchange.take_pending()
        data = event.data
        try:
            payload = self._read(data) if data else None
        except Exception as error:
            if pending:  # with `on_error = "skip"` the body would pass without them
                raise Abort("a hook has failed, and the answers to others of the batch would be lost") from error
            raise
        if pending:
            if data and payload is None:
                raise Abort("the server answered a batch with what is no JSON")
            rest = payload.encode_each() if payload is not None else []
            return event.replace((b"[" + b",".join([*rest, *map(encode_json, pending)]) + b"]").decode())
        left = payload.encode() if payload is not None else None
        if payload is None or left is payload.data:
            return event
        return event.replace((left or b"").decode())  # a body cannot be dropped, only be empty

    def _read(self, data: str) -> Payload | None:
        """What the server says, shown to the hooks; None when it is no JSON. Raises what hooks raise, and `Abort`."""
        try:
            payload = parse(data, from_client=False)
        except NotJson as error:
            if self._interceptor.strict and self._succeeds:
                raise Abort(str(error)) from None
            return None
        self._interceptor._from_server(self._exchange, payload)
        return payload

    def on_complete(self) -> Sequence[Event]:
        return events_of(self._exchange.take_pending())

    def on_end(self, outcome: Outcome) -> None:
        streams, session = self._interceptor._old_streams, self._exchange.session or ""
        if streams.get(session) is self._context:
            del streams[session]

    def _learn(self, endpoint: str) -> None:
        """2024-11-05, "HTTP with SSE": the first event is the URI for the client's POSTs, which names the session."""
        session = _session_in(endpoint.partition("?")[2])
        if session is not None and self._exchange.session is None:
            self._exchange.session = session
            self._exchange.old = True
            self._interceptor._old_streams[session] = self._context


def _session_in(query: str) -> str | None:
    found = dict(parse_qsl(query))
    return next((found[name] for name in _SESSION_PARAMETERS if name in found), None)


def _is_json(media_type: str) -> bool:
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))
