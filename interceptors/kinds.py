"""The msgspec types of options and settings: what fits one, and how to name it in a message.

`values` walks over values with these functions. Nothing here knows paths or collects mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec.inspect as mi

__all__ = [
    "Record",
    "choices_of",
    "fits",
    "in_range",
    "in_units",
    "is_known",
    "number",
    "plain",
    "words",
]

Record = mi.StructType | mi.DataclassType | mi.TypedDictType
_SCALAR = mi.StrType | mi.IntType | mi.FloatType | mi.BoolType | mi.LiteralType | mi.EnumType
_KNOWN = _SCALAR | mi.CollectionType | mi.DictType | Record

_MAX_INT = (1 << 63) - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*+([A-Za-z]*)\s*")
_UNITS: dict[str, dict[str, float]] = {  # suffixes that people write, by the unit of the key
    "seconds": {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400},
    "bytes": {
        "b": 1,
        "k": 1 << 10,
        "kb": 1 << 10,
        "kib": 1 << 10,
        "m": 1 << 20,
        "mb": 1 << 20,
        "mib": 1 << 20,
        "g": 1 << 30,
    },
}


def plain(kind: mi.Type) -> tuple[mi.Type, Mapping[str, Any]]:
    """A type without its `Meta`, and the `extra` of that."""
    extra: Mapping[str, Any] = {}
    while isinstance(kind, mi.Metadata):
        extra, kind = {**(kind.extra or {}), **extra}, kind.type
    return kind, extra


def is_known(kind: mi.Type) -> bool:
    """Whether this package checks values of the type; msgspec checks all others."""
    return isinstance(kind, _KNOWN)


def fits(kind: mi.Type, value: Any) -> bool:
    """Whether a value has the type, whatever its range."""
    match kind:
        case mi.StrType():
            return isinstance(value, str)
        case mi.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case mi.FloatType():
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case mi.BoolType():
            return isinstance(value, bool)
        case mi.CollectionType() | mi.TupleType() | mi.StructType(array_like=True):
            return isinstance(value, list)
        case mi.DictType() | mi.StructType() | mi.DataclassType() | mi.TypedDictType():
            return isinstance(value, dict)
        case mi.LiteralType() | mi.EnumType():
            return value in choices_of(kind)
    return isinstance(kind, mi.AnyType)


def choices_of(kind: mi.LiteralType | mi.EnumType) -> list[Any]:
    """The values of an enumeration."""
    if isinstance(kind, mi.LiteralType):
        return list(kind.values)
    return [item.value for item in kind.cls]


def number(value: Any, kind: mi.Type) -> Any:
    """Text that spells a number or a truth value, converted; any other value unchanged."""
    if not isinstance(value, str):
        return value
    if isinstance(kind, mi.BoolType):
        return {"true": True, "false": False}.get(value, value)
    if isinstance(kind, (mi.IntType, mi.FloatType)) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(kind, mi.FloatType):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def in_range(kind: mi.Type, value: float) -> bool:
    """Whether a number is within the bounds of its type."""
    if isinstance(kind, mi.BoolType):
        return True
    assert isinstance(kind, (mi.IntType, mi.FloatType))
    if isinstance(kind, mi.IntType) and abs(value) > _MAX_INT:
        return False
    return not (
        (kind.gt is not None and not value > kind.gt)
        or (kind.ge is not None and not value >= kind.ge)
        or (kind.lt is not None and not value < kind.lt)
        or (kind.le is not None and not value <= kind.le)
    )


def words(kind: mi.Type, extra: Mapping[str, Any]) -> str:
    """What a value must be, to follow "must be"."""
    match kind:
        case mi.IntType() | mi.FloatType():
            return _number_words(kind, extra)
        case mi.BoolType():
            return "true or false"
        case mi.LiteralType(values=(only,)):
            return str(only)
        case mi.LiteralType():
            return f"one of {', '.join(map(str, extra.get('choices', kind.values)))}"
        case mi.EnumType():
            return f"one of {', '.join(map(str, choices_of(kind)))}"
        case mi.StrType():
            return "a string"
        case mi.CollectionType() | mi.TupleType():
            return "a list"
    return "a mapping"


def _number_words(kind: mi.IntType | mi.FloatType, extra: Mapping[str, Any]) -> str:
    name = "whole number" if isinstance(kind, mi.IntType) else "number"
    if kind.gt == 0:
        name = f"positive {name}"
    text = f"a {name} of {extra['unit']}" if "unit" in extra else f"a {name}"
    low, high = kind.ge, kind.le
    if low is not None and high is not None:
        return f"{text} from {low:g} to {high:.15g}"
    bounds = (
        (kind.gt or None, "more than"),
        (low, "at least"),
        (kind.lt, "less than"),
        (high, "at most"),
    )
    return text + "".join(
        f", {phrase} {bound:.15g}" for bound, phrase in bounds if bound is not None
    )


def in_units(value: Any, kind: mi.Type, extra: Mapping[str, Any]) -> float | None:
    """The number that text with a unit (`30s`, `1MB`) means for this type, or None."""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None or not found[2]:
        return None
    factor = _UNITS.get(extra.get("unit", ""), {}).get(found[2].lower())
    if factor is None:
        return None
    meant = float(found[1]) * factor
    guess: float = int(meant) if meant.is_integer() else meant
    return guess if fits(kind, guess) and in_range(kind, guess) else None
