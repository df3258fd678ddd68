"""What a client still sends over HTTP/2 for a stream that has been answered already."""

from __future__ import annotations

from typing import Any

from hypercorn.events import Event
from hypercorn.protocol.h2 import H2Protocol

__all__ = ["take_late_data"]


class _Answered:
    """In the place of a stream that is over."""

    async def handle(self, event: Event) -> None:
        """Nobody wants it."""


class _Streams(dict[int, Any]):
    """The live streams of a connection, and for each other one, whose data is on its way, something
    that takes it.

    RFC 9113, section 8.1: a server may answer before it has the whole request. Hypercorn then
    raises `KeyError` for what comes of the request, out of the connection, out of the server, out
    of the process. `in` tells of live streams only, as ever.
    """

    def __missing__(self, stream_id: int) -> _Answered:
        return _Answered()


def take_late_data(protocol: Any) -> None:
    """Let a connection, if it is one over HTTP/2, take the data of streams that are over."""
    if isinstance(protocol, H2Protocol) and type(protocol.streams) is dict:
        protocol.streams = _Streams(protocol.streams)
