"""`redact`: replace what matches a regular expression in the data of events.

    interceptors:
      - name: redact-keys
        use: interceptors.redact:Redact
        options: {patterns: ["sk-[A-Za-z0-9]{20,}"], replacement: "[redacted]"}

In data that looks like JSON, a pattern is matched against every string (names and values) *decoded*, so that `sk-\\u0061...`
hides nothing, and against every number; before that, against the text as a whole, for what reaches over several values.
Everything that does not match keeps its bytes. Other data is matched as text.

In answers of LLMs, streamed or not, a text is one text, however it is cut into deltas: what could still become a match waits for
what comes next, and leaves at the end of its block at the latest. Tool calls wait until they are whole. All else in such an event
is redacted as in any. In other streams a secret that is split over several events is not found.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from .api import EventResult, StreamContext, StreamInterceptor
from .dialects import Block, MessageInterceptor, MessageStream, TextDelta, TextEnd, ToolCall
from .event import Event
from .message import Response, ResponseHead
from .substitute import Flow, Substitution

__all__ = ["Redact"]

# A JSON string (one without an end reaches to the end of the text), or a number. Between strings, JSON holds neither quotes nor
# backslashes, so this finds whole tokens. Nothing follows what repeats, so it never goes back.
_TOKEN = re.compile(r'"((?:[^"\\]+|\\.)*)("?)|-?[0-9][0-9.eE+-]*', re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
# A pattern with one of these matches, or does not, because of what stands around the match.
_LOOKS_AROUND = re.compile(r"[$^]|\\[bBAZ]|\(\?[=!<]")


_STREAMED = "redact.streamed"


class Redact(MessageInterceptor):
    """Options: `patterns`, Python regular expressions; `replacement`, a template as `re.sub` takes it; `window`, how many
    characters of each text of an LLM may wait.
    """

    def __init__(self, patterns: list[str], replacement: str = "[redacted]", window: int = 1000) -> None:
        if not patterns:
            raise ValueError("patterns is empty, so nothing would be redacted")
        if window < 1:
            raise ValueError("window: expected a number of characters, at least 1")
        self._substitutions = []
        for index, pattern in enumerate(patterns):
            try:
                self._substitutions.append(Substitution(pattern, replacement))
            except ValueError as error:
                raise ValueError(f"patterns[{index}]: {error}") from None
        self._window = window
        self._looks_around = any(_LOOKS_AROUND.search(pattern) for pattern in patterns)

    async def on_response(self, head: ResponseHead) -> Response | None:
        head.request.state[_STREAMED] = head.media_type == "text/event-stream"
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        answer = super().open_stream(context)
        if isinstance(answer, _RedactMessages):
            return _RedactAnswer(self, answer)
        # JSON bodies that are no answers pass, and are not collected.
        return _RedactStream(self) if context.state.get(_STREAMED, True) else None

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _RedactMessages(self)

    def open_flow(self) -> list[Flow]:
        """For one text that comes in pieces: what each pattern leaves goes through the next."""
        return [Flow(substitution, self._window) for substitution in self._substitutions]

    def redact(self, data: str, done: Collection[str] = ()) -> str:
        """The data with every match replaced; the same object when there is none. `done`: strings in JSON that stay as they are."""
        if data.lstrip()[:1] not in ("{", "[", '"'):
            return self.substitute(data) if self._matches(data) else data
        matches = self._matches(data)
        if not matches and not self._looks_around and "\\" not in data:
            return data  # without escapes, the text is the strings'
        if matches:
            data = self._substitute_between(data)
        return _TOKEN.sub(partial(self._redact_token, done=done), data)

    def _matches(self, text: str) -> bool:
        return any(substitution.pattern.search(text) for substitution in self._substitutions)

    def substitute(self, text: str) -> str:
        """A text with every match replaced, pattern by pattern."""
        for substitution in self._substitutions:
            text = substitution.sub(text)
        return text

    def _substitute_between(self, data: str) -> str:
        """Replace the matches that are not inside one token; those are left to `_redact_token`, which knows how to write them."""
        for substitution in self._substitutions:
            spans = [match.span() for match in _TOKEN.finditer(data)]
            starts = [start for start, _ in spans]

            def replace(
                match: re.Match[str], spans: Any = spans, starts: Any = starts, template: str = substitution.template
            ) -> str:
                at = bisect_right(starts, match.start()) - 1
                inside = at >= 0 and match.end() <= spans[at][1]
                return match[0] if inside else match.expand(template)

            data = substitution.pattern.sub(replace, data)
        return data

    def _redact_token(self, match: re.Match[str], *, done: Collection[str]) -> str:
        token, inner, end = match[0], match[1], match[2]
        text = token if inner is None else _unescaped(inner)
        if text in done:
            return token
        redacted = self.substitute(text)
        if redacted == text:
            return token
        written = json.dumps(redacted, ensure_ascii=not redacted.isprintable())
        return written[:-1] if inner is not None and not end else written


def _unescaped(inner: str) -> str:
    """What the inside of a JSON string says; what is no JSON (cut off, an unknown escape), as a lax reader would have it."""
    if "\\" not in inner:
        return inner
    try:
        # The standard library's: it takes lone surrogates, as JavaScript does.
        text: str = json.loads(f'"{inner}"', strict=False)
    except ValueError:
        return _ESCAPE.sub(
            lambda match: chr(int(match[1][1:], 16)) if len(match[1]) > 1 else _ESCAPED.get(match[1], match[1]), inner
        )
    return text


class _RedactStream(StreamInterceptor):
    __slots__ = ("_redact",)

    def __init__(self, interceptor: Redact) -> None:
        self._redact = interceptor.redact

    def on_event(self, event: Event) -> EventResult:
        data = event.data
        redacted = self._redact(data)
        return event if redacted == data else event.replace(redacted)


class _RedactMessages(MessageStream):
    """The texts and tool calls of one answer."""

    holds_tool_calls = True

    def __init__(self, interceptor: Redact) -> None:
        self._interceptor = interceptor
        self._flows: dict[Block, list[Flow]] = {}
        self._here: dict[Block, str] = {}
        self.done: set[str] = set()
        """The strings of this event that were redacted as parts of their texts, as they leave."""

    def begin(self) -> None:
        """Another event is about to be read."""
        self._here.clear()
        self.done.clear()

    def on_text_delta(self, delta: TextDelta) -> None:
        if delta.whole:
            text = self._interceptor.substitute(delta.text)
        else:
            text = self._feed(delta.block, delta.text)
            self._here[delta.block] = text
        self.done.add(text)
        if text:
            delta.text = text
        else:
            delta.drop()

    def on_text_end(self, end: TextEnd) -> None:
        if end.whole or end.block not in self._flows:
            return
        text = self._feed(end.block, "", final=True)
        del self._flows[end.block]
        if text:
            end.add(text)
            self.done.update((text, self._here.get(end.block, "") + text))

    def on_tool_call(self, call: ToolCall) -> None:
        call.arguments = self._interceptor.redact(call.arguments)
        self.done.add(call.arguments)

    def _feed(self, block: Block, text: str, *, final: bool = False) -> str:
        flows = self._flows.get(block)
        if flows is None:
            flows = self._flows[block] = self._interceptor.open_flow()
        for flow in flows:
            text = flow.feed(text, final=final)
        return text


class _RedactAnswer(StreamInterceptor):
    """One answer of an LLM: its texts and tool calls by what they are, and all else event by event."""

    def __init__(self, interceptor: Redact, messages: _RedactMessages) -> None:
        self._redact = interceptor.redact
        self._messages = messages

    def on_event(self, event: Event) -> EventResult:
        self._messages.begin()
        result = self._messages.on_event(event)
        if isinstance(result, Event):
            return self._redact_rest(result)
        return [self._redact_rest(item) for item in result] if isinstance(result, Sequence) else result

    def on_complete(self) -> Sequence[Event]:
        self._messages.begin()
        result = self._messages.on_complete()
        return [self._redact_rest(item) for item in result] if isinstance(result, Sequence) else []

    def _redact_rest(self, event: Event) -> Event:
        data = event.data
        redacted = self._redact(data, self._messages.done)
        return event if redacted == data else event.replace(redacted)
