"""Chunked framing as a strict reader takes it, and as h11 does."""

from __future__ import annotations

import re

import h11

__all__ = ["read_chunked", "unchunked"]

_PLAIN_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")


def unchunked(wire: bytes) -> list[bytes]:
    """The data of each chunk. Nothing but whole chunks may be there, without extensions, and none
    that ends the body.
    """
    chunks = []
    at = 0
    while at < len(wire):
        header = _PLAIN_HEADER.match(wire, at)
        assert header is not None, wire[at : at + 40]
        size = int(header[1], 16)
        assert size > 0, "the end of the body"
        chunks.append(wire[header.end() : header.end() + size])
        at = header.end() + size + 2
        assert wire[at - 2 : at] == b"\r\n", wire[at - 20 : at + 20]
    return chunks


def read_chunked(wire: bytes) -> bytes:
    """What h11 reads in the whole body of a chunked response. Raises what it raises; trailers are
    not expected.
    """
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    assert isinstance(connection.next_event(), h11.Response)
    data = bytearray()
    while isinstance(event := connection.next_event(), h11.Data):
        data += event.data
    assert isinstance(event, h11.EndOfMessage), event
    assert not event.headers
    assert connection.trailing_data == (b"", False)
    return bytes(data)
