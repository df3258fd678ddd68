"""`openai`: the Chat Completions API, the Responses API, and the servers that copy them."""

from __future__ import annotations

from interceptors import Request
from interceptors.dialects.answers import is_responses

from ..errors import RequestRefused
from .dialect import Dialect, encode_error

__all__ = ["OpenAI"]


class OpenAI(Dialect):
    """Chat streams end with `[DONE]`; Responses streams have no event that ends them."""

    name = "openai"
    final_events = ((None, b"[DONE]"),)

    def error_events(
        self, refusal: RequestRefused, request: Request | None, path: str
    ) -> tuple[bytes, ...]:
        """Chat: an event without a type, with `error` in its data. Responses: its `error` event."""
        body = self._error(refusal)
        if not is_responses(path):
            return (encode_error(None, body),)
        # The API numbers its events, but their count is not known here. The SDK raises for `error`.
        numbered = {
            "type": "error",
            "code": refusal.kind,
            "message": refusal.message,
            "param": None,
            "sequence_number": 0,
        }
        return (encode_error("error", numbered | body),)
