"""What JSON text says between its quotes, read as lax readers do: also pieces of it, text that is cut off, and unknown escapes."""

from __future__ import annotations

import re

__all__ = ["unescape"]

# Two escapes may be one character: the halves of a surrogate pair.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def unescape(text: str) -> str:
    """The text with JSON's escapes (RFC 8259, section 7) decoded. Linear. Never fails: an unknown escape loses its backslash."""
    return _ESCAPE.sub(_decoded, text) if "\\" in text else text


def _decoded(match: re.Match[str]) -> str:
    escape = match[0][1:]
    if len(escape) == 11:
        high, low = int(escape[1:5], 16), int(escape[7:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    if len(escape) == 5:
        return chr(int(escape[1:], 16))
    return _LETTERS.get(escape, escape)
