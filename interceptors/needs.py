"""Which events an interceptor needs to see, found by searches over many events at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PATTERN_OVERLAP", "Finder", "Needs", "Search", "finder_of", "overlap_of"]

Finder = Callable[[bytes | bytearray, int, int], int]
"""Where the first match begins in `buffer[start:end]`, or -1."""

PATTERN_OVERLAP = 1024
"""An event above the limit is searched read by read: a pattern is found if its match has at most
this many bytes.
"""


@dataclass(frozen=True, slots=True)
class Search:
    """In place of `Needs`: a search that may change during the stream. For the proxy's own
    interceptors.
    """

    find: Finder


Needs = re.Pattern[bytes] | Sequence[bytes] | None
"""None: every event. Byte strings: events that contain one of them; an empty sequence: no event. A
pattern: events in which it matches.
"""


def finder_of(needs: Any) -> Finder | None:
    """The search for `Needs`; None when every event is needed. Raises `TypeError`."""
    if needs is None:
        return None
    if isinstance(needs, re.Pattern):
        if not isinstance(needs.pattern, bytes):
            raise TypeError(
                "needs is a pattern of text, expected one of bytes: re.compile(rb'...')"
            )
        return _pattern_finder(needs)
    if isinstance(needs, Search):
        return needs.find
    if not isinstance(needs, (tuple, list)) or not all(
        isinstance(item, bytes) and item for item in needs
    ):
        raise TypeError(
            "needs is not as expected: "
            "None, a tuple of byte strings, or a compiled pattern of bytes"
        )
    return _strings_finder(tuple(needs))


def overlap_of(needs: Needs) -> int:
    """How many bytes before a read must be searched again with it, so that no match is cut."""
    if needs is None or isinstance(needs, Search):
        return 0
    return PATTERN_OVERLAP if isinstance(needs, re.Pattern) else max(map(len, needs), default=1) - 1


def _strings_finder(strings: tuple[bytes, ...]) -> Finder:
    def find(buffer: bytes | bytearray, start: int, end: int) -> int:
        first = -1
        for string in strings:
            # A later string counts only if it begins before the one found.
            found = buffer.find(
                string, start, end if first < 0 else min(end, first + len(string) - 1)
            )
            if found >= 0:
                first = found
        return first

    return find


def _pattern_finder(pattern: re.Pattern[bytes]) -> Finder:
    search = pattern.search

    def find(buffer: bytes | bytearray, start: int, end: int) -> int:
        match = search(buffer, start, end)
        return -1 if match is None else match.start()

    return find
