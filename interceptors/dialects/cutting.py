"""What may stay of a body after a hook has ended its answer. Sans I/O; it knows no dialect.

Anything that no hook was shown may hold what a filter has found, so only known fields stay.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

__all__ = ["STOPPED", "bare", "replace_items", "stop_openai"]

_TIMES = ("created", "created_at", "index")


STOPPED = "this answer was stopped by a filter"
"""Shown to clients in place of a provider's error that must not leave."""


def stop_openai(message: dict[str, Any]) -> None:
    """Replace a whole body by an error in OpenAI's shape."""
    message.clear()
    message["error"] = {"message": STOPPED, "type": "content_filter", "param": None, "code": None}


def bare(message: dict[str, Any], names: Container[str]) -> None:
    """Leave only the named fields, if their values are of the dialect, and the numbers of `usage`."""
    for name, value in list(message.items()):
        if name == "usage" and name in names:
            message[name] = _numbers(value)
        elif (
            name not in names
            or isinstance(value, (dict, list))
            or (name in _TIMES and isinstance(value, str))
        ):
            del message[name]


def _numbers(value: Any) -> Any:
    """What cannot be text in a report of usage."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items() if name.isidentifier()}
    return value if isinstance(value, (int, float)) else None


def replace_items(items: list[Any], replacements: dict[int, dict[str, Any] | None]) -> None:
    """Replace items of a list by their `id()`, in one pass; None removes an item."""
    items[:] = [made for item in items if (made := replacements.get(id(item), item)) is not None]
