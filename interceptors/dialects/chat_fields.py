"""The fields of a chat message that hold texts and tool calls. Data only."""

from __future__ import annotations

from .parts import Kind

__all__ = ["DETAILS", "FIELDS", "PARTS"]

FIELDS: dict[str, Kind] = {
    "reasoning_content": "thinking",
    "reasoning": "thinking",
    "reasoning_details": "thinking",
    "content": "text",
    "refusal": "refusal",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
}
"""In the order in which a whole message is read."""
PARTS: dict[str, tuple[Kind, str]] = {
    "text": ("text", "text"),
    "output_text": ("text", "text"),
    "refusal": ("refusal", "refusal"),
    "thinking": ("thinking", "thinking"),
}
"""Of a content that is a list: the kind of text of each type of part, and the field that has it."""
DETAILS = {"reasoning.text": "text", "reasoning.summary": "summary"}
"""Of `reasoning_details`: the field that has the text of each type of item."""
