"""The command `weirpool top`."""

from __future__ import annotations

import os
import shutil
import sys

from ...errors import ConfigError
from ..place import TOKEN_VARIABLE, read_place
from .client import fetch_state, watch_states
from .plain import screen
from .text import ASCII_BARS, BARS

__all__ = ["run_top"]

_NO_TEXTUAL = 'top needs the package textual: pip install "weirpool[top]", or use --once'
_NO_TERMINAL = "top needs a terminal: use --once for text"
_SIZE = (100, 40)
"""Columns and lines without a terminal."""


def run_top(url: str, token: str | None, interval_s: float, *, once: bool) -> int:
    """Show the state of the proxy at `url` until the user quits; `once`: print it. Returns the exit
    status. Raises `ConfigError`.
    """
    try:
        place = read_place(url, token or os.environ.get(TOKEN_VARIABLE) or None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if once:
        try:
            state = fetch_state(place)
        except ValueError as error:
            print(f"weirpool: {error}", file=sys.stderr)
            return 1
        size = shutil.get_terminal_size(_SIZE)
        for line in screen(state, place.url, size.columns, size.lines, _bars()):
            print(line.encode(_encoding(), "backslashreplace").decode(_encoding()))
        return 0
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # Textual writes to standard error
        raise ConfigError(_NO_TERMINAL)
    try:
        from .app import Top
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("textual", "rich"):
            raise
        raise ConfigError(_NO_TEXTUAL) from None
    app = Top(place.url, lambda: watch_states(place), interval_s)
    app.run()
    return app.return_code or 0


def _encoding() -> str:
    return sys.stdout.encoding or "ascii"


def _bars() -> str:
    try:
        BARS.encode(_encoding())
    except UnicodeEncodeError:
        return ASCII_BARS
    return BARS
