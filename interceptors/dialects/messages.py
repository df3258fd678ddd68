"""Hooks on the meaning of LLM answers: one class serves every dialect, streamed and not.

`MessageInterceptor` finds out whether a response is an answer, and of which dialect;
`message_driver` runs the hooks of its `MessageStream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..api import EventResult, Interceptor, StreamContext, StreamInterceptor
from ..errors import Misused
from ..event import Event
from .answers import readers_for
from .message_driver import MessageDriver
from .parts import (
    Finish,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from .unread import Unread

__all__ = ["MessageInterceptor", "MessageStream"]

_HOOKS: dict[type[Part], str] = {
    Unread: "on_unread",
    TextDelta: "on_text_delta",
    TextEnd: "on_text_end",
    ToolCallDelta: "on_tool_call_delta",
    ToolCall: "on_tool_call",
    Finish: "on_finish",
    Usage: "on_usage",
    ProviderError: "on_provider_error",
}


class MessageStream(StreamInterceptor):
    """One answer of an LLM. Override the hooks you need; the others cost nothing.

    A hook gets a part of the answer and returns None: what it sets on the part is what the client
    gets. Any hook may raise `Abort`; those of texts and tool calls may call `finish`. A part is
    valid during its hook. `on_start` and `on_end` are those of `StreamInterceptor`; `on_event` and
    `on_complete` call the hooks of this class, so a subclass must not have them.
    """

    holds_tool_calls: bool = False
    """Whether nothing of a tool call leaves before `on_tool_call` returns, so that this hook can
    change, drop and refuse it.

    Events after the beginning of a call wait with it, so that the order stays.
    """

    sees_other_texts: bool = False
    """Whether `on_text_delta` and `on_text_end` also get texts of the kind `other`, which most
    hooks must not change.
    """

    _driver: MessageDriver | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("on_event", "on_complete"):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__qualname__}.{name}: a MessageStream must not define it, because it calls "
                    "the other hooks"
                )

    def on_text_delta(self, delta: TextDelta) -> None:
        """Some text. Set `delta.text`, or call `delta.drop()`."""

    def on_text_end(self, end: TextEnd) -> None:
        """A block's text is complete. `end.add(text)` appends text that was held back."""

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        """Some of a tool call's arguments. Read only."""

    def on_tool_call(self, call: ToolCall) -> None:
        """A whole tool call. Once for each; again for a repetition that contradicts it, and when
        more arguments come after its end.

        On a class with `holds_tool_calls`: set `call.arguments`, or call `call.drop()` or
        `call.refuse(text)`.
        """

    def on_finish(self, finish: Finish) -> None:
        """An answer, or one of several choices, has ended, and why."""

    def on_usage(self, usage: Usage) -> None:
        """The tokens used so far. It may be called several times: later reports replace earlier
        ones.
        """

    def on_provider_error(self, error: ProviderError) -> None:
        """The provider reports an error. Set `error.message`."""

    def on_unread(self, unread: Unread) -> None:
        """An event has something that no other hook is shown: unknown fields and types, or what the
        reader does not understand.

        Called first for every event and body, for interceptors that protect: search
        `unread.texts()`.
        """

    @property
    def model(self) -> str | None:
        """The model that answers, as the provider names it; None until an event that the hooks are
        shown has named it.
        """
        reader = self._driver.reader if self._driver is not None else None
        return reader.model if reader is not None else None

    @property
    def has_waiting(self) -> bool:
        """Whether events wait for a tool call that is held."""
        return self._driver is not None and bool(self._driver.held)

    def finish(self, reason: str | None = None, text: str = "") -> None:
        """End the answer here as its dialect ends answers, so that the client sees a whole one.

        What the hook was given does not leave, nor does anything after it; `text` leaves in its
        place. The rest of the upstream's response is not read. `reason` is in the dialect's own
        words (a `finish_reason`, a `stop_reason`; in OpenAI responses the reason of an incomplete
        one, or `completed`); None: that a filter has ended it. Takes effect when the hook returns.
        Raises `TypeError` outside of `on_unread` and the hooks of texts and tool calls.
        """
        if self._driver is None:
            raise TypeError("finish() was called outside of a hook")
        self._driver.ask_to_finish(reason, text)

    def on_event(self, event: Event) -> EventResult:
        return event if self._driver is None else self._driver.on_event(event)

    def on_complete(self) -> Event | Sequence[Event] | None:
        return None if self._driver is None else self._driver.on_complete()


class MessageInterceptor(Interceptor):
    """An interceptor of LLM answers, streamed or not: override `open_messages`.

    A response is an answer if its route has `dialect: openai` or `anthropic`, or if the path of its
    request ends with `/chat/completions`, `/responses` or `/messages`. Other responses pass
    unseen.
    """

    wants_json = True
    wants_dialect = True

    def open_messages(self, context: StreamContext) -> MessageStream | None:
        """An object for one answer, or None to stay out of it."""
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        readers = readers_for(context.dialect, context.path)
        stream = self.open_messages(context) if readers else None
        if stream is None:
            return None
        if not isinstance(stream, MessageStream):
            raise Misused(
                f"open_messages returned {type(stream).__name__}, expected a MessageStream or None"
            )
        own = type(stream)
        handlers = {
            part: getattr(stream, name)
            for part, name in _HOOKS.items()
            if getattr(own, name) is not getattr(MessageStream, name)
        }
        driver = stream._driver = MessageDriver(
            handlers,
            _HOOKS,
            own.__qualname__,
            readers,
            context,
            holds=stream.holds_tool_calls,
            others=stream.sees_other_texts,
        )
        stream.needs = driver.needs()
        return stream
