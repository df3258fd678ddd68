"""What a writer reports when it is stopped in the middle."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from proxy.downstream.asgi import AsgiWriter


async def take(message: Any) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_writer_is_stalled_until_its_head_or_its_bytes_have_left(cancelled: bool) -> None:
    """A server that is cancelled in it may have taken it or not."""
    writer = AsgiWriter(take)
    with trio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        assert not writer.start(200, [])
        await writer.drain()
    assert (writer.started, writer.stalled) == (True, cancelled)
    writer.write((b"data: x\n\n",))
    with trio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        await writer.drain()
    assert writer.stalled is cancelled
