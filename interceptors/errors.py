"""The errors of this package. An author of interceptors meets the first three; the proxy maps the
rest to outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Interceptor

__all__ = [
    "Abort",
    "EventTooLarge",
    "HookError",
    "InterceptorError",
    "LoadError",
    "NotJson",
    "StaleEvent",
    "StreamAborted",
    "StreamOver",
]


class InterceptorError(Exception):
    """Base of every error that `interceptors` raises."""


class StaleEvent(InterceptorError):
    """An event was touched after its hook had returned it; its bytes are another event's by now."""

    def __init__(self) -> None:
        super().__init__(
            "this event is over and its buffer has moved on; keep event.detach() instead of the event"
        )


class NotJson(InterceptorError, ValueError):
    """`event.json()` was asked of data that is not JSON. The message never shows the data."""


class LoadError(InterceptorError):
    """An interceptor cannot be loaded: not found, not a class of ours, an unknown hook, or options
    that do not fit.

    `option` is the path below `options` that is wrong, or "" when it is the interceptor itself.
    `hint` is what to write instead, if that is known. Where several options are wrong, the first is
    this error, and `errors` has all.
    """

    def __init__(
        self, message: str, option: str = "", hint: str = "", others: Sequence[LoadError] = ()
    ) -> None:
        super().__init__(f"{message}: {hint}" if hint else message)
        self.problem = message
        self.option = option
        self.hint = hint
        self._others = tuple(others)
        self.made: Interceptor | None = None
        """The interceptor, made of the options that are right, if it could be: to check it beside
        others.
        """

    @property
    def errors(self) -> tuple[LoadError, ...]:
        """Every mistake, this one first."""
        return (self, *self._others)


def refuse_options(mistakes: Sequence[str]) -> None:
    """For `__init__`: raise what is wrong with options, each text with its path before it; nothing
    for none.

    Raises `ValueError`, or an `ExceptionGroup` of several.
    """
    if len(mistakes) == 1:
        raise ValueError(mistakes[0])
    if mistakes:
        raise ExceptionGroup("wrong options", [ValueError(text) for text in mistakes])


class Abort(Exception):  # an author raises it; it is no failure of a hook
    """Raised in a hook: end the exchange here, such that the client sees that it is not whole. The
    client is told the reason.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StreamAborted(InterceptorError):
    """A hook has raised `Abort`."""

    def __init__(self, interceptor: str, reason: str) -> None:
        super().__init__(reason)
        self.interceptor = interceptor
        self.reason = reason


class StreamOver(InterceptorError):
    """`emit` was called for a stream that has ended, or cannot take events."""

    def __init__(self) -> None:
        super().__init__("this stream is over: it takes no more events")


class HookError(InterceptorError):
    """A hook raised, or returned what it must not, and its interceptor says `on_error = "abort"`."""

    def __init__(self, interceptor: str, hook: str, problem: str, place: str | None = None) -> None:
        """`place`: what was raised and where, without its message, which may hold content."""
        super().__init__(f"{interceptor}.{hook}: {problem}")
        self.interceptor = interceptor
        self.hook = hook
        self.summary: str = f"{interceptor}.{hook}: {place or problem}"
        """The message of this error as the log has it at other levels than debug."""


class EventTooLarge(InterceptorError):
    """One event is larger than the limit (`max_event_bytes`)."""

    def __init__(self, max_event_bytes: int, interceptor: str | None = None) -> None:
        """`interceptor`: which one needed it."""
        super().__init__(f"an event is larger than max_event_bytes ({max_event_bytes} bytes)")
        self.max_event_bytes = max_event_bytes
        self.interceptor = interceptor


class Misused(TypeError):
    """A hook did what it must not. The message is the package's own, and holds no content."""


class HookTooSlow(TimeoutError):
    """A hook took longer than its `hook_timeout_s`."""
