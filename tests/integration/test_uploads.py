"""Request bodies that do not arrive whole: no upstream may take a part for the whole, and the
client gets the reason.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.http2_client import open_http2
from support.interceptors import Log, Rig, until
from support.proxy import config_for, limit_upstream_buffers, open_proxy
from support.upstream import Peer, Script, open_upstream

FRAMINGS = pytest.mark.parametrize("framing", ["chunked", "content-length"])
BODY_SIZE = 4_000_000


@dataclass
class Seen:
    """What an upstream has seen of the uploads."""

    heads: int = 0
    data: int = 0
    """Bytes of bodies."""
    whole: int = 0
    """Requests that came to their end, as h11 reads them."""
    closed: int = 0
    """Connections that are over."""

    async def script(self, peer: Peer) -> None:
        """Read one request, answer it if it comes to its end."""
        try:
            await peer.request(body=False)
            self.heads += 1
            while isinstance(event := await peer._next(), h11.Data):
                self.data += len(event.data)
            if isinstance(event, h11.EndOfMessage):
                self.whole += 1
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        finally:
            self.closed += 1


@pytest.fixture
def seen() -> Seen:
    return Seen()


@asynccontextmanager
async def serving(script: Script, log: Log, route: str = "") -> AsyncIterator[Rig]:
    """A proxy that has nothing on loan when its exchanges are over."""
    async with open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, route=route)) as proxy:
            rig = Rig(upstream, proxy, log)
            with trio.fail_after(15):
                yield rig
                for client in rig.clients:
                    await client.aclose()
                await rig.everything_is_back()


async def begin(rig: Rig, framing: str, *sizes: int) -> Client:
    """Send the head of a POST, and pieces of these sizes."""
    client = await rig.client()
    is_chunked = framing == "chunked"
    length = ("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(BODY_SIZE))
    head = h11.Request(method="POST", target="/", headers=[("Host", "proxy.test"), length])
    await client.stream.send_all(client._h11.send(head) or b"")
    for size in sizes:
        await send(client, size)
    return client


async def send(client: Client, size: int) -> None:
    await client.stream.send_all(client._h11.send(h11.Data(data=bytes(size))) or b"")


async def flood(client: Client) -> None:
    """Send all of the body and its end, or as much as the proxy lets."""
    try:
        for _ in range(BODY_SIZE // 20_000):
            await send(client, 20_000)
        await client.stream.send_all(client._h11.send(h11.EndOfMessage()) or b"")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def answer_during(client: Client) -> Answer:
    """The answer to a client that continues its upload."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood, client)
        return await client.answer()


async def leave(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    else:
        await client.aclose()


def error_of(answer: Answer) -> tuple[int, str]:
    assert answer.complete
    assert answer.all("content-type") == [b"application/json"]
    return answer.status, json.loads(answer.body)["error"]["type"]


# The client leaves


@FRAMINGS
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_upload_whose_client_left_is_never_whole(
    framing: str, how: str, seen: Seen, log: Log
) -> None:
    """Also with bytes on their way, and when the client's end comes together with the head."""
    async with serving(seen.script, log) as rig:
        for number in range(1, 7):
            sizes = (1000, 100_000) if number % 2 else (1000,)
            client = await begin(rig, framing, *sizes)
            await until(lambda number=number: seen.heads == number and seen.data >= number * 1000)
            await leave(client, how)
            await rig.outcomes(number)
        for _ in range(10):
            await leave(await begin(rig, framing), how)
        assert await rig.outcomes(16) == ["client_disconnected"] * 16
        await until(lambda: seen.closed == rig.upstream.accepted)
        assert seen.whole == 0


# The proxy refuses to continue


async def test_a_chunked_body_over_the_limit_is_413_and_never_whole(seen: Seen, log: Log) -> None:
    """The upstream has a part of the body then, and gets no end of it."""
    async with serving(seen.script, log, "limits: {max_request_body_bytes: 1000}") as rig:
        client = await begin(rig, "chunked", 600)
        await until(lambda: seen.data == 600)
        assert error_of(await answer_during(client)) == (413, "request_too_large")
        await until(lambda: seen.closed == 1)
        assert (seen.data, seen.whole) == (600, 0)
        assert await rig.outcomes() == ["refused"]


@pytest.mark.parametrize("content_type", [b"text/plain", b"text/event-stream"])
async def test_an_upload_that_times_out_ends_no_response_clean(
    content_type: bytes, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy closes the connection that frames the body: that must not look like its end."""
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 16384)

    async def script(peer: Peer) -> None:
        peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # type: ignore[attr-defined]
        await peer.request(body=False)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\ndata: 1\n\n" % content_type)
        await trio.sleep_forever()

    async with serving(script, log, "timeouts: {write: 0.1}") as rig:
        answer = await answer_during(await begin(rig, "content-length"))
        assert (answer.status, answer.complete) == (200, False)
        assert answer.body.startswith(b"data: 1\n\n")
        assert (b"upstream_write_timeout" in answer.body) == (content_type == b"text/event-stream")
        assert await rig.outcomes() == ["upstream_timeout"]


@FRAMINGS
async def test_a_client_that_falls_silent_in_its_request_gets_408(
    framing: str, seen: Seen, log: Log
) -> None:
    """After timeouts.idle; the upstream does not get a whole request."""
    async with serving(seen.script, log, "timeouts: {idle: 0.1}") as rig:
        client = await begin(rig, framing, 100)
        with trio.fail_after(5):  # much less than the proxy would linger for the rest
            answer = await client.answer()
        assert error_of(answer) == (408, "request_timeout")
        assert answer.all("connection") == [b"close"]
        await until(lambda: seen.closed == 1)
        assert (seen.data, seen.whole) == (100, 0)
        await client.aclose()
        assert await rig.outcomes() == ["refused"]


async def test_an_http2_client_that_sends_only_a_head_gets_408(
    certificates: Certificates, seen: Seen
) -> None:
    """Without a length, only the next frame shows whether the request has a body."""
    async with open_upstream(seen.script) as upstream:
        config = config_for(upstream.url, route="timeouts: {idle: 0.1}")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            stream = client.streams[await client.start("POST", end=False)]
            await until(lambda: stream.status)
            assert stream.status == 408
        assert upstream.accepted == 0


async def test_an_upstream_that_reads_late_is_not_the_clients_silence(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 16384)

    async def script(peer: Peer) -> None:
        request = await peer.request(body=False)
        await trio.sleep(0.3)
        await peer.take_body(request)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with serving(script, log, "timeouts: {idle: 0.1}") as rig:
        answer = await rig.fetch(method="POST", body=bytes(BODY_SIZE))
        assert (answer.status, answer.body) == (200, b"ok")


# The upstream ends it


async def answer_early(peer: Peer) -> None:
    await peer.request(body=False)
    await peer.send(b"HTTP/1.1 401 No\r\nContent-Length: 200000\r\n\r\n" + b"n" * 200_000)
    await peer.wait_closed()


@FRAMINGS
@pytest.mark.parametrize("how", ["close", "reset", "upload"])
async def test_an_early_answer_arrives_whole(framing: str, how: str, log: Log) -> None:
    """Also while the client continues its upload: no reset overtakes it. A client that leaves
    after the whole answer, without its upload's rest, has completed.
    """
    async with serving(answer_early, log) as rig:
        client = await begin(rig, framing)
        if how == "upload":
            answer = await answer_during(client)
            assert answer.complete
        else:
            await send(client, 1000)
            answer = await client.head()
            await client.read_until(answer, b"n" * 200_000)
            await until(lambda: not rig.upstream.open)  # the upload is over
            assert await rig.outcomes() == ["completed"]  # before the client has left
            await leave(client, how)
        assert (answer.status, len(answer.body)) == (401, 200_000)
        assert await rig.outcomes() == ["completed"]


async def test_the_end_of_an_early_answer_does_not_wait_for_the_upload(log: Log) -> None:
    """The client reads a whole response while it still sends; the connection is then of no use."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.start_stream()
        await peer.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        await peer.wait_closed()

    async with serving(script, log) as rig:
        answer = await (await begin(rig, "content-length", 1000)).answer()
        assert (answer.body, answer.complete) == (b"data: 1\n\n", True)
        assert await rig.outcomes() == ["completed"]


@FRAMINGS
async def test_an_upstream_that_resets_in_an_upload_is_502(framing: str, log: Log) -> None:
    """The client, still sending, reads why; the request is not sent a second time."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        size = 0
        while size < 100_000:
            event = await peer._next()
            assert isinstance(event, h11.Data)
            size += len(event.data)
        peer.reset()

    async with serving(script, log) as rig:
        for _ in range(3):
            answer = await answer_during(await begin(rig, framing))
            assert error_of(answer) == (502, "upstream_connection_lost")
        assert await rig.outcomes(3) == ["upstream_error"] * 3
        assert rig.upstream.accepted == 3
