"""Calling hooks: who is called, how long it took, and what becomes of an exception in it.

One place decides about `on_error`: an exception in a hook becomes the `InterceptorError` that ends the exchange, or a line in the
log.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import structlog
import trio

from .api import Interceptor, Outcome
from .errors import Abort, HookError, HookTooSlow, InterceptorError, Misused, StreamAborted, StreamOver
from .message import TASK_OF

__all__ = ["HOLD_S", "HOOK_OF", "Owner"]

HOLD_S = 0.05
"""A synchronous hook that takes longer is named in a warning: meanwhile every other stream of the process stands still."""

HOOK_OF = "weirpool_hook"
"""An attribute of an exception: the hook that raised it, where another one has called that."""

T = TypeVar("T")


class Owner:
    """One interceptor of a route, under the name that the configuration gave it."""

    __slots__ = ("interceptor", "name", "seconds", "unread_parts")

    outcome = Outcome.INTERCEPTED
    """Of an exchange that it answers, or whose stream it ends."""

    def __init__(self, name: str, interceptor: Interceptor) -> None:
        self.name = name
        self.interceptor = interceptor
        self.seconds = 0.0
        """Time spent in its hooks so far."""
        self.unread_parts = 0
        """Parts of answers that its reader did not understand."""

    def note(self, hook: str, seconds: float) -> None:
        """A synchronous hook has taken this long."""
        self.seconds += seconds
        if seconds > HOLD_S:
            self.warn(hook, seconds)

    @contextmanager
    def timed(self, hook: str) -> Iterator[None]:
        """Around a synchronous hook: note what it takes, also when it raises."""
        began = perf_counter()
        try:
            yield
        finally:
            self.note(hook, perf_counter() - began)

    def warn(self, hook: str, seconds: float) -> None:
        """Name a hook that has held the loop."""
        structlog.get_logger("interceptors").warning(
            "interceptor_slow", interceptor=self.name, hook=hook, seconds=round(seconds, 3)
        )

    def failed(self, hook: str, error: Exception) -> InterceptorError | None:
        """Log a failed hook; the error that ends the exchange, or None when the interceptor says `skip`. `Abort` always ends it."""
        if isinstance(error, Abort):
            return StreamAborted(self.name, error.reason)
        hook = getattr(error, HOOK_OF, hook)
        log, on_error = structlog.get_logger("interceptors"), self.interceptor.on_error
        if getattr(error, "of_upstream", False):
            log.warning("unreadable_answer", interceptor=self.name, hook=hook, on_error=on_error, reason=str(error))
        else:
            log.error("interceptor_failed", interceptor=self.name, hook=hook, on_error=on_error, exc_info=error)
        if on_error == "skip":
            return None
        return HookError(self.name, hook, f"{type(error).__name__}: {error}", self._place_of(error))

    def _place_of(self, error: Exception) -> str:
        """What was raised, and where in the interceptor's own file, or else innermost; of an error of this package what it says."""
        name = type(error).__name__
        if isinstance(error, InterceptorError | Misused | HookTooSlow):
            return f"{name}: {error}"
        module = sys.modules.get(type(self.interceptor).__module__)
        frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        own = [item for item in frames if item[0].co_filename == getattr(module, "__file__", None)]
        for code, line in (own or frames)[-1:]:
            return f"{name} at {code.co_filename}:{line}, {code.co_name}"
        return name

    def fail(self, hook: str, error: Exception) -> None:
        """As `failed`, but raise what ends the exchange."""
        problem = self.failed(hook, error)
        if problem is not None:
            raise problem from error

    async def call(self, hook: str, running: Awaitable[T]) -> T:
        """Await an async hook within its time. Raises what it raises, and `TimeoutError`."""
        began = perf_counter()
        timeout_s = self.interceptor.hook_timeout_s
        try:
            with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as scope:
                return await running
        finally:
            self.seconds += perf_counter() - began
        assert scope.cancelled_caught
        raise HookTooSlow(f"took longer than its hook_timeout_s ({timeout_s} s)")

    async def run_task(self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> InterceptorError | None:
        """Run what `start_soon` was given. The error that ends the exchange, if it fails such that it must.

        A task that speaks until its stream takes no more has done its work: `StreamOver` is no failure of it.
        """
        TASK_OF.set(self)
        try:
            await async_fn(*args)
        except StreamOver:
            return None
        except Exception as error:
            return self.failed("start_soon", error)
        return None

    def wrong(self, hook: str, returned: Any, expected: str) -> TypeError:
        """The error for a hook that returned what it must not."""
        return self.misused(hook, f"returned {type(returned).__name__}, expected {expected}")

    def misused(self, hook: str, what: str) -> TypeError:
        """The error for a hook that did what it must not: it names the class, where the mistake is."""
        return Misused(f"{type(self.interceptor).__qualname__}'s {hook} {what}")
