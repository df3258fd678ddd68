"""The log: structlog to standard error, as JSON lines or for a terminal.

`configure_logging` sets format and level. `take_over_stderr` redirects all other output of the
process to standard error into the log: records of `logging`, warnings, uncaught exceptions of any
thread, and text. All lines leave through one `LogWriter`. Nothing here raises into the code that
logs.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog

from interceptors import InterceptorError
from interceptors.errors import HookTooSlow, Misused

from .log_writer import FLUSH_S, LogWriter

__all__ = ["configure_logging", "dropped_lines", "flush_log", "release_stderr", "take_over_stderr"]

Event = MutableMapping[str, Any]

_STDERR = 2
_MAX_TEXT = 65536
_ACCEPT_INTERVAL_S = 1.0
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NEEDS_QUOTES = re.compile("[\\s=\"']")
_COLOURS = {
    "debug": "\x1b[32m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}
_BRIGHT, _DIM, _KEY, _VALUE, _RESET = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[35m", "\x1b[0m"


def configure_logging(format: Literal["json", "console"] = "json", level: str = "info") -> None:
    """Send every structlog line at or above `level` to standard error. Process-wide; the last call
    wins.
    """
    colours = format == "console" and os.isatty(_STDERR)
    _output.render = _render_json if format == "json" else _Console(colours=colours).render
    _output.level = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _output.process,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_output.level),
        logger_factory=lambda *_: _output,
        cache_logger_on_first_use=False,
    )


def dropped_lines() -> int:
    """Lines of this process that were dropped because they could not be written in time."""
    return _output.writer.dropped_total


def flush_log() -> None:
    """Wait for the last lines, at most `FLUSH_S`, before the process ends without Python's exit
    handlers. Blocks.
    """
    _output.writer.flush(FLUSH_S)


class _Output:
    """Renders events and queues the lines; also the logger to which structlog passes rendered
    lines.
    """

    def __init__(self) -> None:
        self.render: Callable[[Event], str] = _render_json
        self.level = logging.INFO
        # Without standard error its descriptor may belong to any other file.
        fd = None if sys.stderr is None and sys.__stderr__ is None else _STDERR
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
                _format_exception(event)
                text = self.render(event)
            # a value cannot be rendered: circular, NaN, a key that is not text, a failing __repr__
            except Exception:
                text = self.render(
                    {
                        _safe(key): value if _is_plain(value) else _safe(value)
                        for key, value in event.items()
                    }
                )
        except Exception:
            text = self.render(
                {"event": "log_failed", "level": "error", "timestamp": event["timestamp"]}
            )
        return text.encode("utf-8", "backslashreplace") + b"\n"


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds // 1000:06d}Z"


def _format_exception(event: Event) -> None:
    """Like structlog, turn `exc_info` into `exception`: a traceback without values of variables,
    which may be secret.
    """
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        # An interceptor's exception and its source lines may contain content.
        hides = event.get("event") == "interceptor_failed" and _output.level > logging.DEBUG
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


def _safe(value: object) -> str:
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


def _is_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _render_json(event: Event) -> str:
    return json.dumps(event, default=_jsonable, allow_nan=False)


def _jsonable(value: object) -> object:
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return repr(value)


class _Console:
    """Renders lines for a terminal. Everything except its own colours and line ends goes through
    `_escape`.
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def render(self, event: Event) -> str:
        fields = dict(event)
        at, level, name = (_text(fields.pop(key, "")) for key in ("timestamp", "level", "event"))
        blocks = [_text(fields.pop(key)) for key in ("exception", "stack") if fields.get(key)]
        line = f"{self._paint(_DIM, at)} [{self._paint(_COLOURS.get(level, ''), f'{level:<9}')}] "
        line += self._paint(_BRIGHT, f"{name:<30}" if fields else name)
        for key in sorted(fields, key=str):
            line += f" {self._paint(_KEY, _text(key))}={self._paint(_VALUE, _quoted(fields[key]))}"
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


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return (
        repr(text) if isinstance(value, str) and (not text or _NEEDS_QUOTES.search(text)) else text
    )


class _Records(logging.Handler):
    """Handles records of the standard library's `logging`: of libraries, Trio and Hypercorn."""

    def __init__(self) -> None:
        super().__init__()
        self._accept_failures = 0
        self._accept_reported_at = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < _output.level:
            return
        fields: dict[str, Any] = {"logger": record.name, "exc_info": record.exc_info}
        try:
            message = record.getMessage()
        except Exception:
            message = _safe(record.msg)
        if record.stack_info:
            fields["stack"] = record.stack_info
        if record.name == "trio.serve_listeners":
            self._accept_failed(record)
            return
        _output.write(record.levelname.lower(), message, **fields)

    def _accept_failed(self, record: logging.LogRecord) -> None:
        """Trio logs each failed `accept`, ten a second for each listener: log one line a second
        with the count.
        """
        self._accept_failures += 1
        now = time.monotonic()
        if now < self._accept_reported_at + _ACCEPT_INTERVAL_S:
            return
        error = record.exc_info[1] if record.exc_info else None
        _output.write(
            "error",
            "accept_failed",
            error=getattr(error, "strerror", None) or _safe(error),
            count=self._accept_failures,
        )
        self._accept_failures = 0
        self._accept_reported_at = now


class _Text(io.TextIOBase):
    """Replaces `sys.stderr`: each printed line becomes a log line.

    A JSON object from another logger stays as it is in a log of JSON lines.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rest = ""

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > _MAX_TEXT:
                lines.append(self._rest)
                self._rest = ""
        for line in lines:
            if _output.render is _render_json and _is_object(line):
                _output.writer.put(line.encode("utf-8", "backslashreplace") + b"\n")
            elif line and not line.isspace():
                _output.write("warning", line, logger="stderr")
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _STDERR


_taken_over: list[Callable[[], None]] = []
"""Functions that undo `take_over_stderr`."""


def take_over_stderr() -> None:
    """Redirect all other output to standard error into the log. Process-wide, until
    `release_stderr`; once.

    Replaces handlers of `logging` that write to standard error; others stay. Logs records from
    WARNING on, or from the level that a logger sets for itself.
    """
    if _taken_over:
        return
    old = (
        sys.stderr,
        sys.excepthook,
        threading.excepthook,
        sys.unraisablehook,
        warnings.showwarning,
        logging.root.handlers[:],
    )

    def give_back() -> None:
        (
            sys.stderr,
            sys.excepthook,
            threading.excepthook,
            sys.unraisablehook,
            warnings.showwarning,
            handlers,
        ) = old
        logging.root.handlers[:] = handlers

    _taken_over.append(give_back)
    records = _Records()
    for logger in [
        logging.root,
        *(
            item
            for item in logging.root.manager.loggerDict.values()
            if isinstance(item, logging.Logger)
        ),
    ]:
        to_stderr = [
            handler
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler)
            and handler.stream in (sys.stderr, sys.__stderr__)
        ]
        for handler in to_stderr:
            logger.removeHandler(handler)
        if to_stderr and not logger.propagate:
            logger.addHandler(records)
    logging.root.addHandler(records)
    warnings.showwarning = _show_warning
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable
    sys.excepthook = _uncaught
    sys.stderr = _Text()


def release_stderr() -> None:
    """Undo `take_over_stderr`."""
    while _taken_over:
        _taken_over.pop()()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if file is not None and not isinstance(file, _Text):
        with suppress(Exception):
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
        return
    _output.write(
        "warning",
        _text(message),
        logger="py.warnings",
        category=category.__name__,
        place=f"{filename}:{lineno}",
    )


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread is not None else None
        _output.write("error", "thread_failed", thread=name, exc_info=args.exc_value)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    _output.write(
        "error",
        "unraisable_exception",
        message=args.err_msg,
        object=_safe(args.object),
        exc_info=args.exc_value,
    )


def _uncaught(kind: type[BaseException], error: BaseException, _: object) -> None:
    _output.write("critical", "process_failed", error=kind.__name__, exc_info=error)


_output = _Output()
os.register_at_fork(after_in_child=_output.writer.reset)
atexit.register(flush_log)
