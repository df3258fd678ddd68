"""The span of an exchange: its name, its attributes, its events; and the context inside messages.

OpenTelemetry's semantic conventions for HTTP, generative AI and MCP. It adds no content, no query
and no header but `User-Agent`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from interceptors import HookError, Outcome, Request

from ..http.headers import find_header
from ..telemetry import ExchangeSpan, FinishedSpan, context_in_message, message_with_context
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
    """Put the span's context into the body, if messages of the dialect carry it."""
    if span.propagates and route.dialect.carries_trace:
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
    error_type, error = _error_of(progress, ended)
    attributes = _http_attributes(request, route, ended.status)
    attributes |= _own_attributes(request, route, progress, ended.ending)
    if error_type is not None:
        attributes["error.type"] = error_type
    if progress.first_read is not None:
        span.add_event("first_byte", progress.first_read)
    interceptor = interceptor_of(ended.ending, progress)
    if interceptor is not None:
        attributes["weirpool.interceptor"] = interceptor
        if progress.answered_by is None:
            span.add_event("intercepted", ended.at, {"weirpool.interceptor": interceptor})
    return FinishedSpan(span, _name_of(request, route), ended.at, attributes, error)


def _name_of(request: ClientRequest, route: Route | None) -> str:
    """Low cardinality: HTTP conventions, "Name"."""
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


def _error_of(progress: Progress, ended: Ended) -> tuple[str | None, str | None]:
    """`error.type` and the status' text; None and None for success.

    A client that leaves is no error of the call. A response of 4xx is one: HTTP conventions,
    "Status", for clients.
    """
    ending, status = ended.ending, ended.status
    failure, text = ending.failure, ""
    if ending.outcome is Outcome.CLIENT_DISCONNECTED:
        return None, None
    kind = error_type_of(ending, status, progress)
    if kind is None and status is not None and status >= 400:
        kind = str(status)
    if kind is None:
        return None, None
    if failure is not None:
        text = failure.summary if isinstance(failure, HookError) else str(failure)
    return kind, text
