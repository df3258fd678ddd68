"""Clients that connect and send nothing: others are served, and live streams continue."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.client import Client, fetch, open_client
from support.process import Process, port_of, running, serve
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream

from proxy.server import listen

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


async def upstream_script(peer: Peer) -> None:
    """`/live` is an endless stream, all else `ok`."""
    while True:
        request = await peer.request()
        if request.target == b"/live":
            await peer.start_stream()
            while True:
                await peer.chunk(b"data: x\n\n")
                await trio.sleep(0.02)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@asynccontextmanager
async def few_files(
    tmp_path: Path, *, more: str = "", upstream_more: str = ""
) -> AsyncIterator[tuple[Process, int]]:
    """`weirpool serve` with 64 open files, in front of an endpoint with a name."""
    async with open_upstream(upstream_script) as upstream:
        file = tmp_path / "weirpool.yaml"
        file.write_text(
            f"reverse_proxy: {{upstreams: [{{name: u, endpoints: ['http://localhost:{upstream.port}']{upstream_more}}}], "
            f"routes: [{{path: /, upstream: u}}]{more}}}\ndrain: {{timeout: 0.1}}\n"
        )
        command = serve("--config", str(file))
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
        async with running(command, preexec_fn=limit) as process:
            yield process, await port_of(process)


async def ask(client: Client, target: str = "/x") -> tuple[int, bytes]:
    with trio.fail_after(10):
        await client.send("GET", target)
        answer = await client.answer()
        client.next_cycle()
        return answer.status, answer.body


async def closed(client: Client) -> None:
    with trio.fail_after(5):
        while await client.stream.receive_some(65536):
            pass
    client.reset()


@pytest.mark.parametrize("more", ["", ", max_client_connections: 1000"])
async def test_silent_clients_cost_only_their_own_connections(tmp_path: Path, more: str) -> None:
    """60 of them with 64 open files."""
    async with few_files(tmp_path, more=more) as (process, port):
        kept, live = await open_client(port), await open_client(port)
        assert await ask(kept) == (200, b"ok")
        await live.send("GET", "/live")
        await live.head()
        silent = [await open_client(port) for _ in range(60)]
        assert {(await ask(kept))[0] for _ in range(10)} <= {200, 503}
        assert (await fetch(port)).status == 200
        with trio.fail_after(10):
            for _ in range(3):
                assert b"data: x" in await live.read_some()
        metrics = (await fetch(port, "/metrics")).body.decode()
        for client in silent:
            await client.aclose()
        assert await ask(kept) == (200, b"ok")
        for client in (kept, live):
            client.reset()
        events = {json.loads(line)["event"] for line in process.lines}
    assert not events & {"endpoint_ejected", "internal_error"}
    lines = (line for line in metrics.splitlines() if not line.startswith("#"))
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    if not more:
        assert values["weirpool_client_connections_limit"] == 16
        assert values["weirpool_client_connections"] <= 16
    assert values['weirpool_client_connections_closed_total{which="idle"}'] > 10


async def test_when_no_connection_can_be_accepted_the_log_stays_small(tmp_path: Path) -> None:
    """Every file belongs to a request that waits."""
    more, upstream_more = ", max_client_connections: 1000", ", max_connections: 1"
    async with few_files(tmp_path, more=more, upstream_more=upstream_more) as (process, port):
        clients = []
        for _ in range(70):
            clients.append(await open_client(port))
            await clients[-1].send("GET", "/live")
            await trio.sleep(0.005)  # else it may still be idle when the next one comes
        await process.event("accept_failed")
        began = time.monotonic()
        await trio.sleep(1.2)
        took_s = time.monotonic() - began
        failed = [
            line for line in map(json.loads, process.lines) if line["event"] == "accept_failed"
        ]
        assert len(failed) <= took_s + 2
        for client in clients:
            client.reset()
        assert all(line["error"] == "Too many open files" and line["count"] >= 1 for line in failed)


async def test_a_connection_without_a_request_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time starts with the connection; a preface, frames and half a head are not a request."""
    monkeypatch.setattr(listen, "_KEEP_ALIVE_S", 0.2)
    frames = b"\0\0\1\1\1\0\0\0\1\x82"
    async with (
        open_upstream(upstream_script) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        clients = []
        for data in (
            PREFACE + SETTINGS,
            PREFACE[:18],
            PREFACE + SETTINGS + frames,
            b"GET / HTTP",
            b"",
        ):
            clients.append(await open_client(proxy.port))
            await clients[-1].stream.send_all(data)
        for client in clients:
            await closed(client)


async def test_the_bound_of_the_configuration_counts() -> None:
    """A preface over cleartext HTTP/2 does not protect a connection; a stream over HTTP/1.1 does."""
    async with (
        open_upstream(upstream_script) as upstream,
        open_proxy(config_for(upstream.url, proxy="  max_client_connections: 3")) as proxy,
    ):
        live, http2 = await open_client(proxy.port), await open_client(proxy.port)
        await live.send("GET", "/live")
        await live.head()
        await http2.stream.send_all(PREFACE + SETTINGS)
        assert await http2.stream.receive_some(9)
        silent = await open_client(proxy.port)
        others = []
        for idle in (http2, silent):
            others.append(await open_client(proxy.port))
            assert await ask(others[-1]) == (200, b"ok")
            await closed(idle)
        assert b"data: x" in await live.read_some()
        for client in (live, *others):
            client.reset()
