"""The value of `Date` (RFC 9110, section 6.6.1)."""

from __future__ import annotations

from email.utils import formatdate
from time import time

__all__ = ["http_date"]

_second = -1
_value = b""


def http_date() -> bytes:
    """The time now; made once a second."""
    global _second, _value
    second = int(time())
    if second != _second:
        _second, _value = second, formatdate(second, usegmt=True).encode()
    return _value
