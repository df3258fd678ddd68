"""What a heartbeat looks like, and how one goes out beside something else that is awaited.

A heartbeat is a comment line with one line end (WHATWG HTML, section 9.2.6): it begins no event,
and ends none. An empty line behind it would: clients have been seen to take that for an event
without data. While a relay moves a stream, its mover sees to heartbeats; here is what beats when
there is no relay yet, or when it has to wait for something else.

It knows neither heads nor writers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

__all__ = ["PING", "only_accepts_streams", "with_heartbeats"]

PING = b": ping\n"

T = TypeVar("T")


async def with_heartbeats(
    step: Callable[[], Awaitable[T]], wait_s: float | None, beat: Callable[[], Awaitable[float]]
) -> T:
    """Await `step` in the calling task, and `beat` in another: after `wait_s` seconds, and then
    again after as many as it returns.

    None: never. A beat that has begun is finished before this returns, so that whatever it writes
    is whole. Raises what `step` raises, and what `beat` raises, which cancels `step`. When a beat
    fails that was under way as `step` returned, its result is lost: what it has opened, somebody
    else must know, too.
    """
    if wait_s is None:
        return await step()
    over = trio.Event()
    results: list[T] = []
    failure: Exception | None = None

    async def beats(wait_s: float, scope: trio.CancelScope) -> None:
        nonlocal failure
        while not over.is_set():
            with trio.move_on_after(wait_s):
                await over.wait()
                return
            try:
                wait_s = await beat()
            except Exception as error:
                failure = failure or error
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beats, wait_s, nursery.cancel_scope)
        try:
            results.append(await step())
        except Exception as error:
            failure = (
                failure or error
            )  # raised outside of the nursery, which would wrap it in a group
        over.set()
    if failure is not None:
        raise failure
    return results[0]


def only_accepts_streams(accept: list[bytes]) -> bool:
    """Whether the values of `Accept` (RFC 9110, section 12.5.1) leave no other answer than an event
    stream.

    A client that names other types, too, may get one of those: MCP's clients name JSON and event
    streams in every request, and the answer to most is JSON. `*/*` beside it is no other type's
    name.
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
    """A weight of zero: not acceptable."""
    for item in parameters.split(b";"):
        name, _, value = item.partition(b"=")
        if name.strip().lower() == b"q":
            return not value.strip().strip(b"0.")
    return False
