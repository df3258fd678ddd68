"""The interface of the two writers.

A writer sends one response. The order is: `start`, then any number of `write`s, each answered with
False followed by `drain` before anything else, then `finish` or `abort`. Only `write` is
synchronous: the relay calls it from `pump()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from interceptors.chain import Part

from ..http.headers import HeaderList

__all__ = ["Message", "Receive", "Scope", "Send", "Writer", "has_no_body"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Writer(Protocol):
    """Sends one response to the client."""

    name: str
    """`asgi` or `direct`: in the log and in a metric."""
    synchronous: bool
    """Whether a `write` can leave without a `drain`."""

    @property
    def started(self) -> bool:
        """Whether a head has been sent, so that no other can be."""
        ...

    bytes_sent: int
    """Bytes of the body that were handed over, without framing."""

    @property
    def stalled(self) -> bool:
        """Whether bytes, or the head, are waiting to leave, before which nothing else may."""
        ...

    async def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> None:
        """Send the head. `whole`: the whole body is at hand and follows at once, so that the head
        may leave with it.

        Raises `ClientGone`.
        """
        ...

    def write(self, parts: Sequence[Part]) -> bool:
        """Take all parts, in order. True: they have left, and the caller may reuse their memory at
        once.

        False: they were taken, but must leave through `drain()` first; their memory is free in this
        case, too. Never blocks. Raises `ClientGone`.
        """
        ...

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        """As `write`, of whole chunks that are framed already and hold `size` bytes. Only of a
        writer that is `synchronous`.
        """
        ...

    async def drain(self) -> bool:
        """Wait until the client takes something, and give it that. True when everything has left;
        else call again.

        Blocks as long as the client takes nothing: each call is one wait, and the caller sets its
        deadline. Raises `ClientGone`.
        """
        ...

    async def finish(self) -> None:
        """End the response clean; a writer that is not `synchronous` sends along what is unsent.
        Raises `ClientGone`.
        """
        ...

    async def abort(self) -> None:
        """End it such that the client sees that it is not whole. Bounded in time, also when
        cancelled; raises nothing.
        """
        ...


def has_no_body(method: str, status: int) -> bool:
    """RFC 9110, section 6.4.1: a response to HEAD, 1xx, 204 and 304 have no body."""
    return method == "HEAD" or status < 200 or status in (204, 304)
