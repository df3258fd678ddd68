"""MCP clients and servers from npm, as processes: `npm/drive.mjs` and `npm/serve.mjs`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from support import npm_packages
from support.npm_packages import SCRIPTS
from support.required import lacking

__all__ = ["drive", "require_packages", "serve"]


def require_packages() -> None:
    """Install the packages, or skip the test: `WEIRPOOL_REQUIRE_NPM` makes it fail instead."""
    try:
        npm_packages.install()
    except npm_packages.CannotInstall as missing:
        lacking(str(missing), "WEIRPOOL_REQUIRE_NPM")


async def drive(
    sessions: list[dict[str, Any]], *, at_once: int, step_timeout_s: float, timeout_s: float
) -> dict[str, Any]:
    """What each session saw, by its name. `drive.mjs` describes sessions and results."""
    task = json.dumps(
        {"sessions": sessions, "at_once": at_once, "timeout_ms": step_timeout_s * 1000}
    )
    async with _running("drive.mjs") as script:
        with trio.fail_after(timeout_s):
            await script.write(task)
            return json.loads(await script.read())


@asynccontextmanager
async def serve(count: int) -> AsyncIterator[list[str]]:
    """Servers of the official TypeScript SDK, each with its own sessions; their URLs."""
    async with _running("serve.mjs", str(count)) as script:
        with trio.fail_after(30):
            urls = json.loads(await script.read())
        yield urls


class _Script:
    """A script that runs: it reads and writes lines."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._rest = b""

    async def write(self, line: str) -> None:
        await self._stdin.send_all(line.encode() + b"\n")

    async def read(self) -> str:
        while b"\n" not in self._rest:
            data = await self._stdout.receive_some()
            assert data, f"the script ended after {self._rest!r}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def _running(script: str, *arguments: str) -> AsyncIterator[_Script]:
    command = ["node", str(SCRIPTS / script), *arguments]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield _Script(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
