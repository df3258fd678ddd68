"""The app's own pages on their own port: what each port shows, and until when."""

from __future__ import annotations

import gc
import signal
import socket
from pathlib import Path

import pytest
import trio
from support.client import fetch, open_client
from support.interceptors import until
from support.process import free_port, port_in, port_of, running, serve
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

LOCAL = [("Host", "127.0.0.1")]


def write(directory: Path, url: str, rest: str) -> str:
    file = directory / "weirpool.yaml"
    file.write_text(
        f'reverse_proxy: {{upstreams: [{{name: up, endpoints: ["{url}"]}}], routes: [{{path: /, upstream: up}}]}}\n{rest}\n'
    )
    return str(file)


async def page_of(port: int, path: str) -> str:
    return (await fetch(port, path, headers=LOCAL)).body.decode()


async def test_the_pages_are_on_their_port_and_nowhere_else(tmp_path: Path) -> None:
    """On the main port their paths go to the upstream."""
    admin = free_port()
    async with open_upstream(stream_of(b"data: upstream's\n\n")) as upstream:
        file = write(tmp_path, upstream.url, f"admin: {{port: {admin}}}")
        async with running(serve("--config", file)) as process:
            (started,) = await process.event("started")
            assert started["admin"] == f"127.0.0.1:{admin}"
            port = port_in(started)
            for page in ("/metrics", "/healthz", "/readyz", "/status", "/dashboard"):
                assert (await fetch(port, page)).body == b"data: upstream's\n\n"
                answer = await fetch(admin, page, headers=LOCAL)
                assert (answer.status, b"upstream's" in answer.body) == (200, False)
            assert (await fetch(admin, "/v1/messages", headers=LOCAL)).status == 404
            assert len(upstream.requests) == 5
            await process.stop()


async def test_the_pages_can_be_seen_until_the_drain_is_over(tmp_path: Path) -> None:
    """When the main port is closed already."""
    admin = free_port()
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await go_on.wait()
        await peer.end()

    async with open_upstream(script) as upstream:
        file = write(tmp_path, upstream.url, f"admin: {{port: {admin}}}")
        async with running(serve("--config", file)) as process:
            port = await port_of(process)
            client = await open_client(port)
            await client.send("GET", "/")
            answer = await client.head()
            process.signal(signal.SIGTERM)
            await until(lambda: not listens(port))
            assert (await fetch(admin, "/readyz", headers=LOCAL)).status == 503
            assert (await fetch(admin, "/healthz", headers=LOCAL)).status == 200
            assert 'weirpool_streams_active{route="/"} 1.0' in await page_of(admin, "/metrics")
            go_on.set()
            assert (await client.rest(answer)).complete
            assert await process.exit_status() == 0
            await client.aclose()


async def test_a_taken_port_is_reported_at_once(tmp_path: Path) -> None:
    """A `start_failed` line with the setting's path."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin = taken.getsockname()[1]
        file = write(tmp_path, "http://127.0.0.1:9", f"admin: {{port: {admin}}}")
        command = serve("--config", file, "--workers", "2")
        async with running(command) as process:
            assert await process.exit_status() == 3
            (line,) = await process.event("start_failed")
            assert line["errors"] == [
                f"admin.port: cannot listen on 127.0.0.1:{admin}: Address already in use"
            ]


@pytest.mark.leaks
async def test_a_lost_lease_is_reported_with_its_place(log: list[dict[str, object]]) -> None:
    """`leak_detection: paranoid`: an error line names where the lease was taken, and the metric
    counts it.
    """

    def forgetful(proxy: Proxy) -> None:
        proxy.worker.pools.json.acquire()

    async with open_proxy(config_for("http://127.0.0.1:9")) as proxy:
        metric = 'buffer_pool_leaks_total{pool="json"}'
        assert f"{metric} 0.0" in await page_of(proxy.port, "/metrics")
        forgetful(proxy)
        gc.collect()
        (line,) = [line for line in log if line["event"] == "buffer_leaked"]
        assert line["pool"] == "json"
        assert "in forgetful" in str(line["taken_at"])
        assert f"{metric} 1.0" in await page_of(proxy.port, "/metrics")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
