"""Redirects to the log everything else that a process writes to standard error.

Records of `logging`, warnings, uncaught exceptions of any thread, finalisers, and printed text.
Process-wide state: what `take_over_stderr` has replaced, until `release_stderr`.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from .log_lines import as_text, is_object, render_json, safe
from .logs import STDERR
from .logs import output as _output

__all__ = ["release_stderr", "take_over_stderr"]

_MAX_TEXT = 65536
_ACCEPT_INTERVAL_S = 1.0


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
            message = safe(record.msg)
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
            error=getattr(error, "strerror", None) or safe(error),
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
            if _output.render is render_json and is_object(line):
                _output.writer.put(line.encode("utf-8", "backslashreplace") + b"\n")
            elif line and not line.isspace():
                _output.write("warning", line, logger="stderr")
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDERR


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
    _replace_handlers(_Records())
    warnings.showwarning = _show_warning
    threading.excepthook = _thread_failed
    sys.unraisablehook = _unraisable
    sys.excepthook = _uncaught
    sys.stderr = _Text()


def _replace_handlers(records: _Records) -> None:
    """Replace handlers of any logger that write to standard error."""
    known = logging.root.manager.loggerDict.values()
    for logger in [logging.root, *(item for item in known if isinstance(item, logging.Logger))]:
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
        as_text(message),
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
        object=safe(args.object),
        exc_info=args.exc_value,
    )


def _uncaught(kind: type[BaseException], error: BaseException, _: object) -> None:
    _output.write("critical", "process_failed", error=kind.__name__, exc_info=error)
