"""The error of this package."""

from __future__ import annotations

from ..errors import InterceptorError

__all__ = ["DialectError"]


class DialectError(InterceptorError):
    """An answer cannot go on: a hook wants to take back what has left, or needs more than the limits allow.

    The message names the field, and never shows its content. What a reader merely does not understand is an `Unread`, not an error.
    """
