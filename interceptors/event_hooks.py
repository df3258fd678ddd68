"""The `on_event` hooks of one stream, in their order: events enter at the front, or after the
member that added them, and leave after the last hook.

This module decides what a hook may return. It must not know windows, parts or what else belongs to
a stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from .api import AsyncStreamInterceptor, End, EventResult, StreamInterceptor
from .errors import EventTooLarge
from .event import BodyEvent, Event, not_for_a_body
from .hooks import Owner
from .needs import Finder, finder_of, overlap_of
from .watcher import Watcher, watched, watched_async
from .wire_event import WireEvent

__all__ = ["EventHook", "EventHooks", "events_in"]


def events_in(result: Any) -> list[Event] | tuple[Event, ...] | None:
    """The events that an `on_event` returned; None if the result is invalid."""
    if isinstance(result, Event):
        return (result,)
    if result is None:
        return ()
    events = result.events if isinstance(result, End) else result
    if isinstance(events, (list, tuple)) and all(isinstance(item, Event) for item in events):
        return events
    return None


class EventHook:
    """One `on_event` of the chain."""

    __slots__ = (
        "_on_event",
        "call",
        "is_async",
        "need",
        "ordinal",
        "overlap",
        "owner",
        "passes_unseen",
    )

    def __init__(
        self, owner: Owner, stream: StreamInterceptor | AsyncStreamInterceptor, ordinal: int
    ) -> None:
        self.owner = owner
        self.call: Callable[[Event], EventResult | Awaitable[EventResult]] = stream.on_event
        self._on_event = self.call
        self.is_async = isinstance(stream, AsyncStreamInterceptor)
        try:
            self.need: Finder | None = finder_of(stream.needs)
        except TypeError as error:
            raise TypeError(f"{type(stream).__qualname__}: {error}") from None
        if not isinstance(stream.passes_unseen, bool):
            raise TypeError(f"{type(stream).__qualname__}: passes_unseen is not True or False")
        self.overlap = overlap_of(stream.needs)
        self.passes_unseen = stream.passes_unseen
        self.ordinal = ordinal

    def wants(self, event: Event) -> bool:
        """Whether the hook must see this event. `needs` applies to events from upstream only."""
        return self.need is None or not isinstance(event, WireEvent) or event.holds(self.need)

    def watch(self, watcher: Watcher | None) -> None:
        """Report calls to `watcher` from now on; None: stop."""
        wrap = watched_async if self.is_async else watched
        self.call = self._on_event if watcher is None else wrap(watcher, self.owner, self._on_event)


class EventHooks:
    """The hooks of one stream."""

    __slots__ = ("body", "ending", "hooks", "is_async", "is_body")

    def __init__(self) -> None:
        self.hooks: tuple[EventHook, ...] = ()
        self.is_async = False
        """Whether some hook must be awaited."""
        self.ending: int | None = None
        """The index of the hook that returned `End`."""
        self.is_body = False
        """The hooks see a JSON body: exactly one event leaves for it."""
        self.body: bytes | None = None
        """The body that replaces the one shown; None: unchanged."""

    def add(
        self, owner: Owner, stream: StreamInterceptor | AsyncStreamInterceptor, ordinal: int
    ) -> None:
        """Append a member's hook, if it has one and needs events. Raises `TypeError` for invalid
        `needs`.
        """
        is_async = isinstance(stream, AsyncStreamInterceptor)
        base = AsyncStreamInterceptor if is_async else StreamInterceptor
        needs_none = isinstance(stream.needs, (tuple, list)) and not stream.needs
        if type(stream).on_event is not base.on_event and not needs_none:
            self._set((*self.hooks, EventHook(owner, stream, ordinal)))

    def clear(self) -> None:
        """Call no hook from now on."""
        self._set(())

    def begin_body(self) -> None:
        """A JSON body follows: only members with `wants_json` see it."""
        self.is_body = True
        self._set(tuple(hook for hook in self.hooks if hook.owner.interceptor.wants_json))

    def _set(self, hooks: tuple[EventHook, ...]) -> None:
        self.hooks = hooks
        self.is_async = any(hook.is_async for hook in hooks)

    @property
    def pass_unseen(self) -> bool:
        """Whether every hook accepts that what it cannot see passes."""
        return all(hook.passes_unseen for hook in self.hooks)

    @property
    def is_selective(self) -> bool:
        """Whether every hook has `needs`."""
        return all(hook.need is not None for hook in self.hooks)

    def index_after(self, ordinal: int) -> int:
        """The index of the first hook after the member with that ordinal."""
        return next(
            (at for at, hook in enumerate(self.hooks) if hook.ordinal > ordinal), len(self.hooks)
        )

    def find_needed(self, buffer: bytes | bytearray, at: int, end: int) -> int:
        """The index of the first byte that a hook needs, else `end`. One search for each hook,
        over all the bytes.
        """
        wanted = end
        for hook in self.hooks:
            assert hook.need is not None
            found = hook.need(buffer, at, wanted)
            if found >= 0:
                wanted = found
        return wanted

    def watchers_of_large(
        self, buffer: bytes | bytearray, at: int, end: int, max_event_bytes: int
    ) -> tuple[EventHook, ...]:
        """The hooks that may need a later part of an event or body above the limit, of which
        `buffer[at:end]` is the beginning. Raises `EventTooLarge` when a hook needs it already.
        """
        watchers = tuple(hook for hook in self.hooks if not hook.passes_unseen)
        for hook in watchers:
            if hook.need is None or hook.need(buffer, at, end) >= 0:
                raise EventTooLarge(max_event_bytes, hook.owner.name)
        return watchers

    def run_after(self, hook: EventHook, event: Event, result: Any) -> tuple[list[Event], int]:
        """`run_sync` after `hook`, which returned something other than an event for `event`."""
        index = self.hooks.index(hook)
        return self.run_sync(self._check(index, event, result), index + 1)

    def run_sync(self, events: list[Event], index: int) -> tuple[list[Event], int]:
        """Show events to the hooks from `index` on, up to the first that must be awaited. Returns
        what is left and the index of that hook, or the number of hooks.
        """
        for at in range(index, len(self.hooks)):
            hook = self.hooks[at]
            if hook.is_async:
                if any(map(hook.wants, events)):
                    return events, at
                continue
            following: list[Event] = []
            for event in events:
                answer: Any = event
                if hook.need is None or hook.wants(event):
                    began = perf_counter()
                    try:
                        answer = hook.call(event)
                    except Exception as error:
                        hook.owner.fail("on_event", error)
                    finally:
                        hook.owner.note("on_event", perf_counter() - began)
                if answer is event:
                    following.append(event)
                    continue
                following += self._check(at, event, answer)
                if self.ending == at:
                    break
            events = following
        return events, len(self.hooks)

    async def run(self, events: list[Event], index: int) -> list[Event]:
        """Show events to the hooks from `index` on, awaiting those that are async. Raises
        `InterceptorError`.
        """
        while True:
            events, index = self.run_sync(events, index)
            if index == len(self.hooks):
                return events
            hook = self.hooks[index]
            following: list[Event] = []
            for event in events:
                answer: Any = event
                if hook.wants(event):
                    try:
                        running: Any = hook.call(event)
                        answer = await hook.owner.call("on_event", running)
                    except Exception as error:
                        hook.owner.fail("on_event", error)
                following += self._check(index, event, answer)
                if self.ending == index:
                    break
            events = following
            index += 1

    def _check(self, index: int, current: Event, result: Any) -> list[Event]:
        """What a hook returned, as a list; or the event it was given, if the result is invalid and
        the interceptor's `on_error` is `skip`.
        """
        owner = self.hooks[index].owner
        events = events_in(result)
        if events is None:
            expected = "an Event, a list of Events, End(...) or None"
            owner.fail("on_event", owner.wrong("on_event", result, expected))
            return [current]
        if self.is_body and (len(events) != 1 or events[0] is not current):
            try:
                events = [self._body_of(owner, events)]
            except Exception as error:
                owner.fail("on_event", error)
                return [current]
        for item in events:
            if item is not current:
                item.made_by = owner
        if isinstance(result, End):
            self.ending = index
        return list(events)

    def _body_of(self, owner: Owner, events: list[Event] | tuple[Event, ...]) -> BodyEvent:
        """The body that a hook returned in place of the one it was shown. Raises `TypeError`."""
        if len(events) != 1:
            raise owner.misused(
                "on_event",
                f"returned {len(events)} events, expected one: "
                "the response is a JSON body, not a stream",
            )
        if (problem := not_for_a_body(events[0])) is not None:
            raise owner.misused("on_event", problem)
        event = BodyEvent.of(events[0])
        self.body = event.raw
        return event
