"""`View`: what one client watches: a bounded queue, and for each stream what is shown of it.

Taps put records; the client's own task takes messages. A view that is full loses whole events, which
it counts and shows. Decoding and encoding happen when messages are taken, never where events pass.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any

from .decoder import Decoder
from .messages import event_message, message
from .tap import CLIENT, Record, Tap
from .wanted import Wanted

__all__ = ["MAX_ITEMS", "MAX_QUEUED_BYTES", "View", "ViewFeed"]

MAX_ITEMS = 4096
"""Records that a view keeps for a client that reads slowly."""
MAX_QUEUED_BYTES = 1 << 21
"""Bytes of events that a view keeps, without the last event."""
_MAX_PENDING, _MAX_PENDING_BYTES = 24, 1 << 12
"""Messages of events, and bytes of one, that are kept until it is known whether a stream matches.
Events before those are lost.
"""

_SLICE = 32

_Item = Record | tuple[str, dict[str, Any]]


class View:
    """The streams that one client watches."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._queue: deque[tuple[ViewFeed, _Item]] = deque()
        self._bytes = 0
        self.feeds: set[ViewFeed] = set()
        self.shown = False
        """Whether a stream was shown."""
        self._lost_streams = 0

    @property
    def accepts(self) -> bool:
        """Whether it watches further streams that begin."""
        return not (self.wanted.once and self.shown)

    @property
    def over(self) -> bool:
        """Whether nothing is left to watch."""
        if self._queue or self.feeds:
            return False
        return self.wanted.exchange is not None or not self.accepts

    @property
    def has_room(self) -> bool:
        """Whether another event can be kept."""
        return len(self._queue) < MAX_ITEMS and self._bytes < MAX_QUEUED_BYTES

    def wants(self, about: dict[str, Any]) -> bool:
        """Whether to watch an exchange. One that would not fit is counted as lost."""
        if not self.wanted.matches(about):
            return False
        if not self.has_room:
            self._lost_streams += 1
            return False
        return True

    def note_shown(self, feed: ViewFeed) -> None:
        """A feed is shown. With `once`, no other is."""
        self.shown = True
        if self.wanted.once:
            for other in tuple(self.feeds):
                if other is not feed:
                    other.close()

    def keep(self, feed: ViewFeed, item: _Item, size: int = 0) -> None:
        """Add to the queue."""
        self._queue.append((feed, item))
        self._bytes += size

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take."""
        return not self._queue

    def take(self) -> list[bytes]:
        """The messages of what was queued first, as many as are encoded in about a millisecond. Never
        blocks.
        """
        messages: list[bytes] = []
        for _ in range(min(len(self._queue), _SLICE)):
            feed, item = self._queue.popleft()
            if isinstance(item, Record):
                self._bytes -= sum(map(len, item.texts))
            messages += feed.messages_of(item)
        if self._lost_streams and not self._queue:
            messages.append(message("lost", {"streams": self._lost_streams}))
            self._lost_streams = 0
        return messages

    def close(self) -> None:
        """Stop watching everything."""
        for feed in tuple(self.feeds):
            feed.close()
        self._queue.clear()


class _State(Enum):
    UNDECIDED = auto()
    """The events so far do not show whether the stream matches."""
    SHOWN = auto()
    REJECTED = auto()


class ViewFeed:
    """One exchange in one view. `put*` is the tap's side, `messages_of` the client's."""

    def __init__(self, view: View, about: dict[str, Any], tap: Tap) -> None:
        """`about`: the fields of `begin`."""
        self._view = view
        self._about = about
        self._exchange: str = about["exchange"]
        self._tap = tap
        # The tap's side.
        self._wants_events = view.wanted.needs_events
        self._lost = self._lost_in_all = 0
        self._losing = -1  # the event that is being lost
        # The client's side.
        self._decoder = Decoder(about["dialect"] or "", about["path"])
        self._state = _State.UNDECIDED
        self._pending: deque[tuple[bool, bytes]] = deque()
        self._head = b""
        self._missed = 0
        """Events that are lost because the stream was not shown yet."""
        self._lost_before = 0
        """Events that the queue had no room for before it was shown."""
        self._client: str | None = about["client"]
        self._has_head = False
        self._has_text = view.wanted.text is None
        self._arrived: tuple[bytes, ...] = ()
        view.feeds.add(self)
        view.keep(self, ("begin", about))
        tap.add(self)

    def close(self) -> None:
        """Stop watching it. Safe to call again."""
        self._tap.remove(self)
        self._view.feeds.discard(self)
        if self._state is _State.UNDECIDED:
            self._state = _State.REJECTED
            self._pending.clear()

    # --- the tap's side

    def wants(self, number: int, *, begins: bool) -> bool:
        """Whether there is room for a record of an event; if not, the whole event is lost."""
        if number == self._losing or not self._wants_events:
            return False
        if begins and not self._view.has_room:
            self._lost += 1
            self._losing = number
            return False
        return True

    def put(self, record: Record) -> None:
        """Keep a record."""
        if self._lost:
            self._put_lost()
        self._view.keep(self, record, sum(map(len, record.texts)))

    def put_head(self, head: dict[str, Any]) -> None:
        """Keep the head."""
        self._view.keep(self, ("head", head))

    def put_end(self, end: dict[str, Any]) -> None:
        """Keep the end."""
        if self._lost:
            self._put_lost()
        if self._lost_in_all:
            end = {**end, "lost": self._lost_in_all}
        self._view.keep(self, ("end", end))

    def _put_lost(self) -> None:
        lost, self._lost = self._lost, 0
        self._lost_in_all += lost
        self._view.keep(self, ("lost", {"events": lost}))

    # --- the client's side

    def messages_of(self, item: _Item) -> list[bytes]:
        """The messages to send for the next item of the queue."""
        if self._state is _State.REJECTED:
            return []
        was_open = self._state is _State.UNDECIDED
        made = self._read(item) if isinstance(item, Record) else self._pass(*item)
        if self._state is _State.UNDECIDED:
            self._hold(item, made)
        if self._state is not _State.SHOWN:
            return []
        messages = self._release() if was_open and self._view.wanted.decides_later else []
        return [*messages, made] if made else messages

    def _hold(self, item: _Item, made: bytes) -> None:
        """Keep a message until the stream is shown: the head, and the last whole events."""
        if not isinstance(item, Record):
            kind, fields = item
            if kind == "head":
                self._head = made
            elif kind == "lost":
                self._lost_before += fields["events"]
            return
        if not made:
            return
        pending = self._pending
        pending.append((item.begins, made))
        most = _MAX_PENDING if len(made) <= _MAX_PENDING_BYTES else 0
        while len(pending) > most or (pending and not pending[0][0]):
            begins, _ = pending.popleft()
            self._missed += begins

    def _release(self) -> list[bytes]:
        """What comes before the message that shows the stream."""
        messages = [message("begin", self._about)]
        if self._head:
            messages.append(self._head)
        if lost := self._missed + self._lost_before:
            messages.append(message("lost", {"exchange": self._exchange, "events": lost}))
        messages += [made for _, made in self._pending]
        self._pending.clear()
        return messages

    def _pass(self, kind: str, fields: dict[str, Any]) -> bytes:
        if kind == "begin":
            if not self._view.wanted.decides_later:
                self._decide()
            # Sent when the stream is shown, so that no number of pending messages displaces it.
            return message("begin", fields) if self._state is _State.SHOWN else b""
        if kind in ("head", "end"):
            self._client, self._has_head = fields.get("client", self._client), True
            self._decide()
        if kind == "end" and self._missed:
            fields = {**fields, "lost": fields.get("lost", 0) + self._missed}
        made = message(kind, {"exchange": self._exchange, **fields})
        if kind == "end":
            self.close()
        return made

    def _read(self, record: Record) -> bytes:
        parts: list[dict[str, Any]] = []
        if record.begins:
            self._arrived = record.texts
        if record.stage == CLIENT and self._decoder.reads:
            for text in self._arrived if record.what == "unchanged" else record.texts:
                parts += self._decoder.read(text, is_body=record.is_body)
        self._has_text = self._has_text or self._view.wanted.finds(record.texts)
        self._decide()
        events = self._view.wanted.events
        return event_message(self._exchange, record, parts) if events else b""

    def _decide(self) -> None:
        """Decide whether the stream is shown, if that is open and known by now."""
        if self._state is not _State.UNDECIDED:
            return
        matches = self._view.wanted.decide(
            self._client, self._decoder.model, has_head=self._has_head, has_text=self._has_text
        )
        if matches is None:
            return
        if not (matches and self._view.accepts):
            self.close()
            return
        self._state = _State.SHOWN
        self._wants_events = self._view.wanted.events
        self._view.note_shown(self)
