"""Gets the state of a proxy: once, or from `/status/stream`, again after each failure.

It knows HTTP and event streams, and not what is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from interceptors.sse import parse_fields

from ..causes import cause_of
from .state import State, decode_state

__all__ = ["Failure", "Place", "fetch_state", "read_place", "watch_states"]

_CONNECT_S = 5.0
_READ_S = 10.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 10.0
_MAX_BYTES = 64 << 20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PAGES = ("/status", "/status/stream", "/dashboard", "/metrics")
_PROBLEMS = {
    401: "the proxy requires a token: use --token, or set WEIRPOOL_ADMIN_TOKEN (admin.token)",
    404: "there is no /status: --url must be the address of the admin pages, with admin.prefix",
    503: "the proxy ends, or all its places for watchers are taken",
    421: "the proxy does not serve this host name: use its address, or list the name in admin.hosts",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A proxy, and how to ask it."""

    url: str
    """Of the admin pages, without a slash at the end."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_local: bool = False

    def options(self) -> dict[str, Any]:
        """Settings of an httpx client."""
        timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
        # A proxy of the environment cannot reach this machine's loopback.
        return {"headers": self.headers, "timeout": timeout, "trust_env": not self.is_local}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no state, and the seconds until the next attempt."""

    text: str
    retry_s: float


def read_place(url: str, token: str | None) -> Place:
    """Return the place of a `--url`. Raises `ValueError`."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"--url: {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"--url: {url!r} is not a URL such as http://127.0.0.1:9000")
    if "@" in parts.netloc:
        raise ValueError("--url: a user name or password is not supported: use --token")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("--token: must be visible ASCII characters, without spaces")
    path = parts.path.rstrip("/")
    for page in sorted(_PAGES, key=len, reverse=True):
        if path.endswith(page):
            path = path.removesuffix(page)
            break
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return Place(f"{parts.scheme}://{parts.netloc}{path}", headers, host in _LOOPBACK)


def fetch_state(place: Place) -> State:
    """Return the current state. Blocks. Raises `ValueError` with a text for people."""
    try:
        with httpx.Client(**place.options()) as client:
            response = client.get(f"{place.url}/status")
    except httpx.HTTPError as error:
        raise ValueError(f"{place.url}: {_text_of(error)}") from None
    _check(place, response.status_code)
    return decode_state(response.content)


async def watch_states(place: Place) -> AsyncGenerator[State | Failure, None]:
    """Yield each new state, and a `Failure` before each pause. Never ends. For asyncio."""
    pause_s = _FIRST_PAUSE_S
    async with httpx.AsyncClient(**place.options()) as client:
        while True:
            text = "the proxy has ended the stream"
            try:
                async with aclosing(_stream(client, place)) as states:
                    async for state in states:
                        pause_s = _FIRST_PAUSE_S
                        yield state
            except httpx.HTTPError as error:
                text = f"{place.url}: {_text_of(error)}"
            except ValueError as error:
                text = str(error)
            yield Failure(text, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


async def _stream(client: httpx.AsyncClient, place: Place) -> AsyncGenerator[State, None]:
    async with client.stream("GET", f"{place.url}/status/stream") as response:
        _check(place, response.status_code)
        async for block in _blocks(response.aiter_bytes()):
            fields = parse_fields(block)
            if fields.event == "status" and fields.data is not None:
                yield decode_state(fields.data.encode())


async def _blocks(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The events of a stream whose lines end with LF, as they end."""
    rest = b""
    async for chunk in chunks:
        rest += chunk
        if len(rest) > _MAX_BYTES:
            raise ValueError(f"the proxy sends an event of more than {_MAX_BYTES >> 20} MiB")
        *blocks, rest = rest.split(b"\n\n")
        for block in blocks:
            yield block


def _check(place: Place, status: int) -> None:
    if status != 200:
        problem = _PROBLEMS.get(status, f"the proxy answers with status {status}")
        raise ValueError(f"{place.url}: {problem}")


def _text_of(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ReadTimeout):
        return f"no answer for {_READ_S:.0f} s"
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {_CONNECT_S:.0f} s"
    return cause_of(error)
