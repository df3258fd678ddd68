"""`anthropic`: the Messages API."""

from __future__ import annotations

from .dialect import Dialect

__all__ = ["Anthropic"]


class Anthropic(Dialect):
    """The Messages API. Its error event has the generic form, `event: error`."""

    name = "anthropic"
    final_events = ((b"message_stop", None),)
