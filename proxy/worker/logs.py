"""The log: structlog to standard error, as JSON lines or for a terminal.

`configure_logging` sets format and level of the process, `set_level` changes the level. All lines
leave through one `LogWriter`. A line that is logged while an exchange is served has that exchange's
`request_id`, `client` and `path`, from any module (`EXCHANGE`). Nothing here raises into the code
that logs. `stderr` adds the process's other output.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import structlog

from ..telemetry import ExchangeSpan
from .log_lines import Console, Event, format_exception, printable, render_json
from .log_writer import FLUSH_S, LogWriter

__all__ = [
    "EXCHANGE",
    "LONGEST_PATH",
    "STDERR",
    "configure_logging",
    "dropped_lines",
    "flush_log",
    "hides_content",
    "level_name",
    "output",
    "set_level",
]

STDERR = 2
"""The descriptor of standard error."""


class Served(Protocol):
    """An exchange, as its log lines name it."""

    @property
    def request_id(self) -> str: ...
    @property
    def client_name(self) -> str | None: ...
    @property
    def path(self) -> str: ...
    @property
    def span(self) -> ExchangeSpan | None:
        """None while traces are off."""


EXCHANGE: ContextVar[Served | None] = ContextVar("proxy.EXCHANGE", default=None)
"""The exchange that the running task serves."""

LONGEST_PATH = 512
"""Characters of a path in a log line; clients choose paths."""

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(format: Literal["json", "console"] = "json", level: str = "info") -> None:
    """Send every structlog line at or above `level` to standard error. Process-wide; the last call
    wins.
    """
    colours = format == "console" and os.isatty(STDERR)
    output.render = render_json if format == "json" else Console(colours=colours).render
    set_level(level)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            output.process,
        ],
        wrapper_class=_Logger,
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )


def set_level(level: str) -> None:
    """Log lines at or above `level` from now on. Process-wide, also for loggers that exist."""
    output.level = _LEVELS[level]


def level_name() -> str:
    """The level now."""
    return next(name for name, level in _LEVELS.items() if level == output.level)


def hides_content() -> bool:
    """Whether lines must not have the messages of interceptors' exceptions: at every level but
    debug.
    """
    return output.level > logging.DEBUG


def dropped_lines() -> int:
    """Lines of this process that were dropped because they could not be written in time."""
    return output.writer.dropped_total


def flush_log() -> None:
    """Wait for the last lines, at most `FLUSH_S`, before the process ends without Python's exit
    handlers. Blocks.
    """
    output.writer.flush(FLUSH_S)


class _Output:
    """Renders events and queues the lines; also the logger to which structlog passes rendered
    lines.
    """

    def __init__(self) -> None:
        self.render: Callable[[Event], str] = render_json
        self.level = logging.INFO
        self.pid = os.getpid()
        self.joined_by: Collection[str] | None = None
        """Which fields lines of an exchange get that do not have them; None: all."""
        # Without standard error its descriptor may belong to any other file.
        fd = None if sys.stderr is None and sys.__stderr__ is None else STDERR
        self.writer = LogWriter(
            fd,
            lambda count: self._line(
                {"event": "lines_dropped", "count": count, "level": "warning"}
            ),
        )

    def begin_child(self) -> None:
        """This process is a new child: it has none of its parent's lines."""
        self.pid = os.getpid()
        self.writer.reset()

    def process(self, _: object, __: str, event: Event) -> bytes:
        """Render an event: the last of structlog's processors."""
        return self._line(_named(event))

    def write(self, level: str, event: str, **fields: Any) -> None:
        """Log a line that does not come from structlog."""
        self.put(_named({**fields, "level": level, "event": event}))

    def put(self, event: Event) -> None:
        """Log a line as it is."""
        self.writer.put(self._line(event))

    def msg(self, line: bytes) -> None:
        self.writer.put(line)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def _line(self, event: Event) -> bytes:
        event["timestamp"] = _now()
        event.setdefault("pid", self.pid)
        try:
            try:
                format_exception(event, hide_content=hides_content())
                text = self.render(event)
            except Exception:
                text = self.render(printable(event))
        except Exception:
            text = self.render(
                {
                    "event": "log_failed",
                    "level": "error",
                    "timestamp": event["timestamp"],
                    "pid": self.pid,
                }
            )
        return text.encode("utf-8", "backslashreplace") + b"\n"


def _named(event: Event) -> Event:
    """The event with the exchange to which it belongs."""
    served = EXCHANGE.get()
    if served is not None:
        names: dict[str, object] = {
            "request_id": served.request_id,
            "client": served.client_name,
            "path": served.path[:LONGEST_PATH],
        }
        if (span := served.span) is not None:
            names |= {"trace_id": span.trace_id, "span_id": span.span_id}
        for name, value in names.items():
            if output.joined_by is None or name in output.joined_by:
                event.setdefault(name, value)
    return event


# structlog's own loggers keep the level of their class; these ask for it at each call.
_All: Any = structlog.make_filtering_bound_logger(logging.DEBUG)


def _method(name: str, level: int) -> Callable[..., Any]:
    write = getattr(_All, name)

    def method(self: Any, event: str, *args: Any, **fields: Any) -> Any:
        return write(self, event, *args, **fields) if output.level <= level else None

    return method


def _log(self: Any, level: int, event: str, *args: Any, **fields: Any) -> Any:
    return _All.log(self, level, event, *args, **fields) if output.level <= level else None


_Logger = type(
    "Logger",
    (_All,),
    {
        **{name: _method(name, level) for name, level in _LEVELS.items()},
        "warn": _method("warning", logging.WARNING),
        "msg": _method("info", logging.INFO),
        "log": _log,
        "is_enabled_for": lambda self, level: level >= output.level,
        "get_effective_level": lambda self: output.level,
    },
)

_second, _text_of_second = -1, ""


def _now() -> str:
    global _second, _text_of_second
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    if seconds != _second:
        _text_of_second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        _second = seconds
    return f"{_text_of_second}.{nanoseconds // 1000:06d}Z"


output: _Output = _Output()
os.register_at_fork(after_in_child=output.begin_child)
atexit.register(flush_log)
