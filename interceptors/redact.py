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
is redacted as in any, but what is JSON stays JSON, and what was put in place of a match is not searched again. In other streams a
secret that is split over several events is not found.

Some servers end a text and go on with it. What left at the first end cannot be taken back, so a match that reaches back into it
breaks the answer off. On routes of `dialect: mcp`, JSON bodies are redacted like events, and JSON stays JSON.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial

from .api import EventResult, StreamContext, StreamInterceptor
from .dialects import Block, MessageInterceptor, MessageStream, TextDelta, TextEnd, ToolCall
from .errors import Abort
from .event import Event
from .substitute import LOOKS_AROUND, Flow, ReachesBack, Substitution
from .unescape import unescape

__all__ = ["Redact"]

# A JSON string (one without an end reaches to the end of the text), or a number. Between strings, JSON holds neither quotes nor
# backslashes, so this finds whole tokens. Nothing follows what repeats, so it never goes back.
_TOKEN = re.compile(r'"((?:[^"\\]+|\\.)*)("?)|-?[0-9][0-9.eE+-]*', re.DOTALL)


_MOST_AGAIN = 1 << 26  # characters that are looked at again: some hundredths of a second


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
        self._looks_around = any(LOOKS_AROUND.search(pattern) for pattern in patterns)

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        answer = super().open_stream(context)
        if isinstance(answer, _RedactMessages):
            return _RedactAnswer(self, answer)
        if context.dialect == "mcp":
            return _RedactStream(self.redact_json)
        # Other JSON bodies pass, and are not collected.
        return None if context.is_body else _RedactStream(self.redact)

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _RedactMessages(self)

    def open_flow(self) -> list[Flow]:
        """For one text that comes in pieces: what each pattern leaves goes through the next."""
        return [Flow(substitution, self._window) for substitution in self._substitutions]

    def redact(self, data: str) -> str:
        """The data with every match replaced; the same object when there is none."""
        matches = self._matches(data)
        if not _looks_like_json(data):
            return self.substitute(data) if matches else data
        if not matches:
            return self._redact_hidden(data)
        return _TOKEN.sub(partial(_redact_token, substitute=self.substitute), self._substitute_between(data))

    def redact_json(self, data: str, done: Container[str] = (), written: set[str] | None = None) -> str:
        """As `redact`, and JSON stays JSON: a match that reaches over several of its strings and numbers takes each of them.

        `done`: strings that stay as they are. What is put into strings goes into `written`.
        """
        written = set() if written is None else written
        if not self._matches(data):
            return self._redact_hidden(data, done, written)
        if not _is_json(data):
            return self.redact(data)
        for substitution in self._substitutions:
            data = _TOKEN.sub(partial(_redact_token, substitute=substitution.sub, done=done, written=written), data)
            tokens = list(_TOKEN.finditer(data))
            taken: dict[int, str] = {}  # what becomes of tokens, by where they begin
            for match, at in _reaching(substitution.pattern, data, tokens, done, written):
                redacted = match.expand(substitution.template)
                while at < len(tokens) and tokens[at].start() < match.end():
                    taken[tokens[at].start()] = redacted
                    at += 1
            if taken:
                data = _TOKEN.sub(partial(_replace_token, taken=taken), data)
                written.update(taken.values())
        return data

    def _redact_hidden(self, data: str, done: Container[str] = (), written: set[str] | None = None) -> str:
        """Of data without a match in the whole: what only a string by itself shows."""
        if not self._looks_around and "\\" not in data:
            return data  # without escapes, the text is the strings'
        if not _looks_like_json(data):
            return data
        return _TOKEN.sub(partial(_redact_token, substitute=self.substitute, done=done, written=written), data)

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
            pieces: list[str] = []
            last = 0
            for match, _ in _reaching(substitution.pattern, data, list(_TOKEN.finditer(data))):
                pieces += data[last : match.start()], match.expand(substitution.template)
                last = match.end()
            data = "".join([*pieces, data[last:]])
        return data


def _redact_token(
    match: re.Match[str],
    *,
    substitute: Callable[[str], str],
    done: Container[str] = (),
    written: set[str] | None = None,
) -> str:
    """A string or a number of JSON, redacted by what it says. What is put in its place goes into `written`."""
    token, inner, end = match[0], match[1], match[2]
    text = token if inner is None else unescape(inner)
    if text in done:
        return token
    redacted = substitute(text)
    if redacted == text:
        return token
    if written is not None:
        written.add(redacted)
    string = _written(redacted)
    return string[:-1] if inner is not None and not end else string


def _replace_token(match: re.Match[str], *, taken: dict[int, str]) -> str:
    return _written(taken[match.start()]) if match.start() in taken else match[0]


def _reaching(
    pattern: re.Pattern[str], data: str, tokens: list[re.Match[str]], *done: Container[str]
) -> Iterator[tuple[re.Match[str], int]]:
    """The matches that reach out of one token, each with the number of the first token that ends behind its beginning.

    None begins or ends inside a string that is done: it would find again what was put there in place of a match. (Such a match may
    be as long as all the rest: where there are absurdly many, the last ones count.)
    """
    starts = [token.start() for token in tokens]
    spare = _MOST_AGAIN
    at = 0
    while (match := pattern.search(data, at)) is not None:
        start, at = match.span()
        first = bisect_right(starts, start) - 1
        if first >= 0 and at <= tokens[first].end():
            continue
        if spare > 0:
            last = bisect_right(starts, at - 1) - 1
            if first >= 0 and starts[first] < start and _is_done(tokens[first], start, done):
                spare -= at - start
                at = tokens[first].end()
                continue
            if last > first and _is_done(tokens[last], at, done):
                spare -= at - start
                at = starts[last] + 1
                continue
        yield match, first if first >= 0 and start < tokens[first].end() else first + 1


def _is_done(token: re.Match[str], at: int, done: tuple[Container[str], ...]) -> bool:
    """Whether a place is inside a string that is done."""
    if token[1] is None or at >= token.end():
        return False
    text = unescape(token[1])
    return any(text in strings for strings in done)


def _looks_like_json(data: str) -> bool:
    return data.lstrip()[:1] in ("{", "[", '"')


def _written(text: str) -> str:
    """A text as a JSON string."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _is_json(text: str) -> bool:
    """Whether a lax reader takes a text as JSON: with line ends in strings, numbers of any length, NaN."""
    try:
        json.loads(text, strict=False, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


class _RedactStream(StreamInterceptor):
    __slots__ = ("_redact",)

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact

    def on_event(self, event: Event) -> EventResult:
        return _redact_event(event, self._redact)


class _RedactMessages(MessageStream):
    """The texts and tool calls of one answer."""

    holds_tool_calls = True
    sees_other_texts = True

    def __init__(self, interceptor: Redact) -> None:
        self._interceptor = interceptor
        self._flows: dict[Block, list[Flow]] = {}
        self._here: dict[Block, str] = {}
        self._done: set[str] = set()  # the strings of this event that were redacted as what they are, as they leave
        self._arguments: set[str] = set()  # of all calls so far: what repeats one is not shown to the hook

    def __contains__(self, text: object) -> bool:
        """Whether a string of this event was redacted as what it is, and stays as it is now."""
        return text in self._done or text in self._arguments

    def begin(self) -> None:
        """Another event is about to be read."""
        self._here.clear()
        if not self.has_waiting:
            self._done.clear()

    def on_text_delta(self, delta: TextDelta) -> None:
        if delta.whole:
            text = self._interceptor.substitute(delta.text)
        else:
            text = self._feed(delta.block, delta.text)
            self._here[delta.block] = text
        self._done.add(text)
        if text:
            delta.text = text
        else:
            delta.drop()

    def on_text_end(self, end: TextEnd) -> None:
        if end.whole or end.block not in self._flows:
            return
        text = self._feed(end.block, "", final=True)
        if text:
            end.add(text)
            self._done.update((text, self._here.get(end.block, "") + text))

    def on_tool_call(self, call: ToolCall) -> None:
        if call.name and call.call.name_is_cut and self._interceptor.substitute(call.name) != call.name:
            raise Abort("a match in the name of a tool call, which comes in pieces")
        call.arguments = self._interceptor.redact_json(call.arguments, written=self._done)
        self._arguments.add(call.arguments)

    def _feed(self, block: Block, text: str, *, final: bool = False) -> str:
        flows = self._flows.get(block)
        if flows is None:
            flows = self._flows[block] = self._interceptor.open_flow()
        try:
            for flow in flows:
                text = flow.feed(text, final=final)
        except ReachesBack:
            raise Abort("a match begins in text that left when its block ended the first time") from None
        return text


class _RedactAnswer(StreamInterceptor):
    """One answer of an LLM: its texts and tool calls by what they are, and all else event by event."""

    def __init__(self, interceptor: Redact, messages: _RedactMessages) -> None:
        self._redact = interceptor.redact_json
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
        return _redact_event(event, partial(self._redact, done=self._messages))


def _redact_event(event: Event, redact: Callable[[str], str]) -> Event:
    """An event with its data redacted, and without the lines that are no fields where something in them matches."""
    data, unknown = event.data, event.unknown
    redacted = redact(data)
    if redacted == data and (not unknown or redact(unknown) == unknown):
        return event
    return event.replace(redacted)
