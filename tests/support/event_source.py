"""What an `EventSource` makes of a stream (WHATWG HTML, sections 9.2.5 and 9.2.6), read anew,
without any of the proxy's code.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Dispatched", "comments", "dispatched"]


class Dispatched(NamedTuple):
    type: str
    data: str
    last_event_id: str


def _lines(stream: bytes) -> list[str]:
    """The whole lines, without what follows the last line end."""
    return re.split(r"\r\n|\r|\n", stream.decode("utf-8", "replace").removeprefix("\ufeff"))[:-1]


def dispatched(stream: bytes) -> list[Dispatched]:
    """The events that a page is given."""
    events = []
    data: list[str] = []
    kind = last_id = ""
    for line in _lines(stream):
        if not line:
            if data:
                events.append(Dispatched(kind or "message", "\n".join(data), last_id))
            data, kind = [], ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


def comments(stream: bytes) -> list[str]:
    """The comment lines."""
    return [line for line in _lines(stream) if line.startswith(":")]
