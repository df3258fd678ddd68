"""Writing lines of JSON to files without ever letting the event loop wait for a disk.

`LineWriter` takes lines from hooks, at once or not at all, and one task of its own hands them, many
at a time, to a `Sink` in a thread. `RotatingFile` is the sink for one file. What the disk does not
take in time is dropped and counted, and the count is a line itself:
`{"event":"lines_dropped","count":3}` stands where three lines would. It knows nothing of what the
lines say.
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
"""Lines that wait for the disk, or are on their way to it, hold no more than this; what comes then
is dropped.
"""

LEAVE_S = 5.0
"""What is queued at the end has this long to be written; less than what the proxy gives all
lifespans together.
"""

_GATHER_S = 0.1  # a batch costs a thread's switch, about as much as three events: so ten a second at most, unless there is much
_encode = msgspec.json.Encoder().encode


def encode_line(value: Any) -> bytes:
    """One value as a line, its end included. Raises what msgspec raises for a value that JSON
    cannot say.
    """
    return _encode(value) + b"\n"


class Line(NamedTuple):
    """One line on its way to a sink."""

    data: bytes
    target: Any = None
    """Where it belongs, for a sink that has more than one place."""
    stands_for: int = 1
    """How many lines are lost with it: more than one when it is the count of lines that were."""


class Sink(Protocol):
    """Where lines go. Each method blocks and is called in a thread, never two at a time, `open`
    first and `close` last.
    """

    @property
    def path(self) -> str:
        """What a person would call it."""

    def open(self) -> None:
        """Make ready. Raises `OSError`."""

    def write(self, lines: Sequence[Line]) -> tuple[Sequence[Line], OSError | None]:
        """Write the lines, in their order. Those that were not written, and why."""

    def close(self) -> None:
        """No more will come. Raises nothing."""


class LineWriter:
    """Takes lines while `opened`, and writes them in the order in which they came."""

    def __init__(self, sink: Sink, *, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._sink = sink
        self._max_held_bytes = max_held_bytes
        self._lines: list[Line] = []
        self._queued_bytes = 0
        self._writing: Sequence[Line] = ()  # with the thread
        self._writing_bytes = 0
        self._dropped = 0  # lines of which no line tells yet
        self._in_trouble = False  # and the log says so
        self._closing = False
        self._wake = trio.Event()  # there is something to write
        self._hurry = trio.Event()  # do not wait for more

    def put(self, data: bytes, target: Any = None) -> bool:
        """Queue a line. False when the disk is too far behind: the line is dropped and counted.
        Never blocks.
        """
        size = len(data)
        held_bytes = self._queued_bytes + self._writing_bytes
        if held_bytes + size > self._max_held_bytes:
            self._drop(1, "the disk does not keep up")
            return False
        if self._dropped:
            self._tell_dropped()
        self._lines.append(Line(data, target))
        self._queued_bytes += size
        self._wake.set()
        if held_bytes + size > self._max_held_bytes // 2:
            self._hurry.set()
        return True

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the sink and run the task that writes; to be entered and left in one task.

        Leaving waits until everything queued is written, also when cancelled, but no longer than
        `LEAVE_S`: a thread that hangs in a write by then is left alone, and the log says how many
        lines may be lost. Raises `InterceptorError` when the sink cannot be opened.
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
                failure = (
                    error  # raised below, outside of the nursery, which would wrap it in a group
                )
            finally:
                if self._dropped:
                    self._tell_dropped()
                scope.deadline = trio.current_time() + LEAVE_S
                self._closing = True
                self._wake.set()
                self._hurry.set()
        if failure is not None:
            raise failure

    async def _run(self, scope: trio.CancelScope) -> None:
        """Write until closed, in a scope that only its deadline ends."""
        # A limiter of its own: others of the process must not be kept waiting by this disk, nor
        # this by them.
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
        """Count lines that are lost; the first of them has its line in the log."""
        self._dropped += count
        if not self._in_trouble:
            self._in_trouble = True
            self._log("lines_dropped", reason=why)

    def _tell_dropped(self) -> None:
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
    """One file, begun anew before it would grow over `max_bytes`: `path` becomes `path.1`, that
    `path.2`, and so on up to `keep`.

    `{pid}` in the path is the process's id. New files can be read by their owner only. What is no
    regular file (a FIFO, `/dev/stdout`) is never rotated. A line cut short by a full disk or a
    crash is ended, so that it spoils no other.
    """

    def __init__(self, path: str, *, max_bytes: int, keep: int) -> None:
        self._template = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0
        self._regular = True
        self._torn = False  # the file ends within a line

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
        """As many lines from `at` on as the file has room for, in a file that has room for one."""
        if self._fd < 0:
            self.open()  # it could not be opened when it was to be rotated
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
