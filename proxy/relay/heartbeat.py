"""Heartbeats: what they are, and how to send them while something else is awaited.

A heartbeat is a comment line with one line end (WHATWG HTML, section 9.2.6), which neither begins
nor ends an event. An empty line after it would end one: some clients take that for an event without
data. While a relay moves a stream, its mover sends heartbeats; `with_heartbeats` does so before
there is a relay, and while hooks are awaited. This module must not know heads or writers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

__all__ = ["PING", "only_accepts_streams", "with_heartbeats"]

PING = b": ping\n"

T = TypeVar("T")


async def with_heartbeats(
    step: Callable[[], Awaitable[T]],
    wait_s: float | None,
    send_heartbeat: Callable[[], Awaitable[float]],
) -> T:
    """Await `step`, and call `send_heartbeat` in another task: after `wait_s` seconds, and again
    after as many seconds as it returns. `wait_s` None: never.

    A heartbeat that has begun finishes before this returns, so its bytes are whole. Raises what
    `step` raises, and what `send_heartbeat` raises, which cancels `step`. If a heartbeat fails
    after `step` has returned, the result of `step` is lost: its owner must know what it opened.
    """
    if wait_s is None:
        return await step()
    over = trio.Event()
    results: list[T] = []
    failure: Exception | None = None

    async def send_all(wait_s: float, scope: trio.CancelScope) -> None:
        nonlocal failure
        while not over.is_set():
            with trio.move_on_after(wait_s):
                await over.wait()
                return
            try:
                wait_s = await send_heartbeat()
            except Exception as error:
                failure = failure or error
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, wait_s, nursery.cancel_scope)
        try:
            results.append(await step())
        except Exception as error:
            failure = failure or error  # raised below: the nursery would wrap it in a group
        over.set()
    if failure is not None:
        raise failure
    return results[0]


def only_accepts_streams(accept: list[bytes]) -> bool:
    """Whether the values of `Accept` (RFC 9110, section 12.5.1) allow only an event stream.

    MCP clients name JSON and event streams in every request, and most answers are JSON. `*/*` does
    not count as another type.
    """
    wanted = False
    for item in b",".join(accept).split(b","):
        name, _, parameters = item.partition(b";")
        kind = name.strip().lower()
        if kind in (b"", b"*/*") or _is_refused(parameters):
            continue
        if kind != b"text/event-stream":
            return False
        wanted = True
    return wanted


def _is_refused(parameters: bytes) -> bool:
    """Whether the weight is zero: not acceptable."""
    for item in parameters.split(b";"):
        name, _, value = item.partition(b"=")
        if name.strip().lower() == b"q":
            return not value.strip().strip(b"0.")
    return False
