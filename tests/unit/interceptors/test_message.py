"""Requests, response heads and responses: what authors see and may set."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.interceptors import awaiting, interceptor
from unit.interceptors.scripted import Hook, keep

from interceptors import Event, Headers, NotJson, Request, Response, ResponseHead
from interceptors.testing import run_request

# A request's path


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/x/../admin", "/admin"),
        ("//%61dmin/.", "/admin/"),
        ("/a%2Fb", "/a%2Fb"),
        ("/é/日", "/%C3%A9/%E6%97%A5"),
    ],
)
def test_a_path_in_any_spelling_is_normalised(given: str, path: str) -> None:
    """`path` is for checks; what goes upstream is unchanged."""
    request = Request(path=given)
    assert request.path == path
    if given.isascii():
        assert request.raw_path == given.encode()


QUOTED = {
    "/a b": b"/a%20b",
    "/caf\u00e9/\U0001f511": b"/caf%C3%A9/%F0%9F%94%91",
    "/a?b=c#d": b"/a%3Fb=c%23d",
    "/a HTTP/1.1\r\n\r\nX-Evil: 1": b"/a%20HTTP/1.1%0D%0A%0D%0AX-Evil:%201",
    "/\0a\\b": b"/%00a%5Cb",
    '/<">{}|^`': b"/%3C%22%3E%7B%7D%7C%5E%60",
    "/%2e/a%2Fb": b"/%2e/a%2Fb",
    "/:@!$&'()*+,;=~-._": b"/:@!$&'()*+,;=~-._",
    "/\u2028\x7f\x85": b"/%E2%80%A8%7F%C2%85",
}


@pytest.mark.parametrize(("path", "raw_path"), QUOTED.items())
def test_a_path_that_is_set_is_quoted(path: str, raw_path: bytes) -> None:
    """It replaces what goes upstream, and the query stays."""
    request = Request(path="/admin", raw_path=b"/x/../%61dmin", query=b"a=%20&b")
    assert (request.path, request.raw_path) == ("/admin", b"/x/../%61dmin")
    request.path = path
    assert (request.path, request.raw_path, request.query) == (path, raw_path, b"a=%20&b")


@given(st.text(max_size=20))
@example("\r\n")
def test_no_text_leaves_the_path(text: str) -> None:
    request = Request()
    request.path = "/" + text
    assert request.raw_path.startswith(b"/")
    assert all(0x21 <= byte <= 0x7E and byte not in b'?#"<>\\' for byte in request.raw_path)
    assert httpx.URL("http://host").copy_with(raw_path=request.raw_path).host == "host"


@pytest.mark.parametrize("path", ["", "a", "*", "http://evil/", "?a", " /a", "\ud800", "/\ud800"])
def test_an_invalid_path_is_refused_and_nothing_changes(path: str) -> None:
    request = Request(path="/a", raw_path=b"/%61")
    with pytest.raises(ValueError, match="a request's path"):
        request.path = path
    assert (request.path, request.raw_path) == ("/a", b"/%61")


# Headers


def test_headers_are_found_in_any_case_and_kept_as_often_as_they_came() -> None:
    request = Request(headers=[(b"X-Team", b"red"), (b"Accept", b"a"), (b"accept", b"b")])
    assert isinstance(request.headers, Headers)
    assert request.headers["x-team"] == "red"
    assert request.headers.get_list("ACCEPT") == ["a", "b"]
    request.headers["X-TEAM"] = "blue"
    del request.headers["accept"]
    assert request.headers.raw == [(b"X-TEAM", b"blue")]


@pytest.mark.parametrize(
    "given",
    [
        {"X-A": "b", "x-c": "d"},
        [(b"X-A", b"b"), (b"x-c", b"d")],
        Headers({"x-a": "b", "x-c": "d"}),
        MappingProxyType({"X-A": "b", "x-c": "d"}),
    ],
)
def test_headers_come_in_any_shape(given: Any) -> None:
    """A response's headers are its own; a request's and a head's are the object that was given."""
    request, head, response = (
        Request(headers=given),
        ResponseHead(200, given),
        Response("x", headers=given),
    )
    for headers in (
        *(request.headers, head.headers, response.headers),
        request.refuse(403, "no", "no", headers=given).headers,
    ):
        assert (headers["x-a"], headers["X-C"]) == ("b", "d")
    assert Response("x", headers=iter([(b"A", b"1")])).headers["a"] == "1"
    if isinstance(given, Headers):
        assert request.headers is head.headers is given
        assert "content-type" not in given


# A request's body


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_is_bytes_and_decoded_anew(kind: Callable[[bytes], Any]) -> None:
    request = Request(body=kind(b'{"a": [1]}'))
    assert request.body == b'{"a": [1]}'
    assert type(request.body) is bytes
    request.json()["a"].append(2)
    assert request.json() == {"a": [1]}
    assert not request.body_replaced


@pytest.mark.parametrize(
    "body",
    [b"", b"hunter2", b'{"password": hunter2}', b'"hunter2\xff"', b"[" * 5000, b'{"hunter2": 1'],
)
def test_a_body_that_is_not_json_is_not_shown(body: bytes) -> None:
    with pytest.raises(NotJson, match=r"^this request's body is n") as caught:
        Request(body=body).json()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("touch", [lambda request: request.body, lambda request: request.json()])
def test_an_uncollected_body_names_wants_body(touch: Callable[[Request], Any]) -> None:
    request = Request(body=None)
    with pytest.raises(RuntimeError, match=r"wants_body = True"):
        touch(request)
    request.replace_body(json=[1])
    assert (request.body, request.json()) == (b"[1]", [1])


@pytest.mark.parametrize(
    ("replacement", "body", "content_type"),
    [
        ({"json": {"a": "é"}}, '{"a":"é"}'.encode(), "application/json"),
        ({"json": None}, b"null", "application/json"),
        ({"data": b"\xff"}, b"\xff", "text/x"),
        ({"data": "é"}, "é".encode(), "text/x"),
        ({"data": b""}, b"", "text/x"),
        ({"data": ""}, b"", "text/x"),
    ],
)
def test_a_body_may_be_replaced(
    replacement: dict[str, Any], body: bytes, content_type: str
) -> None:
    request = Request(body=b"old", headers=[(b"content-type", b"text/x")])
    request.replace_body(**replacement)
    found = (request.body, request.headers["content-type"], request.body_replaced)
    assert found == (body, content_type, True)


@pytest.mark.parametrize(
    "given",
    [{}, {"data": b"x", "json": 1}, {"data": None}, {"data": "", "json": None}, {"json": object()}],
)
def test_an_invalid_body_replaces_nothing(given: dict[str, Any]) -> None:
    request = Request(body=b"old", headers=[(b"content-type", b"text/x")])
    with pytest.raises((ValueError, TypeError)):
        request.replace_body(**given)
    assert (request.body, request.body_replaced) == (b"old", False)
    assert request.headers["content-type"] == "text/x"


def test_the_next_interceptor_sees_the_replaced_body() -> None:
    def add(request: Request) -> None:
        request.replace_body(json=[*request.json(), len(request.body)])

    adds = interceptor("Adds", wants_body=True, on_request=awaiting(add))
    request = Request(body=b"[]")
    assert run_request([adds(), Hook(keep), adds()], request) is None
    assert request.body == b"[2,3]"


def test_reprs_show_nothing_secret() -> None:
    secret = [(b"content-type", b"a/b"), (b"set-cookie", b"hunter2")]
    request = Request(method="POST", path="/p", query=b"hunter2", headers=secret, body=b"hunter2")
    assert repr(request) == "<Request POST /p>"
    assert repr(ResponseHead(200, secret, request)) == "<ResponseHead 200 a/b>"
    assert repr(Response("hunter2", headers={"a": "hunter2"})) == "<Response 200>"


# Response heads


@pytest.mark.parametrize(
    ("headers", "media_type"),
    [
        ([(b"Content-Type", b"text/event-stream")], "text/event-stream"),
        ([(b"Content-Type", b" Text/Event-Stream ; charset=UTF-8")], "text/event-stream"),
        ([(b"Content-Type", b"application/json;q")], "application/json"),
        ([(b"Content-Type", b"")], ""),
        ([(b"Content-Type", b"a/b"), (b"Content-Type", b"a/c")], ""),
        ([], ""),
    ],
)
def test_a_media_type_has_no_parameters(
    headers: list[tuple[bytes, bytes]], media_type: str
) -> None:
    assert ResponseHead(200, headers).media_type == media_type


def test_a_head_has_a_request() -> None:
    request = Request(path="/p")
    assert ResponseHead(200, [], request).request is request
    assert ResponseHead(200, []).request.path == "/"


# Responses

JSON, TEXT = "application/json", "text/plain; charset=utf-8"
BYTES, SSE = "application/octet-stream", "text/event-stream"


@pytest.mark.parametrize(
    ("given", "body", "content_type"),
    [
        ({"body": "é"}, "é".encode(), TEXT),
        ({"body": b"\xff"}, b"\xff", BYTES),
        ({"json": {"a": "é"}}, '{"a":"é"}'.encode(), JSON),
        ({"json": None}, b"null", JSON),
        ({"body": "", "json": []}, b"[]", JSON),
        ({"events": [Event("x")]}, b"", SSE),
        ({"events": []}, b"", SSE),
        ({}, b"", None),
        ({"body": ""}, b"", None),
        ({"body": "<p>", "headers": {"Content-Type": "text/html"}}, b"<p>", "text/html"),
        ({"json": 1, "headers": [(b"content-type", b"a/b+json")]}, b"1", "a/b+json"),
        ({"events": [], "headers": Headers({"content-type": f"{SSE}; x"})}, b"", f"{SSE}; x"),
    ],
)
def test_a_responses_body_has_its_content_type(
    given: dict[str, Any], body: bytes, content_type: str | None
) -> None:
    """Unless the author gives another; an empty body has none."""
    made = Response(**given)
    assert (made.body, made.headers.get("content-type"), made.status) == (body, content_type, 200)


def test_a_status_must_end_a_request() -> None:
    head = ResponseHead(200, [])
    for status in (-1, 0, 99, 100, 199, 1000):
        message = f"^a response's status must be 200 to 999, not {status}$"
        with pytest.raises(ValueError, match=message):
            Response(status=status)
        with pytest.raises(ValueError, match="must be 200 to 999"):
            head.status = status
    assert head.status == 200
    for status in (200, 204, 304, 418, 599, 999):
        assert Response(status=status).status == status


@pytest.mark.parametrize(
    "bodies",
    [
        {"body": "x", "json": 1},
        {"body": b"x", "events": []},
        {"json": None, "events": []},
        {"body": "x", "json": None, "events": [Event("x")]},
    ],
)
def test_a_response_has_one_kind_of_body(bodies: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^a response takes only one of body, json and events$"):
        Response(**bodies)


# Refusals

REFUSES = interceptor(  # without `wants_body`
    "Refuses",
    on_request=awaiting(
        lambda request: (
            None
            if request.is_preflight
            else request.refuse(402, "no_credit", "pay first", headers={"x-pay": "here"})
        )
    ),
)
ERROR = {"type": "no_credit", "message": "pay first"}
MCP_ERROR = {"code": -32600, "message": "pay first", "data": {"type": "no_credit"}}
CALL = b'{"jsonrpc":"2.0","id":"7","method":"ping"}'


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        ("generic", b"", {"error": ERROR}),
        ("anthropic", b"", {"type": "error", "error": {**ERROR, "type": "invalid_request_error"}}),
        ("mcp", CALL, {"jsonrpc": "2.0", "id": "7", "error": MCP_ERROR}),
    ],
)
def test_a_refusal_is_in_the_dialect(dialect: str, body: bytes, expected: dict[str, Any]) -> None:
    """The request's id is added without `wants_body`."""
    answer = run_request([REFUSES()], Request(method="POST", dialect=dialect, body=body))
    assert answer is not None
    assert (answer.status, answer.headers["x-pay"]) == (402, "here")
    assert json.loads(answer.body) == expected


def test_a_refusal_has_the_type_that_openai_has_for_it() -> None:
    for status, kind in (
        (429, "rate_limit_error"),
        (401, "invalid_request_error"),
        (499, "invalid_request_error"),
        (500, "server_error"),
    ):
        error = {"message": "none left", "type": kind, "param": None, "code": "quota"}
        refusal = Request(dialect="openai").refuse(status, "quota", "none left")
        assert json.loads(refusal.body) == {"error": error}


def test_a_refusal_is_an_error() -> None:
    for status in (0, 100, 200, 302, 399, 600, 999):
        with pytest.raises(ValueError, match=f"400 to 599, not {status}"):
            Request().refuse(status, "no", "no")
    assert [Request().refuse(edge, "no", "no").status for edge in (400, 599)] == [400, 599]


ASKS = [(b"Origin", b"https://a.test"), (b"Access-Control-Request-Method", b"POST")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"headers": ASKS}, True),
        ({"headers": [*ASKS, (b"content-length", b"0")]}, True),
        ({"headers": ASKS, "method": "GET"}, False),
        ({"headers": ASKS[:1]}, False),
        ({"headers": ASKS[1:]}, False),
        ({"headers": [*ASKS, ASKS[0]]}, False),
        ({"headers": [*ASKS, ASKS[1]]}, False),
        ({"headers": ASKS, "body": b"x"}, False),
        ({"headers": ASKS, "body": None, "has_body": True}, False),
        ({"headers": [*ASKS, (b"Content-Length", b"1")], "body": None}, False),
        ({"headers": [*ASKS, (b"Transfer-Encoding", b"chunked")], "body": None}, False),
        ({"headers": [*ASKS, (b"X-HTTP-Method-Override", b"POST")]}, False),
    ],
)
def test_a_preflight_is_what_a_browser_sends(given: dict[str, Any], expected: bool) -> None:
    """Nothing else passes a check that lets preflights pass."""
    request = Request(**{"method": "OPTIONS", **given})
    assert request.is_preflight is expected
    assert (run_request([REFUSES()], request) is None) is expected
