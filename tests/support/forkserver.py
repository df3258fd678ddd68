"""Starts `weirpool` commands by forking a process that has imported them: 20 ms instead of 1.5 s.

`ForkServer` is the tests' side, one for each test process; the module run as a script is the other.
A command's process is its own session, like one that `subprocess` starts, and ends as any Python
process does. The server ends when the tests' end of its control socket closes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

__all__ = ["ForkServer", "Forked"]

ROOT = Path(__file__).parents[2]
_MOST = 1 << 17


class Forked:
    """A command's process, with the part of `trio.Process` that tests use."""

    def __init__(self, pid: int, stderr: int, control: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stderr = trio.lowlevel.FdStream(stderr)
        self._control = trio.socket.from_stdlib_socket(control)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for the end; the exit status, negative for a signal."""
        if self.returncode is None:
            await trio.lowlevel.wait_readable(self._control)
            if self.returncode is None:
                self.returncode = int((await self._control.recv(64)).decode())
                self._control.close()
        return self.returncode


class ForkServer:
    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL
        )
        theirs.close()

    async def start(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> Forked:
        """Start `weirpool` with these arguments."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reader, writer = os.pipe()
        request = json.dumps({"argv": list(arguments), "env": dict(env), "cwd": str(cwd)})
        socket.send_fds(self._control, [request.encode()], [theirs.fileno(), writer])
        theirs.close()
        os.close(writer)
        await trio.lowlevel.wait_readable(ours)
        return Forked(int(ours.recv(64)), reader, ours)


def _serve(control: socket.socket) -> list[str]:
    """Fork for each request. Returns, in the process of a command, its arguments."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, _MOST, 2)
        if not data:
            os._exit(0)
        if os.fork():
            for fd in fds:
                os.close(fd)
            continue
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        answers = socket.socket(fileno=fds[0])
        pid = os.fork()
        if pid:  # reports the command's end
            os.close(fds[1])
            answers.send(b"%d" % pid)
            _, status = os.waitpid(pid, 0)
            answers.send(b"%d" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        answers.close()
        request = json.loads(data)
        os.setsid()
        os.dup2(fds[1], 2)
        os.close(fds[1])
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        return list(request["argv"])


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from proxy.commands.cli import main
    from proxy.config import load_interceptors as _  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    sys.argv[1:] = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(main(sys.argv[1:]))
