"""Where an MCP route stands between its clients and its upstream: references of one become the other's."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools import Pools
from proxy.config import parse_config
from proxy.mcp import Place
from proxy.routes import Route, RouteTable


def place(prefix: str = "", base: str = "", *, strip: bool = False) -> Place:
    return Place(prefix=prefix, strip_prefix=strip, base=base, authorities=frozenset(["up.test:8080"]))


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
        (place("/tools", strip=True), "/tools/sse", "http://up.test:8080/messages?s=1#f", "/tools/messages?s=1#f"),
        (place("/tools", strip=True), "/tools/sse", "/tools/messages", "/tools/tools/messages"),
        (place("/tools", strip=True), "/tools/sse", "http://other.test/messages", "http://other.test/messages"),
        # An endpoint with a path of its own.
        (place(base="/base"), "/sse", "/base/messages?s=1", "/messages?s=1"),
        (place(base="/base"), "/sse", "/base/?s=1", "/?s=1"),
        (place(base="/base"), "/sse", "/base?s=1", "/base?s=1"),
        (place(base="/base"), "/sse", "messages", "messages"),
        (place(base="/base"), "/sse", "/elsewhere", "/elsewhere"),
        (place(base="/base"), "/sse", "/basement/messages", "/basement/messages"),
        (place(base="/base"), "/sse", "http://up.test:8080/base/messages", "/messages"),
        (place(base="/base"), "/sse", "http://up.test:8080/elsewhere", "http://up.test:8080/elsewhere"),
        (place("/tools", "/base", strip=True), "/tools/sse", "/base/messages?s=1", "/tools/messages?s=1"),
        # A prefix that is not stripped: what lies outside it is no business of this route's.
        (place("/mcp"), "/mcp/sse", "/mcp/messages", "/mcp/messages"),
        (place("/mcp"), "/mcp/sse", "http://up.test:8080/mcp/messages", "/mcp/messages"),
        (place("/mcp"), "/mcp/sse", "http://up.test:8080/other", "http://up.test:8080/other"),
        (place("/mcp"), "/mcp/sse", "/other", "/other"),
        (place("/mcp", "/base"), "/mcp/sse", "/base/mcp/messages", "/mcp/messages"),
    ],
)
def test_the_clients_view_of_a_reference(where: Place, path: str, reference: str, expected: str) -> None:
    """What resolves rightly already stays byte for byte; what would miss the route leads to it; what is foreign is left alone."""
    assert where.client_view(reference, path=path, host="proxy.test") == expected


def route(endpoint: str, path: str, *, strip: bool) -> Route:
    config = parse_config(
        f'reverse_proxy:\n  upstreams: [{{name: up, endpoints: ["{endpoint}"]}}]\n'
        f"  routes: [{{path: {path}, upstream: up, dialect: mcp, strip_prefix: {str(strip).lower()}}}]"
    )
    return RouteTable(config, Pools()).routes[0]


SEGMENT = st.text("ab", min_size=1, max_size=3)


@given(
    base=st.lists(SEGMENT, max_size=2).map(lambda parts: "".join(f"/{part}" for part in parts)),
    prefix=st.lists(SEGMENT, max_size=2).map(lambda parts: "".join(f"/{part}" for part in parts)),
    strip=st.booleans(),
    path=st.lists(SEGMENT, min_size=1, max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts)),
    reference=st.tuples(
        st.sampled_from(["", "/", "http://up.test:8080/", "../"]),
        st.lists(SEGMENT, max_size=4).map("/".join),
        st.just("?s=1"),
    ).map("".join),
)
def test_what_is_rewritten_comes_to_where_it_would_have_without_the_proxy(
    base: str, prefix: str, strip: bool, path: str, reference: str
) -> None:
    """The invariant: a client that resolves the reference, sent through the route, asks upstream for what a direct client would."""
    where = place(prefix, base, strip=strip)
    asked = prefix + path
    seen = where.client_view(reference, path=asked, host="proxy.test")
    if seen == reference:
        return  # right already, or left alone
    table = route(f"http://up.test:8080{base}", prefix or "/", strip=strip)
    target = urljoin(asked, seen)
    assert table.matches(target.partition("?")[0].encode())
    direct = urljoin("http://up.test:8080" + table.target(asked.encode()).decode(), reference)
    assert "http://up.test:8080" + table.target(target.encode()).decode() == direct.replace(":8080?", ":8080/?")


def test_only_mcp_routes_have_the_two_interceptors() -> None:
    """First and last, around the route's own; the public names are the route's."""
    assert [owner.name for owner in route("http://up.test", "/", strip=False).chain.owners] == ["mcp (first)", "mcp (last)"]
    assert route("http://up.test", "/", strip=False).chain.wants_body
