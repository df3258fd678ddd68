"""`audit`: which lines it writes, and what never stands in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from interceptors import Interceptor, LoadError, Request, ResponseHead
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_request, run_response

USE = "interceptors.audit:Audit"
SECRET = "sk-secret-0123456789"


def load(path: Path, **options: Any) -> Interceptor:
    return load_interceptor(USE, {"path": str(path), **options})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def request_with_secrets() -> Request:
    headers = [
        (b"authorization", b"Bearer " + SECRET.encode()),
        (b"cookie", b"session=" + SECRET.encode()),
        (b"x-api-key", SECRET.encode()),
        (b"user-agent", b"curl/8"),
    ]
    return Request(
        method="POST",
        path="/v1/chat",
        query=b"key=" + SECRET.encode(),
        headers=headers,
        body=b'{"q": 1}',
        client="192.0.2.1",
    )


def test_a_request_is_one_line_without_credentials(tmp_path: Path) -> None:
    """Who, what and when; of the headers only those that were asked for, and of the query nothing."""
    path = tmp_path / "audit.jsonl"
    run_request([load(path, headers=["User-Agent"])], request_with_secrets())
    (line,) = lines_of(path)
    assert line.pop("time").endswith("Z")
    assert len(line.pop("exchange")) == 16
    assert line == {
        "event": "request",
        "route": "/",
        "client": "192.0.2.1",
        "client_key": None,
        "method": "POST",
        "path": "/v1/chat",
        "headers": {"User-Agent": "curl/8"},
    }
    assert SECRET not in path.read_text()


def test_query_and_body_are_written_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    interceptor = load(path, query=True, body=True)
    assert interceptor.wants_body
    run_request([interceptor], request_with_secrets())
    (line,) = lines_of(path)
    assert (line["query"], line["body"]) == ("key=" + SECRET, '{"q": 1}')


def test_a_responses_head_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    run_response([load(path)], ResponseHead(418, [(b"content-type", b"text/plain; x=y"), (b"set-cookie", SECRET.encode())]))
    (line,) = lines_of(path)
    assert (line["event"], line["status"], line["media_type"]) == ("response", 418, "text/plain")
    assert SECRET not in path.read_text()


@pytest.mark.parametrize("events", ["none", "meta", "data"])
def test_events_are_written_as_far_as_asked(events: str, tmp_path: Path) -> None:
    """All bytes pass as they came; the last line says how it ended."""
    path = tmp_path / "audit.jsonl"
    sent = [b"id: 7\nevent: e\ndata: on", b"e\n\n: beat\n\ndata: two\n\n"]
    assert run_chain([load(path, events=events)], sent).output == b"".join(sent)
    *seen, end = lines_of(path)
    for line in seen:
        del line["time"], line["exchange"]
    meta = [
        {"event": "event", "type": "e", "id": "7", "bytes": 26},
        {"event": "event", "type": None, "id": None, "bytes": 11},
    ]
    if events == "data":
        meta = [{**line, "data": data} for line, data in zip(meta, ("one", "two"), strict=True)]
    assert seen == ([] if events == "none" else meta)
    assert (end["event"], end["outcome"], end["events"]) == ("end", "completed", None if events == "none" else 2)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"headers": ["accept", "Authorization"]}, "headers[1]"),
        ({"headers": ["COOKIE"]}, "headers[0]"),
        ({"max_bytes": 1}, "max_bytes"),
        ({"keep": -1}, "keep"),
        ({"events": "all"}, "events"),
        ({"level": 1}, "level"),
    ],
)
def test_wrong_options_are_refused_with_their_path(options: dict[str, Any], where: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as refused:
        load(tmp_path / "audit.jsonl", **options)
    assert refused.value.option == where
