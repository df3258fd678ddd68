"""The text of a configuration: its tree, and the place of each value.

PyYAML's safe loader parses it. PyYAML keeps the last of two equal keys, which YAML forbids (1.2,
section 3.2.1.3): this module reports them. It knows no key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from interceptors.values import join

from ..errors import ConfigError, Problem

__all__ = ["Place", "Source", "read_yaml"]

_MAX_VALUES = 50_000  # nested aliases can expand a few lines to more
_MAX_TEXT = 60
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a value and of its key; lines and columns start at 1."""

    line: int
    column: int
    key_line: int
    key_column: int
    text: str
    """The value as written, shortened."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed text."""

    tree: Any
    places: dict[str, Place]
    """By the path of the value."""
    duplicates: list[str] = field(default_factory=list)
    """Paths of repeated keys."""

    def place_of(self, path: str) -> Place | None:
        """Return the place of a path, or of the nearest path above it."""
        while path not in self.places:
            if not path:
                return None
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.places[path]


def read_yaml(text: str) -> Source:
    """Parse YAML. Raises `ConfigError`."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        message = f"YAML does not allow the character U+{ord(text[error.position]):04X}"
        hint = 'write it as an escape in double quotes, such as "\\u001b", or remove it'
        raise ConfigError(
            Problem(
                "",
                message,
                hint,
                line=before.count("\n") + 1,
                column=len(before) - before.rfind("\n"),
            )
        ) from None
    try:
        node = loader.get_single_node()
        reading = _Reading(text)
        if node is not None:
            reading.walk(node, "", node)
        tree = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        problem = str(error.problem).removeprefix("but ")
        at = text[mark.index :] if mark else ""
        raise ConfigError(
            Problem("", problem, _hint_for(problem, at), line=line, column=column)
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from None
    except RecursionError:
        raise ConfigError("this is nested too deeply") from None
    finally:
        loader.dispose()
    return Source(tree, reading.places, reading.duplicates)


class _Loader(yaml.SafeLoader):
    """A safe loader that reads invalid numbers and dates as text (`2026-99-99`, `0x_`, 6,000
    digits).

    PyYAML raises various exceptions for them. As text they get the usual error, with their place.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep=deep)
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except (ValueError, ArithmeticError, AttributeError, LookupError, TypeError):
            self.recursive_objects.pop(node, None)
            return node.value


def _hint_for(problem: str, at: str) -> str:
    """Return what to write instead. `at`: the text from the mistake on."""
    if at.startswith("{") and problem.startswith("expected"):
        return (
            'put a value with ${...} in quotes here, as in "${VAR}":'
            " inside { } and [ ], YAML reads { and } itself"
        )
    if "unknown escape character" in problem:
        return "in double quotes write \\\\ for a backslash, or put the value in single quotes"
    if "alias" in problem or "anchor" in problem:
        return "put a value that begins with * or & in quotes"
    if problem.startswith("found character"):
        return (
            "indent with spaces"
            if at.startswith("\t")
            else "put a value that begins with this character in quotes"
        )
    if "mapping values are not allowed" in problem:
        return (
            "put a value that holds a colon and a space in quotes,"
            " or check where this line and the one above begin"
        )
    if "another document" in problem:
        return "a configuration is one document: remove the line ---"
    if "constructor for the tag" in problem:
        return "tags are not supported: write ${VAR} or ${file:PATH} for a value from elsewhere"
    if problem.startswith("expected <block end>"):
        return (
            "check where this line begins:"
            " the keys of a mapping, and the entries of a list, begin in the same column"
        )
    if "could not find expected ':'" in problem:
        return "a key is followed by a colon and a space"
    return ""


class _Reading:
    """Collects the place of each value from the YAML nodes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._above: list[yaml.Node] = []
        self._values = 0
        self.places: dict[str, Place] = {}
        self.duplicates: list[str] = []

    def walk(self, node: yaml.Node, path: str, key: yaml.Node) -> None:
        self._values += 1
        if any(node is item for item in self._above):
            raise ConfigError("a YAML alias holds itself")
        if self._values > _MAX_VALUES:
            raise ConfigError(f"this has more than {_MAX_VALUES} values")
        mark, key_mark = node.start_mark, key.start_mark
        self.places[path] = Place(
            mark.line + 1,
            mark.column + 1,
            key_mark.line + 1,
            key_mark.column + 1,
            self._text_of(node),
        )
        self._above.append(node)
        if isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, path, set())
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.walk(item, f"{path}[{index}]", item)
        self._above.pop()

    def _walk_mapping(self, node: yaml.MappingNode, path: str, taken: set[str]) -> None:
        """`taken`: keys of the mapping that this one is merged into, which take precedence."""
        own: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            where = join(path, _key_of(key))
            if key.value in own:
                self.duplicates.append(where)
            own.add(key.value)
            if key.value not in taken:
                self.walk(value, where, key)
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            taken |= own
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(merged, yaml.MappingNode) and merged not in self._above:
                    self._above.append(merged)
                    self._walk_mapping(merged, path, taken)
                    self._above.pop()
        taken |= own

    def _text_of(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode):
            text = (
                json.dumps(node.value, ensure_ascii=False)
                if node.tag == "tag:yaml.org,2002:str"
                else node.value or "null"
            )
        else:
            text = self._text[node.start_mark.index : node.end_mark.index].strip()
            if "\n" in text:
                text = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."


def _key_of(node: yaml.ScalarNode) -> str:
    """Return a key as the checker sees it: the text of its Python value."""
    try:
        plain = node.style is None and node.tag != "tag:yaml.org,2002:str"
        return str(yaml.load(node.value, _Loader) if plain else node.value)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        return str(node.value)
