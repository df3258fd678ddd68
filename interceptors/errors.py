"""The exceptions of this package.

Authors raise `Abort` and catch `NotJson`, `StaleEvent` and `StreamOver`. The proxy maps the others
to an outcome. Nothing here knows hooks, events or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """Base class of every error that `interceptors` raises."""


class StaleEvent(InterceptorError):
    """An event was used after its hook returned. Its buffer now holds other bytes."""

    def __init__(self) -> None:
        super().__init__(
            "this event was used after its hook returned, and its buffer has been reused: "
            "keep event.detach() instead of the event"
        )


class NotJson(InterceptorError, ValueError):
    """`json()` was called on data that is not JSON. The message never shows the data."""


class LoadError(InterceptorError):
    """An interceptor cannot be loaded.

    The class is missing, is not an `Interceptor`, has an unknown hook, or rejects its options.
    If there are several mistakes, this error is the first, and `errors` lists all of them.

    - `problem`: what is wrong;
    - `option`: the path below `options` that is wrong, "" for the interceptor itself;
    - `hint`: what to write instead, "" if unknown.
    """

    def __init__(
        self, message: str, option: str = "", hint: str = "", others: Sequence[LoadError] = ()
    ) -> None:
        super().__init__(f"{message}: {hint}" if hint else message)
        self.problem = message
        self.option = option
        self.hint = hint
        self._others = tuple(others)
        self.made: Any = None
        """The `Interceptor`, built from the valid options if possible, for checks of the route."""

    @property
    def errors(self) -> tuple[LoadError, ...]:
        """Every mistake, this one first."""
        return (self, *self._others)


def refuse_options(mistakes: Sequence[str]) -> None:
    """Raise every mistake that `__init__` found in its options; return if there is none.

    Each text starts with the option's path: `patterns[0]: not a regular expression`. Raises
    `ValueError` for one mistake, an `ExceptionGroup` for several.
    """
    if len(mistakes) == 1:
        raise ValueError(mistakes[0])
    if mistakes:
        raise ExceptionGroup("wrong options", [ValueError(text) for text in mistakes])


class Abort(Exception):  # not an InterceptorError: raising it is not a failure of the hook
    """Raise this in a hook to end the exchange. The client sees a truncated response.

    `reason` is sent to the client where its protocol allows it. `on_error` does not apply.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StreamAborted(InterceptorError):
    """A hook of `interceptor` raised `Abort`."""

    def __init__(self, interceptor: str, reason: str) -> None:
        super().__init__(reason)
        self.interceptor = interceptor
        self.reason = reason


class StreamOver(InterceptorError):
    """`emit` was called on a stream that has ended or cannot carry events."""

    def __init__(self) -> None:
        super().__init__("this stream has ended: it takes no more events")


class HookError(InterceptorError):
    """A hook raised, or returned an invalid value, and its interceptor has `on_error = "abort"`."""

    def __init__(self, interceptor: str, hook: str, problem: str, place: str | None = None) -> None:
        """`place`: the exception's type and line, without its message, which can hold content."""
        super().__init__(f"{interceptor}.{hook}: {problem}")
        self.interceptor = interceptor
        self.hook = hook
        self.summary: str = f"{interceptor}.{hook}: {place or problem}"
        """The text for logs above the level debug: it never contains content."""


class EventTooLarge(InterceptorError):
    """An event is larger than `limits.max_event_bytes`."""

    def __init__(self, max_event_bytes: int, interceptor: str | None = None) -> None:
        """`interceptor`: the name of the one that must see the event."""
        super().__init__(f"an event is larger than max_event_bytes ({max_event_bytes} bytes)")
        self.max_event_bytes = max_event_bytes
        self.interceptor = interceptor


class Misused(TypeError):
    """A hook broke the rules of the API. The message is this package's own: no content."""


class HookTooSlow(TimeoutError):
    """A hook exceeded its `hook_timeout_s`."""
