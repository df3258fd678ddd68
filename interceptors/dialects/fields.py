"""Tolerant access to the fields of a provider's message. Sans I/O; it knows no dialect.

A value of an unexpected type never ends an answer: it counts as absent, and `problems` names its
field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["FieldReader"]

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


class FieldReader:
    """The part of a reader that looks at single fields. `where` is a prefix for `problems`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """What was not understood in the last message: names of fields, no content."""

    def _odd(self, where: str, value: Any, expected: str) -> None:
        """Note that a value has another type than the dialect gives it."""
        self.problems.append(f"{where} is {_NAMES.get(type(value), 'null')}, expected {expected}")

    def _str(self, holder: dict[str, Any], name: str, where: str = "") -> str | None:
        """The text in a field; None if it is absent or null."""
        value = holder.get(name)
        if value is None or isinstance(value, str):
            return value
        self._odd(where + name, value, "a string")
        return None

    def _id(self, holder: dict[str, Any], name: str, where: str = "") -> str | None:
        """An id. Some servers use numbers, and "" for none."""
        value = holder.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        return self._str(holder, name, where) or None

    def _dict(self, holder: dict[str, Any], name: str, where: str = "") -> dict[str, Any] | None:
        value = holder.get(name)
        if value is None or isinstance(value, dict):
            return value
        self._odd(where + name, value, "an object")
        return None

    def _items(
        self, holder: dict[str, Any], name: str, where: str = ""
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects in a list, each with its position."""
        value = holder.get(name)
        if isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    yield position, item
                else:
                    self._odd(f"{where}{name}[]", item, "an object")
        elif value is not None:
            self._odd(where + name, value, "a list")

    def _number(self, holder: dict[str, Any], name: str, where: str = "") -> int | None:
        """The whole number in a field; None if there is none. Short digits in a string count."""
        value = holder.get(name)
        if type(value) is int or value is None:
            return value
        self._odd(where + name, value, "a whole number")
        if isinstance(value, float):
            return int(value) if value.is_integer() else None
        is_digits = isinstance(value, str) and value.isascii() and value.isdigit()
        return int(value) if is_digits and len(value) < 10 else None
