"""Waiting for a client as `ClientResponse.flush` does, for tests of a mover without an exchange."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from proxy.downstream import Writer
from proxy.errors import SendStalled

__all__ = ["flush_of"]


def flush_of(writer: Writer, send_s: float = math.inf) -> Callable[[], Awaitable[None]]:
    """A `flush` for a mover: each wait for the client may take `send_s` seconds."""
    return partial(_flush, writer, send_s)


async def _flush(writer: Writer, send_s: float) -> None:
    done = False
    while not done:
        with trio.move_on_after(send_s) as scope:
            done = await writer.drain()
        if scope.cancelled_caught:
            raise SendStalled
