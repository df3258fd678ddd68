"""Open exchanges in `/status`, and how one is shown in a debugger."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from support.client import Client, fetch, open_client
from support.interceptors import Log, config_with, interceptor, on_event
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, open_upstream

from interceptors import Request


async def _read(request: Request) -> None:
    """Sees the whole body."""


Sees = on_event(lambda event: event, "Sees")
Reads = interceptor("Reads", wants_body=True, on_request=_read)


async def script(peer: Peer) -> None:
    """`/silent`: no response; else one event, and no end."""
    request = await peer.request(body=False)
    if request.target != b"/silent":
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
    await peer.wait_closed()


async def live(proxy: Proxy, phase: str) -> dict[str, Any]:
    """The one open exchange in `/status`, once it is in that phase."""
    with trio.fail_after(5):
        while True:
            exchanges = json.loads((await fetch(proxy.port, "/status")).body)["exchanges"]
            if exchanges["total"] == 1 and exchanges["oldest"][0]["phase"] == phase:
                return dict(exchanges["oldest"][0])
            await trio.sleep(0.005)


async def silent(client: Client) -> None:
    await client.send("GET", "/silent")


async def stream(client: Client) -> None:
    await client.send("GET", "/")
    await client.read_until(await client.head(), b"data: 1\n\n")


async def upload(client: Client) -> None:
    await client.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12")


@pytest.mark.parametrize(
    ("begin", "given", "phase", "moved"),
    [
        (silent, (), "call_upstream", (0, None)),
        (stream, (), "relay", (9, None)),
        (stream, (Sees,), "relay", (9, 1)),
        (upload, (Reads,), "on_request", (0, None)),
    ],
    ids=["upstream is silent", "stream", "stream with events", "body is awaited"],
)
async def test_status_lists_an_open_exchange(
    begin: Any, given: Any, phase: str, moved: tuple[int, int | None], log: Log
) -> None:
    """Route, client, phase, age in seconds, bytes to the client and events; gone when it ends."""
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_with(upstream.url, *given)) as p,
    ):
        client = await open_client(p.port)
        await begin(client)
        shown = await live(p, phase)
        age = shown.pop("age")
        assert 0 <= age < 60
        assert shown == {
            "route": "/",
            "client": "127.0.0.1",
            "phase": phase,
            "bytes": moved[0],
            "events": moved[1],
        }
        (exchange,) = p.worker.live
        assert repr(exchange) == f"<Exchange {'POST' if begin is upload else 'GET'} / {phase}>"
        client.reset()
        with trio.fail_after(5):
            while p.worker.live:
                await trio.sleep(0.005)
        exchanges = json.loads((await fetch(p.port, "/status")).body)["exchanges"]
        assert exchanges == {"total": 0, "oldest": []}
