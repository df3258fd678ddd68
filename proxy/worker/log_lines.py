"""The text of a log line: JSON or console, tracebacks, values that cannot be rendered.

`render_json` and `Console.render` may raise for odd values; `printable` makes any event renderable.
This module writes nothing and keeps no state.
"""

from __future__ import annotations

import json
import math
import re
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import msgspec

from interceptors import InterceptorError
from interceptors.errors import HookTooSlow, Misused

__all__ = [
    "Console",
    "Event",
    "as_text",
    "format_exception",
    "is_object",
    "printable",
    "render_json",
    "safe",
]

Event = MutableMapping[str, Any]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPES = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|(\\ud[89a-f]..)")
"""The group: half of a surrogate pair. jq refuses a line with one, so its escape is shown as text."""
_NEEDS_QUOTES = re.compile("[\\s=\"']")
_COLOURS = {
    "debug": "\x1b[32m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}
_BRIGHT, _DIM, _KEY, _VALUE, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[35m", "\x1b[0m"


def printable(event: Event) -> Event:
    """Return the event with every odd value as text: circular, NaN, a failing `__repr__`."""
    return {safe(key): value if _is_plain(value) else safe(value) for key, value in event.items()}


def format_exception(event: Event, *, hide_content: bool) -> None:
    """Like structlog, turn `exc_info` into `exception`: a traceback without values of variables,
    which may be secret. `hide_content`: also without messages and source of interceptors.
    """
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        # An interceptor's exception and its source lines may contain content.
        hides = hide_content and event.get("event") == "interceptor_failed"
        event["exception"] = (
            _frames_of(error) if hides else "".join(traceback.format_exception(error)).rstrip("\n")
        )


def _frames_of(error: BaseException) -> str:
    """Return a traceback of types and places, with messages only of the interceptors' package, and
    without source text.
    """
    rows: list[str] = []
    shown: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in shown:
        shown.add(id(cause))
        own = isinstance(cause, InterceptorError | Misused | HookTooSlow)
        frames = [
            f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'
            for frame, line in traceback.walk_tb(cause.__traceback__)
        ]
        rows = [
            *frames,
            f"{type(cause).__module__}.{type(cause).__qualname__}" + (f": {cause}" if own else ""),
            *rows,
        ]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join(rows)


def safe(value: object) -> str:
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _is_plain(value: object) -> bool:
    return (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def is_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def render_json(event: Event) -> str:
    try:
        line = msgspec.json.encode(event, enc_hook=_jsonable)
    except Exception:
        line = b"\xff"
    if line.isascii():
        return line.decode("ascii")
    # Its escapes keep control characters beyond ASCII out of a terminal.
    text = json.dumps(event, default=_jsonable, allow_nan=False, separators=(",", ":"))
    return _ESCAPES.sub(lambda found: f"\\{found[0]}" if found[1] else found[0], text)


def _jsonable(value: object) -> object:
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return repr(value)


class Console:
    """Renders lines for a terminal. Everything except its own colours and line ends goes through
    `_escape`.
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def render(self, event: Event) -> str:
        fields = dict(event)
        fields.pop("pid", None)  # a terminal shows one process
        at, level, name = (as_text(fields.pop(key, "")) for key in ("timestamp", "level", "event"))
        blocks = [as_text(fields.pop(key)) for key in ("exception", "stack") if fields.get(key)]
        line = f"{self._paint(_DIM, at)} [{self._paint(_COLOURS.get(level, ''), f'{level:<9}')}] "
        line += self._paint(_BRIGHT, f"{name:<30}" if fields else name)
        for key in sorted(fields, key=str):
            line += (
                f" {self._paint(_KEY, as_text(key))}={self._paint(_VALUE, _quoted(fields[key]))}"
            )
        # Indented, so that an exception's text cannot imitate a log line.
        for block in blocks:
            line += "".join(f"\n    {self._paint('', row)}" for row in block.split("\n"))
        return line

    def _paint(self, colour: str, text: str) -> str:
        text = _escape(text)
        return f"{colour}{text}{_RESET}" if self._colours and colour else text


def _escape(text: str) -> str:
    """Escape terminal control characters: C0, DEL, C1, line and paragraph separators, surrogate
    halves.
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def as_text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return (
        repr(text) if isinstance(value, str) and (not text or _NEEDS_QUOTES.search(text)) else text
    )
