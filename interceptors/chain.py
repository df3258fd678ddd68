"""The chain: a route's interceptors, compiled once per stream into the hooks that are overridden.

`Chain` belongs to a route and lives as long as the process. `StreamChain` belongs to one stream: it frames events in the
window it is given, runs the hooks over them, and answers with *parts*, the bytes to send in order. Events that nobody
changed leave as slices of the window, adjacent ones as one slice; what was changed or added is written into leases of the
`json` pool, which stay on loan until `release_parts()`.

Synchronous and sans I/O. It knows nothing of sockets, of chunked bodies, or of who sends the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from pools import BufferPool, BufferScope, PooledOutput

from .api import EventResult, Interceptor, Outcome, ResponseHead, StreamContext, StreamInterceptor
from .errors import EventTooLarge, HookError, InterceptorError
from .event import Event, WireEvent
from .sse import BOM, find_block_end, is_silent

__all__ = ["Chain", "EventCounts", "Part", "StreamChain"]

Part = memoryview | bytes

_OnEvent = Callable[[Event], EventResult]
_Piece = tuple[bytearray, int, int]
_LF = 0x0A
_CR = 0x0D
_COLON = 0x3A  # a line end, a comment, or something odd: fields begin with letters, and those are greater


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


class Chain:
    """A route's interceptors in their order, each with the name that the configuration gave it."""

    __slots__ = ("interceptors",)

    def __init__(self, interceptors: Sequence[tuple[str, Interceptor]] = ()) -> None:
        self.interceptors = tuple(interceptors)

    @property
    def reads_body(self) -> bool:
        """Whether some interceptor may want a stream's events, so that a body must not arrive compressed."""
        return any(type(item).open_stream is not Interceptor.open_stream for _, item in self.interceptors)

    def open_stream(self, context: StreamContext, pool: BufferPool, scope: BufferScope, max_event_bytes: int) -> StreamChain:
        """Ask every interceptor for its part of one stream. `close()` must be called on the result, once it has been made.

        Raises `HookError` when one that says `abort` fails; `on_end` of those before it has then been called.
        """
        stream = StreamChain(PooledOutput(pool, scope), max_event_bytes)
        for name, interceptor in self.interceptors:
            try:
                member = interceptor.open_stream(context)
                if member is not None and not isinstance(member, StreamInterceptor):
                    raise TypeError(f"returned {type(member).__name__}, expected a StreamInterceptor or None")
            except Exception as error:
                problem = _failed(name, interceptor, "open_stream", error)
                if problem is not None:
                    stream.close(Outcome.INTERCEPTED)
                    raise problem from error
            else:
                if member is not None:
                    stream.add(name, interceptor, member)
        return stream


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    interceptor: Interceptor
    stream: StreamInterceptor


class StreamChain:
    """The hooks of one stream. Not reusable; every method is synchronous."""

    __slots__ = (
        "_closed",
        "_first",
        "_hooks",
        "_max_event_bytes",
        "_members",
        "_output",
        "_owners",
        "_pass_lf",
        "_seen",
        "counts",
        "failure",
    )

    def __init__(self, output: PooledOutput, max_event_bytes: int) -> None:
        self._members: list[_Member] = []
        self._hooks: tuple[_OnEvent, ...] = ()
        self._owners: tuple[_Member, ...] = ()
        self._output = output
        self._max_event_bytes = max_event_bytes
        self._seen = 0  # bytes of the unfinished block that were searched in vain
        self._first = True  # nothing has left yet, so that the client would take a BOM for one
        # The last block ended with a CR at the window's end: an LF that comes next goes where that block went.
        self._pass_lf: bool | None = None
        self._closed = False
        self.counts = EventCounts()
        self.failure: InterceptorError | None = None
        """Why the stream must end: `HookError` or `EventTooLarge`. Set by `process`, with the parts before it still valid."""

    def add(self, name: str, interceptor: Interceptor, stream: StreamInterceptor) -> None:
        """Append a member, before the stream starts."""
        member = _Member(name, interceptor, stream)
        self._members.append(member)
        if type(stream).on_event is not StreamInterceptor.on_event:
            self._hooks += (stream.on_event,)
            self._owners += (member,)

    @property
    def wants_events(self) -> bool:
        """Whether any hook must see events. If none does, bytes may pass unframed."""
        return bool(self._hooks)

    def start(self, head: ResponseHead) -> None:
        """Run `on_start`. Raises `HookError`."""
        for member in self._members:
            try:
                member.stream.on_start(head)
            except Exception as error:
                problem = _failed(member.name, member.interceptor, "on_start", error)
                if problem is not None:
                    raise problem from error

    def close(self, outcome: Outcome) -> None:
        """Run every `on_end`, once; further calls do nothing. An exception in one is logged and stops none of the others."""
        if self._closed:
            return
        self._closed = True
        self._output.close()
        for member in self._members:
            try:
                member.stream.on_end(outcome)
            except Exception as error:
                _failed(member.name, member.interceptor, "on_end", error)

    def process(self, buffer: bytearray, start: int, end: int, *, final: bool = False) -> tuple[list[Part], int]:
        """Run the hooks over every whole event in `buffer[start:end]`.

        Returns the parts to send and the index of the first byte of an unfinished block, which the caller must present
        again, followed by what comes next, at the `start` of the next call. `final` says that nothing comes next: an
        unfinished block is then shown to the hooks, too, and what replaces it is left unfinished like it (a reader drops an
        event without its empty line, and must not get one that is whole instead). Parts are valid until
        `release_parts()`, and must be released before the buffer changes. Raises nothing: when a hook or a limit ends the
        stream, `failure` says so, and the parts are those of the events before it; nothing may be processed after that.
        """
        pieces: list[_Piece] = []
        at = run = start  # run: where the bytes begin that nobody changed and that are not a piece yet
        if self._pass_lf is not None and at < end:
            if buffer[at] == _LF:
                at += 1
                if not self._pass_lf:
                    run = at
            self._pass_lf = None
        plain = buffer.find(b"\r", at, end) < 0
        scan_from = at + self._seen
        try:
            while at < end:
                if self._first:
                    # A BOM belongs to the stream, not to its first event: it stays where it is, whatever becomes of that.
                    if buffer.startswith(BOM, at, end):
                        self._first = False
                        at = scan_from = at + len(BOM)
                        continue
                    if not final and BOM.startswith(bytes(buffer[at:end])):
                        break
                if plain and buffer[at] != _LF:
                    behind = buffer.find(b"\n\n", at if scan_from == at else scan_from - 1, end) + 2
                    whole = behind > 1
                else:
                    behind = find_block_end(buffer, at, end, scan_from)
                    whole = behind >= 0
                if not whole:
                    if not final:
                        break
                    behind = end
                if behind - at > self._max_event_bytes:
                    raise EventTooLarge(self._max_event_bytes)
                passed = self._block(buffer, run, at, behind, pieces, whole)
                if not passed:
                    run = behind
                if passed or pieces:
                    self._first = False
                if not plain and behind == end and buffer[end - 1] == _CR:
                    self._pass_lf = passed
                at = scan_from = behind
            self._seen = end - at
            if self._seen > self._max_event_bytes:
                raise EventTooLarge(self._max_event_bytes)
        except InterceptorError as error:
            self.failure = error
        if at > run:
            pieces.append((buffer, run, at))
        return [memoryview(source)[first:last] for source, first, last in pieces], at

    def _block(self, buffer: bytearray, run: int, at: int, behind: int, pieces: list[_Piece], whole: bool) -> bool:
        """One block, `whole` if it has its empty line. True if it leaves as it came.

        Otherwise the untouched run before it and its replacement become pieces.
        """
        counts = self.counts
        if buffer[at] <= _COLON and is_silent(buffer, at, behind):
            counts.passed += 1
            return True
        event = WireEvent(buffer, at, behind, whole)
        try:
            result = self._run(event)
            if result is event:
                counts.passed += 1
                return True
            if type(result) is Event and whole:
                # One for one, the usual case: behind what was written before, if that is the last piece.
                output = self._output
                start = output.begin()
                if self._write_one(result, start):
                    counts.changed += 1
                    if at > run:
                        pieces.append((buffer, run, at))
                    elif start and pieces and pieces[-1][0] is output.buffer:
                        pieces[-1] = (output.buffer, pieces[-1][1], output.used)
                        return False
                    pieces.append((output.buffer, start, output.used))
                    return False
                replacement = None
            else:
                replacement = self._write(event, result)
        finally:
            event.end_of_life()
        if replacement is None:
            counts.passed += 1
            return True
        if at > run:
            pieces.append((buffer, run, at))
        for piece in replacement:
            if pieces and pieces[-1][2] == piece[1] and pieces[-1][0] is piece[0]:
                pieces[-1] = (piece[0], pieces[-1][1], piece[2])  # right behind the one before
            else:
                pieces.append(piece)
        return False

    def release_parts(self) -> None:
        """The parts have left (or were copied): give back what they were written in."""
        self._output.close()

    def _run(self, event: WireEvent) -> Event | list[Event]:
        """Send one event through the hooks. The event itself if nobody touched it, else what is to leave instead."""
        current: Event = event
        for index, hook in enumerate(self._hooks):
            try:
                result = hook(current)
            except Exception as error:
                self._fail(index, error)
                continue  # skip: the event passes this hook as it came
            if result is current:
                continue
            if isinstance(result, Event):
                result.made_by = index
                current = result
                continue
            return self._run_several(index, current, result)
        return current

    def _run_several(self, index: int, current: Event, result: EventResult) -> list[Event]:
        """The rest of the chain, after a hook that returned something else than one event."""
        events = self._checked(index, current, result)
        for later in range(index + 1, len(self._hooks)):
            following: list[Event] = []
            for event in events:
                try:
                    answer = self._hooks[later](event)
                except Exception as error:
                    self._fail(later, error)
                    following.append(event)
                else:
                    following += self._checked(later, event, answer)
            events = following
        return events

    def _checked(self, index: int, current: Event, result: EventResult) -> list[Event]:
        events = [] if result is None else [result] if isinstance(result, Event) else result
        if isinstance(events, (list, tuple)) and all(isinstance(item, Event) for item in events):
            for item in events:
                if item is not current:
                    item.made_by = index
            return list(events)
        kind = type(result).__name__
        self._fail(index, TypeError(f"returned {kind}, expected an Event, a list of Events, or None"))
        return [current]

    def _write(self, event: WireEvent, result: Event | list[Event]) -> list[_Piece] | None:
        """Write what leaves instead of `event`, and count it. None: it cannot be written, and `event` passes as it came."""
        events = [result] if isinstance(result, Event) else result
        output = self._output
        pieces: list[_Piece] = []
        for item in events:
            start = output.begin()
            if not self._write_one(item, start):
                return None
            if isinstance(item, WireEvent):
                if not item.whole and item is not events[-1]:
                    output.write(b"\n\n")  # something follows it
            elif not event.whole and item is events[-1]:
                output.used -= 1  # as unfinished as what it replaces: without its empty line
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

    def _write_one(self, event: Event, start: int) -> bool:
        """Write one event where the output stands. False if that failed and its maker says `skip`."""
        try:
            event.write_to(self._output)
        except Exception as error:
            self._output.used = start
            self._fail(getattr(event, "made_by", len(self._owners) - 1), error)
            return False
        return True

    def _fail(self, index: int, error: Exception) -> None:
        owner = self._owners[index]
        problem = _failed(owner.name, owner.interceptor, "on_event", error)
        if problem is not None:
            raise problem from error


def _failed(name: str, interceptor: Interceptor, hook: str, error: Exception) -> HookError | None:
    """Log a failed hook; the error that ends the stream, or None when the interceptor says `skip`."""
    structlog.get_logger("interceptors").error(
        "interceptor_failed",
        interceptor=name,
        hook=hook,
        on_error=interceptor.on_error,
        exc_info=error,
    )
    if interceptor.on_error == "skip":
        return None
    return HookError(name, hook, f"{type(error).__name__}: {error}")
