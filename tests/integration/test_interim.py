"""Informational responses (RFC 9110, section 15.2): they go to the client as they come, and are no
head of a response.
"""

from __future__ import annotations

from typing import Any

import h2.events
import pytest
import trio
from support.certificates import Certificates
from support.client import open_client
from support.http2_client import Http2Client, open_http2
from support.interceptors import Log, Serve, Way, until
from support.proxy import open_proxy
from support.upstream import Peer, Script, open_upstream

from interceptors import Interceptor, ResponseHead
from proxy.config import parse_config
from proxy.downstream import Message
from proxy.exchange.exchange import Exchange

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def saying(*pieces: bytes, go: trio.Event | None = None) -> Script:
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


async def read_until(stream: trio.abc.Stream, end: bytes) -> bytes:
    data = b""
    with trio.fail_after(10):
        while not data.endswith(end):
            piece = await stream.receive_some()
            if not piece:
                break
            data += piece
    return data


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_they_arrive_at_once_and_in_their_order(serve_once: Serve) -> None:
    """102, 103 and an unknown one, before the final head."""
    go = trio.Event()
    odd = b"HTTP/1.1 199 Whatever\r\nX-A: b\r\n\r\n"
    async with serve_once(
        saying(b"HTTP/1.1 102 Processing\r\n\r\n" + EARLY, odd, OK, go=go)
    ) as rig:
        client = await rig.client()
        for _ in range(2):
            await client.stream.send_all(GET)
            data = await read_until(client.stream, b"x-a: b\r\n\r\n")
            heads = [part.split(b"\r\n") for part in data.split(b"\r\n\r\n")[:-1]]
            assert [head[0].split(b" ")[1] for head in heads] == [b"102", b"103", b"199"]
            assert [head[1:] for head in heads] == [
                [],
                [b"link: </a.css>; rel=preload"],
                [b"x-a: b"],
            ]
            go.set()
            assert (await read_until(client.stream, b"ok")).startswith(b"HTTP/1.1 200 ")
            go = trio.Event()
        assert await rig.outcomes(2) == ["completed"] * 2


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
            saying(b"HTTP/1.1 102 P\r\n\r\n", EARLY, OK, go=go)
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


async def test_a_client_of_http_1_0_gets_none(serve_once: Serve) -> None:
    async with serve_once(saying(EARLY, OK)) as rig:
        client = await open_client(rig.proxy.port)
        await client.stream.send_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        assert (await read_until(client.stream, b"ok")).split(b" ")[1] == b"200"
        await client.aclose()


async def test_what_belongs_to_the_hop_is_removed(serve_once: Serve) -> None:
    """Fields of the connection, those that `Connection` names, and a length, which no informational
    response has.
    """
    hop = b"Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nContent-Length: 9\r\nX-End: 2\r\n\r\n"
    async with serve_once(saying(b"HTTP/1.1 103 Early Hints\r\n" + hop, OK)) as rig:
        client = await rig.client()
        await client.stream.send_all(GET)
        data = await read_until(client.stream, b"ok")
        assert data.split(b"\r\n\r\n")[0].split(b"\r\n")[1:] == [b"x-end: 2"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", EARLY * 65])
async def test_an_upgrade_and_a_flood_are_refused(answer: bytes, serve_once: Serve) -> None:
    """101 is not forwarded; the 65th is a failure of the upstream."""
    async with serve_once(saying(answer, OK)) as rig:
        fetched = await rig.fetch()
        assert fetched.status == 502
        assert await rig.outcomes() == ["upstream_error"]


class Counts(Interceptor):
    statuses: list[int] = []  # noqa: RUF012

    async def on_response(self, head: ResponseHead) -> None:
        self.statuses.append(head.status)


async def test_hooks_see_the_final_head_only(serve_once: Serve) -> None:
    Counts.statuses = []
    async with serve_once(saying(EARLY, EARLY, OK), Counts) as rig:
        assert (await rig.fetch()).status == 200
        assert Counts.statuses == [200]


async def test_they_do_not_count_as_the_first_byte(serve_once: Serve) -> None:
    """`first_byte` waits for the final head: an upstream that hints on and on is timed out."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for _ in range(50):
            await peer.send(EARLY)
            await trio.sleep(0.02)

    async with serve_once(script, route="timeouts: {first_byte: 0.2}") as rig:
        assert (await rig.fetch()).status == 504
        assert await rig.outcomes() == ["upstream_timeout"]


async def test_a_request_is_tried_again_after_hints(serve_once: Serve) -> None:
    """Nothing final has come from the endpoint that broke off."""
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        await peer.request()
        asked += 1
        await peer.send(EARLY)
        if asked > 1:
            await peer.send(OK)

    async with serve_once(script) as rig:
        answer = await rig.fetch()
        assert (answer.status, answer.body, asked) == (200, b"ok", 2)


async def test_references_lead_to_the_route(log: Log) -> None:
    """`Link` of a hint as that of a final head: the prefix that the route strips is put back."""
    async with open_upstream(saying(EARLY, OK)) as upstream:
        config = parse_config(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"]}}]
  routes: [{{path: /app, upstream: up, strip_prefix: true}}]
log: {{level: error}}
"""
        )
        async with open_proxy(config) as proxy:
            client = await open_client(proxy.port)
            await client.stream.send_all(b"GET /app/x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"link: </app/a.css>; rel=preload" in await read_until(client.stream, b"ok")
            await client.aclose()


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
async def test_another_server_gets_what_asgi_can_say(extension: bool, serve_once: Serve) -> None:
    """With the extension for early hints a 103's links."""
    sent: list[Message] = []

    async def receive() -> Message:
        if not received:
            received.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    received: list[bool] = []
    async with serve_once(saying(b"HTTP/1.1 102 P\r\n\r\n", EARLY, OK)) as rig:
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
        await Exchange(rig.proxy.worker, scope)(receive, send)
    hints = (
        [{"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}]
        if extension
        else []
    )
    assert sent[: len(hints)] == hints
    assert sent[len(hints)]["type"] == "http.response.start"
