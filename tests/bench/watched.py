"""What a watcher costs the streams: `PYTHONPATH=.:tests python tests/bench/watched.py`.

    --streams 50     through two interceptors, 25 events a second each
    --seconds 4      of each window
    --rounds 8       windows of each kind, in alternation

Kinds: no watcher; a client reads all events of all streams; one does not read at all; one reads one
stream. Prints the latency from the upstream to the client, and the proxy's CPU time for an event: the
median over the rounds. On a busy machine compare kinds, not numbers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import trio
from support.client import Client, open_client
from support.process import free_port, port_in, running, serve
from support.upstream import Peer, open_upstream

TOKEN = "token-of-the-bench-01"
MODULE = """
from interceptors import Interceptor, StreamInterceptor

class One(Interceptor):
    def open_stream(self, context):
        return Changes()

class Changes(StreamInterceptor):
    def on_event(self, event):
        return event.replace(event.data.replace("old", "new"))

class Two(Interceptor):
    def open_stream(self, context):
        return Keeps()

class Keeps(StreamInterceptor):
    def on_event(self, event):
        return event
"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /, upstream: up, interceptors: [one, two]}]
interceptors: [{name: one, use: "./mine.py:One"}, {name: two, use: "./mine.py:Two"}]
admin: {port: %d, inspect: true, token: token-of-the-bench-01}
"""
KINDS = {
    "none": None,
    "reads all": "",
    "stalled": "",
    "reads one": "?exchange=0-1",
}


class Bench:
    def __init__(self, streams: int) -> None:
        self.streams = streams
        self.latencies: list[float] = []

    async def script(self, peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        while True:
            text = b"old " * 30
            await peer.chunk(b"data: %d %s\n\n" % (time.monotonic_ns(), text))
            await trio.sleep(0.04)

    async def client(self, port: int) -> None:
        client = await open_client(port)
        await client.send("GET", "/")
        await client.head()
        while True:
            data = await client.read_some()
            now = time.monotonic_ns()
            for line in data.split(b"\n\n"):
                if line.startswith(b"data: "):
                    self.latencies.append((now - int(line[6:].split(b" ", 1)[0])) / 1e6)

    async def window(self, kind: str, admin: int, pid: int, seconds: float) -> tuple[float, ...]:
        """Milliseconds of latency at p50 and p99, and the proxy's CPU microseconds for an event."""
        query = KINDS[kind]
        curl, client = None, None
        if query is not None:
            url = f"http://127.0.0.1:{admin}/inspect/stream{query}"
            if kind == "stalled":
                client = Client(await open_small(admin))
                host = [("Host", "127.0.0.1"), ("Authorization", f"Bearer {TOKEN}")]
                await client.send("GET", "/inspect/stream", host)
            else:
                header = f"Authorization: Bearer {TOKEN}"
                curl = subprocess.Popen(
                    ["curl", "-sN", "-H", header, url], stdout=subprocess.DEVNULL
                )
        await trio.sleep(2)
        self.latencies.clear()
        before = cpu_of(pid)
        await trio.sleep(seconds)
        found, used = sorted(self.latencies), cpu_of(pid) - before
        if curl is not None:
            curl.kill()
            curl.wait()
        if client is not None:
            await client.aclose()
        await trio.sleep(0.3)
        return found[len(found) // 2], found[len(found) * 99 // 100], used * 1e6 / len(found)


async def open_small(port: int) -> trio.SocketStream:
    """A connection with a small receive buffer: the proxy soon finds it full."""
    sock = trio.socket.socket()
    sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)


def cpu_of(pid: int) -> float:
    """Seconds of CPU of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(streams: int, seconds: float, rounds: int) -> None:
    bench = Bench(streams)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        async with open_upstream(bench.script) as upstream:
            admin = free_port()
            (directory / "mine.py").write_text(MODULE)
            (directory / "weirpool.yaml").write_text(CONFIG % (upstream.url, admin))
            async with running(serve("--config", str(directory / "weirpool.yaml"))) as process:
                started = (await process.event("started"))[0]
                pid = int(str(started["pid"]))
                async with trio.open_nursery() as nursery:
                    for _ in range(streams):
                        nursery.start_soon(bench.client, port_in(started))
                    await trio.sleep(2)
                    found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in KINDS}
                    for _ in range(rounds):
                        for kind in KINDS:
                            found[kind].append(await bench.window(kind, admin, pid, seconds))
                    nursery.cancel_scope.cancel()
    print(f"{streams} streams, {rounds} windows of {seconds:g} s")
    print(f"{'watcher':<12}{'p50 ms':>10}{'p99 ms':>10}{'CPU us/event':>14}")
    for kind, windows in found.items():
        p50, p99, cpu = (median(column) for column in zip(*windows, strict=True))
        print(f"{kind:<12}{p50:>10.2f}{p99:>10.2f}{cpu:>14.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    trio.run(main, arguments.streams, arguments.seconds, arguments.rounds)
