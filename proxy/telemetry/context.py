"""W3C Trace Context, level 1: `traceparent` and `tracestate`, read and written.

Tolerant: a field that breaks the grammar counts as absent, and a `traceparent` that does is dropped
with its `tracestate`. It knows no sampling and no span.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import getrandbits

import msgspec

__all__ = [
    "RANDOM",
    "SAMPLED",
    "TRACE_FIELDS",
    "TraceContext",
    "new_ids",
    "read_context",
]

TRACE_FIELDS = frozenset((b"traceparent", b"tracestate"))

SAMPLED = 1
RANDOM = 2
"""Level 2: the trace id is random, so that samplers can decide by it. Level 1 ignores it."""

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\x00-\x1f]*)?")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
# Section 3.3.1.3. As level 2, which lets every key begin with a digit.
_KEY = rb"[a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_MEMBER = re.compile(
    rb"(" + _KEY + rb")=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MOST_MEMBERS = 32
_NOT_ZERO = 1 << 191 | 1 << 63
"""A bit of each id: neither must be zero. Not one of the 64 bits by which samplers decide."""
_MOST_BYTES = 512
_LONG_MEMBER_BYTES = 128


class TraceContext(msgspec.Struct, frozen=True):
    """A span of another service, as a message names it."""

    trace_id: str
    """32 hexadecimal digits, lower case, not all zero."""
    span_id: str
    """16 hexadecimal digits, lower case, not all zero."""
    flags: int
    """`SAMPLED` and `RANDOM`; other bits are removed (section 3.2.2.5)."""
    state: bytes = b""
    """The value of `tracestate`; empty without one."""

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)


def read_context(parents: Sequence[bytes], states: Sequence[bytes] = ()) -> TraceContext | None:
    """The context in the values of all `traceparent` and `tracestate` fields of a message, in their
    order; None if there is none, or an invalid one. Never raises.
    """
    if len(parents) != 1:
        return None
    found = _PARENT.fullmatch(parents[0].strip(b" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    # Section 3.2.4: a later version may append fields.
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(
        trace_id.decode("ascii"),
        span_id.decode("ascii"),
        int(flags, 16) & (SAMPLED | RANDOM),
        _read_state(states) if states else b"",
    )


def _read_state(values: Sequence[bytes]) -> bytes:
    """The members of `tracestate` in one field, shortened to what must be passed on; b"" for a list
    that breaks the grammar.
    """
    members = [
        stripped for item in b",".join(values).split(b",") if (stripped := item.strip(b" \t"))
    ]
    if len(members) > _MOST_MEMBERS:
        return b""
    keys = set()
    for member in members:
        found = _MEMBER.fullmatch(member)
        if found is None:
            return b""
        keys.add(found[1])
    if len(keys) < len(members):
        return b""
    size = sum(map(len, members)) + len(members) - 1
    if size > _MOST_BYTES:  # section 3.3.1.5: long members go first, then the last ones
        members = [member for member in members if len(member) <= _LONG_MEMBER_BYTES]
        while members and sum(map(len, members)) + len(members) - 1 > _MOST_BYTES:
            members.pop()
    return b",".join(members)


def new_ids() -> tuple[str, str]:
    """A random trace id and a random span id."""
    digits = (getrandbits(192) | _NOT_ZERO).to_bytes(24, "big").hex()  # faster than a format
    return digits[:32], digits[32:]
