"""Paths of requests in one spelling, so that a comparison of them cannot be passed by another. Sans I/O; knows no route."""

from __future__ import annotations

import re
from urllib.parse import quote

__all__ = ["normal_path", "quote_path", "without_dots"]


def normal_path(raw_path: bytes) -> bytes:
    """A path as most servers understand it, for comparing only (RFC 3986, section 6.2.2; empty segments go, too).

    Percent-encoded unreserved characters are decoded, dot segments resolved, and runs of slashes are one slash.
    """
    if b"%" in raw_path:
        raw_path = _ESCAPE.sub(_unescape, raw_path)
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


def without_dots(path: str) -> str:
    """A path with its dot segments resolved (RFC 3986, section 5.2.4), and nothing else changed: what a client sends."""
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
    """A path as bytes on the wire. Raises `UnicodeEncodeError` for a lone surrogate, which UTF-8 cannot write."""
    return quote(path, safe="/%:@!$&'()*+,;=~-._").encode("ascii")


_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def _unescape(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)
    return bytes([code]) if code in _UNRESERVED else match[0].upper()
