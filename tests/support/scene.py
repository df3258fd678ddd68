"""A proxy with something to see: two workers, several routes, endpoints and interceptors, and load.

For tests of the dashboard, and for its pictures in the docs (`tests/bench/pictures.py`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import h11
import trio

from .client import fetch, open_client
from .process import Process, free_port, port_in, running, serve
from .upstream import Peer, open_upstream

__all__ = ["ENVIRONMENT", "KEY", "TOKEN", "Scene", "open_scene"]

KEY = "sk-the-key-of-the-upstream"
TOKEN = "a-token-for-the-admin-pages"
ENVIRONMENT = {"KEY": KEY, "TOKEN": TOKEN}
CONFIG = """
reverse_proxy:
  upstreams:
    - name: llm
      endpoints: [%(urls)s]
    - {name: tools, endpoints: [%(first)s]}
    - {name: old, endpoints: ["http://127.0.0.1:9"]}
  routes:
    - {path: /v1, upstream: llm, dialect: openai, interceptors: [keys, limit, budget, redact]}
    - {path: /tools, upstream: tools, interceptors: [redact]}
    - {path: /old, upstream: old}
  limits: {max_streams: 200, max_event_bytes: 65536}
  health: {consecutive_failures: 3, eject: 60}
interceptors:
  - {name: keys, use: api_keys, options: {upstream: "Bearer ${KEY}", keys: {%(keys)s}}}
  - {name: limit, use: rate_limit, options: {requests_per_minute: 6000}}
  - {name: budget, use: budget, options: {limits: [{per: hour, by: route, tokens: 500000}]}}
  - {name: redact, use: redact, options: {patterns: ["sk-[A-Za-z0-9]{20,}"]}}
admin: {port: %(admin)d%(token)s}
store: {local: "off"}
telemetry: {genai: true}
drain: {timeout: 0}
"""


def delta(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({"model": "small", "choices": [choice]}).encode() + b"\n\n"


LAST = (
    b'data: {"model":"small","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"model":"small","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":120}}\n\n'
    b"data: [DONE]\n\n"
)


CLIENTS = ("ann", "ben", "ci", "search", "support")


def hash_of(name: str) -> str:
    return hashlib.sha256(f"key-of-{name}".encode()).hexdigest()


@dataclass
class Scene:
    process: Process
    port: int
    admin: int
    command: list[str]
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.admin}/dashboard"

    async def stream(self, target: str, *, read: int | None = None) -> None:
        """One stream; `read`: leave after so many events."""
        body = b'{"model":"small","stream":true,"messages":[]}'
        client = await open_client(self.port)
        try:
            key = f"Bearer key-of-{CLIENTS[next(self.numbers) % len(CLIENTS)]}"
            headers = [("Content-Type", "application/json"), ("Authorization", key)]
            await client.send("POST", target, headers, body)
            answer = await client.head()
            if read is None:
                await client.rest(answer)
            else:
                for _ in range(read):
                    await client.read_some()
        finally:
            await client.aclose()

    async def load(self, streams: int, *, rng: random.Random) -> None:
        """Keep streams open, and let clients come and go, until cancelled."""

        async def one(number: int) -> None:
            while True:
                await trio.sleep(rng.random())
                target = rng.choice(["/v1/chat/completions"] * 6 + ["/tools/list", "/v1/responses"])
                if number % 9 == 8:
                    target = "/old/page"
                    await trio.sleep(10)
                leaves = rng.randrange(5, 30) if rng.random() < 0.2 else None
                with suppress(OSError, EOFError, h11.RemoteProtocolError, trio.BrokenResourceError):
                    await self.stream(f"{target}?n={number}", read=leaves)

        async with trio.open_nursery() as nursery:
            for number in range(streams):
                nursery.start_soon(one, number)

    async def page(self, path: str) -> bytes:
        headers = [("Host", "127.0.0.1"), ("Authorization", f"Bearer {TOKEN}")]
        return (await fetch(self.admin, path, headers=headers)).body


@asynccontextmanager
async def open_scene(
    directory: Path, *, workers: int = 2, token: bool = False, event_s: float = 0.05
) -> AsyncIterator[Scene]:
    """Serve. `event_s`: the mean time between two events."""
    rng = random.Random(7)

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await trio.sleep(rng.lognormvariate(-2.5, 0.7))
            await peer.start_stream()
            if b"hold" in request.target:
                await peer.wait_closed()
            for _ in range(rng.randrange(20, 300)):
                await trio.sleep(event_s * rng.random() * 2)
                await peer.chunk(delta("The river runs. "))
            await peer.chunk(LAST)
            await peer.end()

    async with open_upstream(script) as one, open_upstream(script) as two:
        file, admin = directory / "weirpool.yaml", free_port()
        names = {
            "urls": f'"{one.url}", "{two.url}"',
            "first": f'"{one.url}"',
            "admin": admin,
            "keys": ", ".join(f'{name}: "sha256:{hash_of(name)}"' for name in CLIENTS),
            "token": ', token: "${TOKEN}", inspect: true' if token else "",
        }
        file.write_text(CONFIG % names)
        command = serve("--config", str(file), "--workers", str(workers))
        async with running(command, env=ENVIRONMENT) as process:
            started, *_ = await process.event("started", workers)
            yield Scene(process, port_in(started), admin, command)
            if process.process.returncode is None:
                await process.stop()
