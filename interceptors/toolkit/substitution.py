"""Substitutions in text that arrives in pieces: the pieces that leave, joined, equal a substitution
in the whole text.

A piece leaves as soon as no text after it can change it. A partial match of `regex` decides that:
`(?>pattern)(?!)` never matches, so that it only reports the first place where the engine reached
the end of the text before it had a match.

Invariant: a `Flow` holds back at most `window` characters. It also keeps the text that a lookbehind
can see, after it has left. Sans I/O. Must not know events.
"""

from __future__ import annotations

import re

from .search import Budget, Found, Pattern, compiled

__all__ = ["Flow", "ReachesBack", "Substitution"]

BEHIND = 1000
"""Characters of text that has left, kept for a pattern with a lookbehind."""

_FEW = 32  # up to so many places, trying each costs less than a search over the text after them


class Substitution:
    """A pattern and the template that replaces its matches."""

    __slots__ = (
        "_beginnings",
        "_constant",
        "_undecided",
        "pattern",
        "prefix",
        "seen_before",
        "template",
    )

    def __init__(
        self, pattern: str, template: str, name: str = "the pattern", budget: Budget | None = None
    ) -> None:
        """`pattern` and `template`: as `re.sub` takes them. `name`: the pattern's place in the
        configuration. Raises `ValueError` for a mistake in either, for a pattern that can match the
        empty string, and for one that cannot be searched for in pieces of text.
        """
        try:
            re.compile(pattern).sub(template, "")  # refuses a template with an unknown group
        except (re.error, IndexError) as error:
            raise ValueError(str(error)) from None
        self.pattern = Pattern(pattern, name, budget or Budget())
        source = self.pattern.source
        if source.can_match_empty:
            raise ValueError(
                "the pattern can match the empty string: write one that matches at least one "
                "character, such as a+ instead of a*"
            )
        if source.reading_on is None:
            raise ValueError(_why_not(pattern))
        self._undecided = compiled(
            self.pattern.only_at_runs(f"(?>{source.reading_on})(?!)"), source
        )
        self.template = template
        self._constant = None if "\\" in template else template
        self.seen_before = BEHIND if source.looks_behind else 1  # ^ and \b look at one character
        self.prefix = source.prefix
        """As `Source.prefix`."""
        self._beginnings = tuple(source.prefix[:size] for size in range(1, len(source.prefix)))

    def begins_in(self, text: str) -> bool:
        """Whether a match may begin in the text or at its end. Cheap."""
        prefix = self.prefix
        return not prefix or prefix in text or text.endswith(self._beginnings)

    def expand(self, found: Found) -> str:
        """What replaces a match."""
        return found.expand(self.template) if self._constant is None else self._constant

    def sub(self, text: str) -> str:
        """The text with every match replaced."""
        pieces: list[str] = []
        at = 0
        for found in self.pattern.find_all(text):
            pieces += text[at : found.start()], self.expand(found)
            at = found.end()
        return "".join([*pieces, text[at:]]) if pieces else text

    def first_undecided(self, text: str, at: int) -> int | None:
        """The first place from `at` on where a match is still possible, or may still grow."""
        # With much text held back, that is usually `at` itself, and this check is fast.
        if len(text) - at > _FEW and self.is_undecided(text, at):
            return at
        found = self.pattern.timed(self._undecided.search, text, at, partial=True)
        return None if found is None else int(found.start())

    def is_undecided(self, text: str, at: int) -> bool:
        """Whether a match that begins at `at` is still possible, or may still grow."""
        return self.pattern.timed(self._undecided.match, text, at, partial=True) is not None


def _why_not(pattern: str) -> str:
    if re.search(r"\(\?<[=!]", pattern) and re.search(r"\(\?[=!]", pattern):
        return (
            "a lookahead inside a lookbehind does not work across events: write the "
            "lookahead after the lookbehind"
        )
    return (
        "one of its parts is verbose, or ASCII: set the flag for the whole pattern, with (?x) or "
        "(?a) at its beginning"
    )


class ReachesBack(Exception):
    """A text continues after its end, and a match begins in text that was already sent."""


class Flow:
    """One substitution over one text. `feed` returns what can be sent, in order."""

    __slots__ = ("_at", "_buffer", "_gone", "_run", "_sub", "_window")

    def __init__(self, substitution: Substitution, window: int) -> None:
        """`window`: most characters that are held back.

        A longer match is replaced when the window is full; the rest of it is dropped. A longer
        beginning of a match is given up, and sent.
        """
        self._sub = substitution
        self._window = window
        self._buffer = ""
        self._at = 0  # text before it has left, and is kept for lookbehinds
        self._gone: tuple[int, int] | None = None  # left at the end, could have become a match
        self._run: tuple[int, int] | None = None  # a replaced match that still grows

    def feed(self, text: str, *, final: bool = False) -> str:
        """Add a piece; return what can be sent. `final`: the text ends here.

        More text may follow a final piece. A match across that end raises `ReachesBack`, because
        its beginning was already sent; text that continues a match replaced at the end is dropped.
        """
        self._buffer += text
        is_usual = self._run is None and self._gone is None and not final
        if is_usual and not self._sub.begins_in(self._buffer):
            passed = self._buffer[self._at :]
            self._buffer = self._buffer[-self._sub.seen_before :]
            self._at = len(self._buffer)
            return passed
        left: list[str] = []
        if self._run is None or self._drop_run(final):
            if self._gone is not None and text:
                self._check_gone()
            if final:
                self._finish(left)
            else:
                self._decide(left)
        self._cut()
        return "".join(left)

    def _cut(self) -> None:
        """Drop text that no lookbehind can see."""
        start = self._at if self._run is None else self._run[0]
        if self._gone is not None:
            start = min(start, self._gone[0])
        cut = max(0, start - self._sub.seen_before)
        if cut:
            self._buffer = self._buffer[cut:]
            self._at -= cut
            if self._run is not None:
                self._run = self._run[0] - cut, self._run[1] - cut
            if self._gone is not None:
                self._gone = self._gone[0] - cut, self._gone[1] - cut

    def _finish(self, left: list[str]) -> None:
        """Replace every match up to the end of the text."""
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

    def _check_gone(self) -> None:
        """Raise `ReachesBack` for a match that begins in what was sent at the end of the text."""
        assert self._gone is not None
        begin, end = self._gone
        buffer, pattern = self._buffer, self._sub.pattern
        at = begin
        for found in pattern.find_all(buffer, begin):
            if found.start() >= end:
                break
            if found.end() > end:
                raise ReachesBack
            at = found.end()
        if len(buffer) - begin > 2 * self._window:
            self._gone = None
            return
        undecided = self._sub.first_undecided(buffer, at)
        if undecided is None or undecided >= end:
            self._gone = None

    def _decide(self, left: list[str]) -> None:
        """Replace every match up to the place where later text may change the result."""
        substitution, buffer = self._sub, self._buffer
        end = len(buffer)
        decided = -1  # no text to come changes what is before it
        while True:
            if decided < self._at:
                # Only a match may begin before the window.
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
                if not self._drop_run(False):
                    return
                buffer, end, decided = self._buffer, len(self._buffer), -1
                continue
            self._at = stop

    def _next_before(self, end: int) -> Found | None:
        """The first match that begins before `end`. Tries each place where there are few."""
        pattern, buffer, at = self._sub.pattern, self._buffer, self._at
        if end - at > _FEW or pattern.is_quick(len(buffer) - at):
            found = pattern.search(buffer, at) if at < end else None
        else:
            places = (pattern.match(buffer, place) for place in range(at, end))
            found = next((match for match in places if match is not None), None)
        return found if found is not None and found.start() < end else None

    def _keep_run(self, start: int, stop: int) -> None:
        """Of a replaced match, keep only what decides whether later text continues it."""
        buffer = self._buffer
        if stop - start > self._window:
            shorter = self._sub.pattern.match(buffer[: start + self._window], start)
            if shorter is not None and shorter.end() > start:
                self._buffer = buffer = buffer[: shorter.end()] + buffer[stop:]
                stop = shorter.end()
        self._run = start, stop

    def _drop_run(self, final: bool) -> bool:
        """Drop what continues a replaced match. Return whether that match has ended."""
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
