"""What a JSON-RPC message of MCP is, and whether two readers may take it for different messages.

Sans I/O. Shapes: MCP 2024-11-05 to 2026-07-28, "Base Protocol".
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

from ..errors import NotJson

__all__ = ["Kind", "ambiguity", "classify"]


class Kind(StrEnum):
    """The kind of a message."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    """A result or an error."""
    MALFORMED = "malformed"
    """JSON that is not a message of MCP; `problem` is the reason."""


def classify(json: Any) -> tuple[Kind, str | None]:
    """The kind of a message, and what is wrong with it.

    A null member counts as absent: clients and servers take it so.
    """
    problem = _problem_of(json)
    if problem is not None:
        return Kind.MALFORMED, problem
    if json.get("method") is None:
        return Kind.RESPONSE, None
    return (Kind.NOTIFICATION if json.get("id") is None else Kind.REQUEST), None


def _problem_of(json: Any) -> str | None:
    if not isinstance(json, dict):
        return "a message is a JSON object"
    if json.get("jsonrpc") != "2.0":
        return 'a message has "jsonrpc": "2.0"'
    answers = [member for member in ("result", "error") if json.get(member) is not None]
    if json.get("method") is not None:
        return _problem_of_request(json, answers)
    if not answers and "result" in json:
        answers = ["result"]  # an answer without a value
    return _problem_of_response(json, answers)


def _problem_of_request(json: dict[str, Any], answers: list[str]) -> str | None:
    ident = json.get("id")
    if not isinstance(json["method"], str):
        return "a method is a string"
    if answers:
        return f"a message has a method or a {answers[0]}, not both"
    if ident is not None and not _is_id(ident):
        return "a request's id is a string or an integer"
    return None if isinstance(json.get("params"), dict | None) else "params are an object"


def _problem_of_response(json: dict[str, Any], answers: list[str]) -> str | None:
    ident = json.get("id")
    if len(answers) != 1:
        return "a message has one of method, result and error"
    if answers == ["error"]:
        error = json["error"]
        if not (
            isinstance(error, dict)
            and type(error.get("code")) is int
            and isinstance(error.get("message"), str)
        ):
            return "an error is an object with a code and a message"
        if ident is None:  # of a request that could not be read
            return None
    return None if _is_id(ident) else "a response's id is a string or an integer"


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int


# The members of a message and of its parameters that a policy or a server may go by.
_KNOWN = (
    *("jsonrpc", "id", "method", "params", "result", "error"),
    *("_meta", "name", "uri", "arguments", "ref", "type", "notifications", "resourceSubscriptions"),
)
_BY_FOLDED = {name.casefold(): name for name in _KNOWN}
_BY_FOLDED["resource_subscriptions"] = "resourceSubscriptions"  # the Python SDK reads either


def ambiguity(data: bytes) -> str | None:
    """Why two readers may take this JSON text for different messages; None if they cannot.

    RFC 8259, section 4, leaves open which of two members with one name counts, and some readers
    (Go's) ignore the case of names. So names must differ, those of a message and of its parameters
    also when case is ignored. Raises `NotJson`.
    """
    found: list[str] = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(members)
        if len(made) < len(members):
            found.append("a name occurs twice in one object")
        return made

    try:
        tree = json.loads(data.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise NotJson(
            "this MCP message is in JSON that clients and servers may read in different ways"
        ) from None
    for message in tree if isinstance(tree, list) else [tree]:
        if not all(map(_is_distinct, _places_in(message))):
            found.append(
                "two names in a message differ only in their case, or one is a known one in "
                "another case"
            )
    return found[0] if found else None


def _places_in(message: Any) -> list[dict[str, Any]]:
    """A message and those of its members whose names count."""
    places = [message]
    for member in ("params", "ref", "notifications"):
        places += [place[member] for place in places if isinstance(place, dict) and member in place]
    return [place for place in places if isinstance(place, dict)]


def _is_distinct(place: dict[str, Any]) -> bool:
    folded = [name.casefold() for name in place]
    return len(set(folded)) == len(folded) and all(
        _BY_FOLDED.get(fold, name) == name for fold, name in zip(folded, place, strict=True)
    )
