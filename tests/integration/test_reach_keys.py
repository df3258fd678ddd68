"""Every key that a route may override, at both places, and the sizes of the pools: from YAML, over
real sockets.

`SECTIONS` has a case for each key: what is written, and what a client, an upstream or the log shows
of it. A new key of these sections needs one, and a line in `tests/reach.txt`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from support.client import Answer, Client, fetch, open_client
from support.interceptors import Log, outcomes_of
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import (
    Peer,
    Script,
    Upstream,
    endless_stream_of,
    open_stream_of,
    open_upstream,
    stream_of,
)

from proxy.commands.cli import main
from proxy.relay.heartbeat import PING

EVENT = b"data: 1\n\n"
REDACT = "{name: redact, use: redact, options: {patterns: [nothing-of-that]}}"


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.wait_closed()


async def unread(peer: Peer) -> None:
    await peer.request(body=False)
    await trio.sleep_forever()


stops = open_stream_of(EVENT)


floods = endless_stream_of(b"data: %s\n\n" % bytes(60000))


async def breaks(peer: Peer) -> None:
    """The first stream breaks after an event; then there is none."""
    await peer.request()
    if len(peer.upstream.requests) == 1:
        await peer.start_stream()
        await peer.chunk(b"id: 1\n" + EVENT)


async def breaks_once(peer: Peer) -> None:
    await breaks(peer)
    if len(peer.upstream.requests) > 1:
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")  # no more: do not come again


@asynccontextmanager
async def unanswered() -> AsyncIterator[Upstream]:
    """An address where a connection is neither accepted nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield Upstream(port)
        for sock in waiting:
            sock.close()


class Trial(NamedTuple):
    """What a check of a case can look at."""

    proxy: Proxy
    upstream: Upstream
    log: Log


Look = Callable[[Trial], Awaitable[None]]


@asynccontextmanager
async def stream(trial: Trial) -> AsyncIterator[tuple[Client, Answer]]:
    client = await open_client(trial.proxy.port)
    await client.send("GET", "/", [("accept", "text/event-stream")])
    yield client, await client.head()
    await client.aclose()


def answers(status: int, body: bytes, *, method: str = "GET", sent: bytes | None = None) -> Look:
    """The client gets this status, and this somewhere in the body."""

    async def look(trial: Trial) -> None:
        answer = await fetch(trial.proxy.port, method=method, body=sent)
        assert (answer.status, body in answer.body) == (status, True), answer

    return look


def second_of_two(status: int, body: bytes) -> Look:
    async def look(trial: Trial) -> None:
        async with stream(trial) as (client, answer):
            await client.read_until(answer, EVENT)
            await answers(status, body)(trial)

    return look


async def stalls(trial: Trial) -> None:
    async with stream(trial):
        assert await outcomes_of(trial.log) == ["send_stalled"]


async def beats(trial: Trial) -> None:
    async with stream(trial) as (client, answer):
        await client.read_until(answer, PING)


def resumes(requests: int, delays: tuple[float, float] = (0, 60)) -> Look:
    """`delays`: lower and upper bound of the waits in seconds, from the log."""

    async def look(trial: Trial) -> None:
        await fetch(trial.proxy.port)
        assert len(trial.upstream.requests) == requests
        waited = [line["delay"] for line in trial.log if line["event"] == "reconnect"]
        assert len(waited) == requests - 1
        assert all(delays[0] <= delay <= delays[1] for delay in waited)

    return look


def retried(times: int) -> Look:
    async def look(trial: Trial) -> None:
        await answers(502, b"upstream_connection_lost")(trial)
        page = (await fetch(trial.proxy.port, "/metrics")).body
        assert re.search(rb"weirpool_retries_total\{[^}]*\} %d.0" % times, page)

    return look


async def hangs_up(peer: Peer) -> None:
    await peer.request()


LARGE = stream_of(b"data: %s\n\n" % (b"x" * 200))
FAST = "enabled: true, initial_backoff: 0.001, max_backoff: 0.001"
SECTIONS: dict[str, tuple[str, Script | None, Look]] = {
    "timeouts.connect": ("connect: 0.1", None, answers(504, b"upstream_connect_timeout")),
    "timeouts.first_byte": ("first_byte: 0.1", silent, answers(504, b"upstream_read_timeout")),
    "timeouts.idle": ("idle: 0.1", stops, answers(200, b"upstream_read_timeout")),
    "timeouts.total": ("total: 0.1", silent, answers(504, b"total_timeout")),
    "timeouts.write": ("write: 0.1", unread, answers(504, b"upstream_write_timeout", method="POST", sent=bytes(14_000_000))),
    "timeouts.send": ("send: 0.1", floods, stalls),
    "limits.max_event_bytes": ("max_event_bytes: 100", LARGE, answers(200, b"event_too_large")),
    "limits.max_request_body_bytes": ("max_request_body_bytes: 3", silent, answers(413, b"", method="POST", sent=b"four")),
    "limits.max_streams": ("max_streams: 1", stops, second_of_two(503, b"too_many_streams")),
    "limits.max_streams_per_client": ("max_streams_per_client: 1", stops, second_of_two(429, b"too_many_client_streams")),
    "heartbeat.interval": ("interval: 0.05", stops, beats),
    "heartbeat.early": ("interval: 0.05, early: true", silent, beats),
    "reconnect.enabled": (FAST, breaks_once, resumes(2)),
    "reconnect.max_attempts": (f"{FAST}, max_attempts: 3", breaks, resumes(4)),
    "reconnect.initial_backoff": ("enabled: true, initial_backoff: 0.02", breaks_once, resumes(2, (0.02, 0.04))),
    "reconnect.max_backoff": ("enabled: true, initial_backoff: 0.02, max_backoff: 0.02", breaks_once, resumes(2, (0.01, 0.02))),
    "retry.max_attempts": ("max_attempts: 3, budget: 1", hangs_up, retried(2)),
    "retry.budget": ("max_attempts: 3, budget: 0", hangs_up, retried(0)),
}  # fmt: skip


@pytest.mark.parametrize("place", ["reverse_proxy", "reverse_proxy.routes"])
@pytest.mark.parametrize("key", SECTIONS)
async def test_a_key_has_its_effect(place: str, key: str, log: Log) -> None:
    """The effect of the case, for all routes and for one."""
    written, script, look = SECTIONS[key]
    text = f"{key.partition('.')[0]}: {{{written}}}"
    proxy, route = (f"  {text}", "") if place == "reverse_proxy" else ("", text)
    names = "redact" * (script is LARGE)
    async with unanswered() if script is None else open_upstream(script) as upstream:
        config = config_for(
            upstream.url, proxy=proxy, route=route, interceptors=REDACT, names=names
        )
        async with open_proxy(config) as running:
            with trio.fail_after(20):
                await look(Trial(running, upstream, log))


def test_a_key_of_all_routes_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`reverse_proxy.routes.limits.max_collected_bytes` would be one route's share of what a worker
    has.
    """
    file = tmp_path / "weirpool.yaml"
    file.write_text(
        'reverse_proxy: {upstreams: [{name: up, endpoints: ["http://127.0.0.1:9"]}], '
        "routes: [{path: /, upstream: up, limits: {max_collected_bytes: 1000}}]}"
    )
    assert main(["check", str(file)]) == 2
    assert "reverse_proxy.routes[0].limits.max_collected_bytes" in capsys.readouterr().err


POOLS = {
    "sse_event.size": ("{size: 1024, max_pooled: 9}", "stream", ""),
    "sse_event.max_pooled": ("{size: 4096, max_pooled: 0}", "stream", "full"),
    "json.size": ("{size: 1024, max_pooled: 9}", "json", "oversize"),
    "json.max_pooled": ("{size: 8192, max_pooled: 0}", "json", "full"),
    "http_response.size": ("{size: 1024, max_pooled: 9}", "plain", ""),
    "http_response.max_pooled": ("{size: 16384, max_pooled: 0}", "plain", "full"),
}
LONG = b"x" * 5000
BODIES = {
    "stream": (b"text/event-stream", b"data: %s\n\n" % LONG),
    "json": (b"text/event-stream", b'data: "nothing-of-that %s"\n\n' % LONG),
    "plain": (b"text/plain", LONG),
}


@pytest.mark.parametrize("key", POOLS)
async def test_a_pool_has_its_size(key: str) -> None:
    """`buffer_pools`: what is not kept is counted on the page of metrics; a window of 1 KiB passes
    a body in such pieces.
    """
    written, body, discarded = POOLS[key]
    pool = key.partition(".")[0]
    kind, chunk = BODIES[body]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        await peer.chunk(chunk)
        await peer.end()

    async with open_upstream(script) as upstream:
        config = config_for(
            upstream.url,
            proxy=f"  buffer_pools: {{{pool}: {written}}}",
            route="dialect: openai",
            interceptors=REDACT,
            names="redact" * (body == "json"),
        )
        async with open_proxy(config) as proxy:
            with trio.fail_after(10):
                answer = await fetch(proxy.port)
                page = (await fetch(proxy.port, "/metrics")).body.decode()
    assert LONG in answer.body
    if discarded:
        series = f'buffer_pool_discards_total{{pool="{pool}",reason="{discarded}"}}'
        assert re.search(rf"(?m)^{re.escape(series)} [1-9]", page)
    else:
        assert len(answer.pieces[0]) <= 1024
