"""A rolling restart of two instances behind HAProxy, on one store, under streams.

    apt-get install haproxy redis-server && pip install -e '.[test]' && python tests/bench/rolling.py

Streams of 2 seconds are opened all the time through the frontend of `deploy/haproxy.cfg`, without its
TLS. Each instance has two workers, is ended with SIGTERM and started again, one after the other.
Printed is a summary as JSON; the exit status is 1 if a stream was refused, or was not whole.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import trio

from proxy.commands.bench.run import free_port

ROOT = Path(__file__).parents[2]
DELAY_S, STREAM_S, EVERY_S = 4, 2.0, 0.02
EVENTS = 20
CONFIG = """
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://127.0.0.1:{upstream}"]}}]
  routes: [{{path: /, upstream: up, interceptors: [limit]}}]
  trusted_proxies: [127.0.0.1]
interceptors:
  - {{name: limit, use: rate_limit, options: {{requests_per_minute: 1000000, burst: 100000}}}}
store: {{url: "redis://127.0.0.1:{store}"}}
drain: {{delay: {delay}, timeout: 20}}
log: {{level: warning}}
"""


async def serve_upstream(stream: trio.SocketStream) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    try:
        received = b""
        while data := await stream.receive_some():
            received += data
            while b"\r\n\r\n" in received:
                _, _, received = received.partition(b"\r\n\r\n")
                await stream.send_all(head)
                for number in range(EVENTS):
                    event = b"data: %d\n\n" % number
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(event), event))
                    await trio.sleep(STREAM_S / EVENTS)
                await stream.send_all(b"0\r\n\r\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def one_stream(port: int, found: Counter[str], bad: list[str]) -> None:
    received = b""
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while data := await stream.receive_some():
                received += data
    except OSError as error:
        received += repr(error).encode()
    if received.startswith(b"HTTP/1.1 200 ") and received.endswith(b"0\r\n\r\n"):
        found["whole"] += received.count(b"data: ") == EVENTS
    else:
        found["refused or broken"] += 1
        bad.append(received[:200].decode("latin-1") + " ... " + received[-40:].decode("latin-1"))


class Instance:
    """One `weirpool serve`."""

    def __init__(self, config: Path, port: int) -> None:
        self._command = [sys.executable, "-m", "proxy", "serve", "--config", str(config)]
        self._command += ["--workers", "2", "--bind", f"127.0.0.1:{port}"]
        self._port = port
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=ROOT)

    async def is_ready(self) -> None:
        with trio.fail_after(60):
            while True:
                try:
                    await trio.to_thread.run_sync(
                        urllib.request.urlopen, f"http://127.0.0.1:{self._port}/readyz"
                    )
                except OSError:
                    await trio.sleep(0.1)
                else:
                    return

    async def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await trio.to_thread.run_sync(self.process.wait)


async def roll(instances: list[Instance], port: int) -> dict[str, object]:
    found: Counter[str] = Counter()
    bad: list[str] = []
    statuses: list[int] = []
    took: list[float] = []

    async def load(scope: trio.CancelScope) -> None:
        while not scope.cancel_called:
            clients.start_soon(one_stream, port, found, bad)
            await trio.sleep(EVERY_S)

    async with trio.open_nursery() as clients:
        over = trio.CancelScope()
        clients.start_soon(load, over)
        await trio.sleep(STREAM_S)
        for instance in instances:
            began = time.monotonic()
            statuses.append(await instance.end())
            took.append(round(time.monotonic() - began, 1))
            instance.start()
            await instance.is_ready()
            await trio.sleep(4)  # HAProxy checks each second, and needs two good answers
        over.cancel()
    return {**found, "exit statuses": statuses, "seconds to end": took, "examples": bad[:5]}


async def main() -> int:
    async with trio.open_nursery() as servers:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            servers.start_soon(trio.serve_listeners, serve_upstream, listeners)
            store, port, ports = free_port(), free_port(), [free_port(), free_port()]
            upstream = listeners[0].socket.getsockname()[1]
            config = Path(directory) / "weirpool.yaml"
            config.write_text(CONFIG.format(upstream=upstream, store=store, delay=DELAY_S))
            haproxy = (ROOT / "deploy/haproxy.cfg").read_text()
            for old, new in (
                (
                    "bind :443 ssl crt /etc/haproxy/llm.example.com.pem alpn h2,http/1.1",
                    f"bind 127.0.0.1:{port}",
                ),
                ("maxconn 20000", "maxconn 2000"),
                ("10.0.0.11:8000", f"127.0.0.1:{ports[0]}"),
                ("10.0.0.12:8000", f"127.0.0.1:{ports[1]}"),
            ):
                assert old in haproxy
                haproxy = haproxy.replace(old, new)
            balancer = Path(directory) / "haproxy.cfg"
            balancer.write_text(haproxy)
            redis = ["redis-server", "--port", str(store), "--save", "", "--bind", "127.0.0.1"]
            for command in (redis, ["haproxy", "-f", str(balancer)]):
                process = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                stack.callback(process.wait)
                stack.callback(process.terminate)
            instances = [Instance(config, number) for number in ports]
            for instance in instances:
                stack.callback(instance.process.wait)
                stack.callback(lambda item=instance: item.process.terminate())
                await instance.is_ready()
            await trio.sleep(4)
            result = await roll(instances, port)
            print(json.dumps(result, indent=1))
        servers.cancel_scope.cancel()
    return 1 if result.get("refused or broken") else 0


if __name__ == "__main__":
    sys.exit(trio.run(main))
