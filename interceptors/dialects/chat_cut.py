"""How an unstreamed chat completion is cut where a hook has ended its answer. Sans I/O."""

from __future__ import annotations

from typing import Any

from .chat_fields import FIELDS
from .cutting import bare, stop_openai
from .parts import Part, TextDelta, TextEnd, ToolCall

__all__ = ["cut_choice", "cut_everything"]


def cut_everything(message: dict[str, Any], choices: list[dict[str, Any]], reason: str) -> None:
    """Leave the frame of an answer and nothing of its content."""
    for choice in choices:
        kept: dict[str, Any] = {}
        for name in ("message", "delta"):
            if isinstance(choice.get(name), dict):
                kept[name] = choice[name]
                bare(kept[name], ("role",))
                kept[name]["content"] = None
        choice["logprobs"] = None
        bare(choice, ("index", "logprobs"))
        choice.update(kept)
        choice["finish_reason"] = reason
    if isinstance(message.pop("choices", None), list):
        bare(message, ("id", "object", "created", "model", "usage"))
        message["choices"] = choices
    else:
        stop_openai(message)


def cut_choice(choice: dict[str, Any], part: Part | None, text: str, reason: str) -> None:
    """Leave of a choice what precedes a part, and `text` in its place; nothing without a part."""
    for name in ("message", "delta"):
        if isinstance(choice.get(name), dict):
            _cut_message(choice[name], part, text)
    if choice.get("text"):
        choice["text"] = text if part is not None and part.block.field == "text" else ""
    if choice.get("logprobs"):
        choice["logprobs"] = None
    choice["finish_reason"] = reason


def _cut_message(message: dict[str, Any], part: Part | None, text: str) -> None:
    field = "" if part is None else part.block.field
    if field == "text":
        return  # the message precedes the text of its choice
    if isinstance(part, ToolCall) and part.call is not None and part.call.kind == "function_call":
        field = "function_call"
    names = list(FIELDS)
    for name in names[names.index(field) if field else 0 :]:
        value = message.get(name)
        if not value:
            continue
        is_call = FIELDS[name] == "tool_call"
        if name != field or part is None:
            if is_call:
                del message[name]
            else:
                message[name] = None
        elif is_call:
            del message[name]
            at = _position_of(part, value) if isinstance(value, list) else 0
            if at:
                message[name] = value[:at]
        else:
            message[name] = _cut_list(value, part, text) if isinstance(value, list) else text


def _position_of(part: Part, items: list[Any]) -> int:
    """The position of a call in a list; 0 if it is no longer there."""
    call = part.call if isinstance(part, ToolCall) else None
    if call is None:
        return 0
    places = (*call.places, *call.repeats, call.begun)
    holders = [place.holder for place in places if place is not None]
    for position, item in enumerate(items):
        if isinstance(item, dict) and any(
            inner is holder for inner in item.values() for holder in holders
        ):
            return position
    return 0


def _cut_list(items: list[Any], part: Part, text: str) -> list[Any]:
    """The items of a content up to the one with a part's text, of which `text` is left."""
    delta = part.delta if isinstance(part, TextEnd) else part
    holder = delta.holder if isinstance(delta, TextDelta) else None
    kept: list[Any] = []
    for item in items:
        inner = item.get("thinking") if isinstance(item, dict) else None
        if isinstance(delta, TextDelta) and isinstance(item, dict) and item is holder:
            return [*kept, {**item, delta.key: text}]
        if isinstance(inner, list) and any(other is holder for other in inner):
            at = next(position for position, other in enumerate(inner) if other is holder)
            return [*kept, {**item, "thinking": [*inner[:at], {**inner[at], "text": text}]}]
        kept.append(item)
    return kept
