"""What a writer reports when it is stopped in the middle."""

from __future__ import annotations

from typing import Any

import trio

from proxy.downstream.asgi import AsgiWriter


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
