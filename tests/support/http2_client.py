"""HTTP/2 clients: one that has many streams on a connection, and one that asks as
`support.client.Client` does.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11
import trio

from support.certificates import Certificates
from support.client import Answer, Client
from support.interceptors import Rig, until
from support.proxy import Proxy

__all__ = [
    "BROKEN",
    "WIDE",
    "Exchanged",
    "Http2Client",
    "Http2Requester",
    "Side",
    "http2_requests",
    "open_http2",
    "open_side",
]

BROKEN = (
    EOFError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    h11.RemoteProtocolError,
    h11.LocalProtocolError,
)
"""What a client raises whose connection has broken."""
WIDE = 2**31 - 1
"""A window in which the connection stalls before the stream."""


def http2_requests(
    method: str = "GET", path: str = "/", *, window: int = 0, complete: bool = True, count: int = 1
) -> bytes:
    """The bytes of so many requests with this window for each response; bodies may never come."""
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    )
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    if window:
        client.increment_flow_control_window(window - 65535)
    head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "x")]
    length = [] if complete else [("content-length", "100000")]
    for number in range(count):
        client.send_headers(1 + 2 * number, [*head, *length], end_stream=complete)
    return client.data_to_send()


@dataclass
class Exchanged:
    """One stream, from the client's side."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    """The server has ended it clean."""
    reset: int | None = None
    """The error code of the server's reset."""

    left: bool = False
    """The client has reset it."""

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None or self.left

    def error_type(self) -> str:
        assert self.ended
        assert dict(self.headers)["content-type"] == "application/json"
        kind = json.loads(self.body)["error"]["type"]
        assert isinstance(kind, str)
        return kind


class Http2Client:
    """It reads all the time; its windows open as data comes, or never again."""

    def __init__(
        self,
        stream: trio.SSLStream[trio.SocketStream] | trio.SocketStream,
        nursery: trio.Nursery,
        *,
        window: int | None = None,
    ) -> None:
        """`nursery`: ends with the connection."""
        self.streams: dict[int, Exchanged] = {}
        self.closed = False
        self.nursery = nursery
        self._stream = stream
        self._opens = window is None
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = h2.connection.H2Connection(config)
        if window is not None:
            self.h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            )
        self._lock = trio.Lock()
        self.h2.initiate_connection()

    async def run(self) -> None:
        await self.flush()
        try:
            while data := await self._stream.receive_some():
                for event in self.h2.receive_data(data):
                    self._handle(event)
                await self.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed = True

    def _handle(self, event: h2.events.Event) -> None:
        stream = self.streams.get(getattr(event, "stream_id", 0) or 0, Exchanged())
        if isinstance(event, h2.events.ResponseReceived):
            stream.headers = [(str(name), str(value)) for name, value in event.headers or ()]
            stream.status = int(dict(stream.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data or b""
            if self._opens and event.stream_id is not None:
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id
                )
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset):
            stream.reset = event.error_code

    async def flush(self) -> None:
        async with self._lock:
            if data := self.h2.data_to_send():
                await self._stream.send_all(data)

    async def start(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Iterable[tuple[str, str]] = (),
        *,
        end: bool = True,
    ) -> int:
        """Send the head of a request; `end`: there is no body."""
        stream_id = self.h2.get_next_available_stream_id()
        self.streams[stream_id] = Exchanged()
        pseudo = [
            (":method", method),
            (":path", path),
            (":scheme", "https"),
            (":authority", "localhost"),
        ]
        self.h2.send_headers(stream_id, [*pseudo, *headers], end_stream=end)
        await self.flush()
        return stream_id

    async def send(self, stream_id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body as far as the server's windows let it, and continue when they open."""
        stream = self.streams[stream_id]

        def may_go_on() -> bool:
            return stream.over or self.closed or self.h2.local_flow_control_window(stream_id) > 0

        while data:
            await until(may_go_on)
            if stream.over or self.closed:
                return
            size = min(
                len(data),
                self.h2.local_flow_control_window(stream_id),
                self.h2.max_outbound_frame_size,
            )
            self.h2.send_data(stream_id, data[:size])
            data = data[size:]
            await self.flush()
        if end and not stream.over:
            self.h2.end_stream(stream_id)
            await self.flush()

    async def reset(self, stream_id: int) -> None:
        """Reset a stream, unless it is over."""
        self.streams[stream_id].left = True
        with suppress(
            h2.exceptions.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError
        ):
            self.h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            await self.flush()

    def reset_connection(self) -> None:
        """Vanish: the other side gets a reset."""
        sock = getattr(self._stream, "transport_stream", self._stream).socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def close_connection(self) -> None:
        """Leave without a word of HTTP/2 or TLS."""
        getattr(self._stream, "transport_stream", self._stream).socket.close()

    async def get(self, path: str = "/", headers: Iterable[tuple[str, str]] = ()) -> Exchanged:
        stream = self.streams[await self.start("GET", path, headers)]
        await until(lambda: stream.over)
        return stream


class Http2Requester:
    """One request after the other on an HTTP/2 connection."""

    def __init__(self, connection: Http2Client) -> None:
        self.connection = connection
        self._id = 0  # of the stream of the request that was sent last

    async def send(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
    ) -> None:
        self._id = await self.connection.start(method, target, headers, end=body is None)
        if body is not None:
            await self.connection.send(self._id, body)

    async def head(self) -> Answer:
        """Raises `EOFError` when there is none."""
        await until(lambda: self._id or self.connection.closed)
        stream = self.connection.streams.get(self._id, Exchanged())
        await until(lambda: stream.status or stream.over or self.connection.closed)
        if not stream.status:
            raise EOFError("no response")
        return Answer(
            stream.status, [(name.encode(), value.encode()) for name, value in stream.headers]
        )

    async def rest(self, answer: Answer) -> Answer:
        """The body; `complete`: whether it arrived whole, `error`: how it broke."""
        stream = self.connection.streams[self._id]
        await until(lambda: stream.over or self.connection.closed)
        answer.body, answer.complete = stream.body, stream.ended
        if not answer.complete:
            answer.error = (
                "the connection was closed" if stream.reset is None else f"reset: {stream.reset}"
            )
        return answer

    async def answer(self) -> Answer:
        return await self.rest(await self.head())

    def next_cycle(self) -> None:
        self._id = 0

    async def reset_stream(self) -> None:
        await self.connection.reset(self._id)

    def reset_stream_soon(self) -> None:
        """The same from where nothing can be awaited."""
        self.connection.nursery.start_soon(self.reset_stream)

    def reset(self) -> None:
        """The whole connection."""
        self.connection.reset_connection()


@asynccontextmanager
async def open_http2(
    proxy: Proxy, certificates: Certificates | None, *, window: int | None = None
) -> AsyncIterator[Http2Client]:
    """With TLS if there are certificates, else with prior knowledge."""
    stream: trio.SSLStream[trio.SocketStream] | trio.SocketStream
    stream = transport = await trio.open_tcp_stream("127.0.0.1", proxy.port)
    if certificates is not None:
        stream = trio.SSLStream(
            transport, certificates.client("h2"), server_hostname="localhost", https_compatible=True
        )
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "h2"
    async with trio.open_nursery() as nursery:
        client = Http2Client(stream, nursery, window=window)
        nursery.start_soon(client.run)
        yield client
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


Side = Client | Http2Requester


@asynccontextmanager
async def open_side(
    rig: Rig, http2: Certificates | None, *, window: int | None = None
) -> AsyncIterator[Side]:
    """A client of HTTP/2 if there are certificates for it, else of HTTP/1.1. Its connection ends
    with this.
    """
    if http2 is not None:
        async with open_http2(rig.proxy, http2, window=window) as connection:
            yield Http2Requester(connection)
        return
    client = await rig.client()
    yield client
    await client.aclose()
    rig.clients.clear()
