"""The supervisor's own server for shared state: a `valkey-server` or `redis-server` from PATH.

It is a child on a Unix socket in a directory that only this user can enter, stores nothing on disk,
and has a memory bound, at which it drops what would expire first. It ends with the supervisor, also
when that is killed: the kernel signals it (PR_SET_PDEATHSIG, prctl(2)). The supervisor reaps it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from typing import NoReturn

import structlog

__all__ = ["LocalStore"]

_PROGRAMS = ("valkey-server", "redis-server")
_MAX_MEMORY = "256mb"
_START_S = 5.0
_STOP_S = 2.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 60.0
_PR_SET_PDEATHSIG = 1
_NO_PROGRAM = 127


class LocalStore:
    """One server process at a time. Its methods block."""

    def __init__(self, program: str) -> None:
        """Raises `OSError` if there is no place for its socket."""
        self._program = program
        self._directory = tempfile.mkdtemp(prefix="weirpool-")  # mode 0700
        self._socket = os.path.join(self._directory, "store.sock")
        self.url = f"unix://{self._socket}"
        self.pid = 0
        self._started_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        # Loaded before the fork: afterwards only what is safe in a process with threads may run.
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    @classmethod
    def find(cls) -> LocalStore | None:
        """The server of this machine, not started; None if none is on PATH, or it has no place."""
        for name in _PROGRAMS:
            program = shutil.which(name)
            if program is not None:
                with suppress(OSError):
                    return cls(program)
        return None

    def start(self) -> None:
        """Start the server and wait until it listens, at most 5 s."""
        with suppress(FileNotFoundError):
            os.unlink(self._socket)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_server(parent)
        self._started_at = time.monotonic()
        while time.monotonic() < self._started_at + _START_S and not self._listens():
            if self._has_ended():
                return  # the supervisor reaps it
            time.sleep(0.005)

    def ended(self, exit_status: int) -> float:
        """Note that the process has been reaped. Returns when to start it again."""
        structlog.get_logger("proxy").error(
            "store_server_died", pid=self.pid, exit_status=exit_status
        )
        self.pid = 0
        now = time.monotonic()
        is_short = now < self._started_at + _MAX_PAUSE_S
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S) if is_short else _FIRST_PAUSE_S
        return self._started_at + self._pause_s

    def stop(self) -> None:
        """End the server and remove its directory."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _STOP_S
            with suppress(ProcessLookupError, ChildProcessError):
                if self.pid:
                    os.kill(self.pid, number)
                while self.pid and time.monotonic() < deadline:
                    if os.waitpid(self.pid, os.WNOHANG)[0]:
                        self.pid = 0
                    else:
                        time.sleep(0.005)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(self._socket) == 0

    def _become_server(self, parent: int) -> NoReturn:
        try:
            os.setpgid(0, 0)  # a Ctrl-C is for the supervisor, which ends it last
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            if self._libc is not None:
                self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:
                    os._exit(0)
            nothing = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(nothing, fd)
            options = {
                "port": "0",
                "unixsocket": self._socket,
                "unixsocketperm": "700",
                "dir": self._directory,
                "save": "",
                "appendonly": "no",
                "maxmemory": _MAX_MEMORY,
                "maxmemory-policy": "volatile-ttl",
                "daemonize": "no",
            }
            arguments = [item for name, value in options.items() for item in (f"--{name}", value)]
            # S606: no shell; the program is from PATH, as everything that the user starts.
            os.execv(self._program, [self._program, *arguments])  # noqa: S606
        finally:
            os._exit(_NO_PROGRAM)
