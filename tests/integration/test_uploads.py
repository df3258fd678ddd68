"""Request bodies that do not arrive whole: no upstream may take a part for the whole, and the
client gets the reason.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client, fetch, open_client
from support.http2_client import open_http2
from support.interceptors import outcomes_of, until
from support.proxy import Proxy, config_for, limit_upstream_buffers, open_proxy
from support.upstream import Peer, Script, open_upstream

FRAMINGS = ("chunked", "content-length")
BODY_SIZE = 4_000_000


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload is blocked soon after the upstream stops reading."""
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 16384)


@asynccontextmanager
async def proxy_for(url: str, route: str = "") -> AsyncIterator[Proxy]:
    """A proxy that has nothing on loan when its exchanges are over."""
    async with open_proxy(config_for(url, route=route)) as proxy:
        yield proxy
        await until(lambda: not proxy.worker.live)
        assert set(proxy.in_use().values()) == {0}
        assert proxy.lent() == 0


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


def taking(seen: Seen) -> Script:
    """Read one request, answer it if it comes to its end."""

    async def script(peer: Peer) -> None:
        try:
            await peer.request(body=False)
            seen.heads += 1
            while True:
                event = await peer._next()
                if isinstance(event, h11.Data):
                    seen.data += len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    seen.whole += 1
                    await peer.send(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
                    )
                    return
                else:
                    return
        finally:
            seen.closed += 1

    return script


def refuse_to_read(peer: Peer) -> None:
    peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # type: ignore[attr-defined]


async def begin(client: Client, framing: str, size: int = BODY_SIZE) -> None:
    """Send the head of a POST whose body is to follow."""
    length = (
        ("Transfer-Encoding", "chunked") if framing == "chunked" else ("Content-Length", str(size))
    )
    head = h11.Request(method="POST", target="/", headers=[("Host", "proxy.test"), length])
    await client.stream.send_all(client._h11.send(head) or b"")


async def send(client: Client, size: int) -> None:
    await client.stream.send_all(client._h11.send(h11.Data(data=bytes(size))) or b"")


async def flood(client: Client, size: int = BODY_SIZE) -> None:
    """Send all of the body as fast as it goes, and its end; or as much as the proxy lets."""
    try:
        for _ in range(size // 20_000):
            await send(client, 20_000)
        await client.stream.send_all(client._h11.send(h11.EndOfMessage()) or b"")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def error_type(answer: Answer) -> str:
    assert answer.complete
    assert answer.all("content-type") == [b"application/json"]
    kind = json.loads(answer.body)["error"]["type"]
    assert isinstance(kind, str)
    return kind


# The client leaves


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_upload_whose_client_left_is_never_whole(
    framing: str, how: str, log: list[dict[str, object]]
) -> None:
    """Clients leave in the middle of their upload: no upstream sees a complete request."""
    seen = Seen()
    async with open_upstream(taking(seen)) as upstream, proxy_for(upstream.url) as proxy:
        for number in range(20):
            client = await open_client(proxy.port)
            await begin(client, framing)
            await send(client, 1000)
            if number % 2:
                # Every other one leaves with bytes on their way.
                await send(client, 100_000)
            await until(
                lambda expected=number: (
                    seen.heads == expected + 1 and seen.data >= (expected + 1) * 1000
                )
            )
            if how == "reset":
                client.reset()
            else:
                await client.aclose()
            assert await outcomes_of(log, number + 1) == ["client_disconnected"] * (number + 1)
        await until(lambda: seen.closed == 20)
        assert seen.whole == 0


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_client_that_leaves_at_once_sends_no_whole_request(
    framing: str, log: list[dict[str, object]]
) -> None:
    """The same when the client's end comes together with the head, over a connection that is open
    already or not.
    """
    seen = Seen()
    async with open_upstream(taking(seen)) as upstream, proxy_for(upstream.url) as proxy:
        for _ in range(20):
            client = await open_client(proxy.port)
            await begin(client, framing)
            await client.aclose()
        assert await outcomes_of(log, 20) == ["client_disconnected"] * 20
        await until(lambda: seen.closed == upstream.accepted)
        assert seen.whole == 0


# The proxy refuses to continue


async def test_a_chunked_body_over_the_limit_is_413_and_never_whole(
    log: list[dict[str, object]],
) -> None:
    """The upstream has a part of the body then, and gets no end of it."""
    seen = Seen()
    async with (
        open_upstream(taking(seen)) as upstream,
        proxy_for(upstream.url, "limits: {max_request_body_bytes: 1000}") as proxy,
    ):
        client = await open_client(proxy.port)
        await begin(client, "chunked")
        await send(client, 600)
        await until(lambda: seen.data == 600)
        await send(client, 600)
        await flood(client)
        with trio.fail_after(10):
            answer = await client.answer()
        assert (answer.status, error_type(answer)) == (413, "request_too_large")
        await until(lambda: seen.closed == 1)
        assert seen.whole == 0
        assert seen.data <= 1000
        assert await outcomes_of(log) == ["refused"]
        await client.aclose()


@pytest.mark.parametrize("content_type", [b"text/plain", b"text/event-stream"])
@pytest.mark.usefixtures("small_buffers")
async def test_an_upload_that_times_out_ends_no_response_clean(
    content_type: bytes, log: list[dict[str, object]]
) -> None:
    """The proxy closes the connection that frames the body: that must not look like its end."""

    async def script(peer: Peer) -> None:
        refuse_to_read(peer)
        await peer.request(body=False)
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type + b"\r\n\r\ndata: 1\n\n"
        )
        await trio.sleep_forever()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, "timeouts: {write: 0.1}") as proxy,
        trio.open_nursery() as nursery,
    ):
        client = await open_client(proxy.port)
        await begin(client, "content-length")
        nursery.start_soon(flood, client)
        with trio.fail_after(10):
            answer = await client.answer()
        assert answer.status == 200
        assert answer.body.startswith(b"data: 1\n\n")
        assert (b"upstream_write_timeout" in answer.body) == (content_type == b"text/event-stream")
        assert not answer.complete
        assert await outcomes_of(log) == ["upstream_timeout"]
        await client.aclose()


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_client_that_falls_silent_in_its_request_gets_408(
    framing: str, log: list[dict[str, object]]
) -> None:
    """408 after timeouts.idle; the upstream does not get a whole request."""
    seen = Seen()
    async with (
        open_upstream(taking(seen)) as upstream,
        proxy_for(upstream.url, "timeouts: {idle: 0.1}") as proxy,
    ):
        client = await open_client(proxy.port)
        await begin(client, framing)
        await send(client, 100)
        with trio.fail_after(5):  # much less than the proxy would linger for the rest
            answer = await client.answer()
        assert (answer.status, error_type(answer)) == (408, "request_timeout")
        assert answer.all("connection") == [b"close"]
        await until(lambda: seen.closed == 1)
        assert (seen.data, seen.whole) == (100, 0)
        await client.aclose()
        assert await outcomes_of(log) == ["refused"]


async def test_an_http2_client_that_sends_only_a_head_gets_408(certificates: Certificates) -> None:
    """Without a length, only the next frame shows whether the request has a body."""
    async with open_upstream(taking(Seen())) as upstream:
        config = config_for(upstream.url, route="timeouts: {idle: 0.1}")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            stream = client.streams[await client.start("POST", end=False)]
            with trio.fail_after(5):
                await until(lambda: stream.status)
            assert stream.status == 408
        assert upstream.accepted == 0


async def test_an_upstream_that_reads_late_is_not_the_clients_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 16384)

    async def script(peer: Peer) -> None:
        request = await peer.request(body=False)
        await trio.sleep(0.5)
        await peer.take_body(request)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, "timeouts: {idle: 0.1}") as proxy,
    ):
        with trio.fail_after(10):
            answer = await fetch(proxy.port, method="POST", body=bytes(4_000_000))
        assert (answer.status, answer.body) == (200, b"ok")


# The upstream ends it


def answering_early(seen: Seen) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        seen.heads += 1
        await peer.send(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 200000\r\n\r\n" + b"n" * 200_000
        )
        await peer.wait_closed()
        seen.closed += 1

    return script


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_content_with_an_early_answer_has_completed(
    framing: str, how: str, log: list[dict[str, object]]
) -> None:
    """A client that leaves after the whole answer, without its upload's rest."""
    seen = Seen()
    async with open_upstream(answering_early(seen)) as upstream, proxy_for(upstream.url) as proxy:
        client = await open_client(proxy.port)
        await begin(client, framing)
        await send(client, 1000)
        with trio.fail_after(10):
            answer = await client.head()
            await client.read_until(answer, b"n" * 200_000)
        assert (answer.status, len(answer.body)) == (401, 200_000)
        await until(
            lambda: seen.closed == 1
        )  # the whole answer has been handed over, and the upload is over
        assert not [
            line for line in log if line["event"] == "exchange"
        ]  # the client has not left yet
        if how == "reset":
            client.reset()
        else:
            await client.aclose()
        assert await outcomes_of(log) == ["completed"]


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_client_that_uploads_on_gets_an_early_answer_whole(
    framing: str, log: list[dict[str, object]]
) -> None:
    """The answer arrives to its last byte; no reset overtakes it."""
    seen = Seen()
    async with open_upstream(answering_early(seen)) as upstream, proxy_for(upstream.url) as proxy:
        for number in range(5):
            client = await open_client(proxy.port)
            async with trio.open_nursery() as nursery:
                await begin(client, framing)
                nursery.start_soon(flood, client)
                with trio.fail_after(10):
                    answer = await client.answer()
            assert (answer.status, len(answer.body), answer.complete) == (401, 200_000, True)
            assert await outcomes_of(log, number + 1) == ["completed"] * (number + 1)
            await client.aclose()


async def test_an_answer_whose_end_could_not_be_sent_in_time_has_not_completed(
    log: list[dict[str, object]],
) -> None:
    """The upstream has answered early and whole, and the total time is over while the client's
    upload still stands: the response's end waits for that, and the client must not take the
    response for a whole one.
    """

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.start_stream()
        await peer.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        await peer.wait_closed()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, route="timeouts: {total: 0.5}") as proxy,
    ):
        client = await open_client(proxy.port)
        await begin(client, "content-length")
        await send(client, 1000)
        with trio.fail_after(10):
            answer = await client.head()
            await client.rest(answer)
        assert (answer.body, answer.complete) == (b"data: 1\n\n", False)
        assert await outcomes_of(log) == ["upstream_timeout"]
        await client.aclose()


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_an_upstream_that_resets_in_an_upload_is_502(
    framing: str, log: list[dict[str, object]]
) -> None:
    """The client, still sending, reads why; the request is not sent a second time."""
    seen = Seen()

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        seen.heads += 1
        while seen.data < seen.heads * 100_000:
            event = await peer._next()
            assert isinstance(event, h11.Data)
            seen.data += len(event.data)
        sock = peer.stream.socket  # type: ignore[attr-defined]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async with open_upstream(script) as upstream, proxy_for(upstream.url) as proxy:
        for number in range(5):
            client = await open_client(proxy.port)
            async with trio.open_nursery() as nursery:
                await begin(client, framing)
                nursery.start_soon(flood, client)
                with trio.fail_after(10):
                    answer = await client.answer()
            assert (answer.status, error_type(answer)) == (502, "upstream_connection_lost")
            assert await outcomes_of(log, number + 1) == ["upstream_error"] * (number + 1)
            await client.aclose()
        assert seen.heads == 5
