"""Chunked framing as a strict reader takes it, and as h11 does; and a framing of the proxy, read by
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import h11

from proxy.errors import ProtocolFailure
from proxy.http.body import Chunked, Framing

__all__ = ["Step", "frame_steps", "read_chunked", "split_steps", "unchunked"]

_OLD = b"\r\n4\r\nold!\r\n"  # an earlier read may have left anything after this one
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


class Step(NamedTuple):
    """What a framing has made of one read."""

    data: bytes
    complete: bool
    surplus: bool
    refusal: str


def frame_steps(framing: Framing, pieces: Iterable[bytes], prefix: bytes = b"") -> list[Step]:
    """`frame` of each read, after `prefix` in the buffer; ends with a refused read.

    Nothing else in the buffer changes, and the data joins the prefix.
    """
    steps = []
    for piece in pieces:
        buffer, start, end = bytearray(prefix + piece + _OLD), len(prefix), len(prefix + piece)
        refusal = ""
        try:
            first, last = framing.frame(buffer, start, end)
        except ProtocolFailure as error:
            (first, last), refusal = framing.framed, str(error)
        assert start <= first <= last <= end
        assert not start or first == start
        assert (buffer[:start], buffer[end:]) == (prefix, _OLD)
        buffer.append(0)  # raises BufferError if a view is left
        steps.append(Step(bytes(buffer[first:last]), framing.complete, framing.surplus, refusal))
        if refusal:
            break
    return steps


def split_steps(framing: Chunked, pieces: Iterable[bytes]) -> tuple[list[Step], bytes]:
    """The same of `split`, and what a relay would send: the chunks that stay whole as they came, and
    all other data framed anew.

    Whole chunks are unchanged, without extensions, and have at least four bytes.
    """
    steps, sent = [], b""
    for piece in pieces:
        buffer, refusal = bytearray(piece + _OLD), ""
        try:
            split = framing.split(buffer, len(piece))
        except ProtocolFailure as error:
            split, refusal = framing.was_split, str(error)
        lead, wire, after, first, last, size = split
        assert 0 <= lead <= wire <= after <= first <= last <= len(piece)
        assert wire == (lead + 2 if lead else 0)
        assert buffer[len(piece) :] == _OLD
        before, whole, rest = bytes(buffer[:lead]), bytes(buffer[wire:after]), buffer[first:last]
        assert (before, whole) == (piece[:lead], piece[wire:after])
        chunks = unchunked(whole)
        assert all(len(chunk) >= 4 for chunk in chunks)
        data = b"".join([before, *chunks, rest])
        assert len(data) == size
        sent += _chunk(before) + whole + _chunk(rest)
        steps.append(Step(data, framing.complete, framing.surplus, refusal))
        if refusal:
            break
    return steps, sent


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
