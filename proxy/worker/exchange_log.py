"""Which `exchange` lines are written, with which fields and at which level.

A generation compiles `log` once. Failures are always written, at level warning. Of successful
exchanges a share is written if `log.sample` is below 1: which, depends on the id only, so that all
proxies on the way of a request make the same choice.
"""

from __future__ import annotations

from logging import INFO, WARNING
from typing import Any
from zlib import crc32

from ..config import Log
from .logs import output

__all__ = ["ExchangeLog"]

_IDS = 1 << 32


class ExchangeLog:
    """Writes the `exchange` lines of one configuration."""

    __slots__ = ("_below", "_fields", "_sample", "request_id_header")

    def __init__(self, settings: Log) -> None:
        self._fields: frozenset[str] | None = (
            None if settings.fields is None else frozenset(settings.fields)
        )
        self._sample = settings.sample
        self._below = round(settings.sample * _IDS)
        name = settings.request_id_header
        self.request_id_header = None if name is None else name.lower().encode("ascii")
        """The field that has the id of a request; None: no field."""

    def takes(self, *, failed: bool, succeeded: bool, id: str) -> bool:
        """Whether the line of an exchange is written. `id`: its trace id, or else its request id."""
        if output.level > (WARNING if failed else INFO):
            return False
        return not succeeded or self._below == _IDS or crc32(id.encode()) < self._below

    def write(self, line: dict[str, Any], *, failed: bool, succeeded: bool) -> None:
        """Write a line that `takes` has accepted, with the fields that `log.fields` lists."""
        fields = self._fields
        chosen = line
        if fields is not None:
            chosen = {name: value for name, value in line.items() if name in fields}
        if succeeded and self._below != _IDS:
            chosen["sample"] = self._sample
        level = "warning" if failed else "info"
        output.put({**chosen, "event": "exchange", "level": level})
