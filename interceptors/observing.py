"""The observers that fill in `Request.operation`: of an LLM's answer, and of an MCP server's.

They stand at the upstream's side of a route's interceptors, change nothing, and stop nothing: what
they cannot read passes, and is counted and logged once a stream. `read_request` reads the request.

An answer is read until its first token, and from then on only where it has usage, an error or an
end: all other events pass unparsed.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from . import dialects
from .api import Interceptor, StreamContext, StreamInterceptor
from .dialects import Finish, MessageInterceptor, ProviderError, TextDelta, ToolCallDelta
from .dialects.messages import MessageStream
from .errors import InterceptorError, NotJson
from .event import Event
from .hooks import Owner
from .message import Request, ResponseHead
from .metering import CallStream, cut_name, read_asked
from .needs import Finder, Search, finder_of
from .operation import Operation, operation_name

__all__ = ["ObserverOwner", "observer_of", "read_request"]

_TOOL_ERROR = "tool_error"
_MCP_NEEDS = (b'"error"', b'"isError"')


class ObserverOwner(Owner):
    """The owner of an observer: no fault of it ends an exchange."""

    __slots__ = ()

    changes = False

    def failed(self, hook: str, error: Exception) -> InterceptorError | None:
        super().failed(hook, error)
        return None


def observer_of(dialect: str) -> Interceptor | None:
    """The observer for a route's dialect; None if there is nothing to observe."""
    if dialect == "mcp":
        return _McpObserver()
    return _Observer() if dialect in ("openai", "anthropic") else None


# The request


class _McpCall(msgspec.Struct):
    id: Any = None
    method: Any = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _McpParams(msgspec.Struct):
    name: Any = None
    protocol_version: Any = msgspec.field(default=None, name="protocolVersion")


def read_request(request: Request, operation: Operation, body: bytes | None) -> None:
    """Read a POST as it goes upstream. `body` None: it is not at hand. Raises nothing."""
    if operation.dialect != "mcp":
        operation.name = operation_name(request.path)
        model = read_asked(body).model if body else None
        operation.request_model = cut_name(model) if isinstance(model, str) else None
        return
    operation.mcp_session = _header(request, "mcp-session-id")
    operation.protocol_version = _header(request, "mcp-protocol-version")
    try:
        call = msgspec.json.decode(body or b"", type=_McpCall)
        params = msgspec.json.decode(call.params, type=_McpParams | None) or _McpParams()
    except (msgspec.DecodeError, RecursionError):
        return  # a batch, or nothing that an MCP server would accept
    if not isinstance(call.method, str):
        return
    operation.mcp_method = cut_name(call.method)
    if call.id is not None:
        operation.jsonrpc_id = cut_name(str(call.id))
    if call.method == "initialize" and isinstance(params.protocol_version, str):
        operation.protocol_version = cut_name(params.protocol_version)
    elif call.method == "tools/call" and isinstance(params.name, str):
        operation.tool, operation.name = cut_name(params.name), "execute_tool"
    elif call.method == "prompts/get" and isinstance(params.name, str):
        operation.prompt = cut_name(params.name)


def _header(request: Request, name: str) -> str | None:
    value: str | None = request.headers.get(name)
    return None if value is None else cut_name(value)


# Answers of LLMs


class _Observer(MessageInterceptor):
    on_error = "skip"
    sets_state = ()

    def open_messages(self, context: StreamContext) -> MessageStream | None:
        operation = context.request.operation
        return None if operation is None else _Reading(context, operation)

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        reading, operation = super().open_stream(context), context.request.operation
        if operation is None or not isinstance(reading, _Reading):
            return None
        return _Observed(reading, operation, context)


class _Reading(CallStream):
    """Notes what the parts of an answer show. Never itself a member of a chain."""

    def __init__(self, context: StreamContext, operation: Operation) -> None:
        super().__init__(context)
        self._operation = operation

    def on_text_delta(self, delta: TextDelta) -> None:
        self._note_token()

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        self._note_token()

    def _note_token(self) -> None:
        if self._operation.first_token_at is None:
            self._operation.first_token_at = trio.current_time()

    def on_finish(self, finish: Finish) -> None:
        super().on_finish(finish)
        self._operation.last_token_at = trio.current_time()
        self._operation.finish_reasons = tuple(self.reasons)

    def on_usage(self, usage: dialects.Usage) -> None:
        super().on_usage(usage)
        operation, counts = self._operation, self.counts
        given, cached, written = map(counts.get, ("input", "cached", "cache_written"))
        if given is not None and self.cached_is_apart:
            given += (cached or 0) + (written or 0)
        operation.input_tokens, operation.output_tokens = given, counts.get("output")
        operation.cache_read_tokens, operation.cache_write_tokens = cached, written
        operation.reasoning_tokens = counts.get("reasoning")

    def on_provider_error(self, error: ProviderError) -> None:
        super().on_provider_error(error)
        self._operation.error_type = self.error

    def note_names(self, event: Event) -> None:
        """Note the answer's id and model, which a message has itself or in its only object."""
        operation = self._operation
        if self.model is not None:
            operation.response_model = cut_name(self.model)
        if operation.response_id is None:
            try:
                message = event.json()
            except NotJson:
                return
            for holder in _holders(message):
                if isinstance(ident := holder.get("id"), str) and ident:
                    operation.response_id = cut_name(ident)
        if self.is_call and operation.name is None:
            operation.name = "chat"


def _holders(message: Any) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        return []
    inner = (message, message.get("response"), message.get("message"))
    return [item for item in inner if isinstance(item, dict)]


class _Observed(StreamInterceptor):
    """The member of the chain."""

    passes_unseen = True

    def __init__(self, reading: _Reading, operation: Operation, context: StreamContext) -> None:
        operation.streams = not context.is_body
        self._operation = operation
        self._reading = reading
        self._context = context
        self._find_rest: Finder | None = None
        """After the first token, finds events with usage, an error or the end."""
        if context.is_body:
            self._stop_reading_content()
        self.needs = None if context.is_body else Search(self._find)  # type: ignore[assignment]

    def on_start(self, head: ResponseHead) -> None:
        self._reading.on_start(head)

    def _find(self, buffer: bytes | bytearray, start: int, end: int) -> int:
        return start if self._find_rest is None else self._find_rest(buffer, start, end)

    def on_event(self, event: Event) -> Event:
        if event.is_body:
            self._operation.streams = False
        try:
            self._reading.on_event(event)
            self._reading.note_names(event)
            if self._find_rest is None and self._operation.first_token_at is not None:
                self._stop_reading_content()
        except Exception as error:
            self._find_rest = finder_of(())
            self._context.note_unread(f"the observer failed: {type(error).__name__}")
        return event

    def _stop_reading_content(self) -> None:
        driver = self._reading._driver
        assert driver is not None
        driver.ignore_content()
        self._find_rest = finder_of(driver.needs())


# Answers of MCP servers


class _McpObserver(Interceptor):
    on_error = "skip"
    wants_json = True
    sets_state = ()

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        operation = context.request.operation
        if operation is None or operation.mcp_method is None:
            return None
        operation.streams = not context.is_body
        return _McpObserved(operation)


class _McpObserved(StreamInterceptor):
    needs = _MCP_NEEDS
    passes_unseen = True

    def __init__(self, operation: Operation) -> None:
        self._operation = operation

    def on_start(self, head: ResponseHead) -> None:
        operation = self._operation
        if operation.mcp_session is None and "mcp-session-id" in head.headers:
            operation.mcp_session = cut_name(head.headers["mcp-session-id"])

    def on_event(self, event: Event) -> Event:
        operation = self._operation
        try:
            message = event.json()
        except NotJson:
            return event
        if not isinstance(message, dict) or message.get("method") is not None:
            return event
        ident = message.get("id")
        if ident is not None and str(ident) != operation.jsonrpc_id:
            return event  # of another request
        error, result = message.get("error"), message.get("result")
        if isinstance(error, dict):
            operation.error_type = cut_name(str(error.get("code", "error")))
        elif isinstance(result, dict) and result.get("isError") is True:
            operation.error_type = _TOOL_ERROR
        return event
