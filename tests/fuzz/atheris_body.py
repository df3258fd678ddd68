"""Coverage-guided fuzzing of the body framing. Needs the extra `fuzz`; `tests/fuzz/smoke.py` runs
it for a while.

    python tests/fuzz/atheris_body.py [-max_total_time=60] [a directory for the corpus]

Whatever bytes come, in whatever pieces: body bytes, or our refusal, and nothing else is raised;
what is kept between two reads is bounded; the cuts change nothing; and `split` finds what `frame`
finds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["proxy.http.body"]):
    from proxy.http.body import (
        MAX_CHUNK_HEADER_BYTES,
        MAX_TRAILER_BYTES,
        Chunked,
        ContentLength,
        Framing,
        UntilClose,
    )
from proxy.errors import ProtocolFailure

__all__: list[str] = []

_MOST_KEPT = max(MAX_CHUNK_HEADER_BYTES, MAX_TRAILER_BYTES)


def pieces_of(data: bytes, sizes: bytes) -> list[bytes]:
    """`data` cut into pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)] % 64 + 1 if sizes else len(data)
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


def frame(framing: Framing, pieces: list[bytes]) -> tuple[bytes, bool, bool]:
    """The body, whether it is complete, and whether it was refused."""
    body = b""
    for piece in pieces:
        buffer = bytearray(piece)
        try:
            first, last = framing.frame(buffer, 0, len(buffer))
        except ProtocolFailure:
            first, last = framing.framed
            return body + bytes(buffer[first:last]), framing.complete, True
        assert len(buffer) == len(piece)
        assert 0 <= first <= last <= len(piece)
        body += buffer[first:last]
        if isinstance(framing, Chunked):
            assert len(framing._line) <= _MOST_KEPT
    return body, framing.complete, False


def split(pieces: list[bytes]) -> tuple[bytes, bool, bool]:
    """As `frame`, by way of `split`."""
    framing, body = Chunked(), b""
    for piece in pieces:
        buffer, refused = bytearray(piece), False
        try:
            found = framing.split(buffer, len(buffer))
        except ProtocolFailure:
            found, refused = framing.was_split, True
        lead, wire, behind, first, last, size = found
        assert 0 <= lead <= wire <= behind <= first <= last <= len(piece)
        whole = bytes(buffer[wire:behind])
        unpacked, _, wrong = frame(Chunked(), [whole])
        assert not wrong
        data = bytes(buffer[:lead]) + unpacked + bytes(buffer[first:last])
        assert len(data) == size
        body += data
        if refused:
            return body, framing.complete, True
    return body, framing.complete, False


def one_input(data: bytes) -> None:
    """One body: its framing, the sizes of its pieces, its bytes."""
    if len(data) < 6:
        return
    kind, sizes, wire = data[0] % 4, data[1:5], data[5:]
    if kind == 0:
        length = int.from_bytes(sizes[:2], "big")
        body, complete, refused = frame(ContentLength(length), pieces_of(wire, sizes))
        assert (body, complete, refused) == (wire[:length], len(wire) >= length, False)
    elif kind == 1:
        assert frame(UntilClose(), pieces_of(wire, sizes)) == (wire, False, False)
    else:
        cut, whole = pieces_of(wire, sizes), [wire]
        read = frame(Chunked(), whole)
        assert frame(Chunked(), cut) == read
        assert split(cut) == read
        assert split(whole) == read


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
