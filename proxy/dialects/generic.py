"""`generic`, any event stream, and `abort`, the same without error events."""

from __future__ import annotations

from .dialect import Dialect

__all__ = ["Abort", "Generic"]


class Generic(Dialect):
    """Any event stream. It knows the final events of LLM APIs, which such a route may lead to."""

    name = "generic"
    final_events = ((None, b"[DONE]"), (b"message_stop", None))


class Abort(Generic):
    """A failure cuts the stream and sends no event."""

    name = "abort"
    has_error_events = False
