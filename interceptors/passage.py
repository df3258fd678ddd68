"""`Passage`: upstream's events on their way through the hooks of one stream, window by window.

Unchanged events leave as slices of the window; what was changed or added is written to
leases of the `json` pool, which stay on loan until `release_parts()`. A JSON body that arrives as
an event stream is shown whole. Events and bodies above the limit pass in pieces (`large`) if no
hook needs them.

Sans I/O. `process` is synchronous: it stops at an async hook (`awaiting`), `run_async` awaits that
hook, and the next `process` continues. This module must not know members, sockets or what sends the
parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pools import PooledOutput

from .emitting import Emitted
from .errors import InterceptorError
from .event import BodyEvent, Event, JsonEvent
from .event_hooks import EventHooks
from .event_writer import EventWriter
from .framing import EventFramer, FrameKind
from .hooks import QUICK_S
from .large import LargePassage
from .parts import Part, Parts
from .watcher import Watcher
from .wire_event import WireEvent

__all__ = ["Passage"]

_EVENT = FrameKind.EVENT


@dataclass(slots=True)
class _Pause:
    """An event whose next hook must be awaited: `process` has stopped before its end."""

    event: WireEvent | BodyEvent
    size: int
    """Its bytes, from where the next `process` starts."""
    events: list[Event]
    """What the hooks before have made of it; after `run_async`, what leaves."""
    hook: int
    is_over: bool = False


class Passage:
    """Implements the part of `StreamChain` that sees upstream's events."""

    __slots__ = (
        *("_cut", "_framer", "_hooks", "_is_selective", "_large", "_lf_passes", "_max_event_bytes"),
        *("_output", "_pause", "_watcher", "_writer", "counts", "ended", "failure", "queue"),
        "wrote_before_body",
    )

    def __init__(self, output: PooledOutput, max_event_bytes: int) -> None:
        self._hooks = EventHooks()
        self._is_selective = False
        self._framer = EventFramer(max_event_bytes)
        self._writer = EventWriter(output, self._hooks)
        self._output = output
        self._max_event_bytes = max_event_bytes
        self._pause: _Pause | None = None
        self._watcher: Watcher | None = None
        self._large: LargePassage | None = None
        self._lf_passes = True  # the LF of a CRLF that ended an event goes where that event went
        self._cut = False  # an event without its end has left: nothing may follow it
        self.wrote_before_body = False
        """Set by the caller when it has sent something before the stream's first byte."""
        self.queue = Emitted()
        self.counts = self._writer.counts
        self.failure: InterceptorError | None = None
        """Why the stream must end. The parts of the call that set it are valid."""
        self.ended = False
        """A hook has ended the stream; what it added is among the parts."""

    @property
    def awaiting(self) -> bool:
        """Whether `process` has stopped at an async hook: call `run_async`, then `process` with
        what it has not consumed.
        """
        return self._pause is not None and not self._pause.is_over

    def process(
        self, buffer: bytearray, start: int, end: int, *, final: bool = False
    ) -> tuple[list[Part], int]:
        """Run the hooks over every whole event in `buffer[start:end]`.

        Returns the parts to send, valid until `release_parts()` and to be released before the
        buffer changes, and the index of the first byte that is not consumed. The caller presents
        the bytes from there again, followed by what comes next, at the `start` of the next call.
        When an async hook must be awaited (`awaiting`), the buffer must not move until then.

        `final`: nothing comes next. The hooks then see an unfinished event, too, and what replaces
        it is left unfinished: a client drops an event without its empty line, and must not get a
        whole one instead.

        Raises nothing. When a hook or a limit ends the stream, `failure` or `ended` is set, the
        parts are those of the events before it, and nothing may be processed afterwards.
        """
        framer, parts, at = self._framer, Parts(buffer, start, self._output), start
        find_needed = self._hooks.find_needed if self._is_selective else None
        view = memoryview(buffer)
        try:
            if self._pause is not None or self._large is not None:
                at = self._continue(parts, buffer, start, end, final)
            if self._large is None and self.failure is None and not self.ended:
                try:
                    frames = framer.frames(buffer, at, end, final, find_needed)
                    for kind, at, ends, prefix in frames:
                        if kind is _EVENT:
                            stop = self._process_events(parts, at, ends, prefix, view)
                        else:
                            stop = self._process_other(
                                kind, parts, buffer, at, ends[0], prefix, final
                            )
                        if stop is not None:
                            at = stop
                            break
                    else:
                        at = framer.at
                except InterceptorError as error:
                    self.failure = error
            if framer.silent:
                self.counts.passed += framer.silent
                framer.silent = 0
            if framer.cut:
                self._end_in_event()
            if start < end:
                self._lf_passes = parts.unsent < at
            return parts.take(at, view), at
        finally:
            view.release()

    def _continue(self, parts: Parts, buffer: bytearray, at: int, end: int, final: bool) -> int:
        """Finish the event in which the last `process` has stopped; the index after it."""
        try:
            if self._pause is not None:
                return self._settle_pause(self._pause, parts, at)
            assert self._large is not None
            return self._pass_large(self._large, buffer, at, end, final)
        except InterceptorError as error:
            self.failure = error
            return at

    def _process_events(
        self, parts: Parts, at: int, ends: Sequence[int], prefix: int, view: memoryview
    ) -> int | None:
        """Run the hooks over adjacent events. Returns the index at which to stop, or None.

        This is `EventHooks.run_sync`, inline for hooks that return one event: each call that it
        saves is 3 to 5 % of the time of an event that passes.
        """
        if self._watcher is not None or self._hooks.is_async:
            return self._process_singly(parts, at, ends)
        hooks, output, buffer, passed, changed = self._hooks, self._output, parts.buffer, 0, 0
        try:
            for after in ends:
                event = WireEvent(buffer, at, after, True, prefix and at + prefix, view)
                current: Event = event
                result: Any = event
                clock = perf_counter()
                for hook in hooks.hooks:
                    if hook.need is not None and not hook.wants(current):
                        continue
                    owner = hook.owner
                    try:
                        result = hook.call(current)
                    except Exception as error:
                        result = owner.skip("on_event", error, current)
                    finally:
                        now = perf_counter()
                        took_s, clock = now - clock, now
                        owner.seconds += took_s
                        if took_s > QUICK_S:
                            owner.note_slow("on_event", took_s)
                        else:
                            owner.quick += 1
                    if result is not current:
                        if type(result) is not JsonEvent and not isinstance(result, Event):
                            result = hooks.run_after(hook, current, result)
                            break
                        result.made_by = owner
                        current = result
                if result is event:
                    passed += 1
                elif type(result) is JsonEvent or type(result) is Event:
                    try:
                        parts.replace(at, after, result.add_to(output))
                        changed += 1
                    except Exception as error:
                        result.made_by.fail("on_event", error)
                        passed += 1
                elif (stop := self._leave(event, result, parts, at, after)) is not None:
                    return stop
                event._buffer = event._view = None  # its `end_of_life`
                at = after
        except InterceptorError as error:
            self.failure = error
            return at
        finally:
            event._buffer = event._view = None
            self.counts.passed += passed
            self.counts.changed += changed
        return None

    def _process_singly(self, parts: Parts, at: int, ends: Sequence[int]) -> int | None:
        """As `_process_events`, for any hooks, and for a watcher."""
        try:
            for after in ends:
                stop = self._show(WireEvent(parts.buffer, at, after), parts, at, after)
                if stop is not None:
                    return stop
                at = after
        except InterceptorError as error:
            self.failure = error
            return at
        return None

    def _show(self, event: WireEvent | BodyEvent, parts: Parts, at: int, end: int) -> int | None:
        """Run the hooks over `event`, the window's `[at:end]`. Returns the index at which to stop,
        or None. Raises `InterceptorError`.
        """
        if self._watcher is not None:
            self._watcher.arrived(event)
        try:
            result = self._hooks.run_sync([event], 0)
        except BaseException:
            event.end_of_life()
            raise
        return self._leave(event, result, parts, at, end)

    def _process_other(
        self,
        kind: FrameKind,
        parts: Parts,
        buffer: bytearray,
        at: int,
        end: int,
        prefix: int,
        final: bool,
    ) -> int | None:
        """A frame that is not a whole event. Returns the index at which to stop, or None. Raises
        `InterceptorError`.
        """
        hooks = self._hooks
        if kind is FrameKind.LINE_FEED:
            if not self._lf_passes:
                parts.replace_by(at, end, [])
        elif kind is FrameKind.BOM:
            if self.counts.added or self.wrote_before_body:
                parts.replace_by(at, end, [])  # the proxy's bytes lead: it would be part of a line
        elif kind is FrameKind.UNFINISHED:
            return self._show(WireEvent(buffer, at, end, False), parts, at, end)
        elif kind is FrameKind.LARGE:
            hooks.watchers_of_large(buffer, at, end, self._max_event_bytes)
            self._note_large(buffer, at, end)
        elif kind is FrameKind.OVERLONG:
            return self._begin_large(buffer, at, end, final)
        else:
            self._end_in_event()
            may_be_events = bool(hooks.hooks)
            hooks.begin_body()
            if kind is FrameKind.LARGE_BODY:
                return self._begin_large(buffer, at + prefix, end, final, may_be_events)
            return self._show(BodyEvent(bytes(buffer[at + prefix : end])), parts, at, end)
        return None

    def _end_in_event(self) -> None:
        """The stream ends inside an event: refuse events that are emitted later."""
        self._cut = True
        self.queue.refuse()

    def _leave(
        self,
        event: WireEvent | BodyEvent,
        result: Event | tuple[list[Event], int],
        parts: Parts,
        at: int,
        end: int,
    ) -> int | None:
        """Send what the hooks have made of an event and end its life, or pause it before an async
        hook. Returns the index at which to stop, or None.
        """
        events = [result] if isinstance(result, Event) else result[0]
        if not isinstance(result, Event) and result[1] < len(self._hooks.hooks):
            self._pause = _Pause(event, end - at, events, result[1])
            if isinstance(event, WireEvent):
                event.forget_view()
            return at
        try:
            self._settle(event, events, parts, at, end)
        finally:
            event.end_of_life()
        if self._hooks.ending is None:
            return None
        self.ended = True
        return end

    async def run_async(self) -> None:
        """Await the hooks at which `process` has stopped. Raises nothing: see `failure`."""
        pause = self._pause
        assert pause is not None
        try:
            pause.events = await self._hooks.run(pause.events, pause.hook)
        except InterceptorError as error:
            self.failure = error
            pause.event.end_of_life()
        pause.is_over = True

    def _settle_pause(self, pause: _Pause, parts: Parts, at: int) -> int:
        """Send what became of the event that was paused; the index after it."""
        self._pause = None
        try:
            self._settle(pause.event, pause.events, parts, at, at + pause.size)
        finally:
            pause.event.end_of_life()
        self.ended = self._hooks.ending is not None
        return at + pause.size

    # --- what leaves

    def _settle(
        self, event: WireEvent | BodyEvent, events: list[Event], parts: Parts, at: int, end: int
    ) -> None:
        """Send `events` in place of `event`, the window's `[at:end]`."""
        if self._watcher is not None:
            self._watcher.left(events)
        if isinstance(event, BodyEvent):
            first = end - len(event.raw)  # the white space before it leaves with it, unchanged
            event.end_of_life()
            body = self._hooks.body
            self._writer.count_body()
            if body is not None:
                parts.replace(first, end, self._writer.output.add(body))
            return
        if len(events) == 1 and events[0] is event:
            self.counts.passed += 1
            return
        parts.close()
        pieces = self._writer.write_instead(event, events)
        if pieces is None:
            return
        parts.replace_by(at, end, pieces)
        if parts.is_empty:
            self._framer.first_was_dropped()

    def release_parts(self) -> None:
        """The parts were sent or copied: return their leases."""
        self._writer.output.close()

    # --- events above the limit

    def _begin_large(
        self, buffer: bytearray, at: int, end: int, final: bool, may_be_events: bool = False
    ) -> int:
        """`buffer[at:end]` begins an event or body above the limit. Returns the index up to which
        it leaves now. Raises `EventTooLarge` when a hook needs it.
        """
        watchers = self._hooks.watchers_of_large(buffer, at, end, self._max_event_bytes)
        self._large = LargePassage(
            watchers,
            self._max_event_bytes,
            is_body=self._hooks.is_body,
            may_be_events=may_be_events,
        )
        self._note_large(buffer, at, end)
        return self._large.take(buffer, at, end, final=final)[0]

    def _note_large(self, buffer: bytearray, at: int, end: int) -> None:
        """No hook sees the event that `buffer[at:end]` is, or begins."""
        self.counts.passed += 1
        if self._watcher is not None:
            event = WireEvent(buffer, at, end, False)
            self._watcher.arrived(event)
            self._watcher.left([event])
            event.end_of_life()

    def _pass_large(
        self, large: LargePassage, buffer: bytearray, at: int, end: int, final: bool
    ) -> int:
        """Pass on what has come of the large event; the index after it."""
        at, is_over = large.take(buffer, at, end, final=final)
        if is_over:
            self._large = None
            self._framer.continue_after_large(buffer, at, end)
        elif final:
            self._end_in_event()
        return at
