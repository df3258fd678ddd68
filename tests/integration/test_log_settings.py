"""The keys of `log`: which lines are written, with what, and at which level, by real processes."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import trio
from support.client import fetch
from support.interceptors import Log, until
from support.process import Process, free_port, port_of, running, serve
from support.proxy import config_for, open_proxy
from support.upstream import Peer, answering, open_upstream

OK = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
IDS = [f"id-{number}" for number in range(60)]


async def test_only_the_fields_that_are_listed(log: Log) -> None:
    """Those that the line does not have are left out."""
    async with open_upstream(OK) as upstream:
        config = config_for(upstream.url, log="fields: [status, path, trace_id]")
        async with open_proxy(config) as proxy:
            await fetch(proxy.port, "/a")
            await until(lambda: log[-1]["event"] == "exchange")
    (line,) = [item for item in log if item["event"] == "exchange"]
    assert line == {"event": "exchange", "level": "info", "status": 200, "path": "/a"}


async def half_fail(peer: Peer) -> None:
    """Requests for `/no` are answered with 503, others with 200."""
    while True:
        request = await peer.request()
        status = b"503 Busy" if request.target == b"/no" else b"200 OK"
        await peer.send(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\nok" % status)


async def test_a_share_of_successful_exchanges(log: Log) -> None:
    """Two proxies in a row choose the same ones; a larger share includes a smaller one. Failures are
    all there.
    """
    lines: dict[str, dict[str, set[object]]] = {}
    for sample in ("0", "0.2", "0.5", "1"):
        log.clear()
        async with open_upstream(half_fail) as upstream:
            async with open_proxy(config_for(upstream.url, log=f"sample: {sample}")) as proxy:
                with trio.fail_after(20):
                    for target in ("/a", "/no"):
                        for one in IDS:
                            await fetch(proxy.port, target, headers=[("X-Request-Id", one)])
                await until(lambda: not proxy.worker.live)
        found = [line for line in log if line["event"] == "exchange"]
        lines[sample] = {
            path: {line["request_id"] for line in found if line["path"] == path}
            for path in ("/a", "/no")
        }
        assert {line.get("sample") for line in found if line["status"] == 200} <= {
            None if sample == "1" else float(sample)
        }
        assert not any("sample" in line for line in found if line["status"] == 503)
    assert all(found["/no"] == set(IDS) for found in lines.values())
    assert lines["0"]["/a"] == set()
    assert lines["1"]["/a"] == set(IDS)
    assert lines["0.5"]["/a"] == {one for one in IDS if crc32(one.encode()) < 1 << 31}
    assert set() < lines["0.2"]["/a"] < lines["0.5"]["/a"] < set(IDS)


LOUD = """
from interceptors import Interceptor

class Loud(Interceptor):
    async def on_request(self, request):
        request.log.debug("quiet")
        if request.path == "/fails":
            int("opal-7731")
"""
TOKEN = "token-of-operators"
CONFIG = """
reverse_proxy:
  upstreams: [{name: u, endpoints: ["%s"]}]
  routes: [{path: /, upstream: u, interceptors: [loud]}]
interceptors: [{name: loud, use: "./loud.py:Loud"}]
admin: {%s}
log: {level: %s, fields: [request_id, user_agent]}
"""
BEARER = ("Authorization", f"Bearer {TOKEN}")


class Site:
    """A process whose level changes."""

    def __init__(self, process: Process, port: int, write: Callable[[str], None]) -> None:
        self.process, self.port, self.write = process, port, write

    async def page(self, method: str = "GET", query: str = "", **options: Any) -> Any:
        """What `/log-level` answers, or its status."""
        options.setdefault("headers", [BEARER])
        target = f"/log-level{query}"
        answer = await fetch(self.port, target, method=method, **options)
        return json.loads(answer.body) if answer.status == 200 else answer.status

    async def until_level(self, level: str, configured: str = "info") -> None:
        """A worker has it; any of them can answer."""
        with trio.fail_after(20):
            while await self.page() != {"level": level, "configured": configured}:
                await trio.sleep(0.01)

    async def events(self, target: str = "/") -> str:
        """What one request logs, up to its `exchange` line or that of another."""
        before = len(self.process.lines)
        await fetch(self.port, target, headers=[("User-Agent", "asks")])
        await fetch(self.port, "/fails", headers=[("User-Agent", "ends")])
        with trio.fail_after(20):
            while '"ends"' not in "".join(self.process.lines[before:]):
                await trio.sleep(0.01)
        return "".join(self.process.lines[before:])


@asynccontextmanager
async def site(
    directory: Path, *options: str, admin: str = f"token: {TOKEN}"
) -> AsyncIterator[Site]:
    (directory / "loud.py").write_text(LOUD)
    file = directory / "weirpool.yaml"
    async with open_upstream(OK) as upstream:

        def write(level: str) -> None:
            file.write_text(CONFIG % (upstream.url, admin, level))

        write("info")
        async with running(serve("--config", str(file), *options)) as process:
            yield Site(process, await port_of(process), write)
            await process.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_level_changes_while_it_runs(workers: str, tmp_path: Path) -> None:
    """By SIGUSR1 to debug and back, by the page to any, by a reload to that of the file. Only lines
    at debug have the messages of interceptors' exceptions. All workers follow.
    """
    processes = 1 if workers == "1" else 3  # with the supervisor
    async with site(tmp_path, "--workers", workers) as one:
        await one.process.event("started", int(workers))
        text = await one.events()
        assert '"asks"' in text
        assert "quiet" not in text
        assert "opal-7731" not in text
        for number, level in enumerate(("debug", "info", "debug"), 1):
            one.process.signal(signal.SIGUSR1)
            await one.until_level(level)
            count = number * processes
            changed = await one.process.event("log_level_changed", count)
            assert {line["log_level"] for line in changed[-processes:]} == {level}
        assert len({line["pid"] for line in changed}) == processes
        text = await one.events()
        assert '"quiet"' in text
        assert "opal-7731" in text
        quiet = [json.loads(line) for line in one.process.lines if '"quiet"' in line]
        assert all("request_id" in line and "path" not in line for line in quiet)
        assert await one.page("POST", "?level=warning") == {
            "level": "warning",
            "configured": "info",
        }
        await one.process.event("log_level_changed", count + int(workers))
        assert '"asks"' not in await one.events()
        one.write("error")
        one.process.signal(signal.SIGHUP)
        await one.until_level("error", configured="error")
        one.process.signal(signal.SIGUSR1)
        await one.until_level("debug", configured="error")


async def test_who_may_change_the_level(tmp_path: Path) -> None:
    """A request with the token or on the private port sets it; a page of another origin does not."""
    form = [BEARER, ("Content-Type", "application/x-www-form-urlencoded")]
    async with site(tmp_path) as one:
        assert await one.page("POST", body=b"level=error", headers=form[1:]) == 401
        assert await one.page(headers=[]) == 401
        assert (await one.page("POST", body=b"level=error", headers=form))["level"] == "error"
        assert await one.page("POST", "?level=loud") == 400
        assert await one.page("POST") == 400
        for origin in ("https://evil.example.com", "null", "http://[malformed"):
            other = [BEARER, ("Origin", origin)]
            assert await one.page("POST", "?level=debug", headers=other) == 403
        assert (await one.page())["level"] == "error"
    async with site(tmp_path, admin="") as one:
        assert (await one.page())["level"] == "info"
        assert await one.page("POST", "?level=debug") == 403
    port = free_port()
    async with site(tmp_path, admin=f"port: {port}") as one:
        one.port = port
        host = [("Host", "127.0.0.1")]
        assert (await one.page("POST", "?level=debug", headers=host))["level"] == "debug"
