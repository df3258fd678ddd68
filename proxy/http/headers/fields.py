"""Lists of header fields: finding a field, and what a field may contain (RFC 9110, section 5)."""

from __future__ import annotations

from collections.abc import Iterable

from interceptors.tokens import is_field_value, is_token

__all__ = ["HeaderList", "are_fields", "find_header", "find_headers"]

HeaderList = list[tuple[bytes, bytes]]


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a field, by its lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def find_headers(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Every value of a field, by its lower-case name."""
    return [value for key, value in headers if key == name]


def are_fields(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether each name and each value contains only what a field may contain."""
    return all(is_token(name) and is_field_value(value) for name, value in headers)
