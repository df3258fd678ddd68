"""The client's side under any ASGI server: the request through `receive`, the response through
`send`.

ASGI servers may keep the bytes, so each write is copied once out of the pooled buffer. What only a
connection can do (a reset, informational responses, a client that leaves while its body waits) is
there under Hypercorn, and missing under a server that is not known.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio_util import wait_any

from ..http.headers import HeaderList, find_header
from ..http.request import RequestHead
from .asgi_writers import choose_writer
from .hypercorn import RAW_TARGET, Messages, inspect_server
from .port import Message, Receive, Scope, Send, Writer

__all__ = ["AsgiStream", "raw_target"]

_EARLY_HINT = "http.response.early_hint"
_QUIET_S = 0.5
_QUIET_HTTP2_S = 0.05  # Hypercorn does not report a stream that the proxy resets
_NO_NAMES: frozenset[bytes] = frozenset()


def raw_target(scope: Scope) -> bytes:
    """Return the request's target as received. Without Weirpool's extension a `?` before an empty
    query is lost.
    """
    target: bytes | None = scope["extensions"].get(RAW_TARGET) if scope.get("extensions") else None
    if target is None:
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + b"?" + query if query else scope["raw_path"]
    return target


class AsgiStream:
    """Implements `ClientStream` on ASGI."""

    __slots__ = (
        "_connection",
        "_messages",
        "_on_gone",
        "_receive",
        "_scope",
        "_send",
        "complete",
        "gone",
        "head",
        "peer",
        "scheme",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._scope = scope
        self._connection = inspect_server(send)
        messages = getattr(receive, "__self__", None)
        self._messages = messages if type(messages) is Messages else None
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
        )
        client = scope.get("client")
        self.peer: str | None = None if client is None else client[0]
        self.scheme: str = scope["scheme"]
        self.complete = False
        self.gone = False
        self._on_gone: Callable[[], None] | None = None

    @property
    def added_headers(self) -> frozenset[bytes]:
        return _NO_NAMES if self._connection is None else self._connection.added_headers

    @property
    def holds_response(self) -> bool:
        # Over HTTP/2 only the stream ends (RFC 9113, section 8.1).
        return self._connection is None or not self._connection.http2

    @property
    def cancellable(self) -> bool:
        return self._connection is None or self._connection.http2

    @property
    def at_hand(self) -> bool:
        return self.complete

    @property
    def waits_for_continue(self) -> bool:
        return False  # the server sends the 100

    @property
    def calls_back(self) -> bool:
        return self._messages is not None

    @property
    def timed_out(self) -> bool:
        return self._connection is not None and self._connection.timed_out

    @property
    def on_gone(self) -> Callable[[], None] | None:
        return self._on_gone

    @on_gone.setter
    def on_gone(self, call: Callable[[], None] | None) -> None:
        self._on_gone = call
        if self._messages is not None:
            self._messages.on_disconnect = None if call is None else self._leave

    # The request

    async def receive(self) -> bytes:
        return self._take(await self._receive())

    def receive_nowait(self) -> bytes | None:
        if self._messages is None:
            return None
        message = self._messages.receive_nowait()
        return None if message is None else self._take(message)

    def _take(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            self.gone = True
            return b""
        data: bytes = message.get("body", b"")
        self.complete = self.complete or not message.get("more_body", False)
        return data

    def _leave(self) -> None:
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()

    async def wait_hangup(self) -> None:
        """Also return when only the socket reports it, even if unread data remains. For an HTTP/2
        stream only the server does; under an unknown server, wait forever.
        """
        connection, messages = self._connection, self._messages
        if connection is None:
            await trio.sleep_forever()
        elif messages is None:
            await connection.wait_hangup()
        elif not self.gone and not messages.has_ended:
            ended = trio.Event()
            before, self.on_gone = self.on_gone, ended.set
            try:
                await wait_any(connection.wait_hangup, ended.wait)
            finally:
                self.on_gone = before
        self.gone = True

    # The response

    def writer(self, *, chunked: bool) -> Writer:
        return choose_writer(self.head.version, self._send, self._connection, chunked=chunked)

    def limit_send(self, timeout_s: float) -> None:
        if self._connection is not None:
            self._connection.limit_send(timeout_s)

    def send_probes(self) -> None:
        if self._connection is not None:
            self._connection.send_probes()

    async def send_interim(self, status: int, headers: HeaderList) -> None:
        """ASGI has only an extension for early hints: other servers than Hypercorn get a 103 with
        its `Link` fields, and nothing else.
        """
        if self._connection is not None:
            await self._connection.send_interim(status, headers)
        elif status == 103 and _EARLY_HINT in (self._scope.get("extensions") or ()):
            links = [value for name, value in headers if name == b"link"]
            await self._send({"type": "http.response.early_hint", "links": links})

    async def abort(self) -> None:
        """Without access to the connection, the app returns in the middle of the response, and the
        server closes the connection.
        """
        if self._connection is not None:
            await self._connection.abort()
        await self._settle()

    async def _settle(self) -> None:
        """Receive until the server reports the end, for a limited time: an app that returns earlier
        makes Hypercorn write to a closing connection.
        """
        http2 = self._connection is None or self._connection.http2
        reported = self.gone and self._messages is not None
        while not reported:
            with trio.move_on_after(_QUIET_HTTP2_S if http2 else _QUIET_S) as scope:
                message = await self._receive()
                reported = message["type"] == "http.disconnect"
            if scope.cancelled_caught:
                return
