"""The event, as an interceptor sees it.

`Event` is one that somebody made: it owns its fields. `WireEvent` is one that came from upstream:
indices into a window that is on loan, parsed when first asked. The chain ends a wire event when its
bytes move on; from then on touching it raises `StaleEvent`, because the window holds another
stream's bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pools import PooledOutput, decode_json, encode_any_json

from .errors import NotJson, StaleEvent
from .needs import Finder
from .sse import BOM, Fields, encode_event, encode_head, parse_fields, unknown_lines

__all__ = ["UNSET", "BodyEvent", "Event", "JsonEvent", "WireEvent", "not_for_a_body", "not_json"]

_SPACE = 0x20
_UNSEEN, _ODD = (
    0,
    -1,
)  # for where the data of a wire event begins: nobody has looked yet; the block is not of the usual kind
_BARE = len(
    b"data: "
)  # nothing but the field's name comes before the data of an event that has no type

UNSET: Any = type("Unset", (), {"__repr__": lambda _: "UNSET", "__bool__": lambda _: False})()
"""Not given; None is a value that JSON and fields have."""


class Event:
    """One Server-Sent Event.

    Make one with `Event(data="text")` or `Event(json=value)`; `event`, `id` and `retry`
    (milliseconds) are optional. Events are values: `replace` gives a new one. Raises `ValueError`
    for a field that cannot be written.
    """

    __slots__ = ("_data", "_event", "_id", "_json", "_retry", "made_by")

    made_by: Any
    """Which hook of the chain returned it; the chain's own note."""

    is_body: bool = False
    """Whether this is the whole body of a response that is not a stream, whatever its content type
    says.
    """

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
        if event is not None or id is not None or retry is not None:
            encode_head(
                event, id, retry
            )  # refused here, where the mistake is, and not when the event leaves
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
            return encode_any_json(self._json).decode() if self._json is not UNSET else ""
        return self._data

    @property
    def unknown(self) -> str:
        """The lines of the block that are no fields of an event, as some servers send them; ""
        where there are none.

        `replace` leaves them out.
        """
        return ""

    @property
    def raw(self) -> bytes:
        """The block as bytes, its empty line included: for a wire event the very bytes that came (a
        copy of them).
        """
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
        """A new event with the given fields changed (None removes a field) and the others as they
        are.

        `data=""` leaves an event without data as it is: with an empty `data` line it would become a
        message.
        """
        own_data, own_json = self._content()
        if (data is None and json is UNSET) or (
            data == "" and own_data is None and own_json is UNSET
        ):
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

    def add_to(self, output: PooledOutput) -> int:
        """Write the block as a piece of `output`, JSON straight into the pooled buffer; where it
        begins in `output.buffer`.
        """
        if self._data is not None or self._json is UNSET:
            return output.add(self.raw)
        before = b"data: "
        if self._event is not None or self._id is not None or self._retry is not None:
            before = encode_head(self._event, self._id, self._retry) + before
        return output.add_json(self._json, before, b"\n\n")

    def _content(self) -> tuple[str | None, Any]:
        return (self._data, UNSET) if self._data is not None else (None, self._json)

    def __repr__(self) -> str:
        # No data: it may be secret, and this ends up in logs.
        return f"<{type(self).__name__} event={self.event!r} id={self.id!r}>"


_new_event = Event.__new__


class JsonEvent(Event):
    """An event that is JSON data and nothing else: what `replace(json=...)` makes of nearly every
    event. One field to set.
    """

    __slots__ = ()
    _data = _event = _id = _retry = None

    def add_to(self, output: PooledOutput) -> int:
        return output.add_json(self._json, b"data: ", b"\n\n")


class WireEvent(Event):
    """An event as it came: `buffer[start:end]`, parsed when first asked, stale after
    `end_of_life()`.
    """

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
        """`whole`: it has the empty line that ends it; only the last of a stream may lack it.
        `line`: where its data begins, if it is known to be one line `data: ...` and an empty one,
        both ended by LF. `view`: of the buffer, lent until `forget_view` or the end of life.
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
        """Whether something that is needed is in the event's bytes."""
        buffer = self._buffer
        return buffer is not None and need(buffer, self._from, self._to) >= 0

    def end_of_life(self) -> None:
        """The bytes move on. The chain does this when the event has left."""
        self._buffer = self._view = None

    def forget_view(self) -> None:
        """The view is about to be released, and the event lives on."""
        self._view = None

    @property
    def raw(self) -> bytes:
        if self._buffer is None:
            raise StaleEvent
        return bytes(self._buffer[self._from : self._to])

    def _parse(self) -> Fields:
        # Stale even when parsed before: an event that sometimes answers would hide the mistake.
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
        buffer = self._buffer
        if buffer is not None and (line := self._data_at(buffer)) > 0:
            return self._type(buffer, line)
        return self._parse().event

    @property
    def id(self) -> str | None:
        return self._parse().id

    @property
    def retry(self) -> int | None:
        return self._parse().retry

    @property
    def data(self) -> str:
        buffer = self._buffer
        if buffer is not None and (line := self._line or self._data_at(buffer)) > 0:
            return bytes(buffer[line : self._to - 2]).decode("utf-8", "replace")
        return self._parse().data or ""

    @property
    def unknown(self) -> str:
        buffer = self._buffer
        if buffer is None:
            raise StaleEvent
        return "" if self._data_at(buffer) > 0 else unknown_lines(self.raw)

    def json(self) -> Any:
        buffer = self._buffer
        if buffer is None:
            raise StaleEvent
        if self._json is UNSET:
            line = self._line or self._data_at(buffer)
            if line > 0:
                view = self._view
                try:
                    # No name is bound to the slice, so that nothing is left of it when this returns
                    # or raises.
                    self._json = decode_json(
                        (view if view is not None else memoryview(buffer))[line : self._to - 2]
                    )
                except (ValueError, RecursionError) as error:
                    raise not_json(error) from None
            else:
                self._json = _decode(self._strict_data())
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
        buffer = self._buffer
        if (
            json is not UNSET
            and buffer is not None
            and data is None
            and event is UNSET
            and id is UNSET
            and retry is UNSET
        ):
            # The usual changes by far: nothing but data was there, or a type, and `__init__` would
            # take twice the time to find nothing to check.
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
        """The data, but not with replacement characters for what is not UTF-8: that would be
        another JSON text.
        """
        try:
            self.raw.decode()
        except UnicodeDecodeError:
            raise NotJson("this event's data is not JSON: it is not UTF-8") from None
        return self.data

    def _data_at(self, buffer: bytes | bytearray) -> int:
        """Where the data begins, when the block is one `data` line, or an `event` line and a `data`
        line, ended by LF: what nearly every event is. Else `_ODD`.
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
        """The type of an event whose data begins at `line`, as `_data_at` tells."""
        start = self._from
        if line <= start + _BARE:
            return None
        start += 7 if buffer[start + 6] == _SPACE else 6
        return bytes(buffer[start : buffer.find(b"\n", start)]).decode("utf-8", "replace")

    def detach(self) -> Event:
        copy = self._copy()
        return WireEvent(copy, 0, len(copy), self.whole)

    def add_to(self, output: PooledOutput) -> int:
        return output.add(self._copy())

    def _copy(self) -> bytes:
        """The bytes, where they leave apart from what came: an LF that follows the last CR of CRLF
        then stays behind.
        """
        raw = self.raw
        return raw + b"\n" if raw.endswith(b"\r\n\r") else raw

    def _content(self) -> tuple[str | None, Any]:
        return self._parse().data, UNSET

    def __repr__(self) -> str:
        return "<WireEvent, over>" if self._buffer is None else super().__repr__()


class BodyEvent(Event):
    """The body of a JSON response, shown as one event: `data` is its text without a BOM, `raw` its
    bytes.

    Replace its `json` or its `data`; what has no meaning for a body (`event`, `id`, `retry`, a
    second event, none) is refused.
    """

    __slots__ = ("_body",)

    is_body = True

    def __init__(self, body: bytes | bytearray | memoryview) -> None:
        self._body: bytes | bytearray | memoryview | None = body
        self._event = self._id = self._retry = None
        self._data = None
        self._json = UNSET

    @classmethod
    def of(cls, event: Event) -> BodyEvent:
        """The body that a hook made by returning `event`, for later hooks. Raises what encoding its
        `json` raises.
        """
        if isinstance(event, BodyEvent):
            return event
        body = cls(event.data.encode())
        body._json = event._json
        return body

    def end_of_life(self) -> None:
        """The bytes move on."""
        self._body = None

    @property
    def raw(self) -> bytes:
        return bytes(self._bytes())

    @property
    def data(self) -> str:
        return self.raw.decode("utf-8", "replace").removeprefix("\ufeff")

    def json(self) -> Any:
        body = self._bytes()
        if self._json is UNSET:
            try:
                self._json = decode_json(
                    body[len(BOM) :] if bytes(body[: len(BOM)]) == BOM else body
                )
            except (ValueError, RecursionError) as error:
                raise not_json(error, "this response's body") from None
        return self._json

    def detach(self) -> Event:
        return BodyEvent(self.raw)

    def add_to(self, output: PooledOutput) -> int:
        return output.add(self.raw)

    def _content(self) -> tuple[str | None, Any]:
        return self.data, UNSET

    def _bytes(self) -> bytes | bytearray | memoryview:
        if self._body is None:
            raise StaleEvent
        return self._body

    def __repr__(self) -> str:
        return "<BodyEvent>"


def not_for_a_body(event: Event) -> str | None:
    """What a hook did wrong that returned this event instead of a `BodyEvent`: only a stream could
    carry it. None if nothing.
    """
    if isinstance(event, BodyEvent) or (
        event.event is None and event.id is None and event.retry is None
    ):
        return None
    return "returned an event with a type, an id or a retry, expected one with json or data: the response is no stream"


def _decode(text: str) -> Any:
    try:
        return decode_json(text)
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def not_json(error: Exception, what: str = "this event's data") -> NotJson:
    """Why not, without the data."""
    if isinstance(error, msgspec.DecodeError):
        return NotJson(f"{what} is not JSON: {error}")
    if isinstance(error, RecursionError):
        return NotJson(f"{what} is nested too deep to decode")
    return NotJson(f"{what} is not JSON: it is not UTF-8")
