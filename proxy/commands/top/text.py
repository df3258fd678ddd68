"""Numbers, times and foreign text, written for a terminal of fixed width."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ASCII_BARS",
    "BARS",
    "age",
    "byte_count",
    "clean",
    "count",
    "duration",
    "durations",
    "spark",
]

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*#@"
_UNITS = ("", "k", "M", "G", "T")


def clean(text: str | None) -> str:
    """Foreign text on one line: what is not printable is escaped, so that it cannot control a
    terminal or reorder a line.
    """
    if text is None:
        return "-"
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def count(value: float | None) -> str:
    """Such as `0`, `0.3`, `9,999`, `12.3k`."""
    if value is None:
        return "-"
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 10_000 else _scaled(value)


def byte_count(value: float | None) -> str:
    """Such as `999 B`, `1.2 kB`, in steps of 1,000."""
    if value is None:
        return "-"
    return f"{value:.0f} B" if value < 1000 else f"{_scaled(value, ' ')}B"


def _scaled(value: float, gap: str = "") -> str:
    at = 0
    while value >= 999.5 and at < len(_UNITS) - 1:
        value /= 1000
        at += 1
    return f"{value:.{0 if value >= 99.95 else 1}f}{gap}{_UNITS[at]}"


def duration(seconds: float | None) -> str:
    """A short time, such as `40 us`, `12 ms`, `1.5 s`."""
    if not seconds:
        return "-" if seconds is None else "0"
    if seconds < 0.0995:
        scaled, unit = (seconds * 1e3, "ms") if seconds >= 0.000995 else (seconds * 1e6, "us")
        return f"{scaled:.{0 if scaled >= 9.95 else 1}f} {unit}"
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def durations(*seconds: float | None) -> str:
    """Short times in the unit of the last one, such as `9/33/120 ms`."""
    last = seconds[-1]
    if last is None:
        return "-"
    factor, unit = (1, "s") if last >= 0.9995 else (1e3, "ms")
    scaled = [None if item is None else item * factor for item in seconds]
    texts = ["-" if item is None else f"{item:.{0 if item >= 9.95 else 1}f}" for item in scaled]
    return f"{'/'.join(texts)} {unit}"


def age(seconds: float) -> str:
    """A longer time, such as `0.4s`, `59s`, `2m05s`, `3h20m`, `4d06h`."""
    whole = int(seconds)
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def spark(values: Sequence[float | None], width: int, bars: str = BARS) -> str:
    """The last values as a line of bars, from 0 to the largest; a gap where there is no value."""
    shown = values[-width:] if width > 0 else ()
    most = max((value for value in shown if value is not None), default=0.0)
    line = ""
    for value in shown:
        if value is None:
            line += " "
        else:
            line += bars[min(len(bars) - 1, int(value / most * len(bars)))] if most else bars[0]
    return line.rjust(max(width, 0))
