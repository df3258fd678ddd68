"""Substitutions in text that comes in pieces: the pieces that leave are together what `re.sub` makes of the whole text.

A piece leaves as soon as nothing that may follow can change it. Python's `re` cannot tell, so two engines share the work: `re`
finds what matches, and `regex`, which knows partial matches, says from where on a match is still possible or may still grow. That
question is the pattern in an atomic group and then `(?!)`, which nothing satisfies: what is found is the first place at which the
engine, in its order of trying, came to the end of the text before it had a match. So that an end that is only an end so far is
never taken for the end of the text, `$`, `\\Z`, `\\b` and `\\B` read the character behind them there. Classes of characters are
written such that both engines mean the same; only in `(?i)` of a dotless i, and in characters younger than Python's tables, do they
differ, where a text might wait in vain, or not wait.

Sans I/O; knows nothing of events. Not more than `window` characters wait in a `Flow`, besides those that a pattern may look
back at.
"""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]  # private: it alone knows how wide what matches can be
from typing import Any

import regex

__all__ = ["LOOKS_AROUND", "Flow", "ReachesBack", "Substitution"]

LOOKS_AROUND = re.compile(r"[$^]|\\[bBAZ]|\(\?[=!<]")
"""Found in the source of a pattern whose matches may depend on the text around them."""

# One piece of a pattern's source, as `re` reads it.
_PIECES = (
    r"\\N\{[^}]*\}|\\.|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|\(\?#[^)]*\)|\(\?P=\w+\)"
    r"|(?P<open>\((?:\?(?:P<\w+>|[:>]|(?P<ahead>[=!])|(?P<behind><[=!])|\(\w+\)|[aiLmsux-]+:))?)|(?P<close>\))"
    r"|\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]*)\}"
)
_PIECE = re.compile(rf"{_PIECES}|.", re.DOTALL)
_VERBOSE_PIECE = re.compile(rf"{_PIECES}|#[^\n]*|.", re.DOTALL)
_IN_SET = re.compile(r"\\.|\[|[^\\\[]+", re.DOTALL)
_GLOBAL_FLAGS = re.compile(r"(?:\(\?[aiLmsux]+\))+")
_PART_WITH_FLAGS = re.compile(r"\(\?[ims-]*[aLux][aiLmsux-]*:")
_REPEATED = re.compile(r"\s*[*+{]")
_MORE = r"(?=[\s\S])"  # reads the next character
# The next two, if the first is a line end: $ stands before a line end that is the last character.
_MORE_LINE = r"(?=\n[\s\S]|[^\n])"
# To `re`, a letter of a word is what is alphanumeric; to `regex`, marks are among them, and some numbers are not.
_WORD, _SPACE = r"\p{L}\p{N}_", r"\s\x1c-\x1f"
_CLASSES = {r"\w": f"[{_WORD}]", r"\s": f"[{_SPACE}]"}
_COMPLEMENTS = {r"\W": f"[{_WORD}]", r"\S": f"[{_SPACE}]"}
_SET_PARTS = {"[": r"\[", r"\w": _WORD, r"\s": _SPACE}  # [[:alpha:]] is no class of letters
_BOUNDARIES = {
    r"\b": f"(?:(?<=[{_WORD}])(?![{_WORD}])|(?<![{_WORD}])(?=[{_WORD}]))",
    r"\B": f"(?:(?<=[{_WORD}])(?=[{_WORD}])|(?<![{_WORD}])(?![{_WORD}]))",
}
_READS_ON = {"$": _MORE_LINE, r"\Z": _MORE, r"\z": _MORE, r"\b": _MORE, r"\B": _MORE}
_FLAGS = {
    re.ASCII: regex.ASCII,
    re.IGNORECASE: regex.IGNORECASE,
    re.MULTILINE: regex.MULTILINE,
    re.DOTALL: regex.DOTALL,
    re.VERBOSE: regex.VERBOSE,
}


class Substitution:
    """A pattern and the template that replaces its matches, both as `re.sub` takes them."""

    __slots__ = ("behind", "pattern", "template", "undecided")

    def __init__(self, pattern: str, template: str) -> None:
        """Raises `ValueError` for what `re` does not take, and for what cannot be found in pieces as in the whole."""
        try:
            self.pattern = re.compile(pattern)
            self.pattern.sub(template, "")  # refuses a template that names a group that is not there
        except (re.error, IndexError) as error:
            raise ValueError(str(error)) from None
        parsed = _parser.parse(pattern)
        if parsed.getwidth()[0] == 0:
            raise ValueError("it can match nothing, so that something would be put where there is nothing to replace")
        self.template = template
        self.behind = 1 + _behind(parsed)  # ^ and \b look at one character
        given = self.pattern.flags
        source = _rewrite(pattern, verbose=bool(given & re.VERBOSE), ascii=bool(given & re.ASCII))
        flags = regex.VERSION0
        for ours, theirs in _FLAGS.items():
            if given & ours:
                flags |= theirs
        try:
            self.undecided = regex.compile(f"(?>{source}\n)(?!)" if flags & regex.VERBOSE else f"(?>{source})(?!)", flags)
        except regex.error as error:
            raise ValueError(f"it cannot be looked for in pieces of text: {error}") from None

    def sub(self, text: str) -> str:
        """The text with every match replaced."""
        return self.pattern.sub(self.template, text)


def _rewrite(pattern: str, *, verbose: bool, ascii: bool) -> str:
    """The source of a pattern such that it reads on at its end and `regex` takes it as `re` does."""
    if _PART_WITH_FLAGS.search(pattern):
        raise ValueError("one of its parts is verbose, or ASCII: write (?x) or (?a) at its beginning")
    flags = _GLOBAL_FLAGS.match(pattern)
    pieces: list[str] = []
    groups: list[int] = []  # those that are open, by the piece that opened them
    lookbehind: int | None = None  # the outermost one that is open, and
    reads_on = False  # whether it asks for what is at the end of what it looks at
    for found in (_VERBOSE_PIECE if verbose else _PIECE).finditer(pattern, flags.end() if flags else 0):
        piece = found[0]
        if found["open"]:
            if lookbehind is not None and found["ahead"]:
                raise ValueError("it looks ahead in a lookbehind: write the one behind the other")
            if lookbehind is None and found["behind"]:
                lookbehind, reads_on = len(pieces), False
            groups.append(len(pieces))
        elif found["close"]:
            opened = groups.pop()
            if lookbehind == opened:
                lookbehind = None
                if reads_on:
                    pieces[opened] = f"(?:{_MORE_LINE}{pieces[opened]}"
                    piece = "))"
            elif lookbehind is None and _REPEATED.match(pattern, found.end()):
                # At the end of the text `regex` prefers to have done with a repeated group, unless it must read on in it.
                pieces[opened] += _MORE
        elif found["set"]:
            piece = _rewrite_set(piece, ascii)
        elif piece == "{":  # {e<=1} is no edit distance
            piece = r"\{"
        elif piece in _READS_ON:
            reads_on = True
            more = _READS_ON[piece] if lookbehind is None else ""
            piece = f"(?:{more}{piece if ascii else _BOUNDARIES.get(piece, piece)})"
        elif not ascii:
            piece = _not_in(_COMPLEMENTS[piece]) if piece in _COMPLEMENTS else _CLASSES.get(piece, piece)
        pieces.append(piece)
    return "".join(pieces)


def _rewrite_set(source: str, ascii: bool) -> str:
    """A set, such that `regex` takes it as `re` does. What is in none of its classes stands beside it."""
    start = "[^" if source.startswith("[^") else "["
    inner = ""
    others = []  # classes of which the set has what is not in them
    for found in _IN_SET.finditer(source, len(start), len(source) - 1):
        part = found[0]
        if not ascii and part in _COMPLEMENTS:
            others.append(_COMPLEMENTS[part])
        else:
            inner += part if part != "[" and ascii else _SET_PARTS.get(part, part)
    if start == "[" and not others:
        return f"[{inner}]"
    sets = "|".join([*([f"[{inner}]"] if inner else []), *map(_not_in, others)])
    return f"(?:{sets})" if start == "[" else _not_in(f"(?:{sets})")


def _not_in(source: str) -> str:
    """A character that is none of these. No `[^...]`: `regex` takes `(?:[^a]|[^b])` for `[^ab]`."""
    return rf"(?:(?!{source})[\s\S])"


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
        """`window`: characters that may wait. Of a match that is longer, what has come is replaced, and what goes on matching is
        gone; what could have become one is given up, and leaves.
        """
        self._sub = substitution
        self._window = window
        self._buffer = ""
        self._at = 0  # what is before it has left; it is kept for what looks back
        self._gone: tuple[int, int] | None = None  # what left at the text's end, and might have become a match
        self._run: tuple[int, int] | None = None  # a match that was replaced and still grows, where it is kept in the buffer

    def feed(self, text: str, *, final: bool = False) -> str:
        """What leaves now that this has come. `final`: the text ends here.

        More may come all the same. Then what matches across that end is refused with `ReachesBack`, because its beginning has left,
        and what goes on with a match that was replaced at the end is gone.
        """
        self._buffer += text
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
        for match in substitution.pattern.finditer(buffer, self._at):
            left += buffer[self._at : match.start()], match.expand(substitution.template)
            self._at = match.end()
            last = match
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
        while (match := pattern.search(buffer, at)) is not None and match.start() < end:
            if match.end() > end:
                raise ReachesBack
            at = match.end()
        if len(buffer) - begin > 2 * self._window:
            self._gone = None
            return
        undecided = self._sub.undecided.search(buffer, at, partial=True)
        if undecided is None or undecided.start() >= end:
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
                undecided = substitution.undecided.search(buffer, oldest, partial=True)
                decided = end if undecided is None else undecided.start()
            match = substitution.pattern.search(buffer, self._at)
            if match is None or match.start() >= decided:
                left.append(buffer[self._at : decided])
                self._at = decided
                return
            start, stop = match.span()
            left += buffer[self._at : start], match.expand(substitution.template)
            if start < oldest and substitution.undecided.match(buffer, start, partial=True) is not None:
                self._keep_run(start, stop)
                if not self._run_on(False):
                    return
                buffer, end, decided = self._buffer, len(self._buffer), -1
                continue
            self._at = stop

    def _keep_run(self, start: int, stop: int) -> None:
        """A match is replaced and may grow: keep no more of it than tells whether what comes goes on with it."""
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
        match = substitution.pattern.match(buffer, start)
        end = stop if match is None else max(stop, match.end())
        grows = not final and substitution.undecided.match(buffer, start, partial=True) is not None
        if grows and len(buffer) - end <= self._window:
            self._buffer = buffer[:stop] + buffer[end:]
            return False
        self._run = None
        self._at = end
        return True
