"""Valid input with a mistake in it, cut anywhere, for parsers that must agree about what they
refuse; and h11 as the other parser.
"""

from __future__ import annotations

from itertools import pairwise

import h11
from hypothesis import strategies as st

__all__ = ["cut", "cuts", "edited", "h11_client"]


def edited(wire: bytes, at: int, removed: int, added: bytes) -> bytes:
    """Valid input with one mistake anywhere; the rest is valid if the mistake is not seen."""
    at %= len(wire)
    return wire[:at] + added + wire[at + removed :]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
"""Positions for `cut`."""


def cut(wire: bytes, positions: list[int]) -> list[bytes]:
    """`wire` in pieces, none of them empty: an empty read is the end of the connection."""
    bounds = sorted({0, len(wire), *(position % (len(wire) + 1) for position in positions)})
    return [wire[start:end] for start, end in pairwise(bounds)]


def h11_client(method: str = "GET") -> h11.Connection:
    """A client that has sent its request, and reads up to 1 MiB of a head."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    return connection
