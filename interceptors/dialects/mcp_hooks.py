"""Interceptors of MCP messages: subclass `McpInterceptor`, and mark methods as hooks.

    class NoShell(McpInterceptor):
        strict = True

        @on_mcp_request("tools/call")
        def no_shell(self, message: McpMessage) -> McpError | None:
            return McpError(INVALID_PARAMS, "no shells here") if message.name == "shell" else None

Uses the plug-in API only. Invariants: each message is shown once to each hook; a request that a
hook has answered never goes upstream, and its answer reaches the client once; what no hook has
changed leaves byte for byte; what is not MCP passes unseen, or, with `strict`, ends in an error.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pools import decode_json, encode_json

from ..api import AsyncStreamInterceptor, Interceptor, StreamContext, StreamInterceptor
from ..content import content_coding, is_json_in_utf8, is_json_type
from ..errors import Misused, NotJson
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
    refuse,
    refuse_disguised,
    response_to,
    status_of,
)
from .mcp_exchange import McpExchange, id_in, may_be_old, open_exchange
from .mcp_headers import mirror
from .mcp_marks import (
    MarkedHook,
    marked_hooks,
    on_mcp_notification,
    on_mcp_request,
    on_mcp_response,
)
from .mcp_sessions import McpSessions, SessionBook, canonical
from .mcp_streams import McpStream, ReplaceableStream

__all__ = ["McpInterceptor", "on_mcp_notification", "on_mcp_request", "on_mcp_response"]

_NO_SUCH_METHOD = "weirpool/denied"
"""The method of a denied call that only the server can answer, on the session's stream."""


class McpInterceptor(Interceptor):
    """One per process, as any interceptor. Mark methods with `on_mcp_request`, `on_mcp_response` or
    `on_mcp_notification`; they are synchronous, take one `McpMessage`, and run in the order of
    their definition. They may have any name that no hook has.

    A subclass that overrides `on_request`, `on_response` or `open_stream` calls `super()`'s.
    """

    wants_body = True
    wants_json = True

    strict: bool = False
    """What happens to a body that is not MCP.

    False: it passes unseen; only a batch of more than 100 messages is refused, with 400. True, for
    interceptors that protect: a client's body is refused with 400 when it is not JSON-RPC, when two
    readers may understand it differently, when it is a request without an id, or when it
    contradicts its headers; with 415 when it is compressed, or does not have exactly one
    Content-Type that means JSON in UTF-8. A successful response or an event that is not JSON aborts
    the response.
    """

    _hooks: ClassVar[dict[Kind, tuple[MarkedHook, ...]]] = {}
    # For requests without a proxy. Made in `__new__`: subclasses need not call `super().__init__`.
    _own_sessions: McpSessions

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._hooks = marked_hooks(cls)

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        made = super().__new__(cls)
        made._own_sessions = McpSessions()
        return made

    async def on_request(self, request: Request) -> Response | None:
        """Show the client's messages to the hooks."""
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
        if responses and not on_stream and may_be_old(request):
            self._let_server_answer(exchange, payload, responses)
            return None
        if left is not None:
            request.replace_body(left)
            if not payload.is_batch and not exchange.old:
                mirror(request.headers, payload.messages[0].json(), decode_json(body))
        if on_stream:
            return Response("Accepted", status=202) if left is None else None
        exchange.pending.extend(responses)
        return None if left is not None else self._answer_all(exchange, payload, status)

    def _answer_all(self, exchange: McpExchange, payload: Payload, status: int) -> Response:
        """The response to a POST of which nothing goes upstream."""
        responses = exchange.take_pending()
        if not responses:
            return Response(status=202)  # notifications, all of them dropped
        return answer(
            exchange.request.headers,
            responses,
            status=200 if payload.is_batch else status,
            is_batch=payload.is_batch,
        )

    async def on_response(self, head: ResponseHead) -> Response | None:
        """Send the answers that hooks gave to a batch if the response to its rest cannot."""
        exchange = self._exchange(head.request)
        if exchange.denied and head.status >= 300 and not exchange.calls:
            # The server did not accept the denied call, so it has no such session: answer here.
            is_batch = isinstance(decode_json(head.request.body), list)
            return answer(head.request.headers, list(exchange.denied.values()), is_batch=is_batch)
        if head.status >= 300:
            exchange.take_pending()  # refused as a whole: the client must see that
        if not exchange.pending:
            return None
        has_messages = head.media_type == "text/event-stream" or is_json_type(head.media_type)
        if head.status in (202, 204) or not has_messages:
            return answer(head.request.headers, exchange.take_pending(), is_batch=True)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return McpStream(self, self._exchange(context.request), context)

    def _opened(
        self, stream: StreamInterceptor | AsyncStreamInterceptor, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor:
        own = type(self).open_stream is McpInterceptor.open_stream
        if own or context.method != "GET" or not isinstance(stream, StreamInterceptor):
            return stream
        return ReplaceableStream(self, stream, context)

    def _exchange(self, request: Request, name: str | None = None) -> McpExchange:
        key = f"mcp.{id(self)}"
        exchange: McpExchange | None = request.state.get(key)
        if exchange is None:
            book: SessionBook = request.sessions or self._own_sessions.of("")
            if name is None:
                name = "" if request.asked is None else request.asked.name
            exchange = request.state[key] = open_exchange(request, name, book)
        return exchange

    def _read_client(
        self, exchange: McpExchange, body: bytes
    ) -> tuple[Response | None, Payload | None]:
        """A refusal (strict, and the body is not MCP), or the messages of a body.

        Neither for a body that passes unseen.
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

    async def _refuse(self, exchange: McpExchange, body: bytes, refusal: Response) -> Response:
        """A refusal. On the old transport it goes to the stream: a 4xx would end the session, and
        the call would wait for its answer.
        """
        error = decode_json(refusal.body)
        error["id"] = id_in(body) if error["id"] is None else error["id"]
        on_stream = await self._answer_on_stream(exchange, [error])
        return Response("Accepted", status=202) if on_stream else refusal

    def _from_client(
        self, exchange: McpExchange, payload: Payload
    ) -> tuple[list[dict[str, Any]], int]:
        """Run the hooks. Returns the responses that they gave, and the HTTP status of the last."""
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

    def _from_server(self, exchange: McpExchange, payload: Payload) -> None:
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
                    "a request of the server can be changed, not answered: the answer would be the "
                    "client's to send"
                )
            if message.kind is Kind.REQUEST:
                exchange.remember(message.call)

    def _run(self, message: McpMessage) -> dict[str, Any] | McpError | None:
        """Show a message to its hooks. Returns the answer of one of them."""
        for hook in self._hooks.get(message.kind, ()):
            if hook.matches is not None:
                request = message.request
                method = message.method or (request.method if request is not None else None)
                if method is None or not hook.matches(method):
                    continue
            given: Any = getattr(self, hook.name)(message)
            if given is not None:
                is_request = message.kind is Kind.REQUEST
                if not is_request or not isinstance(given, (dict, McpError)):
                    expected = "a dict, an McpError or None" if is_request else "None"
                    raise Misused(
                        f"{type(self).__qualname__}.{hook.name} returned {type(given).__name__}, "
                        f"expected {expected}"
                    )
                return given
            if message.dropped:
                return None
        return None

    async def _answer_on_stream(
        self, exchange: McpExchange, responses: list[dict[str, Any]]
    ) -> bool:
        """Whether the POST belongs to an old-transport session, here or in another process: its
        answer then went to the session's stream, and the POST gets 202 (2024-11-05, "HTTP with
        SSE").
        """
        request = exchange.request
        if request.method != "POST":
            return False
        messages = [encode_json(response).decode() for response in responses]
        # Headers do not decide: clients of the old transport may send `Mcp-Session-Id`.
        return await exchange.book.deliver(canonical(request.target), messages)

    def _let_server_answer(
        self, exchange: McpExchange, payload: Payload, responses: list[dict[str, Any]]
    ) -> None:
        """The session may be known to another machine: only the server can answer on its stream."""
        exchange.denied = {response["id"]: response for response in responses}
        left: list[Any] = []
        for message in payload.messages:
            if message.id in exchange.denied and message.kind is Kind.REQUEST:
                left.append({"jsonrpc": "2.0", "id": message.id, "method": _NO_SUCH_METHOD})
            elif not message.dropped:
                left.append(message.json())
        exchange.request.replace_body(json=left if payload.is_batch else left[0])


def _replace(message: McpMessage, response: dict[str, Any]) -> None:
    """Let another response take the place of one."""
    if "error" in response:
        message.error = response["error"]
    else:
        message.result = response["result"]
