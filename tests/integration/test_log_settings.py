"""The keys of `log`: which lines are written, with what, and at which level, by real processes."""

from __future__ import annotations

from zlib import crc32

import trio
from support.client import fetch
from support.interceptors import Log, until
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
