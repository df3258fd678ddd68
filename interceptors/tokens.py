"""The grammar of HTTP tokens and field values (RFC 9110, sections 5.5 and 5.6.2), once for all."""

from __future__ import annotations

import re

__all__ = ["FIELD_VALUE", "TOKEN", "is_field_value", "is_token"]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""A pattern. Field names, methods and parameter names are tokens."""
FIELD_VALUE = r"[\t\x20-\x7e\x80-\xff]*"
"""A pattern. White space at either end is not part of a value, but is accepted."""

_TOKEN = re.compile(TOKEN.encode("ascii"))
_FIELD_VALUE = re.compile(FIELD_VALUE.encode("latin-1"))


def is_token(value: bytes | str) -> bool:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace")
    return _TOKEN.fullmatch(value) is not None


def is_field_value(value: bytes) -> bool:
    return _FIELD_VALUE.fullmatch(value) is not None
