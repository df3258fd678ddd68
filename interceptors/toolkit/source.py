"""Facts about the source of a pattern, read token by token.

The library `regex` searches, but does not report what a caller must know before a search: a
literal prefix, whether a match depends on the text around it, and what a search can cost. A lexer
finds these. It does not build a parse tree, and every fact is conservative: where the lexer cannot
know, it reports the slower or the more careful answer.

Patterns have the syntax of Python's `re`. Three spellings are rewritten, because `regex` reads
them as extensions or wrongly: `{` that repeats nothing (a fuzzy match), `[` in a set (a POSIX
class), and negated sets in an alternation (`regex` reads `[^a]|[^b]` as `[^ab]`).
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

__all__ = ["Around", "Source", "read_source"]

_PIECES = (
    r"\\N\{[^}]*\}|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|\\0[0-7]{0,2}"
    r"|\\[1-7][0-7]{2}|\\[1-9][0-9]?|\\.|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|\(\?#[^)]*\)|\(\?P=\w+\)"
    r"|(?P<open>\((?:\?(?:P<\w+>|(?P<atomic>>)|:|(?P<around><?[=!])|\(\w+\)|[imsux-]+:))?)"
    r"|(?P<close>\))|(?P<repeat>(?:[*+?]|\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]*)\})[?+]?)"
)
_PIECE = re.compile(rf"{_PIECES}|.", re.DOTALL)
_VERBOSE_PIECE = re.compile(rf"{_PIECES}|\s+|#[^\n]*|.", re.DOTALL)
_GLOBAL_FLAGS = re.compile(r"(?:\(\?[aiLmsux]++\))*")
_SCOPED_FLAGS = re.compile(r"\(\?[ims-]*[aLux][aiLmsux-]*:")
_REFERENCE = re.compile(r"\\[1-9][0-9]?|\(\?P=\w+\)")
_COUNT = re.compile(r"\{(?P<least>[0-9]*+)(?P<comma>,?)(?P<most>[0-9]*+)\}")
_CLASS_IN_SET = re.compile(r"\\.|\[", re.DOTALL)
_ONE = r"(?:\[\^?\]?(?:\\.|[^\]\\])*\]|\\[dDsSwW]|\\[^0-9A-Za-z]|[^\\\[\](){}|^$*+?])"
_LEADING_RUN = re.compile(
    rf"(?:\((?:\?(?:P<\w+>|:))?(?P<grouped>{_ONE})[*+][?+]?\)|(?P<bare>{_ONE})[*+][?+]?)"
    r"(?![*+?{])",
    re.DOTALL,
)

_MORE = r"(?=[\s\S])"  # reads the next character
_MORE_LINE = r"(?=\n[\s\S]|[^\n])"  # reads two where `$` could stand before the last line end
_READS_ON = {"$": _MORE_LINE, r"\Z": _MORE, r"\z": _MORE, r"\b": _MORE, r"\B": _MORE}
_ANCHORS = ("^", "$", r"\A", r"\Z", r"\z")
_BOUNDARIES = (r"\b", r"\B")

_QUICK_STEPS = 1 << 21  # less than 10 ms
_MOST_QUICK = 4 * 1032  # characters; 1032: what `guard` searches by default
_NEVER = float("inf")


class Around(Enum):
    """What a match depends on besides the characters that it covers."""

    NOTHING = auto()
    """A match in a text is a match in every part that contains it, and the reverse."""
    BOUNDARIES = auto()
    """The same, if no word character is next to that part."""
    ANYTHING = auto()


class Source(NamedTuple):
    """A pattern for `regex`, and what is known about it."""

    text: str
    """Without global flags: those are in `flags`."""
    flags: re.RegexFlag
    reading_on: str | None
    """As `text`, but zero-width assertions read the character after them, so that a partial match
    shows where the end of the text decides. None where the lexer cannot write it.
    """
    prefix: str
    """Every match begins with it. May be empty."""
    literal: str
    """Every match contains it. May be empty."""
    run: str
    """One character or set: the pattern begins with an unbounded repetition of it. May be empty."""
    around: Around
    looks_ahead: bool
    """A match can depend on text after it."""
    looks_behind: bool
    """It contains a lookbehind."""
    quick_size: int
    """A search in so many characters takes milliseconds at most; 0 where that is unknown."""
    can_match_empty: bool = False
    """A match can cover no character: what is optional or only looks around counts as none."""


def read_source(pattern: str) -> Source:
    """Read a pattern that `re` compiles. Linear.

    `reading_on` is None for a group with flags (`(?x:...)`), which the lexer cannot
    follow, and for a lookahead in a lookbehind, which partial matches do not support.
    """
    flags = re.compile(pattern).flags & (re.A | re.I | re.M | re.S | re.X)
    verbose = bool(flags & re.VERBOSE)
    found = _GLOBAL_FLAGS.match(pattern)
    body = pattern[found.end() :] if found else pattern
    pieces = list((_VERBOSE_PIECE if verbose else _PIECE).finditer(body))
    text = "".join(_spelling(piece[0], piece["set"], "|" in body) for piece in pieces)
    if verbose:
        text += "\n"  # ends a comment
    if _SCOPED_FLAGS.search(body):
        return Source(text, flags, None, "", "", "", Around.ANYTHING, True, True, 0)
    reading_on = _reading_on(pieces, "|" in body, verbose)
    pieces = [piece for piece in pieces if not _is_comment(piece[0], verbose)]
    groups = {piece["around"] for piece in pieces}
    return Source(
        text,
        flags,
        reading_on,
        prefix="" if flags & (re.IGNORECASE | re.VERBOSE) else _prefix_of(pieces),
        literal="" if flags & (re.IGNORECASE | re.VERBOSE) else _literal_of(pieces),
        run="" if verbose else _run_of(body, pieces),
        around=_around_of(pieces),
        looks_ahead=bool(groups & {"=", "!"}) or any(piece[0] in _READS_ON for piece in pieces),
        looks_behind=bool(groups & {"<=", "<!"}),
        quick_size=_quick_size(pieces),
        can_match_empty=_least_width(pieces) == 0,
    )


def _is_comment(piece: str, verbose: bool) -> bool:
    return piece.startswith("(?#") or (verbose and (piece[0] == "#" or piece.isspace()))


def _spelling(piece: str, is_set: str | None, has_branches: bool) -> str:
    """One token as `regex` must see it."""
    if piece == "{":
        return r"\{"
    if is_set is None:
        return piece
    start = 2 if piece.startswith("[^") else 1
    inner = _CLASS_IN_SET.sub(lambda found: r"\[" if found[0] == "[" else found[0], piece[start:])
    piece = piece[:start] + inner
    return f"(?>{piece})" if has_branches and start == 2 else piece


def _reading_on(pieces: list[re.Match[str]], has_branches: bool, verbose: bool) -> str | None:
    written: list[str] = []
    groups: list[int] = []  # where the open groups begin in `written`
    lookbehind_at: int | None = None  # where the outermost open lookbehind begins
    reads_on = False  # an assertion in that lookbehind depends on the next character
    opened = -1  # where the group that was closed last begins in `written`
    for found in pieces:
        piece = found[0]
        text = _spelling(piece, found["set"], has_branches)
        if found["open"]:
            if lookbehind_at is not None and found["around"] in ("=", "!"):
                return None
            if lookbehind_at is None and found["around"] in ("<=", "<!"):
                lookbehind_at, reads_on = len(written), False
            groups.append(len(written))
        elif found["close"]:
            opened = groups.pop()
            if opened == lookbehind_at:
                if reads_on:
                    written[opened] = _MORE_LINE + written[opened]
                lookbehind_at = None
        elif found["repeat"]:
            if opened >= 0 and lookbehind_at is None:
                # At the end of the text, `regex` leaves a repeated group without a partial match.
                written[opened] += _MORE
        elif piece in _READS_ON:
            reads_on = True
            if lookbehind_at is None:
                text = _READS_ON[piece] + text
        if not found["close"] and not _is_comment(piece, verbose):
            opened = -1
        written.append(text)
    return "".join(written) + ("\n" if verbose else "")


def _prefix_of(pieces: list[re.Match[str]]) -> str:
    """The literal characters that a pattern without alternatives at its top begins with."""
    depth, prefix, ended = 0, "", False
    for found in pieces:
        piece = found[0]
        depth += bool(found["open"]) - bool(found["close"])
        if piece == "|" and depth == 0:
            return ""
        if ended:
            continue
        if found["repeat"]:
            prefix, ended = prefix[:-1], True
        elif len(piece) == 1 and piece not in ".^$()|":
            prefix += piece
        elif len(piece) == 2 and piece[0] == "\\" and not piece[1].isalnum():
            prefix += piece[1]
        elif piece not in _BOUNDARIES or prefix:
            ended = True
    return prefix


def _literal_of(pieces: list[re.Match[str]]) -> str:
    """The longest text of literal characters that every match contains."""
    depth, run, literals = 0, "", [""]
    for found in pieces:
        piece = found[0]
        depth += bool(found["open"]) - bool(found["close"])
        if piece == "|" and depth == 0:
            return ""
        if depth == 0 and len(piece) == 1 and piece not in ".^$()|" and not found["repeat"]:
            run += piece
            continue
        literals.append(run[:-1] if found["repeat"] else run)
        run = ""
    return max(*literals, run, key=len)


def _run_of(body: str, pieces: list[re.Match[str]]) -> str:
    """The character or set that an unbounded repetition at the beginning repeats.

    A match that begins inside such a run can also begin where the run begins, so that only those
    places must be tried. Alternatives and references to groups break that.
    """
    for found in pieces:
        if found[0] == "|" or found[0].startswith("(?(") or _is_reference(found[0]):
            return ""
    run = _LEADING_RUN.match(body)
    return (run["grouped"] or run["bare"]) if run else ""


def _least_width(pieces: list[re.Match[str]]) -> float:
    """The fewest characters that a match covers, with none for a reference to a group."""
    branches, widths, last = [_NEVER], [0.0], 0.0  # of each open group; of the last piece or group
    opened: list[re.Match[str]] = []
    for found in pieces:
        piece = found[0]
        if found["open"]:
            opened.append(found)
            branches.append(_NEVER)
            widths.append(0.0)
            continue
        if found["close"]:
            group, other = opened.pop(), branches.pop()
            last = min(widths.pop(), other)
            if group["around"] or (group[0].startswith("(?(") and other == _NEVER):
                last = 0.0  # a condition without a second branch may match nothing
        elif found["repeat"]:
            least, _ = _counts(found["repeat"], 0)
            widths[-1] += last * (least - 1)
            last *= least
            continue
        elif piece == "|":
            branches[-1] = min(branches[-1], widths[-1])
            widths[-1] = last = 0.0
            continue
        else:
            is_place = piece in _ANCHORS or piece in _BOUNDARIES or _is_reference(piece)
            last = 0.0 if is_place else 1.0
        widths[-1] += last
    return min(branches[-1], widths[-1])


def _is_reference(token: str) -> bool:
    return _REFERENCE.fullmatch(token) is not None


def _around_of(pieces: list[re.Match[str]]) -> Around:
    around = Around.NOTHING
    for found in pieces:
        piece = found[0]
        possessive = bool(found["repeat"]) and len(piece) > 1 and piece.endswith("+")
        if piece in _ANCHORS or found["around"] or found["atomic"] or possessive:
            return Around.ANYTHING
        if piece in _BOUNDARIES:
            around = Around.BOUNDARIES
    return around


def _quick_size(pieces: list[re.Match[str]]) -> int:
    size = _MOST_QUICK
    while size and size * _steps_of(pieces, size) > _QUICK_STEPS:
        size //= 2
    return size


def _steps_of(pieces: list[re.Match[str]], size: int) -> float:
    """An upper bound for the steps of one attempt to match in `size` characters.

    `ways` counts the ways in which what came before can match: each of them tries what follows.
    """
    steps, ways = 0.0, 1.0
    opened: list[tuple[float, float, bool]] = []  # steps, ways, and whether its ways are dropped
    before = (0.0, 1.0)  # steps and ways before the last piece or group
    last = len(pieces) - 1
    for position, found in enumerate(pieces):
        if found["repeat"]:
            least, most = _counts(found["repeat"], size)
            each_steps, each_ways = (steps - before[0]) / before[1], ways / before[1]
            if each_ways > 1 and most * (each_ways - 1) > 40:
                return _NEVER
            inner_ways = each_ways**most
            steps = before[0] + before[1] * each_steps * most * inner_ways
            free = position == last and not opened  # nothing follows that could fail
            kept = found["repeat"].endswith("+") and len(found["repeat"]) > 1
            ways = before[1] * (1 if free or kept else inner_ways * (most - least + 1))
        elif found["open"]:
            opened.append((steps, ways, bool(found["around"] or found["atomic"])))
        elif found["close"]:
            before_steps, before_ways, drops = opened.pop()
            before = before_steps, before_ways
            ways = before_ways if drops else ways
        else:
            before = steps, ways
            steps += ways * (size if _is_reference(found[0]) else 1)
            ways *= 2 if found[0] == "|" else 1
        if steps > _QUICK_STEPS or ways > _QUICK_STEPS:
            return _NEVER
    return steps + 1


def _counts(repeat: str, size: int) -> tuple[int, int]:
    """How often a quantifier repeats at least and at most, in `size` characters."""
    found = _COUNT.match(repeat)
    if found is None:
        return {"*": (0, size), "+": (1, size), "?": (0, 1)}[repeat[0]]
    least = int(found["least"] or 0)
    most = int(found["most"]) if found["most"] else (size if found["comma"] else least)
    return least, max(least, min(most, size))
