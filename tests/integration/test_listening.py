"""Streams on which clients listen: silence does not cut them, and peers that are gone are found by
TCP keepalive.
"""

from __future__ import annotations

import socket

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.http2_client import open_http2
from support.interceptors import Feed, Log, Rig, Serve, config_with, on_event, until
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, open_upstream

IDLE_S = 0.1
SILENCE_S = 2.5 * IDLE_S
IDLE = f"timeouts: {{idle: {IDLE_S}}}"
NOTICE = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n\n'
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
ACCEPT = ("Accept", "application/json, text/event-stream")


async def listen(rig: Rig, *headers: tuple[str, str], method: str = "GET") -> tuple[Client, Answer]:
    client = await rig.client()
    with trio.fail_after(10):
        await client.send(method, "/", [ACCEPT, *headers], CALL if method == "POST" else None)
        return client, await client.head()


OPEN = b": open\n\n"
PART = b"event: mess"


@pytest.mark.parametrize(
    ("route", "proxy", "method", "first"),
    [
        (f"dialect: mcp, {IDLE}", "", "GET", OPEN),
        (f"dialect: mcp, {IDLE}", "", "GET", b"event: endpoint\ndata: /messages?s=1\n\n"),
        (f"dialect: mcp, {IDLE}", "", "GET", b""),
        (f"dialect: mcp, {IDLE}", "", "GET", PART),
        ("dialect: mcp", f"  {IDLE}", "GET", OPEN),
        (f"dialect: mcp, {IDLE}, heartbeat: {{interval: 0.05}}", "", "GET", OPEN),
        (f"dialect: mcp, {IDLE}, reconnect: {{enabled: true}}", "", "GET", OPEN),
        (f"listening: [GET], {IDLE}", "", "GET", OPEN),
        (f"dialect: openai, listening: [GET, POST], {IDLE}", "", "POST", OPEN),
        (f"dialect: mcp, listening: [POST], {IDLE}", "", "POST", OPEN),
    ],
)
async def test_a_listening_stream_may_be_silent(
    route: str, proxy: str, method: str, first: bytes, serve_once: Serve
) -> None:
    """Whatever came before the silence."""
    feed = Feed()
    async with serve_once(feed.script, route=route, proxy=proxy) as rig:
        client, answer = await listen(rig, ("Mcp-Session-Id", "s1"), method=method)
        if first:
            feed.send(first)
        await trio.sleep(SILENCE_S)
        feed.send(b"age\ndata: 1\n\n" if first == PART else NOTICE)
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n" if first == PART else NOTICE)
        assert not rig.lines("exchange")
        assert len(rig.upstream.requests) == 1


@pytest.mark.parametrize("sees_events", [False, True])
async def test_silence_in_each_way_of_serving(sees_events: bool, serve: Serve) -> None:
    """Within an event. With interceptors that see the events, and without."""
    feed = Feed()
    hooks = [on_event(lambda event: event)] if sees_events else []
    async with serve(feed.script, *hooks, route=f"dialect: mcp, {IDLE}") as rig:
        client, answer = await listen(rig)
        feed.send(NOTICE + PART)
        await trio.sleep(SILENCE_S)
        feed.send(b"age\ndata: 1\n\n")
        with trio.fail_after(10):
            await client.read_until(answer, b"event: message\ndata: 1\n\n")
        with trio.move_on_after(SILENCE_S):
            await client.rest(answer)
        assert not answer.error
        assert not rig.lines("exchange")


@pytest.mark.parametrize(
    ("route", "method"),
    [
        ("dialect: mcp, listening: []", "GET"),
        ("dialect: mcp, listening: [POST]", "GET"),
        ("listening: [GET]", "POST"),
        ("dialect: generic", "GET"),
        ("dialect: openai", "GET"),
    ],
)
async def test_any_other_silent_stream_is_cut(route: str, method: str, serve_once: Serve) -> None:
    """After timeouts.idle."""
    feed = Feed()
    async with serve_once(feed.script, route=f"{route}, {IDLE}") as rig:
        client, answer = await listen(rig, method=method)
        feed.send(OPEN)
        with trio.fail_after(10):
            await client.rest(answer)
        assert not answer.complete
        assert await rig.outcomes() == ["upstream_timeout"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_cut_in_each_way_of_serving(method: str, serve: Serve) -> None:
    """A call that was not answered, which gets its error first; a body that is no event stream."""

    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.method == "POST":
            await peer.start_stream()
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await trio.sleep_forever()

    async with serve(script, route=f"dialect: mcp, {IDLE}") as rig:
        client, answer = await listen(rig, method=method)
        with trio.fail_after(10):
            await client.rest(answer)
        assert not answer.complete
        assert (b'"id":1,"error":{"code":-32001,' in answer.body) is (method == "POST")
        assert await rig.outcomes() == ["upstream_timeout"]


def probes(sock: socket.socket) -> tuple[int, int, int] | None:
    """Seconds before the first probe and between two, and how many; None: none."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return None
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    after_s, every_s, count = (sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)
    return after_s, every_s, count


async def sockets_of(proxy: Proxy) -> tuple[socket.socket, socket.socket]:
    """The upstream's and the client's socket of the one live exchange, once its stream is moved."""
    await until(lambda: any(item._progress.relay is not None for item in proxy.worker.live))
    (exchange,) = proxy.worker.live
    return (
        exchange._progress.relay.body.connection.sock,
        exchange._stream._connection.transport.sock,
    )


@pytest.mark.parametrize(
    ("send_s", "expected"),
    [("30", (15, 3, 4)), ("null", (60, 15, 4)), ("0.5", (1, 1, 4)), ("3600", (60, 15, 4))],
)
async def test_peers_of_a_listening_stream_are_probed(
    send_s: str, expected: tuple[int, int, int], serve_once: Serve
) -> None:
    """Within timeouts.send, if that is shorter."""
    route = f"dialect: mcp, timeouts: {{send: {send_s}}}"
    async with serve_once(Feed().script, route=route) as rig:
        await listen(rig)
        upstream, client = await sockets_of(rig.proxy)
        assert (probes(upstream), probes(client)) == ((60, 15, 4), expected)


async def test_peers_are_probed(serve_once: Serve, certificates: Certificates) -> None:
    """With TLS to the upstream. On a route with another timeouts.send the probes of the client's
    connection follow its TCP_USER_TIMEOUT.
    """
    async with serve_once(
        Feed().script,
        route="dialect: mcp, timeouts: {send: null}",
        proxy="  timeouts: {send: 30}",
        upstream=f"ca_file: {certificates.ca_file}",
        upstream_tls=certificates.server,
    ) as rig:
        await listen(rig)
        upstream, client = await sockets_of(rig.proxy)
        assert (probes(upstream), probes(client)) == ((60, 15, 4), (60, 15, 4))
        (exchange,) = rig.proxy.worker.live
        assert exchange._stream._connection is not None
        exchange._stream._connection.transport.limit_send(8)
        assert probes(client) == (4, 1, 4)


async def test_other_clients_are_not_probed(serve_once: Serve) -> None:
    """With a limit beyond what TCP_USER_TIMEOUT can hold, too."""
    async with serve_once(Feed().script, proxy="  timeouts: {send: 31536000}") as rig:
        await listen(rig)
        _, client = await sockets_of(rig.proxy)
        assert probes(client) is None


async def test_a_listening_stream_of_http_2(certificates: Certificates, log: Log) -> None:
    """Among other streams of its connection, which stay as they are."""
    feed = Feed()
    async with open_upstream(feed.script) as upstream:
        config = config_with(upstream.url, route=f"dialect: mcp, {IDLE}")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            stream = client.streams[
                await client.start("GET", "/", [("accept", "text/event-stream")])
            ]
            await until(lambda: stream.status)
            _, sock = await sockets_of(proxy)
            assert probes(sock) == (15, 3, 4)
            await trio.sleep(SILENCE_S)
            feed.send(NOTICE)
            await until(lambda: stream.body.endswith(NOTICE))
            assert not stream.over
