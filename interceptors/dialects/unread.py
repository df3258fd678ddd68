"""`Unread`: the rest of an event, for hooks that must see everything. It knows no dialect."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

from ..event import Event
from ..unescape import unescape
from .parts import Block, Part, TextDelta, ToolCallDelta

__all__ = ["Unread"]

_MESSAGE = Block("message", 0)
# Fields whose text identifies something or is a word of the protocol. A pattern for the text of an
# answer must not match in them.
_PROTOCOL = frozenset(
    (
        *("id", "object", "type", "model", "role", "status"),
        *("finish_reason", "native_finish_reason", "stop_reason"),
        *("item_id", "call_id", "tool_use_id", "tool_call_id"),
        *("response_id", "previous_response_id", "request_id"),
        *("system_fingerprint", "service_tier", "provider", "obfuscation", "signature", "event"),
    )
)


class Unread(Part):
    """What no other hook is shown of an event or a body: unknown fields and types, and what the
    reader cannot understand.
    """

    __slots__ = ("_event", "_handlers", "_message", "_parts", "problem")

    def __init__(
        self,
        event: Event,
        message: Any,
        parts: Sequence[Part],
        handlers: Container[type[Part]],
        problem: str | None,
    ) -> None:
        """`message`: the event's data, decoded; None if it is not JSON. `parts`: what else is in
        it; those of the types in `handlers` are shown to other hooks.
        """
        super().__init__(_MESSAGE)
        self.problem: str | None = problem
        """What the reader does not understand; None if the rest is only unknown. It names fields,
        and shows no content.
        """
        self._event = event
        self._message = message
        self._parts = parts
        self._handlers = handlers

    @property
    def is_json(self) -> bool:
        """Whether the event has nothing but JSON, at least for lax readers."""
        return self._message is not None and not self._event.unknown

    @property
    def data(self) -> str:
        """All of the event's data as received, and its lines that are not fields of an event."""
        data, lines = self._event.data, self._event.unknown
        return f"{data}\n{lines}" if lines else data

    def texts(self) -> Iterator[str]:
        """The decoded strings of the rest; all of the data if that is not JSON.

        Without what other hooks are shown, and without the protocol's own words: names that are
        identifiers, and the values of `id`, `object`, `type`, `model`, `role`, `finish_reason` and
        the like.
        """
        if self._message is None:
            yield self.data
            if "\\" in self.data:  # half of a JSON text, for example
                yield unescape(self.data)
            return
        if self._event.unknown:
            yield self._event.unknown
        shown = {
            (id(part.holder), part.key)
            for part in self._parts
            if type(part) in self._handlers and isinstance(part, (TextDelta, ToolCallDelta))
        }
        pending = [self._message]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                yield from (name for name in value if not name.isidentifier())
                pending += [
                    inner
                    for name, inner in value.items()
                    if (id(value), name) not in shown
                    and not (isinstance(inner, str) and name in _PROTOCOL)
                ]
            elif isinstance(value, list):
                pending += value
            elif isinstance(value, str):
                yield value
