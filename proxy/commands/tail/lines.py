"""`Lines`: the messages of `/inspect/stream` as lines for people.

Content is escaped: a stream must not control the terminal. Sans I/O.
"""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["Lines", "escaped"]

_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn")
_LONGEST = 2000
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """A text on one line, with control and format characters escaped, and a bounded length."""
    cut = len(text) - _LONGEST
    if cut > 0:
        text = text[:_LONGEST]
    if not text.isprintable():
        text = "".join(
            char if unicodedata.category(char) not in _ESCAPED else _NAMED.get(char, _escape(char))
            for char in text
        )
    return f"{text}… ({cut} more)" if cut > 0 else text


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode() if char != "\x7f" else "\\x7f"


class _Event:
    """One event, until it leaves for the client."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.texts: list[str] = []
        self.stages: list[str] = []


class Lines:
    """The lines of all streams of a view."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}
        self._events: dict[str, _Event] = {}
        self._last: dict[str, float] = {}

    def of(self, kind: str, fields: dict[str, Any]) -> list[str]:
        """The lines for a message."""
        exchange = escaped(str(fields.get("exchange", "")))
        if kind == "event":
            return self._event(exchange, fields)
        if kind == "begin":
            what = f"{fields['method']} {fields['path']}"
            self._paths[exchange] = what
            late = f"  {fields['age']:.1f} s old" if fields.get("joined") else ""
            return [_line(exchange, "begin", f"{what}  {fields['client']}{late}")]
        if kind == "head":
            by = fields.get("answered_by")
            through = f"answered by {by}" if by else ", ".join(fields.get("interceptors", ()))
            text = f"{fields['status']} {fields.get('content_type', '')}"
            return [_line(exchange, "head", f"{text}  {through}".rstrip())]
        if kind == "lost" and "worker" in fields:
            return [
                _line(exchange, "lost", f"worker {fields['worker']} has ended or does not answer")
            ]
        if kind == "lost":
            what = ", ".join(
                f"{value} {name}" for name, value in fields.items() if name != "exchange"
            )
            return [_line(exchange, "lost", f"{what}: this view reads too slowly")]
        if kind == "end":
            return [self._end(exchange, fields)]
        return []

    def _end(self, exchange: str, fields: dict[str, Any]) -> str:
        self._events.pop(exchange, None)
        self._last.pop(exchange, None)
        status = fields.get("status")
        parts = [
            str(fields.get("outcome")),
            "-" if status is None else str(status),
            f"{fields.get('duration', fields['at']):.3f} s",
            f"{fields.get('bytes', 0)} bytes",
            self._paths.pop(exchange, ""),
            *(str(fields[name]) for name in ("interceptor", "error") if fields.get(name)),
        ]
        return _line(exchange, "end", "  ".join(parts))

    def _event(self, exchange: str, fields: dict[str, Any]) -> list[str]:
        stage, what, texts = fields["stage"], fields["what"], fields.get("texts", [])
        event = self._events.get(exchange)
        if event is None or stage == "upstream":
            event = self._events[exchange] = _Event(fields["at"])
            event.texts = texts
        if stage not in ("upstream", "client"):
            if what != "unchanged":
                problem = f": {fields['problem']}" if "problem" in fields else ""
                event.stages.append(f"{stage} {what}{problem} ({fields.get('us', 0):.0f} us)")
            return []
        if stage == "upstream":
            return []
        del self._events[exchange]
        gap_s = event.at - self._last.get(exchange, event.at)
        self._last[exchange] = event.at
        shown = _meaning(fields.get("parts", [])) or [
            _data(text) for text in (event.texts if what == "unchanged" else texts)
        ]
        after = f"   <- {', '.join(event.stages)}" if event.stages else ""
        head = f"#{fields['number']} +{gap_s:.3f} s"
        return [_line(exchange, head, f"{'  '.join(shown) or 'dropped'}{after}")]


def _line(exchange: str, what: str, text: str) -> str:
    return f"{exchange:<8} {what:<16} {escaped(text)}"


def _meaning(parts: list[dict[str, Any]]) -> list[str]:
    """What an event means in its dialect."""
    shown = []
    for part in parts:
        kind = part["kind"]
        if kind == "text":
            shown.append(f'"{part["text"]}"')
        elif kind == "tool_call":
            shown.append(f"{part['name']}({part['arguments']})")
        else:
            rest = {
                name: value for name, value in part.items() if name != "kind" and value is not None
            }
            if list(rest) == ["text"]:
                shown.append(f'{kind} "{rest["text"]}"')
            else:
                shown.append(" ".join([kind, *(f"{name}={value}" for name, value in rest.items())]))
    return shown


def _data(text: str) -> str:
    """The data of an event of one line, or all of it."""
    body = text.strip("\r\n")
    return body.removeprefix("data:").removeprefix(" ") if "\n" not in body else body
