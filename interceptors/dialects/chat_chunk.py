"""Chunks that the chat reader makes. Sans I/O."""

from __future__ import annotations

from typing import Any

__all__ = ["chunk_like"]

# What the chunks of one answer have in common. A value of another type may hold anything.
_OF_CHUNK: dict[str, tuple[type, ...]] = {
    "id": (str, int),
    "object": (str,),
    "created": (int, float),
    **dict.fromkeys(("model", "system_fingerprint", "service_tier", "provider"), (str, type(None))),
}


def chunk_like(message: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """A chunk with the ids of another, and one choice: without usage or the other's content."""
    kept: dict[str, Any] = {}
    for name, of in _OF_CHUNK.items():
        if name in message and isinstance(message[name], of):
            kept[name] = message[name]
    return {**kept, "choices": [choice]}
