"""Audit: what it writes, what it never writes, and what it costs when it must look at nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from interceptors import (
    Interceptor,
    LoadError,
    Request,
    ResponseHead,
    StreamContext,
)
from interceptors.audit import CREDENTIALS, Audit, AuditOptions
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json, run_request, run_response

SSE = (b"content-type", b"text/event-stream")
EVENTS = [b"event: greeting\nid: 7\ndata: hello w\xc3\xb6rld\n\n: a comment\n\n", b"data: two\n\n"]


def audit(tmp_path: Path, **options: Any) -> Audit:
    return Audit(AuditOptions(path=str(tmp_path / "audit.jsonl"), **options))


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]


def request(**given: Any) -> Request:
    headers = [
        (b"Content-Type", b"application/json"),
        (b"User-Agent", b"curl/8"),
        (b"X-Team", b"blue"),
    ]
    return Request(
        method="POST",
        path="/v1/chat",
        query=b"key=hidden",
        headers=headers,
        route="/v1",
        client="192.0.2.1",
        **given,
    )


def exchange(interceptor: Interceptor, request: Request, chunks: list[bytes] = EVENTS) -> None:
    """All of one exchange whose response is a stream."""
    run_request([interceptor], request)
    head = ResponseHead(200, [SSE, (b"x-model", b"m")], request)
    run_response([interceptor], head)
    assert run_chain([interceptor], chunks, request=request, head=head).output == b"".join(chunks)


def test_an_exchange_is_a_line_for_each_of_its_parts_tied_by_one_id(tmp_path: Path) -> None:
    """Request, response, events and end with the documented fields, in UTC and under one random id."""
    exchange(audit(tmp_path), request())
    written = lines(tmp_path)
    (exchange_id,) = {line.pop("exchange") for line in written}
    assert re.fullmatch("[0-9a-f]{16}", exchange_id)
    for line in written:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line.pop("time"))
    about = {"route": "/v1", "client": "192.0.2.1", "method": "POST", "path": "/v1/chat"}
    assert written == [
        {
            "event": "request",
            **about,
            "headers": {"content-type": "application/json", "user-agent": "curl/8"},
        },
        {"event": "response", "status": 200, "headers": {"content-type": "text/event-stream"}},
        {"event": "stream_event", "type": "greeting", "id": "7", "bytes": 42},
        {"event": "stream_event", "type": None, "id": None, "bytes": 11},
        {"event": "end", **about, "status": 200, "events": 2, "outcome": "completed"},
    ]


def test_two_exchanges_have_two_ids_and_others_may_know_them(tmp_path: Path) -> None:
    """The id is in the request's state, so that another interceptor can name it."""
    first, second = request(), request()
    run_request([audit(tmp_path)], first)
    run_request([audit(tmp_path)], second)
    assert [line["exchange"] for line in lines(tmp_path)] == [
        first.state["exchange_id"],
        second.state["exchange_id"],
    ]
    assert first.state["exchange_id"] != second.state["exchange_id"]


def test_data_is_written_down_only_if_asked_for(tmp_path: Path) -> None:
    """`events: data` has the text of each event; otherwise no word of it is in the file."""
    exchange(audit(tmp_path), request())
    assert "hello" not in (tmp_path / "audit.jsonl").read_text()
    exchange(audit(tmp_path, events="data"), request())
    assert [line["data"] for line in lines(tmp_path) if "data" in line] == ["hello wörld", "two"]


@pytest.mark.parametrize("requests", [True, False])
def test_parts_may_be_left_out(requests: bool, tmp_path: Path) -> None:
    """Without requests and without events, one line for each stream remains, with everything."""
    exchange(audit(tmp_path, requests=requests, events="none"), request())
    written = lines(tmp_path)
    assert [line["event"] for line in written] == (["request", "response"] if requests else []) + [
        "end"
    ]
    assert {name: written[-1][name] for name in ("path", "status", "events", "outcome")} == {
        "path": "/v1/chat",
        "status": 200,
        "events": None,
        "outcome": "completed",
    }


def test_events_that_are_not_written_down_are_not_even_parsed(tmp_path: Path) -> None:
    """`events."""
    large = b"data: " + b"x" * 1000 + b"\n\n"
    seeing = run_chain([audit(tmp_path)], [large], max_event_bytes=100)
    assert (seeing.failure is not None, seeing.output) == (True, b"")
    stream = audit(tmp_path, events="none").open_stream(StreamContext(request()))
    assert stream is not None
    assert stream.needs == ()


def test_a_json_response_has_its_end_and_its_body_passes_unseen(tmp_path: Path) -> None:
    """How it ended is written down, what was in it is not, even where the data of events is."""
    interceptor, about = audit(tmp_path, events="data"), request()
    head = ResponseHead(200, [(b"content-type", b"application/json")], about)
    run_response([interceptor], head)
    assert (
        run_json([interceptor], b'{"a": "unseen"}', request=about, head=head) == b'{"a": "unseen"}'
    )
    assert [line["event"] for line in lines(tmp_path)] == ["response", "end"]
    assert lines(tmp_path)[1]["outcome"] == "completed"
    assert lines(tmp_path)[1]["events"] is None
    assert "unseen" not in (tmp_path / "audit.jsonl").read_text()


def test_the_body_and_not_the_content_type_tells_what_is_written_down(tmp_path: Path) -> None:
    """Events under `application/json`, as the chain is opened for them."""
    interceptor, about = audit(tmp_path, events="data"), request()
    head = ResponseHead(200, [(b"content-type", b"application/json")], about)
    run_chain([interceptor], [b"data: seen\n\n"], request=about, head=head)
    assert (
        run_chain([interceptor], [b'{"a": "unseen"}'], request=request()).output
        == b'{"a": "unseen"}'
    )
    assert [(line["event"], line.get("events")) for line in lines(tmp_path)] == [
        ("stream_event", None),
        ("end", 1),
        ("end", None),
    ]
    assert "unseen" not in (tmp_path / "audit.jsonl").read_text()


def test_query_and_body_are_written_down_only_if_asked_for(tmp_path: Path) -> None:
    """Both may be secret; a body is collected only by the instance that wants it."""
    assert not audit(tmp_path).wants_body
    run_request([audit(tmp_path)], request(body=b'{"a":"private"}'))
    text = (tmp_path / "audit.jsonl").read_text()
    assert "hidden" not in text
    assert "private" not in text
    both = audit(tmp_path, query=True, body=True)
    assert both.wants_body
    run_request([both], request(body=b'{"a":"private\xff"}'))
    assert lines(tmp_path)[-1]["query"] == "key=hidden"
    assert lines(tmp_path)[-1]["body"] == '{"a":"private\ufffd"}'


def test_headers_are_chosen_by_name(tmp_path: Path) -> None:
    """In any case, of requests and responses."""
    about = request()
    run_request([audit(tmp_path, headers=("X-Team", "x-model"))], about)
    head = ResponseHead(200, [(b"X-Model", b"a"), (b"x-model", b"b")], about)
    run_response([audit(tmp_path, headers=("X-Team", "x-model"))], head)
    assert [line["headers"] for line in lines(tmp_path)] == [
        {"x-team": "blue"},
        {"x-model": "a, b"},
    ]


@pytest.mark.parametrize("name", sorted(CREDENTIALS))
def test_a_header_that_holds_credentials_is_refused_at_load(name: str) -> None:
    """However it is spelt; the error names the option."""
    with pytest.raises(LoadError, match=rf"'{name.title()}' holds credentials") as refused:
        load_interceptor("audit", {"path": "audit.jsonl", "headers": ["accept", name.title()]})
    assert refused.value.option == "headers[1]"


@pytest.mark.parametrize(("options", "option"), [
    ({}, "path"), ({"path": ""}, "path"), ({"path": "a", "keep": 0}, "keep"),
    ({"path": "a", "max_bytes": 0}, "max_bytes"), ({"path": "a", "events": "all"}, "events"),
    ({"path": "a", "header": []}, "header"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_at_load(
    options: dict[str, Any], option: str
) -> None:
    """With the path of the mistake, before any file is opened."""
    with pytest.raises(LoadError) as refused:
        load_interceptor("audit", options)
    assert refused.value.option == option


def test_a_failure_stops_nothing(tmp_path: Path) -> None:
    """Here an id that another interceptor has set, and that is not JSON."""
    about = request()
    about.state["exchange_id"] = object()
    assert run_request([audit(tmp_path)], about) is None
    assert lines(tmp_path) == []


def test_loading_opens_no_file(tmp_path: Path) -> None:
    """`weirpool check` loads what it checks, and must not create a file."""
    loaded = load_interceptor("audit", {"path": str(tmp_path / "audit.jsonl")})
    assert isinstance(loaded, Audit)
    assert list(tmp_path.iterdir()) == []
