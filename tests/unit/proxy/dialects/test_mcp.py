"""Where an MCP route stands between its clients and its upstream: references of one become the
other's.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from interceptors import Interceptor, Request
from interceptors.dialects.mcp_headers import VERSION_KEY
from interceptors.testing import run_request
from proxy.config import parse_config
from proxy.dialects.mcp_interceptors import state_of, surround
from proxy.http import parse_host
from proxy.http.place import ClientSide, Place
from proxy.worker.routes import Route, RouteTable


def place(prefix: str = "", base: str = "", *, strip: bool = False) -> Place:
    return Place(
        prefix=prefix, strip_prefix=strip, base=base, authorities=frozenset(["up.test:8080"])
    )


@pytest.mark.parametrize(
    ("where", "path", "reference", "expected"),
    [
        # A route that changes no path: only an absolute URL would lead around the proxy.
        (place(), "/sse", "/messages?s=1", "/messages?s=1"),
        (place(), "/sse", "messages?s=1", "messages?s=1"),
        (place(), "/sse", "?s=1", "?s=1"),
        (place(), "/sse", "", ""),
        (place(), "/sse", "http://up.test:8080/messages?s=1", "/messages?s=1"),
        (place(), "/sse", "HTTP://UP.test:8080/messages?s=1", "/messages?s=1"),
        (place(), "/sse", "//up.test:8080/messages?s=1", "/messages?s=1"),
        (place(), "/sse", "http://proxy.test/messages", "/messages"),
        (place(), "/sse", "https://proxy.test/messages", "/messages"),
        (place(), "/sse", "http://up.test:8080", "/"),
        (place(), "/sse", "http://up.test:9999/messages", "http://up.test:9999/messages"),
        (place(), "/sse", "http://other.test/messages", "http://other.test/messages"),
        (place(), "/sse", "http://user@up.test:8080/messages", "http://user@up.test:8080/messages"),
        (place(), "/sse", "http://up.test:8080//evil.test/x", "http://up.test:8080//evil.test/x"),
        (place(), "/sse", "ftp://up.test:8080/messages", "ftp://up.test:8080/messages"),
        (place(), "/sse", "mailto:a@up.test", "mailto:a@up.test"),
        (place(), "/sse", "http://[/messages", "http://[/messages"),
        # A prefix that is stripped.
        (place("/tools", strip=True), "/tools/sse", "/messages?s=1", "/tools/messages?s=1"),
        (place("/tools", strip=True), "/tools/sse", "messages?s=1", "messages?s=1"),
        (place("/tools", strip=True), "/tools/sse", "?s=1", "?s=1"),
        (place("/tools", strip=True), "/tools/a/sse", "../messages", "../messages"),
        (place("/tools", strip=True), "/tools/sse", "../messages", "/tools/messages"),
        (place("/tools", strip=True), "/tools", "messages", "/tools/messages"),
        (
            place("/tools", strip=True),
            "/tools/sse",
            "http://up.test:8080/messages?s=1#f",
            "/tools/messages?s=1#f",
        ),
        # A server that knows the prefix, as from X-Forwarded-Prefix.
        (place("/tools", strip=True), "/tools/sse", "/tools/messages", "/tools/messages"),
        (
            place("/tools", strip=True),
            "/tools/sse",
            "http://proxy.test/tools/messages",
            "/tools/messages",
        ),
        (
            place("/tools", strip=True),
            "/tools/sse",
            "/toolshed/messages",
            "/tools/toolshed/messages",
        ),
        (
            place("/tools", strip=True),
            "/tools/sse",
            "http://other.test/messages",
            "http://other.test/messages",
        ),
        # An endpoint with its own path.
        (place(base="/base"), "/sse", "/base/messages?s=1", "/messages?s=1"),
        (place(base="/base"), "/sse", "/base/?s=1", "/?s=1"),
        (place(base="/base"), "/sse", "/base?s=1", "/base?s=1"),
        (place(base="/base"), "/sse", "messages", "messages"),
        (place(base="/base"), "/sse", "/elsewhere", "/elsewhere"),
        (place(base="/base"), "/sse", "/basement/messages", "/basement/messages"),
        (place(base="/base"), "/sse", "http://up.test:8080/base/messages", "/messages"),
        (
            place(base="/base"),
            "/sse",
            "http://up.test:8080/elsewhere",
            "http://up.test:8080/elsewhere",
        ),
        (
            place("/tools", "/base", strip=True),
            "/tools/sse",
            "/base/messages?s=1",
            "/tools/messages?s=1",
        ),
        # A prefix that is not stripped: what lies outside it does not concern this route.
        (place("/mcp"), "/mcp/sse", "/mcp/messages", "/mcp/messages"),
        (place("/mcp"), "/mcp/sse", "http://up.test:8080/mcp/messages", "/mcp/messages"),
        (place("/mcp"), "/mcp/sse", "http://up.test:8080/other", "http://up.test:8080/other"),
        (place("/mcp"), "/mcp/sse", "/other", "/other"),
        (place("/mcp", "/base"), "/mcp/sse", "/base/mcp/messages", "/mcp/messages"),
    ],
)
def test_the_clients_view_of_a_reference(
    where: Place, path: str, reference: str, expected: str
) -> None:
    """What resolves rightly already stays byte for byte; what would miss the route leads to it;
    what is foreign is left alone.
    """
    assert where.client_view(reference, path=path, host="proxy.test") == expected


def route(endpoint: str, path: str, *, strip: bool) -> Route:
    config = parse_config(
        f'reverse_proxy:\n  upstreams: [{{name: up, endpoints: ["{endpoint}"]}}]\n'
        f"  routes: [{{path: {path}, upstream: up, dialect: mcp, strip_prefix: {str(strip).lower()}}}]"
    )
    return RouteTable(config).routes[0]


SEGMENT = st.text("ab", min_size=1, max_size=3)


@given(
    base=st.lists(SEGMENT, max_size=2).map(lambda parts: "".join(f"/{part}" for part in parts)),
    prefix=st.lists(SEGMENT, max_size=2).map(lambda parts: "".join(f"/{part}" for part in parts)),
    strip=st.booleans(),
    path=st.lists(SEGMENT, min_size=1, max_size=3).map(
        lambda parts: "".join(f"/{part}" for part in parts)
    ),
    reference=st.tuples(
        st.sampled_from(["", "/", "http://up.test:8080/", "../"]),
        st.lists(SEGMENT, max_size=4).map("/".join),
        st.just("?s=1"),
    ).map("".join),
)
def test_what_is_rewritten_comes_to_where_it_would_have_without_the_proxy(
    base: str, prefix: str, strip: bool, path: str, reference: str
) -> None:
    """The invariant: a client that resolves the reference, sent through the route, asks upstream
    for what a direct client would.
    """
    knows = urlsplit(reference).path
    assume(
        not (strip and prefix and (knows == prefix or knows.startswith(prefix + "/")))
    )  # the server's own path is ambiguous
    where = place(prefix, base, strip=strip)
    asked = prefix + path
    table = route(f"http://up.test:8080{base}", prefix or "/", strip=strip)
    upstream = "http://up.test:8080" + base
    direct = urljoin(upstream + table.target(asked.encode()).decode(), reference).replace(
        ":8080?", ":8080/?"
    )
    in_event = where.client_view(reference, path=asked, host="proxy.test")
    in_header = where.public_reference(
        reference, ClientSide(asked, ("proxy.test",), origin="http://proxy.test")
    )
    for seen in (in_event, in_header):
        if seen == reference:
            continue  # right already, or left alone
        target = urljoin(asked, seen)
        matches = table.matches(target.partition("?")[0])
        assert matches or (seen is in_header and not strip)
        if matches:
            # Of an endpoint's own path, no request asks for what has no slash; a header's reference
            # gets one.
            wanted = (
                direct.replace(f"{upstream}?", f"{upstream}/?") if seen is in_header else direct
            )
            assert upstream + table.target(target.encode()).decode() == wanted


def test_only_mcp_routes_have_the_two_interceptors() -> None:
    """First and last, around the route's own; the public names are the route's."""
    assert [owner.name for owner in route("http://up.test", "/", strip=False).chain.owners] == [
        "mcp (first)",
        "mcp (last)",
    ]
    assert route("http://up.test", "/", strip=False).chain.wants_body


VALID = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"_meta": {VERSION_KEY: "2026-07-28"}, "name": "add", "arguments": {"a": 1}},
}
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["jsonrpc", "id", "method", "params", "name", "_meta", "result", "x"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@given(
    body=st.one_of(
        st.binary(max_size=40),
        VALUES.map(lambda value: json.dumps(value).encode()),
        st.builds(
            lambda key, value: json.dumps(VALID | {key: value}).encode(),
            st.sampled_from(list(VALID)),
            VALUES,
        ),
        st.just(json.dumps(VALID).encode()),
    ),
    method=st.sampled_from(["POST", "GET", "DELETE"]),
    revision=st.sampled_from([None, "2025-11-25", "2026-07-28", "x"]),
    named=st.lists(
        st.tuples(
            st.sampled_from([b"mcp-method", b"mcp-name", b"mcp-param-a", b"content-type"]),
            st.sampled_from(
                [
                    b"tools/call",
                    b"add",
                    b"1",
                    b"",
                    b"\xff",
                    b"=?base64?YWRk?=",
                    b"application/json",
                    b"text/plain",
                ]
            ),
        ),
        max_size=4,
    ),
)
def test_any_message_passes_unchanged_or_ends_in_a_named_error(
    body: bytes, method: str, revision: str | None, named: list[tuple[bytes, bytes]]
) -> None:
    """Whatever comes: to the byte, headers and all, or a JSON-RPC error with status 400; never an
    exception.
    """
    headers = [*named, *([(b"mcp-protocol-version", revision.encode())] if revision else [])]
    request = Request(method=method, headers=headers, body=body)
    answer = run_request(
        [owner.interceptor for owner in surround([], {}, lambda key, endpoint: None)], request
    )
    assert (request.body, request.body_replaced, request.headers.raw) == (body, False, headers)
    if answer is not None:
        said = json.loads(answer.body)
        assert (answer.status, said["jsonrpc"]) in ((400, "2.0"), (415, "2.0"))
        assert said["error"]["code"] in (-32020, -32600, -32700)
        assert method == "POST"
        assert answer.status == 415 or revision in ("2026-07-28", "x")


class SaysCall(Interceptor):
    async def on_request(self, request: Request) -> None:
        request.replace_body(json=VALID)


@pytest.mark.parametrize(
    ("types", "modern", "older"),
    [
        ([b"application/json"], 400, None),
        ([b"application/x+json; charset=utf-8"], 400, None),
        ([b"application/json-rpc"], 415, 415),
        ([b"text/plain, application/json"], 415, 415),
        ([b"text/plain", b"application/json"], 415, 415),
        ([b"application/json", b"application/json"], 415, 415),
        ([b"application/json; charset=utf-7"], 415, 415),
        ([b"application/json; charset=utf-8; charset=utf-7"], 415, 415),
        ([b"application/x+json; x=1"], 415, 415),
        ([b""], 415, 415),
        ([], 415, None),
        ([b"text/plain"], None, None),
        ([b"text/plain; charset=utf-7"], None, None),
        ([b"text/plain", b"text/plain"], None, None),
    ],
)
def test_which_bodies_are_verified(
    types: list[bytes], modern: int | None, older: int | None
) -> None:
    """What a server may read as JSON is JSON in UTF-8, once; then headers that contradict the body
    are refused (2026-07-28). A body of another type passes.
    """
    for revision, status in ((b"2026-07-28", modern), (b"2025-11-25", older)):
        headers = [(b"mcp-protocol-version", revision), (b"mcp-method", b"tools/list")]
        headers += [(b"content-type", value) for value in types]
        request = Request(
            method="POST", headers=headers, body=json.dumps(VALID).encode(), dialect="mcp"
        )
        first = surround([], {}, lambda key, endpoint: None)[0].interceptor
        answer = run_request([first], request)
        assert (None if answer is None else answer.status) == status
        assert run_request([first], Request(method="POST", headers=headers, dialect="mcp")) is None


def test_a_stream_keeps_no_long_ids() -> None:
    """An id is kept for as long as its stream lasts: megabytes of it would count nowhere."""
    batch = [{**VALID, "id": ident} for ident in ("a" * 1024, "b" * 1025, 7)]
    request = Request(
        method="POST",
        headers={"content-type": "application/json"},
        body=json.dumps(batch).encode(),
        dialect="mcp",
    )
    assert (
        run_request([surround([], {}, lambda key, endpoint: None)[0].interceptor], request) is None
    )
    state = state_of(request)
    assert state is not None
    assert state.open_calls == ["a" * 1024, 7]


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
def test_a_body_that_an_interceptor_makes_of_another_type_gets_its_headers(
    method: str, revision: str
) -> None:
    """What was no JSON before has mirrors when it is; a revision without mirrors, and what is no
    POST, has none.
    """
    headers = [(b"mcp-protocol-version", revision.encode()), (b"content-type", b"text/plain")]
    request = Request(method=method, headers=headers, body=b"add 1")
    first, last = (owner.interceptor for owner in surround([], {}, lambda key, endpoint: None))
    assert run_request([first, SaysCall(), last], request) is None
    expected = (
        ("tools/call", "add") if (method, revision) == ("POST", "2026-07-28") else (None, None)
    )
    assert (request.headers.get("mcp-method"), request.headers.get("mcp-name")) == expected


def test_the_configuration_on_the_documentations_page_is_one() -> None:
    """docs/mcp_proxy.md begins with a configuration that loads."""
    page = (Path(__file__).parents[4] / "docs" / "mcp_proxy.md").read_text()
    (route,) = RouteTable(parse_config(page.split("```yaml\n")[1].split("```")[0])).routes
    assert (route.dialect.name, route.strip_prefix) == ("mcp", True)
    assert route.allowed_hosts is not None
    assert parse_host("mcp.example.com") in route.allowed_hosts
