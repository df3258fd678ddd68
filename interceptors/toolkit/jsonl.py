"""JSON lines to files. The event loop never waits for a disk.

`LineWriter` queues lines from hooks; its task passes them in batches to a `Sink` in a thread.
`RotatingFile` is the sink for one file. Lines that the disk does not take in time are dropped and
counted; the line `{"event":"lines_dropped","count":3}` replaces three of them. Must not know what
the lines contain.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog
import trio

from interceptors import InterceptorError

__all__ = ["LEAVE_S", "MAX_HELD_BYTES", "Line", "LineWriter", "RotatingFile", "Sink", "encode_line"]

MAX_HELD_BYTES = 8 << 20
"""Limit for queued lines and those being written. Lines beyond it are dropped."""

LEAVE_S = 5.0
"""Deadline for the queue at the end; less than the proxy gives all lifespans together."""

_GATHER_S = 0.1  # a batch costs a thread switch, about three events: at most ten a second
_encode = msgspec.json.Encoder().encode


def encode_line(value: Any) -> bytes:
    """One value as a line, with its line end. Raises what msgspec raises for an invalid value."""
    return _encode(value) + b"\n"


class Line(NamedTuple):
    """One line for a sink."""

    data: bytes
    target: Any = None
    """Where it belongs, for a sink with several places."""
    stands_for: int = 1
    """How many lines are lost with it: more than one for a count of dropped lines."""


class Sink(Protocol):
    """Where lines go. Methods block, in one thread at a time: `open` first, `close` last."""

    @property
    def path(self) -> str:
        """Its name, for errors and logs."""

    def open(self) -> None:
        """Raises `OSError`."""

    def write(self, lines: Sequence[Line]) -> tuple[Sequence[Line], OSError | None]:
        """Write the lines in order. Return those that were not written, and why."""

    def close(self) -> None:
        """No more lines follow. Must not raise."""


class LineWriter:
    """Queues lines while `opened`, and writes them in order."""

    def __init__(self, sink: Sink, *, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._sink = sink
        self._max_held_bytes = max_held_bytes
        self._lines: list[Line] = []
        self._queued_bytes = 0
        self._writing: Sequence[Line] = ()  # in the thread
        self._writing_bytes = 0
        self._dropped = 0  # lines that no `lines_dropped` line counts yet
        self._in_trouble = False  # lines are being dropped, and this was logged
        self._closing = False
        self._wake = trio.Event()  # set if there is something to write
        self._hurry = trio.Event()  # set to write at once

    def put(self, data: bytes, target: Any = None) -> bool:
        """Queue a line. Return False if the queue is full: the line is dropped. Never blocks."""
        size = len(data)
        held_bytes = self._queued_bytes + self._writing_bytes
        if held_bytes + size > self._max_held_bytes:
            self._drop(1, "the disk does not keep up")
            return False
        if self._dropped:
            self._queue_dropped()
        self._lines.append(Line(data, target))
        self._queued_bytes += size
        self._wake.set()
        if held_bytes + size > self._max_held_bytes // 2:
            self._hurry.set()
        return True

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the sink and run the writing task. Enter and leave it in one task.

        Leaving waits until the queue is written, also when cancelled, for at most `LEAVE_S`. A
        thread that still hangs then is abandoned, and `lines_lost` is logged with the number of
        lines. Raises `InterceptorError` if the sink cannot be opened.
        """
        try:
            await trio.to_thread.run_sync(self._sink.open)
        except OSError as error:
            raise InterceptorError(
                f"cannot write to {self._sink.path!r}: {error.strerror or error}"
            ) from error
        self._closing = False
        scope = trio.CancelScope(shield=True)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, scope)
            try:
                yield
            except Exception as error:
                failure = error  # raised outside of the nursery, which would wrap it in a group
            finally:
                if self._dropped:
                    self._queue_dropped()
                scope.deadline = trio.current_time() + LEAVE_S
                self._closing = True
                self._wake.set()
                self._hurry.set()
        if failure is not None:
            raise failure

    async def _run(self, scope: trio.CancelScope) -> None:
        """Write until closed. Only the deadline of `scope` ends it earlier."""
        # A separate limiter: a slow disk must not block other threads of the process.
        limiter = trio.CapacityLimiter(1)
        with scope:
            while self._lines or not self._closing:
                await self._wake.wait()
                with trio.move_on_after(_GATHER_S):
                    await self._hurry.wait()
                if not self._closing:
                    self._wake, self._hurry = trio.Event(), trio.Event()
                await self._write(limiter)
            await trio.to_thread.run_sync(self._sink.close, abandon_on_cancel=True, limiter=limiter)
        lost = self._dropped + sum(line.stands_for for line in (*self._writing, *self._lines))
        self._forget()
        if lost:
            self._log("lines_lost", count=lost)

    async def _write(self, limiter: trio.CapacityLimiter) -> None:
        self._writing, self._lines = self._lines, []
        self._writing_bytes, self._queued_bytes = self._queued_bytes, 0
        left, error = await trio.to_thread.run_sync(
            self._sink.write, self._writing, abandon_on_cancel=True, limiter=limiter
        )
        self._writing, self._writing_bytes = (), 0
        if left:
            self._drop(sum(line.stands_for for line in left), str(error))
        elif not self._dropped:
            self._in_trouble = False

    def _drop(self, count: int, why: str) -> None:
        """Count lost lines. Only the first loss is logged."""
        self._dropped += count
        if not self._in_trouble:
            self._in_trouble = True
            self._log("lines_dropped", reason=why)

    def _queue_dropped(self) -> None:
        line = Line(
            encode_line({"event": "lines_dropped", "count": self._dropped}),
            stands_for=self._dropped,
        )
        self._lines.append(line)
        self._queued_bytes += len(line.data)
        self._dropped = 0

    def _forget(self) -> None:
        self._lines, self._writing = [], ()
        self._queued_bytes = self._writing_bytes = self._dropped = 0
        self._in_trouble = False
        self._wake, self._hurry = trio.Event(), trio.Event()

    def _log(self, event: str, **details: Any) -> None:
        structlog.get_logger("interceptors").warning(event, path=self._sink.path, **details)


class RotatingFile:
    """One file, rotated before it would exceed `max_bytes`: `path` becomes `path.1`, and so on up
    to `keep`.

    `{pid}` in the path is the process id. Only the owner can read new files. A FIFO or device is
    never rotated. A line that a full disk or a crash has cut gets a line end, so that the next line
    is readable.
    """

    def __init__(self, path: str, *, max_bytes: int, keep: int) -> None:
        self._template = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0
        self._regular = True
        self._torn = False  # the file ends inside a line

    @property
    def path(self) -> str:
        return self._template.replace("{pid}", str(os.getpid()))

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        status = os.fstat(self._fd)
        self._regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size if self._regular else 0
        self._torn = self._size > 0 and os.pread(self._fd, 1, self._size - 1) != b"\n"

    def write(self, lines: Sequence[Line]) -> tuple[Sequence[Line], OSError | None]:
        at = 0
        try:
            while at < len(lines):
                data = self._make_room(lines, at)
                sent = 0
                try:
                    if self._torn:
                        self._size += os.write(self._fd, b"\n")
                        self._torn = False
                    with memoryview(data) as view:
                        while sent < len(data):
                            sent += os.write(self._fd, view[sent:])
                finally:
                    self._size += sent
                    self._torn = self._torn or (sent > 0 and data[sent - 1 : sent] != b"\n")
                    at += data.count(b"\n", 0, sent)
        except OSError as error:
            return lines[at:], error
        return (), None

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def _make_room(self, lines: Sequence[Line], at: int) -> bytes:
        """As many lines from `at` on as fit. Rotates if not even one fits."""
        if self._fd < 0:
            self.open()  # the last rotation could not open it
        if not self._regular:
            return b"".join([line.data for line in lines[at:]])
        if self._size and self._size + len(lines[at].data) > self._max_bytes:
            self._rotate()
        size, fits = self._size + len(lines[at].data), at + 1
        while fits < len(lines) and size + len(lines[fits].data) <= self._max_bytes:
            size += len(lines[fits].data)
            fits += 1
        return b"".join([line.data for line in lines[at:fits]])

    def _rotate(self) -> None:
        path = self.path
        for number in range(self._keep - 1, 0, -1):
            with suppress(FileNotFoundError):
                os.replace(f"{path}.{number}", f"{path}.{number + 1}")
        with suppress(FileNotFoundError):
            os.replace(path, f"{path}.1")
        self.close()
        self.open()
