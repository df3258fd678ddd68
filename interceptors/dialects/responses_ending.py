"""How a response of the Responses API is ended early: by events, or by cutting its body. Sans I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .cutting import bare, stop_openai
from .parts import Block
from .responses_events import CALLS, PARTS
from .responses_items import Item

__all__ = ["cut_everything", "cut_output", "end_items"]


def end_items(items: Iterable[Item]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events that end the items that have left, and the output that these make up."""
    events: list[dict[str, Any]] = []
    output: list[dict[str, Any]] = []
    shown = [item for item in items if item.shown is not None]
    for item in sorted(shown, key=lambda item: item.leaves_at or 0):
        assert item.shown is not None
        content = item.shown
        if not item.done:
            content = {**item.shown, "status": "incomplete"}
            kind = content.get("type")
            if kind == "message":
                content["content"] = _end_content(events, content, item)
            elif isinstance(kind, str) and kind in CALLS:
                sent = item.sent.get(Block("tool_call", item.output), ())
                content[CALLS[kind]] = "".join(sent)
            events.append(
                {
                    "type": "response.output_item.done",
                    "output_index": item.leaves_at,
                    "item": content,
                }
            )
        output.append(content)
    return events, output


def _end_content(
    events: list[dict[str, Any]], content: dict[str, Any], item: Item
) -> list[dict[str, Any]]:
    """The parts that an unfinished message has had, and the done events that have not left."""
    found = []
    blocks = [block for block in item.sent if block.field == "content"]
    for block in sorted(blocks, key=lambda block: block.part):
        text = "".join(item.sent[block])
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        done: dict[str, Any] = {"type": "response.output_text.done", "text": text, "logprobs": []}
        if block.kind == "refusal":
            part = {"type": "refusal", "refusal": text}
            done = {"type": "response.refusal.done", "refusal": text}
        found.append(part)
        where = {
            "item_id": content.get("id"),
            "output_index": item.leaves_at,
            "content_index": block.part,
        }
        if ("text", block) not in item.ended:
            events.append({**done, **where})
        if ("part", block) not in item.ended:
            events.append({"type": "response.content_part.done", **where, "part": part})
    return found


def cut_everything(message: dict[str, Any], reason: str) -> None:
    """Leave the frame of a response and nothing of its output."""
    if not isinstance(message.get("output"), list):
        stop_openai(message)
        return
    bare(message, ("id", "object", "created_at", "model", "usage"))
    message["output"] = []
    message["error"] = None
    _set_reason(message, reason)


def cut_output(message: dict[str, Any], index: int, block: Block, text: str, reason: str) -> None:
    """Leave the items before one, and of that `text` of one of its texts; of a call nothing."""
    output = message["output"]
    del output[index + (block.kind != "tool_call") :]
    if block.kind != "tool_call":
        _cut_item(output[-1], block, text)
    _set_reason(message, reason)


def _set_reason(message: dict[str, Any], reason: str) -> None:
    message["status"] = "incomplete"
    message["incomplete_details"] = {"reason": reason}


def _cut_item(item: dict[str, Any], block: Block, text: str) -> None:
    parts = item[block.field]
    if isinstance(parts, str):
        item[block.field] = text
    else:
        del parts[block.part + 1 :]
        parts[-1][PARTS[parts[-1]["type"]][1]] = text
    if block.field == "summary":
        item.pop("content", None)
    item["status"] = "incomplete"
