"""An `httpx.AsyncBaseTransport` over `Http1Transport`, for code that uses `httpx.AsyncClient`.

httpx's `connect`, `write` and `read` timeouts apply, and each failure is raised as the httpx
exception of its kind. The proxy itself sends no requests through httpx; `weirpool demo` does.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import httpx
import trio

from pools import Pools

from ..errors import (
    ConnectFailed,
    ConnectTimedOut,
    DnsFailed,
    OutOfResources,
    PoolFull,
    PoolTimedOut,
    ProtocolFailure,
    ReadTimedOut,
    TlsFailed,
    UpstreamFailure,
    WriteTimedOut,
)
from ..http.head import BadRequest
from .body import UpstreamBody
from .call import CallTimeouts, UpstreamCall
from .endpoints import Endpoint
from .http1 import Http1Transport

__all__ = ["HttpxTransport"]

_EXCEPTIONS: dict[type[UpstreamFailure], type[httpx.TransportError]] = {
    ConnectFailed: httpx.ConnectError,
    DnsFailed: httpx.ConnectError,
    TlsFailed: httpx.ConnectError,
    OutOfResources: httpx.ConnectError,
    ConnectTimedOut: httpx.ConnectTimeout,
    PoolFull: httpx.PoolTimeout,
    PoolTimedOut: httpx.PoolTimeout,
    WriteTimedOut: httpx.WriteTimeout,
    ReadTimedOut: httpx.ReadTimeout,
    ProtocolFailure: httpx.RemoteProtocolError,
}


class HttpxTransport(httpx.AsyncBaseTransport):
    """Sends the requests of an `httpx.AsyncClient`. Closing the client closes `transport`."""

    def __init__(self, pools: Pools, transport: Http1Transport) -> None:
        self._pools = pools
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises `httpx.TransportError`."""
        given: dict[str, float | None] = request.extensions.get("timeout", {})
        connect_s, write_s, read_s = (
            math.inf if (seconds := given.get(name)) is None else seconds
            for name in ("connect", "write", "read")
        )
        stream = request.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else stream
        call = UpstreamCall(
            request.method,
            request.extensions.get("target") or request.url.raw_path,
            request.headers.raw,
            body,
            CallTimeouts(connect_s, write_s, read_s),
        )
        try:
            endpoint = Endpoint(f"{request.url.scheme}://{request.url.netloc.decode()}")
        except ValueError as error:
            raise httpx.UnsupportedProtocol(str(error)) from error
        try:
            response = await self._transport.call(call, endpoint)
        except BadRequest as error:
            raise httpx.LocalProtocolError(str(error)) from error
        except UpstreamFailure as failure:
            raise _as_httpx(failure) from failure
        return httpx.Response(
            response.status,
            headers=list(response.headers),
            stream=_Stream(self._pools, response.body, read_s),
            extensions={
                "http_version": b"HTTP/" + response.version,
                "reason_phrase": response.reason,
            },
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Stream(httpx.AsyncByteStream):
    """The body of a response. An object, not a generator: no async generator owns a socket."""

    def __init__(self, pools: Pools, body: UpstreamBody, read_timeout_s: float) -> None:
        self._pools = pools
        self._body = body
        self._read_timeout_s = read_timeout_s

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            while not self._body.complete:
                with trio.move_on_after(self._read_timeout_s) as waiting:
                    await self._body.wait_readable()
                if waiting.cancelled_caught:
                    raise httpx.ReadTimeout(f"silent for {self._read_timeout_s} s")
                with self._pools.http_response.acquire() as lease:
                    span = self._body.receive(lease.buffer, 0)
                    if span is not None and span[0] < span[1]:
                        return bytes(lease.buffer[span[0] : span[1]])
        except UpstreamFailure as failure:
            raise _as_httpx(failure) from failure
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._body.close()


def _as_httpx(failure: UpstreamFailure) -> httpx.TransportError:
    kinds = (_EXCEPTIONS[kind] for kind in type(failure).__mro__ if kind in _EXCEPTIONS)
    return next(kinds, httpx.ReadError)(str(failure))
