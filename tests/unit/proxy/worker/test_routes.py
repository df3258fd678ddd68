"""The route table: which route a path takes, the target that goes upstream, and what a route knows
from the configuration.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from interceptors.paths import normal_path
from proxy.config import parse_config
from proxy.errors import ConfigError, RequestRefused
from proxy.http import parse_host
from proxy.worker.routes import Route, RouteTable


def table(
    routes: str, upstream: str = "", rest: str = "", endpoint: str = "http://h:8080"
) -> RouteTable:
    return RouteTable(
        parse_config(
            f'reverse_proxy:\n  upstreams: [{{name: llm, endpoints: ["{endpoint}"]{upstream}}}]\n'
            f"  routes: [{routes}]\n{rest}"
        )
    )


def to(*paths: str, rest: str = "") -> RouteTable:
    return table(", ".join(f"{{path: {path}, upstream: llm{rest}}}" for path in paths))


def only(endpoint: str = "http://h:8080", path: str = "/", rest: str = "") -> Route:
    return table(f"{{path: {path}, upstream: llm{rest}}}", endpoint=endpoint).routes[0]


def found(routes: RouteTable, path: bytes) -> str | None:
    route = routes.find(normal_path(path).decode())
    return None if route is None else route.name


def test_a_path_that_was_found_before_has_the_same_answer() -> None:
    """Also after more paths than are remembered, and after one that is too long for that; a path
    that is refused is refused again.
    """
    routes = to("/v1", "/v2")
    refused = b"/v1/x%2f..%2f..%2fv2"
    paths = [b"/v%d/%d" % (1 + number % 2, number) for number in range(600)]
    for _ in range(2):
        with pytest.raises(RequestRefused, match="in several ways"):
            routes.find(normal_path(refused).decode(), refused)
        for path in [*paths, b"/v1/" + b"x" * 5000]:
            route = routes.find(path.decode(), path)
            assert route is not None
            assert route.name == path[:3].decode()
        assert routes.find("/v3", b"/v3") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((path, "/v1") for path in (b"/v1", b"/v1/", b"/v1/x", b"/v1//x", b"/V1")),
        *((path, "/v1") for path in (b"/%76%31", b"//v1", b"/x/../v1", b"/./v1", b"/x/%2e%2E/v1")),
        *((path, None) for path in (b"/v10", b"/v1x/", b"/v", b"/v1/..", b"/v1%2Fx", b"/v1;x")),
        *((path, None) for path in (b"/", b"", b"v1", b"/dir", b"/dirx")),
        *((path, "/dir/") for path in (b"/dir/", b"/dir/x", b"/dir//")),
    ],
)
def test_a_prefix_covers_whole_segments(path: bytes, name: str | None) -> None:
    """Or /v1's interceptors would see /v10's streams."""
    assert found(to("/v1", "/dir/"), path) == name


@pytest.mark.parametrize(
    ("paths", "path", "name"),
    [
        (("/", "/v1", "/v1/chat"), b"/v1/chat/completions", "/v1/chat"),
        (("/", "/v1", "/v1/chat"), b"/v1/chat", "/v1/chat"),
        (("/", "/v1", "/v1/chat"), b"/v1/models", "/v1"),
        (("/", "/v1", "/v1/chat"), b"/v1", "/v1"),
        (("/", "/v1", "/v1/chat"), b"/v2", "/"),
        (("/", "/v1", "/v1/chat"), b"/", "/"),
        (("/", "/mcp"), b"/MCP", "/mcp"),
        (("/", "/mcp"), b"/%4dCP/x", "/mcp"),
        (("/", "/Mcp"), b"/mcp", "/Mcp"),
        (("/", "/v1", "/V1/secret"), b"/v1/secret", "/V1/secret"),
        (("/", "/A", "/a"), b"/a/x", "/a"),
        (("/", "/A", "/a"), b"/A", "/A"),
        (("/A", "/a/b"), b"/A/B", "/a/b"),
        (("/", "/caf%C3%A9"), b"/CAF%c3%89/x", "/caf%C3%A9"),
        (("/", "/stra%C3%9Fe"), b"/STRASSE", "/stra%C3%9Fe"),
        (("/", "/desk"), b"/de%C5%BFk", "/desk"),
        (("/", "/desk"), b"/des%E2%84%AA", "/desk"),
        (("/", "/in"), b"/%C4%B0n", "/in"),
        (("/", "/in"), b"/%C4%B1N", "/in"),
        (("/", "/in"), b"/%FF%C4n", "/"),
        (("/", "/a%2Fb"), b"/A%2fB", "/a%2Fb"),
    ],
)
def test_the_longest_prefix_wins(paths: tuple[str, ...], path: bytes, name: str) -> None:
    """Case is ignored, as Express and ASP.NET Core do."""
    for order in (paths, paths[::-1]):
        assert found(to(*order), path) == name


def test_a_path_that_only_case_tells_apart_is_refused() -> None:
    """`/MCP` is neither `/Mcp` nor `/mcp`: which protection applies would be a guess."""
    routes = to("/", "/Mcp", "/mcp")
    with pytest.raises(RequestRefused) as caught:
        found(routes, b"/MCP/x")
    assert caught.value.status == 400


@pytest.mark.parametrize("target", [b"/", b"/a/../b//%2F%zz?x=%20+&y", b"//a", b"/?", b"/a??b#c"])
def test_the_target_is_the_clients_byte_for_byte(target: bytes) -> None:
    assert only().target(target) == target


@pytest.mark.parametrize(
    ("prefix", "target", "stripped"),
    [
        ("/v1", b"/v1", b"/"),
        ("/v1", b"/v1/", b"/"),
        ("/v1", b"/v1/x/y?z=/v1", b"/x/y?z=/v1"),
        ("/v1", b"/v1?z", b"/?z"),
        ("/v1", b"/v1//x", b"//x"),
        ("/v1", b"/v1/v1", b"/v1"),
        ("/v1/", b"/v1/x", b"/x"),
        ("/v1/", b"/v1/", b"/"),
        ("/", b"/x?y", b"/x?y"),
        ("/", b"/", b"/"),
    ],
)
def test_strip_prefix_leaves_a_path(prefix: str, target: bytes, stripped: bytes) -> None:
    rest = ", strip_prefix: true"
    assert only(path=prefix, rest=rest).target(target) == stripped
    assert only(path=prefix).target(target) == target


@pytest.mark.parametrize(
    ("endpoint", "upstream", "host"),
    [
        ("http://h:8080", "", b"h:8080"),
        ("https://h", "", b"h"),
        ("https://h:443/x", "", b"h"),
        ("http://[::1]:81", "", b"[::1]:81"),
        ("http://h", ", host: preserve", None),
        ("http://h", ", host: other.test", b"other.test"),
    ],
)
def test_whose_host_header_it_is(endpoint: str, upstream: str, host: bytes | None) -> None:
    """Without a port that is the scheme's own (RFC 9110, section 7.2)."""
    routes = table("{path: /, upstream: llm}", upstream, endpoint=endpoint).routes
    assert routes[0].headers.host == host


def test_header_rules_are_prepared_in_lower_case() -> None:
    """A header that is set is also removed from the client's."""
    rules = ", headers: {set: {X-A: B}, remove: [X-C]}"
    headers = table("{path: /, upstream: llm}", rules).routes[0].headers
    assert headers.removed == {b"x-a", b"x-c"}


def test_routes_to_one_upstream_share_its_connections() -> None:
    routes = to("/a", "/b")
    assert routes.routes[0].transport is routes.routes[1].transport is routes.transports["llm"]


def test_a_route_has_its_own_timeouts_limits_and_lists() -> None:
    """Lists of names are compared in lower case; `abort` means no error events."""
    plain, own = table(
        "{path: /plain, upstream: llm}, {path: /o, upstream: llm, timeouts: {idle: 5},"
        " limits: {max_streams: 3, max_streams_per_client: 2}, retry: {max_attempts: 4},"
        " allowed_hosts: [A.test], allowed_origins: [], dialect: abort}"
    ).routes
    assert (plain.timeouts.idle, plain.limits.max_streams) == (300, 10000)
    assert (plain.allowed_hosts, plain.allowed_origins) == (None, None)
    assert (plain.clients, plain.retry.max_attempts, plain.dialect.name) == ("", 2, "generic")
    assert (own.timeouts.idle, own.limits.max_streams) == (5, 3)
    assert (own.limits.max_streams_per_client, own.clients) == (2, "/o")
    assert own.retry.max_attempts == 4
    assert plain.retry.budget is not own.retry.budget
    assert own.allowed_hosts is not None
    assert parse_host("a.test:1") in own.allowed_hosts
    assert (own.allowed_origins, own.dialect.has_error_events) == (set(), False)


def test_a_ca_file_that_cannot_be_loaded_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"^reverse_proxy\.upstreams\[0\]\.ca_file: "):
        table("{path: /, upstream: llm}", f", ca_file: {tmp_path}/ca.pem")


def test_every_interceptor_that_cannot_be_loaded_is_reported() -> None:
    rest = "interceptors: [{name: a, use: 'no.such.module:X'}, {name: b, use: 'interceptors.redact:Nope'}]"
    with pytest.raises(ConfigError) as caught:
        table("{path: /, upstream: llm}", rest=rest)
    assert [error.partition(": ")[0] for error in caught.value.errors] == [
        "interceptors[0].use",
        "interceptors[1].use",
    ]


def test_a_prefix_can_only_be_stripped_as_it_is_spelt() -> None:
    """A path that means the prefix but is written in another way is refused."""
    route = only(path="/v1", rest=", strip_prefix: true")
    assert route.target(b"/v1/x?y") == b"/x?y"
    with pytest.raises(RequestRefused) as caught:
        route.target(b"/%76%31/x")
    assert caught.value.status == 400
