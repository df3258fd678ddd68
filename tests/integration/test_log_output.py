"""The log of a running process: it cannot stop the process, and every line of it is whole."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.client import fetch, open_client
from support.process import HYPERCORN, WEIRPOOL, Process, free_port, running
from support.upstream import Peer, open_upstream

NOISY = """
import logging, sys, threading, warnings
from interceptors import Interceptor

class Unraisable:
    def __del__(self):
        raise ValueError("in a finaliser")

def fail():
    raise ValueError("in a thread")

class Noisy(Interceptor):
    async def on_request(self, request):
        logging.getLogger("a.library").error("from %s\\nlogging", "a library")
        try:
            raise ValueError("caught")
        except ValueError:
            logging.getLogger("a.library").warning("with a traceback", exc_info=True)
        logging.getLogger("a.library").warning("wrong arguments %d", "x")
        warnings.warn("a warning", UserWarning)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Unraisable()
        print("printed", file=sys.stderr)
        request.log.warning("odd values", half="\\ud800", number=float("nan"), object=object(), tuple={(1, 2): 3})
"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: u, endpoints: ["%s"]}]
  routes: [{path: /, upstream: u}, {path: /noisy, upstream: u, interceptors: [noisy]}]
interceptors: [{name: noisy, use: "./noisy.py:Noisy"}]
drain: {timeout: 0.2}
"""


async def script(peer: Peer) -> None:
    """`/live` is an endless event stream; all else is answered with `ok`."""
    while True:
        request = await peer.request()
        if request.target == b"/live":
            await peer.start_stream()
            while True:
                await peer.chunk(b"data: tick\n\n")
                await trio.sleep(0.02)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@asynccontextmanager
async def serving(
    kind: str, directory: Path, stderr: Any, **options: Any
) -> AsyncIterator[tuple[Process, int]]:
    """The proxy as a process, once it has answered a request, until SIGTERM ends it."""
    (directory / "noisy.py").write_text(NOISY)
    file, port = directory / "weirpool.yaml", free_port()
    bind = ["--bind", f"127.0.0.1:{port}"]
    command = {
        "serve": [*WEIRPOOL, "serve", "--config", str(file), *bind],
        "workers": [*WEIRPOOL, "serve", "--config", str(file), *bind, "--workers", "2"],
        "hypercorn": [*HYPERCORN, *bind, "--graceful-timeout", "2"],
    }[kind]
    async with open_upstream(script) as upstream:
        file.write_text(CONFIG % upstream.url)
        # A limit on the size of files must not cut the byte code that others load.
        env = {"WEIRPOOL_CONFIG": str(file), "PYTHONDONTWRITEBYTECODE": "1"}
        async with running(command, env=env, stderr=stderr, **options) as process:
            with trio.fail_after(20):
                while True:
                    try:
                        await fetch(port)
                        break
                    except OSError:
                        await trio.sleep(0.02)
            yield process, port
            await process.stop()


async def ask(port: int, times: int) -> None:
    """Requests on one connection."""
    client = await open_client(port)
    with trio.fail_after(10):
        for _ in range(times):
            await client.send("GET", "/")
            assert (await client.answer()).body == b"ok"
            client.next_cycle()
    await client.aclose()


@pytest.mark.parametrize("kind", ["workers", "hypercorn"])
async def test_a_reader_that_never_reads_ends_nothing(kind: str, tmp_path: Path) -> None:
    """The pipe is full from the first line on; later each write is EPIPE."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    async with serving(kind, tmp_path, writer) as (_, port):
        os.close(writer)
        live = await open_client(port)
        await live.send("GET", "/live")
        answer = await live.head()
        for closes in (True, False):
            await ask(port, 20)
            for _ in range(4):  # with several workers each of them answers some
                assert (await fetch(port)).body == b"ok"
            with trio.fail_after(10):
                await live.read_until(answer, b"tick\n\n")
                answer.body = b""
            if closes:
                os.close(reader)
        await live.aclose()


async def test_lines_that_a_full_file_drops_are_counted(tmp_path: Path) -> None:
    """EFBIG; when the file has room again, one line has the count, and every line is whole."""
    path, endless = tmp_path / "log", resource.RLIM_INFINITY
    with path.open("ab") as file:
        async with serving("serve", tmp_path, file) as (process, port):
            # Only now: what the process imports goes to the cache of byte code.
            resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (2000, endless))
            await ask(port, 20)
            with trio.fail_after(20):  # until the writer's thread has met the file's limit
                while not re.search(
                    rb"weirpool_log_lines_dropped_total [1-9]", (await fetch(port, "/metrics")).body
                ):
                    await trio.sleep(0.02)
            resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (endless, endless))
            await ask(port, 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (dropped,) = [line for line in lines if line["event"] == "lines_dropped"]
    exchanges = sum(line["event"] == "exchange" for line in lines)
    assert dropped["count"] + exchanges == 22  # the first request is that of `serving`
    assert "drain" in [line["event"] for line in lines]


async def test_no_standard_error_ends_nothing(tmp_path: Path) -> None:
    """Its descriptor may then belong to any other file of the process, which gets no line."""
    options = {"preexec_fn": lambda: os.close(2)}
    async with serving("serve", tmp_path, subprocess.DEVNULL, **options) as (_, port):
        await ask(port, 5)


@pytest.mark.parametrize("kind", ["workers", "hypercorn"])
async def test_every_line_is_json(kind: str, tmp_path: Path) -> None:
    """Records of `logging`, warnings, threads, finalisers, what is printed."""
    path = tmp_path / "log"
    with path.open("ab") as file:
        async with serving(kind, tmp_path, file) as (_, port):
            await fetch(port, "/noisy")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    events = {line["event"]: line for line in lines}
    of_library = events["from a library\nlogging"]
    assert (of_library["level"], of_library["logger"]) == ("error", "a.library")
    assert "ValueError: caught" in events["with a traceback"]["exception"]
    assert events["wrong arguments %d"]["level"] == "warning"
    assert events["a warning"]["category"] == "UserWarning"
    assert "ValueError: in a thread" in events["thread_failed"]["exception"]
    assert "ValueError: in a finaliser" in events["unraisable_exception"]["exception"]
    assert events["printed"]["logger"] == "stderr"
    assert events["odd values"]["half"] == "\\ud800"
    assert all(line["level"] and line["timestamp"] for line in lines)
    if kind == "hypercorn":
        assert any(line.get("logger") == "hypercorn.error" for line in lines)
