"""Request paths in normal form, so that no other spelling evades a comparison. Sans I/O.

It knows no routes and no policies.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

__all__ = ["fold_path", "is_special", "normal_path", "quote_path", "unescape", "without_dots"]

is_special = re.compile(rb"%|//|/\.").search
"""Finds what `normal_path` looks at: it returns every other path unchanged."""


def normal_path(raw_path: bytes) -> bytes:
    """A path as most servers interpret it, for comparisons only (RFC 3986, section 6.2.2).

    Percent-encoded unreserved characters are decoded, dot segments resolved, empty segments
    removed.
    """
    if b"%" in raw_path:
        raw_path = unescape(raw_path)
    if b"//" not in raw_path and b"/." not in raw_path:
        return raw_path
    segments: list[bytes] = []
    parts = [part for part in raw_path.split(b"/") if part]
    for part in parts:
        if part == b"..":
            del segments[-1:]
        elif part != b".":
            segments.append(part)
    closed = raw_path.endswith(b"/") or (bool(parts) and parts[-1] in (b".", b".."))
    return b"/" + b"/".join(segments) + (b"/" if closed and segments else b"")


def fold_path(path: str) -> str:
    """Fold a normal path as upstreams that ignore case do. Compare it with folded paths only.

    Non-ASCII letters fold too, percent-encoded or not: some servers decode first, and treat U+017F
    as s, U+212A as k, U+0131 and U+0130 as i.
    """
    if path.isascii() and "%" not in path:
        return path.lower()
    path = _BEYOND_ASCII.sub(lambda match: unquote(match[0], errors="surrogateescape"), path)
    return path.upper().casefold().replace("i\u0307", "i")


def unescape(path: bytes) -> bytes:
    """Decode unreserved characters; write other escapes in upper case (RFC 3986, 6.2.2)."""
    return _ESCAPE.sub(_unescape, path)


def without_dots(path: str) -> str:
    """Resolve dot segments as clients do (RFC 3986, section 5.2.4). Changes nothing else."""
    if "/." not in path:
        return path
    segments = path.split("/")
    kept: list[str] = []
    for segment in segments[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if segments[-1] in (".", "..") and kept else "")


def quote_path(path: str) -> bytes:
    """Encode a path for a request line. Raises `UnicodeEncodeError` for a lone surrogate."""
    return quote(path, safe="/%:@!$&'()*+,;=~-._").encode("ascii")


_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_BEYOND_ASCII = re.compile("(?:%[89A-Fa-f][0-9A-Fa-f])+")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def _unescape(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)
    return bytes([code]) if code in _UNRESERVED else match[0].upper()
