"""`record`: a tape of each event stream, with its timing, as a JSON Lines file that `replay` plays back.

    interceptors:
      - name: record
        use: interceptors.record:Record
        options: {directory: /var/lib/weirpool/tapes}

A tape's lines: a head, events, an end; `tape` says what is in them. See docs/builtins/record.md.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trio

from .api import EventResult, Interceptor, Outcome, StreamContext, StreamInterceptor
from .event import Event
from .jsonl import LineWriter
from .message import ResponseHead
from .tape import end_line, event_line, head_line

__all__ = ["Options", "Record"]


@dataclass(frozen=True)
class Options:
    directory: str
    """Where tapes go, one file for each stream; made if it is not there."""


class Record(Interceptor):
    """Writes a tape for each event stream. What interceptors before it made of the events is what it sees."""

    def __init__(self, options: Options) -> None:
        self._directory = Path(options.directory)
        self._writer = LineWriter()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        await trio.to_thread.run_sync(lambda: self._directory.mkdir(mode=0o700, parents=True, exist_ok=True))
        async with self._writer.open():
            yield

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.jsonl"
        return _RecordStream(self._writer, self._directory / name, context)


class _RecordStream(StreamInterceptor):
    def __init__(self, writer: LineWriter, path: Path, context: StreamContext) -> None:
        self._writer = writer
        self._path = path
        self._context = context
        self._began: float | None = None

    def on_start(self, head: ResponseHead) -> None:
        self._began = trio.current_time()
        self._writer.write(self._path, head_line(self._context.method, self._context.path, head))

    def on_event(self, event: Event) -> EventResult:
        self._writer.write(self._path, event_line(self._at, event))
        return event

    def on_end(self, outcome: Outcome) -> None:
        if self._began is not None:  # else it never began, and there is nothing to play
            self._writer.write(self._path, end_line(self._at, outcome))

    @property
    def _at(self) -> float:
        return 0.0 if self._began is None else trio.current_time() - self._began
