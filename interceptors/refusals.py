"""The JSON body of an error, in each dialect's shape: for refusals of interceptors and of the proxy
alike. Sans I/O.

Official SDKs parse these shapes: they raise their own exceptions and show the message. Names:
`Request.dialect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["error_json", "only_id", "request_ids"]

# docs.anthropic.com, "Errors". Any other 4xx is an invalid_request_error, any other 5xx an
# api_error.
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# platform.openai.com/docs/guides/error-codes. Any other 4xx is an invalid_request_error, any other
# 5xx a server_error.
_OPENAI = {429: "rate_limit_error"}
# JSON-RPC has -32600 for an invalid request (any other 4xx here) and -32603 for an internal error.
# -32000 to -32019 are free for implementations: the SDKs use -32000 for a lost connection and
# -32001 for a timeout. Any other 5xx is -32000.
_MCP = {401: -32000, 408: -32001, 429: -32000, 500: -32603, 504: -32001}


def error_json(
    dialect: str, status: int, kind: str, message: str, ident: float | str | None = None
) -> dict[str, Any]:
    """The error as a JSON object. `ident`: the id of the JSON-RPC request that it answers, used on
    routes of `dialect: mcp`.
    """
    if dialect == "openai":
        family = _OPENAI.get(status, "invalid_request_error" if status < 500 else "server_error")
        return {"error": {"message": message, "type": family, "param": None, "code": kind}}
    if dialect == "anthropic":
        family = _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": family, "message": message}}
    if dialect == "mcp":
        code = _MCP.get(status, -32600 if status < 500 else -32000)
        return {
            "jsonrpc": "2.0",
            "id": ident,
            "error": {"code": code, "message": message, "data": {"type": kind}},
        }
    return {"error": {"type": kind, "message": message}}


def request_ids(message: Any) -> list[float | str]:
    """The ids of the JSON-RPC requests in a decoded body, which may be a batch. Notifications and
    responses have none.
    """
    found: list[float | str] = []
    for item in message if isinstance(message, list) else [message]:
        if isinstance(item, dict) and isinstance(item.get("method"), str):
            ident = item.get("id")
            if isinstance(ident, (int, float, str)) and not isinstance(ident, bool):
                found.append(ident)
    return found


def only_id(ids: Sequence[float | str]) -> float | str | None:
    """The id of a response to a whole body. None for a batch with several requests.

    MCP 2025-03-26, "Sending Messages to the Server": a refused batch gets one error response
    without an id.
    """
    return ids[0] if len(ids) == 1 else None
