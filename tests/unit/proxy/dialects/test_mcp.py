"""The dialect `mcp`: references of the upstream become the client's; headers mirror the body."""

from __future__ import annotations

import json
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from interceptors import Interceptor, Request
from interceptors.dialects.mcp_headers import VERSION_KEY
from interceptors.testing import run_request
from proxy.config import parse_config
from proxy.dialects.mcp_interceptors import state_of, surround
from proxy.http.place import ClientSide, Place
from proxy.worker.routes import Route, RouteTable


def place(prefix: str = "", base: str = "", *, strip: bool = False) -> Place:
    return Place(
        prefix=prefix, strip_prefix=strip, base=base, authorities=frozenset(["up.test:8080"])
    )


PLAIN, TOOLS, BASE, MCP = place(), place("/tools", strip=True), place(base="/base"), place("/mcp")
UP = "http://up.test:8080"


@pytest.mark.parametrize(
    ("where", "path", "reference", "expected"),
    [
        # A route that changes no path: only an absolute URL would lead around the proxy.
        (PLAIN, "/sse", "/messages?s=1", None),
        (PLAIN, "/sse", "messages?s=1", None),
        (PLAIN, "/sse", "?s=1", None),
        (PLAIN, "/sse", "", None),
        (PLAIN, "/sse", f"{UP}/messages?s=1", "/messages?s=1"),
        (PLAIN, "/sse", "HTTP://UP.test:8080/messages?s=1", "/messages?s=1"),
        (PLAIN, "/sse", "//up.test:8080/messages?s=1", "/messages?s=1"),
        (PLAIN, "/sse", "http://proxy.test/messages", "/messages"),
        (PLAIN, "/sse", "https://proxy.test/messages", "/messages"),
        (PLAIN, "/sse", UP, "/"),
        (PLAIN, "/sse", "http://up.test:9999/messages", None),
        (PLAIN, "/sse", "http://other.test/messages", None),
        (PLAIN, "/sse", "http://user@up.test:8080/messages", None),
        (PLAIN, "/sse", f"{UP}//evil.test/x", None),
        (PLAIN, "/sse", "ftp://up.test:8080/messages", None),
        (PLAIN, "/sse", "mailto:a@up.test", None),
        (PLAIN, "/sse", "http://[/messages", None),
        # A prefix that is stripped.
        (TOOLS, "/tools/sse", "/messages?s=1", "/tools/messages?s=1"),
        (TOOLS, "/tools/sse", "messages?s=1", None),
        (TOOLS, "/tools/sse", "?s=1", None),
        (TOOLS, "/tools/a/sse", "../messages", None),
        (TOOLS, "/tools/sse", "../messages", "/tools/messages"),
        (TOOLS, "/tools", "messages", "/tools/messages"),
        (TOOLS, "/tools/sse", f"{UP}/messages?s=1#f", "/tools/messages?s=1#f"),
        (TOOLS, "/tools/sse", "http://other.test/messages", None),
        # A server that knows the prefix, as from X-Forwarded-Prefix.
        (TOOLS, "/tools/sse", "/tools/messages", None),
        (TOOLS, "/tools/sse", "http://proxy.test/tools/messages", "/tools/messages"),
        (TOOLS, "/tools/sse", "/toolshed/messages", "/tools/toolshed/messages"),
        # An endpoint with its own path.
        (BASE, "/sse", "/base/messages?s=1", "/messages?s=1"),
        (BASE, "/sse", "/base/?s=1", "/?s=1"),
        (BASE, "/sse", "/base?s=1", None),
        (BASE, "/sse", "messages", None),
        (BASE, "/sse", "/elsewhere", None),
        (BASE, "/sse", "/basement/messages", None),
        (BASE, "/sse", f"{UP}/base/messages", "/messages"),
        (BASE, "/sse", f"{UP}/elsewhere", None),
        (place("/tools", "/base", strip=True), "/tools/sse", "/base/m?s=1", "/tools/m?s=1"),
        # A prefix that is not stripped: what lies outside it does not concern this route.
        (MCP, "/mcp/sse", "/mcp/messages", None),
        (MCP, "/mcp/sse", f"{UP}/mcp/messages", "/mcp/messages"),
        (MCP, "/mcp/sse", f"{UP}/other", None),
        (MCP, "/mcp/sse", "/other", None),
        (place("/mcp", "/base"), "/mcp/sse", "/base/mcp/messages", "/mcp/messages"),
    ],
)
def test_the_clients_view_of_a_reference(
    where: Place, path: str, reference: str, expected: str | None
) -> None:
    """None: it stays, because it is correct or foreign."""
    seen = where.client_view(reference, path=path, host="proxy.test")
    assert seen == (reference if expected is None else expected)


def route(endpoint: str, path: str, *, strip: bool) -> Route:
    config = parse_config(
        f'reverse_proxy:\n  upstreams: [{{name: up, endpoints: ["{endpoint}"]}}]\n'
        f"  routes: [{{path: {path}, upstream: up, dialect: mcp, strip_prefix: {str(strip).lower()}}}]"
    )
    return RouteTable(config).routes[0]


SEGMENTS = st.lists(st.text("ab", min_size=1, max_size=3), max_size=3)
PATHS = SEGMENTS.map(lambda parts: "".join(f"/{part}" for part in parts))
STARTS = st.sampled_from(["", "/", f"{UP}/", "../"])
REFERENCES = st.builds(lambda start, parts: start + "/".join(parts) + "?s=1", STARTS, SEGMENTS)


@settings(max_examples=60)  # each compiles a route
@given(PATHS, PATHS, st.booleans(), PATHS, REFERENCES)
def test_what_is_rewritten_comes_to_where_it_would_have_without_the_proxy(
    base: str, prefix: str, strip: bool, path: str, reference: str
) -> None:
    """A client that resolves the reference, sent through the route, asks the upstream for what a
    direct client would.
    """
    assume(path)
    knows = urlsplit(reference).path
    # The server's own path is ambiguous if it begins with the prefix.
    assume(not (strip and prefix and f"{knows}/".startswith(f"{prefix}/")))
    where = place(prefix, base, strip=strip)
    asked = prefix + path
    table = route(f"{UP}{base}", prefix or "/", strip=strip)
    upstream = UP + base
    direct = urljoin(upstream + table.target(asked.encode()).decode(), reference)
    direct = direct.replace(":8080?", ":8080/?")
    in_event = where.client_view(reference, path=asked, host="proxy.test")
    client = ClientSide(asked, ("proxy.test",), origin="http://proxy.test")
    in_header = where.public_reference(reference, client)
    for seen in (in_event, in_header):
        if seen == reference:
            continue  # right already, or left alone
        target = urljoin(asked, seen)
        if not table.matches(target.partition("?")[0]):
            assert seen is in_header
            assert not strip
            continue
        # No request asks for an endpoint's own path without a slash; a header's reference gets one.
        slashed = direct.replace(f"{upstream}?", f"{upstream}/?")
        sent = upstream + table.target(target.encode()).decode()
        assert sent == (slashed if seen is in_header else direct)


def test_an_mcp_route_has_two_interceptors_around_its_own() -> None:
    chain = route("http://up.test", "/", strip=False).chain
    assert [owner.name for owner in chain.owners] == ["mcp (first)", "mcp (last)"]
    assert chain.wants_body


def around(*inner: Interceptor) -> list[Interceptor]:
    """These interceptors between those of the dialect."""
    first, last = (owner.interceptor for owner in surround([], {}, lambda key, endpoint: None))  # type: ignore[arg-type]
    return [first, *inner, last]


VALID = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"_meta": {VERSION_KEY: "2026-07-28"}, "name": "add", "arguments": {"a": 1}},
}
NAMES = st.sampled_from(["jsonrpc", "id", "method", "params", "name", "_meta", "result", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
CHANGED = st.builds(lambda key, value: VALID | {key: value}, st.sampled_from(list(VALID)), VALUES)
JSON = (VALUES | CHANGED | st.just(VALID)).map(lambda value: json.dumps(value).encode())
FIELDS = st.sampled_from([b"mcp-method", b"mcp-name", b"mcp-param-a", b"content-type"])
FIELD_VALUES = st.sampled_from(
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
)


@given(
    body=st.binary(max_size=40) | JSON,
    method=st.sampled_from(["POST", "GET", "DELETE"]),
    revision=st.sampled_from([None, "2025-11-25", "2026-07-28", "x"]),
    named=st.lists(st.tuples(FIELDS, FIELD_VALUES), max_size=4),
)
def test_any_message_passes_unchanged_or_ends_in_a_named_error(
    body: bytes, method: str, revision: str | None, named: list[tuple[bytes, bytes]]
) -> None:
    """To the byte, headers and all, or a JSON-RPC error."""
    headers = [*named, *([(b"mcp-protocol-version", revision.encode())] if revision else [])]
    request = Request(method=method, headers=headers, body=body)
    answer = run_request(around(), request)
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
        body = json.dumps(VALID).encode()
        request = Request(method="POST", headers=headers, body=body, dialect="mcp")
        answer = run_request(around(), request)
        assert (None if answer is None else answer.status) == status
        empty = Request(method="POST", headers=headers, dialect="mcp")
        assert run_request(around(), empty) is None


def test_a_stream_keeps_no_long_ids() -> None:
    """An id is kept for as long as its stream lasts: megabytes of it would count nowhere."""
    batch = [{**VALID, "id": ident} for ident in ("a" * 1024, "b" * 1025, 7)]
    headers, body = {"content-type": "application/json"}, json.dumps(batch).encode()
    request = Request(method="POST", headers=headers, body=body, dialect="mcp")
    assert run_request(around(), request) is None
    state = state_of(request)
    assert state is not None
    assert state.open_calls == ["a" * 1024, 7]


@pytest.mark.parametrize(
    ("method", "revision", "expected"),
    [
        ("POST", "2026-07-28", ("tools/call", "add")),
        ("POST", "2025-11-25", (None, None)),
        ("GET", "2026-07-28", (None, None)),
    ],
)
def test_a_body_that_an_interceptor_makes_of_another_type_gets_its_headers(
    method: str, revision: str, expected: tuple[str | None, str | None]
) -> None:
    headers = [(b"mcp-protocol-version", revision.encode()), (b"content-type", b"text/plain")]
    request = Request(method=method, headers=headers, body=b"add 1")
    assert run_request(around(SaysCall()), request) is None
    assert (request.headers.get("mcp-method"), request.headers.get("mcp-name")) == expected
