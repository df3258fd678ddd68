"""An event as it arrived from upstream: a range of a leased buffer, parsed on first use.

The chain ends the life of a wire event before the buffer is reused. From then on every access
raises `StaleEvent`, also where the event was parsed before: the mistake must not depend on timing.
"""

from __future__ import annotations

from typing import Any

from pools import PooledOutput, decode_json

from .errors import NotJson, StaleEvent
from .event import UNSET, Event, JsonEvent, decode_text, not_json
from .needs import Finder
from .sse import Fields, parse_fields, unknown_lines

__all__ = ["WireEvent"]

_SPACE = 0x20
_UNSEEN, _ODD = 0, -1  # where the data begins: not looked up yet; not in the usual form
_BARE = len(b"data: ")  # data that begins within this many bytes has no event type before it

_new_event = Event.__new__


class WireEvent(Event):
    """The event in `buffer[start:end]`, stale after `end_of_life()`."""

    __slots__ = ("_buffer", "_fields", "_from", "_line", "_to", "_view", "whole")

    def __init__(
        self,
        buffer: bytes | bytearray,
        start: int,
        end: int,
        whole: bool = True,
        line: int = _UNSEEN,
        view: memoryview | None = None,
    ) -> None:
        """`whole`: the empty line that ends the event is there; only a stream's last may lack it.

        `line`: where the data begins, if it is known that the event is one line `data: ...` and an
        empty line, both ended by LF. `view`: a view of `buffer`, usable until `forget_view`.
        """
        self._buffer: bytes | bytearray | None = buffer
        self._from = start
        self._to = end
        self.whole: bool = whole
        self._line = line
        self._view = view
        self._fields: Fields | None = None
        self._json = UNSET

    def holds(self, need: Finder) -> bool:
        """Whether `need` finds something in the event's bytes."""
        buffer = self._buffer
        return buffer is not None and need(buffer, self._from, self._to) >= 0

    def end_of_life(self) -> None:
        """Make the event stale: its buffer is about to be reused."""
        self._buffer = self._view = None

    def forget_view(self) -> None:
        """Drop the view, which is about to be released. The event stays valid."""
        self._view = None

    @property
    def raw(self) -> bytes:
        """A copy of the event's bytes."""
        if self._buffer is None:
            raise StaleEvent
        return bytes(self._buffer[self._from : self._to])

    def _parse(self) -> Fields:
        buffer = self._buffer
        if buffer is None:
            raise StaleEvent
        if self._fields is None:
            line = self._data_at(buffer)
            if line > 0:
                text = bytes(buffer[line : self._to - 2]).decode("utf-8", "replace")
                self._fields = Fields(self._type(buffer, line), text, None, None)
            else:
                self._fields = parse_fields(bytes(buffer[self._from : self._to]))
        return self._fields

    @property
    def event(self) -> str | None:
        """The event's type."""
        buffer = self._buffer
        if buffer is not None and (line := self._data_at(buffer)) > 0:
            return self._type(buffer, line)
        return self._parse().event

    @property
    def id(self) -> str | None:
        """The `id` field."""
        return self._parse().id

    @property
    def retry(self) -> int | None:
        """The reconnection time in milliseconds."""
        return self._parse().retry

    @property
    def data(self) -> str:
        """The data as text."""
        buffer = self._buffer
        if buffer is not None and (line := self._line or self._data_at(buffer)) > 0:
            return bytes(buffer[line : self._to - 2]).decode("utf-8", "replace")
        return self._parse().data or ""

    @property
    def unknown(self) -> str:
        """The lines that are not fields of an event."""
        buffer = self._buffer
        if buffer is None:
            raise StaleEvent
        return "" if self._data_at(buffer) > 0 else unknown_lines(self.raw)

    def json(self) -> Any:
        """The data decoded as JSON, in place where it is one line. Raises `NotJson`."""
        buffer = self._buffer
        if buffer is None:
            raise StaleEvent
        if self._json is UNSET:
            line = self._line or self._data_at(buffer)
            if line > 0:
                view = self._view
                try:
                    # The slice is bound to no name, so that no export of the buffer outlives this.
                    self._json = decode_json(
                        (view if view is not None else memoryview(buffer))[line : self._to - 2]
                    )
                except (ValueError, RecursionError) as error:
                    raise not_json(error) from None
            else:
                self._json = decode_text(self._strict_data())
        return self._json

    def replace(
        self,
        data: str | None = None,
        *,
        json: Any = UNSET,
        event: str | None = UNSET,
        id: str | None = UNSET,
        retry: int | None = UNSET,
    ) -> Event:
        """Return a new event with the given fields changed."""
        buffer = self._buffer
        if (
            json is not UNSET
            and buffer is not None
            and data is None
            and event is UNSET
            and id is UNSET
            and retry is UNSET
        ):
            # The usual change needs no check: without `__init__` this takes half the time.
            line = self._line or self._data_at(buffer)
            if 0 < line <= self._from + _BARE:
                bare = _new_event(JsonEvent)
                bare._json = json
                return bare
            if line > 0:
                made = _new_event(Event)
                made._event = self._type(buffer, line)
                made._id = made._retry = made._data = None
                made._json = json
                return made
        return super().replace(data, json=json, event=event, id=id, retry=retry)

    def _strict_data(self) -> str:
        """The data for `json`: replacement characters would make it another JSON text."""
        try:
            self.raw.decode()
        except UnicodeDecodeError:
            raise NotJson("this event's data is not JSON: it is not UTF-8") from None
        return self.data

    def _data_at(self, buffer: bytes | bytearray) -> int:
        """Where the data begins, or `_ODD`.

        Known for the usual form only: one `data` line, optionally after an `event` line, and an
        empty line, all ended by LF.
        """
        if self._line != _UNSEEN:
            return self._line
        start = at = self._from
        last = self._to - 2
        if buffer.startswith(b"event:", start):
            at = buffer.find(b"\n", start, last) + 1
        line = _ODD
        if (
            at >= start
            and buffer.startswith(b"data:", at)
            and buffer.find(b"\n", at, self._to) == last
            and buffer.find(b"\r", start, last) < 0
        ):
            line = at + 6 if buffer[at + 5] == _SPACE else at + 5
        self._line = line
        return line

    def _type(self, buffer: bytes | bytearray, line: int) -> str | None:
        """The type of an event in the usual form, whose data begins at `line`."""
        start = self._from
        if line <= start + _BARE:
            return None
        start += 7 if buffer[start + 6] == _SPACE else 6
        return bytes(buffer[start : buffer.find(b"\n", start)]).decode("utf-8", "replace")

    def detach(self) -> Event:
        """Return a copy that stays valid after the hook returns."""
        copy = self._copy()
        return WireEvent(copy, 0, len(copy), self.whole)

    def add_to(self, output: PooledOutput) -> int:
        """Write the event to `output`; return its start in `output.buffer`."""
        return output.add(self._copy())

    def _copy(self) -> bytes:
        """The bytes, completed if the last CRLF was cut: its LF stays with the next bytes."""
        raw = self.raw
        return raw + b"\n" if raw.endswith(b"\r\n\r") else raw

    def _content(self) -> tuple[str | None, Any]:
        return self._parse().data, UNSET

    def __repr__(self) -> str:
        return "<WireEvent, over>" if self._buffer is None else super().__repr__()
