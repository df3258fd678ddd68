"""Calls of hooks: the owner, the time a hook takes, its timeout, and the handling of exceptions.

`Owner` is the only place that applies `on_error`: an exception becomes the `InterceptorError` that
ends the exchange, or a log line. It knows nothing of events or streams.
"""

from __future__ import annotations

import sys
import traceback
import types
from bisect import bisect_left
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
from .store import Store
from .tasks import TASK_OF

__all__ = ["HOLD_S", "HOOK_BOUNDS", "HOOK_OF", "QUICK_S", "WAIT_S", "Owner"]

HOLD_S = 0.05
"""A hook that holds the event loop longer is logged: it delays every other stream.

Of an async hook, each step between two awaits counts.
"""
HOOK_BOUNDS = (25e-6, 100e-6, 250e-6, 0.001, 0.0025, 0.005, 0.01, 0.025, HOLD_S, 0.1, 0.25, 1.0)
"""Upper bounds of the time for which one call holds the event loop, in seconds."""
QUICK_S = HOOK_BOUNDS[0]
"""Most calls hold it for less."""
WAIT_S = 1.0
"""An async hook that waits longer is logged: it delays its own exchange."""

HOOK_OF = "weirpool_hook"
"""The attribute of an exception that names the hook, if another hook called it."""

T = TypeVar("T")


async def _awaiting(running: Awaitable[T]) -> T:
    return await running


def _name_of(function: object) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__


def _describe(returned: object) -> str:
    """The type of what a hook returned, for a list with the types of its items; no content."""
    if isinstance(returned, type):
        return f"the class {returned.__name__}"
    if isinstance(returned, list | tuple):
        kinds = ", ".join(sorted({type(item).__name__ for item in returned}))
        return f"a {type(returned).__name__} of {kinds or 'nothing'}"
    return type(returned).__name__


class Owner:
    """One interceptor of a route, with its name in the configuration."""

    __slots__ = ("_slower", "interceptor", "name", "quick", "seconds", "unread_parts", "waited")

    outcome = Outcome.INTERCEPTED
    """The outcome of an exchange that it answers, or whose stream it ends."""

    def __init__(self, name: str, interceptor: Interceptor) -> None:
        self.name = name
        self.interceptor = interceptor
        self.seconds = 0.0
        """Total time for which its hooks and tasks held the event loop."""
        self.waited = 0.0
        """Total time for which its async hooks waited."""
        self.unread_parts = 0
        """Number of parts of responses that its reader did not understand."""
        self.quick = 0
        """Number of calls that held the event loop for at most `QUICK_S`."""
        self._slower = [0] * len(HOOK_BOUNDS)  # other calls, by bucket

    def use_store(self, store: Store) -> None:
        """Set the interceptor's store, before its lifespan is entered."""
        self.interceptor._store = store

    def note(self, hook: str, seconds: float) -> None:
        """Record the duration of a synchronous hook."""
        self.seconds += seconds
        if seconds > QUICK_S:
            self.note_slow(hook, seconds)
        else:
            self.quick += 1

    def note_slow(self, hook: str, seconds: float) -> None:
        """Count a call that took longer than `QUICK_S`, and log one that took too long."""
        self._slower[bisect_left(HOOK_BOUNDS, seconds) - 1] += 1
        if seconds > HOLD_S:
            self.warn(hook, seconds)

    def calls(self) -> tuple[int, ...]:
        """The number of calls in each bucket of `HOOK_BOUNDS`."""
        return (self.quick, *self._slower)

    @contextmanager
    def timed(self, hook: str) -> Iterator[None]:
        """Record the duration of a synchronous hook, also if it raises."""
        began = perf_counter()
        try:
            yield
        finally:
            self.note(hook, perf_counter() - began)

    def warn(self, hook: str, seconds: float) -> None:
        """Log a hook that held the event loop too long."""
        self._warn("interceptor_slow", hook, seconds)

    def _warn(self, event: str, hook: str, seconds: float) -> None:
        structlog.get_logger("interceptors").warning(
            event, interceptor=self.name, hook=hook, seconds=round(seconds, 3)
        )

    def failed(self, hook: str, error: Exception) -> InterceptorError | None:
        """Log a failed hook. Return the error that ends the exchange, None if `on_error` is skip.

        `Abort` always ends the exchange.
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
        """The exception's type and line, without content.

        The line is the innermost one in the interceptor's file, or else in any file. For an error
        of this package, its message.
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
        """As `failed`, but raise the error that ends the exchange."""
        problem = self.failed(hook, error)
        if problem is not None:
            raise problem from error

    def skip(self, hook: str, error: Exception, value: T) -> T:
        """As `fail`; returns `value` where `on_error` is skip."""
        self.fail(hook, error)
        return value

    async def call(self, hook: str, running: Awaitable[T]) -> T:
        """Await an async hook. Raises what it raises, `HookTooSlow` after `hook_timeout_s`."""
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
        """Await `running` step by step, measuring how long it holds the loop and waits.

        The waiting of a task is not measured.
        """
        steps: Any = running if isinstance(running, types.CoroutineType) else _awaiting(running)
        held_s = longest_s = waited_s = 0.0
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
                    error = None  # break the reference cycle: its traceback references this frame
                    now = perf_counter()
                    took_s, clock = now - clock, now
                    self.seconds += took_s
                    held_s += took_s
                    longest_s = max(longest_s, took_s)
                try:
                    value = yield asked
                except BaseException as raised:
                    error = raised
                now = perf_counter()
                waited_s, clock = waited_s + now - clock, now
        finally:
            if held_s > QUICK_S:
                self._slower[bisect_left(HOOK_BOUNDS, held_s) - 1] += 1
            else:
                self.quick += 1
            if longest_s > HOLD_S:
                self.warn(hook, longest_s)
            if not is_task:
                self.waited += waited_s
                if waited_s > WAIT_S:
                    self._warn("interceptor_waited", hook, waited_s)

    async def run_task(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> InterceptorError | None:
        """Run a task of `start_soon`. Return the error that ends the exchange, if any.

        `StreamOver` is not a failure: a task may emit until its stream has ended.
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
        """The error for a hook that returned an invalid value."""
        return self.misused(hook, f"returned {_describe(returned)}, expected {expected}")

    def misused(self, hook: str, what: str) -> TypeError:
        """The error for a hook that broke the rules; it names the class."""
        return Misused(f"{type(self.interceptor).__qualname__}'s {hook} {what}")
