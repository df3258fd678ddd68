"""Requests, heads and answers: what an interceptor sees of them, what it may set, and what is
refused where it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.interceptors.scripted import Hook, keep

from interceptors import Event, Headers, Interceptor, NotJson, Request, Response, ResponseHead
from interceptors.testing import run_request

# --- a request's path
# ---------------------------------------------------------------------------------------------------


def test_a_path_is_what_servers_understand_and_the_raw_path_what_came() -> None:
    """A check of `path` cannot be passed by another spelling; what goes upstream is untouched."""
    request = Request(path="/admin", raw_path=b"/x/../%61dmin", query=b"a=%20&b")
    assert (request.path, request.raw_path, request.query) == (
        "/admin",
        b"/x/../%61dmin",
        b"a=%20&b",
    )


def test_setting_the_path_replaces_what_goes_upstream() -> None:
    """And leaves the query alone."""
    request = Request(path="/admin", raw_path=b"/x/../%61dmin", query=b"a=1")
    request.path = "/v2/chat"
    assert (request.path, request.raw_path, request.query) == ("/v2/chat", b"/v2/chat", b"a=1")


@pytest.mark.parametrize(
    ("path", "raw_path"),
    [
        ("/a b", b"/a%20b"),
        ("/caf\u00e9/\U0001f511", b"/caf%C3%A9/%F0%9F%94%91"),
        ("/a?b=c", b"/a%3Fb=c"),
        ("/a#b", b"/a%23b"),
        ("/a\r\nX-Evil: 1", b"/a%0D%0AX-Evil:%201"),
        ("/a HTTP/1.1\r\n\r\nGET /admin", b"/a%20HTTP/1.1%0D%0A%0D%0AGET%20/admin"),
        ("/\0", b"/%00"),
        ("/a\\b", b"/a%5Cb"),
        ('/<">{}|^`', b"/%3C%22%3E%7B%7D%7C%5E%60"),
        ("/%2e/a%2Fb", b"/%2e/a%2Fb"),
        ("/:@!$&'()*+,;=~-._", b"/:@!$&'()*+,;=~-._"),
        ("/\u2028\x7f\x85", b"/%E2%80%A8%7F%C2%85"),
    ],
)
def test_a_path_that_is_set_is_quoted(path: str, raw_path: bytes) -> None:
    """It stays a path: neither a query nor a fragment, and no end of the request line, can be put
    into it.
    """
    request = Request()
    request.path = path
    assert (request.path, request.raw_path) == (path, raw_path)


@given(st.text(max_size=20))
@example("\r\n")
def test_no_text_leaves_the_path(text: str) -> None:
    """Whatever is set, what goes upstream is printable ASCII without blanks, question marks and
    hashes.
    """
    request = Request()
    request.path = "/" + text
    assert request.raw_path.startswith(b"/")
    assert all(0x21 <= byte <= 0x7E and byte not in b'?#"<>\\' for byte in request.raw_path)
    assert httpx.URL("http://host").copy_with(raw_path=request.raw_path).host == "host"


@pytest.mark.parametrize("path", ["", "a", "*", "http://evil/", "?a", " /a", "\ud800", "/\ud800"])
def test_a_path_that_is_none_is_refused_and_nothing_changes(path: str) -> None:
    """A ValueError where it is set; `path` and what goes upstream are as they were, and the same
    path.
    """
    request = Request(path="/a", raw_path=b"/%61")
    with pytest.raises(ValueError, match="a request's path"):
        request.path = path
    assert (request.path, request.raw_path) == ("/a", b"/%61")


# --- a request's headers and body
# ---------------------------------------------------------------------------------------


def test_headers_are_found_in_any_case_and_kept_as_often_as_they_came() -> None:
    """They may be set, deleted and added to; the raw ones are in the order in which they came."""
    request = Request(headers=[(b"X-Team", b"red"), (b"Accept", b"a"), (b"accept", b"b")])
    assert isinstance(request.headers, Headers)
    assert (request.headers["x-team"], request.headers.get_list("ACCEPT"), request.headers.get("none")) == (
        "red", ["a", "b"], None,
    )  # fmt: skip
    request.headers["X-TEAM"] = "blue"
    del request.headers["accept"]
    assert request.headers.raw == [(b"X-TEAM", b"blue")]


def test_headers_that_are_given_are_the_requests_own() -> None:
    """An `httpx.Headers` stays the very object."""
    headers = Headers({"a": "b"})
    assert Request(headers=headers).headers is headers
    assert ResponseHead(200, headers).headers is headers


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_is_bytes_and_can_be_decoded(kind: Callable[[bytes], Any]) -> None:
    """Whatever it lies in; `json()` decodes anew, so that a changed value does not leak into the
    next look.
    """
    request = Request(body=kind(b'{"a": [1]}'))
    assert request.body == b'{"a": [1]}'
    assert type(request.body) is bytes
    request.json()["a"].append(2)
    assert request.json() == {"a": [1]}
    assert not request.body_replaced


def test_a_request_without_a_body_has_an_empty_one() -> None:
    """Which is not JSON."""
    assert Request().body == b""
    with pytest.raises(NotJson, match=r"^this request's body is not JSON"):
        Request().json()


@pytest.mark.parametrize(
    "body", [b"hunter2", b'{"password": hunter2}', b'"hunter2\xff"', b"[" * 5000, b'{"hunter2": 1']
)
def test_a_body_that_is_not_json_says_so_and_does_not_show_it(body: bytes) -> None:
    """It may hold a secret, and the message ends up in logs."""
    with pytest.raises(NotJson, match=r"^this request's body is n") as caught:
        Request(body=body).json()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "touch", [lambda request: request.body, lambda request: request.json()], ids=["body", "json"]
)
def test_a_body_that_passes_unread_says_how_to_get_it(touch: Callable[[Request], Any]) -> None:
    """RuntimeError, and not an empty body, which would be a lie; what replaces it can be looked at."""
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
    """JSON also sets the Content-Type; bytes and text leave it to the interceptor."""
    request = Request(body=b"old", headers=[(b"content-type", b"text/x")])
    request.replace_body(**replacement)
    assert (request.body, request.headers["content-type"], request.body_replaced) == (
        body,
        content_type,
        True,
    )


@pytest.mark.parametrize(
    "both", [{}, {"data": b"x", "json": 1}, {"data": None}, {"data": "", "json": None}]
)
def test_a_body_is_replaced_by_either_data_or_json(both: dict[str, Any]) -> None:
    """ValueError, and the body is as it was."""
    request = Request(body=b"old")
    with pytest.raises(ValueError, match="either data or json"):
        request.replace_body(**both)
    assert (request.body, request.body_replaced) == (b"old", False)


def test_a_body_that_cannot_be_encoded_replaces_nothing() -> None:
    """The mistake shows where it is made, and the request is as it was."""
    request = Request(body=b"old", headers=[(b"content-type", b"text/x")])
    with pytest.raises(TypeError):
        request.replace_body(json=object())
    assert (request.body, request.headers["content-type"], request.body_replaced) == (
        b"old",
        "text/x",
        False,
    )


def test_the_next_interceptor_sees_the_replaced_body() -> None:
    """A request is one object along the chain."""

    class Adds(Interceptor):
        wants_body = True

        async def on_request(self, request: Request) -> None:
            request.replace_body(json=[*request.json(), len(request.body)])

    request = Request(body=b"[]")
    assert run_request([Adds(), Hook(keep), Adds()], request) is None
    assert request.body == b"[2,3]"


def test_a_request_and_a_head_in_a_log_show_nothing_secret() -> None:
    """No query, no headers, no body."""
    request = Request(
        method="POST", path="/p", query=b"hunter2", headers=[(b"a", b"hunter2")], body=b"hunter2"
    )
    assert repr(request) == "<Request POST /p>"
    assert (
        repr(ResponseHead(200, [(b"content-type", b"a/b"), (b"set-cookie", b"hunter2")], request))
        == "<ResponseHead 200 a/b>"
    )
    assert repr(Response("hunter2", headers={"a": "hunter2"})) == "<Response 200>"


# --- a response's head
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        (b"text/event-stream", "text/event-stream"),
        (b" Text/Event-Stream ; charset=UTF-8", "text/event-stream"),
        (b"application/json;q", "application/json"),
        (b"", ""),
    ],
)
def test_a_media_type_is_the_content_type_without_its_parameters(
    value: bytes, media_type: str
) -> None:
    """In lower case, without blanks."""
    assert ResponseHead(200, [(b"Content-Type", value)]).media_type == media_type


def test_a_head_without_a_content_type_has_no_media_type() -> None:
    assert ResponseHead(204, []).media_type == ""


def test_a_head_has_a_request() -> None:
    """The one that it answers; an author's own, made without one, has a plain one."""
    request = Request(path="/p")
    assert ResponseHead(200, [], request).request is request
    assert ResponseHead(200, []).request.path == "/"


# --- an answer of one's own
# ---------------------------------------------------------------------------------------------

JSON, TEXT, BYTES, SSE = (
    "application/json",
    "text/plain; charset=utf-8",
    "application/octet-stream",
    "text/event-stream",
)


@pytest.mark.parametrize(
    ("response", "body", "content_type"),
    [
        (lambda: Response("é"), "é".encode(), TEXT),
        (lambda: Response(b"\xff"), b"\xff", BYTES),
        (lambda: Response(json={"a": "é"}), '{"a":"é"}'.encode(), JSON),
        (lambda: Response(json=None), b"null", JSON),
        (lambda: Response("", json=[]), b"[]", JSON),
        (lambda: Response(events=[Event("x")]), b"", SSE),
        (lambda: Response(events=[]), b"", SSE),
        (lambda: Response(), b"", None),
        (lambda: Response(""), b"", None),
        (lambda: Response(status=204), b"", None),
        (lambda: Response("<p>", headers={"Content-Type": "text/html"}), b"<p>", "text/html"),
        (
            lambda: Response(json=1, headers=[(b"content-type", b"application/problem+json")]),
            b"1",
            "application/problem+json",
        ),
        (
            lambda: Response(events=[], headers=Headers({"content-type": "text/event-stream; x"})),
            b"",
            "text/event-stream; x",
        ),
    ],
)
def test_an_answers_body_has_its_content_type(
    response: Callable[[], Response], body: bytes, content_type: str | None
) -> None:
    """Unless the author gives another; an empty body has none."""
    made = response()
    assert (made.body, made.headers.get("content-type"), made.status in (200, 204)) == (
        body,
        content_type,
        True,
    )


@pytest.mark.parametrize(
    "headers",
    [{"A": "1", "b": "2"}, [(b"A", b"1"), (b"b", b"2")], ((b"A", b"1"), (b"b", b"2")), iter([(b"A", b"1"), (b"b", b"2")]),
     Headers({"A": "1", "b": "2"})],
)  # fmt: skip
def test_an_answers_headers_may_come_in_any_shape(headers: Any) -> None:
    """And are its own: what is given stays as it is."""
    response = Response("x", headers=headers)
    assert response.headers["a"] == "1"
    assert (response.headers["b"], response.headers["content-type"]) == ("2", TEXT)
    if isinstance(headers, Headers | dict):
        assert "content-type" not in headers


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 199, 1000])
def test_a_status_that_cannot_end_a_request_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match=f"^a response's status must be 200 to 999, not {status}$"):
        Response(status=status)


@pytest.mark.parametrize("status", [200, 204, 304, 418, 599, 999])
def test_any_other_status_is_the_authors_choice(status: int) -> None:
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
def test_an_answer_has_one_kind_of_body(bodies: dict[str, Any]) -> None:
    """Two would be a mistake about which of them leaves."""
    with pytest.raises(ValueError, match=r"^a response takes only one of body, json and events$"):
        Response(**bodies)


def test_an_answers_events_are_left_to_whoever_sends_it() -> None:
    """They are not iterated before: an endless iterator is fine."""

    def endless() -> Any:
        while True:
            yield Event("x")

    events = endless()
    assert Response(events=events).events is events


@pytest.mark.parametrize(
    ("given", "path", "raw_path"),
    [
        ("/x/../admin", "/admin", b"/x/../admin"),
        ("//%61dmin/.", "/admin/", b"//%61dmin/."),
        ("/a%2Fb", "/a%2Fb", b"/a%2Fb"),
        ("/é/日", "/%C3%A9/%E6%97%A5", b"/%C3%A9/%E6%97%A5"),
    ],
)
def test_a_path_without_its_raw_form_is_taken_as_a_client_spells_it(
    given: str, path: str, raw_path: bytes
) -> None:
    """A test's `Request(path=...)` shows a hook what the proxy would show it, so that it can try
    other spellings.
    """
    request = Request(path=given)
    assert (request.path, request.raw_path) == (path, raw_path)


class Refuses(Interceptor):
    """Does not say `wants_body`."""

    async def on_request(self, request: Request) -> Response | None:
        return (
            None
            if request.is_preflight
            else request.refuse(402, "no_credit", "pay first", headers={"x-pay": "here"})
        )


@pytest.mark.parametrize(
    ("dialect", "body", "expected"),
    [
        ("generic", b"", {"error": {"type": "no_credit", "message": "pay first"}}),
        (
            "anthropic",
            b"",
            {"type": "error", "error": {"type": "invalid_request_error", "message": "pay first"}},
        ),
        (
            "mcp",
            b'{"jsonrpc":"2.0","id":"7","method":"ping"}',
            {
                "jsonrpc": "2.0",
                "id": "7",
                "error": {"code": -32600, "message": "pay first", "data": {"type": "no_credit"}},
            },
        ),
    ],
)
def test_a_refusal_has_the_shape_of_the_routes_dialect(
    dialect: str, body: bytes, expected: dict[str, Any]
) -> None:
    """For an author's interceptor as for the built-ins; it need not ask for the body that has the
    id.
    """
    answer = run_request([Refuses()], Request(method="POST", dialect=dialect, body=body))
    assert answer is not None
    assert (answer.status, answer.headers["x-pay"], json.loads(answer.body)) == (
        402,
        "here",
        expected,
    )


ASKS = [(b"Origin", b"https://a.test"), (b"Access-Control-Request-Method", b"POST")]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(method="OPTIONS", headers=ASKS), True),
        (Request(method="OPTIONS", headers=[*ASKS, (b"content-length", b"0")]), True),
        (Request(method="GET", headers=ASKS), False),
        (Request(method="OPTIONS", headers=ASKS[:1]), False),
        (Request(method="OPTIONS", headers=ASKS[1:]), False),
        (Request(method="OPTIONS", headers=[*ASKS, ASKS[0]]), False),
        (Request(method="OPTIONS", headers=ASKS, body=b"x"), False),
        (Request(method="OPTIONS", headers=ASKS, body=None, has_body=True), False),
        (Request(method="OPTIONS", headers=[*ASKS, (b"Content-Length", b"1")], body=None), False),
        (
            Request(
                method="OPTIONS", headers=[*ASKS, (b"Transfer-Encoding", b"chunked")], body=None
            ),
            False,
        ),
        (Request(method="OPTIONS", headers=[*ASKS, (b"X-HTTP-Method-Override", b"POST")]), False),
    ],
)
def test_a_preflight_is_what_a_browser_sends(request_: Request, expected: bool) -> None:
    """Nothing else passes a check that lets preflights pass."""
    assert request_.is_preflight is expected
    assert (run_request([Refuses()], request_) is None) is expected


@pytest.mark.parametrize(
    "given",
    [{"X-A": "b", "x-c": "d"}, [(b"X-A", b"b"), (b"x-c", b"d")], Headers({"x-a": "b", "x-c": "d"})],
)
def test_headers_may_be_a_mapping(given: Any) -> None:
    """Of a request, a head, a response and a refusal alike: text by name, pairs of bytes, or
    `Headers`.
    """
    request = Request(headers=given)
    for headers in (
        request.headers,
        ResponseHead(200, given).headers,
        Response(headers=given).headers,
        request.refuse(403, "no", "no", headers=given).headers,
        Request(headers=MappingProxyType(dict(Headers(given)))).headers,
    ):
        assert (headers["x-a"], headers["X-C"]) == ("b", "d")


@pytest.mark.parametrize("status", [0, 100, 199, 200, 204, 302, 399, 600, 999])
def test_a_refusal_is_an_error(status: int) -> None:
    """A status of success would be read as an answer."""
    with pytest.raises(ValueError, match=f"400 to 599, not {status}"):
        Request().refuse(status, "no", "no")
    assert Request().refuse(400, "no", "no").status == 400
    assert Request().refuse(599, "no", "no").status == 599


def test_a_limit_has_the_type_that_openai_has_for_it() -> None:
    for status, kind in (
        (429, "rate_limit_error"),
        (401, "invalid_request_error"),
        (500, "server_error"),
    ):
        body = json.loads(Request(dialect="openai").refuse(status, "quota", "none left").body)
        assert body == {
            "error": {"message": "none left", "type": kind, "param": None, "code": "quota"}
        }
