"""Checks plain data, as YAML gives it, against types, and reports all mistakes at once.

This module owns the wording and the tolerance of the configuration and of interceptors' options.
msgspec alone stops at its first mistake and names Python types. Text that spells a number, a truth
value or null is accepted for such a key, because `${VAR}` expands to text. It knows no particular
key, and no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import msgspec.inspect as mi

from .kinds import Record, choices_of, fits, in_range, in_units, is_known, number, plain, words

__all__ = ["Checker", "Mistake", "join", "nearest"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One value that must be changed."""

    path: str
    """`a.b[2].c`, relative to what was checked; "" for the root."""
    message: str
    """What is wrong, with the accepted form."""
    hint: str = ""
    """What to write instead, "" if it cannot be guessed."""
    shows_value: bool = True
    """Whether a report may show the value: false where it can be a secret."""

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


def join(path: str, key: object) -> str:
    """The path of a key below a path."""
    return f"{path}.{key}" if path else str(key)


def nearest(name: object, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that `name` most likely misspells, ignoring case, or None.

    `likeness`: the least similarity, from 0 to 1.
    """
    lowered: dict[str, str] = {}
    for item in known:
        lowered.setdefault(item.lower(), item)
    found = get_close_matches(str(name).lower(), lowered, n=1, cutoff=likeness)
    return lowered[found[0]] if found else None


class Checker:
    """Checks values and collects mistakes.

    `check` returns a corrected value: an invalid part is omitted if it has a default, and replaced
    otherwise, so that checks of the rest can continue. `bad` has the paths of invalid values.
    `moved` maps the path of a misspelled key's right name to the path where its value stands.
    """

    def __init__(self, noun: str = "key") -> None:
        """`noun`: what messages call a name at the root."""
        self.mistakes: list[Mistake] = []
        self.bad: set[str] = set()
        self.moved: dict[str, str] = {}
        self._noun = noun

    # Overridden by subclasses that know more

    def build(self, kind: Any, values: dict[str, Any]) -> Any:
        """Return the object for a record of type `kind`; by default its values."""
        return values

    def belongs(self, key: str, path: str) -> str:
        """Return a hint for a key that is unknown at `path` and known elsewhere, or ""."""
        return ""

    def allows_text_of(self, path: str) -> bool:
        """Whether a report may show the value at a path."""
        return False

    # Checks

    def check(
        self, kind: mi.Type, value: Any, path: str = "", extra: Mapping[str, Any] | None = None
    ) -> Any:
        """Check a value against a type and return it corrected. Adds to `mistakes`."""
        kind, own = plain(kind)
        extra = {**own, **(extra or {})}
        if isinstance(kind, mi.UnionType):
            return self._check_union(kind, value, path, extra)
        return self._check_one(kind, value, path, extra, nullable=False)

    def wrong(self, path: str, message: str, hint: str = "", *, shows_value: bool = True) -> None:
        """Add a mistake."""
        self.bad.add(path)
        self.mistakes.append(
            Mistake(path, message, hint, shows_value and self.allows_text_of(path))
        )

    def _check_union(
        self, union: mi.UnionType, value: Any, path: str, extra: Mapping[str, Any]
    ) -> Any:
        alternatives = [plain(kind) for kind in union.types]
        others = [(kind, own) for kind, own in alternatives if not isinstance(kind, mi.NoneType)]
        nullable = len(others) < len(alternatives)
        takes_text = any(isinstance(kind, mi.StrType) for kind, _ in others)
        if nullable and (value is None or (value == "null" and not takes_text)):
            return None
        for kind, own in others:
            if fits(kind, value) or len(others) == 1:
                return self._check_one(kind, value, path, {**own, **extra}, nullable=nullable)
        for kind, own in others:
            if fits(kind, number(value, kind)):
                return self._check_one(kind, value, path, {**own, **extra}, nullable=nullable)
        if any(not is_known(kind) for kind, _ in others):
            return value
        accepted = [words(kind, {**own, **extra}) for kind, own in others] + ["null"] * nullable
        self.wrong(path, f"must be {', or '.join(accepted)}")
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
            case mi.DictType() if "record" in extra:
                record: Any = mi.type_info(extra["record"])
                return self._check_record(record, value, path, or_null, partial=True)
            case mi.DictType():
                return self._check_dict(kind, value, path, or_null)
            case mi.CollectionType():
                return self._check_list(kind, value, path, or_null)
            case mi.TupleType() if isinstance(value, list) and len(value) == len(kind.item_types):
                return [
                    self.check(item, value[at], f"{path}[{at}]")
                    for at, item in enumerate(kind.item_types)
                ]
            case mi.LiteralType() | mi.EnumType():
                return self._check_choice(kind, value, path, extra, or_null)
            case mi.StrType():
                return self._check_text(kind, value, path, extra, or_null)
            case mi.IntType() | mi.FloatType() | mi.BoolType():
                return self._check_number(kind, value, path, extra, or_null)
            case mi.NoneType() if value is not None:
                self.wrong(path, "must be null")
        return value  # msgspec converts every other type

    def _check_choice(
        self,
        kind: mi.LiteralType | mi.EnumType,
        value: Any,
        path: str,
        extra: Mapping[str, Any],
        or_null: str,
    ) -> Any:
        choices = choices_of(kind)
        if value is False and "off" in choices:
            value = "off"  # which YAML 1.1 reads as a boolean
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        near = nearest(value, map(str, choices)) if isinstance(value, str) else None
        self.wrong(path, f"must be {words(kind, extra)}{or_null}", _did_you_mean(near))
        return choices[0]

    def _check_number(
        self, kind: mi.Type, value: Any, path: str, extra: Mapping[str, Any], or_null: str
    ) -> Any:
        found = number(value, kind)
        if fits(kind, found) and in_range(kind, found):
            return found
        meant = in_units(value, kind, extra)
        hint = _did_you_mean(None if meant is None else f"{meant:.15g}")
        self.wrong(path, f"must be {words(kind, extra)}{or_null}", hint)
        return self._stand_in(kind)

    def _check_text(
        self, kind: mi.StrType, value: Any, path: str, extra: Mapping[str, Any], or_null: str
    ) -> Any:
        if not isinstance(value, str):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            hint = "write it in quotes" if is_number else ""
            self.wrong(path, f"must be a string{or_null}", hint)
            return "" if value is None or isinstance(value, (dict, list)) else str(value)
        if kind.min_length and len(value) < kind.min_length:
            least = f"must have at least {kind.min_length} characters"
            self.wrong(path, "must not be empty" if kind.min_length == 1 else least)
        elif kind.max_length is not None and len(value) > kind.max_length:
            self.wrong(path, f"must have at most {kind.max_length} characters")
        elif kind.pattern is not None and not re.search(kind.pattern, value):
            form, fix = extra.get("form", f"match {kind.pattern!r}"), extra.get("fix")
            guess = fix(value) if fix else None
            is_valid = guess is not None and re.search(kind.pattern, guess)
            self.wrong(path, f"must {form}", _did_you_mean(f'"{guess}"' if is_valid else None))
        return value

    def _check_list(self, kind: mi.CollectionType, value: Any, path: str, or_null: str) -> Any:
        if not isinstance(value, list):
            item, _ = plain(kind.item_type)
            hint = ""
            if isinstance(value, dict):
                hint = 'begin each entry with "- "'
            elif fits(item, value):
                hint = "write it in brackets, for a list of one"
            self.wrong(path, f"must be a list{or_null}", hint)
            return []
        if kind.min_length and len(value) < kind.min_length:
            self.wrong(path, f"must have at least {_entries(kind.min_length)}")
        if kind.max_length is not None and len(value) > kind.max_length:
            self.wrong(path, f"must have at most {_entries(kind.max_length)}")
        return [
            self.check(kind.item_type, item, f"{path}[{index}]") for index, item in enumerate(value)
        ]

    def _check_dict(self, kind: mi.DictType, value: Any, path: str, or_null: str) -> Any:
        if not isinstance(value, dict):
            self.wrong(path, f"must be a mapping{or_null}")
            return {}
        result = {}
        only_text = isinstance(plain(kind.key_type)[0], mi.StrType)
        for key, item in value.items():
            if only_text and not isinstance(key, str):
                message = "the name must be a string: write it in quotes"
                self.wrong(join(path, key), message, shows_value=False)
            name = str(key) if only_text else key
            result[name] = self.check(kind.value_type, item, join(path, key))
        return result

    def _check_record(
        self, kind: Record, value: Any, path: str, or_null: str, *, partial: bool = False
    ) -> Any:
        """`partial`: the mapping has only some of the record's fields."""
        if not isinstance(value, dict):
            has_default = path and not any(field.required for field in kind.fields)
            hint = "leave the key out for its default" if value is None and has_default else ""
            self.wrong(path, f"must be a mapping{or_null}", hint)
            return {} if partial else self._stand_in(kind)
        given = self._known_keys(kind, value, path)
        noun = self._noun if not path else "key"
        values: dict[str, Any] = {}
        for field in kind.fields:
            name = field.encode_name
            at = join(path, name)
            if name in given:
                values[field.name] = self.check(field.type, given[name], at)
                if at in self.bad and not field.required:
                    del values[field.name]  # use the default
            elif field.required and not partial:
                self.wrong(at, f"missing {noun} `{name}`", shows_value=False)
                values[field.name] = self._stand_in(field.type)
        tag = getattr(kind, "tag_field", None)
        if tag in given:
            values[str(tag)] = value[tag]
        return values if partial else self.build(kind, values)

    def _known_keys(self, kind: Record, value: dict[Any, Any], path: str) -> dict[str, Any]:
        """The entries with known keys. An unknown key is a mistake.

        The value of a misspelled key counts for the key it most likely means, so that the value is
        checked too and the key is not reported as missing.
        """
        known = [field.encode_name for field in kind.fields]
        tag = getattr(kind, "tag_field", None)
        names = {*known, tag} - {None}
        given = {key: item for key, item in value.items() if key in names}
        noun = self._noun if not path else "key"
        for key in [key for key in value if key not in given]:
            where = join(path, key)
            hint = self.belongs(str(key), path)
            meant = None if hint else nearest(key, known)
            if meant is not None:
                hint = f"did you mean `{meant}`?"
                if meant not in given:
                    given[meant] = value[key]
                    self.moved[join(path, meant)] = where
            elif not hint:
                hint = f"the {noun}s here are {', '.join(known) or 'none'}"
            self.wrong(where, f"unknown {noun} `{key}`", hint, shows_value=False)
        return given

    def _stand_in(self, kind: mi.Type) -> Any:
        """A value for a missing or invalid one without a default. It is not checked."""
        match plain(kind)[0]:
            case mi.StructType() | mi.DataclassType() | mi.TypedDictType() as record:
                needed = [field for field in record.fields if field.required]
                return self.build(
                    record, {field.name: self._stand_in(field.type) for field in needed}
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


def _did_you_mean(guess: str | None) -> str:
    return f"did you mean {guess}?" if guess else ""


def _entries(count: int) -> str:
    return "one entry" if count == 1 else f"{count} entries"
