"""Turns a client's request into an ASGI scope, with its target byte for byte, and never into a
WebSocket.

ASGI's `raw_path` and `query_string` cannot distinguish `/x?` from `/x`, and Hypercorn decodes the
path as ASCII, which raises for other bytes. `Upgrade` is ignored (RFC 9110, section 7.8): a
handshake for WebSocket or h2c is served as the plain request that it is. Extended CONNECT (RFC
8441) is not announced; it and a plain CONNECT are requests with that method.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import h2.events
import h2.exceptions
import h11
import hypercorn.protocol as hypercorn_protocol
from h2.settings import SettingCodes
from hypercorn.protocol import h2 as hypercorn_h2
from hypercorn.protocol import h11 as hypercorn_h11
from hypercorn.protocol.events import Body, Event, Request
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from priority.priority import MissingStreamError

_LEAST_OPENED = 16384

__all__ = ["ClientStream", "Http1", "Http2", "read_requests_plainly"]


class Taken(Protocol):
    """The messages of one request for the app."""

    acknowledge: Any
    """An async function that is awaited with the number of bytes taken."""

    @property
    def over(self) -> bool:
        """The app takes nothing more."""


class ClientStream(HTTPStream):
    """One request of a client."""

    target: bytes = b""
    """The request target, byte for byte."""
    messages: Taken | None = None
    """Messages for the app."""
    data_size = 0
    """Whether the last piece of the body has arrived."""

    async def handle(self, event: Event) -> None:
        if type(event) is Body:
            self.data_size = len(event.data)
        elif type(event) is Request:
            self.target = event.raw_path
            if not event.raw_path.isascii():
                event = replace(
                    event,
                    raw_path=event.raw_path.decode("ascii", "replace").encode("ascii", "replace"),
                )
        await super().handle(event)


class Http1(H11Protocol):
    """HTTP/1.1 without `Upgrade`."""

    async def _check_protocol(self, event: h11.Request) -> None:
        if (
            event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0"
        ):  # RFC 9113, section 3.4
            raise H2ProtocolAssumedError(
                b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0]
            )

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == b"upgrade" for name, _ in request.headers):
            kept = [
                (name, value)
                for name, value in request.headers.raw_items()
                if name.lower() != b"upgrade"
            ]
            request = h11.Request(
                method=request.method,
                headers=kept,
                target=request.target,
                http_version=request.http_version,
            )
        await super()._create_stream(request)


class Http2(H2Protocol):
    """HTTP/2 without extended CONNECT, and with a window for each stream that opens as its app
    takes data.

    Hypercorn opens the windows at once and stops reading the connection if an app takes nothing:
    then all of its streams stall, and resets are not read (RFC 9113, section 5.2.2). Here only the
    stream's window limits the app's queue.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.connection.local_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL]
        self._open_both = self.connection.acknowledge_received_data
        vars(self.connection)["acknowledge_received_data"] = self._acknowledge
        self._unopened = 0  # of the connection's window

    def _acknowledge(self, size: int, stream_id: int) -> None:
        """A data frame has been put into its app's queue."""
        stream: Any = self.streams.get(stream_id)
        messages = getattr(stream, "messages", None)
        if messages is None or messages.over:
            self._open_both(size, stream_id)  # discarded
            return
        self._unopened += size
        if self._unopened >= _LEAST_OPENED:
            self.connection.increment_flow_control_window(self._unopened)
            self._unopened = 0
        if padding := size - stream.data_size:
            self.connection.increment_flow_control_window(padding, stream_id)

    async def _priority_updated(self, event: h2.events.PriorityUpdated) -> None:
        """Ignore priorities (RFC 9113, section 5.3.2). Hypercorn remembers each named stream and
        fails at the 1000th.
        """

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        await super()._handle_events(events)
        for event in events:
            if isinstance(event, h2.events.StreamReset) and event.stream_id is not None:
                await self.forget(event.stream_id)

    async def _send_data(self, stream_id: int) -> None:
        with suppress(KeyError, MissingStreamError):  # forgotten meanwhile
            await super()._send_data(stream_id)

    async def forget(self, stream_id: int) -> None:
        """Forget a reset stream. Hypercorn keeps one that had nothing left to send and fails at
        1000 of them.
        """
        buffer = self.stream_buffers.pop(stream_id, None)
        if buffer is not None:
            await buffer.close()
        with suppress(MissingStreamError):
            self.priority.remove_stream(stream_id)

    async def open_window(self, stream_id: int, size: int) -> None:
        """The app has taken bytes of a stream."""
        try:
            self.connection.increment_flow_control_window(size, stream_id)
        except h2.exceptions.ProtocolError:  # it is closed
            return
        await self._flush()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        headers: Any = request.headers
        if not any(name == b":path" for name, _ in headers):  # CONNECT: RFC 9113, section 8.5
            headers.append((b":path", b""))
        await super()._create_stream(request)
        stream: Any = self.streams.get(request.stream_id)
        messages = getattr(stream, "messages", None)
        if messages is not None:
            messages.acknowledge = partial(self.open_window, request.stream_id)


def read_requests_plainly() -> None:
    """Let Hypercorn use these classes, if it is a known Hypercorn. Process-wide."""
    known = (
        (hypercorn_protocol, "H11Protocol", H11Protocol, Http1),
        (hypercorn_protocol, "H2Protocol", H2Protocol, Http2),
        (hypercorn_h11, "HTTPStream", HTTPStream, ClientStream),
        (hypercorn_h2, "HTTPStream", HTTPStream, ClientStream),
        (hypercorn_h2, "WSStream", WSStream, ClientStream),
    )
    if all(getattr(module, name, None) is theirs for module, name, theirs, _ in known):
        for module, name, _, ours in known:
            vars(module)[name] = ours
