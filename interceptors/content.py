"""Content-Type and Content-Encoding, with one reading for the proxy and for interceptors.

A field can occur on several lines, or as a list on one line. Recipients then use different values:
browsers the last media type (Fetch, "extract a MIME type"), most servers the first. Therefore equal
values count once, different media types raise `Contradiction`, and different codings are never
identity. Sans I/O. Rules: RFC 9110, sections 8.3 and 8.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from .tokens import is_token

__all__ = [
    "Contradiction",
    "content_coding",
    "content_types",
    "is_json_in_utf8",
    "is_json_type",
    "media_type",
    "unify",
]

Fields = Iterable[tuple[bytes, bytes]]
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'


class Contradiction(ValueError):
    """A message has two different media types. The error's text shows neither."""


def content_types(headers: Fields) -> list[bytes]:
    """Every `Content-Type` value with its parameters: one per line and per list item.

    Header names may be in any case. A comma inside a quoted string does not separate items. Raises
    `Contradiction` for an unterminated quoted string in a value with a comma: recipients disagree
    on where that item ends.
    """
    return _items(headers, b"content-type")


def media_type(headers: Fields) -> str:
    """The media type, in lower case and without parameters; "" if there is none.

    Raises `Contradiction`.
    """
    items = _items(headers, b"content-type")
    types = {_essence(item) for item in items}
    if len(types) > 1:
        raise Contradiction("Content-Type has several different values")
    return types.pop() if types else ""


def content_coding(headers: Fields) -> str:
    """The content coding in lower case, `identity` if there is none. Equal values count once.

    Different values are joined: recipients disagree on how many of them to decode, so such a body
    counts as encoded.
    """
    codings = _codings(headers)
    return ", ".join([coding for coding in codings if coding not in ("", "identity")]) or "identity"


def is_json_type(media_type: str) -> bool:
    """Whether a result of `media_type` is JSON (RFC 8259; RFC 6839, section 3.1)."""
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def is_json_in_utf8(headers: Fields) -> bool:
    """Whether every recipient reads the body as JSON in UTF-8.

    True for exactly one `Content-Type`: `application/json` or a type that ends with `+json`, with
    no parameter except one `charset=utf-8` (in any case, also quoted). For policy checks: some
    servers decode by `charset`, and disagree on which of two applies.
    """
    lines = [value for name, value in headers if name.lower() == b"content-type"]
    if len(lines) != 1:
        return False
    essence, *rest = (item.strip(b" \t") for item in lines[0].lower().split(b";"))
    parameters = [item for item in rest if item]  # may be empty: RFC 9110, section 5.6.6
    kind, _, subtype = essence.partition(b"/")
    return (
        (essence == b"application/json" or essence.endswith(b"+json"))
        and is_token(kind)
        and is_token(subtype)
        and parameters in ([], [b"charset=utf-8"], [b'charset="utf-8"'])
    )


def unify(headers: list[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], str, str]:
    """Merge equal `Content-Type` and `Content-Encoding` lines into the first one.

    Returns the headers, the `media_type` and the `content_coding`. Expects lower-case names. Raises
    `Contradiction`.
    """
    types, is_coded, value = 0, False, b""
    for name, item in headers:
        if name == b"content-type":
            types += 1
            value = item
        elif name == b"content-encoding":
            is_coded = True
    if types == 1 and not is_coded and b"," not in value:
        return headers, _essence(value), "identity"
    kind, coding = media_type(headers), content_coding(headers)
    headers = _joined(headers, b"content-type")
    return (
        (_joined(headers, b"content-encoding") if len(_codings(headers)) == 1 else headers),
        kind,
        coding,
    )


def _codings(headers: Fields) -> list[str]:
    """The distinct values, an empty one included."""
    lines = [value for name, value in headers if name.lower() == b"content-encoding"]
    if not lines:
        return []
    return list(
        dict.fromkeys(
            [item.strip().lower().decode("latin-1") for item in b",".join(lines).split(b",")]
        )
    )


def _joined(headers: list[tuple[bytes, bytes]], name: bytes) -> list[tuple[bytes, bytes]]:
    items = _items(headers, name)
    if len(items) < 2:
        return headers
    at = next(at for at, field in enumerate(headers) if field[0] == name)
    return [
        *headers[:at],
        (name, items[0]),
        *(field for field in headers[at + 1 :] if field[0] != name),
    ]


@lru_cache(maxsize=64)  # most responses have the same few
def _essence(value: bytes) -> str:
    return value.partition(b";")[0].strip().lower().decode("latin-1")


def _items(headers: Fields, name: bytes) -> list[bytes]:
    lines = [value for key, value in headers if key.lower() == name]
    if not lines or (len(lines) == 1 and b"," not in lines[0]):
        return lines
    return [item for line in lines for item in (_split(line, name) if b"," in line else (line,))]


def _split(line: bytes, name: bytes) -> list[bytes]:
    """The items of a list, in linear time: a regular expression would need nested repetition."""
    items: list[bytes] = []
    start, quoted, escaped = 0, False, False
    for at, byte in enumerate(line):
        if escaped:
            escaped = False
        elif quoted and byte == _BACKSLASH:
            escaped = True
        elif byte == _QUOTE:
            quoted = not quoted
        elif byte == _COMMA and not quoted:
            items.append(line[start:at].strip())
            start = at + 1
    if quoted:
        raise Contradiction("Content-Type has an unterminated quoted string")
    return [*items, line[start:].strip()]
