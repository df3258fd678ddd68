"""The two ways to asyncio of the docs, under `weirpool serve`, in one process."""

from __future__ import annotations

from pathlib import Path

import trio
from support.client import fetch, open_client
from support.pages import blocks_of, files_of
from support.process import WEIRPOOL, port_of, running
from support.upstream import Peer, open_upstream

PAGE = "docs/interceptors.md"

CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["http://127.0.0.1:%d"]}]
  routes:
    - {path: /thread, upstream: up, interceptors: [thread]}
    - {path: /loop, upstream: up, interceptors: [loop]}
    - {path: /leave/thread, upstream: up, interceptors: [thread_waits]}
    - {path: /leave/loop, upstream: up, interceptors: [loop_waits]}
interceptors:
  - {name: loop, use: "./looked.py:LookedUp"}  # imports trio_asyncio, which changes asyncio, before the thread's loop is made
  - {name: thread, use: "./threaded.py:Looked"}
  - {name: loop_waits, use: "./waiting.py:LoopWaits"}
  - {name: thread_waits, use: "./waiting.py:ThreadWaits"}
"""

WAITING = """
import asyncio
import structlog
from looked import LookedUp
from threaded import Looked


async def wait(self, name):
    structlog.get_logger().info("waits")
    try:
        await asyncio.sleep(600)
    finally:
        structlog.get_logger().info("cancelled")


class LoopWaits(LookedUp):
    look_up = wait


class ThreadWaits(Looked):
    look_up = wait
"""


async def test_a_thread_s_loop_and_trio_asyncio_work_side_by_side(tmp_path: Path) -> None:
    """Each hook gets its result; a leaving client cancels the await; the process exits."""
    files_of(PAGE, tmp_path)
    (block,) = [
        block
        for block in blocks_of(PAGE)
        if block.language == "python" and "class Looked(" in block.text
    ]
    (tmp_path / "threaded.py").write_text(block.text)
    (tmp_path / "waiting.py").write_text(WAITING)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with open_upstream(script) as upstream:
        config = tmp_path / "asyncio.yaml"
        config.write_text(CONFIG % upstream.port)
        async with running(
            [*WEIRPOOL, "serve", "--config", str(config), "--bind", "127.0.0.1:0"]
        ) as process:
            port = await port_of(process)
            for path in ("/thread", "/loop", "/loop", "/thread"):
                assert (await fetch(port, path)).status == 200
            assert [request.all("x-looked-up") for request in upstream.requests] == [[b"ANN"]] * 4
            for count, path in enumerate(("/leave/thread", "/leave/loop"), 1):
                client = await open_client(port)
                await client.send("GET", path)
                await process.event("waits", count)
                await client.aclose()
                with trio.fail_after(20):
                    await process.event("cancelled", count)
            assert (await fetch(port, "/loop")).status == 200
            process.signal(15)
            assert await process.exit_status() == 0
