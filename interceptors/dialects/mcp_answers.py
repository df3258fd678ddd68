"""Responses to MCP clients without the server: answers of hooks, and refusals. Sans I/O.

HTTP statuses: MCP, basic/transports; where that leaves a choice, those of the official Python SDK.
"""

from __future__ import annotations

from typing import Any

from ..errors import NotJson
from ..event import Event
from ..message import Headers, Response
from ..refusals import only_id, request_ids
from .mcp import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Kind,
    McpError,
    McpMessage,
    Payload,
)
from .mcp_headers import HEADER_MISMATCH, check, has_mirrors
from .mcp_kinds import ambiguity

__all__ = [
    "NOT_JSON_IN_UTF8",
    "answer",
    "events_of",
    "refuse",
    "refuse_disguised",
    "response_to",
    "status_of",
]

NOT_JSON_IN_UTF8 = (
    "the body must have one Content-Type: application/json, "
    "without parameters or with charset=utf-8"
)
"""Of a 415: some server might read such a body differently than the interceptors."""

# From 2026-07-28 on. Before, an error has status 200 as any answer.
_STATUS = {
    PARSE_ERROR: 400,
    INVALID_REQUEST: 400,
    INVALID_PARAMS: 400,
    METHOD_NOT_FOUND: 404,
    HEADER_MISMATCH: 400,
}
_STATUS |= {-32021: 400, -32022: 400}  # a capability is missing; the revision is not supported


def response_to(message: McpMessage, given: dict[str, Any] | McpError) -> dict[str, Any]:
    """The JSON-RPC response to a request: a result, or an error."""
    head = {"jsonrpc": "2.0", "id": message.id}
    return head | ({"error": given.json()} if isinstance(given, McpError) else {"result": given})


def status_of(message: McpMessage, given: dict[str, Any] | McpError) -> int:
    """The HTTP status of that response, if it is the only one."""
    if not isinstance(given, McpError):
        return 200
    if given.http_status is not None:
        return given.http_status
    return _STATUS.get(given.code, 200) if has_mirrors(message.revision) else 200


def answer(
    headers: Headers, responses: list[dict[str, Any]], *, status: int = 200, is_batch: bool
) -> Response:
    """The answer to a POST with these headers: JSON, or a stream if the client accepts only that."""
    if status == 200 and not _accepts_json(headers):
        return Response(events=events_of(responses))
    return Response(status=status, json=responses if is_batch else responses[0])


def events_of(responses: list[dict[str, Any]]) -> list[Event]:
    """An event for each response."""
    return [Event(event="message", json=response) for response in responses]


def refuse(status: int, code: int, problem: str, ident: float | str | None = None) -> Response:
    """The refusal of a whole body. `ident`: the id of its request, if it can be read."""
    return Response(
        status=status,
        json={"jsonrpc": "2.0", "id": ident, "error": {"code": code, "message": problem}},
    )


def refuse_disguised(body: bytes, payload: Payload, headers: Headers) -> Response | None:
    """The refusal of JSON that is not MCP, or that a server may read differently; None if it is
    clear.
    """
    try:
        unclear = ambiguity(body)
    except NotJson as error:
        return refuse(400, PARSE_ERROR, str(error))
    messages = [message.json() for message in payload.messages]
    problem = payload.problem or _call_without_id(payload) or unclear
    if problem is not None:
        # Two readers of an ambiguous body may not even agree on its id.
        ident = None if unclear else only_id(request_ids(messages))
        return refuse(400, INVALID_REQUEST, problem, ident)
    rejection = check(headers, messages if payload.is_batch else messages[0])
    return None if rejection is None else Response(status=rejection.status, json=rejection.json())


def _call_without_id(payload: Payload) -> str | None:
    """Why a body has a call without an id: a server might run it, and no hook for requests saw it."""
    notified = [
        message.method or "" for message in payload.messages if message.kind is Kind.NOTIFICATION
    ]
    return (
        None
        if all(method.startswith("notifications/") for method in notified)
        else "requests must have an id"
    )


def _accepts_json(headers: Headers) -> bool:
    """Whether the client takes JSON: not if it accepts only event streams."""
    accepted = [
        item.partition(";")[0].strip().lower()
        for item in headers.get_list("accept", split_commas=True)
    ]
    return "text/event-stream" not in accepted or any(
        item in ("application/json", "application/*", "*/*") for item in accepted
    )
