"""JSON Lines files, written without holding the loop: hooks queue lines, one task writes them in a thread.

What the disk cannot take in time is dropped, counted and said so in the file itself; no hook ever waits for a disk. Files are
opened for each batch, so that nothing is held open between them, and who moves or deletes a file does no harm.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import trio

from pools import encode_json

__all__ = ["LineWriter", "expand_path", "now_utc"]

MAX_QUEUED_BYTES = 8 * 1024 * 1024
_FLUSH_S = 5.0


def expand_path(path: str) -> Path:
    """A path from the configuration; `{pid}` in it is the process's number, so that several workers need not share a file."""
    return Path(path.replace("{pid}", str(os.getpid())))


def now_utc() -> str:
    """The time, as RFC 3339 writes it, in UTC and to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LineWriter:
    """Appends lines to files. `open` must be entered while lines are written; leaving it writes what is queued."""

    def __init__(self, *, max_bytes: int | None = None, keep: int = 0, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        """`max_bytes`: a file that would grow beyond it is renamed first, `file.1` being the newest of `keep` old ones."""
        self._max_bytes = max_bytes
        self._keep = keep
        self._max_queued_bytes = max_queued_bytes
        self._queue: list[tuple[Path, bytes]] = []
        self._queued_bytes = 0
        self._wanted = trio.Event()
        self._closing = False
        self._missing: dict[Path, int] = {}  # lines that were dropped, and have not been said to be

    def write(self, path: Path, line: Mapping[str, Any]) -> None:
        """Queue a line. Never blocks and raises nothing but what JSON cannot say (`TypeError`); a full queue drops the line."""
        data = encode_json(line) + b"\n"
        if self._queued_bytes + len(data) > self._max_queued_bytes:
            self._drop(path, 1, "the disk is too slow")
            return
        self._queue.append((path, data))
        self._queued_bytes += len(data)
        self._wanted.set()

    @asynccontextmanager
    async def open(self, *paths: Path) -> AsyncIterator[None]:
        """Write until left; then write the rest, for a bounded time. Raises `OSError` if one of `paths` cannot be written."""
        for path in paths:
            await trio.to_thread.run_sync(_append, path, b"")
        async with trio.open_nursery() as nursery:
            # What cancels whoever has opened this must not cancel the writing of what is queued; that has a deadline of its own.
            scope, done = trio.CancelScope(shield=True), trio.Event()
            nursery.start_soon(self._run, scope, done)
            try:
                yield
            finally:
                self._closing = True
                self._wanted.set()
                with trio.CancelScope(shield=True), trio.move_on_after(_FLUSH_S):
                    await done.wait()
                scope.cancel()

    async def _run(self, scope: trio.CancelScope, done: trio.Event) -> None:
        with scope:
            while not self._closing or self._queue:
                await self._wanted.wait()
                self._wanted = trio.Event()
                await self._write_batch()
        done.set()

    async def _write_batch(self) -> None:
        batch, self._queue = self._queue, []
        files: dict[Path, list[bytes]] = {}
        for path, data in batch:
            files.setdefault(path, []).append(data)
        for path, lines in files.items():
            missing = self._missing.pop(path, 0)
            said = [encode_json({"time": now_utc(), "event": "lines_dropped", "count": missing}) + b"\n"] if missing else []
            try:
                await trio.to_thread.run_sync(self._append, path, b"".join(said + lines), abandon_on_cancel=True)
            except OSError as error:
                self._missing[path] = missing
                self._drop(path, len(lines), error.strerror or str(error))
        self._queued_bytes -= sum(len(data) for _, data in batch)
        if self._queue or self._closing:
            self._wanted.set()

    def _append(self, path: Path, data: bytes) -> None:
        size = path.stat().st_size if path.exists() else 0
        if self._max_bytes is not None and size and size + len(data) > self._max_bytes:
            for number in range(self._keep - 1, 0, -1):
                if (older := _numbered(path, number)).exists():
                    older.replace(_numbered(path, number + 1))
            if self._keep:
                path.replace(_numbered(path, 1))
            else:
                path.unlink()
        _append(path, data)

    def _drop(self, path: Path, lines: int, why: str) -> None:
        if not self._missing.get(path):
            structlog.get_logger("interceptors").error("lines_dropped", path=str(path), why=why)
        self._missing[path] = self._missing.get(path, 0) + lines


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _append(path: Path, data: bytes) -> None:
    """Append, in one write; a new file is for its owner alone, for it may hold what others should not read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
