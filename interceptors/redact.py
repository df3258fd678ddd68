"""`redact`: replace every match of a regular expression in the data of events.

    interceptors:
      - name: redact-keys
        use: redact
        options: {patterns: ["sk-[A-Za-z0-9]{20,}"], replacement: "[redacted]"}

Events are redacted one by one (`toolkit.json_redaction`). In answers of LLMs, a text is searched as
one text, however it is cut into deltas (`toolkit.substitution`); a tool call waits until it is
complete. A text that was redacted as a text is not searched again in its event.

Fails closed: data that a dialect's reader does not understand is searched as raw text, and a match
that reaches back into text that has left aborts the stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from .api import EventResult, StreamContext, StreamInterceptor
from .dialects import Block, MessageInterceptor, MessageStream, TextDelta, TextEnd, ToolCall
from .errors import Abort, NotJson, refuse_options
from .event import Event
from .refusals import error_format
from .toolkit.blocks import PerBlock
from .toolkit.json_redaction import JsonRedactor
from .toolkit.logprobs import drop_other_tokens, may_have_tokens
from .toolkit.search import Budget
from .toolkit.substitution import Flow, ReachesBack, Substitution

__all__ = ["Redact"]


class Redact(MessageInterceptor):
    """Options: `patterns`, regular expressions in the syntax of `re`; `replacement`, a template as
    `re.sub` takes it; `window`, how many characters of each LLM text may be held back.
    """

    def __init__(
        self, patterns: list[str], replacement: str = "[redacted]", window: int = 1000
    ) -> None:
        mistakes = []
        if not patterns:
            mistakes.append("patterns: the list is empty, so nothing would be redacted")
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
        self.json = JsonRedactor(self._substitutions)

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        answer = super().open_stream(context)
        if isinstance(answer, _RedactMessages):
            return _RedactAnswer(self, answer)
        if error_format(context.dialect).is_json_rpc:
            return _RedactStream(self.json.redact_json, self.budget)
        # Other JSON bodies pass, and are not collected.
        return None if context.is_body else _RedactStream(self.redact, self.budget)

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _RedactMessages(self)

    def open_flow(self) -> list[Flow]:
        """One text in pieces: the output of each flow is the input of the next."""
        return [Flow(substitution, self._window) for substitution in self._substitutions]

    def redact(self, data: str) -> str:
        """The data of one event with every match replaced; the same object if there is none."""
        return self.json.redact(data)


class _RedactStream(StreamInterceptor):
    """Events that are searched one by one."""

    __slots__ = ("_budget", "_redact")

    def __init__(self, redact: Callable[[str], str], budget: Budget) -> None:
        self._redact = redact
        self._budget = budget

    def on_event(self, event: Event) -> EventResult:
        self._budget.begin()
        data, unknown = event.data, event.unknown
        redacted = self._redact(data)
        if redacted == data and (not unknown or self._redact(unknown) == unknown):
            return event
        return event.replace(redacted)


class _RedactMessages(MessageStream):
    """The texts and tool calls of one answer. Contains the strings that are already redacted."""

    holds_tool_calls = True
    sees_other_texts = True

    def __init__(self, interceptor: Redact) -> None:
        self._interceptor = interceptor
        self._flows: PerBlock[list[Flow]] = PerBlock()
        self._here: dict[Block, str] = {}
        self._done: set[str] = set()  # redacted strings of this event, as they leave
        self._arguments: set[str] = set()  # of all calls: the hook does not see a repetition

    def __contains__(self, text: object) -> bool:
        """A string of this event was redacted, and must stay as it is now."""
        return text in self._done or text in self._arguments

    def begin(self) -> None:
        """Start the next event."""
        self._here.clear()
        if not self.has_waiting:
            self._done.clear()

    def on_text_delta(self, delta: TextDelta) -> None:
        if delta.grows:
            text = delta.text
            for flow in self._interceptor.open_flow():
                text = flow.feed(text)
        elif delta.whole:
            text = self._interceptor.json.substitute(delta.text)
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
        redactor = self._interceptor.json
        if call.name and call.call.name_is_cut and redactor.substitute(call.name) != call.name:
            raise Abort("a match in the name of a tool call that arrives in pieces")
        call.arguments = redactor.redact_json(call.arguments, written=self._done)
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
    """One answer of an LLM: texts and tool calls as such, everything else event by event."""

    def __init__(self, interceptor: Redact, messages: _RedactMessages) -> None:
        self._redact = interceptor.json.redact_json
        self._budget = interceptor.budget
        self._messages = messages

    def on_event(self, event: Event) -> EventResult:
        self._budget.begin()
        self._messages.begin()
        result = self._messages.on_event(event)
        if isinstance(result, Event):
            return self._redact_rest(result)
        if isinstance(result, Sequence):
            return [self._redact_rest(item) for item in result]
        return result

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
        # Last, to compare the tokens with the texts as they leave.
        return _without_other_tokens(event) if may_have_tokens(redacted) else event


def _without_other_tokens(event: Event) -> Event:
    """An event without the `logprobs` that spell no text of this event."""
    message, lax = _decoded(event)
    if not drop_other_tokens(message):
        return event
    return event.replace(json.dumps(message)) if lax else event.replace(json=message)


def _decoded(event: Event) -> tuple[Any, bool]:
    """An event's message, and whether only a lax reader decodes it. None if it is not JSON."""
    try:
        return event.json(), False
    except NotJson:
        pass
    try:
        return json.loads(event.data, strict=False), True
    except (ValueError, RecursionError):
        return None, True
