"""A soak: `weirpool serve` under a load that misbehaves, and what has grown or got lost when it is
over.

    pip install -e '.[test]' && python tests/bench/soak.py --minutes 30 [--tls]

The proxy runs in its own process, at about 60 % of a core: the load paces itself by the CPU
time that the proxy takes. Both ends are this process. Clients use HTTP/1.1 and HTTP/2. Some stay, on a route that passes
events and on one that edits them, quickly or slowly; others leave at random, reset or stop reading;
upstreams reset their streams. Printed is a summary as JSON. The exit status is 1 when a client that
stayed missed an event or saw one twice, when a broken stream looked whole, when a lease, a stream,
a connection or a descriptor is still there at the end, or when memory has grown by more than 5 %
between an early and a late sample.

Linux only: CPU time, memory and descriptors are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import trio
import trustme

from proxy.commands.bench.run import free_port
from proxy.http.body import Chunked

__all__: list[str] = []

LOAD = 0.6
"""The share of a core that the proxy shall take."""
MOST_GROWTH = 0.05
SEND_S = 2.0
BATCH = 10
EDITORS = "abcdef"
"""The interceptors of the editing route. So many, that the proxy and not this load is what is busy.
"""
LAST_EDIT = b'"%s":true}' % EDITORS[-1].encode()
PAD = b"x" * 100
CONFIG = """
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://127.0.0.1:{upstream}"]}}]
  routes:
    - {{path: /pass, upstream: up}}
    - {{path: /edit, upstream: up, interceptors: [{names}]}}
  timeouts: {{send: {send}, idle: 20}}
interceptors:
{editors}
drain: {{timeout: 1}}
log: {{level: warning}}
"""
EDIT = """
from interceptors import Interceptor, StreamInterceptor


class Edit(Interceptor):
    def __init__(self, key):
        self.key = key

    def open_stream(self, context):
        return EditStream(self.key)


class EditStream(StreamInterceptor):
    def __init__(self, key):
        self.key = key

    def on_event(self, event):
        message = event.json()
        message[self.key] = True
        return event.replace(json=message)
"""
NUMBER = re.compile(rb'"n":(\d+)')
TARGET = re.compile(rb"GET /(?:pass|edit)\?events=(\d+)&reset=(\d+) ")


@dataclass
class Soak:
    """What has happened so far."""

    interval_s: float = 0.05
    """Between two batches of one stream; the controller moves it."""
    over: bool = False
    tls: ssl.SSLContext | None = None
    """Of the clients; None: in the clear."""
    pages_tls: ssl.SSLContext | None = None
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def violated(self, what: str) -> None:
        self.counts["violations"] += 1
        if len(self.violations) < 20:
            self.violations.append(what)


# The upstream


@lru_cache(1000)
def batch_of(first: int, behind: int) -> bytes:
    """The events from `first` on."""
    return b"".join(
        b'data: {"n":%d,"pad":"%s"}\n\n' % (number, PAD) for number in range(first, behind)
    )


async def serve_upstream(soak: Soak, stream: trio.SocketStream) -> None:
    """Streams of numbered events, in batches; with `reset` the connection is reset after that
    many.
    """
    try:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = await stream.receive_some()
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            match = TARGET.match(head)
            assert match is not None, head
            events, reset = int(match[1]), int(match[2])
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for first in range(0, events, BATCH):
                if reset and first >= reset:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    stream.socket.close()
                    return
                batch = batch_of(first, min(first + BATCH, events))
                await stream.send_all(b"%x\r\n%s\r\n" % (len(batch), batch))
                soak.counts["events"] += BATCH
                await trio.sleep(soak.interval_s * random.uniform(0.5, 1.5))
            await stream.send_all(b"0\r\n\r\n")
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    finally:
        await trio.aclose_forcefully(stream)


# The clients


class Reader:
    """The events of one response, read strictly: their numbers must be 0, 1, 2 and so on."""

    def __init__(self, soak: Soak, route: str) -> None:
        self._soak = soak
        self._route = route
        self._rest = b""
        self.seen = 0
        self.edited = 0

    def take(self, body: bytes) -> None:
        events, _, self._rest = (self._rest + body).rpartition(b"\n\n")
        for number in NUMBER.findall(events):
            if int(number) != self.seen:
                self._soak.violated(
                    f"{self._route}: event {int(number)} where {self.seen} was to come"
                )
                self.seen = int(number)
            self.seen += 1
        self.edited += events.count(LAST_EDIT)


class Client(ABC):
    """One request on a connection of its own."""

    def __init__(self, stream: trio.abc.Stream, reader: Reader) -> None:
        self.stream = stream
        self.reader = reader
        self.complete = False
        self.failed = False

    async def read(self, most: int = 65536) -> bool:
        """Read once. Returns whether more may come. Raises `BrokenResourceError`."""
        data = await self.stream.receive_some(most)
        if data:
            await self.take(bytes(data))
        return bool(data) and not self.complete and not self.failed

    @abstractmethod
    async def start(self, target: bytes) -> None: ...

    @abstractmethod
    async def take(self, data: bytes) -> None: ...

    @property
    def socket(self) -> trio.SocketStream:
        return getattr(self.stream, "transport_stream", self.stream)  # type: ignore[no-any-return]


class Http1(Client):
    _framing: Chunked | None = None
    _head = b""

    async def start(self, target: bytes) -> None:
        await self.stream.send_all(b"GET %s HTTP/1.1\r\nHost: soak\r\n\r\n" % target)

    async def take(self, data: bytes) -> None:
        if self._framing is None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self.failed = not head.startswith(b"HTTP/1.1 200 ")
            if self.failed:
                return
            self._framing = Chunked()
        if not data:
            return
        buffer = bytearray(data)
        first, last = self._framing.frame(buffer, 0, len(buffer))
        self.complete = self._framing.complete
        self.reader.take(bytes(buffer[first:last]))


class Http2(Client):
    """With a window of 64 kB, on which other streams open and are reset."""

    async def start(self, target: bytes) -> None:
        self._h2 = h2.connection.H2Connection()
        self._h2.initiate_connection()
        self._ask(1, target)
        for number in range(random.randrange(3)):
            self._ask(3 + 2 * number, target)
            self._h2.reset_stream(3 + 2 * number)
        await self.stream.send_all(self._h2.data_to_send())

    def _ask(self, number: int, target: bytes) -> None:
        head = [(b":method", b"GET"), (b":path", target), (b":scheme", b"http")]
        self._h2.send_headers(number, [*head, (b":authority", b"soak")], end_stream=True)

    async def take(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if getattr(event, "stream_id", 1) != 1:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                self.failed = dict(event.headers)[b":status"] != b"200"
            elif isinstance(event, h2.events.DataReceived):
                self.reader.take(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded):
                self.complete = True
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise trio.BrokenResourceError
        if sent := self._h2.data_to_send():
            await self.stream.send_all(sent)


async def request(port: int, soak: Soak, route: str, events: int, reset: int = 0) -> Client:
    """Over HTTP/1.1 or HTTP/2, in the clear or with TLS, as the soak is."""
    kind = random.choice((Http1, Http1, Http2))
    stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
    if soak.tls is not None:
        soak.tls.set_alpn_protocols(["h2" if kind is Http2 else "http/1.1"])
        stream = trio.SSLStream(
            stream, soak.tls, server_hostname="localhost", https_compatible=True
        )
    client = kind(stream, Reader(soak, route))
    soak.counts[kind.__name__] += 1
    await client.start(b"%s?events=%d&reset=%d" % (route.encode(), events, reset))
    return client


async def stays(port: int, soak: Soak, route: str, pause_s: float = 0.0) -> None:
    """Reads a stream to its end; with `pause_s`, slowly."""
    events = random.randrange(100, 1500)
    client = await request(port, soak, route, events)
    try:
        while await client.read(4096 if pause_s else 65536):
            if pause_s:
                await trio.sleep(random.uniform(0, pause_s))
    except trio.BrokenResourceError:
        pass
    reader = client.reader
    if not client.complete or reader.seen != events:
        soak.violated(
            f"{route}: a {type(client).__name__} client that stayed got {reader.seen} of {events} events,"
            f" complete: {client.complete}"
        )
    if route == "/edit" and reader.edited != events:
        soak.violated(f"{route}: {reader.edited} of {events} events were edited")
    await trio.aclose_forcefully(client.stream)


async def sees_a_reset(port: int, soak: Soak, route: str) -> None:
    """Its upstream breaks: what came before arrives, and the end is visibly none."""
    events = random.randrange(200, 1000)
    reset = random.randrange(10, events - 20)
    client = await request(port, soak, route, events, reset)
    with suppress(trio.BrokenResourceError):
        while await client.read():
            pass
    if client.complete:
        soak.violated(f"{route}: a {type(client).__name__} stream that broke looked whole")
    await trio.aclose_forcefully(client.stream)


async def leaves(port: int, soak: Soak, route: str) -> None:
    """Closes its connection at some moment, or resets it; before the head as well as in the middle."""
    client = await request(port, soak, route, 2000)
    with trio.move_on_after(random.choice([0, 0.001, 0.01, 0.5, 3]) * random.random()):
        while await client.read():
            pass
    if random.random() < 0.5:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(client.stream)
    await trio.sleep(0.05 * random.random())


async def stalls(port: int, soak: Soak, route: str) -> None:
    """Asks for much and reads nothing for longer than it may."""
    client = await request(port, soak, route, 100_000)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await trio.sleep(3 * SEND_S * random.random())
    await trio.aclose_forcefully(client.stream)


CLIENTS: list[tuple[str, int, Callable[..., Awaitable[None]], dict[str, Any]]] = [
    ("stayed", 20, stays, {}),
    ("stayed, slow", 6, stays, {"pause_s": 0.02}),
    ("upstream reset", 4, sees_a_reset, {}),
    ("left", 12, leaves, {}),
    ("stalled", 3, stalls, {}),
]
"""How many of each there are on each route at any time."""


async def again_and_again(
    name: str,
    port: int,
    soak: Soak,
    route: str,
    client: Callable[..., Awaitable[None]],
    how: dict[str, Any],
) -> None:
    while not soak.over:
        try:
            await client(port, soak, route, **how)
        except OSError as error:
            soak.violated(f"{name}: {error!r}")
            await trio.sleep(0.1)
        soak.counts[name] += 1


# The proxy's process


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_kb(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def page(url: str, tls: ssl.SSLContext | None) -> str:
    with urllib.request.urlopen(url, timeout=10, context=tls) as response:
        return str(response.read().decode())


async def settled(port: int, pid: int, most_descriptors: int, soak: Soak) -> dict[str, Any]:
    """The proxy at rest: values of /status and /metrics, and what is still open. Waits for them,
    for a bounded time.
    """
    found: dict[str, Any] = {}
    for _ in range(100):
        url, tls = f"http://127.0.0.1:{port}", None
        if soak.tls is not None:
            url, tls = f"https://localhost:{port}", soak.pages_tls
        status = json.loads(await trio.to_thread.run_sync(page, url + "/status", tls))
        metrics = await trio.to_thread.run_sync(page, url + "/metrics", tls)
        in_use = {
            name: float(value)
            for name, value in re.findall(r'buffer_pool_in_use\{pool="(\w+)"\} (\S+)', metrics)
        }
        leaks = sum(
            float(value) for value in re.findall(r"buffer_pool_leaks_total\{[^}]*\} (\S+)", metrics)
        )
        origins = [
            origin
            for upstream in status["upstreams"].values()
            for origin in upstream["connections"]
        ]
        idle = sum(origin["idle"] for origin in origins)
        found = {
            "streams": status["streams"],
            "in_use": in_use,
            "leaks": leaks,
            "lent": sum(origin["lent"] for origin in origins),
            "descriptors_beyond_idle": descriptors(pid) - idle,
        }
        if (
            found["descriptors_beyond_idle"] <= most_descriptors
            and not found["streams"]
            and not found["lent"]
        ):
            break
        await trio.sleep(0.2)
    if found["streams"] or found["lent"] or any(in_use.values()) or leaks:
        soak.violated(f"not everything is back: {found}")
    if found["descriptors_beyond_idle"] > most_descriptors:
        soak.violated(
            f"{found['descriptors_beyond_idle']} descriptors where {most_descriptors} were at rest"
        )
    return found


async def control(
    soak: Soak, pid: int, seconds: float, samples: list[tuple[float, float, int, int]]
) -> None:
    """Keep the proxy at its share of a core, and note (time, share, memory in kB, descriptors),
    once a second.
    """
    began = last = time.monotonic()
    used = cpu_s(pid)
    while last - began < seconds:
        await trio.sleep(1)
        now, now_used = time.monotonic(), cpu_s(pid)
        share = (now_used - used) / (now - last)
        last, used = now, now_used
        soak.interval_s = min(1.0, max(0.002, soak.interval_s * min(1.25, max(0.8, share / LOAD))))
        samples.append((now - began, share, rss_kb(pid), descriptors(pid)))


async def soak_for(
    soak: Soak,
    seconds: float,
    port: int,
    upstream: trio.SocketListener,
    process: subprocess.Popen[bytes],
) -> None:
    samples: list[tuple[float, float, int, int]] = []
    async with trio.open_nursery() as servers:
        servers.start_soon(
            trio.serve_listeners, lambda stream: serve_upstream(soak, stream), [upstream]
        )
        with trio.fail_after(10):
            while True:
                try:
                    await trio.aclose_forcefully(await trio.open_tcp_stream("127.0.0.1", port))
                    break
                except OSError:
                    await trio.sleep(0.05)
        for route in ("/pass", "/edit"):
            await stays(port, soak, route)
        at_rest = await settled(port, process.pid, 1_000_000, soak)
        with trio.move_on_after(seconds + 60) as limit:
            async with trio.open_nursery() as clients:
                for name, count, client, how in CLIENTS:
                    for route in ("/pass", "/edit"):
                        for _ in range(count):
                            clients.start_soon(
                                again_and_again, name, port, soak, route, client, how
                            )
                await control(soak, process.pid, seconds, samples)
                soak.over, soak.interval_s = True, 0.002
        if limit.cancelled_caught:
            soak.violated("clients were still waiting a minute after the end")
        at_end = await settled(port, process.pid, at_rest["descriptors_beyond_idle"] + 2, soak)
        servers.cancel_scope.cancel()
    early = statistics.median(item[2] for item in samples if 0.25 <= item[0] / seconds <= 0.4)
    late = statistics.median(item[2] for item in samples if item[0] / seconds >= 0.9)
    if late > early * (1 + MOST_GROWTH):
        soak.violated(f"memory has grown from {early} kB to {late} kB")
    summary = {
        "seconds": round(seconds),
        "share_of_a_core": round(
            statistics.mean(item[1] for item in samples[len(samples) // 4 :]), 3
        ),
        "counts": dict(soak.counts),
        "rss_kb": {"early": early, "late": late, "growth": round(late / early - 1, 4)},
        "descriptors": {
            "at_rest": at_rest["descriptors_beyond_idle"],
            "most": max(item[3] for item in samples),
            "at_end": at_end["descriptors_beyond_idle"],
        },
        "at_end": at_end,
        "violations": soak.violations,
    }
    print(json.dumps(summary, indent=2))


def with_tls(soak: Soak, directory: Path) -> list[str]:
    """Let the clients use TLS; the options of the proxy for it."""
    authority = trustme.CA()
    files = directory / "cert.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(files))
    soak.tls, soak.pages_tls = ssl.create_default_context(), ssl.create_default_context()
    for context in (soak.tls, soak.pages_tls):
        authority.configure_trust(context)
    return ["--certfile", str(files), "--keyfile", str(files)]


async def run(minutes: float, tls: bool) -> int:
    port, soak = free_port(), Soak()
    with tempfile.TemporaryDirectory() as directory:
        (upstream,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        config = Path(directory) / "weirpool.yaml"
        editors = "\n".join(
            f'  - {{name: {name}, use: "edit.py:Edit", options: {{key: {name}}}}}'
            for name in EDITORS
        )
        config.write_text(
            CONFIG.format(
                upstream=upstream.socket.getsockname()[1],
                send=SEND_S,
                editors=editors,
                names=", ".join(EDITORS),
            )
        )
        (Path(directory) / "edit.py").write_text(EDIT)
        command = [
            sys.executable,
            "-m",
            "proxy",
            "serve",
            "--config",
            str(config),
            "--bind",
            f"127.0.0.1:{port}",
            *(with_tls(soak, Path(directory)) if tls else ()),
        ]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
            try:
                await soak_for(soak, minutes * 60, port, upstream, process)
                if process.poll() is not None:
                    soak.violated(f"the proxy has ended, with {process.returncode}")
            finally:
                process.terminate()
                if process.wait(15) != 0:
                    print(f"the proxy's exit status was {process.returncode}", file=sys.stderr)
    return 1 if soak.counts["violations"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    return trio.run(run, arguments.minutes, arguments.tls)


if __name__ == "__main__":
    sys.exit(main())
