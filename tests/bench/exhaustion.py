"""Resource exhaustion against `weirpool serve` in its own process: descriptors, memory,
statuses, ejected endpoints.

    PYTHONPATH=.:tests .venv/bin/python tests/bench/exhaustion.py

Each case prints one line: what was tried, what the clients got, the most descriptors and the most
resident memory of the worker above its idle state, and how many endpoints were ejected. The exit
status is 1 where a bound of docs/security.md does not hold.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import h11
import trio
from support.client import Client, open_client
from support.process import Process, port_of, running, serve
from support.upstream import Peer, open_upstream

from interceptors.api_keys import hash_key
from proxy.commands.bench.processes import cpu_seconds, resident_kb

KEY = "a-key-of-a-client"
FILES = 64
MIB = 1 << 20
CONFIG = f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://HOST:PORT"]}}]
  routes:
    - {{path: /, upstream: up}}
    - {{path: /keyed, upstream: up, dialect: mcp, interceptors: [keys]}}
    - {{path: /wanted, upstream: up, interceptors: [keys, body], limits: {{max_request_body_bytes: 16777216}}}}
    - {{path: /policy, upstream: up, dialect: mcp, interceptors: [policy]}}
interceptors:
  - {{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(KEY)}"}}}}}}
  - {{name: policy, use: mcp_policy, options: {{tools: {{deny: [shell]}}}}}}
  - {{name: body, use: "./body.py:Body"}}
"""
BODY = "from interceptors import Interceptor\nclass Body(Interceptor):\n    wants_body = True\n"
LOST = (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError)
Result = tuple[dict[str, object], bool]


async def upstream(peer: Peer) -> None:
    """Answers every request; an endless event stream on a path that ends with `/stream`."""
    while request := await peer.request():
        if not request.target.endswith(b"/stream"):
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            continue
        await peer.start_stream()
        while True:
            await peer.chunk(b"data: {}\n\n")
            await trio.sleep(0.05)


class Server:
    """`weirpool serve`, with what it uses."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.pid = process.process.pid
        self.port = port
        self.idle_memory = self.memory()
        self.most_files = self.most_memory = 0

    async def watch(self) -> None:
        with suppress(OSError):
            while True:
                files = len(os.listdir(f"/proc/{self.pid}/fd"))
                self.most_files = max(self.most_files, files)
                self.most_memory = max(self.most_memory, self.memory() - self.idle_memory)
                await trio.sleep(0.02)

    def memory(self) -> int:
        return resident_kb([self.pid]) * 1024

    async def get(self, client: Client | None = None, target: str = "/x") -> str:
        """The status, on this connection or a new one; or how it broke."""
        try:
            with trio.fail_after(20):
                used = client or await open_client(self.port)
                await used.send("GET", target)
                answer = await used.answer()
                if client is None:
                    await used.aclose()
                else:
                    used.next_cycle()
                return str(answer.status)
        except (*LOST, h11.LocalProtocolError) as error:
            return type(error).__name__

    def count(self, event: str) -> int:
        return sum(f'"event":"{event}"' in line for line in self.process.lines)


@asynccontextmanager
async def serving(host: str = "127.0.0.1", files: int | None = None) -> AsyncIterator[Server]:
    def limit() -> None:
        if files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "weirpool.yaml"
        (file.parent / "body.py").write_text(BODY)
        async with open_upstream(upstream) as up, trio.open_nursery() as nursery:
            file.write_text(CONFIG.replace("HOST", host).replace("PORT", str(up.port)))
            async with running(serve("--config", str(file)), preexec_fn=limit) as process:
                server = Server(process, await port_of(process))
                nursery.start_soon(server.watch)
                yield server
                nursery.cancel_scope.cancel()


async def descriptors(host: str) -> Result:
    """Sixty clients that send nothing, with 64 descriptors."""
    async with serving(host, FILES) as server:
        kept, live = await open_client(server.port), await open_client(server.port)
        first = await server.get(kept)
        await live.send("GET", "/stream")
        began = (await live.head()).status
        silent = [await open_client(server.port) for _ in range(60)]
        await trio.sleep(1)
        results = Counter([await server.get(kept) for _ in range(10)])
        fresh = await server.get()
        with trio.fail_after(2):
            goes_on = bool(await live.read_some())
        closed = 0
        for client in silent:
            with trio.move_on_after(0.01), suppress(trio.BrokenResourceError):
                closed += not await client.stream.receive_some(1)
            await client.aclose()
        await trio.sleep(0.5)
        later = await server.get()
        ejected, failed = server.count("endpoint_ejected"), server.count("internal_error")
        said: dict[str, object] = {
            "kept client": dict(results),
            "new client": fresh,
            "live stream goes on": goes_on,
            "closed idle": closed,
            "afterwards": later,
            "descriptors": server.most_files,
            "log bytes": sum(map(len, server.process.lines)),
            "ejected": ejected,
        }
        statuses = (first, began, fresh, later) == ("200", 200, "200", "200")
        holds = statuses and goes_on and not ejected and not failed
        return said, holds and set(results) <= {"200", "503"} and server.most_files <= FILES


POST = (
    "POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
)


async def post(server: Server, path: str, length: int, body: list[bytes], fields: str = "") -> str:
    """The status for a request with these pieces of its body; or how it broke, or `TooSlowError`."""
    client = await open_client(server.port)
    try:
        with suppress(*LOST), trio.fail_after(10):
            await client.stream.send_all((POST % (path, length, fields)).encode())
            for piece in body:
                await client.stream.send_all(piece)
        with trio.fail_after(4):
            client._h11.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
            return str((await client.head()).status)
    except LOST as error:
        return type(error).__name__
    finally:
        await client.aclose()


async def bodies(path: str, key: bool, most: int, wanted: set[str]) -> Result:
    """Forty clients that send 15 MB of 16 and then wait."""
    async with serving() as server:
        fields, results = f"Authorization: Bearer {KEY}\r\n" * key, list[str]()

        async def client() -> None:
            body = [b"x" * 65536] * (15_000_000 // 65536)
            results.append(await post(server, path, 16_000_000, body, fields))

        async with trio.open_nursery() as clients:
            for _ in range(40):
                clients.start_soon(client)
        memory = round(server.most_memory / MIB, 1)
        said: dict[str, object] = {"statuses": dict(Counter(results)), "memory MiB": memory}
        return said, server.most_memory <= most and set(results) <= wanted


async def numbers(size: int, wanted: str, most: int) -> Result:
    """A batch of numbers, which are not messages."""
    async with serving() as server:
        body = b"[" + b"0," * ((size - 3) // 2) + b"0]"
        before = cpu_seconds([server.pid])
        status = await post(server, "/policy", len(body), [body])
        spent = cpu_seconds([server.pid]) - before
        memory = round(server.most_memory / MIB, 1)
        said = {"status": status, "CPU ms": round(spent * 1000), "memory MiB": memory}
        return said, status == wanted and server.most_memory <= most


COLLECTED = {"503", "TooSlowError"}
CASES: dict[str, Callable[[], Awaitable[Result]]] = {
    "64 descriptors, endpoint by address": lambda: descriptors("127.0.0.1"),
    "64 descriptors, endpoint by name": lambda: descriptors("localhost"),
    "40 bodies of 15 MB, no key": lambda: bodies("/keyed", False, 32 * MIB, {"401"}),
    "40 bodies of 15 MB, a key": lambda: bodies("/wanted", True, (64 + 48) * MIB, COLLECTED),
    "2.1 MB of numbers": lambda: numbers(2_100_000, "400", 100 * MIB),
    "16 MB of numbers": lambda: numbers(16_000_000, "413", 32 * MIB),
}


async def main() -> int:
    failed = False
    for name, case in CASES.items():
        said, holds = await case()
        failed = failed or not holds
        print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'} {json.dumps(said)}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(trio.run(main))
