"""The messages of `/inspect/stream`: Server-Sent Events with JSON, one line each.

    event: begin    a stream that matches: exchange, worker, id, request_id, route, dialect, client,
                    method, path, age
    event: head     at, status, content_type, interceptors (names, in their order); or answered_by
    event: event    number, at, stage, what, texts, cut, us, problem, body, parts
    event: lost     events that this view missed: it read too slowly
    event: end      at, outcome, status, bytes, events, duration, error, lost
    event: gone     nothing is left to watch, and nothing was shown

Each but `gone` has `exchange`. What is empty or the default is left out. Workers send each other the
same bytes. Sans I/O.
"""

from __future__ import annotations

from typing import Any

from pools import encode_any_json

from .tap import Record

__all__ = ["BEGIN", "GONE", "PING", "event_message", "message"]

BEGIN = b"event: begin\n"
"""How a message begins that shows a new stream."""
PING = b": ping\n\n"


def message(kind: str, fields: dict[str, Any]) -> bytes:
    """One message."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), encode_any_json(fields))


GONE = message("gone", {})


def event_message(exchange: str, record: Record, parts: list[dict[str, Any]]) -> bytes:
    """A record as a message, with the decoded `parts` of what leaves for the client."""
    fields: dict[str, Any] = {
        "exchange": exchange,
        "number": record.number,
        "at": record.at,
        "stage": record.stage,
        "what": record.what,
    }
    if record.texts:
        fields["texts"] = [text.decode("utf-8", "replace") for text in record.texts]
    if record.cut:
        fields["cut"] = record.cut
    if record.seconds:
        fields["us"] = round(record.seconds * 1e6, 1)
    if record.problem is not None:
        fields["problem"] = record.problem
    if record.is_body:
        fields["body"] = True
    if parts:
        fields["parts"] = parts
    return message("event", fields)
