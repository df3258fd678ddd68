"""A `weirpool` command as a process: its log lines, signals, its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import trio

from proxy.commands.cli import main
from proxy.worker.stderr import release_stderr

from .forkserver import Forked, ForkServer

__all__ = [
    "HYPERCORN",
    "ROOT",
    "WEIRPOOL",
    "Done",
    "Process",
    "free_port",
    "port_in",
    "port_of",
    "run_command",
    "running",
    "serve",
]

ROOT = Path(__file__).parents[2]
WEIRPOOL = [sys.executable, "-m", "proxy"]
HYPERCORN = [sys.executable, "-m", "hypercorn", "--worker-class", "trio", "proxy:create_app()"]


def serve(*options: str) -> list[str]:
    """The command `weirpool serve` with these options, on a free port."""
    return [*WEIRPOOL, "serve", "--bind", "127.0.0.1:0", *options]


class Process:
    """A command under test, with the log lines it writes to stderr."""

    def __init__(self, process: trio.Process | Forked) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = trio.Event()

    async def read(self) -> None:
        assert self.process.stderr is not None
        rest = b""
        async for data in self.process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [line.decode() for line in lines]
            self._news.set()
            self._news = trio.Event()

    async def event(self, name: str, count: int = 1) -> list[dict[str, object]]:
        """The log lines of that name, when `count` are there."""
        with trio.fail_after(20):
            while (
                len(
                    found := [item for item in map(_parse, self.lines) if item.get("event") == name]
                )
                < count
            ):
                await self._news.wait()
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def exit_status(self) -> int:
        with trio.fail_after(20):
            return await self.process.wait()

    async def stop(self) -> None:
        """End it with SIGTERM, which is status 0."""
        self.signal(signal.SIGTERM)
        assert await self.exit_status() == 0


def _parse(line: str) -> dict[str, object]:
    try:
        return json.loads(line)
    except ValueError:
        return {}


@asynccontextmanager
async def running(command: list[str], **options: object) -> AsyncIterator[Process]:
    async with trio.open_nursery() as nursery:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}  # type: ignore[dict-item]
        process = await _start(command, environment, options)
        running = Process(process)
        if process.stderr is not None:
            nursery.start_soon(running.read)
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run_command(*arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Done:
    """Run a command that serves nothing, in this process: a start costs 1.5 s of CPU time."""
    out, err = StringIO(), StringIO()
    with chdir(cwd), patch.dict(os.environ, env or {}), redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(list(arguments))
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        finally:
            release_stderr()
    return Done(status, out.getvalue(), err.getvalue())


@cache
def _fork_server() -> ForkServer:
    return ForkServer()


async def _start(
    command: list[str], env: dict[str, str], options: dict[str, object]
) -> trio.Process | Forked:
    """Start a command: `weirpool` without further options is forked, all else is executed."""
    cwd = Path(str(options.pop("cwd", ROOT)))
    if command[: len(WEIRPOOL)] == WEIRPOOL and not options:
        return await _fork_server().start(command[len(WEIRPOOL) :], env, cwd)
    options.setdefault("stderr", subprocess.PIPE)
    return await trio.lowlevel.open_process(
        command, cwd=cwd, env=env, start_new_session=True, **options
    )


async def port_of(process: Process) -> int:
    started, *_ = await process.event("started")  # one for each worker
    return port_in(started)


def port_in(started: dict[str, object]) -> int:
    """The port in a `started` line."""
    (bind,) = started["bind"]  # type: ignore[misc]
    return int(str(bind).rsplit(":", 1)[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
