"""A tape: one recorded stream as JSON Lines, sans I/O. `record` writes it, `replay` reads it.

    {"weirpool_tape": 1, "method": "POST", "path": "/v1/chat", "status": 200, "media_type": "text/event-stream"}
    {"at": 0.012, "data": "{\\"delta\\":\\"He\\"}"}
    {"at": 0.051, "event": "done", "id": "7", "retry": 50, "data": ""}
    {"at": 0.052, "end": "completed"}

`at` is seconds since the response's head. Neither headers nor the query nor the request's body are there: they hold credentials.
Comments are not there, either.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from .api import Outcome
from .event import Event
from .message import ResponseHead

__all__ = ["Tape", "end_line", "event_line", "head_line", "read_tape"]

VERSION = 1


class _Head(msgspec.Struct):
    weirpool_tape: int
    method: str
    path: str
    status: int
    media_type: str = "text/event-stream"


class _Line(msgspec.Struct):
    at: float
    event: str | None = None
    id: str | None = None
    retry: int | None = None
    data: str | None = None
    end: Outcome | None = None


@dataclass(frozen=True)
class Tape:
    status: int
    events: tuple[tuple[float, Event], ...]
    """Each with its time, in seconds since the head."""
    ended_at: float
    outcome: Outcome | None
    """None for a tape that has no end: whoever recorded it was stopped."""


def head_line(method: str, path: str, head: ResponseHead) -> dict[str, Any]:
    return {
        "weirpool_tape": VERSION,
        "method": method,
        "path": path,
        "status": head.status,
        "media_type": head.media_type,
    }


def event_line(at: float, event: Event) -> dict[str, Any]:
    line: dict[str, Any] = {"at": round(at, 6)}
    for name, value in (("event", event.event), ("id", event.id), ("retry", event.retry)):
        if value is not None:
            line[name] = value
    data = event.data
    # An event without data is another than one with empty data.
    if data or any(item.startswith(b"data") for item in event.raw.splitlines()):
        line["data"] = data
    return line


def end_line(at: float, outcome: Outcome) -> dict[str, Any]:
    return {"at": round(at, 6), "end": outcome.value}


def read_tape(lines: Iterable[bytes]) -> Tape:
    """Raises `ValueError`, which names the line, for what is no tape."""
    head: _Head | None = None
    events: list[tuple[float, Event]] = []
    at = 0.0
    for number, text in enumerate(lines, 1):
        try:
            if head is None:
                head = msgspec.json.decode(text, type=_Head)
                if head.weirpool_tape != VERSION:
                    raise ValueError(f"this is a tape of version {head.weirpool_tape}, expected {VERSION}")
                continue
            line = msgspec.json.decode(text, type=_Line)
            if line.at < at:
                raise ValueError(f"at is {line.at}, before the line above it")
            at = line.at
            if line.end is not None:
                return Tape(head.status, tuple(events), at, line.end)
            events.append((at, Event(line.data, event=line.event, id=line.id, retry=line.retry)))
        except ValueError as error:  # msgspec's are, too
            raise ValueError(f"line {number}: {error}") from None
    if head is None:
        raise ValueError("line 1: the file is empty")
    return Tape(head.status, tuple(events), at, None)
