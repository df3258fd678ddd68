"""Substitutions in text that comes in pieces: the pieces that leave are together what `re.sub`
makes of the whole text.

A piece leaves as soon as nothing that may follow can change it. Python's `re` cannot tell, so two
engines share the work: `re` finds what matches, and `regex`, which knows partial matches, says from
where on a match is still possible or may still grow. That question is the pattern in an atomic
group and then `(?!)`, which nothing satisfies: what is found is the first place at which the
engine, in its order of trying, came to the end of the text before it had a match. So that an end
that is only an end so far is never taken for the end of the text, `$`, `\\Z`, `\\b` and `\\B` read
the character after them there (`rewrite`).

Every search ends in time, or raises `PatternTooSlow` (`bounded`).

Sans I/O; knows nothing of events. Not more than `window` characters wait in a `Flow`, besides those
that a pattern may look back at.
"""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]  # private: it alone knows how wide what matches can be
from typing import Any

import regex

from .bounded import Budget, Found, Pattern, PatternTooSlow
from .rewrite import source_for_regex

__all__ = ["Flow", "ReachesBack", "Substitution"]

_FEW = 32  # up to this many places, trying each is cheaper than a search over the text after them


class Substitution:
    """A pattern and the template that replaces its matches, both as `re.sub` takes them."""

    __slots__ = ("_beginnings", "_constant", "_undecided", "behind", "pattern", "template")

    def __init__(
        self, pattern: str, template: str, name: str = "the pattern", budget: Budget | None = None
    ) -> None:
        """`name`: its place in the configuration, for errors. Raises `ValueError` for what `re`
        does not take, and for what cannot be found in pieces as in the whole.
        """
        try:
            compiled = re.compile(pattern)
            compiled.sub(template, "")  # refuses a template that names a group that is not there
        except (re.error, IndexError) as error:
            raise ValueError(str(error)) from None
        parsed = _parser.parse(pattern)
        if parsed.getwidth()[0] == 0:
            raise ValueError(
                "it can match nothing, so that something would be put where there is nothing to replace"
            )
        self.template = template
        # What is put in place of every match; None where it depends on the match.
        self._constant = None if "\\" in template else template
        self.behind = 1 + _behind(parsed)  # ^ and \b look at one character
        source, flags = source_for_regex(compiled, reads_on=True)
        try:
            self._undecided = regex.compile(
                f"(?>{source}\n)(?!)" if flags & regex.VERBOSE else f"(?>{source})(?!)", flags
            )
            self.pattern = Pattern(compiled, name, budget or Budget())
        except regex.error as error:
            raise ValueError(f"it cannot be looked for in pieces of text: {error}") from None
        prefix = self.pattern.prefix
        self._beginnings = tuple(prefix[:size] for size in range(1, len(prefix)))

    def begins_in(self, text: str) -> bool:
        """Whether a match may begin in a text, or where it ends. Cheap; False only for patterns
        that begin with fixed text.
        """
        prefix = self.pattern.prefix
        return not prefix or prefix in text or text.endswith(self._beginnings)

    def expand(self, found: Found) -> str:
        """What is put in place of a match."""
        return found.expand(self.template) if self._constant is None else self._constant

    def sub(self, text: str) -> str:
        """The text with every match replaced. Raises `PatternTooSlow`, as all that searches."""
        pattern = self.pattern
        if pattern.is_cheap(len(text)):
            return pattern.re.sub(self.template, text)
        pieces: list[str] = []
        at = 0
        for found in pattern.find_all(text):
            pieces += text[at : found.start()], self.expand(found)
            at = found.end()
        return "".join([*pieces, text[at:]]) if pieces else text

    def first_undecided(self, text: str, at: int) -> int | None:
        """The first place from `at` on at which a match is still possible or may still grow."""
        # Where much waits, that is most often the first place, and this search is over at once.
        if len(text) - at > _FEW and self.is_undecided(text, at):
            return at
        found = self._partial(self._undecided.search, text, at)
        return None if found is None else int(found.start())

    def is_undecided(self, text: str, at: int) -> bool:
        """Whether a match that begins at `at` is still possible or may still grow."""
        return self._partial(self._undecided.match, text, at) is not None

    def _partial(self, method: Any, text: str, at: int) -> Any:
        if self.pattern.is_cheap(len(text) - at):
            return method(text, at, partial=True)
        try:
            return method(text, at, partial=True, timeout=self.pattern.left_s())
        except TimeoutError:
            raise PatternTooSlow(self.pattern.name) from None


def _behind(node: Any) -> int:
    """How many characters the lookbehinds in a parsed pattern reach back."""
    behind = 0
    if isinstance(node, _parser.SubPattern):
        for op, value in node.data:
            if op in (_parser.ASSERT, _parser.ASSERT_NOT) and value[0] < 0:
                behind = max(behind, value[1].getwidth()[1] + _behind(value[1]))
            else:
                behind = max(behind, _behind(value))
    elif isinstance(node, (list, tuple)):
        behind = max((_behind(item) for item in node), default=0)
    return behind


class ReachesBack(Exception):
    """A text goes on after its end, and a match begins in what has left."""


class Flow:
    """One substitution over one text. What `feed` gives leaves, in its order."""

    __slots__ = ("_at", "_buffer", "_gone", "_run", "_sub", "_window")

    def __init__(self, substitution: Substitution, window: int) -> None:
        """`window`: characters that may wait. Of a match that is longer, what has come is replaced,
        and what goes on matching is gone; what could have become one is given up, and leaves.
        """
        self._sub = substitution
        self._window = window
        self._buffer = ""
        self._at = 0  # what is before it has left; it is kept for what looks back
        self._gone: tuple[int, int] | None = (
            None  # what left at the text's end, and might have become a match
        )
        self._run: tuple[int, int] | None = (
            None  # a match that was replaced and still grows, where it is kept in the buffer
        )

    def feed(self, text: str, *, final: bool = False) -> str:
        """What leaves now that this has come. `final`: the text ends here.

        More may come all the same. Then what matches across that end is refused with `ReachesBack`,
        because its beginning has left, and what goes on with a match that was replaced at the end
        is gone.
        """
        self._buffer += text
        if (
            self._run is None
            and self._gone is None
            and not final
            and not self._sub.begins_in(self._buffer)
        ):
            # The usual case by far.
            passed = self._buffer[self._at :]
            self._buffer = self._buffer[-self._sub.behind :]
            self._at = len(self._buffer)
            return passed
        left: list[str] = []
        if self._run is None or self._run_on(final):
            if self._gone is not None and text:
                self._look_back()
            if final:
                self._finish(left)
            else:
                self._go_on(left)
        start = self._at if self._run is None else self._run[0]
        if self._gone is not None:
            start = min(start, self._gone[0])
        cut = max(0, start - self._sub.behind)
        if cut:
            self._buffer = self._buffer[cut:]
            self._at -= cut
            if self._run is not None:
                self._run = self._run[0] - cut, self._run[1] - cut
            if self._gone is not None:
                self._gone = self._gone[0] - cut, self._gone[1] - cut
        return "".join(left)

    def _finish(self, left: list[str]) -> None:
        buffer, substitution = self._buffer, self._sub
        begin = self._at if self._gone is None else self._gone[0]
        last = None
        for found in substitution.pattern.find_all(buffer, self._at):
            left += buffer[self._at : found.start()], substitution.expand(found)
            self._at = found.end()
            last = found
        left.append(buffer[self._at :])
        if last is not None and last.end() == len(buffer):
            self._run = last.span()
        elif begin < len(buffer):
            self._gone = begin, len(buffer)
        self._at = len(buffer)

    def _look_back(self) -> None:
        """Raise `ReachesBack` for a match that begins in what left at the end of the text."""
        assert self._gone is not None
        begin, end = self._gone
        buffer, pattern = self._buffer, self._sub.pattern
        at = begin
        while (found := pattern.search(buffer, at)) is not None and found.start() < end:
            if found.end() > end:
                raise ReachesBack
            at = found.end()
        if len(buffer) - begin > 2 * self._window:
            self._gone = None
            return
        undecided = self._sub.first_undecided(buffer, at)
        if undecided is None or undecided >= end:
            self._gone = None

    def _go_on(self, left: list[str]) -> None:
        """As `_finish`, up to where what comes next may change it."""
        substitution, buffer = self._sub, self._buffer
        end = len(buffer)
        decided = -1  # nothing before it can change
        while True:
            if decided < self._at:
                # What began before the window is given up, unless it is a match.
                oldest = max(self._at, end - self._window)
                undecided = substitution.first_undecided(buffer, oldest)
                decided = end if undecided is None else undecided
            found = self._next_before(decided)
            if found is None:
                left.append(buffer[self._at : decided])
                self._at = decided
                return
            start, stop = found.span()
            left += buffer[self._at : start], substitution.expand(found)
            if start < oldest and substitution.is_undecided(buffer, start):
                self._keep_run(start, stop)
                if not self._run_on(False):
                    return
                buffer, end, decided = self._buffer, len(self._buffer), -1
                continue
            self._at = stop

    def _next_before(self, end: int) -> Found | None:
        """The first match that begins before `end`. Where few places are before it, only those are
        tried.
        """
        pattern, buffer, at = self._sub.pattern, self._buffer, self._at
        if end - at > _FEW or pattern.is_cheap(len(buffer) - at):
            found = pattern.search(buffer, at) if at < end else None
            return found if found is not None and found.start() < end else None
        for place in range(at, end):
            if (found := pattern.match(buffer, place)) is not None:
                return found
        return None

    def _keep_run(self, start: int, stop: int) -> None:
        """A match is replaced and may grow: keep no more of it than tells whether what comes goes
        on with it.
        """
        buffer = self._buffer
        if stop - start > self._window:
            shorter = self._sub.pattern.match(buffer[: start + self._window], start)
            if shorter is not None and shorter.end() > start:
                self._buffer = buffer = buffer[: shorter.end()] + buffer[stop:]
                stop = shorter.end()
        self._run = start, stop

    def _run_on(self, final: bool) -> bool:
        """Take away what goes on with a match that was replaced. Whether it can go on no longer."""
        assert self._run is not None
        start, stop = self._run
        buffer, substitution = self._buffer, self._sub
        found = substitution.pattern.match(buffer, start)
        end = stop if found is None else max(stop, found.end())
        grows = not final and substitution.is_undecided(buffer, start)
        if grows and len(buffer) - end <= self._window:
            self._buffer = buffer[:stop] + buffer[end:]
            return False
        self._run = None
        self._at = end
        return True
