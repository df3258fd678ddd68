"""`redact`: replace what matches a regular expression in the data of events.

    interceptors:
      - name: redact-keys
        use: interceptors.redact:Redact
        options: {patterns: ["sk-[A-Za-z0-9]{20,}"], replacement: "[redacted]"}

In data that looks like JSON, a pattern is matched against every string (names and values) *decoded*, so that `sk-\\u0061...`
hides nothing, and against every number; before that, against the text as a whole, for what reaches over several values.
Everything that does not match keeps its bytes. Other data is matched as text. A secret split over several events is not found
here.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pools import decode_json

from .api import EventResult, Interceptor, StreamContext, StreamInterceptor
from .event import Event

__all__ = ["Redact"]

# A JSON string (one without an end reaches to the end of the text), or a number. Between strings, JSON holds neither quotes nor
# backslashes, so this finds whole tokens. Nothing follows what repeats, so it never goes back.
_TOKEN = re.compile(r'"(?:[^"\\]+|\\.)*"?|-?[0-9][0-9.eE+-]*', re.DOTALL)
# A pattern with one of these matches, or does not, because of what stands around the match.
_LOOKS_AROUND = re.compile(r"[$^]|\\[bBAZ]|\(\?[=!<]")


class Redact(Interceptor):
    """Options: `patterns`, Python regular expressions; `replacement`, a template as `re.sub` takes it."""

    def __init__(self, patterns: list[str], replacement: str = "[redacted]") -> None:
        if not patterns:
            raise ValueError("patterns is empty, so nothing would be redacted")
        self._patterns = []
        for index, pattern in enumerate(patterns):
            try:
                compiled = re.compile(pattern)
                compiled.sub(replacement, "")  # refuses a template that names a group that is not there
            except (re.error, IndexError) as error:
                raise ValueError(f"patterns[{index}]: {error}") from None
            self._patterns.append(compiled)
        self._replacement = replacement
        self._looks_around = any(_LOOKS_AROUND.search(pattern) for pattern in patterns)

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _RedactStream(self)

    def redact(self, data: str) -> str:
        """The data with every match replaced; the same object when there is none."""
        if data.lstrip()[:1] not in ("{", "[", '"'):
            return self._substitute(data) if self._matches(data) else data
        matches = self._matches(data)
        if not matches and not self._looks_around and not self._hides(data):
            return data
        if matches:
            data = self._substitute_between(data)
        return _TOKEN.sub(self._redact_token, data)

    def _matches(self, text: str) -> bool:
        return any(pattern.search(text) for pattern in self._patterns)

    def _hides(self, data: str) -> bool:
        """Whether a match may stand behind escapes, although the text has none. Without escapes, the text is the strings'."""
        if "\\" not in data:
            return False
        try:
            decoded = decode_json(data)
        except (ValueError, RecursionError):
            return True  # perhaps only stricter than the client's decoder; token by token tells
        return any(self._matches(text) for text in _strings(decoded))

    def _substitute(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(self._replacement, text)
        return text

    def _substitute_between(self, data: str) -> str:
        """Replace the matches that are not inside one token; those are left to `_redact_token`, which knows how to write them."""
        for pattern in self._patterns:
            spans = [match.span() for match in _TOKEN.finditer(data)]
            starts = [start for start, _ in spans]

            def replace(match: re.Match[str], spans: Any = spans, starts: Any = starts) -> str:
                at = bisect_right(starts, match.start()) - 1
                inside = at >= 0 and match.end() <= spans[at][1]
                return match[0] if inside else match.expand(self._replacement)

            data = pattern.sub(replace, data)
        return data

    def _redact_token(self, match: re.Match[str]) -> str:
        token = match[0]
        text = token
        if token[0] == '"':
            text = token[1:].removesuffix('"')
            if "\\" in token:
                with suppress(ValueError):  # not JSON after all, or cut off: as it stands
                    text = json.loads(token)  # the standard library's: it takes lone surrogates, as JavaScript does
        redacted = self._substitute(text)
        if redacted == text:
            return token
        written = json.dumps(redacted, ensure_ascii=not redacted.isprintable())
        unended = token[0] == '"' and (len(token) == 1 or token[-1] != '"')
        return written[:-1] if unended else written


def _strings(value: Any) -> Iterator[str]:
    """Every string of a decoded JSON value, names included."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from item
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)


class _RedactStream(StreamInterceptor):
    __slots__ = ("_redact",)

    def __init__(self, interceptor: Redact) -> None:
        self._redact = interceptor.redact

    def on_event(self, event: Event) -> EventResult:
        data = event.data
        redacted = self._redact(data)
        return event if redacted == data else event.replace(redacted)
