"""Interceptors that think in MCP's messages: subclass `McpInterceptor`, and mark methods with what
they are for.

    class NoShell(McpInterceptor):
        strict = True

        @on_mcp_request("tools/call")
        def no_shell(self, message: McpMessage) -> McpError | None:
            return McpError(INVALID_PARAMS, "no shells here") if message.name == "shell" else None

Built on the plug-in API alone. Invariants: each message is shown once to each hook; a request that
a hook has answered never goes upstream, and its answer reaches the client once; what no hook has
changed leaves as the very bytes that came; what is no MCP passes unseen, or, where the interceptor
says `strict`, ends in an error of its own. Messages are `mcp`'s, headers `mcp_headers`'.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from pools import decode_json, encode_json

from ..api import (
    AsyncStreamInterceptor,
    End,
    EventResult,
    Interceptor,
    Outcome,
    StreamContext,
    StreamInterceptor,
)
from ..content import content_coding, is_json_in_utf8, is_json_type
from ..errors import Abort, Misused, NotJson
from ..event import Event
from ..hooks import Owner
from ..message import Headers, Request, Response, ResponseHead
from .mcp import (
    INVALID_REQUEST,
    PARSE_ERROR,
    BatchTooLong,
    Kind,
    McpError,
    McpMessage,
    Payload,
    parse,
)
from .mcp_answers import (
    NOT_JSON_IN_UTF8,
    answer,
    events_of,
    refuse,
    refuse_disguised,
    response_to,
    status_of,
)
from .mcp_calls import Call, RequestId
from .mcp_headers import has_mirrors, mirror, revision_of
from .mcp_sessions import (
    LiveSession,
    McpSessions,
    SessionBook,
    canonical,
    has_data,
    live_of,
    session_of,
)

__all__ = [
    "McpInterceptor",
    "on_mcp_notification",
    "on_mcp_request",
    "on_mcp_response",
    "through_current",
]

F = TypeVar("F", bound=Callable[..., Any])

SESSION_ID = "mcp-session-id"
_NO_SUCH_METHOD = "weirpool/denied"
"""What a denied call becomes where only the server can answer on the session's stream: no server
has this method.
"""
MARKS = "__mcp_hooks__"
"""The attribute of a marked method that has its marks."""


def on_mcp_request(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for requests whose method matches a glob, in either direction; None: for all.

    It may return a result (a dict) or an `McpError`: a client's request is then answered with that,
    and never goes upstream.
    """
    return _mark(Kind.REQUEST, pattern)


def on_mcp_response(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for responses, results and errors, to requests whose method matches a glob.

    None: for all, also for those whose request is not known (`message.request` is None), which no
    glob matches.
    """
    return _mark(Kind.RESPONSE, pattern)


def on_mcp_notification(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for notifications whose method matches a glob, in either direction; None: for
    all.
    """
    return _mark(Kind.NOTIFICATION, pattern)


def _mark(kind: Kind, pattern: str | None) -> Callable[[F], F]:
    if pattern is not None and not isinstance(pattern, str):
        raise TypeError(f"write @on_mcp_{kind}() or @on_mcp_{kind}('a/glob*'), with parentheses")

    def mark(function: F) -> F:
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is async, but hooks for MCP messages are not")
        setattr(function, MARKS, [(kind, pattern), *getattr(function, MARKS, [])])
        return function

    return mark


class _Hook(NamedTuple):
    name: str
    matches: Callable[[str], Any] | None


@dataclass
class _Exchange:
    """What is known of one HTTP request and its response, by one interceptor."""

    request: Request
    interceptor: str
    """Its name in the configuration."""
    book: SessionBook
    session: str | None
    """Of Streamable HTTP the value of `Mcp-Session-Id`, of the old transport the URI for POSTs."""
    revision: str | None
    old: bool
    """It belongs to a session of the old transport of HTTP and SSE, whose responses come on another
    stream.
    """
    pending: list[dict[str, Any]]
    """Of a batch that goes upstream without the requests that a hook has answered: the responses to these, until they are merged.
    Shared by all such interceptors of the exchange, for another one may answer the rest."""
    calls: dict[RequestId, Call] = field(default_factory=dict)
    denied: dict[RequestId, dict[str, Any]] = field(default_factory=dict)
    """Answers to requests that go upstream with a method that no server has (`_NO_SUCH_METHOD`)."""

    def take_pending(self) -> list[dict[str, Any]]:
        taken = self.pending[:]
        self.pending.clear()
        return taken

    def remember(self, call: Call) -> None:
        if self.session is not None:
            self.book.remember(self.interceptor, self.session, call)

    def find(self, message: McpMessage, *, from_client: bool) -> Call | None:
        if self.session is None or message.id is None:
            return None
        return self.book.find(self.interceptor, self.session, message.id, from_client=from_client)

    def join(self, live: LiveSession) -> None:
        """Its stream is that of a session of the old transport."""
        self.session, self.old = live.uri.decode("latin-1"), True

    def describe(self, message: McpMessage) -> None:
        message.session, message.revision, message.http = self.session, self.revision, self.request


class McpInterceptor(Interceptor):
    """One per process, as any interceptor. Mark methods with `on_mcp_request`, `on_mcp_response`,
    `on_mcp_notification`; they are synchronous, take one `McpMessage`, and run in the order of
    their definition. Any name will do that no hook has.

    Who overrides `on_request`, `on_response` or `open_stream` as well, calls `super()`'s.
    """

    wants_body = True
    wants_json = True

    strict: bool = False
    """What becomes of a body that is not MCP.

    False: it passes, unseen; only a batch of more than 100 messages is refused, with 400. True, for
    interceptors that protect: a client's body is refused with 400 when it is not JSON-RPC, when two
    readers may understand it differently, when it is a request without an id, or when it
    contradicts its headers; with 415 when it is compressed, or does not have exactly one
    Content-Type that means JSON in UTF-8. A successful response or an event that is not JSON breaks
    off.
    """

    _hooks: ClassVar[dict[Kind, tuple[_Hook, ...]]] = {}
    # For requests that come without a proxy. Made in `__new__`, so that a subclass's `__init__`
    # need not call another.
    _own_sessions: McpSessions

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        marks: dict[str, list[tuple[Kind, str | None]]] = {}
        for base in reversed(cls.__mro__):
            marks |= {
                name: getattr(item, MARKS)
                for name, item in vars(base).items()
                if hasattr(item, MARKS)
            }
        found: dict[Kind, tuple[_Hook, ...]] = {}
        for name, items in marks.items():
            for kind, pattern in items:
                matches = None if pattern is None else re.compile(translate(pattern)).match
                found[kind] = (*found.get(kind, ()), _Hook(name, matches))
        cls._hooks = found

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        made = super().__new__(cls)
        made._own_sessions = McpSessions()
        return made

    async def on_request(self, request: Request) -> Response | None:
        """Show what the client says to the hooks."""
        exchange = self._exchange(request)
        body = request.body
        if not body:
            return None
        refusal, payload = self._read_client(exchange, body)
        if refusal is not None:
            return await self._refuse(exchange, body, refusal)
        if payload is None:
            return None
        responses, status = self._from_client(exchange, payload)
        left = payload.encode()
        if left is payload.data:
            return None
        on_stream = bool(responses) and await self._answer_on_stream(exchange, responses)
        if responses and not on_stream and _may_be_old(request):
            self._let_server_answer(exchange, payload, responses)
            return None
        if left is not None:
            request.replace_body(left)
            if not payload.is_batch and not exchange.old:
                mirror(request.headers, payload.messages[0].json(), decode_json(body))
        if on_stream:
            return Response("Accepted", status=202) if left is None else None
        exchange.pending.extend(responses)
        if left is not None:
            return None
        responses = exchange.take_pending()
        if not responses:
            return Response(status=202)  # notifications, all of them dropped
        return answer(
            request.headers,
            responses,
            status=200 if payload.is_batch else status,
            is_batch=payload.is_batch,
        )

    async def on_response(self, head: ResponseHead) -> Response | None:
        """What was answered of a batch must reach the client also where the rest has no answer of
        its own.
        """
        exchange = self._exchange(head.request)
        if exchange.denied and head.status >= 300 and not exchange.calls:
            # The server did not accept it, so there is no such session: the client gets its answer
            # here.
            is_batch = isinstance(decode_json(head.request.body), list)
            return answer(head.request.headers, list(exchange.denied.values()), is_batch=is_batch)
        if head.status >= 300:
            exchange.take_pending()  # refused as a whole: that is what the client must see
        if not exchange.pending:
            return None
        if head.status in (202, 204) or not (
            head.media_type == "text/event-stream" or is_json_type(head.media_type)
        ):
            return answer(head.request.headers, exchange.take_pending(), is_batch=True)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _McpStream(self, self._exchange(context.request), context)

    def _opened(
        self, stream: StreamInterceptor | AsyncStreamInterceptor, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor:
        own = type(self).open_stream is McpInterceptor.open_stream
        if own or context.method != "GET" or not isinstance(stream, StreamInterceptor):
            return stream
        return _Replaceable(self, stream, context)

    def _exchange(self, request: Request, name: str | None = None) -> _Exchange:
        key = f"mcp.{id(self)}"
        exchange: _Exchange | None = request.state.get(key)
        if exchange is None:
            book: SessionBook = request.sessions or self._own_sessions.of("")
            old = book.owns(request)
            session: str | None = (
                canonical(request.target).decode("latin-1")
                if old
                else request.headers.get(SESSION_ID)
            )
            if name is None:
                name = "" if request.asked is None else request.asked.name
            pending = request.state.setdefault("mcp.pending", [])
            exchange = _Exchange(
                request, name, book, session, revision_of(request.headers), old, pending
            )
            request.state[key] = exchange
        return exchange

    def _read_client(
        self, exchange: _Exchange, body: bytes
    ) -> tuple[Response | None, Payload | None]:
        """A refusal (strict, and the body is not MCP), or what the body holds. Neither for a body
        that passes unseen.
        """
        headers = exchange.request.headers
        if content_coding(headers.raw) != "identity":
            problem = "a compressed body cannot be read here"
            return (refuse(415, INVALID_REQUEST, problem) if self.strict else None), None
        if self.strict and not is_json_in_utf8(headers.raw):
            return refuse(415, INVALID_REQUEST, NOT_JSON_IN_UTF8), None
        try:
            payload = parse(body, from_client=True)
        except NotJson as error:
            return (refuse(400, PARSE_ERROR, str(error)) if self.strict else None), None
        except BatchTooLong as error:
            return refuse(400, INVALID_REQUEST, str(error)), None
        if self.strict:
            # On the old transport no header mirrors the body, whichever revision a client names.
            refusal = refuse_disguised(body, payload, Headers() if exchange.old else headers)
            if refusal is not None:
                return refusal, None
        return None, payload

    async def _refuse(self, exchange: _Exchange, body: bytes, refusal: Response) -> Response:
        """On the old transport a status of 4xx would end the session, and the call would wait for
        its answer.
        """
        error = decode_json(refusal.body)
        error["id"] = _id_in(body) if error["id"] is None else error["id"]
        on_stream = await self._answer_on_stream(exchange, [error])
        return Response("Accepted", status=202) if on_stream else refusal

    def _from_client(
        self, exchange: _Exchange, payload: Payload
    ) -> tuple[list[dict[str, Any]], int]:
        """Run the hooks; the responses that they gave, and the HTTP status of the last."""
        responses, status = [], 200
        for message in payload.messages:
            exchange.describe(message)
            if message.kind is Kind.RESPONSE:
                message.request = exchange.find(message, from_client=False)
            given = self._run(message)
            if given is not None:
                message.dropped = True
                responses.append(response_to(message, given))
                status = status_of(message, given)
            elif message.kind is Kind.REQUEST:
                call = message.call
                exchange.calls[call.id] = call
                exchange.remember(call)
        return responses, status

    def _from_server(self, exchange: _Exchange, payload: Payload) -> None:
        """Run the hooks. Raises what they raise, and `TypeError` for an answer."""
        for message in payload.messages:
            exchange.describe(message)
            if message.kind is Kind.RESPONSE and message.id is not None:
                if (denied := exchange.denied.get(message.id)) is not None:
                    _replace(message, denied)
                    continue
                message.request = exchange.calls.get(message.id) or exchange.find(
                    message, from_client=True
                )
            if self._run(message) is not None:
                raise Misused(
                    "a request of the server can be changed, not answered: the answer would be the client's to send"
                )
            if message.kind is Kind.REQUEST:
                exchange.remember(message.call)

    def _run(self, message: McpMessage) -> dict[str, Any] | McpError | None:
        """Show a message to the hooks that are for it; what one of them answers."""
        for hook in self._hooks.get(message.kind, ()):
            if hook.matches is not None:
                method = message.method or (
                    message.request.method if message.request is not None else None
                )
                if method is None or not hook.matches(method):
                    continue
            given: Any = getattr(self, hook.name)(message)
            if given is not None:
                if message.kind is not Kind.REQUEST or not isinstance(given, (dict, McpError)):
                    expected = (
                        "a dict, an McpError or None" if message.kind is Kind.REQUEST else "None"
                    )
                    raise Misused(
                        f"{type(self).__qualname__}.{hook.name} returned {type(given).__name__}, expected {expected}"
                    )
                return given
            if message.dropped:
                return None
        return None

    async def _answer_on_stream(self, exchange: _Exchange, responses: list[dict[str, Any]]) -> bool:
        """2024-11-05, "HTTP with SSE": the answer to a POST comes on the session's stream, and the
        POST gets 202. Whether that is possible: there is such a session, here or in another
        process.
        """
        request = exchange.request
        if request.method != "POST":
            return False
        messages = [encode_json(response).decode() for response in responses]
        # Headers do not decide: clients of the old transport send `Mcp-Session-Id` if they are
        # configured to.
        return await exchange.book.deliver(canonical(request.target), messages)

    def _let_server_answer(
        self, exchange: _Exchange, payload: Payload, responses: list[dict[str, Any]]
    ) -> None:
        """No process here knows the session, and another machine's may. Then only the server can
        answer on its stream.
        """
        exchange.denied = {response["id"]: response for response in responses}
        left: list[Any] = []
        for message in payload.messages:
            if message.id in exchange.denied and message.kind is Kind.REQUEST:
                left.append({"jsonrpc": "2.0", "id": message.id, "method": _NO_SUCH_METHOD})
            elif not message.dropped:
                left.append(message.json())
        exchange.request.replace_body(json=left if payload.is_batch else left[0])


class _McpStream(StreamInterceptor):
    """One response: an event stream, or a JSON body as one event."""

    def __init__(
        self, interceptor: McpInterceptor, exchange: _Exchange, context: StreamContext
    ) -> None:
        self._interceptor = interceptor
        self._exchange = exchange
        self._context = context
        self._succeeds = True
        self._live: LiveSession | None = None
        self._begun = False
        # A part that `through_current` has made takes the place of those that were there when the
        # stream began.
        self._is_first_choice = context.method == "GET" and live_of(context) is None

    def on_start(self, head: ResponseHead) -> None:
        self._succeeds = head.status < 300
        exchange = self._exchange
        session: str | None = head.headers.get(SESSION_ID)
        if session is not None and exchange.session is None:  # the answer to `initialize`
            exchange.session = session
            for call in exchange.calls.values():
                exchange.remember(call)

    def on_event(self, event: Event) -> EventResult:
        if event.is_body:
            return self._on_body(event)
        if self._is_first_choice:
            self._find_session(event)
            live = self._live
            if live is not None and live.superseded:
                return through_current(live, event) if live.leader is self._interceptor else event
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
        # The responses to the others of a batch (2025-03-26) go first, as soon as the server has
        # begun to answer.
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
                raise Abort(
                    "a hook has failed, and the answers to others of the batch would be lost"
                ) from error
            raise
        if pending:
            if data and payload is None:
                raise Abort("the server answered a batch with what is no JSON")
            rest = payload.encode_each() if payload is not None else []
            return event.replace(
                (b"[" + b",".join([*rest, *map(encode_json, pending)]) + b"]").decode()
            )
        left = payload.encode() if payload is not None else None
        if payload is None or left is payload.data:
            return event
        return event.replace((left or b"").decode())  # a body cannot be dropped, only be empty

    def _read(self, data: str) -> Payload | None:
        """What the server says, shown to the hooks; None when it is no JSON. Raises what hooks
        raise, and `Abort`.
        """
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
        live, self._live = self._live, None
        if live is not None and live.leader is self._interceptor:
            self._exchange.book.close(live, outcome)

    def _find_session(self, event: Event) -> None:
        """2024-11-05, "HTTP with SSE": the first event is the URI for the client's POSTs, which is
        the session.
        """
        if self._begun or not has_data(event):
            return
        self._begun = True
        live = live_of(self._context)
        if live is None and event.event == "endpoint":
            uri = session_of(self._context.request.target, event.data)
            live = self._exchange.book.open(uri, self._context, self._interceptor)
        if live is not None:
            live.context = self._context
            self._live = live
            self._exchange.join(live)


class _Replaceable(StreamInterceptor):
    """The stream of a GET from a subclass that overrides `open_stream`: after a reload the new
    interceptors replace it.
    """

    def __init__(
        self, interceptor: McpInterceptor, stream: StreamInterceptor, context: StreamContext
    ) -> None:
        self._interceptor = interceptor
        self._stream = stream
        self._context = context
        self.needs = stream.needs
        self.passes_unseen = stream.passes_unseen

    def on_start(self, head: ResponseHead) -> None:
        self._stream.on_start(head)

    def on_event(self, event: Event) -> EventResult:
        live = live_of(self._context)
        if live is not None and live.superseded:
            return through_current(live, event) if live.leader is self._interceptor else event
        return self._stream.on_event(event)

    def on_complete(self) -> Event | Sequence[Event] | None:
        return self._stream.on_complete()

    def on_end(self, outcome: Outcome) -> None:
        self._stream.on_end(outcome)


def through_current(live: LiveSession, event: Event) -> EventResult:
    """What the MCP interceptors of the current configuration make of an event on a stream that is
    older than that.
    """
    events: list[Event] = [event]
    for owner, part in live.refresh(_open_part):
        following: list[Event] = []
        for item in events:
            try:
                with owner.timed("on_event"):
                    result = part.on_event(item)
            except Abort:
                raise
            except Exception as error:
                if owner.failed("on_event", error) is not None:
                    # `Abort` ends the stream even if the leader's `on_error` is skip.
                    raise Abort(f"the interceptor {owner.name!r} failed") from error
                result = item
            if isinstance(result, End):
                return End(*following, *result.events)
            following += [] if result is None else [result] if isinstance(result, Event) else result
        events = following
    return events[0] if len(events) == 1 else events


def _open_part(live: LiveSession, owner: Owner) -> StreamInterceptor:
    """One interceptor's part of a stream that is older than the interceptor."""
    interceptor, request = owner.interceptor, live.context.request
    assert isinstance(interceptor, McpInterceptor)
    exchange = interceptor._exchange(request, owner.name)
    exchange.join(live)
    context = StreamContext(request, live.context.emit, owner)
    part = interceptor.open_stream(context)
    if not isinstance(part, StreamInterceptor):  # an override's, that is to be awaited
        part = _McpStream(interceptor, exchange, context)
    part.on_start(ResponseHead(200, [(b"content-type", b"text/event-stream")], request))
    return part


def _may_be_old(request: Request) -> bool:
    """Whether no rule of Streamable HTTP explains this POST: it has no session, and would not take
    the answer as a stream, which a client of Streamable HTTP must; and a query, which may name a
    session of the old transport.
    """
    headers = request.headers
    return (
        request.method == "POST"
        and bool(request.query)
        and SESSION_ID not in headers
        and "text/event-stream" not in headers.get("accept", "").lower()
        and not has_mirrors(revision_of(headers))
    )


def _id_in(body: bytes) -> RequestId | None:
    """The id of a request that is refused; None where there is none, or several of which readers
    may take any.
    """
    try:
        members = json.loads(body, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    ids = (
        [value for name, value in members if name.casefold() == "id"]
        if isinstance(members, tuple)
        else []
    )
    return ids[0] if len(ids) == 1 and (isinstance(ids[0], str) or type(ids[0]) is int) else None


def _replace(message: McpMessage, response: dict[str, Any]) -> None:
    """Let another response take the place of one."""
    if "error" in response:
        message.error = response["error"]
    else:
        message.result = response["result"]
