"""Something like OpenAI's and Anthropic's APIs on a loopback socket. How it answers is the
request's `model`, as a test wants it.

`POST /v1/chat/completions`, `/v1/responses` and `/v1/messages`, streamed when the body says
`"stream": true`. Models:

- `text`, `tools`, `thinking`: what they say; `tools` calls two tools at once, `thinking` shows what
  it thinks first.
- `error-400`, `error-429`, `error-500`, `error-503`, `error-529`: that status, with the provider's
  own body and headers.
- `error-429-once`: that once, then as `text`. `error-500-final`: the headers forbid another
  attempt.
- `error-event`: two events, then an error in the stream. `lost`: the connection breaks there.
  `lost-head`: before the head.
- `wait-head`, `wait-first`, `wait-second`: sends nothing; the head; the head and the first event;
  then waits until it is left. `wait-body`, not streamed: the head and the beginning of the body.

What is not streamed is compressed for clients that take that, as both providers do.
Nothing here is random or from a clock, so that two answers to the same request are equal.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from support.upstream import Peer, Request, Upstream, open_upstream

__all__ = ["LlmUpstream", "open_llm_upstream"]

_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 23,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_TEXT = [
    "A weir ",
    "lets the river run ",
    "– und hält ",
    "es doch 水 ",
    "in hand.\n\ndata: not an event\n",
]
_ARGUMENTS = [('{"city":"', 'Köln","u', 'nit":"c"}'), ("{", '"query": "a \\"weir\\""', "}")]
_TOOLS = [("call_1", "weather"), ("call_2", "search")]


@dataclass
class LlmUpstream:
    """What the upstream has seen. Times are of `time.perf_counter`, which all threads share."""

    upstream: Upstream
    asked: Counter[str] = field(default_factory=Counter)
    """How many requests there were, by model."""
    waits: int = 0
    """Requests that wait for the client to leave."""
    left_at: list[float] = field(default_factory=list)
    """When the connections of those were closed."""

    @property
    def url(self) -> str:
        return self.upstream.url


@asynccontextmanager
async def open_llm_upstream() -> AsyncIterator[LlmUpstream]:
    """Serve on a free loopback port."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            body = json.loads(request.body)
            llm.asked[body["model"]] += 1
            await _answer(llm, peer, request, body["model"], stream=body.get("stream", False))

    async with open_upstream(script) as upstream:
        llm = LlmUpstream(upstream)
        yield llm


async def _answer(
    llm: LlmUpstream, peer: Peer, request: Request, model: str, *, stream: bool
) -> None:
    path = request.target.partition(b"?")[0]
    anthropic = path == b"/v1/messages"
    if (
        model.startswith("error-")
        and model != "error-event"
        and not (model.endswith("-once") and llm.asked[model] % 2 == 0)
    ):
        await _refuse(peer, int(model[6:9]), anthropic=anthropic, final=model.endswith("-final"))
        return
    if model == "lost-head":
        raise EOFError
    if model == "wait-head":
        await _wait(llm, peer)
    whole, events, error = {
        b"/v1/chat/completions": (_completion, _completion_events, _OPENAI_ERROR),
        b"/v1/responses": (_response, _response_events, _RESPONSES_ERROR),
        b"/v1/messages": (_message, _message_events, _ANTHROPIC_ERROR),
    }[path]
    said = model if model in ("tools", "thinking") else "text"
    name = b"request-id: req_0001" if anthropic else b"x-request-id: req_0001"
    if not stream:
        lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", name]
        data = json.dumps(whole(said)).encode()
        if any(b"gzip" in value for value in request.all("accept-encoding")):
            data = gzip.compress(data, mtime=0)
            lines += [b"Content-Encoding: gzip", b"Vary: Accept-Encoding"]
        head = b"\r\n".join([*lines, b"Content-Length: %d\r\n\r\n" % len(data)])
        if model == "wait-body":
            await peer.send(head + data[:100])
            await _wait(llm, peer)
        await peer.send(head + data)
        return
    await peer.start_stream(name, b"Cache-Control: no-cache")
    if model == "wait-first":
        await _wait(llm, peer)
    for count, event in enumerate(events(said)):
        await peer.chunk(event)
        if model == "wait-second":
            await _wait(llm, peer)
        if count == 1 and model == "error-event":
            await peer.chunk(error)
            break
        if count == 1 and model == "lost":
            raise EOFError
    await peer.end()


async def _wait(llm: LlmUpstream, peer: Peer) -> None:
    llm.waits += 1
    await peer.wait_closed()
    llm.left_at.append(time.perf_counter())
    raise EOFError


# --- errors
# ----------------------------------------------------------------------------------------------------------------

_REASONS = {
    400: "Bad Request",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    529: "",
}
_OPENAI_KINDS: dict[int, tuple[str, str, str | None, str | None]] = {
    400: (
        "Unsupported value: 'temperature' must be at most 2.",
        "invalid_request_error",
        "temperature",
        "unsupported_value",
    ),
    429: (
        "Rate limit reached for requests. Please try again in 5ms.",
        "requests",
        None,
        "rate_limit_exceeded",
    ),
    500: (
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
        None,
        None,
    ),
    503: ("The engine is currently overloaded, please try again later", "server_error", None, None),
    529: ("The engine is currently overloaded, please try again later", "server_error", None, None),
}
_ANTHROPIC_KINDS = {
    400: ("invalid_request_error", "max_tokens: Field required"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service unavailable"),
    529: ("overloaded_error", "Overloaded"),
}


async def _refuse(peer: Peer, status: int, *, anthropic: bool, final: bool) -> None:
    """An error with its provider's body and headers; Retry-After is 5 ms, to keep tests quick."""
    lines = ["Content-Type: application/json"]
    if anthropic:
        kind, message = _ANTHROPIC_KINDS[status]
        body: dict[str, Any] = {
            "type": "error",
            "error": {"type": kind, "message": message},
            "request_id": "req_0002",
        }
        lines += [
            "request-id: req_0002",
            f"x-should-retry: {'false' if final or status == 400 else 'true'}",
        ]
        if status == 429:
            lines += [
                "anthropic-ratelimit-requests-remaining: 0",
                "anthropic-ratelimit-requests-reset: 2026-01-02T03:04:05Z",
            ]
    else:
        text, kind, param, code = _OPENAI_KINDS[status]
        body = {"error": {"message": text, "type": kind, "param": param, "code": code}}
        lines += ["x-request-id: req_0002", "openai-processing-ms: 4"]
        if final:
            lines.append("x-should-retry: false")
        if status == 429:
            lines += [
                "x-ratelimit-remaining-requests: 0",
                "x-ratelimit-reset-requests: 5ms",
                "retry-after-ms: 5",
            ]
    if status != 400:
        lines.append("retry-after: 0.005")
    data = json.dumps(body).encode()
    head = "\r\n".join(
        [f"HTTP/1.1 {status} {_REASONS[status]}", *lines, f"Content-Length: {len(data)}"]
    )
    await peer.send(head.encode() + b"\r\n\r\n" + data)


# --- OpenAI, chat completions
# ----------------------------------------------------------------------------------------------

_OPENAI_ERROR = (
    b'data: {"error":{"message":"The server had an error while processing your request.","type":"server_error",'
    b'"param":null,"code":null}}\n\n'
)


def _completion(said: str) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(_TEXT),
        "refusal": None,
        "annotations": [],
    }
    if said == "tools":
        calls = zip(_TOOLS, _ARGUMENTS, strict=True)
        message |= {
            "content": None,
            "tool_calls": [_tool_call(tool, "".join(arguments)) for tool, arguments in calls],
        }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1767323045,
        "model": "gpt-test",
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(said)}
        ],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def _tool_call(tool: tuple[str, str], arguments: str) -> dict[str, Any]:
    return {
        "id": tool[0],
        "type": "function",
        "function": {"name": tool[1], "arguments": arguments},
    }


def _finish(said: str) -> str:
    return "tool_calls" if said == "tools" else "stop"


def _completion_events(said: str) -> Iterator[bytes]:
    def chunk(choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        head = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1767323045,
            "model": "gpt-test",
        }
        return _data({**head, "choices": choices, "usage": usage, "obfuscation": "x7"})

    def delta(found: dict[str, Any], finish: str | None = None) -> bytes:
        return chunk([{"index": 0, "delta": found, "logprobs": None, "finish_reason": finish}])

    yield delta({"role": "assistant", "content": None if said == "tools" else "", "refusal": None})
    if said == "tools":
        for index, tool in enumerate(_TOOLS):
            yield delta({"tool_calls": [{"index": index, **_tool_call(tool, "")}]})
        for pieces in zip(*_ARGUMENTS, strict=True):  # both calls grow at the same time
            for index, piece in enumerate(pieces):
                yield delta({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    else:
        for piece in _TEXT:
            yield delta({"content": piece})
    yield delta({}, _finish(said))
    yield chunk([], _USAGE)
    yield b"data: [DONE]\n\n"


# --- OpenAI, responses
# -----------------------------------------------------------------------------------------------------

_RESPONSES_ERROR = (
    b'event: error\ndata: {"type":"error","error":{"type":"server_error","code":"server_error",'
    b'"message":"The server had an error while processing your request.","param":null},"sequence_number":2}\n\n'
)


def _response(said: str, *, done: bool = True) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1767323045,
        "status": "completed" if done else "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "gpt-test",
        "output": [_item(said, index, done=True) for index in range(len(_items(said)))]
        if done
        else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": 19,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 23,
            "output_tokens_details": {"reasoning_tokens": 7 if said == "thinking" else 0},
            "total_tokens": 42,
        }
        if done
        else None,
    }


def _items(said: str) -> list[str]:
    return {"tools": ["call", "call"], "thinking": ["reasoning", "text"], "text": ["text"]}[said]


def _item(said: str, index: int, *, done: bool) -> dict[str, Any]:
    status = "completed" if done else "in_progress"
    kind = _items(said)[index]
    if kind == "call":
        call_id, name = _TOOLS[index]
        arguments = "".join(_ARGUMENTS[index]) if done else ""
        return {
            "id": f"fc_{index}", "type": "function_call", "status": status,
            "call_id": call_id, "name": name, "arguments": arguments,
        }  # fmt: skip
    if kind == "reasoning":
        return {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [_summary("".join(_TEXT))] if done else [],
        }
    content = [_part("".join(_TEXT))] if done else []
    return {
        "id": "msg_1",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _response_events(said: str) -> Iterator[bytes]:
    for number, (kind, fields) in enumerate(_response_parts(said)):
        yield _event(kind, {"type": kind, "sequence_number": number, **fields})


def _response_parts(said: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": _response(said, done=False)}
    yield "response.in_progress", {"response": _response(said, done=False)}
    for index, kind in enumerate(_items(said)):
        at = {"item_id": _item(said, index, done=False)["id"], "output_index": index}
        yield (
            "response.output_item.added",
            {"output_index": index, "item": _item(said, index, done=False)},
        )
        if kind == "call":
            for piece in _ARGUMENTS[index]:
                yield "response.function_call_arguments.delta", {**at, "delta": piece}
            arguments = {"arguments": "".join(_ARGUMENTS[index]), "name": _TOOLS[index][1]}
            yield "response.function_call_arguments.done", {**at, **arguments}
        elif kind == "reasoning":
            part: dict[str, Any] = {**at, "summary_index": 0}
            yield "response.reasoning_summary_part.added", {**part, "part": _summary("")}
            for piece in _TEXT:
                yield "response.reasoning_summary_text.delta", {**part, "delta": piece}
            yield "response.reasoning_summary_text.done", {**part, "text": "".join(_TEXT)}
            yield "response.reasoning_summary_part.done", {**part, "part": _summary("".join(_TEXT))}
        else:
            part = {**at, "content_index": 0}
            yield "response.content_part.added", {**part, "part": _part("")}
            for piece in _TEXT:
                yield "response.output_text.delta", {**part, "delta": piece, "logprobs": []}
            yield "response.output_text.done", {**part, "text": "".join(_TEXT), "logprobs": []}
            yield "response.content_part.done", {**part, "part": _part("".join(_TEXT))}
        yield (
            "response.output_item.done",
            {"output_index": index, "item": _item(said, index, done=True)},
        )
    yield "response.completed", {"response": _response(said)}


# --- Anthropic, messages
# ---------------------------------------------------------------------------------------------------

_ANTHROPIC_ERROR = (
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},'
    b'"request_id":"req_0001"}\n\n'
)
_ANTHROPIC_USAGE = {
    "input_tokens": 19,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 23,
}


def _blocks(said: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each content block as it starts, and its deltas."""
    text = (
        {"type": "text", "text": ""},
        [{"type": "text_delta", "text": piece} for piece in _TEXT],
    )
    if said == "tools":
        calls = [
            (
                {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}},
                [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *pieces)],
            )
            for index, ((_, name), pieces) in enumerate(zip(_TOOLS, _ARGUMENTS, strict=True))
        ]
        return [text, *calls]
    if said == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _TEXT]
        thinking = {"type": "thinking", "thinking": "", "signature": ""}
        return [(thinking, [*deltas, {"type": "signature_delta", "signature": "EqQBCg=="}]), text]
    return [text]


def _message(said: str) -> dict[str, Any]:
    content = []
    for block, deltas in _blocks(said):
        whole = dict(block)
        for delta in deltas:
            for field_name in delta.keys() & {"text", "thinking", "signature"}:
                whole[field_name] += delta[field_name]
        if block["type"] == "tool_use":
            whole["input"] = json.loads("".join(delta["partial_json"] for delta in deltas))
        content.append(whole)
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": content,
        "stop_reason": "tool_use" if said == "tools" else "end_turn",
        "stop_sequence": None,
        "usage": _ANTHROPIC_USAGE,
    }


def _message_events(said: str) -> Iterator[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return _event(kind, {"type": kind, **fields})

    start = {
        **_message(said),
        "content": [],
        "stop_reason": None,
        "usage": {**_ANTHROPIC_USAGE, "output_tokens": 1},
    }
    yield event("message_start", message=start)
    for index, (block, deltas) in enumerate(_blocks(said)):
        yield event("content_block_start", index=index, content_block=block)
        if index == 0:
            yield event("ping")
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    reason = {"stop_reason": _message(said)["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=reason, usage={"output_tokens": 23})
    yield event("message_stop")


def _data(message: object) -> bytes:
    return b"data: " + json.dumps(message, ensure_ascii=False).encode() + b"\n\n"


def _event(kind: str, message: object) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _data(message)
