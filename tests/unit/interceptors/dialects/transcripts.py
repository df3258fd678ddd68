"""What providers send: the answers of `tests/providers` with what hooks are shown of them, and
functions that make streams as lists of events, and bodies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from providers.transcripts import load_cases

from interceptors import Request

CHAT, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PATHS = {"chat": CHAT, "responses": RESPONSES, "anthropic": ANTHROPIC}


@dataclass(frozen=True)
class Transcript:
    path: str
    data: bytes
    """As the provider writes it."""
    seen: str
    """What a recorder notes, hook by hook: `"text 0 Hi | text ends 0 | finish 0 stop"`."""

    @property
    def messages(self) -> list[Any]:
        return messages_of(self.data)


def load_transcripts(*, streamed: bool) -> dict[str, Transcript]:
    """Those that `hooks.txt` has, streams or bodies."""
    lines = (Path(__file__).parent / "hooks.txt").read_text().splitlines()
    hooks = dict(line.split(" = ", 1) for line in lines)
    cases = load_cases("openai-chat", "openai-responses", "anthropic", "mistral")
    return {
        case.id: Transcript(case.path, case.data, hooks[case.id])
        for case in cases
        if case.is_sse == streamed
    }


def stream_of(messages: Iterable[Any], *, named: bool) -> bytes:
    blocks = []
    for message in messages:
        if isinstance(message, str):
            blocks.append(f"data: {message}\n\n")
            continue
        name = f"event: {message['type']}\n" if named and "type" in message else ""
        # With spaces, so that an event that was written anew is not the one that came.
        blocks.append(f"{name}data: {json.dumps(message)}\n\n")
    return "".join(blocks).encode()


def messages_of(stream: bytes) -> list[Any]:
    """The decoded messages of a stream, back again."""
    found: list[Any] = []
    for block in stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        data = "\n".join(line[6:] for line in block.split("\n") if line.startswith("data: "))
        if data:
            found.append(json.loads(data) if data[:1] == "{" else data)
    return found


def request(path: str, dialect: str = "generic") -> Request:
    return Request(method="POST", path=path, dialect=dialect)


def chunkings(stream: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and cut at random."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    inner = {Random(at).randrange(len(stream)) for at in range(30)}
    yield [stream[a:b] for a, b in pairwise(sorted({0, len(stream), *inner}))]


# --- OpenAI chat completions


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion.chunk",
        "created": 1741570283,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_fc9f1d7035",
        "choices": list(choices),
        **more,
    }


def choice(
    delta: dict[str, Any], finish_reason: str | None = None, index: int = 0
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def delta(finish_reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    """A chunk with one delta of one choice: `delta(content="Hi")`, `delta("stop")`."""
    return chunk(choice(fields, finish_reason, index))


def tool_delta(
    index: int, arguments: str, id: str | None = None, name: str | None = None
) -> dict[str, Any]:
    call: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if id is not None:
        call |= {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"tool_calls": [call]}


CHAT_USAGE = {
    "prompt_tokens": 1117,
    "completion_tokens": 46,
    "total_tokens": 1163,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def chat_body(
    *messages: dict[str, Any], finish_reason: str = "stop", usage: Any = CHAT_USAGE
) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                **message,
            },
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        for index, message in enumerate(messages)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": choices,
        "usage": usage,
    }


# --- OpenAI responses


def response(status: str, output: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_67c9fdcecf488190bdd9a0409de3a1ec07b8b0ad4e5eb654",
        "object": "response",
        "created_at": 1741290958,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": "You are a helpful assistant.",
        "model": "gpt-4.1-2025-04-14",
        "output": output,
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "auto",
        "usage": None,
        **more,
    }


RESPONSES_USAGE = {
    "input_tokens": 37,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 11,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 48,
}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def message_item(
    *parts: dict[str, Any], id: str = "msg_1", status: str = "completed"
) -> dict[str, Any]:
    return {
        "id": id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": list(parts),
    }


def call_item(
    arguments: str, name: str = "get_weather", status: str = "completed"
) -> dict[str, Any]:
    return {
        "id": f"fc_{name}",
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": f"call_{name}",
        "name": name,
    }


def text_events(
    deltas: list[str], output: int = 0, kind: str = "output_text", id: str = "msg_1"
) -> list[dict[str, Any]]:
    """One message item with one part: as it is added, its deltas, and three repetitions."""
    key = "refusal" if kind == "refusal" else "text"
    part = {"type": kind, key: "", **({} if kind == "refusal" else {"annotations": []})}
    whole = {**part, key: "".join(deltas)}
    where = {"item_id": id, "output_index": output, "content_index": 0}
    logprobs = {} if kind == "refusal" else {"logprobs": []}
    return [
        {
            "type": "response.output_item.added",
            "output_index": output,
            "item": message_item(id=id, status="in_progress"),
        },
        {"type": "response.content_part.added", **where, "part": part},
        *(
            {"type": f"response.{kind}.delta", **where, "delta": delta, **logprobs}
            for delta in deltas
        ),
        {"type": f"response.{kind}.done", **where, key: whole[key], **logprobs},
        {"type": "response.content_part.done", **where, "part": whole},
        {
            "type": "response.output_item.done",
            "output_index": output,
            "item": message_item(whole, id=id),
        },
    ]


def call_events(deltas: list[str], output: int, name: str = "get_weather") -> list[dict[str, Any]]:
    whole = "".join(deltas)
    where = {"item_id": f"fc_{name}", "output_index": output}
    return [
        {
            "type": "response.output_item.added",
            "output_index": output,
            "item": call_item("", name, "in_progress"),
        },
        *(
            {"type": "response.function_call_arguments.delta", **where, "delta": delta}
            for delta in deltas
        ),
        {"type": "response.function_call_arguments.done", **where, "arguments": whole},
        {
            "type": "response.output_item.done",
            "output_index": output,
            "item": call_item(whole, name),
        },
    ]


def summary_events(deltas: list[str], output: int = 0) -> list[dict[str, Any]]:
    where = {"item_id": "rs_1", "output_index": output, "summary_index": 0}
    whole = {"type": "summary_text", "text": "".join(deltas)}
    item = {"id": "rs_1", "type": "reasoning", "summary": []}
    return [
        {"type": "response.output_item.added", "output_index": output, "item": item},
        {
            "type": "response.reasoning_summary_part.added",
            **where,
            "part": {"type": "summary_text", "text": ""},
        },
        *(
            {"type": "response.reasoning_summary_text.delta", **where, "delta": delta}
            for delta in deltas
        ),
        {"type": "response.reasoning_summary_text.done", **where, "text": whole["text"]},
        {"type": "response.reasoning_summary_part.done", **where, "part": whole},
        {
            "type": "response.output_item.done",
            "output_index": output,
            "item": {**item, "summary": [whole]},
        },
    ]


def responses_stream(
    *parts: list[dict[str, Any]], end: dict[str, Any] | None = None, **more: Any
) -> list[dict[str, Any]]:
    """A whole stream: created, the events of its items, and `response.completed` with all of them,
    or another end.
    """
    events = [
        {"type": "response.created", "response": response("in_progress", [])},
        {"type": "response.in_progress", "response": response("in_progress", [])},
        *(event for part in parts for event in part),
    ]
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    events.append(
        end
        or {
            "type": "response.completed",
            "response": response("completed", items, **{"usage": RESPONSES_USAGE, **more}),
        }
    )
    return json.loads(
        json.dumps([{**event, "sequence_number": number} for number, event in enumerate(events)])
    )


# --- Anthropic messages

ANTHROPIC_USAGE = {
    "input_tokens": 472,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 2,
    "service_tier": "standard",
}


def message_start(**usage: Any) -> dict[str, Any]:
    return {
        "type": "message_start",
        "message": {
            "id": "msg_014p7gG3wDgGV9EUtLvnow3U",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-20250514",
            "stop_sequence": None,
            "usage": {**ANTHROPIC_USAGE, **usage},
            "content": [],
            "stop_reason": None,
        },
    }


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text_block(index: int, *texts: str) -> list[dict[str, Any]]:
    return block(
        index,
        {"type": "text", "text": ""},
        *({"type": "text_delta", "text": text} for text in texts),
    )


def tool_block(
    index: int, *pieces: str, id: str = "toolu_1", name: str = "get_weather"
) -> list[dict[str, Any]]:
    start = {"type": "tool_use", "id": id, "name": name, "input": {}}
    return block(
        index, start, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    )


def message_end(reason: str = "end_turn", output_tokens: int = 89) -> list[dict[str, Any]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}},
        {"type": "message_stop"},
    ]


def anthropic_body(*content: dict[str, Any], stop_reason: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-1",
        "content": list(content),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
    }
