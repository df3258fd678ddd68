"""`TapeOf`: the events of one stream, as they arrived, as a tape for `replay`.

A tape that lacks something has no end, as with `record`. Sans I/O.
"""

from __future__ import annotations

from typing import Any

from interceptors import Outcome
from interceptors.record import TapeHeader, TapeLine
from interceptors.sse import parse_fields
from interceptors.toolkit.jsonl import encode_line

__all__ = ["TapeOf"]


class TapeOf:
    """The lines of one tape."""

    def __init__(self) -> None:
        self._begin: dict[str, Any] = {}
        self._head_at = self._last_at = 0.0
        self._whole = True
        self._has_header = False
        self.events = 0
        """Events on the tape."""

    def lines_of(self, kind: str, fields: dict[str, Any]) -> bytes:
        """What a message adds to the tape."""
        if kind == "begin":
            self._begin = fields
            self._whole = not fields.get("joined", False)
        elif kind == "lost":
            self._whole = False
        elif kind == "head":
            self._head_at, self._has_header = fields["at"], True
            content_type = fields.get("content_type") or "text/event-stream"
            return encode_line(
                TapeHeader(
                    method=self._begin.get("method", "GET"),
                    path=self._begin.get("path", "/"),
                    status=fields["status"],
                    headers={"content-type": content_type},
                )
            )
        elif kind == "event" and fields["stage"] == "upstream":
            return self._event(fields)
        elif kind == "end" and self._whole and self._has_header:
            return encode_line(TapeLine(at=self._at(fields), end=Outcome(fields["outcome"])))
        return b""

    def _event(self, fields: dict[str, Any]) -> bytes:
        if fields.get("cut") or fields.get("body"):
            self._whole = False
            return b""
        (text,) = fields["texts"]
        found = parse_fields(text.encode())
        self.events += 1
        return encode_line(
            TapeLine(
                at=self._at(fields),
                event=found.event,
                data=found.data,
                id=found.id,
                retry=found.retry,
            )
        )

    def _at(self, fields: dict[str, Any]) -> float:
        self._last_at = max(self._last_at, round(float(fields["at"]) - self._head_at, 6))
        return self._last_at
