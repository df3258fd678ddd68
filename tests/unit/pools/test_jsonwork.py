"""JSON in pooled buffers: pieces are contiguous, and a large one does not stay in the pool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from pools import BufferPool, BufferScope, PooledOutput, Pools, decode_json, encode_json

SIZE = 128


@pytest.fixture
def pool() -> BufferPool:
    return BufferPool("json", SIZE, 8)


@pytest.fixture
async def scope() -> AsyncIterator[BufferScope]:
    async with BufferScope() as scope:
        yield scope


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: data.decode()])
def test_json_is_decoded_from_every_kind_of_text(kind: Any) -> None:
    assert decode_json(kind('{"a":[1,"é",null]}'.encode())) == {"a": [1, "é", None]}


def test_decoding_in_place_keeps_no_view_of_the_buffer() -> None:
    buffer = bytearray(b'{"key":"value"}')
    with memoryview(buffer) as view:
        value = decode_json(view)
    buffer.clear()  # BufferError if something still saw it
    assert value == {"key": "value"}


def test_what_is_not_json_is_a_decode_error() -> None:
    for text in (b"", b"{", b"NaN", b"{} {}"):
        with pytest.raises(msgspec.DecodeError):
            decode_json(text)


def test_json_is_encoded_on_one_line() -> None:
    text = encode_json({"a": "x\ny\r", "b": [1.5, None]})
    assert b"\n" not in text
    assert b"\r" not in text
    assert json.loads(text) == {"a": "x\ny\r", "b": [1.5, None]}


async def test_a_piece_lies_where_it_was_written(pool: BufferPool, scope: BufferScope) -> None:
    output = PooledOutput(pool, scope)
    spans = []
    for value in ({"n": 1}, ["two"]):
        start = output.add_json(value, b"data: ", b"\n")
        output.extend(b"\n")
        spans.append((output.buffer, start, output.used))
    assert spans[0][0] is spans[1][0]
    assert [bytes(buffer[start:used]) for buffer, start, used in spans] == [
        b'data: {"n":1}\n\n',
        b'data: ["two"]\n\n',
    ]
    assert pool.statistics().in_use == 1
    output.close()
    assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 1)


async def test_nothing_is_borrowed_before_the_first_piece(
    pool: BufferPool, scope: BufferScope
) -> None:
    output = PooledOutput(pool, scope)
    output.close()
    assert pool.statistics().allocations == 0
    assert output.add(b"data") == 0
    assert pool.statistics().in_use == 1


@pytest.mark.parametrize("how", ["json", "bytes"])
async def test_a_piece_larger_than_the_buffer_is_whole_and_its_buffer_is_discarded(
    pool: BufferPool, scope: BufferScope, how: str
) -> None:
    output = PooledOutput(pool, scope)
    text = "x" * 50 * SIZE
    block = b'data: "' + text.encode() + b'"\n\n'
    start = output.add_json(text, b"data: ", b"\n\n") if how == "json" else output.add(block)
    assert bytes(output.buffer[start : output.used]) == block
    output.close()
    stats = pool.statistics()
    assert (stats.discards_oversize, stats.current_size, stats.in_use) == (1, 0, 0)


async def test_a_long_batch_rolls_over_to_new_leases_and_stays_pooled(scope: BufferScope) -> None:
    """Each piece is contiguous in one lease, and every buffer is pooled again."""
    pool = BufferPool("json", SIZE, 100)
    output = PooledOutput(pool, scope)
    spans = []
    for n in range(200):
        start = output.add_json({"piece": n})
        spans.append((output.buffer, start, output.used))
    assert [bytes(buffer[start:used]) for buffer, start, used in spans] == [
        b'{"piece":%d}' % n for n in range(200)
    ]
    leases = pool.statistics().in_use
    assert 10 < leases < 40
    assert len({id(buffer) for buffer, _, _ in spans}) == leases
    output.close()
    stats = pool.statistics()
    assert (stats.in_use, stats.current_size, stats.discards) == (0, leases, 0)


@pytest.mark.parametrize("how", ["json", "bytes"])
async def test_a_new_lease_begins_exactly_when_the_buffer_is_full(
    pool: BufferPool, scope: BufferScope, how: str
) -> None:
    """`used == size` rolls over, one byte less does not."""
    output = PooledOutput(pool, scope)
    output.add(b"x" * (SIZE - 1))
    assert output.add(b"y") == SIZE - 1
    first = output.buffer
    assert (output.add(b"z") if how == "bytes" else output.add_json(1)) == 0
    assert output.buffer is not first
    assert bytes(first[:SIZE]) == b"x" * (SIZE - 1) + b"y"


class Unspeakable:
    """JSON has no word for this."""


@pytest.mark.parametrize(
    "value", [Unspeakable(), {"a": ["x" * 1000, Unspeakable()]}], ids=["at once", "half way"]
)
async def test_a_value_that_json_cannot_represent_leaves_nothing(
    pool: BufferPool, scope: BufferScope, value: object
) -> None:
    """Nothing of the piece is left. `cut` removes a piece, too."""
    output = PooledOutput(pool, scope)
    output.add(b"before ")
    with pytest.raises(TypeError):
        output.add_json(value, b"data: ", b"\n\n")
    assert output.used == 7
    output.cut(output.add(b"data: "))
    output.add(b"after")
    assert bytes(output.buffer[: output.used]) == b"before after"


async def test_closing_again_and_writing_anew_both_work(
    pool: BufferPool, scope: BufferScope
) -> None:
    """`close` twice gives back once; the next piece borrows the pooled buffer."""
    output = PooledOutput(pool, scope)
    for _ in range(2):
        assert output.add_json([1]) == 0
        assert bytes(output.buffer[: output.used]) == b"[1]"
        output.close()
        output.close()
        assert (output.used, len(output.buffer)) == (0, 0)
    stats = pool.statistics()
    assert (stats.allocations, stats.reuses, stats.in_use) == (1, 1, 0)


async def test_a_view_of_a_piece_kept_after_close_costs_the_buffer() -> None:
    """Its bytes stay as they are."""
    pools = Pools()
    async with pools.open_scope() as scope:
        output = PooledOutput(pools.json, scope)
        output.add(b"mine")
        with memoryview(output.buffer)[: output.used] as kept:
            output.close()
            output.add(b"your")
            assert bytes(kept) == b"mine"
        assert pools.json.statistics().discards_exported == 1
