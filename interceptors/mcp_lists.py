"""Which entries of a server's lists an MCP client may see: for `mcp_policy`. Sans I/O.

Filters by the shape of the JSON, not by its envelope: official clients accept responses with null
or extra members, and some accept names in another case. Everything that a client could read as a
list is filtered, in every message of a batch. A text without a hidden entry keeps its bytes.

Sources: the message readers of the official SDKs for Python (the last of two members counts,
unknown ones are ignored, snake case is accepted), TypeScript (arrays of messages) and Go (any
number as id).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from pools import encode_json

from .errors import NotJson
from .toolkit.uris import trim

__all__ = ["VisibleLists"]

Allows = Callable[[object], bool]

# Each list of a result, and the member with an entry's name.
_LISTS = {
    "tools": "name",
    "prompts": "name",
    "resources": "uri",
    "resourceTemplates": "uriTemplate",
}
_UPDATED = "notifications/resources/updated"
# Escapes of letters that can hide a name: ASCII, and the two others that fold to ASCII.
_ESCAPED_LETTERS = ("\\u004", "\\u005", "\\u006", "\\u007", "\\u017f", "\\u212a")
_NOT_JSON_BEFORE = "\ufeff \t\r\n"  # skipped by readers before a JSON text


class _Repeating(dict[str, Any]):
    """A JSON object with two members of one name. It keeps every member."""

    def __init__(self, members: list[tuple[str, Any]]) -> None:
        super().__init__(members)
        self.members = members


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(members)  # cheaper: a text can have 300,000 objects
    return made if len(made) == len(members) else _Repeating(members)


def _all_members(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return value.members if isinstance(value, _Repeating) else value.items()


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())  # keeps the spelling of a number


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_raw, parse_float=_raw, parse_constant=_no_constant
).decode


class VisibleLists:
    """Rules for list entries: a predicate on names for each list (`tools`, `resourceTemplates`)."""

    def __init__(self, rules: Mapping[str, Allows]) -> None:
        self._rules = {
            _folded(member): (_folded(_LISTS[member]), allows) for member, allows in rules.items()
        }
        self._searched = {
            "resource" if member.startswith("resource") else member for member in rules
        }
        self._allows_uri = rules.get("resources")

    def __bool__(self) -> bool:
        return bool(self._rules)

    def show(self, text: str) -> str | None:
        """The JSON text without hidden entries: `text` itself if it has none, None if all are.

        Raises `NotJson` for a list in JSON that clients may read in different ways.
        """
        if not self._may_have_list(text):
            return text
        try:
            tree = _decode(text)
            shown, changed = self._show(tree)
            if not changed:
                return text
            return encode_json(tree).decode() if shown else None
        except (ValueError, TypeError, RecursionError):  # the encoder refuses half a surrogate pair
            raise NotJson(
                "a list of an MCP server is in JSON that clients may read in different ways"
            ) from None

    def _may_have_list(self, text: str) -> bool:
        """The text may contain the name of a list. Most events do not, and are not decoded."""
        if not text.startswith(("{", "[")) and not text.lstrip(_NOT_JSON_BEFORE).startswith(
            ("{", "[")
        ):
            return False
        folded = text.lower() if text.isascii() else text.casefold()
        if "\\u" in folded and any(escape in folded for escape in _ESCAPED_LETTERS):
            return True
        return any(name in folded for name in self._searched)

    def _show(self, tree: Any) -> tuple[bool, bool]:
        """Remove hidden entries of a message or batch, in place.

        Returns whether anything is left, and whether anything changed.
        """
        if isinstance(tree, list):
            results = [self._show(item) for item in tree]
            tree[:] = [item for item, (shown, _) in zip(tree, results, strict=True) if shown]
            return bool(tree) or not results, any(
                changed or not shown for shown, changed in results
            )
        if not isinstance(tree, dict):
            return True, False
        if self._is_denied_update(tree):
            return False, True
        changed = False
        for name, value in _all_members(tree):
            folded = _folded(name)
            if folded == "result":
                changed |= self._show(value)[1]
            elif folded in self._rules:
                changed |= _filter(value, *self._rules[folded])
        return True, changed

    def _is_denied_update(self, message: dict[str, Any]) -> bool:
        """The message notifies of a change of a hidden resource."""
        if self._allows_uri is None:
            return False
        methods = [value for value in _members(message, "method") if isinstance(value, str)]
        if not any(trim(method).casefold() == _UPDATED for method in methods):
            return False
        uris = [uri for params in _members(message, "params") for uri in _members(params, "uri")]
        return not uris or not all(map(self._allows_uri, uris))


def _filter(entries: Any, key: str, allows: Allows) -> bool:
    """Remove hidden entries, in place. Of an object instead of a list, the values are entries."""
    if isinstance(entries, list):
        kept = [entry for entry in entries if _is_visible(entry, key, allows)]
        changed = len(kept) < len(entries)
        entries[:] = kept
        return changed
    if not isinstance(entries, dict):
        return False
    gone = {
        name
        for name, entry in _all_members(entries)
        if isinstance(entry, (str, list, dict)) and not _is_visible(entry, key, allows)
    }
    for name in gone:
        del entries[name]
    return bool(gone)


def _is_visible(entry: Any, key: str, allows: Allows) -> bool:
    """Every name that a reader could find is allowed. An entry without a name is hidden."""
    names = list(_members(entry, key))
    return bool(names) and all(map(allows, names))


def _members(value: Any, name: str) -> Iterator[Any]:
    """The members that a reader could find by this folded name."""
    if isinstance(value, dict):
        yield from (member for own, member in _all_members(value) if _folded(own) == name)


def _folded(name: str) -> str:
    """Fold a name as the most tolerant reader does: no case, no underscores."""
    return (name.lower() if name.isascii() else name.casefold()).replace("_", "")
