"""Informational responses (RFC 9110, section 15.2): they go to the client as they come, and are no
head of a response.
"""

from __future__ import annotations

from typing import Any

import h2.events
import pytest
import trio
from support.certificates import Certificates
from support.http2_client import Http2Client, open_http2
from support.interceptors import Log, Rig, Serve, Way, interceptor, until
from support.proxy import open_proxy
from support.upstream import Peer, Script, open_upstream

from interceptors import ResponseHead
from proxy.config import parse_config
from proxy.downstream import AsgiStream, Message
from proxy.exchange.exchange import Exchange

PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HOP = b"Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nContent-Length: 9\r\nX-End: 2\r\n\r\n"


def sending(*pieces: bytes, go: trio.Event | None = None) -> Script:
    """Each piece in its own write; the last when `go` is set."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            for piece in pieces[:-1]:
                await peer.send(piece)
                await trio.sleep(0.005)
            if go is not None:
                await go.wait()
            await peer.send(pieces[-1])

    return script


async def get(rig: Rig, end: bytes = b"ok", *, target: str = "/", version: str = "1.1") -> bytes:
    """What comes back on a new connection until `end`."""
    stream, data = (await rig.client()).stream, b""
    await stream.send_all(f"GET {target} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    with trio.fail_after(10):
        while not data.endswith(end):
            piece = await stream.receive_some()
            assert piece, data
            data += piece
    return data


def fields(data: bytes) -> list[tuple[bytes, list[bytes]]]:
    """The status and the fields of each informational response."""
    heads = [head.split(b"\r\n") for head in data.split(b"\r\n\r\n")]
    return [(head[0][9:12], head[1:]) for head in heads if head[0].startswith(b"HTTP/1.1 1")]


async def test_they_arrive_at_once_and_in_their_order(serve_once: Serve) -> None:
    """102, 103 and an unknown one before the final head, without fields of the hop and without a
    length. A client of HTTP/1.0 gets none.
    """
    go = trio.Event()
    odd = b"HTTP/1.1 199 Whatever\r\n" + HOP
    async with serve_once(sending(PROCESSING + EARLY, odd + OK, go=go)) as rig:
        expected = [
            (b"102", []),
            (b"103", [b"link: </a.css>; rel=preload"]),
            (b"199", [b"x-end: 2"]),
        ]
        assert fields(await get(rig, b"preload\r\n\r\n")) == expected[:2]
        go.set()
        data = await get(rig)
        assert fields(data) == expected
        assert data.split(b"\r\n\r\n")[3].startswith(b"HTTP/1.1 200 ")
        assert (await get(rig, version="1.0")).split(b" ")[1] == b"200"
        assert await rig.outcomes(3) == ["completed"] * 3


async def test_over_http2_they_are_header_blocks(
    certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without END_STREAM, at once, and the final head after them."""
    go, seen = trio.Event(), []
    original = Http2Client._handle

    def handle(self: Http2Client, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.InformationalResponseReceived):
            seen.append(list(event.headers))
        original(self, event)

    monkeypatch.setattr(Http2Client, "_handle", handle)
    async with (
        Way(certificates=certificates).serve(log, monkeypatch)(
            sending(PROCESSING, EARLY, OK, go=go)
        ) as rig,
        open_http2(rig.proxy, certificates) as client,
    ):
        stream = client.streams[await client.start()]
        await until(lambda: len(seen) == 2)
        assert seen == [
            [(":status", "102")],
            [(":status", "103"), ("link", "</a.css>; rel=preload")],
        ]
        assert not stream.status
        go.set()
        await until(lambda: stream.ended)
        assert (stream.status, stream.body) == (200, b"ok")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", EARLY * 65])
async def test_an_upgrade_and_a_flood_are_refused(answer: bytes, serve_once: Serve) -> None:
    """101 is not forwarded; the 65th is a failure of the upstream."""
    async with serve_once(sending(answer, OK)) as rig:
        assert (await rig.fetch()).status == 502
        assert await rig.outcomes() == ["upstream_error"]


async def test_hooks_see_the_final_head_only(serve_once: Serve) -> None:
    """And a request is tried again after hints: nothing final has come."""
    statuses: list[int] = []

    async def on_response(head: ResponseHead) -> None:
        statuses.append(head.status)

    async def script(peer: Peer) -> None:
        is_first = peer.upstream.accepted == 1
        await peer.request()
        await peer.send(EARLY + EARLY)
        if not is_first:
            await peer.send(OK)

    async with serve_once(script, interceptor(on_response=on_response)) as rig:
        answer = await rig.fetch()
        assert (answer.status, answer.body, rig.upstream.accepted) == (200, b"ok", 2)
        assert statuses == [200]


async def test_they_do_not_count_as_the_first_byte(serve_once: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for _ in range(50):
            await peer.send(EARLY)
            await trio.sleep(0.02)

    async with serve_once(script, route="timeouts: {first_byte: 0.2}") as rig:
        assert (await rig.fetch()).status == 504
        assert await rig.outcomes() == ["upstream_timeout"]


async def test_references_lead_to_the_route(log: Log) -> None:
    """`Link` of a hint as that of a final head: the prefix that the route strips is put back."""
    async with open_upstream(sending(EARLY, OK)) as upstream:
        config = parse_config(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes: [{{path: /app, upstream: up, strip_prefix: true}}]
log: {{level: error}}
"""
        )
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, proxy, log)
            assert b"link: </app/a.css>; rel=preload" in await get(rig, target="/app/x")
            await rig.clients[0].aclose()


async def test_none_comes_after_an_early_heartbeat(serve_once: Serve) -> None:
    """The head has left by then, and nothing but the body may follow."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await trio.sleep(0.15)
        await peer.send(EARLY)
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.end()

    async with serve_once(script, route="heartbeat: {interval: 0.05, early: true}") as rig:
        answer = await rig.fetch(headers=[("Accept", "text/event-stream")])
        assert answer.complete
        assert answer.body.endswith(b"data: 1\n\n")


@pytest.mark.parametrize("extension", [True, False])
async def test_another_server_gets_what_asgi_allows(extension: bool, serve_once: Serve) -> None:
    """With the extension for early hints, a 103's links."""
    sent: list[Message] = []
    received: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not received:
            await trio.sleep_forever()
        return received.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async with serve_once(sending(PROCESSING, EARLY, OK)) as rig:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "http_version": "1.1",
            "scheme": "http",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [(b"host", b"a")],
            "client": ("127.0.0.1", 1),
            "extensions": {"http.response.early_hint": {}} if extension else {},
        }
        await Exchange(rig.proxy.worker, AsgiStream(scope, receive, send)).run()
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}
    assert sent[:extension] == [hint] * extension
    assert sent[extension]["type"] == "http.response.start"
