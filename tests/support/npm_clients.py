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


async def drive(sessions: list[dict[str, Any]], *, at_once: int, step_timeout_s: float, timeout_s: float) -> dict[str, Any]:
    """What each session saw, by its name. `drive.mjs` describes sessions and results."""
    task = json.dumps({"sessions": sessions, "at_once": at_once, "timeout_ms": step_timeout_s * 1000})
    with trio.fail_after(timeout_s):
        done = await trio.run_process(["node", str(SCRIPTS / "drive.mjs")], stdin=task.encode(), capture_stdout=True)
    return json.loads(done.stdout)


@asynccontextmanager
async def serve(count: int) -> AsyncIterator[list[str]]:
    """Servers of the official TypeScript SDK, each with its own sessions; their URLs."""
    process = await trio.lowlevel.open_process(
        ["node", str(SCRIPTS / "serve.mjs"), str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = b""
        with trio.fail_after(30):
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "the servers did not start"
                line += piece
        yield json.loads(line)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
