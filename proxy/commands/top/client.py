"""Gets the state of a proxy: once, or from `/status/stream`, again after each failure.

It knows HTTP and event streams, and not what is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from interceptors.sse import parse_fields

from ..causes import cause_of
from ..place import CONNECT_S, Place
from .state import State, decode_state

__all__ = ["Failure", "fetch_state", "watch_states"]

_READ_S = 10.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 10.0
_MAX_BYTES = 64 << 20
_PROBLEMS = {
    401: "the proxy requires a token: use --token, or set WEIRPOOL_ADMIN_TOKEN (admin.token)",
    404: "there is no /status: --url must be the address of the admin pages, with admin.prefix",
    503: "the proxy ends, or all its places for watchers are taken",
    421: "the proxy does not serve this host name: use its address, or list the name in admin.hosts",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no state, and the seconds until the next attempt."""

    text: str
    retry_s: float


def fetch_state(place: Place) -> State:
    """Return the current state. Blocks. Raises `ValueError` with a text for people."""
    try:
        with httpx.Client(**place.options(_READ_S)) as client:
            response = client.get(f"{place.url}/status")
    except httpx.HTTPError as error:
        raise ValueError(f"{place.url}: {_text_of(error)}") from None
    _check(place, response.status_code)
    return decode_state(response.content)


async def watch_states(place: Place) -> AsyncGenerator[State | Failure, None]:
    """Yield each new state, and a `Failure` before each pause. Never ends. For asyncio."""
    pause_s = _FIRST_PAUSE_S
    async with httpx.AsyncClient(**place.options(_READ_S)) as client:
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
        return f"no connection within {CONNECT_S:.0f} s"
    return cause_of(error)
