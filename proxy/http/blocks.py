"""Field blocks of HTTP/2: HPACK (RFC 7541), sans I/O.

The tables and the Huffman code are those of `hpack`. Its decoder copies the rest of the block for
each field, so that one block of 256 KiB costs a quarter of a second; `BlockReader` is linear.
Responses use no dynamic table: no state outlives a block, and a block can be made at any time.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from .frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionBroken

__all__ = ["EMPTY_TABLE", "BlockReader", "encode_block"]

EMPTY_TABLE = b"\x20"
"""A table of size 0. It begins the first block of a connection, and holds for all others: whatever
table the peer allows, this encoder keeps to it (RFC 7541, section 4.2).
"""
_TABLE_BYTES = 4096  # SETTINGS_HEADER_TABLE_SIZE, which is not announced
_MAX_SHIFT = 28


class BlockReader:
    """Decodes the blocks of one connection, in order."""

    __slots__ = ("_max_list_bytes", "_table")

    def __init__(self, max_list_bytes: int) -> None:
        """`max_list_bytes`: of a list of fields, as in RFC 9113, section 10.5.1."""
        self._max_list_bytes = max_list_bytes
        self._table = HeaderTable()

    def read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The fields of a whole block. Raises `ConnectionBroken`: the state is lost."""
        try:
            return self._read(block)
        except (HPACKError, IndexError):
            raise ConnectionBroken(COMPRESSION_ERROR, "a header block is not HPACK") from None

    def _read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        table, fields = self._table, list[tuple[bytes, bytes]]()
        at, left = 0, self._max_list_bytes
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 0x7F)
                field = table.get_by_index(index)
            elif first & 0xE0 == 0x20:
                size, at = _integer(block, at, 0x1F)
                if fields or size > _TABLE_BYTES:
                    raise HPACKError("a table size out of place")
                table.maxsize = size
                continue
            else:
                index, at = _integer(block, at, 0x3F if first & 0x40 else 0x0F)
                if index:
                    name = table.get_by_index(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                field = name, value
                if first & 0x40:
                    table.add(name, value)
            left -= len(field[0]) + len(field[1]) + 32
            if left < 0:
                raise ConnectionBroken(ENHANCE_YOUR_CALM, "a list of fields is too large")
            fields.append(field)
        return fields


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer in the low bits of an octet and those that follow, and where it ends (RFC 7541,
    section 5.1).
    """
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        octet = block[at]
        at += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
        shift += 7
        if shift > _MAX_SHIFT:
            raise HPACKError("an integer is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    size, at = _integer(block, at, 0x7F)
    end = at + size
    if end > len(block):
        raise HPACKError("a string is cut")
    text = block[at:end]
    return (decode_huffman(text) if coded else text), end


_NAMES: dict[bytes, bytes] = {}
_STATUSES: dict[bytes, bytes] = {}
for _index, (_name, _value) in enumerate(HeaderTable.STATIC_TABLE, 1):
    # Literals without indexing, with the name's index in four bits and what follows.
    _NAMES.setdefault(_name, bytes((_index,) if _index < 15 else (15, _index - 15)))
    if _name == b":status":
        _STATUSES[_value] = bytes((0x80 | _index,))


def encode_block(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block with `:status` and these fields, names in lower case."""
    text = b"%d" % status
    parts = [_STATUSES.get(text) or b"\x08\x03" + text]
    for name, value in fields:
        index = _NAMES.get(name)
        if index is None:
            parts += (b"\x00", _length(len(name)), name, _length(len(value)), value)
        else:
            parts += (index, _length(len(value)), value)
    return b"".join(parts)


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    size -= 127
    result = bytearray((127,))
    while size > 127:
        result.append(0x80 | size & 0x7F)
        size >>= 7
    result.append(size)
    return bytes(result)
