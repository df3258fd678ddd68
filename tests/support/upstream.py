"""A scripted upstream on a real socket: each connection is handed to a script, which may behave as
badly as it likes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h11
import trio

__all__ = [
    *("Peer", "Request", "Script", "Upstream", "answering", "endless_stream_of"),
    *("open_stream_of", "open_upstream", "stream_of"),
]


@dataclass
class Request:
    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower().encode()]


class Peer:
    """One connection, from the upstream's side."""

    def __init__(self, stream: trio.abc.Stream, upstream: Upstream) -> None:
        self.stream = stream
        self.upstream = upstream
        self._h11 = h11.Connection(h11.SERVER)
        self._raw = bytearray()

    async def request(self, *, body: bool = True) -> Request:
        """The next request, with its body by default."""
        head = await self._next()
        if not isinstance(head, h11.Request):
            raise EOFError
        request = Request(head.method.decode(), head.target, list(head.headers.raw_items()))
        self.upstream.requests.append(request)
        if body:
            await self.take_body(request)
        return request

    async def take_body(self, request: Request) -> None:
        """The body of a request of which only the head was taken."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                request.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                # Answers are raw bytes, of which h11 knows nothing: begin anew, with what has come
                # already.
                rest, _ = self._h11.trailing_data
                self._h11 = h11.Connection(h11.SERVER)
                self._h11.receive_data(rest) if rest else None
                break
            else:
                raise EOFError

    async def _next(self) -> object:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(await self.stream.receive_some(65536))

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def start_stream(self, *extra: bytes) -> None:
        """The head of a chunked event stream."""
        lines = [
            b"HTTP/1.1 200 OK",
            b"Content-Type: text/event-stream",
            b"Transfer-Encoding: chunked",
            *extra,
        ]
        await self.send(b"\r\n".join(lines) + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def raw_head(self) -> bytes:
        """The next request's head, byte for byte. Do not mix this and `exactly` with `request`."""
        while b"\r\n\r\n" not in self._raw:
            await self._read_raw()
        return await self.exactly(self._raw.index(b"\r\n\r\n") + 4)

    async def exactly(self, count: int) -> bytes:
        """The next bytes, whatever they are. Raises `EOFError`."""
        while len(self._raw) < count:
            await self._read_raw()
        data = bytes(self._raw[:count])
        del self._raw[:count]
        return data

    async def _read_raw(self) -> None:
        data = await self.stream.receive_some(65536)
        if not data:
            raise EOFError
        self._raw += data

    async def close(self) -> None:
        """Close the connection, over TLS with close_notify."""
        if isinstance(self.stream, trio.SSLStream):
            with suppress(trio.BrokenResourceError):
                await self.stream.unwrap()
        await self.cut()

    async def cut(self) -> None:
        """Close the connection, over TLS without close_notify."""
        await trio.aclose_forcefully(self.stream)

    def reset(self) -> None:
        sock = getattr(self.stream, "transport_stream", self.stream).socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async def wait_closed(self) -> None:
        """Return when the other side has closed or reset the connection."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            return


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Upstream:
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    accepted: int = 0
    open: int = 0
    scheme: str = "http"
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@asynccontextmanager
async def open_upstream(script: Script, *, ssl_context: object = None) -> AsyncIterator[Upstream]:
    """Serve `script` on a free loopback port. A script that ends closes its connection."""
    upstream = Upstream()
    if ssl_context is not None:
        upstream.scheme, upstream.host = "https", "localhost"

    async def handle(stream: trio.abc.Stream) -> None:
        upstream.accepted += 1
        upstream.open += 1
        try:
            if ssl_context is not None:
                stream = trio.SSLStream(
                    stream, ssl_context, server_side=True, https_compatible=True
                )  # type: ignore
            await script(Peer(stream, upstream))
        except (
            EOFError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            h11.RemoteProtocolError,
        ):
            pass
        finally:
            upstream.open -= 1
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(handle, 0, host="127.0.0.1", task_status=task_status)
        )
        upstream.port = listeners[0].socket.getsockname()[1]
        yield upstream
        nursery.cancel_scope.cancel()


def stream_of(*events: bytes) -> Script:
    """A script that answers every request on a connection with the same chunked event stream."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.start_stream()
            for event in events:
                await peer.chunk(event)
            await peer.end()

    return script


def open_stream_of(*events: bytes) -> Script:
    """A script that sends these events, each in its chunk, on a stream that then stays open."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for event in events:
            await peer.chunk(event)
        await peer.wait_closed()

    return script


def endless_stream_of(event: bytes) -> Script:
    """A script that sends this event for as long as the stream lives."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        while True:
            await peer.chunk(event)

    return script


def answering(answer: bytes) -> Script:
    """A script that sends these bytes in answer to every request on a connection."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    return script
