"""References in values: `${VAR}`, `${VAR:-default}`, `${file:PATH}`; `$${` is a literal `${`.

A default and a path can contain references. The value of a reference is text: it is neither parsed
as YAML nor expanded again. As in POSIX, `:-` also applies to an empty variable. Any other `${` is
an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interceptors.values import Mistake, join

__all__ = ["Expansion", "expand", "is_from_reference", "mask_references"]

_MAX_FILE = 1 << 20
_FORMS = "write ${VAR}, ${VAR:-default} or ${file:PATH}, and $${ for a literal ${"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STOP = re.compile(r"\$\$\{|\$\{|\}")


_given: dict[str, str] = {}
"""The values of all references of this process, which include secrets, with their references."""


_given_at: dict[str, set[str]] = {}
"""The values of references of this process by their path, of every configuration that it has read."""


def is_from_reference(text: str, path: str) -> bool:
    """Whether a value at a path has the value of a reference in it."""
    return any(value in text for value in _given_at.get(path, ()))


def mask_references(text: str) -> str:
    """Replace values of references by the references, in a text that may quote an option. Values of
    three characters or less stay.
    """
    return _mask(text, {value: written for value, written in _given.items() if len(value) > 3})


def _mask(text: str, known: Mapping[str, str]) -> str:
    for value in sorted(known, key=len, reverse=True):
        for form in {value, repr(value)[1:-1]}:
            text = text.replace(form, known[value])
    return text


class Expansion:
    """The references of a tree and their values."""

    def __init__(self, directory: Path) -> None:
        """`directory`: the base of relative file paths."""
        self.directory = directory
        self.mistakes: list[Mistake] = []
        self.values: dict[str, list[tuple[str, str]]] = {}
        """By path: the value of each reference, which can be a secret, with the reference."""

    def mask(self, text: str, path: str) -> str:
        """Replace values of references by the references, in a text about the value at a path.
        Values shorter than four characters stay, or than three at this path.
        """
        known = {
            value: written
            for found in self.values.values()
            for value, written in found
            if len(value) > 3
        }
        known |= {value: written for value, written in self.values.get(path, ()) if len(value) > 2}
        return _mask(text, known)

    def is_short(self, path: str) -> bool:
        """Whether the value of a reference at a path is too short to mask: then no text may be
        derived from it.
        """
        return any(len(value) <= 2 for value, _ in self.values.get(path, ()))


def expand(tree: Any, expansion: Expansion, path: str = "") -> Any:
    """Return the tree with references in its strings replaced. Adds mistakes to the expansion.
    Blocks on files.
    """
    if isinstance(tree, dict):
        for key in tree:
            if isinstance(key, str) and "${" in key:
                expansion.mistakes.append(
                    Mistake(join(path, key), "a key must not hold ${", shows_value=False)
                )
        return {key: expand(value, expansion, join(path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [expand(value, expansion, f"{path}[{index}]") for index, value in enumerate(tree)]
    if not isinstance(tree, str) or "${" not in tree:
        return tree
    return _Text(tree, expansion, path).expand()


class _Text:
    """A string and the position that parsing has reached."""

    def __init__(self, text: str, expansion: Expansion, path: str) -> None:
        self._text, self._at = text, 0
        self._expansion, self._path = expansion, path

    def expand(self) -> str:
        return self._until_end(nested=False, used=True) or ""

    def _until_end(self, *, nested: bool, used: bool) -> str | None:
        """Return the text up to its end or, if `nested`, up to the brace that closes the reference;
        None if there is none.

        `used` is false inside a default that is not needed: its references are not looked up.
        """
        parts: list[str] = []
        while True:
            stop = _STOP.search(self._text, self._at)
            if stop is None:
                parts.append(self._text[self._at :])
                self._at = len(self._text)
                return None if nested else "".join(parts)
            parts.append(self._text[self._at : stop.start()])
            self._at = stop.end()
            if stop[0] == "$${":
                parts.append("${")
            elif stop[0] == "${":
                parts.append(self._reference(stop.start(), used=used))
            elif nested:
                return "".join(parts)
            else:
                parts.append("}")

    def _reference(self, start: int, *, used: bool) -> str:
        value: str | None
        if self._text.startswith("file:", self._at):
            self._at += 5
            name = self._until_end(nested=True, used=used)
            if not name:
                return self._malformed(start)
            value = self._read(name) if used else ""
        else:
            found = _NAME.match(self._text, self._at)
            if found is None:
                return self._malformed(start)
            self._at = found.end()
            value = os.environ.get(found[0])
            if self._text.startswith("}", self._at):
                self._at += 1
                if value is None:
                    if used:
                        self._wrong(f"the environment variable {found[0]} is not set")
                    value = ""
            elif self._text.startswith(":-", self._at):
                self._at += 2
                default = self._until_end(nested=True, used=used and not value)
                if default is None:
                    return self._malformed(start)
                if not value:
                    return default  # the file shows a default
            else:
                return self._malformed(start)
        if used and value:
            written = self._text[start : self._at]
            self._expansion.values.setdefault(self._path, []).append((value, written))
            _given[value] = written
            _given_at.setdefault(self._path, set()).add(value)
        return value

    def _read(self, name: str) -> str:
        path = self._expansion.directory / name
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
            if len(data) > _MAX_FILE:
                self._wrong(f"the file {str(path)!r} is larger than {_MAX_FILE} bytes")
                return ""
            text = data.decode()
        except UnicodeDecodeError:
            self._wrong(f"the file {str(path)!r} is not UTF-8")
            return ""
        except (OSError, ValueError) as error:  # ValueError: a null character
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._wrong(f"the file {str(path)!r} cannot be read: {reason}")
            return ""
        return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text

    def _malformed(self, start: int) -> str:
        end = self._text.find("}", start)
        written = self._text[start : end + 1 if end >= 0 else len(self._text)]
        self._wrong(f"{written} is not a reference", _FORMS)
        self._at = max(self._at, end + 1 if end >= 0 else len(self._text))
        return ""

    def _wrong(self, message: str, hint: str = "") -> None:
        self._expansion.mistakes.append(Mistake(self._path, message, hint, shows_value=False))
