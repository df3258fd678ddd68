"""`Tap`: copies of the events of one exchange, for the feeds of the views that watch it.

It exists only while a view watches. What arrives, what each hook returns and what leaves become
`Record`s with at most `MAX_TEXT_BYTES` of each event. Bytes that pass unframed are copied and framed
here. Nothing here raises, waits or keeps a buffer of a pool: a tap that fails is closed and logged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import structlog
import trio

from interceptors import End, Event
from interceptors.event_hooks import events_in
from interceptors.framing import EventFramer, FrameKind, one_by_one
from interceptors.hooks import Owner
from interceptors.sse import find_empty_line
from interceptors.watcher import Watcher

__all__ = ["CLIENT", "MAX_TEXT_BYTES", "UPSTREAM", "BodyKind", "Feed", "Record", "Tap"]

MAX_TEXT_BYTES = 1 << 16
"""Bytes of an event that a view shows, and of an unfinished one that a tap keeps."""
BodyKind = Literal["events", "text", "hidden"]
"""`hidden`: not text, or with a content coding."""
UPSTREAM, CLIENT = "upstream", "client"
"""Stages of an event besides the interceptors' names."""

_EVENTS = (FrameKind.EVENT, FrameKind.UNFINISHED, FrameKind.LARGE)
_OVERLAP = 3  # bytes of a read to search again, so that no empty line is missed


class Record(NamedTuple):
    """What happened to one event at one stage."""

    number: int
    """Counts the events that arrived or were added, from 1."""
    at: float
    """Seconds since the exchange began."""
    stage: str
    """`upstream`, the name of an interceptor, or `client`."""
    what: str
    """At `upstream`: `arrived`. At an interceptor: `unchanged`, `changed`, `dropped`, `added`,
    `ended` or `failed`. At `client`: `unchanged` (as it arrived), `sent` or `dropped`.
    """
    texts: tuple[bytes, ...] = ()
    """The events after this stage; empty for `unchanged`."""
    cut: int = 0
    """Bytes that `texts` lacks."""
    seconds: float = 0.0
    """The time of the hook."""
    problem: str | None = None
    """The type of the exception of a hook that failed."""
    is_body: bool = False
    """The texts are a body, not events."""
    begins: bool = False
    """Whether it is the first one with its number."""


Copy = Callable[[bytearray | bytes, int, int], None]
"""Takes a copy of `buffer[first:last]`."""


class Feed(Protocol):
    """What a tap needs of a view's part for one exchange."""

    def wants(self, number: int, *, begins: bool) -> bool:
        """Whether to `put` a record of the event with this number, `begins`: its first. An event
        for which there is no room is counted as lost.
        """
        ...

    def put(self, record: Record) -> None:
        """Take a record that it wants."""
        ...

    def put_head(self, head: dict[str, Any]) -> None:
        """Take the response's head."""
        ...

    def put_end(self, end: dict[str, Any]) -> None:
        """Take the end of the exchange; nothing follows."""
        ...


class Tap(Watcher):
    """The events of one exchange."""

    __slots__ = (
        *("_carry", "_cut", "_event", "_feeds", "_framer", "_head", "_is_body", "_large"),
        *("_number", "_on_idle", "_skips", "_zero", "body"),
    )

    def __init__(self, started_at: float, on_idle: Callable[[], None]) -> None:
        """`started_at`: Trio's time. `on_idle` is called when the last feed is removed."""
        self._zero = started_at
        self._on_idle: Callable[[], None] | None = on_idle
        self._feeds: list[Feed] = []
        self._number = 0
        self._head: dict[str, Any] | None = None
        self.body: BodyKind = "hidden"
        """How the response's body can be shown, if no hook sees it."""
        self._is_body = False
        self._event: Event | None = None  # the one that arrived last, if it has not left
        self._framer: EventFramer | None = None  # of bytes that pass unframed
        self._carry = bytearray()
        self._cut = 0  # bytes of a body, or of a large event, that are not kept
        self._large = b""  # the beginning of an event that is too large, until it has passed
        self._skips = False  # inside an event that is too large, or joined in its middle

    def add(self, feed: Feed) -> None:
        """Give records to a feed from now on, and the head, if it has come."""
        self._feeds.append(feed)
        if self._head is not None:
            feed.put_head(self._head)

    def remove(self, feed: Feed) -> None:
        """Stop giving records to a feed. Safe to call again."""
        if feed in self._feeds:
            self._feeds.remove(feed)
            if not self._feeds:
                self._close()

    def _close(self) -> None:
        on_idle, self._on_idle = self._on_idle, None
        self._carry = bytearray()
        if on_idle is not None:
            on_idle()

    # --- events between hooks

    def arrived(self, event: Event) -> None:
        self._is_body, self._event = event.is_body, event
        self._begin(UPSTREAM, "arrived", (event,))

    def called(self, owner: Owner, event: Event, result: Any, seconds: float) -> None:
        if self._feeds_for(begins=False):
            what, events, problem = _outcome(event, result)
            self._put(owner.name, what, events, seconds, problem)

    def added(self, events: Sequence[Event]) -> None:
        self._is_body, self._event = False, None
        owner = getattr(events[0], "made_by", None)
        self._begin(getattr(owner, "name", "weirpool"), "added", events)

    def left(self, events: Sequence[Event]) -> None:
        event, self._event = self._event, None
        if event is not None and len(events) == 1 and events[0] is event:
            self._put(CLIENT, "unchanged", ())
        else:
            self._put(CLIENT, "sent" if events else "dropped", events)

    # --- bytes that no hook sees

    def open_copy(self, *, at_boundary: bool) -> Copy | None:
        """The function for the bytes that pass, if the body can be shown. `at_boundary`: they begin
        with an event.
        """
        if self.body == "events":
            self._framer = EventFramer(MAX_TEXT_BYTES)
            self._skips = not at_boundary
            return self._copy_events
        return self._copy_body if self.body == "text" else None

    def _copy_events(self, buffer: bytearray | bytes, first: int, last: int) -> None:
        """Copy and frame bytes of an event stream that pass."""
        try:
            if self._framer is not None:
                self._carry += memoryview(buffer)[first:last]
                self._frame(self._framer, self._carry, final=False)
        except Exception:
            self._fail()

    def _frame(self, framer: EventFramer, carry: bytearray, *, final: bool) -> None:
        start, end = 0, len(carry)
        if self._skips:
            start = find_empty_line(carry, 0, end)
            if start < 0:
                self._skip(carry, end - _OVERLAP)
                return
            self._end_large(start)
            framer.continue_after_large(carry, start, end)
        for kind, at, after, _ in one_by_one(framer.frames(carry, start, end, final)):
            if kind is FrameKind.OVERLONG:
                self._skips = True
                self._large = bytes(carry[at : at + MAX_TEXT_BYTES])
                self._cut = -at - len(self._large)
                self._skip(carry, end - _OVERLAP)
                return
            if kind in _EVENTS:
                self._show(bytes(carry[at:after]))
            elif kind in (FrameKind.BODY, FrameKind.LARGE_BODY):
                self.show_body(bytes(carry[at:after]))
        del carry[: framer.at]

    def _skip(self, carry: bytearray, count: int) -> None:
        """Drop bytes of an event that is too large, or joined in its middle."""
        if count > 0:
            self._cut += count
            del carry[:count]

    def _end_large(self, count: int) -> None:
        """An event that is skipped ends after so many more bytes."""
        self._skips = False
        large, self._large = self._large, b""
        if large:
            self._show(large, self._cut + count)

    def _copy_body(self, buffer: bytearray | bytes, first: int, last: int) -> None:
        """Copy passing bytes of a body that is not an event stream. It is shown at its end."""
        room = min(last - first, MAX_TEXT_BYTES - len(self._carry))
        self._carry += memoryview(buffer)[first : first + room]
        self._cut += last - first - room

    def show_whole(self, body: bytes) -> None:
        """Show a whole body of the upstream that no hook sees and no relay moves."""
        if self.body == "events" and self.open_copy(at_boundary=True) is not None:
            self._copy_events(body, 0, len(body))
        elif self.body == "text":
            self.show_body(body)

    def show_body(self, body: bytes) -> None:
        """Show a whole body that is not an event stream."""
        self._is_body = True
        self._show(body)

    def show_added(self, text: bytes, by: str, *, is_body: bool) -> None:
        """Show what `by`, an interceptor or the proxy, sends to the client: an event, or a body."""
        self._is_body = is_body
        self._show(text, stage=by, what="added", left="sent")

    def _show(
        self,
        text: bytes,
        cut: int = 0,
        *,
        stage: str = UPSTREAM,
        what: str = "arrived",
        left: str = "unchanged",
    ) -> None:
        """Show what no hook sees. `cut`: bytes that it lacks. `left`: what becomes of it."""
        self._number += 1
        feeds = self._feeds_for(begins=True)
        if not feeds:
            return
        first = Record(
            self._number,
            self._now(),
            stage,
            what,
            (text[:MAX_TEXT_BYTES],),
            cut + max(0, len(text) - MAX_TEXT_BYTES),
            is_body=self._is_body,
            begins=True,
        )
        last = first._replace(stage=CLIENT, what=left, begins=False)
        if left == "unchanged":
            last = last._replace(texts=(), cut=0)
        for feed in feeds:
            feed.put(first)
            feed.put(last)

    # --- head and end

    def head(self, head: dict[str, Any], body: BodyKind = "hidden") -> None:
        """Show the response's head."""
        self.body = body
        self._head = {"at": self._now(), **head}
        for feed in tuple(self._feeds):
            feed.put_head(self._head)

    def end(self, end: dict[str, Any]) -> None:
        """Show the end; nothing follows."""
        try:
            if self._framer is None and self._carry:
                self._is_body = True
                self._show(bytes(self._carry), self._cut)
            elif self._framer is not None and self._skips:
                self._end_large(len(self._carry))
            elif self._framer is not None:
                self._frame(self._framer, self._carry, final=True)
        except Exception:
            self._fail()
        self._on_idle = None
        for feed in tuple(self._feeds):
            feed.put_end({"at": self._now(), **end})
        self._feeds.clear()
        self._close()

    # --- records

    def _now(self) -> float:
        return round(trio.current_time() - self._zero, 6)

    def _begin(self, stage: str, what: str, events: Sequence[Event]) -> None:
        self._number += 1
        self._put(stage, what, events, begins=True)

    def _put(
        self,
        stage: str,
        what: str,
        events: Sequence[Event],
        seconds: float = 0.0,
        problem: str | None = None,
        begins: bool = False,
    ) -> None:
        feeds = self._feeds_for(begins=begins)
        if not feeds:
            return
        try:
            texts, cut = [], 0
            for event in events:
                text = event.data.encode() if self._is_body else event.raw
                texts.append(text[:MAX_TEXT_BYTES])
                cut += max(0, len(text) - MAX_TEXT_BYTES)
        except Exception as error:  # an event that cannot be encoded: the chain reports it
            texts, cut, what, problem = [], 0, "failed", problem or type(error).__name__
        record = Record(
            self._number,
            self._now(),
            stage,
            what,
            tuple(texts),
            cut,
            seconds,
            problem,
            self._is_body,
            begins,
        )
        for feed in feeds:
            feed.put(record)

    def _feeds_for(self, *, begins: bool) -> list[Feed]:
        """The feeds that want a record of the current event."""
        return [feed for feed in self._feeds if feed.wants(self._number, begins=begins)]

    def _fail(self) -> None:
        """A fault of the inspector must not reach the stream."""
        structlog.get_logger("proxy").error("internal_error", exc_info=True)
        self._feeds.clear()
        self._framer = None
        self._close()


def _outcome(event: Event, result: Any) -> tuple[str, Sequence[Event], str | None]:
    """What a hook has done with an event, the events after it, and why it failed."""
    if isinstance(result, Exception):
        return "failed", (), type(result).__name__
    events = events_in(result)
    if events is None:
        return "failed", (), "TypeError"
    if isinstance(result, End):
        return "ended", events, None
    if not events:
        return "dropped", (), None
    if any(item is event for item in events):
        return ("unchanged", (), None) if len(events) == 1 else ("added", events, None)
    return "changed", events, None
