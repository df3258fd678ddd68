"""JSON in pooled buffers: one decoder and one encoder, reused, and the leases that a batch of output is written to.

`msgspec.json.Encoder.encode_into` writes at an offset and cuts the `bytearray` behind what it wrote; the pool restores the
length when the lease returns. (msgspec 0.19 to 0.22 resize the buffer as they write, whatever room it had, so what pooling
saves here is the object and the copy into place, not the resize.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .buffers import BufferPool, Lease
from .scope import BufferScope

__all__ = ["PooledOutput", "decode_json", "encode_json"]

_encoder = msgspec.json.Encoder()
_encode_into = _encoder.encode_into

# The methods themselves, not functions around them: an event pays for every call.
decode_json: Callable[[bytes | bytearray | memoryview | str], Any] = msgspec.json.Decoder().decode
"""Decode one JSON text (RFC 8259), read in place. Raises `msgspec.DecodeError`; keeps no reference to what it read."""

encode_json: Callable[[Any], bytes] = _encoder.encode
"""Encode to new bytes, on one line. Raises `TypeError` or `msgspec.EncodeError` for what JSON cannot say."""


class PooledOutput:
    """The output of one batch, written piece by piece into leases of one pool.

    `begin()` a piece, `write()` and `write_json()` it, and note `(buffer, start, used)`: a piece lies whole in one buffer
    and stays where it is until `close()`, which gives the leases back. A lease that holds `pool.size` bytes is followed
    by a new one, so that a long batch grows no buffer out of the pool. A piece that failed half way is undone by setting
    `used` back to its start.
    """

    __slots__ = ("_leases", "_pool", "_scope", "buffer", "used")

    def __init__(self, pool: BufferPool, scope: BufferScope) -> None:
        self._pool = pool
        self._scope = scope
        self._leases: list[Lease] = []
        self.buffer = bytearray()
        self.used = 0

    def begin(self) -> int:
        """Make room for a piece and return where it starts in `buffer`."""
        if not self._leases or self.used >= self._pool.size:
            lease = self._scope.acquire(self._pool)
            self._leases.append(lease)
            self.buffer = lease.buffer
            self.used = 0
        return self.used

    def write(self, data: bytes) -> None:
        """Append bytes to the piece."""
        used = self.used + len(data)
        self.buffer[self.used : used] = data
        self.used = used

    def write_json(self, value: Any, before: bytes = b"", after: bytes = b"") -> None:
        """Append the encoding of `value` to the piece, between two strings. Errors as `encode_json`; `used` is then unchanged."""
        buffer, used = self.buffer, self.used
        at = used + len(before)
        buffer[used:at] = before
        _encode_into(value, buffer, at)
        buffer += after
        self.used = len(buffer)

    def close(self) -> None:
        """Give the leases back; every view of a piece should be gone. Safe to call again."""
        self.buffer = bytearray()
        self.used = 0
        while self._leases:
            lease = self._leases.pop()
            if not lease.returned:  # the scope may have ended before
                self._scope.release(lease)
