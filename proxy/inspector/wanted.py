"""`Wanted`: which streams a view shows. Sans I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

__all__ = ["Wanted"]


class Wanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The query of `/inspect/stream`. What is not given matches every stream."""

    exchange: str | None = None
    """One live exchange: `WORKER-ID`, numbers of `/status`, or its request id."""
    route: str | None = None
    """The route's path prefix."""
    client: str | None = None
    """The client, as the log names it: the name of its key, or its address."""
    model: str | None = None
    """The beginning of the model's name, as the answer has it."""
    text: str | None = None
    """A text in an event, before or after any interceptor."""
    once: bool = False
    """Only the first stream that matches."""
    events: bool = True
    """Whether events are shown, not only begins, heads and ends."""

    @property
    def decides_later(self) -> bool:
        """Whether more than its beginning decides if a stream matches."""
        return any(item is not None for item in (self.client, self.model, self.text))

    @property
    def needs_events(self) -> bool:
        """Whether the events of a stream must be seen."""
        return self.events or self.model is not None or self.text is not None

    def matches(self, about: Mapping[str, Any]) -> bool:
        """Whether an exchange can match, by what is known when it begins."""
        if self.exchange is not None and self.exchange not in (
            about["exchange"],
            about["request_id"],
        ):
            return False
        return self.route is None or self.route == about["route"]

    def finds(self, texts: Iterable[bytes]) -> bool:
        """Whether `text` is in one of these."""
        if self.text is None:
            return True
        text = self.text.encode()
        return any(text in item for item in texts)

    def decide(
        self, client: str | None, model: str | None, *, has_head: bool, has_text: bool
    ) -> bool | None:
        """Whether a stream matches, by the client and the model so far, and whether an event had the
        text. None: something later decides. With the head the client is final: interceptors can
        name it before.
        """
        if self.client is not None and self.client != client:
            return False if has_head else None
        if self.model is not None:
            if model is None:
                return None
            if not model.startswith(self.model):
                return False
        return True if has_text else None
