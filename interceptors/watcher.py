"""`Watcher`: what sees the events of one stream between its hooks, and changes nothing.

Tests of interceptors record with one which hooks a run called; the proxy's inspector shows events
with another. A stream without a watcher costs one test for each read. This module must not know
windows, parts or what a watcher does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

from .event import Event
from .hooks import Owner

__all__ = ["Watcher", "watched", "watched_async"]


class Watcher:
    """Override what is of interest. The methods must not raise. An event from upstream is valid
    only until the method returns.
    """

    def arrived(self, event: Event) -> None:
        """An event, or a JSON body, has arrived from upstream."""

    def called(self, owner: Owner, event: Event, result: Any, seconds: float) -> None:
        """An `on_event` has returned `result` for `event`, or has raised it (an `Exception`).

        `seconds` includes what an async hook waited.
        """

    def added(self, events: Sequence[Event]) -> None:
        """A member has added events: emitted ones, or those of `on_complete`."""

    def left(self, events: Sequence[Event]) -> None:
        """What leaves for the client in place of what `arrived`, or was `added`, last."""


def watched(watcher: Watcher, owner: Owner, call: Callable[[Event], Any]) -> Callable[[Event], Any]:
    """An `on_event` that reports its calls."""

    def calling(event: Event) -> Any:
        began = perf_counter()
        try:
            result = call(event)
        except Exception as error:
            watcher.called(owner, event, error, perf_counter() - began)
            raise
        watcher.called(owner, event, result, perf_counter() - began)
        return result

    return calling


def watched_async(
    watcher: Watcher, owner: Owner, call: Callable[[Event], Any]
) -> Callable[[Event], Any]:
    """As `watched`, for an async `on_event`."""

    def calling(event: Event) -> Any:
        running = call(event)
        # What is not awaitable is an error that the chain reports.
        return awaiting(event, running) if isinstance(running, Awaitable) else running

    async def awaiting(event: Event, running: Awaitable[Any]) -> Any:
        began = perf_counter()
        try:
            result = await running
        except Exception as error:
            watcher.called(owner, event, error, perf_counter() - began)
            raise
        watcher.called(owner, event, result, perf_counter() - began)
        return result

    return calling
