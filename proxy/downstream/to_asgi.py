"""Serves a client's request by an ASGI app: the proxy's pages, and apps around the proxy.

A middleware that passes `receive` and `send` unchanged keeps the way to the client's stream:
`stream_of` finds it, and the exchange uses it directly.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

import trio

from ..errors import ClientGone, RequestRefused, SendStalled
from .http1_stream import Http1Stream
from .http2.stream import Http2Stream
from .port import Message, Receive, Scope, Send

__all__ = ["OwnStream", "answer_fault", "scope_of", "serve_asgi", "stream_of"]

OwnStream = Http1Stream | Http2Stream
"""A request of one of the proxy's own connections."""

SEND_S = 30.0
"""How long a client may accept nothing of such a response."""
_CODING = b"transfer-encoding"  # the server's own (ASGI specification, response start)
_FAILED = RequestRefused(500, "internal_error", "the app has failed")


def scope_of(stream: OwnStream) -> Scope:
    """The ASGI scope of a request (ASGI specification, HTTP connection scope, 2.3)."""
    head, names = stream.head, stream.names
    path, _, query = head.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": head.version,
        "method": head.method,
        "scheme": stream.scheme,
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": head.headers,
        "client": names[0],
        "server": names[1],
        "state": {},
        "extensions": {},
    }


async def serve_asgi(app: Any, stream: OwnStream, scope: Scope, *, asks: bool = True) -> None:
    """Call an ASGI app for one request. Raises what the app raises, in a group, after a 500 if there
    is no response; a client that leaves is an `http.disconnect`, and an `OSError` for `send`, which
    the app may pass on. A body that is not acceptable HTTP is an `http.disconnect`, too; the client
    gets 400 if there is no response.
    `asks`: a client that waits for a 100 gets it when the app receives the body.
    """
    bridge = _Bridge(stream, asks=asks)
    try:
        await app(scope, bridge.receive, bridge.send)
    except* Exception as failed:
        if not bridge.left or failed.split(OSError)[1] is not None:
            if not stream.started and not stream.gone:
                await answer_fault(stream, _FAILED)
            raise
    if bridge.fault is not None and not stream.started:
        await answer_fault(stream, bridge.fault)


def stream_of(receive: Receive, send: Send) -> OwnStream | None:
    """The client's stream, if these are those of `serve_asgi`."""
    bridge = getattr(send, "__self__", None)
    if not isinstance(bridge, _Bridge):
        return None
    is_same = bool(getattr(receive, "__self__", None) is bridge)
    return bridge.stream if is_same else None


async def answer_fault(stream: OwnStream, fault: RequestRefused) -> None:
    """Answer in place of an app. The connection ends."""
    body = f"{fault.message}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    bridge = _Bridge(stream)
    await bridge.send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await bridge.send({"type": "http.response.body", "body": body})


class _Bridge:
    """ASGI's `receive` and `send` of one request."""

    def __init__(self, stream: OwnStream, *, asks: bool = False) -> None:
        self.stream = stream
        self._asks = asks
        self.left = False
        """A `send` has failed because the client has left."""
        self.fault: RequestRefused | None = None
        """Why the body cannot be read."""
        self._asked = False
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None

    async def receive(self) -> Message:
        stream, first = self.stream, not self._asked
        self._asked = True
        if not first or not stream.complete:
            try:
                if self._asks and stream.waits_for_continue and not stream.started:
                    await stream.send_interim(100, [])
                data = await stream.receive()
            except (ClientGone, SendStalled):
                return {"type": "http.disconnect"}
            except RequestRefused as fault:
                self.fault = fault.with_traceback(None)
            if stream.gone or self.fault is not None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": data, "more_body": not stream.complete}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        try:
            if message["type"] == "http.response.start":
                headers = [
                    (bytes(name).lower(), bytes(value)) for name, value in message["headers"]
                ]
                self._head = message["status"], [item for item in headers if item[0] != _CODING]
            elif message["type"] == "http.response.body":
                await self._send_body(message.get("body", b""), message.get("more_body", False))
        except (ClientGone, SendStalled):
            self.left = True
            raise OSError("the client has left") from None

    async def _send_body(self, body: bytes, more: bool) -> None:
        stream = self.stream
        if self._head is not None:
            (status, headers), self._head = self._head, None
            unknown = not any(name == b"content-length" for name, _ in headers)
            if not more and unknown and status not in (204, 304):
                headers.append((b"content-length", b"%d" % len(body)))
            await self._leave(stream.start(status, headers, whole=not more))
        await self._leave(stream.write((body,)))
        if not more:
            await self._leave(stream.finish())

    async def _leave(self, left: bool) -> None:
        """Wait until the client has taken everything. Raises `ClientGone` if it accepts nothing."""
        while not left:
            with trio.move_on_after(SEND_S) as scope:
                left = await self.stream.drain()
            if scope.cancelled_caught:
                raise ClientGone
