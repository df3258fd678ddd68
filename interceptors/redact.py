"""`redact`: replace what matches a regular expression in the data of events.

    interceptors:
      - name: redact-keys
        use: interceptors.redact:Redact
        options: {patterns: ["sk-[A-Za-z0-9]{20,}"], replacement: "[redacted]"}

In data that looks like JSON, a pattern is matched against every string (names and values)
*decoded*, so that `sk-\\u0061...` hides nothing, and against every number; before that, against the
text as a whole, for what reaches over several values. Everything that does not match keeps its
bytes. Other data is matched as text.

In answers of LLMs, streamed or not, a text is one text, however it is cut into deltas: what could
still become a match waits for what comes next, and leaves at the end of its block at the latest.
Tool calls wait until they are whole. All else in such an event is redacted as in any, but what is
JSON stays JSON, and what was put in place of a match is not searched again. In other streams a
secret that is split over several events is not found.

Some servers end a text and go on with it. What left at the first end cannot be taken back, so a
match that reaches back into it breaks the answer off. On routes of `dialect: mcp`, JSON bodies are
redacted like events, and JSON stays JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from pools import decode_json

from .api import EventResult, StreamContext, StreamInterceptor
from .blocks import PerBlock
from .bounded import Around, Budget, Found
from .dialects import Block, MessageInterceptor, MessageStream, TextDelta, TextEnd, ToolCall
from .errors import Abort, NotJson, refuse_options
from .event import Event
from .logprobs import drop_other_tokens, may_have_tokens
from .refusals import error_format
from .substitute import Flow, ReachesBack, Substitution
from .unescape import unescape

__all__ = ["Redact"]

# A JSON string (one without an end reaches to the end of the text), or a number. Between strings,
# JSON holds neither quotes nor backslashes, so this finds whole tokens. Nothing follows what
# repeats, so it never goes back.
_TOKEN = re.compile(r'"((?:[^"\\]++|\\.)*)("?)|-?[0-9][0-9.eE+-]*', re.DOTALL)
_NUMBER = "0123456789+-.eE"
_MOST_AGAIN = 1 << 26  # characters that are looked at again: some hundredths of a second


class Redact(MessageInterceptor):
    """Options: `patterns`, Python regular expressions; `replacement`, a template as `re.sub` takes
    it; `window`, how many characters of each text of an LLM may wait.
    """

    def __init__(
        self, patterns: list[str], replacement: str = "[redacted]", window: int = 1000
    ) -> None:
        mistakes = []
        if not patterns:
            mistakes.append("patterns: there are none, so nothing would be redacted")
        if window < 1:
            mistakes.append("window: expected a number of characters, at least 1")
        self.budget = Budget()
        self._substitutions: list[Substitution] = []
        for index, pattern in enumerate(patterns):
            name = f"patterns[{index}]"
            try:
                self._substitutions.append(Substitution(pattern, replacement, name, self.budget))
            except ValueError as error:
                mistakes.append(f"{name}: {error}")
        refuse_options(mistakes)
        self._window = window
        # Then what is in a string that has no escapes is in the data as it stands.
        self._only_escapes_hide = all(
            each.pattern.looks_around is Around.NOTHING for each in self._substitutions
        )

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        answer = super().open_stream(context)
        if isinstance(answer, _RedactMessages):
            return _RedactAnswer(self, answer)
        if error_format(context.dialect).is_json_rpc:
            return _RedactStream(self.redact_json, self.budget)
        # Other JSON bodies pass, and are not collected.
        return None if context.is_body else _RedactStream(self.redact, self.budget)

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _RedactMessages(self)

    def open_flow(self) -> list[Flow]:
        """For one text that comes in pieces: what each pattern leaves goes through the next."""
        return [Flow(substitution, self._window) for substitution in self._substitutions]

    def redact(self, data: str) -> str:
        """The data with every match replaced; the same object when there is none."""
        if not _looks_like_json(data):
            return self.substitute(data)
        if not self._matches(data):
            return self._redact_hidden(data)
        return self._redact_tokens(self._substitute_between(data), self._substitutions)

    def redact_json(
        self, data: str, done: Container[str] = (), written: set[str] | None = None
    ) -> str:
        """As `redact`, and JSON stays JSON: a match that reaches over several of its strings and
        numbers takes each of them.

        `done`: strings that stay as they are. What is put into strings goes into `written`.
        """
        written = set() if written is None else written
        if not self._matches(data):
            return self._redact_hidden(data, done, written)
        if not _is_json(data):
            return self.redact(data)
        for substitution in self._substitutions:
            data = self._redact_tokens(data, [substitution], done, written)
            written_here: set[str] = set()
            taken: dict[int, tuple[int, str]] = {}  # what becomes of tokens, by where they begin
            for match, first in _reaching(substitution, data, done, written):
                redacted = substitution.expand(match)
                string, token = _written(redacted), first
                while token is not None and token.start() < match.end():
                    substitution.pattern.left_s()
                    taken[token.start()] = token.end(), string
                    token = _TOKEN.search(data, token.end())
                if token is not first:
                    written_here.add(redacted)
            written |= written_here
            data = _join(data, ((start, end, text) for start, (end, text) in taken.items()))
        return data

    def _redact_hidden(
        self, data: str, done: Container[str] = (), written: set[str] | None = None
    ) -> str:
        """Of data without a match in the whole: what only a string by itself shows."""
        if self._only_escapes_hide and "\\" not in data:
            return data
        if not _looks_like_json(data):
            return data
        return self._redact_tokens(data, self._substitutions, done, written)

    def _matches(self, text: str) -> bool:
        for substitution in self._substitutions:  # noqa: SIM110  # a generator costs more than the search
            if substitution.pattern.first_place(text) >= 0:
                return True
        return False

    def substitute(self, text: str) -> str:
        """A text with every match replaced, pattern by pattern."""
        for substitution in self._substitutions:
            text = substitution.sub(text)
        return text

    def _substitute_between(self, data: str) -> str:
        """Replace the matches that are not inside one token; those are left to `_redact_token`,
        which knows how to write them.
        """
        for substitution in self._substitutions:
            found = (
                (match.start(), match.end(), substitution.expand(match))
                for match, _ in _reaching(substitution, data)
            )
            data = _join(data, found)
        return data

    def _redact_tokens(
        self,
        data: str,
        substitutions: list[Substitution],
        done: Container[str] = (),
        written: set[str] | None = None,
    ) -> str:
        """JSON with its strings and numbers redacted, each by what it says."""

        def redacted() -> Iterator[tuple[int, int, str]]:
            for token in self._tokens_to_see(data, substitutions):
                if (text := _redact_token(token, substitutions, done, written)) is not None:
                    yield *token.span(), text

        return _join(data, redacted())

    def _tokens_to_see(
        self, data: str, substitutions: list[Substitution]
    ) -> Iterator[re.Match[str]]:
        """The strings and numbers in which something may match. A large event has hundreds of
        thousands; in most, nothing does.
        """
        patterns = [substitution.pattern for substitution in substitutions]
        around = max(
            (pattern.looks_around for pattern in patterns), key=lambda around: around.value
        )
        if around is Around.ANYTHING or (around is Around.BOUNDARIES and not _is_json(data)):
            for every in _TOKEN.finditer(data):
                patterns[0].left_s()
                yield every
            return
        # What matches in a string that has no escapes matches in the data, too. Otherwise only
        # escapes make a difference.
        tokens = _Tokens(data)
        places = [-1] * (
            len(patterns) + 1
        )  # where each pattern matches next, and where the next backslash is
        at, end = 0, len(data)
        while at < end:
            for index, place in enumerate(places):
                if place >= at:
                    continue
                place = (
                    patterns[index].first_place(data, at)
                    if index < len(patterns)
                    else data.find("\\", at)
                )
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
    """The strings and numbers of JSON, each found when it is asked for, from the front to the back."""

    __slots__ = ("_data", "edge")

    def __init__(self, data: str, edge: int = 0) -> None:
        self._data = data
        self.edge = edge
        """A place before the next one, where no string is open."""

    def at(self, place: int) -> re.Match[str] | None:
        """The token that has the character at `place`, or the first one after it. Never asked for a
        place before the last one.
        """
        data, edge = self._data, self.edge
        token: re.Match[str] | None
        if data.find("\\", edge, place) < 0:
            # Without escapes, each quote begins or ends a string.
            inside = data.count('"', edge, place) % 2
            start = data.rfind('"', edge, place) if inside else _begin_of_number(data, edge, place)
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


def _begin_of_number(data: str, edge: int, place: int) -> int:
    """Where what may be the number around `place` begins, not before `edge`."""
    size = 32
    while True:
        first = max(edge, place - size)
        before = data[first:place]
        rest = before.rstrip(_NUMBER)
        if rest or first == edge:
            return first + len(rest)
        size *= 8


def _join(data: str, replacements: Iterator[tuple[int, int, str]]) -> str:
    """A text with parts of it replaced, in their order; the same object when there are none."""
    pieces: list[str] = []
    last = 0
    for start, end, text in replacements:
        pieces += data[last:start], text
        last = end
    return "".join([*pieces, data[last:]]) if pieces else data


def _redact_token(
    token: re.Match[str],
    substitutions: list[Substitution],
    done: Container[str],
    written: set[str] | None,
) -> str | None:
    """A string or a number of JSON, redacted by what it says; None where nothing matches. What is
    put in its place goes into `written`.
    """
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
    string = _written(redacted)
    return string[:-1] if inner is not None and not end else string


def _reaching(
    substitution: Substitution, data: str, *done: Container[str]
) -> Iterator[tuple[Found, re.Match[str] | None]]:
    """The matches that reach out of one token, each with the first token that ends after its
    beginning.

    None begins or ends inside a string that is done: it would find again what was put there in
    place of a match. (Such a match may be as long as all the rest: where there are absurdly many,
    the last ones count.)
    """
    search = substitution.pattern.search
    tokens = _Tokens(data)
    spare = _MOST_AGAIN
    at = 0
    while (match := search(data, at)) is not None:
        substitution.pattern.left_s()
        start, at = match.span()
        first = tokens.at(start)
        if first is not None and first.start() <= start and at <= first.end():
            continue
        if spare > 0 and first is not None and done:
            if first.start() < start and _is_done(first, start, done):
                spare -= at - start
                at = first.end()
                continue
            last = _Tokens(data, first.start()).at(at - 1)
            if last is not None and first.start() < last.start() < at and _is_done(last, at, done):
                spare -= at - start
                at = last.start() + 1
                continue
        yield match, first


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
    """Whether a lax reader takes a text as JSON: with line ends in strings, numbers of any length,
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


class _RedactStream(StreamInterceptor):
    __slots__ = ("_budget", "_redact")

    def __init__(self, redact: Callable[[str], str], budget: Budget) -> None:
        self._redact = redact
        self._budget = budget

    def on_event(self, event: Event) -> EventResult:
        self._budget.begin()
        return _redact_event(event, self._redact)


class _RedactMessages(MessageStream):
    """The texts and tool calls of one answer."""

    holds_tool_calls = True
    sees_other_texts = True

    def __init__(self, interceptor: Redact) -> None:
        self._interceptor = interceptor
        self._flows: PerBlock[list[Flow]] = PerBlock()
        self._here: dict[Block, str] = {}
        self._done: set[str] = (
            set()
        )  # the strings of this event that were redacted as what they are, as they leave
        self._arguments: set[str] = (
            set()
        )  # of all calls so far: what repeats one is not shown to the hook

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
        if end.whole or self._flows.get(end.block) is None:
            return
        text = self._feed(end.block, "", final=True)
        if text:
            end.add(text)
            self._done.update((text, self._here.get(end.block, "") + text))

    def on_tool_call(self, call: ToolCall) -> None:
        if (
            call.name
            and call.call.name_is_cut
            and self._interceptor.substitute(call.name) != call.name
        ):
            raise Abort("a match in the name of a tool call, which comes in pieces")
        call.arguments = self._interceptor.redact_json(call.arguments, written=self._done)
        self._arguments.add(call.arguments)

    def _feed(self, block: Block, text: str, *, final: bool = False) -> str:
        flows = self._flows.get(block)
        if flows is None:
            flows = self._interceptor.open_flow()
        if final:
            self._flows.end(block)
        else:
            self._flows.set(block, flows)
        try:
            for flow in flows:
                text = flow.feed(text, final=final)
        except ReachesBack:
            raise Abort(
                "a match begins in text that left when its block ended the first time"
            ) from None
        return text


class _RedactAnswer(StreamInterceptor):
    """One answer of an LLM: its texts and tool calls by what they are, and all else event by event."""

    def __init__(self, interceptor: Redact, messages: _RedactMessages) -> None:
        self._redact = interceptor.redact_json
        self._budget = interceptor.budget
        self._messages = messages

    def on_event(self, event: Event) -> EventResult:
        self._budget.begin()
        self._messages.begin()
        result = self._messages.on_event(event)
        if isinstance(result, Event):
            return self._redact_rest(result)
        return (
            [self._redact_rest(item) for item in result] if isinstance(result, Sequence) else result
        )

    def on_complete(self) -> Sequence[Event]:
        self._budget.begin()
        self._messages.begin()
        result = self._messages.on_complete()
        return [self._redact_rest(item) for item in result] if isinstance(result, Sequence) else []

    def _redact_rest(self, event: Event) -> Event:
        data, unknown = event.data, event.unknown
        messages = self._messages
        redacted = self._redact(data, messages)
        if redacted != data or (unknown and self._redact(unknown, messages) != unknown):
            event = event.replace(redacted)
        # Last, so that tokens are compared with the texts as they leave.
        return _without_other_tokens(event) if may_have_tokens(redacted) else event


def _without_other_tokens(event: Event) -> Event:
    """An event without the `logprobs` that spell no text that leaves beside them."""
    message, lax = _decoded(event)
    if not drop_other_tokens(message):
        return event
    return event.replace(json.dumps(message)) if lax else event.replace(json=message)


def _decoded(event: Event) -> tuple[Any, bool]:
    """An event's message, as lax readers take it, and whether only they do. None where it is not
    JSON.
    """
    try:
        return event.json(), False
    except NotJson:
        pass
    try:
        return json.loads(event.data, strict=False), True
    except (ValueError, RecursionError):
        return None, True


def _redact_event(event: Event, redact: Callable[[str], str]) -> Event:
    """An event with its data redacted, and without the lines that are no fields where something in
    them matches.
    """
    data, unknown = event.data, event.unknown
    redacted = redact(data)
    if redacted == data and (not unknown or redact(unknown) == unknown):
        return event
    return event.replace(redacted)
