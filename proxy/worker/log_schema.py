"""Every event of the log with its fields, and the JSON Schema of a line.

A field means the same in every event. `weirpool schema --log` prints the schema, which is also
docs/log-schema.json. Only tests and that command import this module: lines are not checked while
they are written.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from interceptors import Outcome

from ..config import ExchangeField, LogLevel

__all__ = ["EVENTS", "LogEvent", "log_schema"]

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number", "minimum": 0}
_TEXTS = {"type": "array", "items": _TEXT}
_YES_NO = {"type": "boolean"}
_LEVEL = {"enum": [*get_args(LogLevel), "critical"]}


def _or_null(kind: dict[str, Any]) -> dict[str, Any]:
    return {"type": [kind["type"], "null"], **{key: kind[key] for key in kind if key != "type"}}


_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "admin": (_TEXT, "address of the admin pages"),
    "allocations": (_COUNT, "leases that made a new buffer"),
    "away_seconds": (_NUMBER, "how long the store was away"),
    "bind": (_TEXTS, "addresses that the process listens on"),
    "bytes": (_COUNT, "bytes of the body that were sent to the client"),
    "cache_written": (_or_null(_NUMBER), "tokens that were written to a cache"),
    "cached": (_or_null(_NUMBER), "input tokens that were read from a cache"),
    "changed": (_TEXTS, "paths of settings that apply now"),
    "client": (_or_null(_TEXT), "name of the client's key, or else its address"),
    "connections": (_COUNT, "connections that were reset"),
    "count": (_COUNT, "how many occurrences the line reports"),
    "current_size": (_COUNT, "idle buffers"),
    "delay": (_NUMBER, "seconds until what follows"),
    "discards": (_COUNT, "buffers that were not kept"),
    "duration": (_NUMBER, "seconds from the head of the request to the end of the exchange"),
    "endpoint": (_or_null(_TEXT), "URL of the endpoint"),
    "error": (_or_null(_TEXT), "what went wrong"),
    "error_type": (_TEXT, "error type, or the outcome"),
    "errors": (_TEXTS, "mistakes, each with its path"),
    "event_type": (_or_null(_TEXT), "type of the event that was not understood"),
    "events": (_or_null(_COUNT), "events; null if no interceptor sees them"),
    "exception": (_TEXT, "traceback"),
    "exit_status": ({"type": "integer"}, "exit status; negative: the signal"),
    "finish_reason": (_or_null(_TEXT), "why the model ended its answer"),
    "high_water": (_COUNT, "most buffers that were on loan at once"),
    "hook": (_TEXT, "method of the interceptor"),
    "in_use": (_COUNT, "buffers on loan"),
    "input": (_or_null(_NUMBER), "input tokens"),
    "interceptor": (_TEXT, "name of the interceptor"),
    "kind": (_TEXT, "kind of the failure, or of the text that was found"),
    "leaving": (_YES_NO, "whether the lifespan failed while it was exited"),
    "limit": (_TEXT, "name of the limit"),
    "log_level": ({"enum": [*get_args(LogLevel)]}, "level from now on"),
    "max_streams_by_open_files": (_COUNT, "streams that the limit of open files allows"),
    "message": (_or_null(_TEXT), "text for people"),
    "method": (_TEXT, "method of the request; empty if its head could not be read"),
    "model": (_TEXT, "model, or -"),
    "name": (_TEXT, "what is limited: a key, a team, a route, a model"),
    "needs_restart": (_TEXTS, "paths of changed settings that need a new process"),
    "object": (_TEXT, "object whose finaliser failed"),
    "ok": (_YES_NO, "whether the new configuration applies"),
    "on_error": ({"enum": ["abort", "skip"]}, "what follows from a failure of the interceptor"),
    "outcome": ({"enum": [item.value for item in Outcome]}, "how the exchange ended"),
    "output": (_or_null(_NUMBER), "output tokens"),
    "path": (_TEXT, "path of the request without its query, of a setting, or of a file"),
    "pattern": (_COUNT, "number of the pattern, from 0"),
    "pid": (_COUNT, "process that wrote the line, or, if it has died, the one that did"),
    "pool": (_TEXT, "buffer pool"),
    "reason": (_TEXT, "why, without content"),
    "reasoning": (_or_null(_NUMBER), "output tokens that the client does not see"),
    "request_id": (_TEXT, "id of the request"),
    "reuse_rate": (_NUMBER, "reuses as a share of all leases"),
    "reuses": (_COUNT, "leases that took an idle buffer"),
    "route": (_TEXT, "path prefix of the route; empty if none matches"),
    "routes": (_TEXTS, "path prefixes of all routes"),
    "sample": (
        {"type": "number", "minimum": 0, "maximum": 1},
        "share of such lines that is logged",
    ),
    "seconds": (_NUMBER, "duration"),
    "span_id": (_TEXT, "span of the exchange"),
    "status": (_or_null(_COUNT), "status that the client got; null if it got none"),
    "store": (_TEXT, "address of the store, or memory"),
    "streamed": (_YES_NO, "whether the answer was an event stream"),
    "streams": (_COUNT, "open exchanges"),
    "taken_at": (_or_null(_TEXT), "traceback of the lease"),
    "thread": (_or_null(_TEXT), "name of the thread"),
    "time_to_first_byte": (_or_null(_NUMBER), "seconds to the first byte of the body"),
    "timeout": (_NUMBER, "seconds that open exchanges have"),
    "tls": (_YES_NO, "whether clients connect with TLS"),
    "trace_id": (_TEXT, "trace of the exchange"),
    "upstream": (_or_null(_TEXT), "name of the upstream; null if no route matches"),
    "upstream_request_id": ({"type": "string", "maxLength": 128}, "the upstream's own id"),
    "upstreams": (_TEXTS, "names of all upstreams"),
    "used": (_NUMBER, "what was used of the limit"),
    "user_agent": (_or_null(_TEXT), "the client's User-Agent"),
    "writer": ({"enum": ["direct", "asgi"]}, "what serves clients' connections"),
}
"""The type and the meaning of each field."""

_HOOK = "interceptor hook"


class LogEvent(NamedTuple):
    """One event of the log."""

    meaning: str
    required: str = ""
    """Fields that each line has, with spaces between them, besides those of every line."""
    optional: str = ""


EVENTS: dict[str, LogEvent] = {
    "accept_failed": LogEvent("Connections could not be accepted.", "error count"),
    "budget_over": LogEvent("A soft limit of `budget` is crossed.", "route limit name used"),
    "buffer_leaked": LogEvent("A lease was lost.", "pool taken_at"),
    "buffer_pool_report": LogEvent(
        "The state of one buffer pool.",
        "pool reuse_rate allocations reuses discards in_use current_size high_water",
    ),
    "config_warning": LogEvent("A setting that is probably not intended.", "path message"),
    "drain": LogEvent(
        "The process ends, and open exchanges have `timeout`.", "streams timeout delay"
    ),
    "drain_cut": LogEvent("Connections that did not end in time were reset.", "connections"),
    "endpoint_back": LogEvent("An endpoint is in service again.", "upstream endpoint"),
    "endpoint_ejected": LogEvent(
        "An endpoint is out of service for `seconds`.", "upstream endpoint seconds error"
    ),
    "exchange": LogEvent(
        "An exchange has ended. `log.fields` selects its fields.",
        optional=" ".join(["sample", "span_id", *get_args(ExchangeField)]),
    ),
    "guard_stopped": LogEvent("`guard` ended an answer.", "route interceptor pattern kind"),
    "hub_died": LogEvent("The event loop of streams failed; the process ends.", "exception"),
    "interceptor_failed": LogEvent("A hook raised.", f"{_HOOK} on_error exception"),
    "interceptor_slow": LogEvent("A hook held the event loop.", f"{_HOOK} seconds"),
    "interceptor_waited": LogEvent("An async hook waited long.", f"{_HOOK} seconds"),
    "internal_error": LogEvent("A defect of the proxy.", "exception", f"{_HOOK} route"),
    "lifespan_failed": LogEvent("The lifespan of an interceptor failed.", "leaving exception"),
    "lines_dropped": LogEvent(
        "Lines could not be written: `count` of the log, or the first of the file `path`.",
        optional="count path reason",
    ),
    "lines_lost": LogEvent("Lines of a file were lost at the end.", "path count"),
    "log_failed": LogEvent("A line could not be rendered."),
    "log_level_changed": LogEvent("The level of the log has changed.", "log_level"),
    "process_failed": LogEvent("An exception ended the process.", "exception", "error"),
    "random_secret": LogEvent("No `secret` is configured.", "message"),
    "reconnect": LogEvent("A broken stream is resumed.", "route upstream delay error"),
    "reload": LogEvent(
        "The configuration was read again.", "ok", "changed needs_restart routes errors exception"
    ),
    "server": LogEvent("A message of Hypercorn.", "message", "exception"),
    "start_failed": LogEvent("The process cannot start.", "errors"),
    "started": LogEvent(
        "The process serves.",
        "routes upstreams writer store",
        "bind tls max_streams_by_open_files admin",
    ),
    "store_down": LogEvent("The store does not answer.", "store kind error"),
    "store_server_died": LogEvent("The supervisor's own store ended.", "exit_status"),
    "store_up": LogEvent("The store answers again.", "store away_seconds"),
    "thread_failed": LogEvent("An exception ended a thread.", "thread exception"),
    "tracing_failed": LogEvent("Spans could not be exported.", "error", "count"),
    "tracing_unavailable": LogEvent("Traces are asked for and cannot be made.", "error"),
    "unraisable_exception": LogEvent("A finaliser failed.", "message object exception"),
    "unread_part": LogEvent(
        "A part of an answer that no reader understands passed.",
        "route event_type reason",
        "interceptor",
    ),
    "unreadable_answer": LogEvent(
        "An interceptor could not read an answer.", f"{_HOOK} on_error reason"
    ),
    "usage": LogEvent(
        "The tokens of one answer.",
        "route interceptor model status streamed finish_reason error outcome"
        " input output cached cache_written reasoning",
    ),
    "worker_died": LogEvent("A worker ended, and is replaced.", "exit_status"),
    "worker_killed": LogEvent("A worker did not end after the signal, and was killed."),
}
"""Every event of the proxy and its built-in interceptors."""

_ALWAYS = ("event", "level", "timestamp", "pid")
_OF_EXCHANGE = "request_id client path trace_id span_id"


def log_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of one line of the log with `format: json`.

    Known events have the fields of the table and no others. Every other event is a library's, which
    has `logger`, or an interceptor's own, which may have any fields.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of Weirpool's log",
        "type": "object",
        "required": [*_ALWAYS],
        "properties": {
            "event": _TEXT,
            "level": _LEVEL,
            "timestamp": {
                "type": "string",
                "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
            },
            "pid": _described("pid"),
        },
        "allOf": [
            {
                "if": {"properties": {"event": {"const": name}}},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name in EVENTS
        ],
        "$defs": {name: _definition(event) for name, event in EVENTS.items()},
    }


def _definition(event: LogEvent) -> dict[str, Any]:
    required = event.required.split()
    names = dict.fromkeys([*required, *event.optional.split(), *_OF_EXCHANGE.split()])
    return {
        "description": event.meaning,
        "required": required,
        "properties": {
            **dict.fromkeys(_ALWAYS, True),
            **{name: _described(name) for name in names},
        },
        "additionalProperties": False,
    }


def _described(name: str) -> dict[str, Any]:
    kind, meaning = _FIELDS[name]
    return {"description": meaning, **kind}
