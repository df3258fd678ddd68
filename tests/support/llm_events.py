"""The events of the Messages and Responses APIs, for tests that write them by hand."""

from __future__ import annotations

from typing import Any

__all__ = ["block_delta", "block_start", "block_stop", "event", "function_call", "tool_use"]

_DELTAS = {
    "text": "text_delta",
    "thinking": "thinking_delta",
    "signature": "signature_delta",
    "partial_json": "input_json_delta",
    "content": "compaction_delta",
}


def block_start(index: Any, block: Any) -> dict[str, Any]:
    """Messages: a content block begins."""
    return {"type": "content_block_start", "index": index, "content_block": block}


def block_delta(index: Any, **delta: Any) -> dict[str, Any]:
    """Messages: `block_delta(0, text="a")`, and so on for each field of `_DELTAS`."""
    (field,) = delta
    return {
        "type": "content_block_delta",
        "index": index,
        "delta": {"type": _DELTAS[field], **delta},
    }


def block_stop(index: Any) -> dict[str, Any]:
    """Messages: a content block ends."""
    return {"type": "content_block_stop", "index": index}


def tool_use(id: str, name: str, input: Any = None) -> dict[str, Any]:
    """Messages: the block of a tool call."""
    return {"type": "tool_use", "id": id, "name": name, "input": {} if input is None else input}


def event(name: str, **fields: Any) -> dict[str, Any]:
    """Responses: `event("output_text.delta", delta="a")`."""
    return {"type": f"response.{name}", **fields}


def function_call(id: str, call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    """Responses: the item of a tool call."""
    return {
        "type": "function_call",
        "id": id,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }
