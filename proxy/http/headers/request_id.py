"""The id of a request: taken over from the client or made here, so that the log lines of an
exchange, its client and its upstream can be joined.

Providers answer with an id of their own in the same header. That one stays, because their SDKs show
it to users.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import getrandbits

from .fields import HeaderList, find_header

__all__ = ["new_request_id", "take_request_id", "upstream_id", "with_request_id"]

_ACCEPTED = re.compile(rb"[!-~]{1,128}")
_NOT_SHOWN = re.compile("[^ -~]")
_LONGEST = 128


def new_request_id() -> str:
    """32 random hexadecimal digits. Not a secret: Python's generator makes them, which is reseeded
    in each worker.
    """
    return getrandbits(128).to_bytes(16, "big").hex()


def take_request_id(
    headers: HeaderList, first_values: Mapping[bytes, bytes], name: bytes | None
) -> tuple[HeaderList, str]:
    """The fields of a request with exactly one id in the field `name`, and the id: the client's, if
    it is 1 to 128 visible ASCII characters and the only one, otherwise a new one. None: the id is
    in no field. `first_values`: the first value of each field.
    """
    if name is None:
        return headers, new_request_id()
    given = first_values.get(name)
    if given is not None:
        others = [field for field in headers if field[0] != name]
        if len(others) == len(headers) - 1 and _ACCEPTED.fullmatch(given):
            return headers, given.decode("ascii")
        headers = others
    made = new_request_id()
    return [*headers, (name, made.encode("ascii"))], made


def with_request_id(headers: HeaderList, name: bytes | None, request_id: str) -> HeaderList:
    """The fields of a response with the id, unless it has one already. Names in lower case."""
    if name is None or find_header(headers, name) is not None:
        return headers
    return [*headers, (name, request_id.encode("ascii"))]


def upstream_id(value: bytes) -> str:
    """An upstream's own id for the log: at most 128 printable ASCII characters."""
    return _NOT_SHOWN.sub("?", value[:_LONGEST].decode("latin-1"))
