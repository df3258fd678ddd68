"""Plain data, as YAML gives it, against the types that it must have: every mistake at once, in the
words of the documentation.

This owns the wording and the tolerance of the configuration and of interceptors' options: msgspec
stops at its first mistake and names Python types. Text that spells a number, a truth value or null
is accepted where a key wants one, because `${VAR}` gives text. It knows no key of its own, and
nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import msgspec.inspect as mi

__all__ = ["Checker", "Mistake", "join", "nearest"]

_MAX_INT = (1 << 63) - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
# What people write behind a number, in the unit that a key has.
_UNITS: dict[str, dict[str, float]] = {
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
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*+([A-Za-z]*)\s*")

_Record = mi.StructType | mi.DataclassType | mi.TypedDictType


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that must be written differently."""

    path: str
    """`a.b[2].c`, from the root of what was checked; "" is the root."""
    message: str
    """What is wrong, with the accepted form."""
    hint: str = ""
    """What to write instead, where that can be guessed."""
    shows_value: bool = True
    """Whether the value may be shown beside it: not where a secret may stand."""

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


def join(path: str, key: object) -> str:
    """The path of a key below a path."""
    return f"{path}.{key}" if path else str(key)


def nearest(name: object, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that `name` is most probably a misspelling of, or None. Case does not matter.
    `likeness`: from 0 to 1.
    """
    lowered: dict[str, str] = {}
    for item in known:
        lowered.setdefault(item.lower(), item)
    found = get_close_matches(str(name).lower(), lowered, n=1, cutoff=likeness)
    return lowered[found[0]] if found else None


class Checker:
    """Checks values and collects what is wrong with them.

    `check` returns the value, made right as far as possible: what is wrong is left out where there
    is a default, and replaced where there is none. So what is right elsewhere can be checked
    further. `bad` has the paths that were wrong, `moved` those whose value was found elsewhere:
    path where it should be -> path where it is.
    """

    def __init__(self, noun: str = "key") -> None:
        """`noun`: what a name at the root is called."""
        self.mistakes: list[Mistake] = []
        self.bad: set[str] = set()
        self.moved: dict[str, str] = {}
        self._noun = noun

    # What a subclass may know better

    def build(self, kind: Any, values: dict[str, Any]) -> Any:
        """What a record becomes; here, its values. `kind`: its type."""
        return values

    def belongs(self, key: str, path: str) -> str:
        """A hint for a name that is unknown at `path` and known elsewhere; "" for none."""
        return ""

    def allows_text_of(self, path: str) -> bool:
        """Whether what is written at a path may be shown."""
        return False

    # The walk

    def check(
        self, kind: mi.Type, value: Any, path: str = "", extra: Mapping[str, Any] | None = None
    ) -> Any:
        """The value as `kind` has it. Mistakes are added to `mistakes`."""
        extra = extra or {}
        while isinstance(kind, mi.Metadata):
            extra, kind = {**(kind.extra or {}), **extra}, kind.type
        if isinstance(kind, mi.UnionType):
            return self._check_union(kind, value, path, extra)
        return self._check_one(kind, value, path, extra, nullable=False)

    def wrong(self, path: str, message: str, hint: str = "", *, shows_value: bool = True) -> None:
        """Note a mistake."""
        self.bad.add(path)
        self.mistakes.append(
            Mistake(path, message, hint, shows_value and self.allows_text_of(path))
        )

    def _check_union(
        self, union: mi.UnionType, value: Any, path: str, extra: Mapping[str, Any]
    ) -> Any:
        alternatives = [_plain(kind) for kind in union.types]
        others = [(kind, own) for kind, own in alternatives if not isinstance(kind, mi.NoneType)]
        nullable = len(others) < len(alternatives)
        if nullable and (
            value is None
            or (value == "null" and not any(isinstance(kind, mi.StrType) for kind, _ in others))
        ):
            return None
        for kind, own in others:
            if _fits(kind, value) or len(others) == 1:
                return self._check_one(kind, value, path, {**own, **extra}, nullable=nullable)
        for kind, own in others:
            if _fits(kind, _number(value, kind)):
                return self._check_one(kind, value, path, {**own, **extra}, nullable=nullable)
        if any(not _is_known(kind) for kind, _ in others):
            return value
        words = ", or ".join(
            [_words(kind, {**own, **extra}) for kind, own in others] + ["null"] * nullable
        )
        self.wrong(path, f"must be {words}")
        return self._stand_in(others[0][0])

    def _check_one(
        self, kind: mi.Type, value: Any, path: str, extra: Mapping[str, Any], *, nullable: bool
    ) -> Any:
        or_null = ", or null" if nullable else ""
        match kind:
            case mi.StructType(array_like=True):
                return value
            case mi.StructType() | mi.DataclassType() | mi.TypedDictType():
                return self._check_record(kind, value, path, or_null)
            case mi.DictType():
                if "record" in extra:
                    return self._check_record(
                        mi.type_info(extra["record"]),  # type: ignore[arg-type]
                        value,
                        path,
                        or_null,
                        partial=True,
                    )
                return self._check_dict(kind, value, path, or_null)
            case mi.CollectionType():
                return self._check_list(kind, value, path, or_null)
            case mi.TupleType() if isinstance(value, list) and len(value) == len(kind.item_types):
                return [
                    self.check(item, value[at], f"{path}[{at}]")
                    for at, item in enumerate(kind.item_types)
                ]
            case mi.LiteralType() | mi.EnumType():
                choices = (
                    list(kind.values)
                    if isinstance(kind, mi.LiteralType)
                    else [item.value for item in kind.cls]
                )
                if not any(value == choice and type(value) is type(choice) for choice in choices):
                    near = (
                        nearest(value, [str(choice) for choice in choices])
                        if isinstance(value, str)
                        else None
                    )
                    self.wrong(path, f"must be {_words(kind, extra)}{or_null}", _did_you_mean(near))
                    return choices[0]
                return value
            case mi.StrType():
                return self._check_text(kind, value, path, extra, or_null)
            case mi.IntType() | mi.FloatType() | mi.BoolType():
                found = _number(value, kind)
                if not _fits(kind, found) or not _in_range(kind, found):
                    self.wrong(
                        path,
                        f"must be {_words(kind, extra)}{or_null}",
                        _in_units(value, kind, extra),
                    )
                    return self._stand_in(kind)
                return found
            case mi.NoneType() if value is not None:
                self.wrong(path, "must be null")
        return value  # whatever else there is, msgspec converts

    def _check_text(
        self, kind: mi.StrType, value: Any, path: str, extra: Mapping[str, Any], or_null: str
    ) -> Any:
        if not isinstance(value, str):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            hint = "write it in quotes" if is_number else ""
            self.wrong(path, f"must be a string{or_null}", hint)
            return "" if value is None or isinstance(value, (dict, list)) else str(value)
        if kind.min_length and len(value) < kind.min_length:
            self.wrong(
                path,
                "must not be empty"
                if kind.min_length == 1
                else f"must have at least {kind.min_length} characters",
            )
        elif kind.max_length is not None and len(value) > kind.max_length:
            self.wrong(path, f"must have at most {kind.max_length} characters")
        elif kind.pattern is not None and not re.search(kind.pattern, value):
            form, fix = extra.get("form", f"match {kind.pattern!r}"), extra.get("fix")
            guess = fix(value) if fix else None
            is_one = guess is not None and re.search(kind.pattern, guess)
            self.wrong(path, f"must {form}", _did_you_mean(f'"{guess}"' if is_one else None))
        return value

    def _check_list(self, kind: mi.CollectionType, value: Any, path: str, or_null: str) -> Any:
        if not isinstance(value, list):
            item, _ = _plain(kind.item_type)
            hint = ""
            if isinstance(value, dict):
                hint = 'begin each entry with "- "'
            elif _fits(item, value):
                hint = "write it in brackets, for a list of one"
            self.wrong(path, f"must be a list{or_null}", hint)
            return []
        if kind.min_length and len(value) < kind.min_length:
            self.wrong(path, f"must have at least {_counted(kind.min_length, 'entry', 'entries')}")
        if kind.max_length is not None and len(value) > kind.max_length:
            self.wrong(path, f"must have at most {_counted(kind.max_length, 'entry', 'entries')}")
        return [
            self.check(kind.item_type, item, f"{path}[{index}]") for index, item in enumerate(value)
        ]

    def _check_dict(self, kind: mi.DictType, value: Any, path: str, or_null: str) -> Any:
        if not isinstance(value, dict):
            self.wrong(path, f"must be a mapping{or_null}")
            return {}
        result = {}
        only_text = isinstance(_plain(kind.key_type)[0], mi.StrType)
        for key, item in value.items():
            if only_text and not isinstance(key, str):
                self.wrong(
                    join(path, key),
                    "the name must be a string: write it in quotes",
                    shows_value=False,
                )
            name = str(key) if only_text else key
            result[name] = self.check(kind.value_type, item, join(path, key))
        return result

    def _check_record(
        self, kind: _Record, value: Any, path: str, or_null: str, *, partial: bool = False
    ) -> Any:
        """`partial`: only some of the record's fields, as they are."""
        if not isinstance(value, dict):
            has_default = path and not any(field.required for field in kind.fields)
            hint = "leave the key out for its default" if value is None and has_default else ""
            self.wrong(path, f"must be a mapping{or_null}", hint)
            value = {
                field.encode_name: self._stand_in(field.type)
                for field in kind.fields
                if field.required
            }
            return self.build(kind, value) if not partial else {}
        fields = {field.encode_name: field for field in kind.fields}
        tag = getattr(kind, "tag_field", None)
        given: dict[str, tuple[Any, str]] = {}
        unknown = []
        for key, item in value.items():
            if isinstance(key, str) and (key in fields or key == tag):
                given[key] = item, join(path, key)
            else:
                unknown.append(key)
        noun = self._noun if not path else "key"
        for key in unknown:
            where = join(path, key)
            hint = self.belongs(str(key), path)
            meant = None if hint else nearest(key, fields)
            if not hint:
                free = meant is not None and meant not in given
                hint = (
                    f"did you mean `{meant}`?"
                    if meant
                    else f"the {noun}s here are {', '.join(fields) or 'none'}"
                )
                if (
                    meant is not None and free
                ):  # so that what is below is checked, too, and is not missing
                    given[meant] = value[key], where
                    self.moved[join(path, meant)] = where
            self.wrong(where, f"unknown {noun} `{key}`", hint, shows_value=False)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            if name in given:
                item, _ = given[name]
                at = join(path, name)
                values[field.name] = self.check(field.type, item, at)
                if at in self.bad and not field.required:
                    del values[field.name]  # the default is right
            elif field.required and not partial:
                self.wrong(join(path, name), f"missing {noun} `{name}`", shows_value=False)
                values[field.name] = self._stand_in(field.type)
        if tag in given:
            values[str(tag)] = value[tag]
        return values if partial else self.build(kind, values)

    def _stand_in(self, kind: mi.Type) -> Any:
        """A value for what is missing or wrong and has no default; mistakes in it are not reported."""
        match _plain(kind)[0]:
            case mi.StructType() | mi.DataclassType() | mi.TypedDictType() as record:
                return self.build(
                    record,
                    {
                        field.name: self._stand_in(field.type)
                        for field in record.fields
                        if field.required
                    },
                )
            case mi.DictType():
                return {}
            case mi.CollectionType():
                return []
            case mi.StrType():
                return ""
            case mi.IntType() | mi.FloatType():
                return 0
            case mi.BoolType():
                return False
        return None


def _plain(kind: mi.Type) -> tuple[mi.Type, Mapping[str, Any]]:
    extra: Mapping[str, Any] = {}
    while isinstance(kind, mi.Metadata):
        extra, kind = {**(kind.extra or {}), **extra}, kind.type
    return kind, extra


def _is_known(kind: mi.Type) -> bool:
    known = (
        mi.StrType
        | mi.IntType
        | mi.FloatType
        | mi.BoolType
        | mi.CollectionType
        | mi.DictType
        | mi.LiteralType
        | mi.EnumType
    )
    return isinstance(kind, known | mi.StructType | mi.DataclassType | mi.TypedDictType)


def _fits(kind: mi.Type, value: Any) -> bool:
    """Whether a value is of a type's kind, whatever its range."""
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
        case mi.LiteralType():
            return value in kind.values
        case mi.EnumType():
            return value in [item.value for item in kind.cls]
        case mi.AnyType():
            return True
    return False


def _number(value: Any, kind: mi.Type) -> Any:
    """Text that spells a number or a truth value, as that; anything else as it is."""
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


def _in_range(kind: mi.Type, value: float) -> bool:
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


def _words(kind: mi.Type, extra: Mapping[str, Any]) -> str:
    """What a value must be, behind "must be"."""
    match kind:
        case mi.IntType() | mi.FloatType():
            number = "whole number" if isinstance(kind, mi.IntType) else "number"
            if kind.gt == 0:
                number = f"positive {number}"
            words = f"a {number} of {extra['unit']}" if "unit" in extra else f"a {number}"
            low, high = kind.ge, kind.le
            if low is not None and high is not None:
                return f"{words} from {low:g} to {high:.15g}"
            for bound, phrase in (
                (kind.gt or None, "more than"),
                (low, "at least"),
                (kind.lt, "less than"),
                (high, "at most"),
            ):
                if bound is not None:
                    words += f", {phrase} {bound:.15g}"
            return words
        case mi.BoolType():
            return "true or false"
        case mi.LiteralType():
            return (
                f"one of {', '.join(map(str, extra.get('choices', kind.values)))}"
                if len(kind.values) > 1
                else str(kind.values[0])
            )
        case mi.EnumType():
            return f"one of {', '.join(str(item.value) for item in kind.cls)}"
        case mi.StrType():
            return "a string"
        case mi.CollectionType() | mi.TupleType():
            return "a list"
    return "a mapping"


def _did_you_mean(guess: str | None) -> str:
    return f"did you mean {guess}?" if guess else ""


def _in_units(value: Any, kind: mi.Type, extra: Mapping[str, Any]) -> str:
    """A hint for a number that is written with a unit (`30s`, `1MB`), or in a way that YAML has as
    text.
    """
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None or not found[2]:
        return ""
    factor = _UNITS.get(extra.get("unit", ""), {}).get(found[2].lower())
    if factor is None:
        return ""
    number = float(found[1]) * factor
    guess: float = int(number) if number.is_integer() else number
    return _did_you_mean(f"{guess:.15g}") if _fits(kind, guess) and _in_range(kind, guess) else ""


def _counted(count: int, one: str, more: str) -> str:
    return f"{'one' if count == 1 else count} {one if count == 1 else more}"
