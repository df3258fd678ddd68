"""JSON in pooled buffers: one decoder and one encoder, reused, and the leases that a batch of
output is written to.

`msgspec.json.Encoder.encode_into` cuts the `bytearray` behind what it wrote, so output is appended;
the pool restores the length when the lease returns. (msgspec 0.19 to 0.22 resize the buffer as they
write, whatever room it had, so what pooling saves here is the object and the copy into place, not
the resize.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from .buffers import BufferPool, Lease
from .scope import BufferScope

__all__ = ["PooledOutput", "decode_json", "encode_any_json", "encode_json"]

_encoder = msgspec.json.Encoder()
_encode_into = _encoder.encode_into

# The methods themselves, not functions around them: an event pays for every call.
decode_json: Callable[[bytes | bytearray | memoryview | str], Any] = msgspec.json.Decoder().decode
"""Decode one JSON text (RFC 8259), read in place. Raises `msgspec.DecodeError`; keeps no reference
to what it read.
"""


encode_json: Callable[[Any], bytes] = _encoder.encode
"""Encode to new bytes, on one line. Raises `TypeError` or `msgspec.EncodeError` for what JSON
cannot say, and `UnicodeEncodeError` for half of a surrogate pair.
"""


def encode_any_json(value: Any) -> bytes:
    """As `encode_json`, with half of a surrogate pair as an escape: only lax readers take it."""
    try:
        return encode_json(value)
    except UnicodeEncodeError:
        return _escaped(value)


def _escaped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class PooledOutput:
    """The output of one batch, written piece by piece into leases of one pool.

    `add` and `add_json` write a piece each and tell where it begins; note `(buffer, start, used)`:
    a piece lies whole in one buffer and stays where it is until `close()`, which gives the leases
    back. A lease that holds `pool.size` bytes is followed by a new one, so that a long batch grows
    no buffer out of the pool. Views of a piece must not be taken before the last one of the batch
    is written: a buffer that is seen cannot grow.
    """

    __slots__ = ("_leases", "_pool", "_scope", "_size", "buffer")

    def __init__(self, pool: BufferPool, scope: BufferScope) -> None:
        self._pool = pool
        self._size = pool.size
        self._scope = scope
        self._leases: list[Lease] = []
        self.buffer = bytearray()
        """What has been written, and nothing else: appending is what msgspec does best."""

    @property
    def used(self) -> int:
        """Where the next byte goes in `buffer`."""
        return len(self.buffer)

    def add(self, data: bytes) -> int:
        """A piece of these bytes; where it begins in `buffer`."""
        start = self._begin()
        self.buffer += data
        return start

    def add_json(self, value: Any, before: bytes = b"", after: bytes = b"") -> int:
        """A piece of the encoding of `value` between two strings; where it begins in `buffer`.

        Errors as `encode_any_json`; nothing of it is left then.
        """
        start = len(self.buffer)
        if start >= self._size or not self._leases:
            start = self._begin()
        buffer = self.buffer
        try:
            buffer += before
            try:
                _encode_into(value, buffer, -1)
            except UnicodeEncodeError:
                del buffer[start + len(before) :]
                buffer += _escaped(value)
            buffer += after
        except BaseException:
            del buffer[start:]
            raise
        return start

    def extend(self, data: bytes) -> None:
        """Let the last piece go on with these bytes."""
        self.buffer += data

    def _begin(self) -> int:
        """Make room for a piece; where it begins in `buffer`."""
        used = len(self.buffer)
        if used < self._size and self._leases:
            return used
        lease = self._scope.acquire(self._pool)
        self._leases.append(lease)
        self.buffer = lease.buffer
        del self.buffer[:]  # the pool restores the length
        return 0

    def cut(self, at: int) -> None:
        """Take back what was written from `at` on."""
        del self.buffer[at:]

    def close(self) -> None:
        """Give the leases back; every view of a piece should be gone. Safe to call again."""
        self.buffer = bytearray()
        while self._leases:
            lease = self._leases.pop()
            if not lease.returned:  # the scope may have ended before
                self._scope.release(lease)
