"""Substitutions in JSON text, without a change to any byte that does not match.

Strings (names and values) are matched decoded, so that an escape hides nothing; numbers are matched
as written. The text may be JSON only to a lax reader: cut off, with unknown escapes or line ends in
strings. Must not know events or dialects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence

from pools import decode_json

from ..unescape import unescape
from .search import Around, Found
from .substitution import Substitution

__all__ = ["JsonRedactor"]

# A string (one without an end reaches to the end of the text), or a number. Between strings, JSON
# contains neither quotes nor backslashes, so that this finds whole tokens.
_TOKEN = re.compile(r'"((?:[^"\\]++|\\.)*)("?)|-?[0-9][0-9.eE+-]*', re.DOTALL)
_NUMBER = "0123456789+-.eE"
_MOST_REPEATED = 1 << 26  # characters that may be searched again: some hundredths of a second

Token = re.Match[str]


class JsonRedactor:
    """Some substitutions, applied in their order. Every method raises `PatternTooSlow`."""

    __slots__ = ("_around", "_only_escapes_hide", "_searches", "_substitutions")

    def __init__(self, substitutions: Sequence[Substitution]) -> None:
        self._substitutions = list(substitutions)
        self._searches = [(each.prefix, each.pattern.search) for each in substitutions]
        self._around = _around_of(self._substitutions)
        # Without a match in the whole text, a string without escapes has no match either.
        self._only_escapes_hide = self._around is Around.NOTHING

    def substitute(self, text: str) -> str:
        """Plain text with every match replaced."""
        for substitution in self._substitutions:
            text = substitution.sub(text)
        return text

    def redact(self, data: str) -> str:
        """Data with every match replaced; the same object if there is none.

        A match over several strings replaces what it covers: the result may not be JSON.
        """
        if not _looks_like_json(data):
            return self.substitute(data)
        if not self._matches(data):
            return self._redact_hidden(data)
        for substitution in self._substitutions:
            found = (
                (match.start(), match.end(), substitution.expand(match))
                for match, _ in _matches_over_tokens(substitution, data)
            )
            data = _join(data, found)
        return self._redact_tokens(data, self._substitutions)

    def redact_json(
        self, data: str, done: Container[str] = (), written: set[str] | None = None
    ) -> str:
        """As `redact`, but JSON stays JSON: a match over several strings and numbers replaces each
        of them.

        `done`: strings to leave as they are. Adds the strings that it writes to `written`.
        """
        written = set() if written is None else written
        if not self._matches(data):
            return self._redact_hidden(data, done, written)
        if not _is_json(data):
            return self.redact(data)
        for substitution in self._substitutions:
            data = self._redact_tokens(data, [substitution], done, written)
            data = _replace_whole_tokens(substitution, data, done, written)
        return data

    def _matches(self, text: str) -> bool:
        for prefix, search in self._searches:  # any() costs more than the check
            if (not prefix or prefix in text) and search(text) is not None:
                return True
        return False

    def _redact_hidden(
        self, data: str, done: Container[str] = (), written: set[str] | None = None
    ) -> str:
        """Data without a match in the whole: a string by itself may still match."""
        if "\\" not in data:
            if self._only_escapes_hide:
                return data
            if self._around is Around.BOUNDARIES and _is_json(data):
                return data
        if not _looks_like_json(data):
            return data
        return self._redact_tokens(data, self._substitutions, done, written)

    def _redact_tokens(
        self,
        data: str,
        substitutions: list[Substitution],
        done: Container[str] = (),
        written: set[str] | None = None,
    ) -> str:
        """Replace the matches inside single strings and numbers."""

        def redacted() -> Iterator[tuple[int, int, str]]:
            for token in _tokens_to_search(data, substitutions):
                text = _redact_token(token, substitutions, done, written)
                if text is not None:
                    yield *token.span(), text

        return _join(data, redacted())


def _around_of(substitutions: list[Substitution]) -> Around:
    return max(
        (each.pattern.source.around for each in substitutions), key=lambda around: around.value
    )


def _tokens_to_search(data: str, substitutions: list[Substitution]) -> Iterator[Token]:
    """The strings and numbers in which something may match: usually very few of them."""
    patterns = [substitution.pattern for substitution in substitutions]
    around = _around_of(substitutions)
    if around is Around.ANYTHING or (around is Around.BOUNDARIES and not _is_json(data)):
        for every in _TOKEN.finditer(data):
            patterns[0].left_s()
            yield every
        return
    # A match in a string without escapes is a match in the data, too.
    tokens = _Tokens(data)
    places = [-1] * (len(patterns) + 1)  # the next match of each pattern, and the next backslash
    at, end = 0, len(data)
    while at < end:
        for index, place in enumerate(places):
            if place >= at:
                continue
            if index < len(patterns):
                found = patterns[index].search(data, at)
                place = -1 if found is None else found.start()
            else:
                place = data.find("\\", at)
            places[index] = end if place < 0 else place
        tokens.edge = at
        token = tokens.at(min(places))
        if token is None:
            return
        patterns[0].left_s()
        if token.start() <= min(places):
            yield token
            at = token.end()
        else:
            at = token.start()


class _Tokens:
    """The strings and numbers of JSON, found on demand from front to back."""

    __slots__ = ("_data", "edge")

    def __init__(self, data: str, edge: int = 0) -> None:
        self._data = data
        self.edge = edge
        """A place before the next token, where no string is open."""

    def at(self, place: int) -> Token | None:
        """The token that covers `place`, or the first one after it. Places must not decrease."""
        data, edge = self._data, self.edge
        token: Token | None
        if data.find("\\", edge, place) < 0:
            # Without escapes, each quote begins or ends a string.
            inside = data.count('"', edge, place) % 2
            start = data.rfind('"', edge, place) if inside else _number_start(data, edge, place)
            token = _TOKEN.search(data, start)
            if token is not None and token.end() <= place:
                token = _TOKEN.search(data, place)
        else:
            token = next(
                (token for token in _TOKEN.finditer(data, edge) if token.end() > place), None
            )
        if token is not None:
            self.edge = token.start()
        return token


def _number_start(data: str, edge: int, place: int) -> int:
    """Where a number that covers `place` would begin, not before `edge`."""
    size = 32
    while True:
        first = max(edge, place - size)
        before = data[first:place]
        rest = before.rstrip(_NUMBER)
        if rest or first == edge:
            return first + len(rest)
        size *= 8


def _redact_token(
    token: Token,
    substitutions: list[Substitution],
    done: Container[str],
    written: set[str] | None,
) -> str | None:
    """A string or number with every match replaced; None if there is none."""
    inner, end = token[1], token[2]
    text = redacted = token[0] if inner is None else unescape(inner)
    if text in done:
        return None
    for substitution in substitutions:
        redacted = substitution.sub(redacted)
    if redacted == text:
        return None
    if written is not None:
        written.add(redacted)
    string = _json_string(redacted)
    return string[:-1] if inner is not None and not end else string


def _replace_whole_tokens(
    substitution: Substitution, data: str, done: Container[str], written: set[str]
) -> str:
    """Replace every string and number that a match over several of them touches."""
    written_here: set[str] = set()
    replaced: dict[int, tuple[int, str]] = {}  # by where the token begins: its end, the new text
    for match, first in _matches_over_tokens(substitution, data, done, written):
        redacted = substitution.expand(match)
        string, token = _json_string(redacted), first
        while token is not None and token.start() < match.end():
            substitution.pattern.left_s()
            replaced[token.start()] = token.end(), string
            token = _TOKEN.search(data, token.end())
        if token is not first:
            written_here.add(redacted)
    written |= written_here
    return _join(data, ((start, end, text) for start, (end, text) in replaced.items()))


def _matches_over_tokens(
    substitution: Substitution, data: str, *done: Container[str]
) -> Iterator[tuple[Found, Token | None]]:
    """The matches that are not inside one token, each with the first token that ends after its
    beginning.

    A match that begins or ends inside a string in `done` is not reported: it would find the text
    that replaced another match. Such a match can cover all the rest, so that the data is searched
    again after it: up to `_MOST_REPEATED` characters.
    """
    search = substitution.pattern.search
    tokens = _Tokens(data)
    spare = _MOST_REPEATED
    at = 0
    while (match := search(data, at)) is not None:
        substitution.pattern.left_s()
        start, at = match.span()
        first = tokens.at(start)
        if first is not None and first.start() <= start and at <= first.end():
            continue
        if spare > 0 and first is not None and done:
            after = _after_done(data, first, start, at, done)
            if after is not None:
                spare -= at - start
                at = after
                continue
        yield match, first


def _after_done(
    data: str, first: Token, start: int, end: int, done: tuple[Container[str], ...]
) -> int | None:
    """Where to search next if a match begins or ends inside a string in `done`; else None."""
    if first.start() < start and _is_done(first, start, done):
        return first.end()
    last = _Tokens(data, first.start()).at(end - 1)
    if last is not None and first.start() < last.start() < end and _is_done(last, end, done):
        return last.start() + 1
    return None


def _is_done(token: Token, at: int, done: tuple[Container[str], ...]) -> bool:
    """Whether a place is inside a string in `done`."""
    if token[1] is None or at >= token.end():
        return False
    text = unescape(token[1])
    return any(text in strings for strings in done)


def _join(data: str, replacements: Iterator[tuple[int, int, str]]) -> str:
    """A text with parts of it replaced, in order; the same object if there are none."""
    pieces: list[str] = []
    last = 0
    for start, end, text in replacements:
        pieces += data[last:start], text
        last = end
    return "".join([*pieces, data[last:]]) if pieces else data


def _looks_like_json(data: str) -> bool:
    return data.lstrip()[:1] in ("{", "[", '"')


def _json_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _is_json(text: str) -> bool:
    """Whether a lax reader takes the text as JSON: line ends in strings, numbers of any length,
    NaN.
    """
    try:
        decode_json(text)
    except (ValueError, RecursionError):
        pass
    else:
        return True
    try:
        json.loads(text, strict=False, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True
