"""Audit: what it writes, and what it never writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from interceptors import Request, ResponseHead
from interceptors.audit import Audit, AuditOptions
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_request, run_response

SSE = (b"content-type", b"text/event-stream")
EVENTS = [b"event: greeting\nid: 7\ndata: hello w\xc3\xb6rld\n\n: a comment\n\n", b"data: two\n\n"]
ABOUT = {"route": "/v1", "client": "192.0.2.1", "method": "POST", "path": "/v1/chat"}


def audit(tmp_path: Path, **options: Any) -> Audit:
    return Audit(AuditOptions(path=str(tmp_path / "audit.jsonl"), **options))


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]


def exchange(interceptor: Audit) -> Request:
    """All of one exchange whose response is a stream."""
    kind, agent, team = b"application/json", b"curl/8", b"blue"
    headers = [(b"Content-Type", kind), (b"User-Agent", agent), (b"X-Team", team)]
    request = Request(
        **ABOUT, request_id="id-1", query=b"key=hidden", headers=headers, body=b"private\xff"
    )
    run_request([interceptor], request)
    head = ResponseHead(200, [SSE, (b"X-Model", b"a"), (b"x-model", b"b")], request)
    run_response([interceptor], head)
    assert run_chain([interceptor], EVENTS, request=request, head=head).output == b"".join(EVENTS)
    return request


def test_an_exchange_is_a_line_for_each_of_its_parts_tied_by_one_id(tmp_path: Path) -> None:
    """The documented fields, in UTC and under one random id, which is also in the request's state."""
    ids = [exchange(audit(tmp_path)).state["exchange_id"] for _ in range(2)]
    written = lines(tmp_path)
    assert [line.pop("exchange") for line in written] == [ids[0]] * 5 + [ids[1]] * 5
    assert ids[0] != ids[1]
    assert re.fullmatch("[0-9a-f]{16}", ids[0])
    for line in written:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line.pop("time"))
        assert line.pop("request_id") == "id-1"
    headers = {"content-type": "application/json", "user-agent": "curl/8"}
    assert written[:5] == [
        {"event": "request", **ABOUT, "headers": headers},
        {"event": "response", "status": 200, "headers": {"content-type": "text/event-stream"}},
        {"event": "stream_event", "type": "greeting", "id": "7", "bytes": 42},
        {"event": "stream_event", "type": None, "id": None, "bytes": 11},
        {"event": "end", **ABOUT, "status": 200, "events": 2, "outcome": "completed"},
    ]


def test_query_body_and_data_are_written_down_only_if_asked_for(tmp_path: Path) -> None:
    """A body is collected only by the instance that wants it."""
    exchange(audit(tmp_path))
    assert not audit(tmp_path).wants_body
    text = (tmp_path / "audit.jsonl").read_text()
    assert not any(word in text for word in ("hello", "hidden", "private"))
    every = audit(tmp_path, query=True, body=True, events="data", headers=("X-Team", "x-model"))
    assert every.wants_body
    exchange(every)
    request, response, *events, _ = lines(tmp_path)[5:]
    assert (request["query"], request["body"]) == ("key=hidden", "private\ufffd")
    assert [line["headers"] for line in (request, response)] == [
        {"x-team": "blue"},
        {"x-model": "a, b"},
    ]
    assert [line["data"] for line in events] == ["hello wörld", "two"]


def test_requests_and_events_may_be_left_out(tmp_path: Path) -> None:
    """The end has everything, and no event is even parsed."""
    interceptor = audit(tmp_path, requests=False, events="none")
    exchange(interceptor)
    (end,) = lines(tmp_path)
    large = b"data: " + b"x" * 1000 + b"\n\n"
    assert run_chain([interceptor], [large], max_event_bytes=100).output == large
    assert end.items() >= {"event": "end", **ABOUT, "status": 200, "events": None}.items()


def test_the_body_and_not_the_content_type_tells_what_is_written_down(tmp_path: Path) -> None:
    """Events under `application/json`, and JSON under `text/event-stream`."""
    interceptor, about = audit(tmp_path, events="data"), Request()
    head = ResponseHead(200, [(b"content-type", b"application/json")], about)
    run_chain([interceptor], [b"data: seen\n\n"], request=about, head=head)
    body = b'{"a": "unseen"}'
    assert run_chain([interceptor], [body], request=about).output == body
    ended = [("stream_event", None), ("end", 1), ("end", None)]
    assert [(line["event"], line.get("events")) for line in lines(tmp_path)] == ended
    assert "unseen" not in (tmp_path / "audit.jsonl").read_text()


def test_a_failure_stops_nothing(tmp_path: Path) -> None:
    """Here an id that another interceptor has set, and that is not JSON."""
    about = Request()
    about.state["exchange_id"] = object()
    assert run_request([audit(tmp_path)], about) is None
    assert lines(tmp_path) == []


def test_loading_opens_no_file(tmp_path: Path) -> None:
    """`weirpool check` loads what it checks, and must not create a file."""
    load_interceptor("audit", {"path": str(tmp_path / "audit.jsonl")})
    assert list(tmp_path.iterdir()) == []
