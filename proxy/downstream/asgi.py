"""The client's side under any ASGI server: the request through `receive`, the response through
`send`.

ASGI servers may keep the bytes, so each write is copied once out of the pooled buffer. What only a
connection can do is missing here: a reset, informational responses other than early hints, TCP
limits and probes, and a client that leaves before the app has received its whole request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from interceptors.chain import Part

from ..errors import ClientGone
from ..http.headers import HeaderList, find_header
from ..http.request import RequestHead
from .port import Message, Receive, Scope, Send

__all__ = ["AsgiStream", "AsgiWriter", "raw_target"]

_EARLY_HINT = "http.response.early_hint"
_QUIET_S = 0.05


def raw_target(scope: Scope) -> bytes:
    """The request's target as received, except that ASGI cannot distinguish `/x?` from `/x`."""
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


class AsgiStream:
    """Implements `ClientStream` on ASGI."""

    __slots__ = (
        "_receive",
        "_scope",
        "_send",
        "complete",
        "gone",
        "head",
        "on_gone",
        "peer",
        "scheme",
    )

    holds_response = True
    calls_back = False
    timed_out = False
    waits_for_continue = False  # the server sends the 100
    scope: trio.CancelScope | None = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._scope = scope
        headers = scope["headers"]
        length = find_header(headers, b"content-length")
        self.head = RequestHead(
            method=scope["method"],
            target=raw_target(scope),
            headers=headers,
            version=scope["http_version"],
            length=int(length) if length is not None and length.isdigit() else None,
            keep_alive=True,
            expects_continue=False,
            unchecked=True,
        )
        client = scope.get("client")
        self.peer: str | None = None if client is None else client[0]
        self.scheme: str = scope["scheme"]
        self.complete = False
        self.gone = False
        self.on_gone: Callable[[], None] | None = None

    @property
    def at_hand(self) -> bool:
        return self.complete

    # The request

    async def receive(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return b""
        data: bytes = message.get("body", b"")
        self.complete = self.complete or not message.get("more_body", False)
        return data

    def receive_nowait(self) -> bytes | None:
        return None

    async def wait_hangup(self) -> None:
        """Waits forever: ASGI reports it to `receive` only."""
        await trio.sleep_forever()

    # The response

    def writer(self, *, chunked: bool) -> AsgiWriter:
        return AsgiWriter(self._send)

    def limit_send(self, timeout_s: float) -> None:
        """No effect."""

    def send_probes(self) -> None:
        """No effect."""

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        """A 103 with its `Link` fields, if the server has ASGI's extension for it."""
        if status == 103 and _EARLY_HINT in (self._scope.get("extensions") or ()):
            links = [value for name, value in headers if name == b"link"]
            await self._send({"type": "http.response.early_hint", "links": links})

    async def abort(self) -> None:
        """The app returns in the middle of the response, and the server closes the connection. The
        server has a moment to report that the client has left.
        """
        with trio.move_on_after(_QUIET_S):
            while not self.gone:
                await self.receive()


class AsgiWriter:
    """Implements `Writer` on ASGI."""

    name = "asgi"
    synchronous = False
    keeps_chunks = False

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._unsent = b""
        self._last = False
        self.started = False
        self.stalled = False
        self.bytes_sent = 0

    def start(self, status: int, headers: HeaderList, *, whole: bool = False) -> bool:
        self.started = True
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        # Until the head has left: a server that was stopped in it accepts nothing more.
        self.stalled = not whole
        return whole

    def write(self, parts: Sequence[Part]) -> bool:
        self._unsent = b"".join(parts)
        self.bytes_sent += len(self._unsent)
        return False

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        raise NotImplementedError("ASGI servers frame bodies by themselves")

    def finish(self) -> bool:
        self._last = True
        return False

    async def drain(self) -> bool:
        self.stalled = True  # until everything has left; a cancelled drain leaves it set
        if self._head is not None:
            head, self._head = self._head, None
            await self._pass(head)
        if self._unsent or self._last:
            data, self._unsent = self._unsent, b""
            more = not self._last
            await self._pass({"type": "http.response.body", "body": data, "more_body": more})
        self.stalled = False
        return True

    async def _pass(self, message: Message) -> None:
        try:
            await self._send(message)
        except (
            OSError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.BusyResourceError,
        ) as error:
            raise ClientGone from error
