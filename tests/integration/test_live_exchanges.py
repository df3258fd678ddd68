"""Open exchanges in `/status`, and how one is shown in a debugger."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from support.client import fetch, open_client
from support.interceptors import Log, config_with, interceptor, on_event, until
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


async def listed(proxy: Proxy) -> dict[str, Any]:
    return dict(json.loads((await fetch(proxy.port, "/status")).body)["exchanges"])


async def live(proxy: Proxy, phase: str) -> dict[str, Any]:
    """The one open exchange in `/status`, once it is in that phase."""
    with trio.fail_after(5):
        while True:
            found = await listed(proxy)
            if found["total"] == 1 and found["oldest"][0]["phase"] == phase:
                return dict(found["oldest"][0])
            await trio.sleep(0.005)


UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12"


@pytest.mark.parametrize(
    ("request_bytes", "given", "phase", "moved"),
    [
        (b"GET /silent HTTP/1.1\r\nHost: x\r\n\r\n", (), "call_upstream", (0, None)),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (), "relay", (9, None)),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", (Sees,), "relay", (9, 1)),
        (UPLOAD, (Reads,), "on_request", (0, None)),
    ],
    ids=["upstream is silent", "stream", "stream with events", "body is awaited"],
)
async def test_status_lists_an_open_exchange(
    request_bytes: bytes, given: Any, phase: str, moved: tuple[int, int | None], log: Log
) -> None:
    """Route, client, phase, age in seconds, bytes to the client and events; gone when it ends."""
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_with(upstream.url, *given)) as p,
    ):
        client = await open_client(p.port)
        await client.stream.send_all(request_bytes)
        received = b""
        while moved[0] and b"data: 1" not in received:
            received += await client.stream.receive_some()
        shown = await live(p, phase)
        assert 0 <= shown.pop("age") < 60
        expected = {
            "id": p.worker.entered,
            "worker": 0,
            "route": "/",
            "upstream": "up",
            "endpoint": None if phase == "on_request" else upstream.url,
            "request_id": None,  # these pages are public
            "client": None,
            "method": request_bytes.split()[0].decode(),
            "path": None,
            "call": None,
            "phase": phase,
        }
        assert shown == expected | {"bytes": moved[0], "events": moved[1]}
        (exchange,) = p.worker.live
        method = request_bytes.split()[0].decode()
        assert repr(exchange) == f"<Exchange {method} / {phase}>"
        client.reset()
        await until(lambda: not p.worker.live)
        assert await listed(p) == {"total": 0, "oldest": []}
