"""`StreamChain`: the interceptors of one stream, from `on_start` to `on_end`.

`Passage` runs upstream's events through the hooks; this module adds the members' lifecycle and the
events that they emit. It must not know windows, sockets or what sends the parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pools import PooledOutput

from .api import Emit, Outcome
from .errors import InterceptorError
from .event import BodyEvent, Event
from .event_writer import EventCounts
from .hooks import Owner
from .members import Member, Members
from .message import ResponseHead
from .parts import Part, Parts
from .passage import Passage
from .watcher import Watcher

__all__ = ["EventCounts", "Part", "StreamChain"]


class StreamChain(Passage):
    """The hooks of one stream. Not reusable."""

    __slots__ = ("_closed", "_members")

    def __init__(self, output: PooledOutput, max_event_bytes: int) -> None:
        super().__init__(output, max_event_bytes)
        self._members = Members()
        self._closed = False

    # --- members

    def emitter(self, owner: Owner) -> Emit:
        """`emit` for the member of that owner that is added next."""
        self._members.ordinal += 1
        return self.queue.emitter(owner, self._members.ordinal)

    def add(self, owner: Owner, stream: Member) -> None:
        """Append a member, before the stream starts. Raises `TypeError` for invalid `needs`."""
        self._hooks.add(owner, stream, self._members.ordinal)
        self._members.add(owner, stream)
        self._is_selective = self._hooks.is_selective

    @property
    def members(self) -> Sequence[tuple[Owner, Member]]:
        """The interceptors that take part, each with its object for this stream."""
        return self._members.all

    def watch(self, watcher: Watcher | None) -> None:
        """Report events between the hooks to `watcher` from now on; None: stop. May be called
        at any time. A call of an async hook that has begun is not reported.
        """
        self._watcher = watcher
        for hook in self._hooks.hooks:
            hook.watch(watcher)
        self._is_selective = self._hooks.is_selective and watcher is None

    def pass_unseen(self) -> bool:
        """Whether every hook accepts a stream that it cannot see; then no hook is called for
        events. Call it before `start`.
        """
        if not self._hooks.pass_unseen:
            return False
        self._hooks.clear()
        self._members.skip_complete()
        return True

    async def start(self, head: ResponseHead) -> None:
        """Run `on_start`. Raises `InterceptorError`."""
        await self._members.start(head)

    async def aclose(self, outcome: Outcome) -> None:
        """Run every `on_end`, once; further calls do nothing. Logs an exception and runs the
        others.

        Shielded from cancellation; each async hook has its timeout. Does not block without async
        hooks.
        """
        if self._closed:
            return
        self._closed = True
        self.queue.on_emit = None
        self._writer.output.close()
        if self._pause is not None:
            self._pause.event.end_of_life()
        self.queue.refuse()
        await self._members.end(outcome)

    # --- JSON responses

    async def process_body(self, body: bytearray | memoryview) -> bytes | None:
        """Show a JSON body to the hooks. Returns what replaces it, or None. Raises
        `InterceptorError`.
        """
        event = BodyEvent(body)
        self._hooks.is_body = True
        if self._watcher is not None:
            self._watcher.arrived(event)
        try:
            events = await self._hooks.run([event], 0)
            if self._watcher is not None:
                self._watcher.left(events)
        finally:
            event.end_of_life()
        self._writer.count_body()
        return self._hooks.body

    def begin_large_body(self, buffer: bytearray, size: int) -> None:
        """`buffer[:size]` begins a JSON body above the limit; `process` is next, with all of it.
        Raises `EventTooLarge` when a hook needs it.
        """
        self._hooks.is_body = True
        self._begin_large(buffer, 0, size, final=False)

    # --- state

    @property
    def at_boundary(self) -> bool:
        """Whether what has left ends with a whole event, so that an error event can follow."""
        return self._large is None

    @property
    def between_events(self) -> bool:
        """Whether an event may be added here: not inside an event, nor before or in a JSON body."""
        return self._large is None and not self._framer.is_body

    @property
    def ended_by(self) -> str | None:
        """The name of the interceptor that has ended the stream."""
        ending = self._hooks.ending
        return None if ending is None else self._hooks.hooks[ending].owner.name

    @property
    def has_members(self) -> bool:
        """Whether any interceptor takes part."""
        return bool(self._members.all)

    @property
    def wants_events(self) -> bool:
        """Whether any hook sees events. If none does, bytes may pass unframed."""
        return bool(self._hooks.hooks)

    @property
    def is_async(self) -> bool:
        """Whether some hook must be awaited. The window must not move meanwhile."""
        return self._hooks.is_async

    @property
    def emitted(self) -> bool:
        """Whether an emitted event can be sent now: call `take_emitted`."""
        return bool(self.queue.events) and not self._cut and self.between_events

    @property
    def completes(self) -> bool:
        """Whether some `on_complete` must run at the end of upstream's stream: call `complete`."""
        return self._members.has_completers and self.queue.accepts and not self._cut

    # --- events that interceptors add

    async def take_emitted(self) -> list[Part]:
        """The parts of one emitted event, after the hooks that follow its member. Raises nothing,
        as `process`.
        """
        ordinal, event = self.queue.take()
        parts = Parts(bytearray(), 0, self._writer.output)
        try:
            await self._add([event], ordinal, parts)
        except InterceptorError as error:
            self.failure = error
        return parts.take(0, memoryview(b""))

    async def complete(self) -> list[Part]:
        """Run every `on_complete`, once. Returns the parts of the events that they add, after the
        hooks that follow. Raises nothing, as `process`.
        """
        parts = Parts(bytearray(), 0, self._writer.output)
        try:
            while self._members.has_completers and not self.ended:
                events, ordinal = await self._members.complete_next()
                await self._add(events, ordinal, parts)
        except InterceptorError as error:
            self.failure = error
        return parts.take(0, memoryview(b""))

    async def _add(self, events: list[Event], ordinal: int, parts: Parts) -> None:
        """Add events of the member with that ordinal. Raises `InterceptorError`."""
        if not events:
            return
        if self._watcher is not None:
            self._watcher.added(events)
        events = await self._hooks.run(events, self._hooks.index_after(ordinal))
        if self._watcher is not None:
            self._watcher.left(events)
        for item in events:
            start = self._writer.write(item)
            if start >= 0:
                parts.replace(0, 0, start)
                self.counts.added += 1
        self.ended = self._hooks.ending is not None
