"""JSON in pooled buffers: a shared decoder and encoder, and output written to leases.

`msgspec.json.Encoder.encode_into` truncates the `bytearray` after what it wrote, so output is
appended; the pool restores the length later. msgspec 0.19 to 0.22 also resize the buffer while they
write, so pooling saves the object and a copy here, not the resize.
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

# Bound methods, not wrappers: each call counts per event.
decode_json: Callable[[bytes | bytearray | memoryview | str], Any] = msgspec.json.Decoder().decode
"""Decode one JSON text (RFC 8259) in place. Keeps no reference to it.

Raises `msgspec.DecodeError`, `UnicodeDecodeError` and `RecursionError`.
"""


encode_json: Callable[[Any], bytes] = _encoder.encode
"""Encode to new bytes, on one line.

Raises `TypeError` or `msgspec.EncodeError` for a value that JSON cannot represent, and
`UnicodeEncodeError` for a lone surrogate.
"""


def encode_any_json(value: Any) -> bytes:
    """As `encode_json`, but a lone surrogate is escaped. Only lenient readers accept that."""
    try:
        return encode_json(value)
    except UnicodeEncodeError:
        return _escaped(value)


def _escaped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class PooledOutput:
    """The output of one batch, written in pieces to leases of one pool.

    `add` and `add_json` write a piece and return its start in `buffer`; `used` is then its end. A
    piece is contiguous and does not move until `close()` releases the leases. After `pool.size`
    bytes the next piece starts a new lease, so buffers stay poolable. Take views only after the
    last piece of the batch: a buffer with a view cannot grow.
    """

    __slots__ = ("_leases", "_pool", "_scope", "_size", "buffer")

    def __init__(self, pool: BufferPool, scope: BufferScope) -> None:
        self._pool = pool
        self._size = pool.size
        self._scope = scope
        self._leases: list[Lease] = []
        self.buffer = bytearray()
        """The bytes written to the current lease."""

    @property
    def used(self) -> int:
        """The position of the next byte in `buffer`."""
        return len(self.buffer)

    def add(self, data: bytes) -> int:
        """Write a piece. Returns its start in `buffer`."""
        start = self._begin()
        self.buffer += data
        return start

    def add_json(self, value: Any, before: bytes = b"", after: bytes = b"") -> int:
        """Write `before`, the encoded `value` and `after` as a piece. Returns its start in
        `buffer`.

        Raises as `encode_any_json`, and then leaves nothing in the buffer.
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
        """Append to the last piece."""
        self.buffer += data

    def _begin(self) -> int:
        """Borrow a new lease if the current one is full. Returns the start of the next piece."""
        used = len(self.buffer)
        if used < self._size and self._leases:
            return used
        lease = self._scope.acquire(self._pool)
        self._leases.append(lease)
        self.buffer = lease.buffer
        del self.buffer[:]  # the pool restores the length
        return 0

    def cut(self, at: int) -> None:
        """Remove everything from `at` on."""
        del self.buffer[at:]

    def close(self) -> None:
        """Release the leases. Release all views of pieces before. Can be called twice."""
        self.buffer = bytearray()
        while self._leases:
            lease = self._leases.pop()
            if not lease.returned:  # unless the scope ended first
                self._scope.release(lease)
