"""Valid input with a mistake in it, for parsers that must agree about what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

__all__ = ["edited", "overwritten"]


def edited(wire: bytes, at: int, removed: int, added: bytes) -> bytes:
    """Valid input with one mistake anywhere; the rest is valid if the mistake is not seen."""
    at %= len(wire)
    return wire[:at] + added + wire[at + removed :]


def overwritten(draw: Callable[..., Any], wire: bytes, most_at: int, alphabet: bytes) -> bytes:
    """The input with up to two bytes overwritten, within its first `most_at`."""
    changed = bytearray(wire)
    places = st.tuples(st.integers(0, most_at), st.sampled_from(alphabet))
    for at, value in draw(st.lists(places, max_size=2)):
        if at < len(changed):
            changed[at] = value
    return bytes(changed)
