"""`redact`: replace what matches a regular expression in the data of events.

    interceptors:
      - name: redact-keys
        use: interceptors.redact:Redact
        options: {patterns: ["sk-[A-Za-z0-9]{20,}"], replacement: "[redacted]"}

In data that is JSON, a pattern is matched against every string (names and values) *decoded*, so that `sk-\\u0061…` hides
nothing, and against every number; then against the text as a whole, for what reaches over several values. Everything
that does not match keeps its bytes. Other data is matched as text. A secret split over several events is not found here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pools import decode_json, encode_json

from .api import EventResult, Interceptor, StreamContext, StreamInterceptor
from .event import Event

__all__ = ["Redact"]

# A JSON string, or a number. Between strings, JSON holds neither quotes nor backslashes, so this finds whole tokens.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)


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
            except re.error as error:
                raise ValueError(f"patterns[{index}]: {error}") from None
            self._patterns.append(compiled)
        self._replacement = replacement

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _RedactStream(self)

    def redact(self, data: str) -> str:
        """The data with every match replaced; the same object when there is none."""
        if not self._matches(data):
            if "\\" not in data:
                return data  # without escapes, a match inside a string is a match in the text
            try:
                decoded = decode_json(data)
            except ValueError:
                return data
            if not any(self._matches(text) for text in _strings(decoded)):
                return data
        if data.lstrip()[:1] in ("{", "[", '"'):
            data = _TOKEN.sub(self._redact_token, data)
        return self._substitute(data)

    def _matches(self, text: str) -> bool:
        return any(pattern.search(text) for pattern in self._patterns)

    def _substitute(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(self._replacement, text)
        return text

    def _redact_token(self, match: re.Match[str]) -> str:
        token = match[0]
        text = token
        if token[0] == '"':
            try:
                text = decode_json(token)
            except ValueError:
                return token  # not JSON after all; the pass over the whole text still sees it
        redacted = self._substitute(text)
        return token if redacted == text else encode_json(redacted).decode()


def _strings(value: Any) -> Iterator[str]:
    """Every string of a decoded JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


class _RedactStream(StreamInterceptor):
    __slots__ = ("_redact",)

    def __init__(self, interceptor: Redact) -> None:
        self._redact = interceptor.redact

    def on_event(self, event: Event) -> EventResult:
        data = event.data
        redacted = self._redact(data)
        return event if redacted == data else event.replace(redacted)
