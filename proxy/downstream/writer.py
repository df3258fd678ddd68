"""The interface of the two writers.

A writer sends one response: `start`, then any number of `write`s, each followed by `drain` before
anything else if it returns False, then `finish`. Only `write` is synchronous: the relay
calls it from `pump()`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from interceptors.chain import Part

from ..http.headers import HeaderList

__all__ = ["Message", "Receive", "Scope", "Send", "Writer"]

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
        """Whether a head has been sent."""
        ...

    bytes_sent: int
    """Body bytes handed over, without framing."""

    @property
    def stalled(self) -> bool:
        """Whether bytes, or the head, wait to leave before anything else may."""
        ...

    async def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> None:
        """Send the head. `whole`: the complete body follows at once, so the head may leave with it.

        Raises `ClientGone`.
        """
        ...

    def write(self, parts: Sequence[Part]) -> bool:
        """Write all parts, in order. True: they have left. False: call `drain()` until they have
        left. The caller may reuse their memory at once in both cases.

        Never blocks. Raises `ClientGone`.
        """
        ...

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        """Like `write`, for complete framed chunks with `size` bytes of data. Only if
        `synchronous`.
        """
        ...

    async def drain(self) -> bool:
        """Wait until the client accepts bytes, and send more. True when everything has left;
        otherwise call again.

        One wait a call, without a deadline: the caller sets it. Raises `ClientGone`.
        """
        ...

    async def finish(self) -> None:
        """End the response cleanly; a writer that is not `synchronous` sends unsent bytes with it.
        Raises `ClientGone`.
        """
        ...
