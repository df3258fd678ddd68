"""Searches with configured patterns that end in time, for any pattern and any text.

The engine is the library `regex`, which can stop in the middle of a search. Its clock costs more
than a short search, so that `Pattern` uses it only where the text is longer than `quick_size`.
`Budget` holds the CPU time of one event.

Sans I/O. Must not know events, or what happens to a match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from time import perf_counter, thread_time
from typing import Any, Protocol

import regex

from .source import Around, Source, read_source

__all__ = [
    "MAX_HOLD_S",
    "Around",
    "Budget",
    "EmptyMatch",
    "Found",
    "Pattern",
    "PatternTooSlow",
    "compiled",
]

MAX_HOLD_S = 0.2
"""CPU seconds that all patterns of one interceptor may take for one event, delta, body or message.

`regex` looks at its clock every few thousand steps, and a step can pass over a long repetition: in
texts of a megabyte a search ends up to 0.15 s late.
"""


_FLAGS = {
    re.ASCII: regex.ASCII,
    re.IGNORECASE: regex.IGNORECASE,
    re.MULTILINE: regex.MULTILINE,
    re.DOTALL: regex.DOTALL,
    re.VERBOSE: regex.VERBOSE,
}


class Found(Protocol):
    """A match."""

    def start(self) -> int: ...
    def end(self) -> int: ...
    def span(self) -> tuple[int, int]: ...
    def expand(self, template: str) -> str: ...


class PatternTooSlow(Exception):
    """A search did not end in time. Names the pattern by its place; never contains the text."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} took longer than {MAX_HOLD_S} s of CPU time for one event: bound its "
            "repetitions, as in [a-z]{1,64}"
        )


class EmptyMatch(ValueError):
    """A pattern matched the empty string, which cannot be replaced."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} matched the empty string: write one that matches a character")


class Budget:
    """The CPU time that one interceptor's patterns may take for one event. Not thread-safe."""

    __slots__ = ("_before_s", "_began_s")

    def __init__(self) -> None:
        self._began_s: float | None = None  # wall clock: cheaper to read than the thread's
        self._before_s = 0.0

    def begin(self) -> None:
        """Start the next event."""
        self._began_s = None

    def left_s(self, name: str) -> float:
        """Seconds left, counted from the first call for an event. Raises `PatternTooSlow` at 0."""
        now_s = perf_counter()
        if self._began_s is None:
            self._began_s, self._before_s = now_s, thread_time()
            return MAX_HOLD_S
        left_s = MAX_HOLD_S - (now_s - self._began_s)
        if left_s > MAX_HOLD_S / 2:
            return left_s  # CPU time never passes faster than wall time
        left_s = MAX_HOLD_S - (thread_time() - self._before_s)
        if left_s <= 0:
            raise PatternTooSlow(name)
        return left_s


def compiled(text: str, source: Source) -> Any:
    """Compile text with the flags of a source. Raises `ValueError` where `regex` refuses it."""
    flags = regex.VERSION0
    for flag, value in _FLAGS.items():
        if source.flags & flag:
            flags |= value
    try:
        return regex.compile(text, flags)
    except regex.error as error:
        raise ValueError(f"the library regex refuses the pattern: {error}") from None


class Pattern:
    """One pattern. Every search raises `PatternTooSlow` when the budget is used up."""

    __slots__ = (
        "_budget",
        "_empty",
        "_literal",
        "_match",
        "_prefix",
        "_quick_size",
        "_search",
        "name",
        "source",
    )

    def __init__(self, pattern: str, name: str, budget: Budget, *, empty: bool = False) -> None:
        """`pattern`: in the syntax of `re`. `name`: its place in the configuration, for errors.
        `empty`: it may match the empty string; else such a match raises `EmptyMatch`, so that a
        search ends even if `Source.can_match_empty` is wrong.

        Raises `re.error` for a mistake in the syntax.
        """
        self.name = name
        self._empty = empty
        self.source = read_source(pattern)
        self._budget = budget
        engine = compiled(self.only_at_runs(f"(?:{self.source.text})"), self.source)
        self._search, self._match = engine.search, engine.match
        self._prefix = self.source.prefix
        self._literal = "" if self._prefix else self.source.literal
        self._quick_size = self.source.quick_size

    def only_at_runs(self, text: str) -> str:
        r"""Source text, tried only at the start (`\G`) and where the leading run begins."""
        run = self.source.run
        return rf"(?:\G|(?<!{run})){text}" if run else text

    def is_quick(self, size: int) -> bool:
        """Whether a search in `size` characters is quick enough to run without a timeout."""
        return size <= self._quick_size

    def left_s(self) -> float:
        """As `Budget.left_s`."""
        return self._budget.left_s(self.name)

    def search(self, text: str, at: int = 0) -> Found | None:
        """The first match that begins at `at` or later. Lookbehinds see the text before."""
        if self._prefix and (at := text.find(self._prefix, at)) < 0:
            return None
        if self._literal and text.find(self._literal, at) < 0:
            return None
        is_quick = len(text) - at <= self._quick_size
        found: Found | None
        found = self._search(text, at) if is_quick else self.timed(self._search, text, at)
        if found is not None and not self._empty and found.start() == found.end():
            raise EmptyMatch(self.name)
        return found

    def match(self, text: str, at: int) -> Found | None:
        """The match that begins at `at`."""
        found: Found | None = self.timed(self._match, text, at)
        return found

    def find_all(self, text: str, at: int = 0) -> Iterator[Found]:
        """Every match from `at` on, of a pattern that must not match the empty string."""
        while (found := self.search(text, at)) is not None:
            yield found
            at = found.end()

    def timed(self, method: Callable[..., Any], text: str, at: int, **options: Any) -> Any:
        """Call a method of a compiled pattern, with the clock where the text is long."""
        if len(text) - at > self._quick_size:
            options["timeout"] = self.left_s()
        try:
            return method(text, at, **options)
        except TimeoutError:
            raise PatternTooSlow(self.name) from None
