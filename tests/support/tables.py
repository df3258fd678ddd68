"""Dense tables of test cases."""

from __future__ import annotations

__all__ = ["words"]


def words(text: str) -> list[str]:
    """The words of a text, in place of a list of string literals, one a line."""
    return text.split()
