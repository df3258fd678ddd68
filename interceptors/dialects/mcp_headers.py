"""The headers of MCP's Streamable HTTP: the revision of a request, and the headers that repeat its
body.

From revision 2026-07-28 on a POST's `MCP-Protocol-Version`, `Mcp-Method`, `Mcp-Name` and
`Mcp-Param-*` mirror its body, so that intermediaries can route without reading it. Code that reads
the body must verify them (`check`), and code that changes it must change them (`mirror`). Rules:
MCP 2026-07-28, basic/transports, "Streamable HTTP"; where that leaves a choice, the official Python
SDK. Sans I/O; knows no sessions and no methods.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..message import Headers

__all__ = [
    "HEADER_MISMATCH",
    "INVALID_REQUEST",
    "METHOD",
    "NAME",
    "NAMED_BY",
    "PARAM_PREFIX",
    "PROTOCOL_VERSION",
    "REVISIONS",
    "VERSION_KEY",
    "Rejection",
    "check",
    "decode_value",
    "encode_value",
    "has_mirrors",
    "mirror",
    "revision_of",
]

PROTOCOL_VERSION = "mcp-protocol-version"
METHOD = "mcp-method"
NAME = "mcp-name"
PARAM_PREFIX = "mcp-param-"

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
"""The member of `params._meta` with the revision, from 2026-07-28 on."""

NAMED_BY: Mapping[str, str] = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""The methods that have an `Mcp-Name`, and the parameter that it mirrors."""

REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
"""The known ones, oldest first."""

HEADER_MISMATCH = -32020
INVALID_REQUEST = -32600

_FIRST_MIRRORED = "2026-07-28"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request is refused, with a JSON-RPC error as the body."""

    code: int
    message: str
    """Names the header, never its value."""
    id: int | str | None = None
    """The id of the request, if it has one."""
    status: int = 400

    def json(self) -> dict[str, Any]:
        """The JSON-RPC error response."""
        return {
            "jsonrpc": "2.0",
            "id": self.id,
            "error": {"code": self.code, "message": self.message},
        }


def revision_of(headers: Headers) -> str | None:
    """The revision that a request names; None if it names none.

    Without the header it is 2025-03-26 or older, or the first request of a session
    (`initialize`). Several values are joined (`2025-11-25, 2025-06-18`): widespread clients send
    that (python-sdk#1861).
    """
    values = headers.get_list(PROTOCOL_VERSION)
    return ", ".join(values) or None


def has_mirrors(revision: str | None) -> bool:
    """Whether the headers of a POST of this revision repeat the body: from 2026-07-28 on and, as in
    the SDK, in any unknown revision that is not an earlier date. Of a list, whether any does: a
    server may use it.
    """
    if revision is None:
        return False
    named = [item for item in map(str.strip, revision.split(",")) if item]
    return any(_DATE.fullmatch(item) is None or item >= _FIRST_MIRRORED for item in named)


def check(headers: Headers, message: Any) -> Rejection | None:
    """Why the headers of a POST do not match its decoded body; None if they do, or have no mirrors.

    A request must have them all. A notification or a response need not have any, but one that is
    there must be right. Parameters that the body does not hold have no header. `Mcp-Param-*` are
    the server's to verify: only it knows which argument each mirrors. A batch is refused, as the
    SDK's servers do: no header fits it.
    """
    if not has_mirrors(revision_of(headers)):
        return None
    if not isinstance(message, dict):
        return Rejection(INVALID_REQUEST, "the body must be a single JSON-RPC message")
    problem = _mismatch(headers, message)
    if problem is None:
        return None
    given = message.get("id")
    ident = given if isinstance(given, (int, str)) and not isinstance(given, bool) else None
    return Rejection(HEADER_MISMATCH, problem, ident)


def _mismatch(headers: Headers, message: dict[str, Any]) -> str | None:
    for name in (PROTOCOL_VERSION, METHOD, NAME):
        if len(headers.get_list(name)) > 1:  # readers of the first and of the last would disagree
            return f"{name} header appears more than once"
    method, params = message.get("method"), message.get("params")
    required = "id" in message and "method" in message
    version = _version_in(params)
    if version is not None and headers[PROTOCOL_VERSION] != version:
        return f"{PROTOCOL_VERSION} header does not match the protocol version in _meta"
    given = headers.get(METHOD)
    if given != method and (required or given is not None):
        return f"{METHOD} header does not match the body's method"
    key = NAMED_BY.get(method) if isinstance(method, str) else None
    if key is None:
        return None
    given, value = headers.get(NAME), _member(params, key)
    if given is None:
        matches = value is None or not required
    else:
        decoded = decode_value(given)
        matches = decoded is not None and decoded == value
    return None if matches else f"{NAME} header does not match the body's parameter {key!r}"


def mirror(headers: Headers, message: Any, before: Any = None) -> None:
    """Make the headers of a POST match its changed body. Headers that match already keep their
    bytes.

    `before`: the body that the headers mirrored. An `Mcp-Param-*` repeats the argument that had its
    value. If two arguments had that value and now differ, the header stays, and a server that knows
    it refuses the request. Does nothing for a revision without mirrors, or a batch.
    """
    if not has_mirrors(revision_of(headers)) or not isinstance(message, dict):
        return
    method, params = message.get("method"), message.get("params")
    version = _version_in(params)
    if isinstance(version, str) and _PLAIN.fullmatch(version):
        _set(headers, PROTOCOL_VERSION, version)
    if not isinstance(method, str):
        return
    required = "id" in message
    if required or METHOD in headers:
        _set(headers, METHOD, method)
    key = NAMED_BY.get(method)
    if key is not None:
        name = _member(params, key)
        if not isinstance(name, str):
            headers.pop(NAME, None)
        elif required or NAME in headers:
            _set(headers, NAME, name)
    elif NAME in headers and _member(before, "method") != method:
        del headers[NAME]  # it belonged to the old method
    if before is not None:
        old, new = (_member(_member(body, "params"), "arguments") for body in (before, message))
        _mirror_arguments(headers, old, new)


def encode_value(value: str) -> str:
    """A value in a header: itself, or `=?base64?...?=` if it is not visible ASCII, has spaces at
    its ends, or looks encoded already.
    """
    if _PLAIN.fullmatch(value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'surrogatepass')).decode('ascii')}?="


def decode_value(value: str) -> str | None:
    """The reverse of `encode_value`; None for a payload that is not canonical base64 of UTF-8."""
    match = _SENTINEL.fullmatch(value)
    if match is None:
        return value
    try:
        decoded = base64.b64decode(match[1], validate=True)
        return (
            decoded.decode("utf-8")
            if base64.b64encode(decoded).decode("ascii") == match[1]
            else None
        )
    except (
        binascii.Error,
        ValueError,
    ):  # UnicodeError, of the payload or what it holds, is a ValueError
        return None


def _version_in(params: Any) -> Any:
    return _member(_member(params, "_meta"), VERSION_KEY)


def _member(tree: Any, key: str) -> Any:
    return tree.get(key) if isinstance(tree, dict) else None


def _set(headers: Headers, name: str, value: str) -> None:
    if [decode_value(given) for given in headers.get_list(name)] != [value]:
        headers[name] = encode_value(value)


def _mirror_arguments(headers: Headers, old: Any, new: Any) -> None:
    before, after = dict(_scalars(old)), dict(_scalars(new))
    for name in {name for name in headers if name.startswith(PARAM_PREFIX)}:
        given = headers.get_list(name)
        value = decode_value(given[0])
        if len(given) > 1 or value is None:
            continue
        now = {after.get(path) for path, was in before.items() if was == value}
        if len(now) != 1:
            continue  # no known argument, or several that now differ
        (current,) = now
        if current is None:  # the header of an argument that is absent is absent
            del headers[name]
        else:
            _set(headers, name, current)


def _scalars(arguments: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every scalar argument, at any depth, as a header has it."""
    stack: list[tuple[tuple[str, ...], Any]] = [
        ((), arguments)
    ]  # not recursive: the client controls the depth
    while stack:
        path, node = stack.pop()
        if isinstance(node, dict):
            stack.extend(((*path, key), value) for key, value in node.items())
        elif isinstance(node, bool):
            yield path, "true" if node else "false"
        elif isinstance(node, (str, int, float)):
            try:
                yield path, str(node)
            except (
                ValueError
            ):  # an integer with more digits than Python writes: no client mirrors it
                continue
