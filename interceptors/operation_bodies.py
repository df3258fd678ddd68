"""What an `Operation` takes from whole JSON bodies: of requests, and of usual answers to them.

Bodies are decoded only as far as an `Operation` needs them. `read_answer` refuses every answer that
is not as providers document a call that succeeds: `observing` reads those. Sans I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Annotated, Any, Literal

import msgspec
from msgspec.json import Decoder

from .dialects.answers import has_messages, readers_for
from .dialects.anthropic import AnthropicReader
from .dialects.openai_chat import OpenAIChatReader
from .dialects.openai_responses import OpenAIResponsesReader
from .dialects.reader import Reader
from .dialects.tokens import read_counts
from .hooks import Owner
from .message import Request
from .metering import MAX_NAME, cut_name, read_asked
from .operation import Operation, operation_name

__all__ = ["read_answer", "read_mcp_answer", "read_request"]

_TOOL_ERROR = "tool_error"


_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
"""A name that `cut_name` would not change."""


class _Call(msgspec.Struct):
    model: _Name | None = None


class _McpCall(msgspec.Struct):
    id: Any = None
    method: Any = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _McpParams(msgspec.Struct):
    name: Any = None
    protocol_version: Any = msgspec.field(default=None, name="protocolVersion")


_CALL = Decoder(_Call)
_MCP_CALL = Decoder(_McpCall)
_MCP_PARAMS: Decoder[_McpParams | None] = Decoder(_McpParams | None)


def read_request(
    operation: Operation, path: str, request: Request | None, body: bytes | None
) -> None:
    """Read a POST as it goes upstream. `path`: in normal form. `request`: as interceptors left it,
    on MCP routes never None. `body` None: it is not at hand. Raises nothing.
    """
    if not has_messages(operation.dialect):
        operation.name = operation_name(path)
        if body:
            operation.request_model = _model_in(body)
        return
    assert request is not None
    operation.mcp_session = _header(request, "mcp-session-id")
    operation.protocol_version = _header(request, "mcp-protocol-version")
    try:
        call = _MCP_CALL.decode(body or b"")
        params = _MCP_PARAMS.decode(call.params) or _McpParams()
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


def _model_in(body: bytes) -> str | None:
    try:
        return _CALL.decode(body).model
    except (msgspec.DecodeError, RecursionError):
        model = read_asked(body).model
    return cut_name(model) if isinstance(model, str) else None


def _header(request: Request, name: str) -> str | None:
    value: str | None = request.headers.get(name)
    return None if value is None else cut_name(value)


# Answers of models: a member with another type, and a second choice, is for a `Reader`.


class _Answer(msgspec.Struct, gc=False):
    id: _Name
    model: _Name | None = None
    usage: dict[str, Any] | None = None
    error: None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: _Name | None = None
    usage: None = None
    error: None = None


class _Groq(msgspec.Struct, gc=False):
    usage: None = None
    error: None = None


class _ChatAnswer(_Answer, kw_only=True, gc=False):
    choices: tuple[_Choice]
    object: Literal["chat.completion"] | None = None
    type: None = None
    x_groq: _Groq | None = None

    @property
    def reason(self) -> str | None:
        return self.choices[0].finish_reason


class _Response(_Answer, kw_only=True, gc=False):
    object: Literal["response"]
    reason: Literal["completed"] = msgspec.field(name="status")


class _Message(_Answer, kw_only=True, gc=False):
    type: Literal["message"]
    reason: _Name | None = msgspec.field(name="stop_reason")


_ANSWERS: Mapping[type[Reader], Decoder[Any]] = {
    OpenAIChatReader: Decoder(_ChatAnswer),
    OpenAIResponsesReader: Decoder(_Response),
    AnthropicReader: Decoder(_Message),
}


def read_answer(operation: Operation, owner: Owner, path: str, body: bytes) -> bool:
    """Read a whole body of an LLM's answer. False: it is not a usual one, and nothing is read.
    `path`: of the request, in normal form. Raises nothing.
    """
    readers = readers_for(operation.dialect, path)
    if len(readers) != 1 or operation.name is None:
        return False
    began = perf_counter()
    try:
        answer = _ANSWERS[readers[0]].decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    if not answer.id:
        return False
    operation.streams = False
    operation.response_id = answer.id
    operation.response_model = answer.model
    if reason := answer.reason:
        operation.finish_reasons = (reason,)
    if answer.usage is not None:
        operation.set_counts(
            read_counts(answer.usage), cached_is_apart=readers[0] is AnthropicReader
        )
    owner.note("read", perf_counter() - began)
    return True


# Answers of MCP servers


class _McpResult(msgspec.Struct):
    is_error: Any = msgspec.field(default=None, name="isError")


class _McpAnswer(msgspec.Struct):
    id: Any = None
    method: Any = None
    error: Any = None
    result: _McpResult | None = None


_MCP_ANSWER = Decoder(_McpAnswer)


def read_mcp_answer(operation: Operation, data: bytes | str) -> None:
    """Read a message of an MCP server: it may be the answer to the call. Raises nothing."""
    try:
        answer = _MCP_ANSWER.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return
    if answer.method is not None:
        return
    if answer.id is not None and cut_name(str(answer.id)) != operation.jsonrpc_id:
        return  # of another request
    operation.is_answered = answer.error is not None or answer.result is not None
    if isinstance(answer.error, dict):
        operation.error_type = cut_name(str(answer.error.get("code", "error")))
    elif answer.result is not None and answer.result.is_error is True:
        operation.error_type = _TOOL_ERROR
