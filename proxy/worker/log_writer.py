"""Writes log lines to standard error without blocking the caller.

`LogWriter.put` queues a line; one daemon thread writes. A line that exceeds the queue, or that the
file refuses, is dropped and counted; one `lines_dropped` line with the `count` replaces them once
writing works again. Invariants: `put` never raises and never waits for the file; a child process
starts with an empty queue (`reset`). It does not know the content of a line.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

__all__ = ["FLUSH_S", "MAX_HELD_BYTES", "LogWriter"]

MAX_HELD_BYTES = 1 << 20
"""Memory of the queue in bytes, some 2,500 lines. Newer lines are dropped."""

FLUSH_S = 1.0
"""Time in seconds for the last lines when the process ends."""

# a batch costs a thread switch: at most fifty a second; the first line of a burst leaves at once
_GATHER_S = 0.02
_RETRY_S = 1.0  # the wait after an error if no new line is logged
_ATOMIC_BYTES = select.PIPE_BUF  # a longer write to a pipe mixes with other workers' lines


class _Line(NamedTuple):
    data: bytes
    reports: int = 0
    """The number of dropped lines that the line reports; 0 for an ordinary line."""


class LogWriter:
    """Takes lines from any thread and writes them in order to the file descriptor `fd`; None
    discards them.

    `render_dropped` makes the line that reports a number of dropped lines, with its line end.
    """

    def __init__(
        self,
        fd: int | None,
        render_dropped: Callable[[int], bytes],
        *,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._fd = fd
        self._max_held_bytes = max_held_bytes
        self.render_dropped = render_dropped
        self.dropped_total = 0
        """Lines dropped since the process started."""
        self.reset()

    def reset(self) -> None:
        """Discard the queue and the thread: a child process has neither."""
        # Reentrant: a finaliser may log while this thread is inside `put`.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._woken = False
        self._lines: list[_Line] = []
        self._held_bytes = 0  # queued, or with the thread
        self._busy = False  # the thread has lines
        self._unreported = 0  # not reported yet
        self._overflows = False
        self._rest = b""  # of a partly written line
        self._rest_at = -1  # the file's size at that point; -1: not a regular file
        self._thread: threading.Thread | None = None

    def put(self, data: bytes) -> None:
        """Queue one line, which ends with a line feed. Never waits for the file, never raises."""
        if self._fd is None:
            return
        with self._lock:
            # After an overflow the queue first drains by half, so that one report covers many
            # lines.
            room = self._max_held_bytes // 2 if self._overflows else self._max_held_bytes
            self._overflows = self._held_bytes + len(data) > room
            if self._overflows:
                self._unreported += 1
                self.dropped_total += 1
                return
            self._report()
            self._append(_Line(data))
            if self._thread is None:
                self._start()
            if not self._woken:
                self._woken = True
                self._wake.put(None)

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until every line is written or dropped, at most `timeout_s` seconds. Blocks the
        thread. Returns False on timeout.
        """
        deadline = time.monotonic() + timeout_s
        while self._lines or self._busy:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def _append(self, line: _Line) -> None:
        self._lines.append(line)
        self._held_bytes += len(line.data)

    def _report(self) -> None:
        if self._unreported:
            count, self._unreported = self._unreported, 0
            self._append(_Line(self.render_dropped(count), count))

    def _start(self) -> None:
        """Start the thread with every signal blocked: signals belong to the main thread."""
        thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
            self._thread = thread
        except (RuntimeError, MemoryError):
            pass  # no thread can start now: the next line tries again
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def _run(self) -> None:
        while True:
            with suppress(Empty):
                self._wake.get(timeout=_RETRY_S if self._unreported or self._rest else None)
            with self._lock:
                self._woken = False
                self._busy = True
                if not self._lines:
                    self._report()
                lines, self._lines = self._lines, []
            left: Sequence[_Line] = lines
            with suppress(MemoryError):
                left = self._write(lines)
            with self._lock:
                self._held_bytes -= sum(len(line.data) for line in lines)
                self._unreported += sum(line.reports or 1 for line in left)
                self.dropped_total += sum(not line.reports for line in left)
                self._busy = False
            time.sleep(_GATHER_S)

    def _write(self, lines: Sequence[_Line]) -> Sequence[_Line]:
        """Write the lines. Returns those that were not written."""
        try:
            self._finish_line()
        except OSError:
            return lines
        at = 0
        while at < len(lines):
            end, size = at + 1, len(lines[at].data)
            while end < len(lines) and size + len(lines[end].data) <= _ATOMIC_BYTES:
                size += len(lines[end].data)
                end += 1
            data = b"".join([line.data for line in lines[at:end]])
            sent = self._send(data)
            if sent < len(data):
                written = data.count(b"\n", 0, sent)
                begun = data[sent - 1 : sent] != b"\n" if sent else False
                if begun:
                    self._rest = data[sent : data.index(b"\n", sent) + 1]
                    self._rest_at = self._size()
                return lines[at + written + begun :]
            at = end
        return ()

    def _finish_line(self) -> None:
        """End a partly written line. Raises `OSError`.

        Writes its rest if the file still ends with its beginning. Otherwise the line is lost: a
        regular file has grown by other processes' lines, and any other file gets a line feed.
        """
        if not self._rest:
            return
        size = self._size()
        if size < 0 or size != self._rest_at:
            with self._lock:
                self._unreported += 1
                self.dropped_total += 1
            self._rest = b"\n" if size < 0 else b""
        self._rest = self._rest[self._send(self._rest) :]
        self._rest_at = self._size()
        if self._rest:
            raise OSError

    def _send(self, data: bytes) -> int:
        """Write `data`. Blocks. Returns the number of bytes written, which is lower if the file
        refuses the rest.
        """
        assert self._fd is not None
        sent = 0
        while sent < len(data):
            try:
                sent += os.write(self._fd, data[sent:])
            except BlockingIOError:  # another process made it non-blocking
                self._wait_writable()
            except OSError:
                break
        return sent

    def _wait_writable(self) -> None:
        assert self._fd is not None
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(_RETRY_S * 1000)
        time.sleep(_GATHER_S)  # in case it is reported as writable and is not

    def _size(self) -> int:
        assert self._fd is not None
        try:
            status = os.fstat(self._fd)
        except OSError:
            return -1
        return status.st_size if stat.S_ISREG(status.st_mode) else -1
