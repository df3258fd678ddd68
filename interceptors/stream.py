"""The chain of one stream: it frames events in the window it is given, runs the hooks over them,
and answers with *parts*, the bytes to send in order. Events that nobody changed leave as slices of
the window, adjacent ones as one slice; what was changed or added is written into leases of the
`json` pool, which stay on loan until `release_parts()`.

What comes need not be events: a stream whose first byte after a BOM and white space is `{` or `[`,
and that has no line of a field, is one JSON body, shown to hooks whole. Events and bodies above the
limit pass in pieces if no hook needs them (`large`).

Sans I/O, and synchronous but for what async hooks need: `process` stops before one, `awaiting` says
so, `run_async` awaits it, and `process` goes on. It knows nothing of sockets, of chunked bodies, or
of who sends the parts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from time import perf_counter
from typing import Any

import trio

from pools import PooledOutput

from .api import AsyncStreamInterceptor, Emit, Outcome, StreamInterceptor
from .errors import InterceptorError, StreamOver
from .event import BodyEvent, Event, JsonEvent
from .event_hooks import EventHooks
from .hooks import HOLD_S, Owner
from .large import LargePassage
from .message import ResponseHead
from .sse import (
    BOM,
    FIELD_LINE_BYTES,
    find_block_end,
    find_field_line,
    find_silence,
    first_of_body,
    is_silent,
)
from .wire_event import WireEvent

__all__ = ["MAX_EMITTED", "EventCounts", "Part", "StreamChain"]

Part = memoryview | bytes

MAX_EMITTED = 16
"""Events of its own that a stream keeps for a client that is slow; then `emit` waits."""

_SEARCHED_AGAIN = (
    4096  # so many bytes of an unfinished block are sooner searched once more than treated apart
)
_Piece = tuple[bytearray, int, int]
_LF = 0x0A
_CR = 0x0D
_SPACE = re.compile(rb"[ \t]")
_SILENT = b":\r\n"  # what a comment or an empty line begins with
_COLON = 0x3A  # a line end, a comment, or something odd: fields begin with letters, and those are greater


class _Stage(Enum):
    """What the next bytes of a stream are."""

    BEGINNING = auto()
    """Only a BOM and white space have come: it may turn out to be a JSON body."""
    EVENTS = auto()
    BODY = auto()
    """A JSON body, which is shown when it is whole."""
    LARGE = auto()
    """The rest of an event or a body that is too large to be shown."""


_BEGINNING, _EVENTS, _BODY, _LARGE = _Stage.BEGINNING, _Stage.EVENTS, _Stage.BODY, _Stage.LARGE


@dataclass(slots=True)
class EventCounts:
    """What became of a stream's events. A comment counts as passed."""

    passed: int = 0
    changed: int = 0
    dropped: int = 0
    added: int = 0

    @property
    def total(self) -> int:
        """Events that came from upstream."""
        return self.passed + self.changed + self.dropped


def _views(pieces: list[_Piece]) -> list[Part]:
    """Taken when all is written, for a buffer that is seen cannot grow."""
    return [memoryview(source)[first:last] for source, first, last in pieces]


class StreamChain:
    """The hooks of one stream. Not reusable."""

    def __init__(self, output: PooledOutput, max_event_bytes: int) -> None:
        self._members: list[tuple[Owner, StreamInterceptor | AsyncStreamInterceptor]] = []
        self._hooks = EventHooks()
        self._completers: list[tuple[Owner, StreamInterceptor | AsyncStreamInterceptor, int]] = []
        self._selective = False  # every hook has said which events it needs
        self._swift = False  # no hook must be awaited
        self._output = output
        self._max_event_bytes = max_event_bytes
        self._seen = 0  # bytes of the unfinished block that were searched in vain
        self._first = True  # nothing has left yet, so that the client would take a BOM for one
        # The last block ended with a CR at the window's end: an LF that comes next goes where that
        # block went.
        self._pass_lf: bool | None = None
        self._closed = False
        self._stage = _BEGINNING
        self._lead = 0  # white space that waits before a JSON body
        self._large: LargePassage | None = None
        self._event: WireEvent | BodyEvent | None = None  # whose hooks are to be awaited, and
        self._awaited: tuple[list[Event], int] | None = (
            None  # what is left of it, before which hook
        )
        self._answer: list[Event] | None = None  # what came of it
        self._emitted: deque[tuple[int, Event]] = deque()
        self._cut = False  # an event without its empty line has left: nothing may follow it
        self._room: trio.Semaphore | None = None
        self._ordinal = 0
        self.on_emit: Callable[[], None] | None = None
        """Called, synchronously, when `emitted` turns true."""
        self.takes_emitted = True
        """Cleared by whoever cannot send what is emitted; `emit` then raises `StreamOver`."""
        self.wrote_before_body = False
        """Set by whoever has sent something before the first byte from upstream."""
        self.counts = EventCounts()
        self.failure: InterceptorError | None = None
        """Why the stream must end. Set by `process` and its like, with the parts before it still
        valid.
        """
        self.ended = False
        """A hook has ended the stream, and what it wanted to leave is among the parts."""

    @property
    def ended_by(self) -> str | None:
        """The interceptor that has ended the stream."""
        ending = self._hooks.ending
        return None if ending is None else self._hooks.hooks[ending].owner.name

    def emitter(self, owner: Owner) -> Emit:
        """`emit` for the member that is opened next, of that owner."""
        self._ordinal += 1
        ordinal = self._ordinal

        async def emit(event: Event) -> None:
            if not isinstance(event, Event):
                raise TypeError(f"emit() takes an Event, not {type(event).__name__}")
            own = event.detach()
            own.made_by = owner
            if self._room is None:
                self._room = trio.Semaphore(MAX_EMITTED)
            if self.takes_emitted:
                await self._room.acquire()
            if not self.takes_emitted:
                raise StreamOver
            self._emitted.append((ordinal, own))
            if self.on_emit is not None:
                self.on_emit()

        return emit

    def add(self, owner: Owner, stream: StreamInterceptor | AsyncStreamInterceptor) -> None:
        """Append a member, before the stream starts. Raises `TypeError` for `needs` that are none."""
        self._hooks.add(owner, stream, self._ordinal)
        base = (
            AsyncStreamInterceptor
            if isinstance(stream, AsyncStreamInterceptor)
            else StreamInterceptor
        )
        if type(stream).on_complete is not base.on_complete:
            self._completers.append((owner, stream, self._ordinal))
        self._members.append((owner, stream))
        self._selective = self._hooks.is_selective
        self._swift = not self._hooks.is_async

    @property
    def members(self) -> Sequence[tuple[Owner, StreamInterceptor | AsyncStreamInterceptor]]:
        """The interceptors that take part, each with its object for this stream."""
        return self._members

    def watch(
        self, owner: Owner, note: Callable[[str, Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Call what `note` makes of the `on_event` of an owner instead of it. For tests of
        interceptors.
        """
        for hook in self._hooks.hooks:
            if hook.owner is owner:
                hook.call = note("on_event", hook.call)

    @property
    def has_members(self) -> bool:
        """Whether any interceptor takes part."""
        return bool(self._members)

    @property
    def wants_events(self) -> bool:
        """Whether any hook must see events. If none does, bytes may pass unframed."""
        return bool(self._hooks.hooks)

    def pass_unseen(self) -> bool:
        """Before `start`: the stream cannot be shown to hooks. Whether all of them let it pass;
        then none is called for events.
        """
        if not self._hooks.pass_unseen:
            return False
        self._hooks.hooks = ()
        self._completers.clear()
        return True

    @property
    def is_async(self) -> bool:
        """Whether some hook must be awaited: then the window must stay where it is until that is
        done.
        """
        return self._hooks.is_async

    @property
    def awaiting(self) -> bool:
        """Whether `process` has stopped before an async hook: `run_async` is next, then `process`
        with what it has not consumed.
        """
        return self._awaited is not None

    @property
    def at_boundary(self) -> bool:
        """Whether what has left ends with a whole event, so that an error event can follow."""
        return self._stage is not _LARGE

    @property
    def between_events(self) -> bool:
        """Whether something may leave between two parts of the stream: not inside an event, nor
        before or inside a JSON body.
        """
        return self._stage is _EVENTS or self._stage is _BEGINNING

    @property
    def emitted(self) -> bool:
        """Whether somebody has added events: `take_emitted` is next."""
        return bool(self._emitted) and not self._cut and self.between_events

    @property
    def completes(self) -> bool:
        """Whether somebody may have something to say at the end of upstream's stream: `complete` is
        next.
        """
        return bool(self._completers) and self.takes_emitted and not self._cut

    async def start(self, head: ResponseHead) -> None:
        """Run `on_start`. Raises `InterceptorError`."""
        for owner, stream in self._members:
            try:
                if isinstance(stream, AsyncStreamInterceptor):
                    await owner.call("on_start", stream.on_start(head))
                else:
                    with owner.timed("on_start"):
                        stream.on_start(head)
            except Exception as error:
                problem = owner.failed("on_start", error)
                if problem is not None:
                    raise problem from error

    async def aclose(self, outcome: Outcome) -> None:
        """Run every `on_end`, once; further calls do nothing. An exception in one is logged and
        stops none of the others.

        Not cancelled by what surrounds it; each async hook has its time. Without async hooks it
        does not block.
        """
        if self._closed:
            return
        self._closed = True
        self.on_emit = None
        self._output.close()
        if self._event is not None:
            self._event.end_of_life()
        self._refuse_emitted()
        for owner, stream in self._members:
            try:
                if isinstance(stream, AsyncStreamInterceptor):
                    if type(stream).on_end is not AsyncStreamInterceptor.on_end:
                        with trio.CancelScope(shield=True):
                            await owner.call("on_end", stream.on_end(outcome))
                else:
                    with owner.timed("on_end"):
                        stream.on_end(outcome)
            except Exception as error:
                owner.failed("on_end", error)

    def _refuse_emitted(self) -> None:
        self.takes_emitted = False
        if self._room is not None:
            for _ in range(self._room.statistics().tasks_waiting):
                self._room.release()

    def process(
        self, buffer: bytearray, start: int, end: int, *, final: bool = False
    ) -> tuple[list[Part], int]:
        """Run the hooks over every whole event in `buffer[start:end]`.

        Returns the parts to send and the index of the first byte of an unfinished block, which the
        caller must present again, followed by what comes next, at the `start` of the next call.
        `final` says that nothing comes next: an unfinished block is then shown to the hooks, too,
        and what replaces it is left unfinished like it (a reader drops an event without its empty
        line, and must not get one that is whole instead). Parts are valid until `release_parts()`,
        and must be released before the buffer changes. Raises nothing: when a hook or a limit ends
        the stream, `failure` or `ended` says so, and the parts are those of the events before it;
        nothing may be processed after that. When it has stopped for an async hook (`awaiting`), the
        buffer must not move until that has run.

        Of a JSON body, and of the end of a large event, more than the last block may have to be
        presented again.
        """
        pieces: list[_Piece] = []
        at = run = (
            start  # run: where the bytes begin that nobody changed and that are not a piece yet
        )
        find, view = buffer.find, memoryview(buffer)
        if self._pass_lf is not None and at < end:
            if buffer[at] == _LF:
                at += 1
                if not self._pass_lf:
                    run = at
            self._pass_lf = None
        if self._stage is not _EVENTS:
            try:
                run, at, end = self._process_apart(buffer, run, at, end, final, pieces)
            except InterceptorError as error:
                self.failure = error
            if self.failure is not None or self._stage is _BODY or self._stage is _LARGE:
                view.release()
                if at > run:
                    pieces.append((buffer, run, at))
                return _views(pieces), at
        plain = buffer.find(b"\r", at, end) < 0
        scan_from = at + self._seen
        # Nothing that a hook needs begins before; known only to those that have all said what they
        # need.
        clear_to = at if self._selective else end
        try:
            while at < end:
                if self._first:
                    # A BOM belongs to the stream, not to its first event: it stays where it is,
                    # whatever becomes of that.
                    if buffer.startswith(BOM, at, end):
                        self._first = False
                        at = scan_from = at + len(BOM)
                        if self.counts.added or self.wrote_before_body:
                            run = (
                                at  # something was said before it: now it would be part of an event
                            )
                        continue
                    if not final and BOM.startswith(bytes(buffer[at:end])):
                        break
                if (
                    buffer[at] in _SILENT
                    and scan_from - at <= _SEARCHED_AGAIN
                    and self._answer is None
                ):
                    behind, blocks = find_silence(buffer, at, end, self._max_event_bytes)
                    if behind > at:
                        self._first = False
                        self.counts.passed += blocks
                        if behind == end and buffer[end - 1] == _CR:
                            self._pass_lf = True
                        at = scan_from = behind
                        continue
                if plain and scan_from - at <= _SEARCHED_AGAIN and self._answer is None:
                    if self._selective:
                        if at >= clear_to:
                            clear_to = self._hooks.find_needed(buffer, at, end)
                        behind = self._skip(buffer, at, clear_to)
                        if behind > at:
                            self._first = False
                            at = scan_from = behind
                            continue
                    if self._swift and not self._first:
                        run, behind = self._usual(
                            buffer, run, at, end, min(clear_to + 1, end), view, pieces
                        )
                        moved, at = behind > at, behind
                        if self.failure is not None:
                            break
                        self.ended = self._hooks.ending is not None
                        if self.ended:
                            break
                        if moved:
                            scan_from = at
                            continue
                if plain and buffer[at] != _LF:
                    # One search for one byte finds the end of an event of one line, which is the
                    # usual one.
                    line_end = find(b"\n", at if scan_from == at else scan_from - 1, end)
                    behind = line_end + 2
                    whole = 0 <= line_end < end - 1
                    if whole and buffer[line_end + 1] != _LF:
                        behind = find(b"\n\n", line_end + 1, end) + 2
                        whole = behind > 1
                else:
                    behind = find_block_end(buffer, at, end, scan_from)
                    whole = behind >= 0
                if not whole:
                    if not final:
                        break
                    behind = end
                if behind - at > self._max_event_bytes and self._answer is None:
                    self._hooks.watchers_of_large(buffer, at, behind, self._max_event_bytes)
                    self.counts.passed += 1
                    passed = True
                elif buffer[at] <= _COLON and is_silent(buffer, at, behind):
                    self.counts.passed += 1
                    passed = True
                else:
                    event = (
                        WireEvent(buffer, at, behind, whole, view=view)
                        if self._answer is None
                        else self._event
                    )
                    assert isinstance(event, WireEvent)
                    passed = self._block(event, buffer, run, at, behind, pieces)
                if self._awaited is not None:
                    self._seen = 0
                    break
                if not passed:
                    run = behind
                if passed or pieces:
                    self._first = False
                if not whole:
                    self._cut = True
                    self._refuse_emitted()
                if not plain and behind == end and buffer[end - 1] == _CR:
                    self._pass_lf = passed
                at = scan_from = behind
                if self._hooks.ending is not None:
                    self.ended = True
                    break
            if self._awaited is None and not self.ended and self.failure is None:
                self._seen = end - at
                if self._seen > self._max_event_bytes:
                    self._first = False
                    at = self._begin_large(buffer, at, end, final=False)
        except InterceptorError as error:
            self.failure = error
        finally:
            view.release()
        if at > run:
            pieces.append((buffer, run, at))
        return _views(pieces), at

    def _process_apart(
        self, buffer: bytearray, run: int, at: int, end: int, final: bool, pieces: list[_Piece]
    ) -> tuple[int, int, int]:
        """What `process` does with anything but events: `run` and `at` after it, and up to where
        events may follow.

        Raises `InterceptorError`.
        """
        if self._stage is _BEGINNING:
            run, at, end = self._begin(buffer, run, at, end, final)
        if self._stage is _BODY:
            return self._collect_body(buffer, run, at, end, final, pieces)
        if self._stage is _LARGE:
            assert self._large is not None
            at, over = self._large.take(buffer, at, end, final=final)
            if over:
                self._stage, self._large = _EVENTS, None
                if at == end and buffer[end - 1] == _CR:
                    self._pass_lf = True
            elif final:
                self._cut = True
                self._refuse_emitted()
        return run, at, end

    def _begin(
        self, buffer: bytearray, run: int, at: int, end: int, final: bool
    ) -> tuple[int, int, int]:
        """Find out whether a JSON body comes or events, as soon as the first byte that is not white
        space is there.
        """
        start = at
        if self._first:
            if buffer.startswith(BOM, at, end):
                start += len(BOM)
            elif not final and BOM.startswith(bytes(buffer[at:end])):
                return run, at, end
        first, is_body = first_of_body(buffer, start + self._lead, end)
        if first < 0:
            # Empty lines pass. White space in a line waits: before a JSON body it is no event.
            space = None if final else _SPACE.search(buffer, start, end)
            if space is None or end - space.start() > self._max_event_bytes:
                return run, at, end
            self._lead = (
                end - space.start()
            )  # not searched again: white space may come byte by byte
            return run, at, space.start()
        if not is_body:
            self._stage = _EVENTS
            return run, at, end
        if start > at and (self.counts.added or self.wrote_before_body):
            run = start  # as before an event: something has left before the BOM
        self._first = False
        self._stage = _BODY
        self._lead = first - start
        return run, start, end

    def _collect_body(
        self, buffer: bytearray, run: int, at: int, end: int, final: bool, pieces: list[_Piece]
    ) -> tuple[int, int, int]:
        """A JSON body, `buffer[at:end]` and what comes next: shown when it is whole. Raises
        `InterceptorError`.
        """
        hooks, first = self._hooks, at + self._lead
        if self._answer is None:
            # A client finds events also after a line that begins like JSON, and so must the hooks.
            if find_field_line(buffer, max(first, at + self._seen - FIELD_LINE_BYTES), end) >= 0:
                self._stage, self._seen = _EVENTS, 0
                return run, at, end
            self._seen = end - at
            is_large = end - first > self._max_event_bytes
            if not final and not is_large:
                return run, at, end
            self._seen = 0
            self._cut = True
            self._refuse_emitted()
            may_be_events = bool(hooks.hooks)
            hooks.begin_body()
            if is_large:
                return (
                    run,
                    self._begin_large(buffer, first, end, final=final, may_be_events=may_be_events),
                    end,
                )
            event = BodyEvent(bytes(buffer[first:end]))
            events, later = hooks.run_sync([event], 0)
            if later < len(hooks.hooks):
                self._awaited = events, later
                self._event = event
                return run, at, end
            event.end_of_life()
        elif self._event is not None:
            self._answer = None
            self._event.end_of_life()
        self.ended = hooks.ending is not None
        if hooks.body is None:
            self.counts.passed += 1
            return run, end, end
        self.counts.changed += 1
        if first > run:
            pieces.append((buffer, run, first))
        start = self._output.add(hooks.body)
        pieces.append((self._output.buffer, start, self._output.used))
        return end, end, end

    def _begin_large(
        self, buffer: bytearray, at: int, end: int, *, final: bool, may_be_events: bool = False
    ) -> int:
        """`buffer[at:end]` begins an event or body that is too large to be shown: the index up to
        which it leaves now.

        Raises `EventTooLarge` when a hook needs it.
        """
        watchers = self._hooks.watchers_of_large(buffer, at, end, self._max_event_bytes)
        self._stage = _LARGE
        self._large = LargePassage(
            watchers,
            self._max_event_bytes,
            is_body=self._hooks.is_body,
            may_be_events=may_be_events,
        )
        self._seen = 0
        self.counts.passed += 1
        return self._large.take(buffer, at, end, final=final)[0]

    async def run_async(self) -> None:
        """Await the hooks that `process` has stopped before, and run those behind them. Raises
        nothing: `failure` tells.
        """
        assert self._awaited is not None
        assert self._event is not None
        try:
            self._answer = await self._hooks.run(*self._awaited)
        except InterceptorError as error:
            self.failure = error
            self._event.end_of_life()
        self._awaited = None

    async def take_emitted(self) -> list[Part]:
        """The parts of one event that somebody has added, when the hooks behind that one have seen
        it. Errors as `process`.
        """
        ordinal, event = self._emitted.popleft()
        if self._room is not None:
            self._room.release()
        pieces: list[_Piece] = []
        try:
            await self._add([event], ordinal, pieces)
        except InterceptorError as error:
            self.failure = error
        return _views(pieces)

    async def complete(self) -> list[Part]:
        """Run every `on_complete`, once: the parts of what is added, when the hooks behind have
        seen it. Errors as `process`.
        """
        pieces: list[_Piece] = []
        try:
            while self._completers and not self.ended:
                owner, stream, ordinal = self._completers.pop(0)
                await self._add(await self._completed(owner, stream), ordinal, pieces)
        except InterceptorError as error:
            self.failure = error
        return _views(pieces)

    async def _completed(
        self, owner: Owner, stream: StreamInterceptor | AsyncStreamInterceptor
    ) -> list[Event]:
        """What one `on_complete` returns. Raises `InterceptorError`."""
        try:
            if isinstance(stream, AsyncStreamInterceptor):
                result: Any = await owner.call("on_complete", stream.on_complete())
            else:
                with owner.timed("on_complete"):
                    result = stream.on_complete()
            events = [] if result is None else [result] if isinstance(result, Event) else result
            if not isinstance(events, (list, tuple)) or not all(
                isinstance(item, Event) for item in events
            ):
                raise owner.wrong("on_complete", result, "an Event, a list of Events or None")
        except Exception as error:
            owner.fail("on_complete", error)
            return []
        for item in events:
            item.made_by = owner
        return list(events)

    async def _add(self, events: list[Event], ordinal: int, pieces: list[_Piece]) -> None:
        """Write events of the member with that ordinal, when the hooks behind it have seen them.
        Raises `InterceptorError`.
        """
        index = self._hooks.index_behind(ordinal)
        output = self._output
        for item in await self._hooks.run(events, index):
            start = self._write_one(item)
            if start >= 0:
                pieces.append((output.buffer, start, output.used))
                self.counts.added += 1
        self.ended = self._hooks.ending is not None

    def begin_large_body(self, buffer: bytearray, size: int) -> None:
        """`buffer[:size]` begins a JSON body that is too large to be shown. `process` is next, with
        all of the body.

        Raises `EventTooLarge` when a hook needs it.
        """
        self._hooks.is_body = True
        self._begin_large(buffer, 0, size, final=False)

    async def process_body(self, body: bytearray | memoryview) -> bytes | None:
        """Show a JSON body to the hooks. What replaces it, or None when nobody changed it. Raises
        `InterceptorError`.
        """
        event = BodyEvent(body)
        self._hooks.is_body = True
        try:
            await self._hooks.run([event], 0)
        finally:
            event.end_of_life()
        if self._hooks.body is None:
            self.counts.passed += 1
        else:
            self.counts.changed += 1
        return self._hooks.body

    def release_parts(self) -> None:
        """The parts have left (or were copied): give back what they were written in."""
        self._output.close()

    def _skip(self, buffer: bytearray, at: int, clear_to: int) -> int:
        """The index behind the blocks from `at` on that end before `clear_to`, so that no hook
        needs to see them; or `at`.

        Only for bytes without CR. Where lines are empty one after another it stops, so that blocks
        are counted as ever.
        """
        behind = buffer.rfind(b"\n\n", at, min(clear_to, at + self._max_event_bytes)) + 2
        if behind < 2 or buffer[at] == _LF:
            return at
        empty = buffer.find(b"\n\n\n", at, behind + 1)
        if empty >= 0:
            behind = empty + 2
        self.counts.passed += buffer.count(b"\n\n", at, behind)
        return behind

    def _usual(
        self,
        buffer: bytearray,
        run: int,
        at: int,
        end: int,
        until: int,
        view: memoryview,
        pieces: list[_Piece],
    ) -> tuple[int, int]:
        """Whole blocks of fields that begin before `until`, of bytes without CR, up to the first
        that is anything else; `run` and `at` behind them.

        What `process` does for any block, and `EventHooks`, for nearly every block there is, and in
        two thirds of the time: hooks that are not awaited answer with the event, or with another in
        its place. Raises nothing: `failure` tells.
        """
        find, startswith = buffer.find, buffer.startswith
        hooks, output, max_event_bytes = self._hooks.hooks, self._output, self._max_event_bytes
        passed = changed = 0
        written, opened = output.buffer, -1  # the piece that is being written, and where it begins
        event: WireEvent | None = None
        try:
            while at < until:
                # One search for one byte finds the end of an event of one line.
                line_end = find(b"\n", at, end)
                behind = line_end + 2
                if not 1 < behind <= end:
                    break
                data_at = 0
                if buffer[line_end + 1] != _LF:
                    behind = find(b"\n\n", line_end + 1, end) + 2
                    if behind == 1:
                        break
                elif startswith(b"data: ", at):
                    data_at = at + 6
                if (not data_at and buffer[at] <= _COLON) or behind - at > max_event_bytes:
                    break
                event = WireEvent(buffer, at, behind, True, data_at, view)
                current: Event = event
                clock = perf_counter()
                for hook in hooks:
                    if (
                        hook.need is not None
                        and isinstance(current, WireEvent)
                        and not current.holds(hook.need)
                    ):
                        continue
                    owner = hook.owner
                    try:
                        result: Any = hook.call(current)
                    except Exception as error:
                        owner.fail("on_event", error)
                        continue  # skip: the event passes this hook as it came
                    finally:
                        now = perf_counter()
                        took_s, clock = now - clock, now
                        owner.seconds += took_s
                        if took_s > HOLD_S:
                            owner.warn("on_event", took_s)
                    if result is not current:
                        if type(result) is not JsonEvent and not isinstance(result, Event):
                            break
                        result.made_by = owner
                        current = result
                else:
                    result = current
                if result is event:
                    passed += 1
                elif type(result) is JsonEvent or type(result) is Event:
                    try:
                        start = result.add_to(output)
                    except Exception as error:
                        result.made_by.fail("on_event", error)
                        passed += 1
                    else:
                        changed += 1
                        if at > run or start == 0:
                            # Something lies between it and what was written before.
                            if opened >= 0:
                                pieces.append((written, opened, start or len(written)))
                            if at > run:
                                pieces.append((buffer, run, at))
                            written, opened = output.buffer, start
                        elif opened < 0:
                            opened = start
                        run = behind
                else:
                    if opened >= 0:
                        pieces.append((written, opened, len(written)))
                        opened = -1
                    events = [current]
                    if result is not current:
                        index = hooks.index(hook)
                        events, _ = self._hooks.run_sync(
                            self._hooks.check(index, current, result), index + 1
                        )
                    if not self._settle(event, events, buffer, run, at, pieces):
                        run = behind
                    at = behind
                    break
                event.end_of_life()
                at = behind
        except InterceptorError as error:
            self.failure = error
        finally:
            if event is not None:
                event.end_of_life()
        if opened >= 0:
            pieces.append((written, opened, len(written)))
        self.counts.passed += passed
        self.counts.changed += changed
        return run, at

    def _block(
        self,
        event: WireEvent,
        buffer: bytearray,
        run: int,
        at: int,
        behind: int,
        pieces: list[_Piece],
    ) -> bool:
        """One event, `buffer[at:behind]`. True if it leaves as it came.

        Otherwise the untouched run before it and its replacement become pieces; or it waits for an
        async hook.
        """
        try:
            events, self._answer = self._answer, None
            if events is None:
                events, later = self._hooks.run_sync([event], 0)
                if later < len(self._hooks.hooks):
                    self._awaited = events, later
                    self._event = event
                    event.forget_view()
                    return False
            return self._settle(event, events, buffer, run, at, pieces)
        finally:
            if self._awaited is None:
                event.end_of_life()

    def _settle(
        self,
        event: WireEvent,
        events: list[Event],
        buffer: bytearray,
        run: int,
        at: int,
        pieces: list[_Piece],
    ) -> bool:
        """These leave for an event that began at `at`. True if that is itself, as it came."""
        replacement = (
            None if len(events) == 1 and events[0] is event else self._write(event, events)
        )
        if replacement is None:
            self.counts.passed += 1
            return True
        if at > run:
            pieces.append((buffer, run, at))
        for piece in replacement:
            if pieces and pieces[-1][2] == piece[1] and pieces[-1][0] is piece[0]:
                pieces[-1] = (piece[0], pieces[-1][1], piece[2])  # right behind the one before
            else:
                pieces.append(piece)
        return False

    def _write(self, event: WireEvent, events: list[Event]) -> list[_Piece] | None:
        """Write what leaves instead of `event`, and count it. None: it cannot be written, and
        `event` passes as it came.
        """
        output = self._output
        pieces: list[_Piece] = []
        for number, item in enumerate(events, 1):
            start = self._write_one(item)
            if start < 0:
                if (
                    self._hooks.ending is not None
                    and self._hooks.hooks[self._hooks.ending].owner is item.made_by
                ):
                    self._hooks.ending = None
                return None
            if isinstance(item, WireEvent):
                if not item.whole and number < len(events):
                    output.extend(b"\n\n")  # something follows it
            elif not event.whole and number == len(events):
                output.cut(
                    output.used - 1
                )  # as unfinished as what it replaces: without its empty line
            pieces.append((output.buffer, start, output.used))
        counts = self.counts
        if not events:
            counts.dropped += 1
        elif any(item is event for item in events):
            counts.passed += 1
        else:
            counts.changed += 1
        counts.added += max(0, len(events) - 1)
        return pieces

    def _write_one(self, event: Event) -> int:
        """Write one event where the output stands; where it begins. -1 if that failed and its maker
        says `skip`.
        """
        try:
            return event.add_to(self._output)
        except Exception as error:
            event.made_by.fail("on_event", error)
            return -1
