"""`guard`: end an LLM's answer, in its dialect, when a regular expression matches in it.

    interceptors:
      - name: guard
        use: guard
        options: {patterns: ["(?i)internal use only"], message: " [stopped]"}

A match may be cut over any number of deltas. Unlike `redact`, `guard` holds nothing back: the
deltas before the one that completes a match have left. It keeps the last `window` characters of
each open text to search in, and a few more for lookbehinds.

It searches texts and decoded tool arguments, and every other string of an event by itself: those of
unknown fields and events, and all of an event that is not JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from .api import EventResult, StreamContext, StreamInterceptor
from .dialects import (
    MessageInterceptor,
    MessageStream,
    TextDelta,
    TextEnd,
    ToolCall,
    ToolCallDelta,
    Unread,
)
from .errors import refuse_options
from .event import Event
from .toolkit.blocks import PerBlock
from .toolkit.search import Around, Budget, Pattern
from .unescape import unescape

__all__ = ["Guard"]

_BEHIND = 32  # characters kept before the window, for \b, ^ and lookbehinds


class Guard(MessageInterceptor):
    """Options: `patterns`, regular expressions in the syntax of `re`; `reason` and `message`, how
    the answer ends; `kinds`, which texts to search; `window`, in characters.
    """

    def __init__(
        self,
        patterns: list[str],
        reason: str | None = None,
        message: str = "",
        kinds: list[Literal["text", "thinking", "refusal", "tool_call"]] | None = None,
        window: int = 1000,
    ) -> None:
        mistakes = []
        if not patterns:
            mistakes.append("patterns: the list is empty, so nothing would be stopped")
        if window < 1:
            mistakes.append("window: expected a number of characters, at least 1")
        self.budget = Budget()
        self.patterns: list[Pattern] = []
        for index, pattern in enumerate(patterns):
            name = f"patterns[{index}]"
            try:
                made = Pattern(pattern, name, self.budget, empty=True)
            except (ValueError, re.error) as error:
                mistakes.append(f"{name}: {error}")
                continue
            if made.search(""):
                mistakes.append(
                    f"{name}: the pattern matches the empty string, so it would stop every answer"
                )
            self.patterns.append(made)
        refuse_options(mistakes)
        self._looks_around = any(
            pattern.source.around is Around.ANYTHING for pattern in self.patterns
        )
        self._sees_boundaries = any(
            pattern.source.around is Around.BOUNDARIES for pattern in self.patterns
        )
        self.reason = reason
        self.message = message
        self.kinds: frozenset[str] = frozenset(
            ("text", "thinking", "refusal", "tool_call") if kinds is None else kinds
        )
        self.window = window

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        answer = super().open_stream(context)
        return _GuardAnswer(self.budget, answer) if isinstance(answer, _GuardStream) else answer

    def open_messages(self, context: StreamContext) -> MessageStream:
        return _GuardStream(self, context)

    def find(self, text: str, start: int, *, ended: bool) -> tuple[int, int] | None:
        """Where the first match from `start` on begins, and its pattern's index.

        Unless the text has `ended`, a match at its end does not count if text to come may undo it.
        """
        first: tuple[int, int] | None = None
        for index, pattern in enumerate(self.patterns):
            match = pattern.search(text, start)
            if match is None:
                continue
            if ended or match.end() < len(text) or not pattern.source.looks_ahead:
                found = match.start(), index
                first = found if first is None else min(first, found)
        return first

    def find_in(self, unread: Unread) -> int | None:
        """The index of the pattern that matches one of these strings."""
        if not self._looks_around and (unread.is_json or not self._sees_boundaries):
            data = unread.data
            if "\\" not in data:  # a match in a string is then a match in the data
                for pattern in self.patterns:
                    if pattern.search(data):
                        break
                else:
                    return None
        for text in unread.texts():
            if (found := self.find(text, 0, ended=True)) is not None:
                return found[1]
        return None


class _GuardAnswer(StreamInterceptor):
    """Renews the patterns' CPU budget before each event of an answer."""

    __slots__ = ("_budget", "_messages")

    def __init__(self, budget: Budget, messages: MessageStream) -> None:
        self._budget = budget
        self._messages = messages

    def on_event(self, event: Event) -> EventResult:
        self._budget.begin()
        return self._messages.on_event(event)

    def on_complete(self) -> Event | Sequence[Event] | None:
        self._budget.begin()
        return self._messages.on_complete()


class _GuardStream(MessageStream):
    """The texts and tool calls of one answer."""

    sees_other_texts = True

    def __init__(self, guard: Guard, context: StreamContext) -> None:
        self._guard = guard
        self._context = context
        self._tails: PerBlock[str] = PerBlock()

    def on_unread(self, unread: Unread) -> None:
        pattern = self._guard.find_in(unread)
        if pattern is not None:
            self._stop("unread", pattern)

    def on_text_delta(self, delta: TextDelta) -> None:
        guard = self._guard
        if delta.kind != "other" and delta.kind not in guard.kinds:
            return
        tail = "" if delta.whole else self._tails.get(delta.block) or ""
        text = tail + delta.text
        found = guard.find(text, self._start(tail), ended=delta.whole)
        if found is not None:
            left = text[len(tail) : found[0]]
            self._stop(
                delta.kind,
                found[1],
                left if delta.kind in ("thinking", "other") else left + guard.message,
            )
        elif not delta.whole:
            self._tails.set(delta.block, text[-(guard.window + _BEHIND) :])

    def on_text_end(self, end: TextEnd) -> None:
        # Keep the tail: some servers continue a text after its end.
        tail = "" if end.whole else self._tails.get(end.block) or ""
        self._tails.end(end.block)
        found = self._guard.find(tail, self._start(tail), ended=True) if tail else None
        if found is not None:
            self._stop(
                end.kind, found[1], "" if end.kind in ("thinking", "other") else self._guard.message
            )

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        guard = self._guard
        if "tool_call" not in guard.kinds:
            return
        tail = self._tails.get(delta.block) or ""
        text = tail + delta.arguments
        found = guard.find(unescape(text), 0, ended=False) or guard.find(
            delta.name or "", 0, ended=True
        )
        if found is not None:
            self._stop("tool_call", found[1])
        self._tails.set(delta.block, text[-(guard.window + _BEHIND) :])

    def on_tool_call(self, call: ToolCall) -> None:
        guard = self._guard
        if "tool_call" not in guard.kinds:
            return
        self._tails.end(call.block)
        found = guard.find(unescape(call.arguments), 0, ended=True) or guard.find(
            call.name or "", 0, ended=True
        )
        if found is not None:
            self._stop("tool_call", found[1])

    def _start(self, tail: str) -> int:
        """Where to search from: text before the window was searched, and may be cut."""
        return _BEHIND if len(tail) == self._guard.window + _BEHIND else 0

    def _stop(self, kind: str, pattern: int, text: str = "") -> None:
        self._context.log.warning("guard_stopped", pattern=pattern, kind=kind)
        self.finish(self._guard.reason, text)
