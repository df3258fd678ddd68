"""What a writer reports when it is stopped in the middle."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import trio

from proxy.downstream.asgi import AsgiWriter
from proxy.downstream.direct import DirectWriter


async def test_a_writer_that_is_cancelled_in_its_head_is_stalled() -> None:
    """The server may have taken the head or not."""
    taken: list[Any] = []

    async def send(message: Any) -> None:
        await trio.sleep_forever()
        taken.append(message)

    writer = AsgiWriter(send, None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.start(200, [])
    assert (writer.started, writer.stalled, taken) == (True, True, [])


async def test_a_writer_whose_head_has_left_is_not_stalled() -> None:
    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    writer = AsgiWriter(send, None)
    await writer.start(200, [])
    assert (writer.started, writer.stalled) == (True, False)


async def test_the_direct_writer_is_stalled_while_bytes_are_unsent() -> None:
    """Nothing else may be written meanwhile; afterwards an error event may."""

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    ours, client = socket.socketpair()
    with ours, client:
        ours.setblocking(False)
        connection: Any = SimpleNamespace(sock=ours)
        writer = DirectWriter(send, connection)
        await writer.start(200, [])
        assert (writer.write((b"data: x\n\n",)), writer.stalled) == (True, False)
        assert (writer.write((bytes(4_000_000),)), writer.stalled) == (False, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, _read_all, client)
            try:
                with trio.fail_after(10):
                    while not await writer.drain():
                        assert writer.stalled
            finally:
                ours.shutdown(socket.SHUT_WR)
        assert not writer.stalled


def _read_all(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass
