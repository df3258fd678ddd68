"""The `on_event` hooks of one stream, in order: events go in at the front, or behind one of them,
and come out behind the last.

They know events and nothing of windows, of bytes that are to be sent, or of what surrounds a
stream. One place tells what a hook may return. `StreamChain` runs the usual ones itself, for speed,
and comes here with everything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .api import AsyncStreamInterceptor, End, EventResult, StreamInterceptor
from .errors import EventTooLarge
from .event import BodyEvent, Event, not_for_a_body
from .hooks import Owner
from .needs import Finder, finder_of, overlap_of
from .wire_event import WireEvent

__all__ = ["EventHook", "EventHooks"]


class EventHook:
    """One `on_event` of the chain."""

    __slots__ = ("call", "is_async", "need", "ordinal", "overlap", "owner", "passes_unseen")

    def __init__(
        self, owner: Owner, stream: StreamInterceptor | AsyncStreamInterceptor, ordinal: int
    ) -> None:
        self.owner = owner
        self.call: Callable[[Event], EventResult | Awaitable[EventResult]] = stream.on_event
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
        """Whether it is to see this one: `needs` is a promise about what comes from upstream."""
        return self.need is None or not isinstance(event, WireEvent) or event.holds(self.need)


class EventHooks:
    """The hooks of one stream."""

    __slots__ = ("body", "ending", "hooks", "is_body")

    def __init__(self) -> None:
        self.hooks: tuple[EventHook, ...] = ()
        self.ending: int | None = None
        """Which of them has returned `End`, by its index."""
        self.is_body = False
        """What they see is a JSON body: one event, for which there is one."""
        self.body: bytes | None = None
        """What they have made of it; None when nobody changed it."""

    def add(
        self, owner: Owner, stream: StreamInterceptor | AsyncStreamInterceptor, ordinal: int
    ) -> None:
        """Append the hook of a member, if it has one and wants events. Raises `TypeError` for
        `needs` that are none.
        """
        base = (
            AsyncStreamInterceptor
            if isinstance(stream, AsyncStreamInterceptor)
            else StreamInterceptor
        )
        if type(stream).on_event is not base.on_event and not (
            isinstance(stream.needs, (tuple, list)) and not stream.needs
        ):
            self.hooks += (EventHook(owner, stream, ordinal),)

    @property
    def is_async(self) -> bool:
        """Whether some hook must be awaited."""
        return any(hook.is_async for hook in self.hooks)

    @property
    def pass_unseen(self) -> bool:
        """Whether every hook lets pass what cannot be shown to it."""
        return all(hook.passes_unseen for hook in self.hooks)

    @property
    def is_selective(self) -> bool:
        """Whether every hook has said which events it needs."""
        return all(hook.need is not None for hook in self.hooks)

    def index_behind(self, ordinal: int) -> int:
        """The index of the first hook behind the member with that ordinal."""
        return next(
            (at for at, hook in enumerate(self.hooks) if hook.ordinal > ordinal), len(self.hooks)
        )

    def find_needed(self, buffer: bytearray, at: int, end: int) -> int:
        """Where something begins that a hook needs to see; `end` if nowhere. One search for each
        need, over all the bytes.
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
        """The hooks for which the rest of an event or body must be searched that is too large to be
        shown and begins with `buffer[at:end]`: so far, none of them needs it. Raises
        `EventTooLarge` when one does and must not miss it.
        """
        watchers = tuple(hook for hook in self.hooks if not hook.passes_unseen)
        for hook in watchers:
            if hook.need is None or hook.need(buffer, at, end) >= 0:
                raise EventTooLarge(max_event_bytes, hook.owner.name)
        return watchers

    def begin_body(self) -> None:
        """What comes is the body of a response that is not a stream: for those that want bodies."""
        self.is_body = True
        self.hooks = tuple(hook for hook in self.hooks if hook.owner.interceptor.wants_json)

    def run_sync(self, events: list[Event], index: int) -> tuple[list[Event], int]:
        """Send events through the hooks from `index` on, up to one that must be awaited; what is
        left, and before which.
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
                if hook.wants(event):
                    try:
                        with hook.owner.timed("on_event"):
                            answer = hook.call(event)
                    except Exception as error:
                        hook.owner.fail("on_event", error)
                following += self.check(at, event, answer)
                if self.ending == at:
                    break
            events = following
        return events, len(self.hooks)

    async def run(self, events: list[Event], index: int) -> list[Event]:
        """Send events through the hooks from `index` on, awaiting those that must be. Raises
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
                following += self.check(index, event, answer)
                if self.ending == index:
                    break
            events = following
            index += 1

    def check(self, index: int, current: Event, result: Any) -> list[Event]:
        """What a hook returned, as a list; or, when it is nonsense and its interceptor says `skip`,
        what the hook was given.
        """
        owner = self.hooks[index].owner
        events = result
        if isinstance(result, End):
            events = result.events
        elif result is None:
            events = ()
        elif isinstance(result, Event):
            events = (result,)
        if not isinstance(events, (list, tuple)) or not all(
            isinstance(item, Event) for item in events
        ):
            owner.fail(
                "on_event",
                owner.wrong("on_event", result, "an Event, a list of Events, End(...) or None"),
            )
            return [current]
        if self.is_body and (len(events) != 1 or events[0] is not current):
            try:
                if len(events) != 1:
                    raise owner.misused(
                        "on_event",
                        f"returned {len(events)} events, expected one: the response is a JSON body, not a stream",
                    )
                if (problem := not_for_a_body(events[0])) is not None:
                    raise owner.misused("on_event", problem)
                events = [BodyEvent.of(events[0])]
                self.body = events[0].raw
            except Exception as error:
                owner.fail("on_event", error)
                return [current]
        for item in events:
            if item is not current:
                item.made_by = owner
        if isinstance(result, End):
            self.ending = index
        return list(events)
