"""Calling hooks: who is called, how long it took, and what becomes of an exception in it.

One place decides about `on_error`: an exception in a hook becomes the `InterceptorError` that ends
the exchange, or a line in the log.
"""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

import structlog
import trio

from .api import Interceptor, Outcome
from .errors import (
    Abort,
    HookError,
    HookTooSlow,
    InterceptorError,
    Misused,
    StreamAborted,
    StreamOver,
)
from .tasks import TASK_OF

__all__ = ["HOLD_S", "HOOK_OF", "WAIT_S", "Owner"]

HOLD_S = 0.05
"""A hook, or a step of an async one between two awaits, that takes longer is named in a warning: it
holds up every other stream.
"""
WAIT_S = 1.0
"""An async hook that waits longer is named in a warning: it holds up its own exchange."""

HOOK_OF = "weirpool_hook"
"""An attribute of an exception: the hook that raised it, where another one has called that."""

T = TypeVar("T")


async def _awaiting(running: Awaitable[T]) -> T:
    return await running


def _name_of(function: object) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


def _describe(returned: object) -> str:
    """What a hook returned, without its content: its type; of a list also the types in it."""
    if isinstance(returned, type):
        return f"the class {returned.__name__}"
    if isinstance(returned, list | tuple):
        kinds = ", ".join(sorted({type(item).__name__ for item in returned}))
        return f"a {type(returned).__name__} of {kinds or 'nothing'}"
    return type(returned).__name__


class Owner:
    """One interceptor of a route, under the name that the configuration gave it."""

    __slots__ = ("interceptor", "name", "seconds", "unread_parts", "waited")

    outcome = Outcome.INTERCEPTED
    """Of an exchange that it answers, or whose stream it ends."""

    def __init__(self, name: str, interceptor: Interceptor) -> None:
        self.name = name
        self.interceptor = interceptor
        self.seconds = 0.0
        """Time for which its hooks and tasks have held the loop so far."""
        self.waited = 0.0
        """Time for which its async hooks have waited so far: each held up its own exchange."""
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
        self._warn("interceptor_slow", hook, seconds)

    def _warn(self, event: str, hook: str, seconds: float) -> None:
        structlog.get_logger("interceptors").warning(
            event, interceptor=self.name, hook=hook, seconds=round(seconds, 3)
        )

    def failed(self, hook: str, error: Exception) -> InterceptorError | None:
        """Log a failed hook; the error that ends the exchange, or None when the interceptor says
        `skip`. `Abort` always ends it.
        """
        if isinstance(error, Abort):
            return StreamAborted(self.name, error.reason)
        hook = getattr(error, HOOK_OF, hook)
        log, on_error = structlog.get_logger("interceptors"), self.interceptor.on_error
        if getattr(error, "of_upstream", False):
            log.warning(
                "unreadable_answer",
                interceptor=self.name,
                hook=hook,
                on_error=on_error,
                reason=str(error),
            )
        else:
            log.error(
                "interceptor_failed",
                interceptor=self.name,
                hook=hook,
                on_error=on_error,
                exc_info=error,
            )
        if on_error == "skip":
            return None
        return HookError(self.name, hook, f"{type(error).__name__}: {error}", self._place_of(error))

    def _place_of(self, error: Exception) -> str:
        """What was raised, and where in the interceptor's own file, or else innermost; of an error
        of this package what it says.
        """
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
        if not isinstance(running, Awaitable):
            raise self.wrong(hook, running, "something to await")
        timeout_s = self.interceptor.hook_timeout_s
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as scope:
            return await self._stepped(hook, running)
        assert scope.cancelled_caught
        raise HookTooSlow(f"took longer than its hook_timeout_s ({timeout_s} s)")

    @types.coroutine
    def _stepped(
        self, hook: str, running: Awaitable[T], is_task: bool = False
    ) -> Generator[Any, Any, T]:
        """Await step by step: what runs between two awaits holds the loop, and the rest is waiting.
        A task may wait as it likes.
        """
        steps: Any = running if isinstance(running, types.CoroutineType) else _awaiting(running)
        longest_s = waited_s = 0.0
        value: Any = None
        error: BaseException | None = None
        clock = perf_counter()
        try:
            while True:
                try:
                    asked = steps.send(value) if error is None else steps.throw(error)
                except StopIteration as done:
                    result: T = done.value
                    return result
                finally:
                    error = None  # it knows this frame
                    now = perf_counter()
                    took_s, clock = now - clock, now
                    self.seconds += took_s
                    longest_s = max(longest_s, took_s)
                try:
                    value = yield asked
                except BaseException as raised:
                    error = raised
                now = perf_counter()
                waited_s, clock = waited_s + now - clock, now
        finally:
            if longest_s > HOLD_S:
                self.warn(hook, longest_s)
            if not is_task:
                self.waited += waited_s
                if waited_s > WAIT_S:
                    self._warn("interceptor_waited", hook, waited_s)

    async def run_task(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> InterceptorError | None:
        """Run what `start_soon` was given. The error that ends the exchange, if it fails such that
        it must.

        A task that speaks until its stream takes no more has done its work: `StreamOver` is no
        failure of it.
        """
        TASK_OF.set(self)
        try:
            running = async_fn(*args)
            if not hasattr(running, "__await__"):
                raise self.misused(
                    "start_soon", f"was given {_name_of(async_fn)}, which is not async"
                )
            await self._stepped("start_soon", running, is_task=True)
        except StreamOver:
            return None
        except Exception as error:
            return self.failed("start_soon", error)
        return None

    def wrong(self, hook: str, returned: Any, expected: str) -> TypeError:
        """The error for a hook that returned what it must not."""
        return self.misused(hook, f"returned {_describe(returned)}, expected {expected}")

    def misused(self, hook: str, what: str) -> TypeError:
        """The error for a hook that did what it must not: it names the class, where the mistake is."""
        return Misused(f"{type(self.interceptor).__qualname__}'s {hook} {what}")
