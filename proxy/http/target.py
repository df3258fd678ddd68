"""The target of a request: one reading, for routes, interceptors, endpoints and the proxy's own
pages.

A target is origin-form or absolute-form (RFC 9112, section 3.2). The path and the query go upstream
as they came, byte for byte; the path's normal form (`interceptors.paths.normal_path`) is what is
compared. Octets that no target has are refused: `#`, controls, spaces, bytes beyond ASCII, and in
the path a backslash, which URL parsers of the WHATWG read as a slash. The characters that RFC 3986
leaves out although clients send them (`"<>^{|}` and the backtick, in a query the backslash) pass.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from interceptors.paths import normal_path, unescape

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
    """A request's target, taken apart once."""

    raw: bytes
    """Path and query as they came, without the origin of an absolute-form target: what goes
    upstream.
    """
    path: bytes
    """The path as it came."""
    query: bytes
    """Without the question mark."""
    normal: str
    """The path's normal form: ASCII, for comparing only."""
    authority: bytes | None
    """Of an absolute-form target, not checked; None for origin-form."""


def read_target(raw: bytes) -> Target:
    """Read a target as it stands in the request line, or in `:path`. Raises `RequestRefused` (400)
    for everything else than an origin-form or absolute-form target: other octets, `*`, an
    authority, another scheme than http and https.
    """
    authority: bytes | None = None
    if not raw.startswith(b"/"):
        match = _ABSOLUTE_FORM.match(raw)
        if match is None:
            raise RequestRefused(400, "bad_request", "the request target must be a path")
        authority, raw = match[1], raw[match.end() :]
        if not raw.startswith(b"/"):
            raw = b"/" + raw
    if not is_target(raw):
        raise RequestRefused(
            400, "bad_request", "the request target holds an octet that must be percent-encoded"
        )
    path, _, query = raw.partition(b"?")
    return Target(raw, path, query, normal_path(path).decode("ascii"), authority)


def is_target(raw: bytes) -> bool:
    """Whether these bytes are an origin-form target."""
    return _ORIGIN_FORM.fullmatch(raw) is not None


def stays_under(base: bytes, path: bytes) -> bool:
    """Whether `base` + `path` has no normal form outside of `base`, an endpoint's own path without
    a slash at its end.

    Servers differ in what they decode before they resolve dot segments, so this tries each reading:
    `%2f` and `%5c` as separators, and segments without their parameters (`..;x`).
    """
    if b".." not in path and (b"%" not in path or b".." not in unescape(path)):
        return True
    for own, whole in zip(_readings(base), _readings(base + path), strict=True):
        if whole != own and not whole.startswith(own.rstrip(b"/") + b"/"):
            return False
    return True


def other_readings(path: bytes) -> list[str]:
    """The normal forms of a path for servers that decode `%2f`, or remove `;parameters`, before
    they resolve dot segments.

    Without the one of `normal_path`; so mostly none. `%5C` is an octet like any other here: few
    servers read it as a slash.
    """
    readings = [path]
    if b"%" in path and (decoded := _ESCAPED_SLASH.sub(b"/", path)) != path:
        readings.append(decoded)
    if b";" in path:
        readings += [_PARAMETERS.sub(b"", item) for item in readings]
    usual, *others = [normal_path(item).decode("ascii") for item in readings]
    return [item for item in others if item != usual]


def _readings(path: bytes) -> list[bytes]:
    """The normal forms of a path, one for each way in which servers decode it."""
    decoded = [path, *(escapes.sub(b"/", path) for escapes in _SEPARATORS)]
    return [
        normal_path(item) for item in [*decoded, *(_PARAMETERS.sub(b"", item) for item in decoded)]
    ]
