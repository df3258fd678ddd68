"""The span of an exchange: its name, its attributes, its events; and the context inside messages.

OpenTelemetry's semantic conventions for HTTP, generative AI and MCP. It adds no content, no query
and no header but `User-Agent`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from interceptors import HookError, Outcome, Request
from interceptors.operation import Operation

from ..http.headers import find_header
from ..telemetry import (
    ExchangeSpan,
    FinishedSpan,
    SpanEvent,
    context_in_message,
    message_with_context,
)
from ..worker.routes import Route
from .context import Progress
from .ending import Ending
from .line import error_type_of, interceptor_of
from .request import ClientRequest

__all__ = ["Ended", "finish_span", "join_trace", "pass_trace"]

_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
_MOST_CHARS = 1024


class Ended(msgspec.Struct, frozen=True):
    """How an exchange ended."""

    ending: Ending
    status: int | None
    """The status that the client got."""
    at: float
    """Trio's time."""


def join_trace(span: ExchangeSpan, route: Route, request: Request) -> None:
    """Take the client's context from the body, if there is none in the headers and messages of the
    dialect carry it.
    """
    if span.parent is None and span.propagates and route.dialect.carries_trace:
        parent = context_in_message(request.body)
        if parent is not None:
            span.join(parent)
            request.trace_id = span.trace_id


def pass_trace(span: ExchangeSpan, route: Route, request: Request) -> None:
    """Put the span's context into the body, if messages of the dialect carry it and the upstream
    shall have it.
    """
    removed = b"traceparent" in route.headers.removed
    if span.propagates and route.dialect.carries_trace and not removed:
        body = message_with_context(request.body, span)
        if body is not None:
            request.replace_body(body)


def finish_span(
    span: ExchangeSpan,
    request: ClientRequest,
    route: Route | None,
    progress: Progress,
    ended: Ended,
) -> FinishedSpan:
    """A sampled span with everything that is known at the exchange's end."""
    operation = progress.operation
    error_type, error = _error_of(operation, progress, ended)
    attributes = _http_attributes(request, route, ended.status)
    attributes |= _own_attributes(request, route, progress, ended.ending)
    if operation is not None:
        attributes |= _call_attributes(operation, progress)
        if operation.streams and operation.first_token_at is not None:
            span.events.append(SpanEvent("first_token", operation.first_token_at, {}))
    if error_type is not None:
        attributes["error.type"] = error_type
    if progress.first_read is not None:
        span.events.append(SpanEvent("first_byte", progress.first_read, {}))
    interceptor = interceptor_of(ended.ending, progress)
    if interceptor is not None:
        attributes["weirpool.interceptor"] = interceptor
        if progress.answered_by is None:
            about = {"weirpool.interceptor": interceptor}
            span.events.append(SpanEvent("intercepted", ended.at, about))
    name = _name_of(request, route, operation)
    return FinishedSpan(span, name, ended.at, attributes, error)


def _name_of(request: ClientRequest, route: Route | None, operation: Operation | None) -> str:
    """As the conventions want it: of a call, or else of the request."""
    if operation is not None:
        about = operation.tool or operation.prompt or operation.request_model
        name = operation.mcp_method or operation.name
        if name is not None:
            return name if about is None else f"{name} {about}"
    method = request.method if request.method in _METHODS else "HTTP"
    return method if route is None else f"{method} {route.name}"


def _http_attributes(
    request: ClientRequest, route: Route | None, status: int | None
) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": request.method if request.method in _METHODS else "_OTHER",
        "url.path": request.path[:_MOST_CHARS],
    }
    if request.method not in _METHODS:
        attributes["http.request.method_original"] = request.method[:_MOST_CHARS]
    if status is not None:
        attributes["http.response.status_code"] = status
    if route is not None:
        attributes["http.route"] = route.name
    agent = find_header(request.headers, b"user-agent")
    if agent is not None:
        attributes["user_agent.original"] = agent[:_MOST_CHARS].decode("latin-1")
    if request.client is not None:
        attributes["client.address"] = request.client
    return attributes


def _own_attributes(
    request: ClientRequest, route: Route | None, progress: Progress, ending: Ending
) -> dict[str, Any]:
    assert ending.outcome is not None
    attributes: dict[str, Any] = {
        "weirpool.outcome": ending.outcome.value,
        "weirpool.request_id": request.request_id,
    }
    if route is not None:
        attributes["weirpool.upstream"] = route.upstream
    endpoint = None if progress.upstream is None else progress.upstream.endpoint
    if endpoint is not None:
        attributes["weirpool.endpoint"] = endpoint.origin
        attributes["server.address"] = endpoint.server.host
        attributes["server.port"] = endpoint.server.port
    shown = progress.request
    if shown is not None and shown.client_name not in (None, request.client):
        attributes["weirpool.client"] = shown.client_name
    if progress.counts is not None:
        attributes["weirpool.events"] = progress.counts.total
    return attributes


_CALL_ATTRIBUTES = (
    ("gen_ai.operation.name", "name"),
    ("gen_ai.request.model", "request_model"),
    ("gen_ai.response.model", "response_model"),
    ("gen_ai.response.id", "response_id"),
    ("gen_ai.usage.input_tokens", "input_tokens"),
    ("gen_ai.usage.output_tokens", "output_tokens"),
    ("gen_ai.usage.cache_read.input_tokens", "cache_read_tokens"),
    ("gen_ai.usage.cache_write.input_tokens", "cache_write_tokens"),
    ("gen_ai.usage.reasoning.output_tokens", "reasoning_tokens"),
    ("gen_ai.tool.name", "tool"),
    ("gen_ai.prompt.name", "prompt"),
    ("mcp.method.name", "mcp_method"),
    ("mcp.protocol.version", "protocol_version"),
    ("jsonrpc.request.id", "jsonrpc_id"),
)


def _call_attributes(operation: Operation, progress: Progress) -> dict[str, Any]:
    """The call of a model or an MCP server."""
    attributes: dict[str, Any] = {
        name: value
        for name, field in _CALL_ATTRIBUTES
        if (value := getattr(operation, field)) is not None
    }
    if operation.mcp_method is None and operation.name is not None:
        if operation.provider is not None:
            attributes["gen_ai.provider.name"] = operation.provider
        if operation.finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = list(operation.finish_reasons)
        if operation.streams:
            attributes["gen_ai.request.stream"] = True
            if progress.first_byte_s is not None:
                attributes["gen_ai.response.time_to_first_chunk"] = progress.first_byte_s
    if operation.mcp_session is not None:
        attributes["mcp.session.id"] = _digest(operation.mcp_session)
    code = operation.error_type or ""
    is_json_rpc = operation.mcp_method is not None and code != str(operation.status)
    if is_json_rpc and code.lstrip("-").isdigit():
        attributes["rpc.response.status_code"] = code
    return attributes


def _digest(session: str) -> str:
    """Joins the spans of a session; the id itself is a credential."""
    return blake2b(session.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _error_of(
    operation: Operation | None, progress: Progress, ended: Ended
) -> tuple[str | None, str | None]:
    """`error.type` and the status' text; None and None for success.

    A client that leaves is not an error of the call. A response of 4xx is one: HTTP conventions,
    "Status", for clients.
    """
    ending, status = ended.ending, ended.status
    failure, text = ending.failure, ""
    answered = None if operation is None else operation.error_type
    if ending.outcome is Outcome.CLIENT_DISCONNECTED:
        # MCP clients leave as soon as they have the answer, which can be an error.
        kind = None if answered == ending.outcome.value else answered
        return kind, None if kind is None else text
    kind = error_type_of(ending, status, progress) or answered
    if kind is None and status is not None and status >= 400:
        kind = str(status)
    if kind is None:
        return None, None
    if failure is not None:
        text = failure.summary if isinstance(failure, HookError) else str(failure)
    return kind, text
