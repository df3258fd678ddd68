"""MCP messages: JSON-RPC 2.0 in a JSON body or in the data of an event, in both directions.

`parse` reads one message or a batch (2025-03-26). It never refuses JSON: what is not a message of
MCP is `MALFORMED`, with its `problem`. `Payload.encode` writes it again: members that did not
change keep their bytes. Shapes: MCP 2024-11-05 to 2026-07-28, "Base Protocol". Sans I/O; it does
not know which request a response answers (`mcp_calls`), nor headers (`mcp_headers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pools import decode_json, encode_json

from ..errors import InterceptorError
from ..event import not_json
from ..message import Request
from .mcp_calls import Call, RequestId
from .mcp_kinds import Kind, classify

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
    "is_too_long",
    "parse",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
MAX_BATCH = 100
"""Messages in a batch of a client. MCP 2025-03-26, which has batches, sets no limit."""
RESOURCE_NOT_FOUND = -32002
"""Up to 2025-11-25. From 2026-07-28 on, an unknown resource is `INVALID_PARAMS`."""

# The parameter with the name of what a message is about.
_ABOUT = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
    "notifications/resources/updated": "uri",
}
_COMPLETE = "completion/complete"  # its `ref` names it


class BatchTooLong(InterceptorError):
    """A client's batch has more than `MAX_BATCH` messages."""

    def __init__(self) -> None:
        super().__init__(f"a batch must have at most {MAX_BATCH} messages")


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
    """One message, as a view into its decoded JSON.

    Set `method`, `name`, `result` and `error`, or change `params`, `result` and `error` in place:
    changes are found by comparison.
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
        self._before: dict[str, bytes | None] = {}  # members that may have changed, as they were
        self.kind, self.problem = classify(json)
        self.from_client = from_client
        """The client sent it; otherwise the server did."""
        self.session: str | None = None
        """The session's id, where there is one."""
        self.revision: str | None = None
        """The revision in the client's headers; None without the header
        (`initialize`, 2025-03-26 and older).
        """
        self.request: Call | None = None
        """Of a response: the request that it answers, if that is known."""
        self.http: Request | None = None
        """The HTTP request that it came in, or in whose response."""
        self.dropped = False
        """It was dropped or answered, and goes no further."""

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
        """Of a request or a notification. Change it in place; if it is absent, fill the empty dict.
        Raises `ValueError` for a response.
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
        """Of a response, usually an object; None for an error. Change it in place, or set it."""
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
        """What the message is about: the name of a tool or prompt, the URI of a resource (or, in
        `completion/complete`, of its template); of a response, that of its request. None if it is
        missing or not a string.
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
        """What is kept of a request. Raises `ValueError` for other messages."""
        self._must_be(Kind.REQUEST)
        return Call(self._json["id"], self._json["method"], self.name, self.from_client)

    @property
    def changed(self) -> bool:
        """Whether anything in it has changed."""
        return bool(self.changes())

    def changes(self) -> dict[str, bytes | None]:
        """The members that have changed, as JSON text; None for one that was removed."""
        found = {member: self._now(member) for member in self._before}
        return (
            {member: now for member, now in found.items() if now != self._before[member]}
            if found
            else found
        )

    def drop(self) -> None:
        """Stop a notification. Raises `ValueError` for a request or a response: the other side
        waits for it.
        """
        self._must_be(Kind.NOTIFICATION)
        self.dropped = True

    def json(self) -> Any:
        """The whole message, as it is now. Read only: changes in it are not found."""
        return self._json

    def encode(self, raw: bytes, changes: dict[str, bytes | None]) -> bytes:
        """The message with these `changes`. `raw`: the received text, which other members keep."""
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
        sender = "client" if self.from_client else "server"
        return f"<McpMessage {self.kind} from {sender}>"  # nothing that could be secret


class Payload:
    """A message, or a batch of them, in one body or event. Made by `parse`."""

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
        """Why it is not MCP, or not all of it; None if it is."""
        if not self.messages:
            return "the batch is empty"
        ids = [message.id for message in self.messages if message.kind is Kind.REQUEST]
        if len(set(ids)) < len(ids):
            return "two requests of a batch have the same id"
        return next(
            (message.problem for message in self.messages if message.problem is not None), None
        )

    def encode(self) -> bytes | None:
        """What is left of it as JSON text: `data` itself if nothing has changed, None if nothing is
        left. A batch stays one.

        Raises `TypeError` for a value of a hook that JSON does not have.
        """
        changes = [message.changes() for message in self.messages]
        if not any(changes) and not any(message.dropped for message in self.messages):
            return self.data
        left = self.encode_each(changes)
        if not left:
            return None
        return b"[" + b",".join(left) + b"]" if self.is_batch else left[0]

    def encode_each(self, changes: Sequence[dict[str, bytes | None]] | None = None) -> list[bytes]:
        """Every message that is left, as JSON text. `changes`: those of each, if known."""
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
    """Read a body or the data of an event, in UTF-8. Raises `NotJson` and `BatchTooLong`."""
    try:
        raw = data.encode() if isinstance(data, str) else data
        json = decode_json(raw)
    except (ValueError, RecursionError) as error:
        raise not_json(error, "this MCP message") from None
    if from_client and is_too_long(json):
        raise BatchTooLong
    return Payload(raw, json, from_client=from_client)


def is_too_long(json: Any) -> bool:
    """Whether a batch has more messages than a client may send. Check before reading each."""
    return isinstance(json, list) and len(json) > MAX_BATCH
