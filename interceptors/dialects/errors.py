"""The errors of this package."""

from __future__ import annotations

from ..errors import InterceptorError

__all__ = ["AnswerError", "DialectError"]


class DialectError(InterceptorError):
    """An answer cannot go on: a hook wants to take back what has left, or needs more than the
    limits allow.

    The message names the field, and never shows its content. What a reader merely does not
    understand is an `Unread`, not an error.
    """

    of_upstream = False
    """What the upstream sent is the reason, and not what a hook did."""


class AnswerError(DialectError):
    """A `DialectError` for which the upstream's answer is the reason."""

    of_upstream = True
