"""A service manager as `weirpool serve` sees it: it holds listening sockets, passes them to each
process that it starts (sd_listen_fds(3)), and receives messages (sd_notify(3)).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from .process import WEIRPOOL, Process, running

__all__ = ["Manager", "open_manager"]

# Descriptors are moved away first: one of them can already be 3. LISTEN_PID is this process's id.
_START = """
import fcntl, os, sys
count = int(sys.argv[1])
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2:2 + count]]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Manager:
    """The service manager of one test."""

    def __init__(self, sockets: dict[str, socket.socket], inbox: trio.socket.SocketType) -> None:
        self.messages: list[dict[str, str]] = []
        self._sockets = sockets
        self._inbox = inbox
        self._news = trio.Event()

    def port(self, name: str) -> int:
        return int(self._sockets[name].getsockname()[1])

    def start(self, *options: str, **env: str) -> AbstractAsyncContextManager[Process]:
        """Run `weirpool serve` with these options."""
        fds = [sock.fileno() for sock in self._sockets.values()]
        address = self._inbox.getsockname()
        text = address.decode() if isinstance(address, bytes) else address
        environment = {"LISTEN_FDNAMES": ":".join(self._sockets), **env}
        environment["NOTIFY_SOCKET"] = "@" + text[1:] if text[:1] == "\0" else text
        start = [sys.executable, "-c", _START, str(len(fds)), *map(str, fds)]
        command = [*start, *WEIRPOOL, "serve", *options]
        return running(command, env=environment, pass_fds=fds)

    async def receive(self) -> None:
        while True:
            data = await self._inbox.recv(4096)
            self.messages.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
            self._news.set()
            self._news = trio.Event()

    async def until(self, holds: Callable[[dict[str, str]], bool], after: int = 0) -> int:
        """The number of messages up to the first one after `after` for which this holds."""
        with trio.fail_after(30):
            while True:
                for number, message in enumerate(self.messages[after:], after + 1):
                    if holds(message):
                        return number
                await self._news.wait()


@asynccontextmanager
async def open_manager(
    sockets: dict[str, socket.socket], inbox: str | Path
) -> AsyncIterator[Manager]:
    """Hold these sockets, and receive messages at `inbox`; with a null byte first: in the abstract
    namespace.
    """
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        await received.bind(str(inbox))
        manager = Manager(sockets, received)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.receive)
            yield manager
            nursery.cancel_scope.cancel()
    for sock in sockets.values():
        sock.close()
