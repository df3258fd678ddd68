"""MCP messages: JSON-RPC 2.0 as the Model Context Protocol speaks it, in a JSON body or in an
event's data, both ways.

`parse` reads one message or a batch (2025-03-26). It never refuses JSON: what is no message of MCP
is `MALFORMED`, and says why. `Payload.encode` writes it again: whatever nobody changed keeps its
bytes, member by member. Shapes: MCP 2024-11-05 to 2026-07-28, "Base Protocol". Sans I/O; it does
not know which request a response answers (`mcp_calls`), nor headers (`mcp_headers`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from pools import decode_json, encode_json

from ..errors import InterceptorError, NotJson
from ..event import not_json
from ..message import Request
from .mcp_calls import Call, RequestId

__all__ = [
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "MAX_BATCH",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "RESOURCE_NOT_FOUND",
    "BatchTooLong",
    "Kind",
    "McpError",
    "McpMessage",
    "Payload",
    "ambiguity",
    "is_too_long",
    "parse",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
MAX_BATCH = 100
"""Messages in a batch of a client. The revision that has batches, 2025-03-26, has no limit; its
clients send a few.
"""
RESOURCE_NOT_FOUND = -32002
"""Up to 2025-11-25; from 2026-07-28 on a resource that is not there is `INVALID_PARAMS`."""

# The parameter that says what a message is about.
_ABOUT = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
    "notifications/resources/updated": "uri",
}
_COMPLETE = "completion/complete"  # about what its `ref` refers to


class BatchTooLong(InterceptorError):
    """A client's batch has more than `MAX_BATCH` messages."""

    def __init__(self) -> None:
        super().__init__(f"a batch must have at most {MAX_BATCH} messages")


class Kind(StrEnum):
    """What a message is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    """A result or an error."""
    MALFORMED = "malformed"
    """JSON, but no message of MCP; `problem` says why."""


@dataclass(frozen=True, slots=True)
class McpError:
    """A JSON-RPC error, to answer a request with. `http_status` None: as the revision demands."""

    code: int
    message: str
    data: Any = None
    http_status: int | None = None

    def json(self) -> dict[str, Any]:
        """The `error` member of a response."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        return error if self.data is None else error | {"data": self.data}


class McpMessage:
    """One message, as a view into its decoded JSON: set `method`, `name`, `result` and `error`, or
    change what is inside of `params`, `result` and `error` in place. What has changed is found by
    comparing, so nothing need be marked.
    """

    __slots__ = (
        "_before",
        "_json",
        "dropped",
        "from_client",
        "http",
        "kind",
        "problem",
        "request",
        "revision",
        "session",
    )

    def __init__(self, json: Any, *, from_client: bool) -> None:
        self._json = json
        self._before: dict[
            str, bytes | None
        ] = {}  # members that somebody may have changed, as they were
        self.kind, self.problem = _classify(json)
        self.from_client = from_client
        """Whether the client sent it; else the server did."""
        self.session: str | None = None
        """The session's id, where there is one."""
        self.revision: str | None = None
        """The revision that the client's headers name; None where they name none (`initialize`,
        2025-03-26 and older).
        """
        self.request: Call | None = None
        """Of a response: the request that it answers. None where that is not known."""
        self.http: Request | None = None
        """The HTTP request that it came in, or in whose response it came."""
        self.dropped = False
        """It goes no further: dropped, or answered."""

    @property
    def id(self) -> RequestId | None:
        """None for a notification, and for an error about a request that could not be read."""
        return self._json.get("id") if self.kind is not Kind.MALFORMED else None

    @property
    def method(self) -> str | None:
        """None for a response: see `request.method`."""
        return self._json.get("method") if self.kind in (Kind.REQUEST, Kind.NOTIFICATION) else None

    @method.setter
    def method(self, method: str) -> None:
        self._must_be(Kind.REQUEST, Kind.NOTIFICATION)
        self._set("method", method)

    @property
    def params(self) -> dict[str, Any]:
        """Of a request or a notification; where it has none, an empty dict that may be filled.
        Change it in place.
        """
        self._must_be(Kind.REQUEST, Kind.NOTIFICATION)
        if self._json.get("params") is None and "params" not in self._before:
            self._before["params"] = b"{}"
            self._json["params"] = {}
        self._watch("params")
        params: dict[str, Any] = self._json["params"]
        return params

    @property
    def result(self) -> Any:
        """Of a response, an object as a rule; None where it is an error. Change it in place, or set
        it.
        """
        return self._member("result")

    @result.setter
    def result(self, result: dict[str, Any]) -> None:
        self._must_be(Kind.RESPONSE)
        self._set("error", None)
        self._set("result", result)

    @property
    def error(self) -> dict[str, Any] | None:
        """`code`, `message` and perhaps `data` of a response that is an error. Change it in place,
        or set it.
        """
        error: dict[str, Any] | None = self._member("error")
        return error

    @error.setter
    def error(self, error: dict[str, Any] | McpError) -> None:
        self._must_be(Kind.RESPONSE)
        self._set("result", None)
        self._set("error", error.json() if isinstance(error, McpError) else error)

    @property
    def name(self) -> str | None:
        """What it is about: a tool's or a prompt's name, a resource's URI (or its template's, of
        `completion/complete`); of a response what its request was about. None where there is none,
        or where it is no string.
        """
        if self.kind is Kind.RESPONSE:
            return self.request.name if self.request is not None else None
        place = self._place_of_name()
        value = place[0].get(place[1]) if place is not None else None
        return value if isinstance(value, str) else None

    @name.setter
    def name(self, name: str) -> None:
        self._must_be(Kind.REQUEST, Kind.NOTIFICATION)
        place = self._place_of_name(self.params)
        if place is None:
            raise ValueError(
                f"a message of the method {self.method!r} is about nothing that has a name"
            )
        place[0][place[1]] = name

    @property
    def call(self) -> Call:
        """Of a request: what is kept of it. Raises `ValueError` for what is none."""
        self._must_be(Kind.REQUEST)
        return Call(self._json["id"], self._json["method"], self.name, self.from_client)

    @property
    def changed(self) -> bool:
        """Whether anything in it is not as it came."""
        return bool(self.changes())

    def changes(self) -> dict[str, bytes | None]:
        """The members that are not as they came, as JSON text; None for one that is gone."""
        found = {member: self._now(member) for member in self._before}
        return (
            {member: now for member, now in found.items() if now != self._before[member]}
            if found
            else found
        )

    def drop(self) -> None:
        """Let a notification go no further. Raises `ValueError` for a request or a response:
        somebody waits for it.
        """
        self._must_be(Kind.NOTIFICATION)
        self.dropped = True

    def json(self) -> Any:
        """The whole message, as it is now. Look only: what is changed in here is not seen."""
        return self._json

    def encode(self, raw: bytes, changes: dict[str, bytes | None]) -> bytes:
        """The message with these `changes`, of which `raw` is the text as it came: the other
        members keep their bytes.
        """
        if not changes:
            return raw
        came: dict[str, msgspec.Raw] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        written = {member: bytes(came[member]) for member in self._json if member in came}
        written |= {member: now for member, now in changes.items() if now is not None}
        return (
            b"{"
            + b",".join([encode_json(member) + b":" + text for member, text in written.items()])
            + b"}"
        )

    def _member(self, member: str) -> Any:
        if self.kind is not Kind.RESPONSE or member not in self._json:
            return None
        self._watch(member)
        return self._json[member]

    def _watch(self, member: str) -> None:
        if member not in self._before:
            self._before[member] = self._now(member)

    def _set(self, member: str, value: Any) -> None:
        """Set a member; None removes it."""
        self._watch(member)
        if value is None:
            self._json.pop(member, None)
        else:
            self._json[member] = value

    def _now(self, member: str) -> bytes | None:
        return encode_json(self._json[member]) if member in self._json else None

    def _place_of_name(self, params: Any = None) -> tuple[dict[str, Any], str] | None:
        """The dict that holds the name, and under which key."""
        method = self.method
        params = self._json.get("params") if params is None and method is not None else params
        if not isinstance(params, dict):
            return None
        if method == _COMPLETE:
            ref = params.get("ref")
            return (
                (ref, "uri" if ref.get("type") == "ref/resource" else "name")
                if isinstance(ref, dict)
                else None
            )
        key = _ABOUT.get(method or "")
        return (params, key) if key is not None else None

    def _must_be(self, *kinds: Kind) -> None:
        if self.kind not in kinds:
            raise ValueError(
                f"this is for a {' or a '.join(kinds)}, and the message is a {self.kind}"
            )

    def __repr__(self) -> str:
        return f"<McpMessage {self.kind} {'from client' if self.from_client else 'from server'}>"  # nothing that could be secret


class Payload:
    """What one body or one event holds: a message, or a batch of them. Made by `parse`."""

    __slots__ = ("data", "is_batch", "messages")

    def __init__(self, data: bytes, json: Any, *, from_client: bool) -> None:
        self.data = data
        """As it came."""
        self.is_batch = isinstance(json, list)
        self.messages = [
            McpMessage(item, from_client=from_client)
            for item in (json if self.is_batch else [json])
        ]

    @property
    def problem(self) -> str | None:
        """Why it is not what MCP speaks, or not all of it; None when it is."""
        if not self.messages:
            return "the batch is empty"
        ids = [message.id for message in self.messages if message.kind is Kind.REQUEST]
        if len(set(ids)) < len(ids):
            return "two requests of a batch have the same id"
        return next(
            (message.problem for message in self.messages if message.problem is not None), None
        )

    def encode(self) -> bytes | None:
        """What is left of it as JSON text: `data` itself when nothing is changed, None when nothing
        is left. A batch stays one.

        Raises `TypeError` for what a hook has put in and JSON cannot say.
        """
        changes = [message.changes() for message in self.messages]
        if not any(changes) and not any(message.dropped for message in self.messages):
            return self.data
        left = self.encode_each(changes)
        if not left:
            return None
        return b"[" + b",".join(left) + b"]" if self.is_batch else left[0]

    def encode_each(self, changes: Sequence[dict[str, bytes | None]] | None = None) -> list[bytes]:
        """Every message that is left, as JSON text; `changes`: each one's, where they are known."""
        raws = (
            msgspec.json.decode(self.data, type=list[msgspec.Raw]) if self.is_batch else [self.data]
        )
        changes = (
            changes if changes is not None else [message.changes() for message in self.messages]
        )
        triples = zip(self.messages, raws, changes, strict=True)
        return [
            message.encode(bytes(raw), changed)
            for message, raw, changed in triples
            if not message.dropped
        ]


def parse(data: bytes | str, *, from_client: bool) -> Payload:
    """Read a body or an event's data, UTF-8. Raises `NotJson`, never for JSON that is no message,
    and `BatchTooLong`.
    """
    try:
        raw = data.encode() if isinstance(data, str) else data
        json = decode_json(raw)
    except (ValueError, RecursionError) as error:
        raise not_json(error, "this MCP message") from None
    if from_client and is_too_long(json):
        raise BatchTooLong
    return Payload(raw, json, from_client=from_client)


def is_too_long(json: Any) -> bool:
    """Whether this is a batch with more messages than a client may send. Look before anything is
    made of each.
    """
    return isinstance(json, list) and len(json) > MAX_BATCH


def ambiguity(data: bytes) -> str | None:
    """Why two readers may take this JSON text for two different messages; None when they cannot.
    Raises `NotJson`.

    RFC 8259, section 4, leaves it open which of two members with one name counts; and some readers
    (Go's) do not mind the case of the names that they look for. So names must differ, those of a
    message and of its parameters also when case is ignored.
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
        places = [message]
        for member in ("params", "ref", "notifications"):
            places += [
                place[member] for place in places if isinstance(place, dict) and member in place
            ]
        for place in places:
            if isinstance(place, dict) and not _distinct(place):
                found.append(
                    "two names in a message differ only in their case, or one is a known one in another case"
                )
    return found[0] if found else None


# What somebody may go by, of a message and its parameters.
_KNOWN = (
    *("jsonrpc", "id", "method", "params", "result", "error"),
    *("_meta", "name", "uri", "arguments", "ref", "type", "notifications", "resourceSubscriptions"),
)
_BY_FOLDED = {name.casefold(): name for name in _KNOWN}
_BY_FOLDED["resource_subscriptions"] = (
    "resourceSubscriptions"  # the official Python SDK reads either
)


def _distinct(place: dict[str, Any]) -> bool:
    folded = [name.casefold() for name in place]
    return len(set(folded)) == len(folded) and all(
        _BY_FOLDED.get(fold, name) == name for fold, name in zip(folded, place, strict=True)
    )


def _classify(json: Any) -> tuple[Kind, str | None]:
    """The kind of a message, and what is wrong with it. A null member counts as absent, for clients
    and servers take it so.
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
    method, ident = json.get("method"), json.get("id")
    answers = [member for member in ("result", "error") if json.get(member) is not None]
    if method is not None:
        if not isinstance(method, str):
            return "a method is a string"
        if answers:
            return f"a message has a method or a {answers[0]}, not both"
        if ident is not None and not _is_id(ident):
            return "a request's id is a string or an integer"
        if not isinstance(json.get("params"), dict | None):
            return "params are an object"
        return None
    if not answers and "result" in json:
        answers = ["result"]  # an answer without a value
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
