"""The target of a request, parsed once for routes, interceptors, endpoints and the proxy's pages.

A target is in origin-form or absolute-form (RFC 9112, section 3.2). Path and query are forwarded
byte for byte; only the path's normal form (`interceptors.paths.normal_path`) is compared. Octets
that cannot occur in a target are refused: `#`, controls, spaces, bytes beyond ASCII, and in the
path a backslash, which WHATWG URL parsers read as a slash. Characters that RFC 3986 excludes but
clients send (`"<>^{|}`, the backtick, and in a query the backslash) are accepted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from interceptors.paths import is_special, normal_path, unescape

from ..errors import RequestRefused

__all__ = ["Target", "is_target", "other_readings", "read_target", "stays_under"]

_ORIGIN_FORM = re.compile(rb"/[!\"$->@-\[\]-~]*(?:\?[!\"$-~]*)?")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#\\]*)", re.IGNORECASE)
_ESCAPED_SLASH = re.compile(rb"%2f", re.IGNORECASE)
_SEPARATORS = tuple(
    re.compile(escapes, re.IGNORECASE) for escapes in (rb"%2f", rb"%5c", rb"%2f|%5c")
)
_PARAMETERS = re.compile(rb";[^/]*")


class Target(NamedTuple):
    """A parsed target."""

    raw: bytes
    """Path and query as received, without the origin of an absolute-form target."""
    path: bytes
    """The path as received."""
    query: bytes
    """Without the question mark."""
    normal: str
    """The path's normal form in ASCII; only for comparisons."""
    authority: bytes | None
    """Of an absolute-form target, unchecked; None for origin-form."""


def read_target(raw: bytes) -> Target:
    """Parse the target of a request line, or a `:path`. Raises `RequestRefused` (400) for anything
    but an origin-form target and an absolute-form target with the scheme http or https.
    """
    authority: bytes | None = None
    if not raw.startswith(b"/"):
        match = _ABSOLUTE_FORM.match(raw)
        if match is None:
            raise RequestRefused(400, "bad_request", "the request target must be a path")
        authority, raw = match[1], raw[match.end() :]
        if not raw.startswith(b"/"):
            raw = b"/" + raw
    if _ORIGIN_FORM.fullmatch(raw) is None:
        raise RequestRefused(
            400, "bad_request", "the request target holds an octet that must be percent-encoded"
        )
    path, _, query = raw.partition(b"?")
    normal = normal_path(path) if is_special(path) else path
    return Target(raw, path, query, normal.decode("ascii"), authority)


def is_target(raw: bytes) -> bool:
    """Whether these bytes are an origin-form target."""
    return _ORIGIN_FORM.fullmatch(raw) is not None


def stays_under(base: bytes, path: bytes) -> bool:
    """Whether every reading of `base` + `path` lies under `base`, an endpoint's own path without a
    slash at its end.

    Servers differ in what they decode before they resolve dot segments: some read `%2f` and `%5c`
    as separators, and some drop the parameters of a segment (`..;x`).
    """
    if b".." not in path and (b"%" not in path or b".." not in unescape(path)):
        return True
    for own, whole in zip(_readings(base), _readings(base + path), strict=True):
        if whole != own and not whole.startswith(own.rstrip(b"/") + b"/"):
            return False
    return True


def other_readings(path: bytes) -> list[str]:
    """The normal forms of a path that differ from `normal_path`, for servers that decode `%2f` or
    drop `;parameters` before they resolve dot segments. Usually empty.

    `%5C` is not decoded: few servers read it as a slash.
    """
    readings = [path]
    if b"%" in path and (decoded := _ESCAPED_SLASH.sub(b"/", path)) != path:
        readings.append(decoded)
    if b";" in path:
        readings += [_PARAMETERS.sub(b"", item) for item in readings]
    usual, *others = [normal_path(item).decode("ascii") for item in readings]
    return [item for item in others if item != usual]


def _readings(path: bytes) -> list[bytes]:
    """The normal forms of a path, one for each way to decode it."""
    decoded = [path, *(escapes.sub(b"/", path) for escapes in _SEPARATORS)]
    return [
        normal_path(item) for item in [*decoded, *(_PARAMETERS.sub(b"", item) for item in decoded)]
    ]
