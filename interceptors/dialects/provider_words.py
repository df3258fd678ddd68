"""How an answer ended, in the provider's words: errors of any shape, and reasons. Sans I/O."""

from __future__ import annotations

from typing import Any

from .parts import Block, Finish, ProviderError

__all__ = ["MESSAGE", "error_in", "error_of", "finish_of", "own_error_of"]

MESSAGE = Block("message", 0)


def finish_of(output: int, reason: str) -> Finish:
    """Why a choice has ended, or the message (0)."""
    return Finish(Block("message", output), reason)


def error_of(holder: dict[str, Any], key: str) -> ProviderError:
    """The error in `holder[key]`: an object, or of less strict servers text or anything."""
    error = holder[key]
    if isinstance(error, dict):
        return ProviderError(
            MESSAGE, _word(error.get("type")), _word(error.get("code")), error, "message"
        )
    return ProviderError(
        MESSAGE, _word(holder.get("error_type")), _word(holder.get("code")), holder, key
    )


def own_error_of(message: dict[str, Any]) -> ProviderError:
    """The error of a message that is an error itself."""
    kind = _word(message.get("type"))
    return ProviderError(
        MESSAGE, None if kind == "error" else kind, _word(message.get("code")), message, "message"
    )


def error_in(message: dict[str, Any], *, is_error: bool) -> ProviderError | None:
    """The error in a message, or, with `is_error`, the message itself; None if there is none."""
    if message.get("error") is not None:
        return error_of(message, "error")
    return own_error_of(message) if is_error else None


def _word(value: Any) -> str | None:
    """A word for programs: some servers use numbers."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return None
    return str(value)
