"""Events as interceptors see them.

`Event` is an event that a hook or a test created; it owns its fields. `BodyEvent` is a whole JSON
body, shown as one event. Events from upstream are in `wire_event`. An event can write itself; it
knows nothing of hooks, the chain or the connection.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pools import PooledOutput, decode_json, encode_any_json

from .errors import NotJson, StaleEvent
from .sse import BOM, Fields, encode_event, encode_head

__all__ = ["UNSET", "BodyEvent", "Event", "JsonEvent", "not_for_a_body", "not_json"]

UNSET: Any = type("Unset", (), {"__repr__": lambda _: "UNSET", "__bool__": lambda _: False})()
"""Default of arguments for which None is a valid value."""


class Event:
    """One Server-Sent Event (WHATWG HTML, section 9.2).

    Create one with `Event(data="text")` or `Event(json=value)`; `event` (the type), `id` and
    `retry` (milliseconds) are optional. Events are immutable: `replace` returns a new one.

    Raises `ValueError` for both `data` and `json`, for a line break in `event` or `id`, for NUL in
    `id`, and for a negative `retry`.
    """

    __slots__ = ("_data", "_event", "_id", "_json", "_retry", "made_by")

    made_by: Any
    """Internal: the hook that returned this event."""

    is_body: bool = False
    """Whether this is the whole body of a response that is not an event stream."""

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
            raise ValueError("an event takes either data or json, not both")
        if event is not None or id is not None or retry is not None:
            encode_head(event, id, retry)  # raise here, where the mistake is made
        self._event = event
        self._id = id
        self._retry = retry
        self._data = data
        self._json = json

    @property
    def event(self) -> str | None:
        """The event's type, None if it has no `event` field (browsers then dispatch `message`)."""
        return self._event

    @property
    def id(self) -> str | None:
        """The `id` field, None if there is none."""
        return self._id

    @property
    def retry(self) -> int | None:
        """The reconnection time in milliseconds, None if there is no `retry` field."""
        return self._retry

    @property
    def data(self) -> str:
        """The data as text, lines joined with LF; "" if there is none.

        Bytes that are not UTF-8 are replaced by U+FFFD.
        """
        if self._data is None:
            return encode_any_json(self._json).decode() if self._json is not UNSET else ""
        return self._data

    @property
    def unknown(self) -> str:
        """The lines that are not fields of an event, "" if there are none.

        Browsers ignore such lines, some servers send them. `replace` drops them.
        """
        return ""

    @property
    def raw(self) -> bytes:
        """The event as bytes, with the empty line that ends it.

        For an event from upstream, a copy of the bytes as they arrived.
        """
        text = self.data if self._data is not None or self._json is not UNSET else None
        return encode_event(Fields(self._event, text, self._id, self._retry))

    def json(self) -> Any:
        """The data decoded as JSON. Later calls return the same object.

        Raises `NotJson` for data that is not JSON in UTF-8 (RFC 8259) or nested too deeply.
        """
        if self._json is UNSET:
            self._json = decode_text(self.data)
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
        """Return a new event with the given fields changed. None removes a field.

        `data=""` on an event without data keeps it without: an empty `data` line would turn it into
        a message. Raises `ValueError` as the constructor does.
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
        """Return an event with the same content that stays valid after the hook returns."""
        return self

    def add_to(self, output: PooledOutput) -> int:
        """Internal: write the event to `output`; return its start in `output.buffer`.

        JSON is encoded directly into the pooled buffer.
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
        # Without data: it may be secret, and reprs end up in logs.
        return f"<{type(self).__name__} event={self.event!r} id={self.id!r}>"


class JsonEvent(Event):
    """An event with JSON data and no other field: the usual result of `replace(json=...)`."""

    __slots__ = ()
    _data = _event = _id = _retry = None

    def add_to(self, output: PooledOutput) -> int:
        """Write the event to `output`; return its start in `output.buffer`."""
        return output.add_json(self._json, b"data: ", b"\n\n")


class BodyEvent(Event):
    """A JSON response body, shown as one event.

    `data` is its text without a BOM, `raw` its bytes. A hook can replace `json` or `data`. Fields
    and results that only a stream can carry (a type, an id, a second event, none) are errors.
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
        """The body for later hooks after a hook returned `event`.

        Raises what encoding its `json` raises.
        """
        if isinstance(event, BodyEvent):
            return event
        body = cls(event.data.encode())
        body._json = event._json
        return body

    def end_of_life(self) -> None:
        """Make the event stale: its buffer is about to be reused."""
        self._body = None

    @property
    def raw(self) -> bytes:
        """A copy of the body."""
        return bytes(self._bytes())

    @property
    def data(self) -> str:
        """The body as text, without a BOM."""
        return self.raw.decode("utf-8", "replace").removeprefix("\ufeff")

    def json(self) -> Any:
        """The body decoded as JSON. Later calls return the same object. Raises `NotJson`."""
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
        """Return a copy that stays valid after the hook returns."""
        return BodyEvent(self.raw)

    def add_to(self, output: PooledOutput) -> int:
        """Write the body to `output`; return its start in `output.buffer`."""
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
    """Why a hook cannot return this event for a JSON body; None if it can."""
    if isinstance(event, BodyEvent) or (
        event.event is None and event.id is None and event.retry is None
    ):
        return None
    return (
        "returned an event with a type, an id or a retry, expected one with json or data: "
        "the response is not a stream"
    )


def decode_text(text: str) -> Any:
    """Decode an event's data. Raises `NotJson`."""
    try:
        return decode_json(text)
    except (ValueError, RecursionError) as error:
        raise not_json(error) from None


def not_json(error: Exception, what: str = "this event's data") -> NotJson:
    """The error for data that cannot be decoded; its message does not show the data."""
    if isinstance(error, msgspec.DecodeError):
        return NotJson(f"{what} is not JSON: {error}")
    if isinstance(error, RecursionError):
        return NotJson(f"{what} is nested too deeply to decode")
    return NotJson(f"{what} is not JSON: it is not UTF-8")
