"""The events and items of the Responses API that hold texts and tool calls. Data only."""

from __future__ import annotations

from .parts import Kind

__all__ = [
    "ACTIONS",
    "ARGUMENT_DELTAS",
    "ARGUMENT_DONES",
    "CALLS",
    "ECHOES",
    "FINAL",
    "ITEM_EVENTS",
    "PARTS",
    "PART_EVENTS",
    "TEXT_DELTAS",
    "TEXT_DONES",
]

# By the name of a text's events: its kind, the field of its item, the field of its whole text.
_TEXTS: dict[str, tuple[Kind, str, str]] = {
    "response.output_text": ("text", "content", "text"),
    "response.refusal": ("refusal", "content", "refusal"),
    "response.reasoning_text": ("thinking", "content", "text"),
    "response.reasoning_summary_text": ("thinking", "summary", "text"),
}
TEXT_DELTAS = {f"{name}.delta": value for name, value in _TEXTS.items()}
TEXT_DONES = {f"{name}.done": value for name, value in _TEXTS.items()}
PARTS: dict[str, tuple[Kind, str]] = {
    "output_text": ("text", "text"),
    "text": ("text", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("thinking", "text"),
    "summary_text": ("thinking", "text"),
}
"""By the type of a part of an item: the kind of its text, and the field that has it."""
PART_EVENTS = {
    "response.content_part.added": ("content", False),
    "response.content_part.done": ("content", True),
    "response.reasoning_summary_part.added": ("summary", False),
    "response.reasoning_summary_part.done": ("summary", True),
}
"""The field of the item that the part belongs to, and whether the part is whole."""
ITEM_EVENTS = {"response.output_item.added": False, "response.output_item.done": True}
"""Whether the item is whole."""
ARGUMENT_DELTAS = frozenset(
    ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta")
)
ARGUMENT_DONES = {
    "response.function_call_arguments.done": "arguments",
    "response.custom_tool_call_input.done": "input",
}
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""By the type of an item: the field of the arguments of a call."""
ACTIONS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
    "computer_call": ("computer", "action"),
}
"""OpenAI's tools that the client runs: the name of the call, and the field of its arguments, an
object.
"""
ECHOES = {
    "response.shell_call_command.added": "command",
    "response.shell_call_command.delta": "delta",
    "response.shell_call_command.done": "command",
    "response.apply_patch_call_operation_diff.delta": "delta",
    "response.apply_patch_call_operation_diff.done": "diff",
}
"""Events that repeat a piece of such a call, and the field that has the piece."""
FINAL = ("completed", "incomplete", "failed", "cancelled")
"""Statuses of a response that has ended."""
