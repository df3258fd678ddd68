"""The services of `deploy/compose.yaml` as plain processes, with the files that it mounts: HAProxy in
front of two instances with a shared store, scraped by Prometheus. Only addresses are replaced.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import yaml
from support.client import Client, fetch, open_client
from support.process import ROOT, WEIRPOOL, free_port, running
from support.prometheus import Prometheus, open_prometheus
from support.required import lacking
from support.store_server import StoreServer
from support.upstream import Peer, open_upstream

DEPLOY = ROOT / "deploy"
EVENTS = [
    b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"Good "},"finish_reason":null}]}\n\n',
    b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"day."},"finish_reason":"stop"}]}\n\n',
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n',
]
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"Good day."}]}'


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"])


def mounted(service: str, at: str) -> str:
    """The text of the file that a service sees at a path."""
    (source,) = (
        volume.split(":")[0]
        for volume in compose()[service]["volumes"]
        if volume.split(":")[1] == at
    )
    return (DEPLOY / source).read_text()


def replaced(text: str, **addresses: str) -> str:
    """The text with each name and port, such as `valkey:6379`, replaced."""
    for old, new in addresses.items():
        text, count = re.subn(re.escape(old), new, text)
        assert count, old
    return text


@asynccontextmanager
async def haproxy(file: Path, port: int) -> AsyncIterator[None]:
    if (program := shutil.which("haproxy")) is None:
        lacking("haproxy", "WEIRPOOL_REQUIRE_BALANCERS")
    process = await trio.lowlevel.open_process(
        [program, "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with trio.fail_after(30):
            while True:
                try:
                    await (await open_client(port)).aclose()
                    break
                except OSError:
                    assert process.poll() is None, "HAProxy ended"
                    await trio.sleep(0.05)
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def upstream(peer: Peer) -> None:
    """`/v1/live`: an event, and no end; else a whole answer of a model."""
    while True:
        request = await peer.request()
        await peer.start_stream()
        if request.target == b"/v1/live":
            await peer.chunk(EVENTS[0])
            await peer.wait_closed()
            return
        for event in EVENTS:
            await peer.chunk(event)
        await peer.end()


async def panels_without_data(prometheus: Prometheus) -> set[str]:
    """Evaluate the panels as Grafana would. What has data has the labels of its legend."""
    dashboard = json.loads((DEPLOY / "grafana/weirpool.json").read_text())
    empty = set()
    for panel in dashboard["panels"]:
        found = []
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "15s")
            text = text.replace("$instance", ".*").replace("$route", ".*")
            result = (await prometheus.ask("query", query=text))["result"]
            found += result
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                shown = [item for item in result if label in item["metric"]]
                assert shown or not result, (panel["title"], label)
        if not found and panel["type"] != "row":
            empty.add(panel["title"])
    return empty


WITHOUT_DATA = {
    *("Failed calls", "Failed MCP calls", "MCP calls by method", "MCP calls by tool, p95"),
    *("Spent", "Refused and over"),
}
"""Panels about what does not happen here."""


async def open_live(port: int) -> Client:
    """A client that has got the first event of a stream."""
    client = await open_client(port)
    await client.send("GET", "/v1/live")
    await client.read_until(await client.head(), EVENTS[0])
    return client


async def test_a_client_streams_through_haproxy_over_both_and_they_share_a_limit(
    tmp_path: Path,
) -> None:
    store = StoreServer("valkey")
    front, main, admin = free_port(), [free_port(), free_port()], [free_port(), free_port()]
    text = replaced(
        mounted("haproxy", "/usr/local/etc/haproxy/haproxy.cfg"),
        **{
            "bind :8080": f"bind 127.0.0.1:{front}",
            "weirpool-a:8000": f"127.0.0.1:{main[0]} check port {admin[0]}",
            "weirpool-b:8000": f"127.0.0.1:{main[1]} check port {admin[1]}",
            "maxconn 20000": "maxconn 500",
            "inter 1s fall 2 rise 2": "inter 1s fall 20 rise 1",  # a busy machine is no fault
            " resolvers containers init-addr last,libc,none": "",
        },
    )
    (tmp_path / "haproxy.cfg").write_text(text)
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(open_upstream(upstream))
        await stack.enter_async_context(store.running(*compose()["valkey"]["command"][3:]))
        environment = {"LLM_URL": up.url, "LLM_API_KEY": "key", "WEIRPOOL_SECRET": "s" * 32}
        for index, name in enumerate(("weirpool-a", "weirpool-b")):
            file = tmp_path / f"{name}.yaml"
            file.write_text(
                replaced(
                    mounted(name, "/etc/weirpool/weirpool.yaml"),
                    **{
                        "valkey:6379": f"127.0.0.1:{store.port}",
                        "port: 9000, host: 0.0.0.0": f"port: {admin[index]}",
                        "172.28.0.0/24": "127.0.0.1",
                    },
                )
            )
            command = [*WEIRPOOL, "serve", "--config", str(file), "--bind"]
            process = await stack.enter_async_context(
                running([*command, f"127.0.0.1:{main[index]}"], env=environment)
            )
            (started,) = await process.event("started")
            assert "127.0.0.1" in str(started["store"])
        await stack.enter_async_context(haproxy(tmp_path / "haproxy.cfg", front))
        prometheus = await stack.enter_async_context(
            open_prometheus(tmp_path, [f"127.0.0.1:{port}" for port in admin])
        )
        with trio.fail_after(90):
            began = trio.current_time()
            live = [await open_live(front) for _ in range(4)]
            active = "sum by (instance) (weirpool_streams_active > 0)"
            while len(await prometheus.values(active)) < 2:
                live.append(await open_live(front))
                await trio.sleep(1)
            assert await prometheus.values('up{job="weirpool"}') == [1, 1]

            answers = [
                await fetch(front, "/v1/chat/completions", method="POST", body=BODY)
                for _ in range(60)
            ]
            passed = [answer for answer in answers if answer.status == 200]
            assert {answer.body for answer in passed} == {b"".join(EVENTS)}
            assert {answer.status for answer in answers} == {200, 429}
            burst, per_s = 20, 1
            most = burst + math.ceil((trio.current_time() - began) * per_s)
            assert burst <= len(passed) + len(live) <= most
            while await panels_without_data(prometheus) != WITHOUT_DATA:
                await trio.sleep(0.5)
            for client in live:
                await client.aclose()
