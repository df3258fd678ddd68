"""Data that a client still sends over HTTP/2 for a stream that has been answered."""

from __future__ import annotations

from typing import Any

from hypercorn.events import Event
from hypercorn.protocol.h2 import H2Protocol

__all__ = ["take_late_data"]


class _Answered:
    """Takes the place of a stream that is over."""

    async def handle(self, event: Event) -> None:
        """Discard an event."""


class _Streams(dict[int, Any]):
    """The live streams of a connection. Looking up any other stream returns one that discards its
    data.

    A server may answer before it has the whole request (RFC 9113, section 8.1). Hypercorn then
    raises `KeyError` for the rest, which ends the process. `in` still tests for live streams.
    """

    def __missing__(self, stream_id: int) -> _Answered:
        return _Answered()


def take_late_data(protocol: Any) -> None:
    """Let an HTTP/2 connection discard the data of streams that are over."""
    if isinstance(protocol, H2Protocol) and type(protocol.streams) is dict:
        protocol.streams = _Streams(protocol.streams)
