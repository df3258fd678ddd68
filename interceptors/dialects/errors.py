"""The error of this package, and the look-ups in decoded JSON that raise it."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import InterceptorError

__all__ = ["DialectError", "dict_in", "int_in", "list_in", "str_in"]

_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


class DialectError(InterceptorError):
    """A message contradicts its dialect: a known field holds what it cannot hold, or text comes after its block's end.

    The text names the field, and never shows what is in it.
    """


def _refuse(value: Any, where: str, name: str, expected: str) -> NoReturn:
    raise DialectError(f"{where}{name} is {_NAMES.get(type(value), 'something else')}, expected {expected}")


# JSON's null means what an absent field means: servers write one for the other.


def dict_in(holder: dict[str, Any], name: str, where: str = "") -> dict[str, Any] | None:
    """The object in a field, None when there is none. `where` is what the error says before the name."""
    value = holder.get(name)
    if value is None or isinstance(value, dict):
        return value
    _refuse(value, where, name, "an object")


def list_in(holder: dict[str, Any], name: str, where: str = "") -> list[dict[str, Any]]:
    """The objects that a field lists, none when it is absent."""
    value = holder.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        _refuse(value, where, name, "a list")
    for item in value:
        if not isinstance(item, dict):
            _refuse(item, where, f"{name}[]", "an object")
    return value


def str_in(holder: dict[str, Any], name: str, where: str = "") -> str | None:
    """The text in a field, None when there is none."""
    value = holder.get(name)
    if value is None or isinstance(value, str):
        return value
    _refuse(value, where, name, "a string")


def int_in(holder: dict[str, Any], name: str, where: str = "") -> int | None:
    """The whole number in a field, None when there is none."""
    value = holder.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    _refuse(value, where, name, "a whole number")
