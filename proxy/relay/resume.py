"""Resumption: one event stream over several upstream connections, sans I/O.

`take` frames what comes from upstream, notes the ids of whole events, and removes events that the
client already has. An unfinished event never passes, so a broken connection leaves nothing to take
back. At the end of a connection the caller asks `can_resume`, waits `next_delay_s`, opens a
response with `last_event_id`, and calls `begin`. Rules: WHATWG HTML, sections 9.2.2 to 9.2.6; MCP
2025-11-25, "Resumability and Redelivery".

Memory is bounded: the ids of the last `WINDOW` events and of the first one, each of at most
`MAX_ID_BYTES`. A replay is recognised if it begins at one of those; an upstream must not use an id
twice. This module must not know sockets, clocks, or what else happens to the events.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from interceptors import EventTooLarge
from interceptors.framing import EventFramer, FrameKind, one_by_one
from interceptors.sse import parse_retry, split_fields

from ..config import Reconnect
from ..dialects import Dialect

__all__ = ["MAX_ID_BYTES", "WINDOW", "Resume"]

WINDOW = 256
MAX_ID_BYTES = 1024
"""A longer id is not sent in a header: the stream cannot resume after it."""

# RFC 9110, section 5.5: what a header's value may hold.
_FIT_FOR_A_HEADER = re.compile(rb"[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?")
_EVENT, _TOO_LARGE = FrameKind.EVENT, (FrameKind.LARGE, FrameKind.OVERLONG)


class _Replay(Enum):
    """What the events of a new connection are."""

    NO = auto()
    """New."""
    UNKNOWN = auto()
    """None has had an id yet."""
    YES = auto()
    """Old, up to the last one delivered."""


class Resume:
    """One stream, over all its connections."""

    __slots__ = (
        "_attempts",
        "_dialect",
        "_first_id",
        "_framer",
        "_has_last_id",
        "_lf_passes",
        "_max_event_bytes",
        "_random",
        "_recent",
        "_replay",
        "_retry_s",
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
        self._dialect = dialect
        self._max_event_bytes = max_event_bytes
        self._random = random_
        self._framer = EventFramer(max_event_bytes)
        self._lf_passes = True  # the LF of a CRLF that ended an event goes where that event went
        self._first_id: bytes | None = None
        self._recent: deque[bytes] = deque(maxlen=WINDOW)
        self._has_last_id = False  # the last event had an id that fits in a header
        self._retry_s: float | None = None
        self._attempts = 0
        self._replay = _Replay.NO
        self.last_event_id = b""
        """Of the last event that passed; for the header `Last-Event-ID`."""
        self.failure: EventTooLarge | None = None
        """Why the stream must end."""
        self.done = False
        """The final event has passed."""
        self.is_body = False
        """The stream is a JSON body: all of it passes, and it cannot resume."""

    def take(self, buffer: bytearray, start: int, end: int) -> tuple[int, int, int]:
        """Frame `buffer[start:end]`, and move together in it what passes.

        Returns `(first, last, rest)`: `buffer[first:last]` passes, and the caller presents
        `buffer[rest:end]` again, followed by what comes next. An event above the limit sets
        `failure`. When `is_body` turns true, all of `buffer[first:end]` passes, and `take` must not
        be called again. Raises nothing.
        """
        framer = self._framer
        first = last = passing = start  # bytes from `passing` on pass unless a frame is dropped
        for kind, at, after, _ in one_by_one(framer.frames(buffer, start, end)):
            if kind in _TOO_LARGE:
                self.failure = EventTooLarge(self._max_event_bytes)
                rest = at
                break
            if framer.is_body and kind is not FrameKind.BOM:
                continue
            passes = kind is FrameKind.LINE_FEED and self._lf_passes
            if kind is _EVENT:
                passes = self._note(bytes(buffer[at:after]))
            if not passes:
                first, last = _move(buffer, first, last, passing, at)
                passing = after
        else:
            rest = framer.at
        if framer.is_body:
            self.is_body = self.done = True
            return passing, passing, passing
        if start < end:
            self._lf_passes = passing < rest
        first, last = _move(buffer, first, last, passing, rest)
        return first, last, rest

    def _note(self, block: bytes) -> bool:
        """Note one whole event. Returns whether it passes."""
        event_id = kind = None
        data: list[bytes] = []
        for name, value in split_fields(block):
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value
            elif name == b"id":
                event_id = value if b"\0" not in value else event_id
            elif (milliseconds := parse_retry(value)) is not None:
                self._retry_s = milliseconds / 1000
        if event_id is None and not data:
            return True  # comments, a `retry`, nothing at all
        if self._replay is not _Replay.NO and self._is_old(event_id):
            return False
        self._attempts = 0
        self._note_id(event_id)
        if data and any(
            final_kind in (None, kind) and (final_data is None or [final_data] == data)
            for final_kind, final_data in self._dialect.final_events
        ):
            self.done = True
        return True

    def _note_id(self, event_id: bytes | None) -> None:
        self._has_last_id = False
        if event_id is None:
            return
        self.last_event_id = event_id
        if len(event_id) <= MAX_ID_BYTES and _FIT_FOR_A_HEADER.fullmatch(event_id) is not None:
            self._has_last_id = True
            self._recent.append(event_id)
            if self._first_id is None:
                self._first_id = event_id

    def _is_old(self, event_id: bytes | None) -> bool:
        """Whether the client has already had this event of a new connection."""
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
        """Whether a stream whose connection has ended may continue. `clean`: the response ended
        whole. A `retry` above `max_backoff` is left to the client, which has received it, too.
        """
        if self.done or (clean and self._dialect.clean_end_is_final):
            return False
        return self._has_last_id and (
            self._retry_s is None or self._retry_s <= self._settings.max_backoff
        )

    def next_delay_s(self) -> float | None:
        """Seconds to wait before the next attempt; None after `max_attempts` without a new event.

        The first delay is between `initial_backoff` (or the server's `retry`) and twice that; both
        bounds double with each attempt, up to `max_backoff`. No delay is shorter than `retry`.
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
        """A new response begins. An incomplete event of the previous one is discarded."""
        self._framer.restart()
        self._lf_passes = True
        self._replay = _Replay.UNKNOWN


def _move(buffer: bytearray, first: int, last: int, start: int, end: int) -> tuple[int, int]:
    """Append `buffer[start:end]` to what passes, `buffer[first:last]`. Returns the new `(first,
    last)`.
    """
    if first == last:
        return start, end
    if last != start:
        buffer[last : last + end - start] = buffer[start:end]
    return first, last + end - start
