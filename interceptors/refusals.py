"""The JSON body of an error in each dialect, for refusals of interceptors and of the proxy. Sans
I/O.

The official SDKs parse these shapes, raise their own exceptions for them and show the message. An
unknown dialect has the generic shape. `proxy/dialects` adds what only the proxy needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ERROR_FORMATS", "ErrorFormat", "error_format", "error_json", "only_id", "request_ids"]


class ErrorFormat:
    """The error body of a dialect: here the generic one. Stateless."""

    is_json_rpc = False
    """An error carries the id of the JSON-RPC request that it answers: the proxy collects bodies.
    """

    def body(
        self, status: int, kind: str, message: str, ident: float | str | None = None
    ) -> dict[str, Any]:
        """The error as a JSON object. `ident`: the id of the JSON-RPC request, if there is one."""
        return {"error": {"type": kind, "message": message}}


class _OpenAIErrors(ErrorFormat):
    """platform.openai.com/docs/guides/error-codes."""

    def body(
        self, status: int, kind: str, message: str, ident: float | str | None = None
    ) -> dict[str, Any]:
        family = "invalid_request_error" if status < 500 else "server_error"
        if status == 429:
            family = "rate_limit_error"
        return {"error": {"message": message, "type": family, "param": None, "code": kind}}


class _AnthropicErrors(ErrorFormat):
    """docs.anthropic.com, "Errors"."""

    families: Mapping[int, str] = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }

    def body(
        self, status: int, kind: str, message: str, ident: float | str | None = None
    ) -> dict[str, Any]:
        family = self.families.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": family, "message": message}}


class _McpErrors(ErrorFormat):
    """JSON-RPC has -32600 for an invalid request and -32603 for an internal error.

    -32000 to -32019 are free for implementations: the SDKs use -32000 for a lost connection and
    -32001 for a timeout.
    """

    is_json_rpc = True
    codes: Mapping[int, int] = {401: -32000, 408: -32001, 429: -32000, 500: -32603, 504: -32001}

    def body(
        self, status: int, kind: str, message: str, ident: float | str | None = None
    ) -> dict[str, Any]:
        code = self.codes.get(status, -32600 if status < 500 else -32000)
        return {
            "jsonrpc": "2.0",
            "id": ident,
            "error": {"code": code, "message": message, "data": {"type": kind}},
        }


_GENERIC = ErrorFormat()
ERROR_FORMATS: Mapping[str, ErrorFormat] = {
    "openai": _OpenAIErrors(),
    "anthropic": _AnthropicErrors(),
    "mcp": _McpErrors(),
    "generic": _GENERIC,
    "abort": _GENERIC,
}
"""By the names of `Request.dialect`."""


def error_format(dialect: str) -> ErrorFormat:
    """The error format of a dialect, the generic one if the name is unknown."""
    return ERROR_FORMATS.get(dialect, _GENERIC)


def error_json(
    dialect: str, status: int, kind: str, message: str, ident: float | str | None = None
) -> dict[str, Any]:
    """The error as a JSON object. `ident`: the id of the JSON-RPC request that it answers."""
    return error_format(dialect).body(status, kind, message, ident)


def request_ids(message: Any) -> list[float | str]:
    """The ids of the JSON-RPC requests in a decoded body, which may be a batch.

    Notifications and responses have none.
    """
    found: list[float | str] = []
    for item in message if isinstance(message, list) else [message]:
        if isinstance(item, dict) and isinstance(item.get("method"), str):
            ident = item.get("id")
            if isinstance(ident, (int, float, str)) and not isinstance(ident, bool):
                found.append(ident)
    return found


def only_id(ids: Sequence[float | str]) -> float | str | None:
    """The id of an error that answers a whole body: None for a batch with several requests.

    MCP 2025-03-26, "Sending Messages to the Server": a refused batch gets one error without an id.
    """
    return ids[0] if len(ids) == 1 else None
