"""A pattern as `re` takes it, written so that the library `regex` takes it the same way.

Classes of characters are written so that both engines mean the same. They differ only in `(?i)` of
a dotless i, and in characters that are younger than Python's tables. With `reads_on`, the pattern
reads one character more wherever it asks for the end of the text, so that a partial match shows
whether an end that has come is the end.
"""

from __future__ import annotations

import re

import regex

__all__ = ["source_for_regex"]

# One piece of a pattern's source, as `re` reads it.
_PIECES = (
    r"\\N\{[^}]*\}|\\.|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|\(\?#[^)]*\)|\(\?P=\w+\)"
    r"|(?P<open>\((?:\?(?:P<\w+>|[:>]|(?P<ahead>[=!])|(?P<behind><[=!])|\(\w+\)|[aiLmsux-]+:))?)|(?P<close>\))"
    r"|\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]*)\}"
)
_PIECE = re.compile(rf"{_PIECES}|.", re.DOTALL)
_VERBOSE_PIECE = re.compile(rf"{_PIECES}|#[^\n]*|.", re.DOTALL)
_IN_SET = re.compile(r"\\.|\[|[^\\\[]+", re.DOTALL)
_GLOBAL_FLAGS = re.compile(r"(?:\(\?[aiLmsux]++\))+")
_PART_WITH_FLAGS = re.compile(r"\(\?[ims-]*[aLux][aiLmsux-]*:")
_REPEATED = re.compile(r"\s*[*+{]")
_MORE = r"(?=[\s\S])"  # reads the next character
# The next two, if the first is a line end: $ stands before a line end that is the last character.
_MORE_LINE = r"(?=\n[\s\S]|[^\n])"
# To `re`, a letter of a word is what is alphanumeric; to `regex`, marks are among them, and some
# numbers are not.
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


def source_for_regex(compiled: re.Pattern[str], *, reads_on: bool = False) -> tuple[str, int]:
    """The source of a pattern, and the flags, with which `regex` takes it as `re` does. `reads_on`:
    it reads on at its end, so that a partial match shows whether that is the end of the text.
    Raises `ValueError`.
    """
    given = compiled.flags
    flags = regex.VERSION0
    for ours, theirs in _FLAGS.items():
        if given & ours:
            flags |= theirs
    source = _rewrite(
        compiled.pattern,
        verbose=bool(given & re.VERBOSE),
        ascii=bool(given & re.ASCII),
        partial=reads_on,
    )
    return source, flags


def _rewrite(pattern: str, *, verbose: bool, ascii: bool, partial: bool) -> str:
    """The source of a pattern that `regex` takes as `re` does. `partial`: it reads on at its end."""
    if _PART_WITH_FLAGS.search(pattern):
        raise ValueError(
            "one of its parts is verbose, or ASCII: write (?x) or (?a) at its beginning"
        )
    flags = _GLOBAL_FLAGS.match(pattern)
    pieces: list[str] = []
    groups: list[int] = []  # those that are open, by the piece that opened them
    lookbehind: int | None = None  # the outermost one that is open, and
    reads_on = False  # whether it asks for what is at the end of what it looks at
    for found in (_VERBOSE_PIECE if verbose else _PIECE).finditer(
        pattern, flags.end() if flags else 0
    ):
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
                if reads_on and partial:
                    pieces[opened] = f"(?:{_MORE_LINE}{pieces[opened]}"
                    piece = "))"
            elif partial and lookbehind is None and _REPEATED.match(pattern, found.end()):
                # At the end of the text `regex` prefers to have done with a repeated group, unless
                # it must read on in it.
                pieces[opened] += _MORE
        elif found["set"]:
            piece = _rewrite_set(piece, ascii)
        elif piece == "{":  # {e<=1} is no edit distance
            piece = r"\{"
        elif piece in _READS_ON:
            reads_on = True
            more = _READS_ON[piece] if partial and lookbehind is None else ""
            piece = f"(?:{more}{piece if ascii else _BOUNDARIES.get(piece, piece)})"
        elif not ascii:
            piece = (
                _not_in(_COMPLEMENTS[piece])
                if piece in _COMPLEMENTS
                else _CLASSES.get(piece, piece)
            )
        pieces.append(piece)
    return "".join(pieces)


def _rewrite_set(source: str, ascii: bool) -> str:
    """A set that `regex` takes as `re` does. What is in none of its classes stands beside it."""
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
