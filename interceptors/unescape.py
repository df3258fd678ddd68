"""Decodes the text between the quotes of a JSON string as lax readers do: also pieces of it, text
that is cut off, and unknown escapes.
"""

from __future__ import annotations

import re

__all__ = ["unescape"]

# Two escapes may be one character: the halves of a surrogate pair.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL
)
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_USUAL = {**_LETTERS, '"': '"', "/": "/"}
_LONG = 256


def unescape(text: str) -> str:
    """The text with JSON's escapes (RFC 8259, section 7) decoded. Linear. Never fails: an unknown
    escape loses its backslash.
    """
    if "\\" not in text:
        return text
    if len(text) < _LONG:
        return _ESCAPE.sub(_decoded, text)
    # Two backslashes are one, whatever follows; between such pairs each of the others begins an
    # escape.
    return "\\".join(map(_unescape_long, text.split("\\\\")))


def _unescape_long(text: str) -> str:
    """A text without an escaped backslash: no step of Python for each of the usual escapes."""
    for letter, character in _USUAL.items():
        text = text.replace("\\" + letter, character)
    return _ESCAPE.sub(_decoded, text) if "\\" in text else text


def _decoded(match: re.Match[str]) -> str:
    escape = match[0][1:]
    if len(escape) == 11:
        high, low = int(escape[1:5], 16), int(escape[7:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    if len(escape) == 5:
        return chr(int(escape[1:], 16))
    return _LETTERS.get(escape, escape)
