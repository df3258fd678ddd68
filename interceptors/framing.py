"""Framing: where events begin and end in the bytes of one stream (WHATWG HTML, section 9.2.6).

`EventFramer` owns everything that a cut between two reads can split: the BOM, a CR and its LF, how
much of an unfinished event was searched already, and whether the stream is a JSON body instead.
`StreamTail` does the same for bytes that pass unframed: do they end between two events?

Invariant: the frames of a stream do not depend on how it was cut into reads. Positions are indices
into the caller's buffer. This module must not know hooks, leases or what happens to an event.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto

from .sse import (
    BOM,
    FIELD_LINE_BYTES,
    ends_of_one_form,
    find_block_end,
    find_field_line,
    find_silence,
    first_of_body,
    is_silent,
)

__all__ = ["EventFramer", "Frame", "FrameKind", "StreamTail", "one_by_one"]

_LF, _CR, _COLON = 0x0A, 0x0D, 0x3A  # fields begin with letters: all of them are above the colon
_RESCAN_BYTES = 4096  # below this size, rescanning an unfinished event is cheaper than tracking it
_NEAR_BYTES = 512  # this close after an event that a hook needs, no search passes over others
_BLANK = re.compile(rb"[ \t]")
_BETWEEN_EVENTS = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)\Z")


class FrameKind(Enum):
    """What the bytes of a frame are."""

    EVENT = auto()
    """A whole event, its empty line included, within the limit."""
    UNFINISHED = auto()
    """The last event of a stream that ended without its empty line."""
    LARGE = auto()
    """A whole or unfinished last event above the limit."""
    OVERLONG = auto()
    """The beginning of an event that is above the limit already; the caller moves the rest."""
    BOM = auto()
    """The stream's byte order mark."""
    LINE_FEED = auto()
    """The LF of a CRLF that ended the previous frame in an earlier read."""
    BODY = auto()
    """A whole JSON body without its BOM, and the white space before it."""
    LARGE_BODY = auto()
    """The beginning of a JSON body that is above the limit; the caller moves the rest."""


Frame = tuple[FrameKind, int, Sequence[int], int]
"""`(kind, start, ends, prefix)`: adjacent events of one form are one frame, with an end for each;
another frame has one end. `prefix`: the bytes before the data of each event, if it is one line
`data: ...` ended by LF; the white space before a JSON body; otherwise 0.
"""

FindNeeded = Callable[[bytes | bytearray, int, int], int]
"""Where the first byte is, in `buffer[start:end]`, that some hook needs; `end` if nowhere."""

_EVENT, _UNFINISHED, _LARGE = FrameKind.EVENT, FrameKind.UNFINISHED, FrameKind.LARGE


class _Stage(Enum):
    BEGINNING = auto()
    """Only a BOM and white space have come: it may be a JSON body."""
    EVENTS = auto()
    BODY = auto()
    OVER = auto()
    """The body was framed: nothing follows."""


_IN_EVENTS = _Stage.EVENTS


class EventFramer:
    """The frames of one stream. `frames` is called for each read, in order."""

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_lead",
        "_leading",
        "_max_event_bytes",
        "_searched",
        "_stage",
        "at",
        "cut",
        "silent",
    )

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._stage = _Stage.BEGINNING
        self._at_start = True  # a BOM here is the stream's
        self._leading = True  # the last frame was the first one of the stream
        self._after_cr = False
        self._searched = 0  # bytes of the unfinished event, or body, that hold no end
        self._lead = 0  # white space before a JSON body
        self.at = 0
        """After `frames`: the index of the first byte that is in no frame yet. The caller presents
        it again, followed by what comes next, at the `start` of the next call.
        """
        self.silent = 0
        """Blocks passed over so far that no hook sees: of comments, of empty lines, not needed."""
        self.cut = False
        """The stream has ended inside an event."""

    @property
    def is_body(self) -> bool:
        """Whether the stream is a JSON body, as far as it has come."""
        return self._stage is _Stage.BODY or self._stage is _Stage.OVER

    def first_was_dropped(self) -> None:
        """Nothing of the last frame is sent. If it was the first one, a BOM after it would become
        the client's BOM: treat it as one.
        """
        self._at_start = self._leading

    def restart(self) -> None:
        """A new connection continues the stream: discard an unfinished event, and expect a BOM."""
        self._at_start = True
        self._after_cr = False
        self._searched = self._lead = 0

    def continue_after_large(self, buffer: bytes | bytearray, at: int, end: int) -> None:
        """An event that began as `OVERLONG` ends at `at`, of `buffer[:end]`."""
        self._stage = _Stage.EVENTS
        self._after_cr = at == end and buffer[at - 1] == _CR

    def frames(
        self,
        buffer: bytes | bytearray,
        start: int,
        end: int,
        final: bool = False,
        find_needed: FindNeeded | None = None,
    ) -> Iterable[Frame]:
        """The frames in `buffer[start:end]`, without the silent bytes between them.

        A frame counts as taken once it is yielded. `final`: no more bytes come. Events in which
        `find_needed` finds nothing are skipped.
        """
        if self._stage is not _IN_EVENTS or self._after_cr:
            return self._carefully(buffer, start, end, final, find_needed)
        if self._searched or self._at_start or buffer.find(b"\r", start, end) >= 0:
            return self._events(buffer, start, end, final, find_needed)
        # The usual read brings whole events of one form. A generator would take 10 % of its time.
        self._leading = False
        if find_needed is not None:
            start, _ = self._pass_unneeded(buffer, start, end, start, start, find_needed)
            if start == end:
                self.at = end
                return ()
        elif buffer.endswith(b"\n\n", start, end):
            ends, prefix = ends_of_one_form(buffer, start, end, end, self._max_event_bytes)
            if ends and ends[-1] == end:
                self.at = end
                return ((_EVENT, start, ends, prefix),)
        return self._events(buffer, start, end, final, find_needed)

    def _carefully(
        self,
        buffer: bytes | bytearray,
        start: int,
        end: int,
        final: bool,
        find_needed: FindNeeded | None,
    ) -> Iterator[Frame]:
        """As `frames`, where a line feed may belong to the last frame, or the stream may be a JSON
        body.
        """
        at = self.at = start
        if self._after_cr and at < end:
            self._after_cr = False
            if buffer[at] == _LF:
                at += 1
                yield FrameKind.LINE_FEED, start, (at,), 0
        if self._stage is _Stage.BEGINNING:
            end = self._find_stage(buffer, at, end, final)
        if self._stage is _Stage.BODY:
            if self._at_start and buffer.startswith(BOM, at, end):
                at += len(BOM)
                yield FrameKind.BOM, at - len(BOM), (at,), 0
            self._at_start = False
            yield from self._body(buffer, at, end, final)
            at = self.at
        if self.is_body:
            return
        yield from self._events(buffer, at, end, final, find_needed)

    def _find_stage(self, buffer: bytes | bytearray, at: int, end: int, final: bool) -> int:
        """Distinguish a JSON body from events by the first byte that is not white space. Return
        the end of what may be framed: white space waits, because it may belong to a JSON body.
        """
        if self._at_start:
            if buffer.startswith(BOM, at, end):
                at += len(BOM)
            elif not final and BOM.startswith(bytes(buffer[at:end])):
                return end
        first, is_body = first_of_body(buffer, at + self._lead, end)
        if first >= 0:
            self._stage = _Stage.BODY if is_body else _Stage.EVENTS
            self._lead = first - at if is_body else 0
            return end
        blank = None if final else _BLANK.search(buffer, at, end)
        if blank is None or end - blank.start() > self._max_event_bytes:
            return end
        self._lead = end - blank.start()  # not searched again: white space may come byte by byte
        return blank.start()

    def _body(self, buffer: bytes | bytearray, at: int, end: int, final: bool) -> Iterator[Frame]:
        """A JSON body, once it is whole or too large. Clients also read events after a line that
        begins like JSON: with the first field line, the stream is an event stream after all.
        """
        self.at = at
        first = at + self._lead
        scan_from = max(first, at + self._searched - FIELD_LINE_BYTES)
        self._searched = end - at
        if find_field_line(buffer, scan_from, end) >= 0:
            self._stage, self._searched = _Stage.EVENTS, 0
        elif final or end - first > self._max_event_bytes:
            self._stage, self.at = _Stage.OVER, end
            is_large = end - first > self._max_event_bytes
            yield FrameKind.LARGE_BODY if is_large else FrameKind.BODY, at, (end,), first - at

    def _events(
        self,
        buffer: bytes | bytearray,
        at: int,
        end: int,
        final: bool,
        find_needed: FindNeeded | None,
    ) -> Iterator[Frame]:
        limit = self._max_event_bytes
        leading = self._leading = self._at_start
        plain = buffer.find(b"\r", at, end) < 0
        clear_to = at  # nothing that a hook needs begins before
        scan_from, self._searched = at + self._searched, 0
        while at < end:
            until = end if plain and scan_from == at else at
            if leading:
                leading, bom_bytes = self._find_bom(buffer, at, end, final)
                if bom_bytes < 0:
                    break
                if bom_bytes:
                    yield FrameKind.BOM, at, (at + bom_bytes,), 0
                    at = scan_from = at + bom_bytes
                    continue
                until = min(until, at + 1)
            if find_needed is not None and plain:
                after, clear_to = self._pass_unneeded(
                    buffer, at, end, scan_from, clear_to, find_needed
                )
                if after > at:
                    at = scan_from = after
                    continue
                until = min(until, clear_to + _NEAR_BYTES)
            if at < until:
                ends, prefix = ends_of_one_form(buffer, at, until, end, limit)
                if ends:
                    self._at_start = False
                    yield _EVENT, at, ends, prefix
                    at = scan_from = ends[-1]
                    continue
            kind, after = self._next(buffer, at, end, scan_from, plain, final)
            if after == at:
                break
            self._at_start = False
            if kind is not None:
                yield kind, at, (after,), 0
            at = scan_from = after
        self.at = at
        self._searched = end - at
        if self._searched > limit:
            self._at_start, self._searched = False, 0
            yield FrameKind.OVERLONG, at, (end,), 0

    def _next(
        self, buffer: bytes | bytearray, at: int, end: int, scan_from: int, plain: bool, final: bool
    ) -> tuple[FrameKind | None, int]:
        """The kind and the end of what begins at `at`: a frame, or None for silent bytes. The end
        is `at` itself if the event is incomplete.
        """
        limit = self._max_event_bytes
        kind: FrameKind | None = None
        after, whole, may_be_silent = at, True, buffer[at] <= _COLON
        if may_be_silent and scan_from - at <= _RESCAN_BYTES:
            after, blocks = find_silence(buffer, at, end, limit)
            self.silent += blocks
        if after == at:
            if plain and buffer[at] != _LF:
                after = buffer.find(b"\n\n", max(at, scan_from - 1), end) + 2
                whole = after > 1
            else:
                after = find_block_end(buffer, at, end, scan_from)
                whole = after >= 0
            if not whole:
                if not final:
                    return None, at
                after = end
                self.cut = True
            if after - at > limit:
                kind = _LARGE
            elif may_be_silent and is_silent(buffer, at, after):
                self.silent += 1
            else:
                kind = _EVENT if whole else _UNFINISHED
        self._after_cr = after == end and buffer[end - 1] == _CR
        return kind, after

    def _find_bom(
        self, buffer: bytes | bytearray, at: int, end: int, final: bool
    ) -> tuple[bool, int]:
        """Whether a BOM at `at` would be the stream's, and its length; -1: more bytes decide."""
        self._leading = self._at_start
        if self._at_start:
            if buffer.startswith(BOM, at, end):
                self._at_start = False
                return True, len(BOM)
            if not final and BOM.startswith(bytes(buffer[at : min(end, at + len(BOM))])):
                return True, -1
        return self._at_start, 0

    def _pass_unneeded(
        self,
        buffer: bytes | bytearray,
        at: int,
        end: int,
        scan_from: int,
        clear_to: int,
        find_needed: FindNeeded,
    ) -> tuple[int, int]:
        """Skip the events from `at` on that no hook needs. Returns the index after them, and that
        of the first byte that a hook needs, if it is not `clear_to`. Only for bytes without CR;
        stops where an empty line follows another, which is a block itself.
        """
        if scan_from - at > _RESCAN_BYTES:
            return at, clear_to
        if at >= clear_to:
            clear_to = find_needed(buffer, at, end)
        after = buffer.rfind(b"\n\n", at, min(clear_to, at + self._max_event_bytes)) + 2
        if after < 2 or buffer[at] == _LF:
            return at, clear_to
        empty = buffer.find(b"\n\n\n", at, after + 1)
        if empty >= 0:
            after = empty + 2
        self._at_start = False
        self.silent += buffer.count(b"\n\n", at, after)
        return after, clear_to


def one_by_one(frames: Iterable[Frame]) -> Iterator[tuple[FrameKind, int, int, int]]:
    """Frames with one event in each: `(kind, start, end, prefix)`."""
    for kind, at, ends, prefix in frames:
        for end in ends:
            yield kind, at, end, prefix
            at = end


class StreamTail:
    """The last bytes of a stream that passes unframed."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = b"\n\n"

    def remember(self, buffer: bytes | bytearray, start: int, end: int) -> None:
        """Remember the end of `buffer[start:end]`, which is sent now."""
        if end - start >= 4:
            self._bytes = bytes(buffer[end - 4 : end])
        else:
            self._bytes = (self._bytes + bytes(buffer[start:end]))[-4:]

    @property
    def is_whole(self) -> bool:
        """Whether the stream could end here, after a whole event."""
        return _BETWEEN_EVENTS.search(self._bytes) is not None

    @property
    def between_events(self) -> bool:
        """Whether an event may be added here. A CR after an LF is most likely half a CRLF."""
        return self.is_whole and not self._bytes.endswith(b"\n\r")
