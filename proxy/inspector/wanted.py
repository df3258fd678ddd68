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
    """The client, as in the log."""
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
        """Whether only the events show if a stream matches."""
        return self.model is not None or self.text is not None

    @property
    def needs_events(self) -> bool:
        """Whether the events of a stream must be seen."""
        return self.events or self.decides_later

    def matches(self, about: Mapping[str, Any]) -> bool:
        """Whether an exchange can match, by what is known when it begins."""
        if self.exchange is not None and self.exchange not in (
            about["exchange"],
            about["request_id"],
        ):
            return False
        if self.route is not None and self.route != about["route"]:
            return False
        return self.client is None or self.client == about["client"]

    def finds(self, texts: Iterable[bytes]) -> bool:
        """Whether `text` is in one of these."""
        if self.text is None:
            return True
        text = self.text.encode()
        return any(text in item for item in texts)

    def decide(self, model: str | None, *, has_text: bool) -> bool | None:
        """Whether a stream matches, by the model so far, and whether an event had the text. None: a
        later event decides.
        """
        if self.model is not None:
            if model is None:
                return None
            if not model.startswith(self.model):
                return False
        return True if has_text else None
