"""The event, as an interceptor sees it.

`Event` is one that somebody made: it owns its fields. `WireEvent` is one that came from upstream: indices into a window that
is on loan, parsed when first asked. The chain ends a wire event when its bytes move on; from then on touching it raises
`StaleEvent`, because the window holds another stream's bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pools import PooledOutput, decode_json, encode_json

from .errors import NotJson, StaleEvent
from .sse import Fields, encode_event, encode_head, parse_fields

__all__ = ["UNSET", "Event", "WireEvent"]

UNSET: Any = type("Unset", (), {"__repr__": lambda _: "UNSET", "__bool__": lambda _: False})()
"""Not given; None is a value that JSON and fields have."""


class Event:
    """One Server-Sent Event.

    Make one with `Event(data="text")` or `Event(json=value)`; `event`, `id` and `retry` (milliseconds) are optional. Events
    are values: `replace` gives a new one. Raises `ValueError` for a field that cannot be written.
    """

    __slots__ = ("_data", "_event", "_id", "_json", "_retry", "made_by")

    made_by: int
    """Which hook of the chain returned it; the chain's own note."""

    def __init__(
        self,
        data: str | None = None,
        *,
        json: Any = UNSET,
        event: str | None = None,
        id: str | None = None,
        retry: int | None = None,
    ) -> None:
        if data is not None and json is not UNSET:
            raise ValueError("an event has either data or json, not both")
        encode_head(event, id, retry)  # refused here, where the mistake is, and not when the event leaves
        self._event = event
        self._id = id
        self._retry = retry
        self._data = data
        self._json = json

    @property
    def event(self) -> str | None:
        """The event's type, None when it names none (a browser then says "message")."""
        return self._event

    @property
    def id(self) -> str | None:
        return self._id

    @property
    def retry(self) -> int | None:
        """The reconnection time in milliseconds, None when the event sets none."""
        return self._retry

    @property
    def data(self) -> str:
        """The data as text, its lines joined with LF; "" when there is none."""
        if self._data is None:
            return encode_json(self._json).decode() if self._json is not UNSET else ""
        return self._data

    @property
    def raw(self) -> bytes:
        """The block as bytes, its empty line included: for a wire event the very bytes that came (a copy of them)."""
        text = self.data if self._data is not None or self._json is not UNSET else None
        return encode_event(Fields(self._event, text, self._id, self._retry))

    def json(self) -> Any:
        """The data decoded as JSON, once; later calls give the same object. Raises `NotJson`."""
        if self._json is UNSET:
            self._json = _decode(self.data)
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
        """A new event with the given fields changed (None removes a field) and the others as they are.

        `data=""` leaves an event without data as it is: with an empty `data` line it would become a message.
        """
        own_data, own_json = self._content()
        if (data is None and json is UNSET) or (data == "" and own_data is None and own_json is UNSET):
            data, json = own_data, own_json
        return Event(
            data,
            json=json,
            event=self.event if event is UNSET else event,
            id=self.id if id is UNSET else id,
            retry=self.retry if retry is UNSET else retry,
        )

    def detach(self) -> Event:
        """An event with the same content that may be kept."""
        return self

    def write_to(self, output: PooledOutput) -> None:
        """Append the block to a piece of `output`; JSON is encoded straight into the pooled buffer."""
        if self._data is None and self._json is not UNSET:
            output.write(encode_head(self._event, self._id, self._retry) + b"data: ")
            output.write_json(self._json)
            output.write(b"\n\n")
        else:
            output.write(self.raw)

    def _content(self) -> tuple[str | None, Any]:
        return (self._data, UNSET) if self._data is not None else (None, self._json)

    def __repr__(self) -> str:
        # No data: it may be secret, and this ends up in logs.
        return f"<{type(self).__name__} event={self.event!r} id={self.id!r}>"


class WireEvent(Event):
    """An event as it came: `buffer[start:end]`, parsed when first asked, stale after `end_of_life()`."""

    __slots__ = ("_buffer", "_fields", "_from", "_to", "whole")

    def __init__(self, buffer: bytes | bytearray, start: int, end: int, *, whole: bool = True) -> None:
        """`whole`: it has the empty line that ends it; only the last of a stream may lack it."""
        self._buffer: bytes | bytearray | None = buffer
        self._from = start
        self._to = end
        self.whole = whole
        self._fields: Fields | None = None
        self._json = UNSET

    def end_of_life(self) -> None:
        """The bytes move on. The chain calls this when the event has left."""
        self._buffer = None

    @property
    def raw(self) -> bytes:
        if self._buffer is None:
            raise StaleEvent
        return bytes(self._buffer[self._from : self._to])

    def _parse(self) -> Fields:
        # Stale even when parsed before: an event that sometimes answers would hide the mistake.
        if self._buffer is None:
            raise StaleEvent
        if self._fields is None:
            self._fields = parse_fields(bytes(self._buffer[self._from : self._to]))
        return self._fields

    @property
    def event(self) -> str | None:
        return self._parse().event

    @property
    def id(self) -> str | None:
        return self._parse().id

    @property
    def retry(self) -> int | None:
        return self._parse().retry

    @property
    def data(self) -> str:
        return self._parse().data or ""

    def json(self) -> Any:
        if self._buffer is None:
            raise StaleEvent
        if self._json is UNSET:
            at = self._single_data_line()
            if at is None:
                self._json = _decode(self._strict_data())
            else:
                with memoryview(self._buffer)[at[0] : at[1]] as text:
                    self._json = _decode(text)
        return self._json

    def _strict_data(self) -> str:
        """The data, but not with replacement characters for what is not UTF-8: that would be another JSON text."""
        try:
            self.raw.decode()
        except UnicodeDecodeError:
            raise NotJson("this event's data is not JSON: it is not UTF-8") from None
        return self.data

    def _single_data_line(self) -> tuple[int, int] | None:
        """Where the data is, when the whole block is one `data` line ended by LF: the usual case, read in place."""
        buffer, start = self._buffer, self._from
        assert buffer is not None
        if buffer[start : start + 5] != b"data:":
            return None
        end = buffer.find(b"\n", start, self._to)
        if end != self._to - 2 or buffer.find(b"\r", start, end) >= 0:
            return None
        return (start + 6 if buffer[start + 5] == 0x20 else start + 5), end

    def detach(self) -> Event:
        return WireEvent(self.raw, 0, self._to - self._from, whole=self.whole)

    def write_to(self, output: PooledOutput) -> None:
        output.write(self.raw)

    def _content(self) -> tuple[str | None, Any]:
        return self._parse().data, UNSET

    def __repr__(self) -> str:
        return "<WireEvent, over>" if self._buffer is None else super().__repr__()


def _decode(text: str | memoryview) -> Any:
    try:
        return decode_json(text)
    except msgspec.DecodeError as error:
        raise NotJson(f"this event's data is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise NotJson("this event's data is not JSON: it is not UTF-8") from None
    except RecursionError:
        raise NotJson("this event's data is nested too deep to decode") from None
