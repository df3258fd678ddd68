"""The upstream transport: an `httpx.AsyncBaseTransport` on pooled buffers.

It sends the `httpx.Request` it is given, byte for byte, and returns an `httpx.Response` whose
stream is an `UpstreamBody`. `head` writes and reads heads; the body is framed by `body`, in the
caller's buffer. Request extensions:

- `target`: the request target as bytes; without it the URL's;
- `timeout`: httpx's dict; `connect` (one deadline for a free connection, name resolution, TCP, TLS,
  and a second connection where the first was dead), `write` (each wait), `read` (until the head has
  come, counted from the end of the request; between body bytes when the response is read through
  httpx);
- `interim`: an async function that is awaited for each informational response (1xx, but 101) as it
  comes, with the request, its status and its headers; without it they are skipped;
- `nursery`: a Trio nursery that may go on sending the request body after the head of the response
  has come. Without one, an answer that comes early ends the upload.

A request is sent a second time only when a kept connection turned out to be dead and none of the
request's bytes was written. Which endpoint a request goes to, and whether a failed one is tried
again, is `balancer`'s.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import httpx
import trio

from pools import Pools

from ..errors import ReadFailed, UpstreamFailure
from ..http import DEFAULT_PORTS
from ..http.head import BadRequest, BodyEncoder, encode_head
from .connections import ConnectionPool, ConnectTime, PoolState, Slots
from .origin import Origin, server_name
from .resolver import Resolver
from .roundtrip import RoundTrip

__all__ = ["UpstreamTransport"]

_SMALL_BODY_BYTES = 16384


class UpstreamTransport(httpx.AsyncBaseTransport):
    """Connections to any number of origins, together at most `max_connections`. Belongs to one Trio
    loop.
    """

    def __init__(
        self,
        pools: Pools,
        resolver: Resolver | None = None,
        *,
        max_connections: int = 10000,
        tls: bool = False,
        ca_file: str | None = None,
        tls_server_name: str | None = None,
    ) -> None:
        """`resolver`: the worker's; without one, origins must be addresses. `tls`: load the
        authorities now, and not with the first connection, when no descriptor may be left.
        `ca_file`: verify against these instead of the system's. `tls_server_name`: send and verify
        this name, or verify this address, instead of the origin's host. Raises `OSError`,
        `ssl.SSLError`, `ValueError`.
        """
        self._pools = pools
        self._resolver = Resolver() if resolver is None else resolver
        self._slots = Slots(max_connections)
        self._tls_server_name = None if tls_server_name is None else server_name(tls_server_name)
        self._ssl_context: ssl.SSLContext | None = None
        if tls or ca_file is not None:
            self._ssl_context = _client_context(ca_file)
        self._origins: dict[Origin, ConnectionPool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; returns when the response's head has come. Its stream must be closed.

        Raises an `UpstreamFailure` (each is an httpx exception too), or `httpx.LocalProtocolError`
        for a request that cannot be sent. Cancelled at any point, it closes the connection and
        gives back its slot and every buffer.
        """
        target = request.extensions.get("target") or request.url.raw_path
        return await self.send(request, request.url, target, request.headers.raw)

    async def send(
        self,
        request: httpx.Request,
        url: httpx.URL,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        *,
        fresh: bool = False,
    ) -> httpx.Response:
        """As `handle_async_request`, to this URL's origin, with this target and these headers.
        `fresh`: on a new connection.

        A failure says whether any byte of the request has left (`unsent`), and whether its
        connection was a kept one (`stale`).
        """
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        pool = self._pool_of(url)
        try:
            encoder: BodyEncoder | None = BodyEncoder(headers)
            head = encode_head(request.method, target, headers)
            assert encoder is not None
            if (
                isinstance(request.stream, httpx.ByteStream)
                and encoder.left is not None
                and encoder.left <= _SMALL_BODY_BYTES
            ):
                # What is in memory goes along with the head: nothing would be answered before it
                # was there.
                head += b"".join([encoder.data(piece) for piece in request.stream]) + encoder.end()
                encoder = None
        except BadRequest as error:
            raise httpx.LocalProtocolError(str(error)) from error
        write_timeout_s = timeouts.get("write")
        time = ConnectTime(timeouts.get("connect"))
        while True:
            try:
                connection = await pool.acquire(time, fresh=fresh)
            except UpstreamFailure as failure:
                failure.unsent = True
                raise
            try:
                await connection.send_all(head, write_timeout_s)
                return await RoundTrip(self._pools, pool, connection, encoder, request).run()
            except BaseException as error:
                pool.release(connection, reusable=False)
                if isinstance(error, UpstreamFailure):
                    error.unsent = not connection.written
                    error.stale = connection.used and isinstance(error, ReadFailed)
                if not isinstance(error, ReadFailed) or not connection.used or connection.written:
                    raise
                fresh = (
                    True  # a kept connection was dead, and none of this request's bytes has left
                )

    async def maintain(self) -> None:
        """Close idle connections that have had their time, every few seconds, until cancelled."""
        while True:
            await trio.sleep(5)
            for pool in self._origins.values():
                pool.expire()

    async def aclose(self) -> None:
        """Close idle connections. Those on loan belong to their responses."""
        for pool in self._origins.values():
            pool.close()

    def statistics(self) -> tuple[PoolState, ...]:
        """A snapshot of each origin's connections."""
        return tuple(pool.state() for pool in self._origins.values())

    def _pool_of(self, url: httpx.URL) -> ConnectionPool:
        try:
            origin = Origin(
                url.scheme, url.raw_host.decode("ascii"), url.port or DEFAULT_PORTS[url.scheme]
            )
        except KeyError:
            raise httpx.UnsupportedProtocol(f"{url.scheme!r} is neither http nor https") from None
        pool = self._origins.get(origin)
        if pool is None:
            context = None
            if origin.scheme == "https":
                context = self._ssl_context = self._ssl_context or _client_context(None)
            pool = self._origins[origin] = ConnectionPool(
                origin, self._slots, self._resolver, context, self._tls_server_name
            )
        return pool


def _client_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
