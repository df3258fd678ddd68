"""What the exchange needs of a server: one request of a client, and the way for its response.

`ClientStream` is implemented by `http1` for the proxy's own connections, and by `asgi` for any ASGI
server. A `Writer` sends the response: `start`, then any number of `write`s, then `finish`. Each
returns whether everything has left; if not, `drain` must come before anything else. Only `drain`
waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

import trio

from interceptors.chain import Part

from ..http.headers import HeaderList
from ..http.request import RequestHead

__all__ = ["ClientStream", "Message", "Receive", "Scope", "Send", "Writer"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientStream(Protocol):
    """One request of a client, and the way for its response."""

    head: RequestHead
    peer: str | None
    """The peer's address, as the server spells it; None if it is not known."""
    scheme: str
    """`http` or `https`."""
    scope: trio.CancelScope | None
    """The scope in which the request is served, if its cancellation ends this request only, and the
    connection after it. None: the exchange opens one.
    """
    on_gone: Callable[[], None] | None
    """Called once, synchronously, when the client leaves, if `calls_back`."""

    @property
    def holds_response(self) -> bool:
        """The response must not end before the request has: the server would then close the
        connection, and a client that is still sending would miss the response.
        """
        ...

    @property
    def calls_back(self) -> bool:
        """Whether the server can call `on_gone`."""
        ...

    @property
    def complete(self) -> bool:
        """The whole request has arrived, and `receive` or `receive_nowait` has returned it."""
        ...

    @property
    def at_hand(self) -> bool:
        """The whole request has arrived: `receive` does not wait."""
        ...

    @property
    def waits_for_continue(self) -> bool:
        """The client sends its body only after a 100 (RFC 9110, section 10.1.1), which
        `send_interim` sends: neither a 100 nor any of the body has passed, and the body is not
        empty.
        """
        ...

    @property
    def gone(self) -> bool:
        """The client has left."""
        ...

    @property
    def timed_out(self) -> bool:
        """The kernel has given up the client because it accepted nothing."""
        ...

    async def receive(self) -> bytes:
        """Wait for the next bytes of the body; a client that waits for a 100 does not get it here.
        Returns `b""` when `complete` or `gone` has changed; once `complete`, that is when the client
        leaves.

        Raises `RequestRefused` for a body that is not acceptable HTTP.
        """
        ...

    def receive_nowait(self) -> bytes | None:
        """As `receive`, or None if nothing has arrived. Never blocks."""
        ...

    async def wait_hangup(self) -> None:
        """Wait until the client has left, without receiving anything."""
        ...

    def writer(self, *, chunked: bool) -> Writer:
        """Return the writer of the response. `chunked`: the length of its body is unknown."""
        ...

    def limit_send(self, timeout_s: float) -> None:
        """Let the kernel give up a client that accepts nothing for `timeout_s`; infinity: never."""
        ...

    def send_probes(self) -> None:
        """Detect a client that is gone while nothing is sent to it (TCP keepalive)."""
        ...

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        """Send an informational response before the head, if the server can."""
        ...

    async def abort(self) -> None:
        """End the exchange so that the client sees that the response is incomplete. Bounded in
        time, even when cancelled; raises nothing.
        """
        ...


class Writer(Protocol):
    """Sends one response to the client."""

    name: str
    """`asgi` or `direct`: in the log and in a metric."""
    synchronous: bool
    """Whether a `write` can leave without a `drain`."""

    @property
    def keeps_chunks(self) -> bool:
        """Whether `write_chunks` may be called, after `start`."""
        ...

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

    def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> bool:
        """Write the head; the result is that of `write`. `whole`: the complete body follows at
        once, so the head may wait for it.
        """
        ...

    def write(self, parts: Sequence[Part]) -> bool:
        """Write all parts, in order. True: they have left. False: call `drain()` until they have
        left. The caller may reuse their memory at once in both cases.

        Never blocks. Raises `ClientGone`.
        """
        ...

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        """Like `write`, for complete framed chunks with `size` bytes of data."""
        ...

    async def drain(self) -> bool:
        """Wait until the client accepts bytes, and send more. True when everything has left;
        otherwise call again.

        One wait a call, without a deadline: the caller sets it. Raises `ClientGone`.
        """
        ...

    def finish(self) -> bool:
        """Write the end of the response; the result is that of `write`. A writer that is not
        `synchronous` sends unsent bytes with it.
        """
        ...
