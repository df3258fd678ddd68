"""Tasks that interceptors start: the owner of one, and how an exchange runs it.

A task belongs to the interceptor whose hook or task started it, and ends with its exchange.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from .errors import Misused

__all__ = ["TASK_OF", "StartSoon", "start_task"]

StartSoon = Callable[[Any, Callable[..., Awaitable[object]], tuple[Any, ...]], None]
"""How an exchange runs a task: its owner (a `hooks.Owner`), the function and its arguments."""

TASK_OF: ContextVar[Any] = ContextVar("interceptors.TASK_OF", default=None)
"""The owner (a `hooks.Owner`) of the running task, inherited by the tasks that it starts."""


class _Spawning(Protocol):
    spawn: StartSoon | None


def start_task(
    request: _Spawning,
    owner: Any,
    async_fn: Callable[..., Awaitable[object]],
    args: tuple[Any, ...],
) -> None:
    """Start a task for `owner` in the exchange of `request`.

    Raises `Misused` (a `TypeError`) if `async_fn` is not a function, `RuntimeError` if there is no
    exchange.
    """
    if not callable(async_fn):
        if inspect.iscoroutine(async_fn):
            async_fn.close()
        raise Misused(
            "start_soon takes an async function and its arguments, not "
            f"{type(async_fn).__name__}: write start_soon(fn, x), not start_soon(fn(x))"
        )
    if request.spawn is None:
        raise RuntimeError("this request belongs to no exchange that could run a task")
    request.spawn(owner, async_fn, args)
