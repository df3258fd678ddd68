"""Messages to the service manager (sd_notify(3)): ready, reloading, stopping, status, watchdog.

The main process sends them: the only server process, or the supervisor of `--workers N`. They are
made from what the workers publish in their memories, so no worker waits for the service manager.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import MutableMapping, Sequence
from contextlib import suppress

import trio

from ..worker.counters import CounterMemory, State

__all__ = ["Notifier", "Reports", "find_notifier", "keep_reporting"]

_SEND_S = 1.0
_SOON_S = 0.05
_STATUS_S = 5.0
_RELOAD_S = 60.0


class Notifier:
    """The socket of the service manager. Never raises."""

    def __init__(self, address: str, watchdog_s: float = math.inf) -> None:
        """`address`: a path, or `@name` for an abstract socket. `watchdog_s`: the service counts as
        hung after this time without a `WATCHDOG=1`.
        """
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, *lines: str, wait_s: float = 0.0) -> None:
        """Send one message. Blocks for at most `wait_s` if the queue of the manager is full; the
        message is then dropped.
        """
        self._socket.settimeout(wait_s)
        with suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)


def find_notifier(environ: MutableMapping[str, str] = os.environ) -> Notifier | None:
    """Return the service manager of this process, or None. Removes it from the environment: it is
    not for the programs that this process starts.
    """
    address = environ.pop("NOTIFY_SOCKET", "")
    watchdog, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not address.startswith(("/", "@")):
        return None
    is_watched = watchdog.isdigit() and int(watchdog) > 0 and pid in ("", str(os.getpid()))
    return Notifier(address, int(watchdog) / 1e6 if is_watched else math.inf)


class Reports:
    """What the main process reports, and when. Its methods block for at most a second."""

    def __init__(
        self, notifier: Notifier, memories: Sequence[CounterMemory], stop_s: float
    ) -> None:
        """`stop_s`: the time in which a stop ends; the service manager waits for it, whatever its
        own limit is.
        """
        self.stop_s = stop_s
        self._notifier = notifier
        self._memories = memories
        self._is_ready = False
        self._is_stopping = False
        self._reload_at: float | None = None
        self._beat_at = 0.0
        self._status = ""

    @property
    def next_s(self) -> float:
        """Seconds until the next `step`."""
        if not self._is_stopping and (not self._is_ready or self._reload_at is not None):
            return _SOON_S
        return max(0.0, self._beat_at - time.monotonic())

    def step(self) -> None:
        """Send what is due."""
        if not self._is_stopping:
            if not self._is_ready:
                if any(memory.state is not State.READY for memory in self._memories):
                    return
                self._is_ready = True
                self._send_ready()
            elif self._reload_at is not None and self._has_reloaded(self._reload_at):
                self._reload_at = None
                self._send_ready()
        if time.monotonic() >= self._beat_at:
            self._beat()

    def reloading(self) -> None:
        """A reload begins. `step` reports its end, once each worker has tried it."""
        if self._is_ready and not self._is_stopping:
            self._reload_at = time.monotonic()
            now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            # One message: systemd ignores RELOADING=1 without a time (Type=notify-reload).
            self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={now_us}", wait_s=_SEND_S)

    def stopping(self) -> None:
        """The drain begins."""
        self._is_stopping = True
        self._status = self._text()
        extend = f"EXTEND_TIMEOUT_USEC={int(self.stop_s * 1e6)}"
        self._notifier.send("STOPPING=1", f"STATUS={self._status}", extend, wait_s=_SEND_S)

    def _send_ready(self) -> None:
        self._status = self._text()
        self._notifier.send("READY=1", f"STATUS={self._status}", wait_s=_SEND_S)

    def _beat(self) -> None:
        """Send the status if it has changed; and for the watchdog that a worker's event loop runs.

        One worker is sufficient: a restart would end the streams of all.
        """
        interval_s = min(_STATUS_S, self._notifier.watchdog_s / 2)
        self._beat_at = time.monotonic() + interval_s
        lines = []
        if math.isfinite(self._notifier.watchdog_s) and any(
            memory.silent_s < interval_s for memory in self._memories
        ):
            lines.append("WATCHDOG=1")
        if (text := self._text()) != self._status:
            self._status = text
            lines.append(f"STATUS={text}")
        if lines:
            self._notifier.send(*lines)

    def _text(self) -> str:
        streams = sum(memory.admitted for memory in self._memories)
        counted = f"{streams} stream{'' if streams == 1 else 's'}"
        if self._is_stopping:
            return f"draining, {counted} left"
        count = len(self._memories)
        serving = sum(memory.state is State.READY for memory in self._memories)
        return counted if count == 1 else f"{counted}, {serving} of {count} workers serve"

    def _has_reloaded(self, since: float) -> bool:
        """Whether each worker has finished a reload that began after `since`. One that starts or
        ends does not count: it has the new configuration, or needs none.
        """
        return time.monotonic() > since + _RELOAD_S or all(
            memory.reloaded_at >= since or memory.state is not State.READY
            for memory in self._memories
        )


async def keep_reporting(reports: Reports, memory: CounterMemory) -> None:
    """Send what is due until cancelled, for a worker that is alone."""
    while True:
        memory.seen()
        reports.step()
        await trio.sleep(reports.next_s)
