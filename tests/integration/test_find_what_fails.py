"""On call: from the log lines and `/metrics` alone, which endpoint, client or interceptor is behind
5 % of failed streams. The script and the queries are those of docs/monitoring.md.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from support.client import Client, fetch
from support.pages import files_of
from support.process import Process, port_of, running, serve
from support.upstream import Peer, open_upstream

from interceptors.api_keys import hash_key

CLIENTS = ("ann", "bob", "cid", "dan")
STREAMS = 240
OWN = """
from interceptors import Event, Interceptor, StreamInterceptor

class Tags(Interceptor):
    def open_stream(self, context):
        return Stream()

class Checks(Interceptor):
    def open_stream(self, context):
        return Failing() if "x-odd" in context.headers else Stream()

class Stream(StreamInterceptor):
    def on_event(self, event):
        return event

class Failing(StreamInterceptor):
    def on_event(self, event):
        return int(event.data)
"""
KEYS = ", ".join(f'{name}: "{hash_key("wk-" + name)}"' for name in CLIENTS)
CONFIG = """
reverse_proxy:
  upstreams: [{name: llm, endpoints: [%s]}]
  routes: [{path: /, upstream: llm, interceptors: [keys, tags, checks]}]
  timeouts: {send: 0.5}
interceptors:
  - {name: keys, use: api_keys, options: {keys: {%s}}}
  - {name: tags, use: "./own.py:Tags"}
  - {name: checks, use: "./own.py:Checks"}
"""
Headers = list[tuple[str, str]]


class Scene:
    """Three endpoints, four clients and two interceptors. One of them fails in 5 % of all streams."""

    def __init__(self, culprit: str) -> None:
        self.culprit = culprit
        self.served = 0  # by the bad endpoint

    def endpoint(self, number: int) -> Callable[[Peer], Awaitable[None]]:
        async def script(peer: Peer) -> None:
            while True:
                request = await peer.request()
                await peer.start_stream()
                await peer.chunk(b"data: text\n\n")
                if request.target == b"/long":
                    while True:
                        await peer.chunk(b"data: %b\n\n" % (b"x" * 60_000))
                if self.culprit == "endpoint" and number == 1:
                    self.served += 1
                    if self.served % 7 == 0:
                        peer.reset()
                        return
                await peer.end()

        return script


async def ask(port: int, number: int, scene: Scene) -> None:
    """One stream of the next client. The interceptor fails for those that are odd."""
    client = CLIENTS[number % len(CLIENTS)]
    headers: Headers = [("Authorization", f"Bearer wk-{client}")]
    if scene.culprit == "client" and client == "dan" and number % 20 == 3:
        await stall(port, headers)
    elif scene.culprit == "interceptor" and number % 19 == 0:
        await fetch(port, headers=[*headers, ("X-Odd", "1")])
    else:
        await fetch(port, headers=headers)


async def stall(port: int, headers: Headers) -> None:
    """A client that stops reading, and is reset."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    client = Client(trio.SocketStream(sock))
    await client.send("GET", "/long", headers)
    await client.head()
    await trio.sleep(1.5)
    await client.aclose()


async def all_ended(process: Process) -> None:
    with trio.fail_after(30):
        while sum('"event":"exchange"' in line for line in process.lines) < STREAMS:
            await trio.sleep(0.05)


def found_by_the_script(directory: Path, log: str) -> list[str]:
    """What the script of the page prints."""
    files_of("docs/monitoring.md", directory)
    command = [sys.executable, str(directory / "failures.py")]
    done = subprocess.run(command, input=log, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_script_needs_no_field(tmp_path: Path) -> None:
    """Of a log with few `log.fields`, and lines of other programs."""
    bad = {"event": "exchange", "level": "warning", "client": "dan", "status": 502}
    lines = [
        json.dumps(item) for item in ({**bad}, {**bad, "level": "info"}, {"event": "exchange"})
    ]
    head, kind, *_ = found_by_the_script(tmp_path, "\n".join([*lines, "text", "{}"]))
    assert (head, kind.split()) == ("1 of 3 exchanges failed:", ["1", "None,", "502"])


@pytest.mark.parametrize("culprit", ["endpoint", "client", "interceptor"])
async def test_what_is_behind_the_failures(culprit: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    scene = Scene(culprit)
    async with AsyncExitStack() as stack:
        urls = [
            (await stack.enter_async_context(open_upstream(scene.endpoint(number)))).url
            for number in range(3)
        ]
        file = tmp_path / "weirpool.yaml"
        file.write_text(CONFIG % (", ".join(f'"{url}"' for url in urls), KEYS))
        process = await stack.enter_async_context(running(serve("--config", str(file))))
        port = await port_of(process)
        limit = trio.CapacityLimiter(8)

        async def one(number: int) -> None:
            async with limit:
                await ask(port, number, scene)

        async with trio.open_nursery() as nursery:
            for number in range(STREAMS):
                nursery.start_soon(one, number)
        await all_ended(process)
        page = (await fetch(port, "/metrics")).body.decode()
        await process.stop()
    head, kinds, _, first, *_ = found_by_the_script(tmp_path, "\n".join(process.lines))
    named = {"endpoint": urls[1], "client": "dan", "interceptor": "checks"}[culprit]
    assert f" {culprit}={named}: " in first
    found = re.fullmatch(rf"(\d+) of {STREAMS} exchanges failed:", head)
    assert found is not None
    assert 0.03 * STREAMS <= int(found[1]) <= 0.07 * STREAMS
    kind = {
        "endpoint": "upstream_error, upstream_connection_lost",
        "client": "send_stalled, send_stalled",
        "interceptor": "intercepted, interceptor_failed",
    }[culprit]
    assert kinds.split() == [found[1], *kind.split()]
    samples = [
        sample for family in text_string_to_metric_families(page) for sample in family.samples
    ]

    def value(name: str, **labels: str) -> dict[str, float]:
        return {
            str(sample.labels): sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items() and sample.value
        }

    failed = float(found[1])
    outcome = kind.partition(",")[0]
    assert set(value("weirpool_exchanges_total", outcome=outcome).values()) == {failed}
    of_endpoint = value("weirpool_endpoint_failures_total")
    of_interceptor = value("weirpool_intercepted_total")
    if culprit == "endpoint":
        assert [*of_endpoint.values()] == [failed]
        assert urls[1] in str(of_endpoint)
    else:
        assert of_endpoint == {}
    if culprit == "interceptor":
        assert [*of_interceptor.values()] == [failed]
        assert "'checks'" in str(of_interceptor)
    else:
        assert of_interceptor == {}
