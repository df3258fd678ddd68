"""JSON in pooled buffers: pieces are contiguous, and a large one does not stay in the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pools import BufferPool, BufferScope, PooledOutput

SIZE = 128


@pytest.fixture
async def pool() -> BufferPool:
    return BufferPool("json", SIZE, 100)


@pytest.fixture
async def output(pool: BufferPool) -> AsyncIterator[PooledOutput]:
    async with BufferScope() as scope:
        yield PooledOutput(pool, scope)


def counters(pool: BufferPool, *names: str) -> tuple[int, ...]:
    return tuple(getattr(pool.statistics(), name) for name in names)


async def test_a_piece_lies_where_it_was_written(pool: BufferPool, output: PooledOutput) -> None:
    """Nothing is borrowed before the first. After `close`, which may be called twice, the next
    batch borrows the pooled buffer.
    """
    output.close()
    assert counters(pool, "allocations") == (0,)
    for _ in range(2):
        spans = []
        for value in ({"n": 1}, ["two"]):
            start = output.add_json(value, b"data: ", b"\n")
            output.extend(b"\n")
            spans.append(bytes(output.buffer[start : output.used]))
        assert spans == [b'data: {"n":1}\n\n', b'data: ["two"]\n\n']
        assert counters(pool, "in_use") == (1,)
        output.close()
        output.close()
        assert (output.used, len(output.buffer)) == (0, 0)
    assert counters(pool, "allocations", "reuses", "in_use", "current_size") == (1, 1, 0, 1)


@pytest.mark.parametrize("how", ["json", "bytes"])
async def test_a_piece_larger_than_the_buffer_is_whole_and_its_buffer_is_discarded(
    pool: BufferPool, output: PooledOutput, how: str
) -> None:
    text = "x" * 50 * SIZE
    block = b'data: "' + text.encode() + b'"\n\n'
    start = output.add_json(text, b"data: ", b"\n\n") if how == "json" else output.add(block)
    assert bytes(output.buffer[start : output.used]) == block
    output.close()
    assert counters(pool, "discards_oversize", "current_size", "in_use") == (1, 0, 0)


async def test_a_long_batch_takes_new_leases(pool: BufferPool, output: PooledOutput) -> None:
    """Each piece is contiguous in one lease, and every buffer is pooled again."""
    spans = []
    for n in range(200):
        start = output.add_json({"piece": n})
        spans.append((output.buffer, start, output.used))
    pieces = [bytes(buffer[start:used]) for buffer, start, used in spans]
    assert pieces == [b'{"piece":%d}' % n for n in range(200)]
    leases = pool.statistics().in_use
    assert 10 < leases < 40
    assert len({id(buffer) for buffer, _, _ in spans}) == leases
    output.close()
    assert counters(pool, "in_use", "current_size", "discards") == (0, leases, 0)


@pytest.mark.parametrize("how", ["json", "bytes"])
async def test_a_full_buffer_takes_a_new_lease(output: PooledOutput, how: str) -> None:
    """`used == size` rolls over, one byte less does not."""
    output.add(b"x" * (SIZE - 1))
    assert output.add(b"y") == SIZE - 1
    first = output.buffer
    assert (output.add(b"z") if how == "bytes" else output.add_json(1)) == 0
    assert output.buffer is not first
    assert bytes(first[:SIZE]) == b"x" * (SIZE - 1) + b"y"


@pytest.mark.parametrize("value", [object(), {"a": ["x" * 1000, object()]}], ids=["once", "half"])
async def test_an_unencodable_value_leaves_nothing(output: PooledOutput, value: object) -> None:
    """`cut` removes a piece, too."""
    output.add(b"before ")
    with pytest.raises(TypeError):
        output.add_json(value, b"data: ", b"\n\n")
    assert output.used == 7
    output.cut(output.add(b"data: "))
    output.add(b"after")
    assert bytes(output.buffer[: output.used]) == b"before after"


async def test_a_kept_view_costs_the_buffer(pool: BufferPool, output: PooledOutput) -> None:
    output.add(b"mine")
    with memoryview(output.buffer)[: output.used] as kept:
        output.close()
        output.add(b"your")
        assert bytes(kept) == b"mine"
    assert counters(pool, "discards_exported") == (1,)
