"""`record`: write each event stream, with its timing, to a tape that `replay` plays back.

    interceptors:
      - name: record
        use: record
        options: {directory: /var/lib/weirpool/tapes}

A tape is a file of JSON lines: a `TapeHeader`, a `TapeLine` for each event, and one with the end. A
tape with a lost line has no end. Hooks only queue lines (`toolkit.jsonl`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from secrets import token_hex
from typing import Annotated, Literal

import msgspec
import trio

from interceptors import (
    Event,
    EventResult,
    Interceptor,
    Outcome,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)

from .framing import StreamTail
from .toolkit.jsonl import Line, LineWriter, encode_line

__all__ = ["Record", "RecordOptions", "TapeHeader", "TapeLine"]

_DATA = re.compile(rb"(?:\A|[\r\n])data(?:[:\r\n])")


class TapeHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a tape."""

    weirpool_tape: Literal[1] = 1
    """The version of the format."""
    method: str
    path: str
    """Without the query."""
    status: Annotated[int, msgspec.Meta(ge=200, le=999)]
    headers: dict[str, str]
    """Of the response: only Content-Type is recorded."""


class TapeLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event, or with `end`, as the last line, the outcome of the exchange."""

    at: Annotated[float, msgspec.Meta(ge=0)]
    """Seconds since the response head."""
    event: str | None = None
    data: str | None = None
    """None if the event has no data line: clients do not dispatch it."""
    id: str | None = None
    retry: int | None = None
    end: Outcome | None = None


class RecordOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where to write tapes."""

    directory: Annotated[str, msgspec.Meta(min_length=1)]
    """Created if missing. Each tape is a file in it, named by its time (UTC) and a random id."""


class Record(Interceptor):
    """Records streams. Changes nothing, and its failures stop no stream."""

    on_error = "skip"

    def __init__(self, options: RecordOptions) -> None:
        self._directory = options.directory
        self._writer = LineWriter(_Tapes(options.directory))

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        return self._writer.opened()

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{token_hex(4)}.jsonl"
        return _RecordStream(_Tape(os.path.join(self._directory, name)), self._writer)


class _Tape:
    """The file of one stream."""

    __slots__ = ("error", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.error: OSError | None = None
        """Why a line could not be written. No later line is written after it."""


class _RecordStream(StreamInterceptor):
    def __init__(self, tape: _Tape, writer: LineWriter) -> None:
        self._tape = tape
        self._writer = writer
        self._began: float | None = None
        self._whole = True

    def on_start(self, head: ResponseHead) -> None:
        self._began = trio.current_time()
        content_type = head.headers.get("content-type")
        request = head.request
        self._put(
            TapeHeader(
                method=request.method,
                path=request.path,
                status=head.status,
                headers={} if content_type is None else {"content-type": content_type},
            )
        )

    def on_event(self, event: Event) -> EventResult:
        raw = event.raw
        if _is_whole(raw):  # clients drop a last event without its empty line
            data = event.data
            self._put(
                TapeLine(
                    at=self._at(),
                    event=event.event,
                    data=data if data or _DATA.search(raw) else None,
                    id=event.id,
                    retry=event.retry,
                )
            )
        return event

    def on_end(self, outcome: Outcome) -> None:
        if self._began is not None:
            self._put(TapeLine(at=self._at(), end=outcome))

    def _at(self) -> float:
        assert self._began is not None
        return round(trio.current_time() - self._began, 6)

    def _put(self, value: TapeHeader | TapeLine) -> None:
        if self._whole and self._tape.error is None:
            self._whole = self._writer.put(encode_line(value), self._tape)


class _Tapes:
    """The sink of all tapes. Keeps no file open: a stream can be silent for hours."""

    def __init__(self, directory: str) -> None:
        self.path = directory

    def open(self) -> None:
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")

    def write(self, lines: Sequence[Line]) -> tuple[Sequence[Line], OSError | None]:
        tapes: dict[_Tape, list[Line]] = {}
        for line in lines:
            if line.target is not None:  # a count of dropped lines belongs to no tape
                tapes.setdefault(line.target, []).append(line)
        lost: list[Line] = []
        why: OSError | None = None
        for tape, own in tapes.items():
            if tape.error is None:
                try:
                    with open(tape.path, "ab", opener=_open_private) as file:
                        file.write(b"".join([line.data for line in own]))
                except OSError as error:
                    tape.error = error
            if tape.error is not None:
                lost += own
                why = tape.error
        return lost, why

    def close(self) -> None:
        """Nothing is open."""


def _is_whole(raw: bytes) -> bool:
    if raw.endswith(b"\n\n"):
        return True
    tail = StreamTail()
    tail.remember(raw, 0, len(raw))
    return tail.is_whole


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
