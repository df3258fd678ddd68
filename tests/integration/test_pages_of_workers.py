"""The admin pages of `weirpool serve --workers 4`: whichever worker answers, it answers for all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.client import Client, fetch, open_client
from support.process import Process, free_port, port_in, running, serve
from support.proxy import config_for, open_proxy
from support.required import lacking
from support.upstream import Peer, open_upstream

LOCAL = [("Host", "127.0.0.1")]
AUTHOR = """
from interceptors import Interceptor
from prometheus_client import Counter, Gauge, Info

class Author(Interceptor):
    def __init__(self):
        self.seen = Counter("my_requests", "Requests.", registry=None)
        self.largest = Gauge("my_largest", "Most.", registry=None, multiprocess_mode="livemax")
        self.held = Gauge("my_held", "Held.", registry=None)
        self.build = Info("my_build", "Build.", registry=None)
        self.largest.set(2)
        self.held.set(2)
        self.build.info({"version": "1"})

    def collectors(self):
        return [self.seen, self.largest, self.held, self.build]

    async def on_request(self, request):
        self.seen.inc()
"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /, upstream: up, interceptors: [author]}]
  max_total_streams: 100
interceptors: [{name: author, use: "./author.py:Author"}]
admin: {port: %d, prefix: /-}
drain: {timeout: 5, delay: 0.3}
"""
DONE = 'weirpool_exchanges_total{outcome="completed",route="/"}'
LOST = 'weirpool_exchanges_total{outcome="internal_error",route="/"}'
MINE = 'my_requests_total{interceptor="author"}'


async def script(peer: Peer) -> None:
    """`/open`: one event, and no end; else a short answer."""
    while True:
        request = await peer.request()
        if request.target == b"/open":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
            await peer.wait_closed()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Workers:
    def __init__(self, process: Process, port: int, admin: int) -> None:
        self.process, self.port, self.admin = process, port, admin
        self.pids: dict[int, int] = {}
        self.completed = 0
        """The load generator's own count."""

    async def load(self, count: int) -> None:
        """Requests on as many connections, so that every worker gets some."""

        async def one() -> None:
            assert (await fetch(self.port)).body == b"ok"
            self.completed += 1

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(one)

    async def page(self, path: str) -> bytes:
        return (await fetch(self.admin, f"/-{path}", headers=LOCAL)).body

    async def status(self) -> dict[str, Any]:
        return dict(json.loads(await self.page("/status")))

    async def metrics(self, path: str = "/metrics") -> dict[str, float]:
        lines = re.findall(r"^([a-z].*) (\S+)$", (await self.page(path)).decode(), re.MULTILINE)
        return {name: float(value) for name, value in lines}

    async def eventually(self, **expected: float) -> dict[str, float]:
        """The metrics, once all workers answer and these have their values."""
        with trio.fail_after(20):
            while True:
                found = await self.metrics()
                up = [found[f'weirpool_worker_up{{worker="{index}"}}'] for index in range(4)]
                if up == [1] * 4 and all(
                    found[globals()[key]] == expected[key] for key in expected
                ):
                    return found
                await trio.sleep(0.02)

    async def open_stream(self) -> tuple[Client, int]:
        """A stream, and the worker that has it."""
        client = await open_client(self.port)
        await client.send("GET", "/open")
        await client.head()
        return client, (await self.status())["exchanges"]["oldest"][-1]["worker"]


@asynccontextmanager
async def four_workers(directory: Path) -> AsyncIterator[Workers]:
    async with open_upstream(script) as upstream:
        (directory / "author.py").write_text(AUTHOR)
        file, admin = directory / "weirpool.yaml", free_port()
        file.write_text(CONFIG % (upstream.url, admin))
        async with running(serve("--config", str(file), "--workers", "4")) as process:
            started = await process.event("started", 4)
            assert {line["admin"] for line in started} == {f"127.0.0.1:{admin}"}
            workers = Workers(process, port_in(started[0]), admin)
            status = await workers.status()
            workers.pids = {item["worker"]: item["pid"] for item in status["workers"]}
            assert {line["pid"] for line in started} == set(workers.pids.values())
            yield workers
            await process.stop()


def leases_in(found: dict[str, float]) -> float:
    kinds = ("reuses", "allocations")
    return sum(found[f'buffer_pool_{kind}_total{{pool="http_response"}}'] for kind in kinds)


def check_with_promtool(text: bytes) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


async def test_counters_are_whole_across_a_killed_worker_and_a_reload(tmp_path: Path) -> None:
    """They equal the load generator's own count; what the killed worker had open is lost."""
    async with four_workers(tmp_path) as workers:
        await workers.load(40)
        found = await workers.eventually(DONE=40, MINE=40)
        assert found['weirpool_writer_total{writer="direct"}'] == 40
        assert found['weirpool_time_to_first_byte_seconds_count{route="/"}'] == 40
        assert found['weirpool_bytes_total{direction="downstream",route="/"}'] == 80
        leases, cpu_s = leases_in(found), found["process_cpu_seconds_total"]
        assert found["weirpool_workers_died_total"] == 0
        (up,) = (name for name in found if name.startswith("weirpool_endpoint_up"))
        assert found[up] == 1
        assert found['my_largest{interceptor="author"}'] == 2
        assert found['my_held{interceptor="author"}'] == 8
        assert found['my_build_info{interceptor="author",version="1"}'] == 1
        if shutil.which("promtool"):
            check_with_promtool(await workers.page("/metrics"))
            check_with_promtool(await workers.page("/metrics?by=worker"))
        each = await workers.metrics("/metrics?by=worker")
        done = [each[DONE[:-1] + f',worker="{index}"}}'] for index in range(4)]
        assert (sum(done), DONE in each) == (40, False)

        client, victim = await workers.open_stream()
        await workers.metrics()  # the stream's bytes have been reported: they stay
        os.kill(workers.pids[victim], signal.SIGKILL)
        assert (await workers.page("/readyz")) == b"ready\n"
        await workers.load(40)
        found = await workers.eventually(DONE=workers.completed, LOST=1, MINE=81)
        assert found['weirpool_bytes_total{direction="downstream",route="/"}'] == 160 + 9
        assert leases_in(found) >= leases
        assert found["process_cpu_seconds_total"] >= cpu_s
        assert found["weirpool_workers_died_total"] == 1
        await client.aclose()

        workers.process.signal(signal.SIGHUP)
        await workers.process.event("reload", 4)
        await workers.load(20)
        await workers.eventually(DONE=workers.completed, LOST=1, MINE=101)


async def test_a_worker_that_does_not_answer_is_reported_and_delays_nothing(tmp_path: Path) -> None:
    """Its counters are still there."""
    async with four_workers(tmp_path) as workers:
        await workers.load(20)
        await workers.eventually(DONE=20, MINE=20)
        client, silent = await workers.open_stream()
        await workers.eventually(DONE=20, MINE=21)
        os.kill(workers.pids[silent], signal.SIGSTOP)
        with trio.fail_after(8):
            while b"has not answered" not in await workers.page("/healthz"):
                found = await workers.metrics()
            found = await workers.metrics()
            assert found[f'weirpool_worker_up{{worker="{silent}"}}'] == 0
            assert (found[DONE], found[MINE]) == (20, 21)
            assert await workers.page("/readyz") == b"ready\n"
            status = await workers.status()
        assert "has not answered for" in status["workers"][silent]["problem"]
        assert (status["streams"], status["exchanges"]["oldest"]) == (0, [])
        os.kill(workers.pids[silent], signal.SIGCONT)
        found = await workers.eventually(DONE=20)
        assert found['weirpool_streams_active{route="/"}'] == 1
        (listed,) = (await workers.status())["exchanges"]["oldest"]
        assert (listed["worker"], listed["phase"], listed["bytes"]) == (silent, "relay", 9)

        os.kill(workers.pids[silent], signal.SIGSTOP)  # it does not drain, and is still ready
        workers.process.signal(signal.SIGTERM)
        await workers.process.event("drain", 3)
        assert await workers.page("/readyz") == b"not ready\n"
        os.kill(workers.pids[silent], signal.SIGCONT)
        await client.aclose()


async def test_streams_of_all_workers_are_limited_together(tmp_path: Path) -> None:
    """`max_total_streams: 100`. Those of a killed worker no longer count."""
    async with four_workers(tmp_path) as workers:
        clients: list[Client] = []
        statuses: list[int] = []

        async def attempt() -> None:
            client = await open_client(workers.port)
            await client.send("GET", "/open")
            statuses.append((await client.head()).status)
            clients.append(client)

        async with trio.open_nursery() as nursery:
            for _ in range(110):
                nursery.start_soon(attempt)
        assert statuses.count(200) <= 100
        while statuses.count(200) < 100:  # two that came at once can both have been refused
            await attempt()
        await attempt()
        assert statuses[-1] == 503
        listed = (await workers.status())["exchanges"]
        assert (listed["total"], len(listed["oldest"])) == (100, 100)
        assert (await workers.metrics())["weirpool_streams_limit"] == 100
        victim = listed["oldest"][0]["worker"]
        os.kill(workers.pids[victim], signal.SIGKILL)
        await workers.process.event("worker_died")
        await attempt()
        assert statuses[-1] == 200
        for client in clients:
            await client.aclose()


async def test_promtool_accepts_the_metrics_of_one_worker() -> None:
    if shutil.which("promtool") is None:
        lacking("promtool", "WEIRPOOL_REQUIRE_PROMTOOL")
    async with open_proxy(config_for("http://127.0.0.1:9")) as proxy:
        for query in ("", "?by=worker"):
            check_with_promtool((await fetch(proxy.port, f"/metrics{query}")).body)


async def test_histograms_have_the_traces_of_all_workers(tmp_path: Path) -> None:
    """In OpenMetrics' format, if Prometheus asks for it; the last trace of each bucket counts."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    traces = {f"{number:032x}" for number in range(1, 30)}
    async with open_upstream(script) as upstream:
        (tmp_path / "author.py").write_text(AUTHOR)
        file, admin = tmp_path / "weirpool.yaml", free_port()
        file.write_text(CONFIG % (upstream.url, admin))
        command = serve("--config", str(file), "--workers", "2")
        env = {"OTEL_TRACES_EXPORTER": "console"}
        async with running(command, env=env, stdout=subprocess.DEVNULL) as process:
            port = port_in((await process.event("started", 2))[0])
            for trace in traces:
                header = ("traceparent", f"00-{trace}-00000000000000ff-01")
                assert (await fetch(port, headers=[header])).body == b"ok"
            asked = [*LOCAL, ("Accept", accept)]
            answer = await fetch(admin, "/-/metrics", headers=asked)
            plain = await fetch(admin, "/-/metrics", headers=LOCAL)
            await process.stop()
    (kind,) = answer.all("content-type")
    assert kind.startswith(b"application/openmetrics-text; version=1.0.0")
    assert plain.all("content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
    assert b"trace_id" not in plain.body
    families = {item.name: item for item in text_string_to_metric_families(answer.body.decode())}
    for name in ("weirpool_exchange_duration_seconds", "weirpool_time_to_first_byte_seconds"):
        samples = families[name].samples
        shown = [sample.exemplar for sample in samples if sample.exemplar is not None]
        assert {item.labels["trace_id"] for item in shown} <= traces
        assert shown
        (count,) = [
            sample.value
            for sample in samples
            if sample.name.endswith("_count") and sample.labels["route"] == "/"
        ]
        assert count == len(traces)
