"""Memory is bounded by configuration: load a proxy to its limits and print what it takes beside
what `docs/capacity.md` computes.

    .venv/bin/python tests/bench/memory_bound.py [--streams 100] [--clients
    plain|tls|http2|http2-unread] [--upstream-tls]

`http2`: a connection for each stream, whose window is soon shut. `http2-unread`: windows are open,
and the connection is not read.

Each scenario is its own process, `weirpool serve` with small limits, and the worst that
clients and upstreams can do within them. What is measured is the growth of its resident memory over
a warm process. Exit status 1 when any takes more than computed.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.certificates import Certificates  # noqa: E402
from support.client import fetch, open_client  # noqa: E402
from support.http2_client import WIDE, Http2Client, http2_requests  # noqa: E402
from support.process import WEIRPOOL, Process, port_in, running  # noqa: E402
from support.upstream import Peer, open_upstream  # noqa: E402

from proxy.commands.bench.processes import resident_kb  # noqa: E402

HTTP_RESPONSE = 16384
PIECE = 65536
QUEUED_PIECES = 6
"""Two are read ahead of the one that waits to be sent; the rest is on its way up."""
COPIES = 4
"""How much of what a client does not take is held, in events or windows."""
STREAM = {"plain": 64 * 1024, "tls": 96 * 1024, "http2": 96 * 1024, "http2-unread": 96 * 1024}
"""What a stream costs besides what it holds of bodies, by its client's connection."""
UPSTREAM_TLS = 64 * 1024
"""More, where the upstream's connection has TLS."""

TOUCH = """
from interceptors import Interceptor, StreamInterceptor
class Touch(Interceptor):
    def open_stream(self, context): return Stream()
class Stream(StreamInterceptor):
    def on_event(self, event): return event
class Collect(Interceptor):
    wants_body = True
    async def on_request(self, request): ...
"""


@dataclass(frozen=True)
class Limits:
    streams: int
    event: int
    """`max_event_bytes`"""
    body: int
    """`max_request_body_bytes`"""
    clients: str
    upstream_tls: bool
    certificates: Certificates

    @property
    def context(self) -> ssl.SSLContext | None:
        """The clients'."""
        if self.clients == "plain":
            return None
        return self.certificates.client("h2" if self.clients.startswith("http2") else "http/1.1")


@dataclass(frozen=True)
class Scenario:
    name: str
    held: Callable[[Limits], int]
    """Bytes of one stream, besides `STREAM`: the formula."""
    upstream: Callable[[Peer, Limits], Awaitable[None]]
    interceptor: str = ""
    uploads: bool = False


# The upstream's part


async def quiet(peer: Peer, limits: Limits) -> None:
    await peer.request()
    await peer.start_stream()
    await peer.chunk(b"data: x\n\n")
    await peer.wait_closed()


async def large_events(peer: Peer, limits: Limits) -> None:
    await peer.request()
    await peer.start_stream()
    event = b"data: " + b"x" * (limits.event - 100) + b"\n\n"
    while True:
        await peer.chunk(event)


async def unfinished_event(peer: Peer, limits: Limits) -> None:
    await peer.request()
    await peer.start_stream()
    await peer.chunk(b"data: x\n\n")
    await peer.chunk(b"data: " + b"x" * (limits.event - 100))
    await peer.wait_closed()


async def takes_no_body(peer: Peer, limits: Limits) -> None:
    transport = getattr(peer.stream, "transport_stream", peer.stream)
    transport.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
    )  # else the kernel takes a megabyte or two
    await peer.request(body=False)
    await trio.sleep_forever()


# The client's part


def http1_request(scenario: Scenario, limits: Limits) -> bytes:
    if not scenario.uploads:
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % limits.body + b"x" * (
        limits.body - 1
    )


async def ask(
    stream: trio.abc.Stream, nursery: trio.Nursery, scenario: Scenario, limits: Limits
) -> None:
    """A client's request, with as much of its body as the proxy takes."""
    if limits.clients == "http2-unread":
        await stream.send_all(http2_requests(window=WIDE))
    elif limits.clients == "http2":
        client = Http2Client(stream, nursery, window=1000)  # type: ignore[arg-type]
        nursery.start_soon(client.run)
        if not scenario.uploads:
            await client.start()
        else:
            number = await client.start(
                "POST", headers=[("content-length", str(limits.body))], end=False
            )
            with suppress(trio.TooSlowError):  # it is not taken
                await client.send(number, b"x" * (limits.body - 1), end=False)
    else:
        await stream.send_all(http1_request(scenario, limits))


SCENARIOS = [
    Scenario("quiet streams", lambda limits: 0, quiet),
    Scenario("stalled clients, pass-through", lambda limits: COPIES * HTTP_RESPONSE, large_events),
    Scenario(
        "stalled clients, large events seen",
        lambda limits: COPIES * limits.event,
        large_events,
        "Touch",
    ),
    Scenario(
        "unfinished large events, seen", lambda limits: 2 * limits.event, unfinished_event, "Touch"
    ),
    Scenario(
        "uploads that the upstream does not take",
        lambda limits: min(limits.body, QUEUED_PIECES * PIECE),
        takes_no_body,
        uploads=True,
    ),
    Scenario(
        "uploads that are collected",
        lambda limits: 2 * limits.body,
        takes_no_body,
        "Collect",
        uploads=True,
    ),
]


async def settled(pid: int) -> int:
    """The resident memory, when it has not grown for a second."""
    most, since = 0, trio.current_time()
    while trio.current_time() < since + 1:
        now = resident_kb([pid]) * 1024
        if now > most + 256 * 1024:
            most, since = now, trio.current_time()
        await trio.sleep(0.05)
    return most


async def measure(scenario: Scenario, limits: Limits, directory: Path) -> tuple[int, int]:
    """Resident bytes taken, and computed."""
    (directory / "touch.py").write_text(TOUCH)
    interceptor = scenario.interceptor

    async def script(peer: Peer) -> None:
        await scenario.upstream(peer, limits)

    upstream_tls = limits.certificates.server if limits.upstream_tls else None
    async with open_upstream(script, ssl_context=upstream_tls) as upstream:
        file = directory / "weirpool.yaml"
        file.write_text(
            f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{upstream.url}"], ca_file: "{limits.certificates.ca_file}"}}]
  routes: [{{path: /, upstream: up, interceptors: [{"it" if interceptor else ""}]}}]
  limits: {{max_streams: {limits.streams}, max_event_bytes: {limits.event}, max_request_body_bytes: {limits.body},
            max_collected_bytes: {limits.streams * limits.body}}}
  timeouts: {{send: null, write: null, first_byte: null}}
  buffer_pools: {{sse_event: {{size: 4096, max_pooled: 20}}, http_response: {{size: {HTTP_RESPONSE}, max_pooled: 20}}}}
interceptors: [{f'{{name: it, use: "touch.py:{interceptor}"}}' if interceptor else ""}]
drain: {{timeout: 0}}
"""
        )
        command = [*WEIRPOOL, "serve", "--config", str(file), "--bind", "127.0.0.1:0"]
        if limits.clients != "plain":
            certificate, key = limits.certificates.files
            command += ["--certfile", certificate, "--keyfile", key]
        async with running(command) as process:
            return await load(process, scenario, limits)


async def load(process: Process, scenario: Scenario, limits: Limits) -> tuple[int, int]:
    (started,) = await process.event("started")
    pid, port = int(str(started["pid"])), port_in(started)
    context = limits.certificates.client() if limits.clients != "plain" else None
    await fetch(port, "/metrics", ssl_context=context)  # what is imported on first use
    before = await settled(pid)
    clients = []
    async with trio.open_nursery() as nursery:
        for _ in range(limits.streams):
            client = await open_client(port, limits.context)
            transport = getattr(client.stream, "transport_stream", client.stream)
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            clients.append(client)
            nursery.start_soon(ask, client.stream, nursery, scenario, limits)
        taken = await settled(pid) - before
        refused = await fetch(port, ssl_context=context)
        assert refused.status == 503, "the proxy was not at its limit"
        nursery.cancel_scope.cancel()
    for client in clients:
        await client.aclose()
    each = STREAM[limits.clients] + UPSTREAM_TLS * limits.upstream_tls + scenario.held(limits)
    return taken, limits.streams * each + 2 * 20 * (4096 + HTTP_RESPONSE)


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--event-bytes", type=int, default=262144)
    parser.add_argument("--body-bytes", type=int, default=2097152)
    parser.add_argument(
        "--clients", choices=list(STREAM), default="plain", help="the clients' connections"
    )
    parser.add_argument(
        "--upstream-tls", action="store_true", help="the upstream's connections have TLS"
    )
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    arguments = parser.parse_args()
    directory = tempfile.TemporaryDirectory()
    certificates = Certificates(Path(directory.name))
    limits = Limits(
        arguments.streams,
        arguments.event_bytes,
        arguments.body_bytes,
        arguments.clients,
        arguments.upstream_tls,
        certificates,
    )
    kind = f"{limits.clients} clients, {'TLS' if limits.upstream_tls else 'plain'} upstream"
    print(
        f"{limits.streams} streams, {kind}, events of {limits.event} bytes, request bodies of {limits.body} bytes\n"
    )
    print(f"{'':36} {'measured':>10} {'computed':>10}  a stream")
    worst = 0
    for scenario in SCENARIOS:
        if arguments.only not in scenario.name:
            continue
        if scenario.uploads and limits.clients == "http2-unread":
            continue  # who does not read cannot send on: the windows for uploads stay as they are
        taken, computed = await measure(scenario, limits, Path(directory.name))
        print(
            f"{scenario.name:36} {taken / 1e6:7.1f} MB {computed / 1e6:7.1f} MB  {taken / limits.streams / 1e3:.0f} kB"
            + ("" if taken <= computed else "  MORE THAN COMPUTED"),
            flush=True,
        )
        worst |= taken > computed
    directory.cleanup()
    return worst


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(trio.run(main))
