"""An event stream that goes on when its upstream's connection has ended: what was seen of it, and
whether, when and where to go on.

Sans I/O. `take` frames what comes from upstream into whole blocks, in place, notes their ids, and
takes out the events that the client has had already; an event that is not whole never passes, so
that a break leaves nothing behind that would have to be taken back. The rest is the state of
reconnection: whoever moves the stream asks `can_resume` at its end, waits for `next_delay_s`, opens
a new response with `last_event_id`, and tells `begin`. Rules: WHATWG HTML, sections 9.2.2 to 9.2.6;
MCP 2025-11-25, "Resumability and Redelivery".

Memory is bounded: the ids of the last `WINDOW` events and the first one, each of at most
`MAX_ID_BYTES`. An upstream that sends again what it sent before is therefore understood when it
begins anywhere among those, or from the very first event. It must not use an id twice for different
events.

It knows neither sockets nor clocks, and nothing of what else is done to the events.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from interceptors import EventTooLarge
from interceptors.sse import BOM, find_block_end, find_silence, first_of_body

from ..config import Reconnect
from ..dialects import Dialect

__all__ = ["MAX_ID_BYTES", "WINDOW", "Resume"]

WINDOW = 256
MAX_ID_BYTES = 1024
"""A longer id is not sent in a header: a stream whose last event has such a one cannot go on."""

_LF, _CR = 0x0A, 0x0D
_SILENT = b":\r\n"  # what a comment or an empty line begins with
# RFC 9110, section 5.5: what a header's value may hold.
_FIT_FOR_A_HEADER = re.compile(rb"[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?")
_DIGITS = re.compile(rb"[0-9]{1,18}")


class _Replay(Enum):
    """What is known of the events of a new connection."""

    NO = auto()
    """They are new."""
    UNKNOWN = auto()
    """None has had an id yet."""
    YES = auto()
    """They are old, up to the last one delivered."""


class Resume:
    """One stream, over all its connections."""

    __slots__ = (
        "_attempts",
        "_blank",
        "_clean_end_is_one",
        "_ends",
        "_first",
        "_first_id",
        "_max_event_bytes",
        "_pass_lf",
        "_random",
        "_recent",
        "_replay",
        "_resumable",
        "_retry_s",
        "_scanned",
        "_settings",
        "done",
        "failure",
        "is_body",
        "last_event_id",
    )

    def __init__(
        self,
        settings: Reconnect,
        dialect: Dialect,
        max_event_bytes: int,
        random_: Callable[[], float] = random.random,
    ) -> None:
        """`dialect` gives the final events, and whether every clean end is final."""
        self._settings = settings
        self._ends = dialect.final_events
        self._clean_end_is_one = dialect.clean_end_is_final
        self._max_event_bytes = max_event_bytes
        self._random = random_
        self._first_id: bytes | None = None
        self._recent: deque[bytes] = deque(maxlen=WINDOW)
        self._resumable = False  # the last event had an id
        self._retry_s: float | None = None
        self._attempts = 0
        self._replay = _Replay.NO
        self._first = True  # a BOM may come
        self._blank = True  # only white space has come
        self._scanned = 0  # bytes of the unfinished block that were searched in vain
        self._pass_lf: bool | None = (
            None  # the last block ended with a CR at the end of what was there, and passed or not
        )
        self.last_event_id = b""
        """Of the last event that passed; for the header `Last-Event-ID`."""
        self.failure: EventTooLarge | None = None
        """Why the stream must end."""
        self.done = False
        """An event has said that it is the last."""
        self.is_body = False
        """What comes is a JSON body and no event stream: all of it passes, and nothing goes on
        after it.
        """

    def take(self, buffer: bytearray, start: int, end: int) -> tuple[int, int, int]:
        """Look through `buffer[start:end]`. Returns `(first, last, rest)`: `buffer[first:last]` are
        whole blocks that pass, and `buffer[rest:end]` is one that is not whole yet, which the
        caller must present again, followed by what comes next.

        A block that is longer than it may be ends the stream: `failure`. When `is_body` turns true,
        all of `buffer[first:end]` passes, and nothing that comes next is for this method. Raises
        nothing.
        """
        at = first = last = start
        if self._pass_lf is not None and at < end:
            if buffer[at] == _LF:
                at += 1
                if self._pass_lf:
                    last = at
            self._pass_lf = None
        scan_from = at + self._scanned
        while at < end:
            if self._first:
                if BOM.startswith(bytes(buffer[at : min(end, at + len(BOM))])):
                    if end - at < len(BOM):
                        break
                    at += len(
                        BOM
                    )  # in the middle of the client's stream it would belong to a field's name
                    scan_from = at
                self._first = False
                continue
            if self._blank:
                found, self.is_body = first_of_body(buffer, scan_from, end)
                self._blank = found < 0
                if self.is_body:
                    self.done = True
                    if first == last:
                        first = last = at
                    break
            behind = at
            if buffer[at] in _SILENT and scan_from == at:
                behind, _ = find_silence(buffer, at, end, self._max_event_bytes)
            passes = behind > at
            if not passes:
                behind = find_block_end(buffer, at, end, scan_from)
                if (behind if behind >= 0 else end) - at > self._max_event_bytes:
                    self.failure = EventTooLarge(self._max_event_bytes)
                    break
                if behind < 0:
                    break
                passes = self._note(bytes(buffer[at:behind]))
            if passes:
                if first == last:
                    first = last = at
                if last != at:
                    buffer[last : last + behind - at] = buffer[at:behind]
                last += behind - at
            if behind == end and buffer[end - 1] == _CR:
                self._pass_lf = passes
            at = scan_from = behind
        self._scanned = end - at
        return first, last, at

    def _note(self, block: bytes) -> bool:
        """Read one whole block. Whether it passes."""
        event_id = kind = None
        data: list[bytes] = []
        for line in block.splitlines():  # of bytes: at LF, CR and CRLF, and nowhere else
            name, _, value = line.partition(b":")
            value = value[1:] if value[:1] == b" " else value
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value
            elif name == b"id":
                event_id = value if b"\0" not in value else event_id
            elif name == b"retry" and _DIGITS.fullmatch(value):
                self._retry_s = int(value) / 1000
        if event_id is None and not data:
            return True  # comments, a `retry`, nothing at all
        if self._replay is not _Replay.NO and self._is_old(event_id):
            return False
        self._attempts = 0
        if event_id is not None:
            self.last_event_id = event_id
            fits = (
                len(event_id) <= MAX_ID_BYTES and _FIT_FOR_A_HEADER.fullmatch(event_id) is not None
            )
            self._resumable = fits
            if fits:
                self._recent.append(event_id)
                if self._first_id is None:
                    self._first_id = event_id
        else:
            self._resumable = False
        for end_kind, end_data in self._ends:
            if (
                data
                and (end_kind is None or end_kind == kind)
                and (end_data is None or [end_data] == data)
            ):
                self.done = True
        return True

    def _is_old(self, event_id: bytes | None) -> bool:
        """Whether an event of a new connection is one that the client has had."""
        if self._replay is _Replay.YES:
            if event_id == self.last_event_id:
                self._replay = _Replay.NO
            return True
        if event_id is None:
            return False
        self._replay = _Replay.NO
        if event_id == self.last_event_id:
            return True
        if event_id == self._first_id or event_id in self._recent:
            self._replay = _Replay.YES
            return True
        return False

    def can_resume(self, *, clean: bool) -> bool:
        """Whether a stream whose connection has ended should go on. `clean`: it ended as a whole
        response does.

        A server that asks for a longer `retry` than `max_backoff` is left to the client, who has
        been told the same.
        """
        if self.done or (clean and self._clean_end_is_one):
            return False
        return self._resumable and (
            self._retry_s is None or self._retry_s <= self._settings.max_backoff
        )

    def next_delay_s(self) -> float | None:
        """How long to wait before the next attempt; None when there were `max_attempts` in a row,
        without an event between them.

        At first between `initial_backoff` (or `retry`, where the server has said one) and twice
        that, then between twice as much and twice that, and so on, up to `max_backoff`; never less
        than `retry`.
        """
        settings = self._settings
        if self._attempts >= settings.max_attempts:
            return None
        least_s = self._retry_s if self._retry_s is not None else 0.0
        base_s = (
            self._retry_s
            if self._retry_s is not None and not self._attempts
            else max(settings.initial_backoff, least_s)
        )
        highest_s = min(settings.max_backoff, base_s * 2.0 ** min(self._attempts + 1, 64))
        self._attempts += 1
        return max(least_s, highest_s * (0.5 + self._random() / 2))

    def begin(self) -> None:
        """A new response begins. What was not whole of the one before is forgotten."""
        self._first = True
        self._scanned = 0
        self._pass_lf = None
        self._replay = _Replay.UNKNOWN
