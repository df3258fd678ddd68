"""URL references in response headers: which headers contain them, and where. Sans I/O.

Everything around a reference stays unchanged; `place` decides what a reference becomes. Sources:
RFC 9110, sections 8.7, 10.2.2 and 11.6.1; RFC 8288, section 3; RFC 9728, section 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from interceptors.tokens import TOKEN

from .headers import HeaderList
from .place import ClientSide, Place

__all__ = ["REFERENCE_FIELDS", "client_headers"]

_WHOLE = (b"location", b"content-location")
REFERENCE_FIELDS = frozenset([*_WHOLE, b"link", b"www-authenticate"])
"""The fields that can contain references, in lower case."""

# The first alternative skips quoted strings, closed or not: their content is text.
_QUOTED = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'
_LINK = re.compile(rf"{_QUOTED}|((?:\A|,)[ \t]*<)([^<>]*)(?=>)", re.DOTALL)
_METADATA = re.compile(
    rf"(?<!{TOKEN.removesuffix('+')})(resource_metadata[ \t]*=[ \t]*)"
    rf'(?:"((?:[^"\\]|\\.)*)"|([^\s,;"]+))|{_QUOTED}',
    re.DOTALL | re.IGNORECASE,
)


def client_headers(
    headers: Sequence[tuple[bytes, bytes]], place: Place, client: ClientSide
) -> HeaderList:
    """The headers with references that the client can resolve: `Location`, `Content-Location`, the
    targets in `Link`, and `resource_metadata` in `WWW-Authenticate`, which stays absolute.
    """
    return [(name, _rewritten(name.lower(), value, place, client)) for name, value in headers]


def _rewritten(name: bytes, value: bytes, place: Place, client: ClientSide) -> bytes:
    if name not in REFERENCE_FIELDS:
        return value
    text = value.decode("latin-1")
    if name in _WHOLE:
        text = place.public_reference(text, client)
    elif name == b"link":
        text = _LINK.sub(_replacing_target(place, client), text)
    else:
        text = _METADATA.sub(_replacing_metadata(place, client), text)
    return text.encode("latin-1", "replace")


def _replacing_target(place: Place, client: ClientSide) -> Callable[[re.Match[str]], str]:
    return lambda match: (
        match[0] if match[1] is None else match[1] + place.public_reference(match[2], client)
    )


def _replacing_metadata(place: Place, client: ClientSide) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        quoted = match[2] is not None
        reference = re.sub(r"\\(.)", r"\1", match[2], flags=re.DOTALL) if quoted else match[3]
        url = place.public_url(reference, client)
        if url == reference:
            return match[0]
        return match[1] + ('"' + re.sub(r'(["\\])', r"\\\1", url) + '"' if quoted else url)

    return replace
