"""The errors of this package."""

from __future__ import annotations

from ..errors import InterceptorError

__all__ = ["AnswerError", "DialectError"]


class DialectError(InterceptorError):
    """An answer cannot continue: a hook takes back what was sent, or needs more than the limits.

    The message names the field, never its content. A message that a reader does not understand is
    an `Unread`, not an error.
    """

    of_upstream = False
    """The upstream caused it, not a hook."""


class AnswerError(DialectError):
    """A `DialectError` that the upstream's answer has caused."""

    of_upstream = True
