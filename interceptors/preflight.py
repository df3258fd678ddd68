"""Whether the head of a request is a CORS preflight, and whether a body follows it."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["announces_body", "is_preflight"]

# Some servers run the method that one of these names. Browsers send none of them in a preflight.
_METHOD_OVERRIDES = (b"x-http-method-override", b"x-http-method", b"x-method-override")


def is_preflight(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request head is a CORS preflight: see `Request.is_preflight`."""
    if method != "OPTIONS":
        return False
    listed = list(headers)
    names = [name.lower() for name, _ in listed]
    return (
        names.count(b"origin") == 1
        and names.count(b"access-control-request-method") == 1
        and not any(name in names for name in _METHOD_OVERRIDES)
        and not announces_body(listed)
    )


def announces_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request head announces a body that is not empty, or of unknown length."""
    return any(
        name.lower() == b"transfer-encoding"
        or (name.lower() == b"content-length" and value.strip() != b"0")
        for name, value in headers
    )
