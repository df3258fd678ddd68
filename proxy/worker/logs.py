"""The log: structlog to standard error, as JSON lines or for a terminal.

`configure_logging` sets format and level of the process. All lines leave through one `LogWriter`.
Nothing here raises into the code that logs. `stderr` adds the process's other output.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import structlog

from .log_lines import Console, Event, format_exception, printable, render_json
from .log_writer import FLUSH_S, LogWriter

__all__ = ["STDERR", "configure_logging", "dropped_lines", "flush_log", "output"]

STDERR = 2
"""The descriptor of standard error."""


def configure_logging(format: Literal["json", "console"] = "json", level: str = "info") -> None:
    """Send every structlog line at or above `level` to standard error. Process-wide; the last call
    wins.
    """
    colours = format == "console" and os.isatty(STDERR)
    output.render = render_json if format == "json" else Console(colours=colours).render
    output.level = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            output.process,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(output.level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )


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
        # Without standard error its descriptor may belong to any other file.
        fd = None if sys.stderr is None and sys.__stderr__ is None else STDERR
        self.writer = LogWriter(
            fd,
            lambda count: self._line(
                {"event": "lines_dropped", "count": count, "level": "warning"}
            ),
        )

    def process(self, _: object, __: str, event: Event) -> bytes:
        """Render an event: the last of structlog's processors."""
        return self._line(event)

    def write(self, level: str, event: str, **fields: Any) -> None:
        """Log a line that does not come from structlog."""
        self.writer.put(self._line({**fields, "level": level, "event": event}))

    def msg(self, line: bytes) -> None:
        self.writer.put(line)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def _line(self, event: Event) -> bytes:
        event["timestamp"] = _now()
        try:
            try:
                format_exception(event, hide_content=self.level > logging.DEBUG)
                text = self.render(event)
            except Exception:
                text = self.render(printable(event))
        except Exception:
            text = self.render(
                {"event": "log_failed", "level": "error", "timestamp": event["timestamp"]}
            )
        return text.encode("utf-8", "backslashreplace") + b"\n"


_second, _text_of_second = -1, ""


def _now() -> str:
    global _second, _text_of_second
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    if seconds != _second:
        _text_of_second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        _second = seconds
    return f"{_text_of_second}.{nanoseconds // 1000:06d}Z"


output = _Output()
os.register_at_fork(after_in_child=output.writer.reset)
atexit.register(flush_log)
