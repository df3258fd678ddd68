"""A raw HTTP/1.1 client: it sees exactly what arrives, and can leave or reset whenever it wants."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

import h11
import trio

__all__ = ["Answer", "Client", "fetch", "open_client"]


@dataclass
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    complete: bool = False
    error: str = ""
    pieces: list[bytes] = field(default_factory=list)

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key == name.encode()]


class Client:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(
        self,
        method: str,
        target: str,
        headers: list[tuple[str, str]] | None = None,
        body: bytes | None = None,
    ) -> None:
        lines = list(headers or [])
        if not any(name.lower() == "host" for name, _ in lines):
            lines.insert(0, ("Host", "proxy.test"))
        if body is not None and not any(
            name.lower() in ("content-length", "transfer-encoding") for name, _ in lines
        ):
            lines.append(("Content-Length", str(len(body))))
        await self.stream.send_all(
            self._h11.send(h11.Request(method=method, target=target, headers=lines)) or b""
        )
        if body is not None:
            await self.stream.send_all(self._h11.send(h11.Data(data=body)) or b"")
        if body is not None or not any(name.lower() == "content-length" for name, _ in lines):
            await self.stream.send_all(self._h11.send(h11.EndOfMessage()) or b"")

    async def _next(self) -> object:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(await self.stream.receive_some(65536))

    async def head(self) -> Answer:
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return Answer(event.status_code, list(event.headers))
            if not isinstance(event, h11.InformationalResponse):
                raise EOFError("no response")

    async def read_until(self, answer: Answer, end: bytes) -> None:
        """Read on until the body so far ends with `end`."""
        while not answer.body.endswith(end):
            event = await self._next()
            assert isinstance(event, h11.Data), event
            answer.body += bytes(event.data)

    async def read_some(self) -> bytes:
        """More of the body, as it comes. Raises `EOFError` at its end."""
        event = await self._next()
        if not isinstance(event, h11.Data):
            raise EOFError(event)
        return bytes(event.data)

    async def rest(self, answer: Answer) -> Answer:
        """The rest of the body; `complete`: whether it arrived whole, `error`: how it broke."""
        try:
            while True:
                event = await self._next()
                if isinstance(event, h11.Data):
                    answer.body += bytes(event.data)
                    answer.pieces.append(bytes(event.data))
                else:
                    answer.complete = isinstance(event, h11.EndOfMessage)
                    break
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            answer.error = repr(error) + repr(error.__cause__)
        return answer

    def next_cycle(self) -> None:
        self._h11.start_next_cycle()

    async def answer(self) -> Answer:
        return await self.rest(await self.head())

    def reset(self) -> None:
        """Vanish: the other side gets a reset."""
        sock = getattr(self.stream, "transport_stream", self.stream).socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


async def open_client(port: int, ssl_context: object = None) -> Client:
    stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
    if ssl_context is not None:
        stream = trio.SSLStream(
            stream, ssl_context, server_hostname="localhost", https_compatible=True
        )  # type: ignore
    return Client(stream)


async def fetch(
    port: int,
    target: str = "/",
    *,
    method: str = "GET",
    headers: list[tuple[str, str]] | None = None,
    body: bytes | None = None,
    ssl_context: object = None,
) -> Answer:
    """One request on its own connection."""
    client = await open_client(port, ssl_context)
    try:
        await client.send(method, target, headers, body)
        return await client.answer()
    finally:
        await client.aclose()
