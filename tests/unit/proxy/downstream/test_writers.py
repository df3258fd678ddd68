"""What a writer reports when it is stopped in the middle."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from proxy.downstream.asgi_writers import AsgiWriter, DirectWriter


async def take(message: Any) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_writer_is_stalled_until_its_head_or_its_bytes_have_left(cancelled: bool) -> None:
    """A server that is cancelled in it may have taken it or not."""
    writer = AsgiWriter(take, None)
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


async def test_the_direct_writer_is_stalled_while_bytes_are_unsent() -> None:
    """Nothing else may be written meanwhile; afterwards an error event may."""
    ours, far = socket.socketpair()
    connection = type("Connection", (), {"sock": ours})()
    ours.setblocking(False)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(far))

    async def read() -> None:
        async for _ in client:
            pass

    with ours, trio.fail_after(10):
        async with client, trio.open_nursery() as nursery:
            writer = DirectWriter(take, connection)
            assert not writer.start(200, [])
            await writer.drain()
            assert (writer.write((b"data: x\n\n",)), writer.stalled) == (True, False)
            assert (writer.write((bytes(4_000_000),)), writer.stalled) == (False, True)
            nursery.start_soon(read)
            while not await writer.drain():
                assert writer.stalled
            assert not writer.stalled
            nursery.cancel_scope.cancel()
