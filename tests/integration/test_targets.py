"""One reading of a request's target and of its host: what routes, policies and endpoints decide on
is what goes upstream.

Over HTTP/1.1 as `weirpool serve` runs it, and over HTTP/2 under plain Hypercorn, on real sockets.
"""

from __future__ import annotations

import json
import socket
import sys
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h2.settings
import h11
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, open_client
from support.http2_client import Exchanged, Http2Client, open_http2
from support.interceptors import Log, until
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, Request, Upstream, open_upstream

from interceptors import Interceptor, Response
from interceptors import Request as HookRequest
from interceptors.api_keys import hash_key
from proxy.config import Config, parse_config

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


async def answer_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


def configuration(
    url: str, *routes: str, upstream: str = "", interceptors: str = "", rest: str = ""
) -> Config:
    return parse_config(
        f"""
reverse_proxy:
  upstreams: [{{name: u, endpoints: ["{url}"]{", " + upstream if upstream else ""}}}]
  routes: [{", ".join(f"{{upstream: u, {route}}}" for route in routes or ("path: /",))}]
interceptors:
  - {{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("good")}"}}, upstream: "Bearer sk-upstream"}}}}
  {interceptors}
{rest}
drain: {{timeout: 1}}
log: {{level: error}}
"""
    )


@dataclass
class Rig:
    upstream: Upstream
    proxy: Proxy
    log: Log
    http2: Http2Client | None = None

    async def raw(self, *lines: str, method: str = "GET") -> Answer:
        """One HTTP/1.1 request of just these lines, each byte as it stands."""
        client = await open_client(self.proxy.port)
        try:
            with trio.fail_after(10):
                client._h11.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
                await client.stream.send_all("\r\n".join([*lines, "", ""]).encode("latin-1"))
                return await client.answer()
        finally:
            await client.aclose()

    async def get(self, target: str, host: str = "h", *headers: str, method: str = "GET") -> Answer:
        return await self.raw(
            f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, method=method
        )

    async def h2(
        self, path: str, authority: str = "h", method: str = "GET", *more: tuple[str, str]
    ) -> Exchanged:
        assert self.http2 is not None
        client = self.http2
        ident = client.h2.get_next_available_stream_id()
        client.streams[ident] = stream = Exchanged()
        pseudo = [
            (":method", method),
            (":path", path),
            (":scheme", "https"),
            (":authority", authority),
        ]
        client.h2.send_headers(
            ident,
            [*((a.encode(), b.encode("latin-1")) for a, b in [*pseudo, *more])],
            end_stream=True,
        )
        await client.flush()
        await until(lambda: stream.over or client.closed)
        return stream

    def sent(self) -> list[Request]:
        """What went upstream since the last look."""
        taken, self.upstream.requests[:] = self.upstream.requests[:], []
        return taken

    async def lines(self, count: int) -> Log:
        """The `exchange` lines, when there are as many as that."""
        await until(
            lambda: len([line for line in self.log if line["event"] == "exchange"]) >= count
        )
        return [line for line in self.log if line["event"] == "exchange"]


Configure = Callable[[str], Config]


@asynccontextmanager
async def rig_of(
    make: Configure, log: Log, certificates: Certificates | None = None
) -> AsyncIterator[Rig]:
    tls = None if certificates is None else certificates.files
    async with (
        open_upstream(answer_ok) as upstream,
        open_proxy(make(upstream.url), tls=tls) as proxy,
    ):
        rig = Rig(upstream, proxy, log)
        if certificates is None:
            yield rig
            return
        async with open_http2(proxy, certificates) as rig.http2:
            yield rig


# Octets of a target: RFC 9112, section 3.2; RFC 3986, section 3.3

KEYED = ("path: /", "path: /admin, interceptors: [keys]")
NO_TARGETS = [
    "/admin/x#/../../open",
    "/open/..\\admin/x",
    "/open#",
    "/#",
    "/x?a#b",
    "/\\admin",
    "/open/..\\..\\admin?x",
]
LEGAL = [
    "/open%23x", "/open/..%5Cadmin", '/a"<>^`{|}~b', '/a?b\\c"<>^`{|}', "/a%zz",
    "/a;b=c,d!$&'()*+:@-._", "/a/?/?",
]  # fmt: skip


async def test_a_target_with_octets_that_none_has_is_refused(log: Log) -> None:
    """`#` anywhere and a backslash in the path: servers differ in which path that is, so it is 400
    before anything is decided.
    """
    async with rig_of(lambda url: configuration(url, *KEYED), log) as rig:
        refused = [
            *NO_TARGETS,
            *(f"http://h{target}" for target in NO_TARGETS),
            "http://h#/x",
            "http://h\\x/",
        ]
        for target in refused:
            assert ((await rig.get(target)).status, rig.sent()) == (400, []), target
        for target in (
            "/caf\xe9",
            "/a\x7fb",
            "/a\x01b",
            "/a b",
            "/a\tb",
            "/x?\xff",
        ):  # refused by the server itself
            assert ((await rig.get(target)).status, rig.sent()) == (400, []), target
        lines = await rig.lines(len(refused))
        assert {(line["outcome"], line["status"]) for line in lines} <= {
            ("refused", 400),
            ("intercepted", 400),
        }
        assert (await rig.get("/admin/x")).status == 401


async def test_a_path_with_such_octets_ends_its_own_stream_only(
    log: Log, certificates: Certificates
) -> None:
    """The same over HTTP/2, bytes beyond ASCII included: the connection and its other streams go
    on.
    """
    async with rig_of(lambda url: configuration(url, *KEYED), log, certificates) as rig:
        for path in [*NO_TARGETS, "/caf\xe9", "/a b", "/a\x01b", "/a\x7f", "http://h/x", "*", "x"]:
            assert ((await rig.h2(path)).status, rig.sent()) == (400, []), path
        assert (await rig.h2("/ok")).body == b"ok"
        assert not [line for line in log if line["event"] == "internal_error"]


async def test_what_a_target_may_hold_passes_byte_for_byte(
    log: Log, certificates: Certificates
) -> None:
    async with rig_of(lambda url: configuration(url, *KEYED), log) as rig:
        for target in LEGAL:
            assert (await rig.get(target)).status == 200
            assert [request.target.decode("latin-1") for request in rig.sent()] == [target]
    async with rig_of(lambda url: configuration(url, *KEYED), log, certificates) as rig:
        for target in LEGAL:
            assert (await rig.h2(target)).status == 200
            assert [request.target.decode("latin-1") for request in rig.sent()] == [target]


# Paths that servers read in several ways

ANOTHER_ROUTES = [
    *(
        "/open/..;/admin/x", "/admin;a=b/x", "/admin;", "/;/admin/x", "/.;/ADMIN",
        "/%2e%2e;x/admin", "/open;p/%2e%2E;q/admin",
    ),
    *(
        "/open/..%2fadmin/x", "/open%2F..%2Fadmin", "/%2fadmin/x", "/admin%2Fx",
        "/open/..;x%2fadmin", "/%2e%2e%2fadmin",
    ),
    *("/sub/..%2fother", "/sub/..;/other"),
]  # fmt: skip
SAME_ROUTE = [
    "/open/a%2fb", "/open/..%252fadmin", "/a;b=c/d", "/open;admin", "/sub/a%2Fb;v=1",
    "/sub/x/..%2fy", "/x?a=..;/admin",
]  # fmt: skip


async def test_a_path_that_servers_read_as_another_routes_is_refused(
    log: Log, certificates: Certificates
) -> None:
    """nginx decodes `%2f` and Tomcat removes `;x` before they resolve dot segments, and find
    `/admin`, without a key.
    """

    def routes(url: str) -> Config:
        return configuration(url, *KEYED, "path: /sub, strip_prefix: true")

    async with rig_of(routes, log) as rig:
        for target in [*ANOTHER_ROUTES, "http://h/..;/admin"]:
            assert ((await rig.get(target)).status, rig.sent()) == (400, []), target
        for target in SAME_ROUTE:
            assert (await rig.get(target)).status == 200, target
            assert [request.target.decode() for request in rig.sent()] == [
                target.removeprefix("/sub")
            ]
        for target in ("/admin/a%2fb", "/admin/x;y"):
            assert (await rig.get(target)).status == 401
    async with rig_of(routes, log, certificates) as rig:
        for target in ANOTHER_ROUTES:
            assert ((await rig.h2(target)).status, rig.sent()) == (400, []), target


async def test_dot_segments_do_not_lead_through_a_prefix_that_is_stripped(log: Log) -> None:
    """`/sub/../sub/x` is `/x` of the upstream, which would read `/../sub/x`."""
    async with rig_of(lambda url: configuration(url, "path: /sub, strip_prefix: true"), log) as rig:
        for target in ("/sub/../sub/x", "/sub/a/../../sub/x", "/sub/%2e%2e/sub"):
            assert ((await rig.get(target)).status, rig.sent()) == (400, []), target
        for target in ("/sub", "/sub/", "/sub//x", "/sub/a/../b", "/sub/a/..", "/sub/./x?"):
            assert (await rig.get(target)).status == 200, target
            assert [request.target.decode() for request in rig.sent()] == [
                target.removeprefix("/sub") or "/"
            ]


# Names with an underscore: RFC 3875, section 4.1.18


class Names(Interceptor):
    """Names the client, and removes the tenant that the client names."""

    async def on_request(self, request: HookRequest) -> Response | None:
        request.headers["x-user-id"] = "alice"
        request.headers.pop("x-tenant", None)
        request.headers["x_set_here"] = "1"
        return None


NAMES = '- {name: names, use: "given_targets:Names"}'


async def test_no_other_spelling_of_a_name_that_the_proxy_sets_goes_up(
    log: Log, certificates: Certificates
) -> None:
    """CGI, WSGI and PHP make one variable of both: the client's would be read instead of what was
    set, checked or removed here.
    """

    def routes(url: str) -> Config:
        return configuration(
            url,
            "path: /, interceptors: [keys, names]",
            interceptors=NAMES,
            upstream="headers: {set: {x-plan-name: free}, remove: [x-not-here]}",
        )

    sent = {
        "X_User_Id": "m",
        "X-User_Id": "m",
        "x_plan-name": "m",
        "X_Not_Here": "m",
        "X-Tenant": "m",
        "X_Tenant": "m",
        "X_Api_Key": "m",
        "Content_Length": "9",
        "Transfer_Encoding": "chunked",
        "Content_Type": "a/b",
        "Mcp_Name": "m",
        "X_Other": "passes",
        "X-Both": "passes",
        "X_Both": "passes",
        "Keep_Alive": "m",
        "authorization": "Bearer good",
    }
    async with rig_of(routes, log) as rig:
        assert (
            await rig.get("/x", "h", *(f"{name}: {value}" for name, value in sent.items()))
        ).status == 200
        (one,) = rig.sent()
    async with rig_of(routes, log, certificates) as rig:
        assert (
            await rig.h2("/x", "h", "GET", *((name.lower(), value) for name, value in sent.items()))
        ).status == 200
        (two,) = rig.sent()
    for request in (one, two):
        named = {name.decode().lower(): value.decode() for name, value in request.headers}
        assert "m" not in named.values()
        assert {name for name in named if "_" in name} == {"x_other", "x_both", "x_set_here"}
        assert (named["x-user-id"], named["x-plan-name"], named["x-both"]) == (
            "alice",
            "free",
            "passes",
        )


async def test_no_other_spelling_of_a_configured_name_goes_up_without_interceptors(
    log: Log,
) -> None:
    def routes(url: str) -> Config:
        return configuration(
            url, "path: /", upstream="headers: {set: {x-plan-name: free}, remove: [x-not-here]}"
        )

    sent = ("X_Plan_Name: m", "x_plan-name: m", "X_Not_Here: m", "X_Other: passes")
    async with rig_of(routes, log) as rig:
        assert (await rig.get("/x", "h", *sent)).status == 200
        (request,) = rig.sent()
    named = {name.decode().lower(): value.decode() for name, value in request.headers}
    assert "m" not in named.values()
    assert (named["x_other"], named["x-plan-name"]) == ("passes", "free")


# A bare `?`: RFC 3986, section 6.2.3


class Watches(Interceptor):
    """Sees a request, and changes nothing in its target."""

    async def on_request(self, request: HookRequest) -> Response | None:
        request.headers["x-saw"] = (
            f"{request.path} {request.query.decode()} {request.target.decode()} {request.headers['host']}"
        )
        return None


WATCHES = '- {name: watches, use: "given_targets:Watches"}'


class Sets(Interceptor):
    """Sets the path, or the query, that a header names."""

    async def on_request(self, request: HookRequest) -> Response | None:
        if "x-path" in request.headers:
            request.path = request.headers["x-path"]
        if "x-query" in request.headers:
            request.query = request.headers["x-query"].encode()
        return None


SETS = '- {name: sets, use: "given_targets:Sets"}'

BARE = [
    ("/x?", "/x?"), ("/x??", "/x??"), ("/x", "/x"), ("/v1/x?", "/x?"), ("/v1?", "/?"),
    ("/w/x?", "/w/x?"), ("/w/x?a=%20?", "/w/x?a=%20?"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration loads these by their module's name."""
    module = types.ModuleType("given_targets")
    vars(module).update(Watches=Watches, Sets=Sets, Names=Names)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def bare(url: str) -> Config:
    return configuration(
        url,
        "path: /",
        "path: /v1, strip_prefix: true",
        "path: /w, interceptors: [watches]",
        interceptors=WATCHES,
    )


async def test_a_bare_question_mark_goes_up(log: Log, certificates: Certificates) -> None:
    """`/x?` is not `/x`: with and without `strip_prefix`, in absolute-form, over HTTP/2, and past
    interceptors.
    """
    async with rig_of(bare, log) as rig:
        for target, expected in [
            *BARE,
            *(("http://h" + a, b) for a, b in BARE),
            ("http://h?", "/?"),
            ("http://h", "/"),
        ]:
            await rig.get(target)
            assert [request.target.decode() for request in rig.sent()] == [expected], target
    async with rig_of(bare, log, certificates) as rig:
        for target, expected in BARE:
            await rig.h2(target)
            assert [request.target.decode() for request in rig.sent()] == [expected], target


# The host: RFC 9112, section 3.2; RFC 9110, section 7.2; RFC 3986, section 3.2.2

NO_HOSTS = [
    "a b", "user@a", "a/../b", "[::1", "a:99999999", "<script>", "a.example:80@evil.example", "a.example:x/..//evil.example",
    "a.example:<script>", "a:65536", "a:8o", "a:-1", "::1", "[::1]x", "[::g]", "[fe80::1%25eth0]", "[1.2.3.4]", "[v1.a]", "[]",
    "a%zz", "a%2", "a:1:2", "a?x", "a#x", "a\\b", 'a"b', "a\xe9", ":80", "@a", "a@", "a,b:x", "a.example:000080",
]  # fmt: skip
HOSTS = [
    "a_b", "A.Example", "a.example.", "a.example:", "[2001:db8::1]:8000", "[::1]", "127.0.0.1:1", "xn--strae-oqa.de:65535",
    "a%20b", "a!$&'()*+,;=~-b", "[::ffff:1.2.3.4]",
]  # fmt: skip
PRESERVED = "host: preserve"
LISTED = "path: /, allowed_hosts: [a.example, 'b.example:81', '[2001:db8:0::1]']"


async def test_an_invalid_host_is_refused(log: Log, certificates: Certificates) -> None:
    """Nothing goes up: it would be read as another host in a link, a cache or a log."""
    for routes in (("path: /",), (LISTED,)):
        async with rig_of(
            lambda url, routes=routes: configuration(url, *routes, upstream=PRESERVED), log
        ) as rig:
            for host in NO_HOSTS:
                assert ((await rig.get("/", host)).status, rig.sent()) == (400, []), host
                if not set(host) & set("/?"):
                    assert ((await rig.get(f"http://{host}/", "a.example")).status, rig.sent()) == (
                        400,
                        [],
                    ), host
            assert ((await rig.get("http:///x", "a.example")).status, rig.sent()) == (400, [])
            assert (await rig.get("/metrics", "<script>")).status == 400
    async with rig_of(lambda url: configuration(url, upstream=PRESERVED), log, certificates) as rig:
        for host in NO_HOSTS:
            assert ((await rig.h2("/", host)).status, rig.sent()) == (400, []), host


async def test_a_host_is_sent_upstream_unchanged(log: Log, certificates: Certificates) -> None:
    async with rig_of(lambda url: configuration(url, upstream=PRESERVED), log) as rig:
        for host in [*HOSTS, ""]:
            assert (await rig.get("/", host)).status == 200, host
            (request,) = rig.sent()
            assert request.all("host") == [host.encode()]
            assert request.all("x-forwarded-host") == ([host.encode()] if host else [])
    async with rig_of(lambda url: configuration(url, upstream=PRESERVED), log, certificates) as rig:
        for host in HOSTS:
            assert (await rig.h2("/", host)).status == 200, host
            assert rig.sent()[0].all("x-forwarded-host") == [host.encode()]


async def test_allowed_hosts_compares_the_host_that_was_parsed(log: Log) -> None:
    async with rig_of(lambda url: configuration(url, LISTED), log) as rig:
        for host in (
            "a.example", "A.Example:443", "a.example:", "a.EXAMPLE:1", "b.example:81",
            "[2001:DB8::1]:8000",
        ):  # fmt: skip
            assert (await rig.get("/", host)).status == 200, host
            assert rig.sent()[0].all("x-forwarded-host") == [host.encode()]
        for host in (
            "b.example", "b.example:82", "a.example.", "x.a.example", "[2001:db8::2]", "",
            "a.example,b",
        ):  # fmt: skip
            assert ((await rig.get("/", host)).status, rig.sent()) == (403, []), host


async def test_the_authority_of_an_absolute_target_is_the_host(log: Log) -> None:
    """RFC 9112, section 3.2.2: independent of `Host`."""

    def make(url: str) -> Config:
        return configuration(
            url,
            "path: /, allowed_hosts: [a.example], interceptors: [watches]",
            upstream=PRESERVED,
            interceptors=WATCHES,
        )

    async with rig_of(make, log) as rig:
        assert ((await rig.get("http://b.example:81/x", "a.example")).status, rig.sent()) == (
            403,
            [],
        )
        for target, host in [
            ("http://a.example/x", "b.example"),
            ("HTTP://A.Example:81/x", "a b"),
            ("https://a.example/x", ""),
        ]:
            answer = await rig.get(target, host)
            assert answer.status == (400 if host == "a b" else 200), host
            for request in rig.sent():
                named = target.split("/")[2].encode()
                assert request.target == b"/x"
                assert request.all("host") == request.all("x-forwarded-host") == [named]
                assert request.all("x-saw")[0].split()[-1] == named
        for lines in (
            ["GET http://a.example/x HTTP/1.1"],
            ["GET http://a.example/x HTTP/1.1", "Host: a.example", "Host: a.example"],
        ):
            assert ((await rig.raw(*lines)).status, rig.sent()) == (400, [])
        assert (await rig.raw("GET http://a.example/x HTTP/1.0")).status == 200


# The path of an endpoint

OUTSIDE = [
    "/../tenant-b/secret", "/v1/x/../../v1/../../tenant-b/secret", "/v1/a/..%2f..%2ftenant-b", "/v1/..%5C..%5ctenant-b",
    "/%2e%2e/tenant-b", "/.%2E/tenant-b", "//..//../tenant-b", "/a/../../", "/..", "/..?x", "/a%2fb/../..", "/..%2f..%5Cx",
    "/%2e%2e%2ftenant-b", "/../tenant-a2/x", "/..;/tenant-b", "/..;a=b/tenant-b", "http://h/../tenant-b", "/v1/../tenant-b/..%2f..",
]  # fmt: skip
INSIDE = [
    ("/a/../b", "/tenant-a/a/../b"), ("/a%2f..%2fb", "/tenant-a/a%2f..%2fb"), ("/v1/a/%2e%2e/b", "/tenant-a/a/%2e%2e/b"),
    ("/..a/b", "/tenant-a/..a/b"), ("/a..b", "/tenant-a/a..b"), ("/../tenant-a/x", "/tenant-a/../tenant-a/x"),
    ("/a?../../x", "/tenant-a/a?../../x"), ("/v1/x", "/tenant-a/x"), ("/", "/tenant-a/"), ("/./", "/tenant-a/./"),
]  # fmt: skip


async def test_no_target_leaves_an_endpoints_own_path(log: Log, certificates: Certificates) -> None:
    """Neither what a client sends, nor what an interceptor sets; what stays inside goes up as it
    came.
    """

    def make(url: str) -> Config:
        routes = "path: /", "path: /v1, strip_prefix: true", "path: /set, interceptors: [sets]"
        return configuration(url + "/tenant-a/", *routes, interceptors=SETS)

    async with rig_of(make, log) as rig:
        for target in OUTSIDE:
            assert ((await rig.get(target)).status, rig.sent()) == (400, []), target
        for path in ("/../tenant-b", "/x/..%2f..", "/..\\tenant-b"):
            assert ((await rig.get("/set", "h", f"X-Path: {path}")).status, rig.sent()) == (
                400,
                [],
            ), path
        for target, expected in INSIDE:
            assert (await rig.get(target)).status == 200, target
            assert [request.target.decode() for request in rig.sent()] == [expected]
        assert (await rig.get("/set", "h", "X-Path: /a/../b")).status == 200
        assert rig.sent()[0].target == b"/tenant-a/a/../b"
    async with rig_of(make, log, certificates) as rig:
        for target in OUTSIDE[:-2]:
            assert ((await rig.h2(target)).status, rig.sent()) == (400, []), target


async def test_the_boundary_holds_for_each_endpoint(log: Log) -> None:
    """Whichever endpoint is asked first: the first of these refuses every connection, and a retry
    goes to the other.
    """
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with rig_of(lambda url: configuration(f'{closed}", "{url}/tenant-a'), log) as rig:
            for _ in range(4):
                assert ((await rig.get("/../tenant-b")).status, rig.sent()) == (400, [])
                assert (await rig.get("/a/../b")).status == 200
                assert [request.target for request in rig.sent()] == [b"/tenant-a/a/../b"]


async def test_a_query_that_no_target_has_does_not_leave(log: Log) -> None:
    """What an interceptor sets is held to the same grammar."""

    def make(url: str) -> Config:
        return configuration(url, "path: /, interceptors: [sets]", interceptors=SETS)

    async with rig_of(make, log) as rig:
        assert ((await rig.get("/x", "h", "X-Query: a#b")).status, rig.sent()) == (502, [])
        assert ((await rig.get("/x", "h", "X-Query: a b")).status, rig.sent()) == (502, [])
        assert (await rig.get("/x", "h", "X-Query: a\\b")).status == 200
        assert rig.sent()[0].target == b"/x?a\\b"


# Letters: upstreams differ in whether they count


async def test_the_case_of_a_path_passes_no_route_by(log: Log, certificates: Certificates) -> None:
    """Also percent-encoded, with runs of slashes and dot segments, and for letters that fold to
    ASCII ones.
    """

    def make(url: str) -> Config:
        return configuration(
            url,
            "path: /",
            "path: /risk/desk, interceptors: [keys]",
            "path: /Both",
            "path: /both, interceptors: [keys]",
        )

    spelt = [
        "/RISK/DESK", "/Risk//desk/x", "/x/../rISK/./DESK", "/%52isk/%44esk", "/ri%C5%BFk/desk",
        "/ris%E2%84%AA/des%e2%84%aa",
    ]  # fmt: skip
    async with rig_of(make, log) as rig:
        for path in [*spelt, "/r%C4%B1sk/desk", "/both/x", "/risk/desk"]:
            assert ((await rig.get(path)).status, rig.sent()) == (401, []), path
        assert (await rig.get("/RISK/Desk", "h", "Authorization: Bearer good")).status == 200
        assert rig.sent()[0].target == b"/RISK/Desk"
        for path in ("/Both/x", "/risk/desks", "/other"):
            assert (await rig.get(path)).status == 200, path
        for path in ("/BOTH/x", "/risk%2Fdesk"):  # it is neither; or it may be either
            assert (await rig.get(path)).status == 400, path
    async with rig_of(make, log, certificates) as rig:
        for path in spelt:
            assert (await rig.h2(path)).status == 401, path


# Pages of the proxy's own


async def test_a_page_is_served_for_one_spelling_of_its_path(
    log: Log, certificates: Certificates
) -> None:
    """A balancer's rule for `/metrics` protects it, and an upstream's own `/%6detrics` can be
    reached.
    """
    pages = ("/metrics", "/status", "/healthz", "/readyz")
    others = [
        *(
            "/%6detrics", "/%73tatus", "/metrics/", "//metrics", "/./metrics", "/x/../metrics",
            "/METRICS", "/metrics%20", "/metrics;x",
        ),
        *("/healthz%3f", "/readyz%00", "/status%2f", "/_/%6detrics"),
    ]  # fmt: skip

    async def spellings(rig: Rig, ask: Any, prefix: str) -> None:
        for page in pages:
            for target in (prefix + page, prefix + page + "?x=1"):
                assert (await ask(target)).body != b"ok" or page == "/healthz"
                assert rig.sent() == []
        for path in others:
            assert (await ask(prefix + path)).body == b"ok", path
            assert [request.target.decode() for request in rig.sent()] == [prefix + path]

    for prefix in ("", "/-"):

        def make(url: str, prefix: str = prefix) -> Config:
            return configuration(url, rest=f'admin: {{prefix: "{prefix}"}}')

        async with rig_of(make, log) as rig:
            await spellings(rig, rig.get, prefix)
            assert (await rig.get(prefix + "/metrics#x")).status == 400
            assert b"weirpool_exchanges_total" in (await rig.get(f"http://h{prefix}/metrics")).body
            assert (await rig.get(f"http://h{prefix}/%6detrics")).body == b"ok"
        async with rig_of(make, log, certificates) as rig:
            await spellings(rig, rig.h2, prefix)


# WebSocket: RFC 9110, section 7.8; RFC 8441

HANDSHAKE = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


def guarded(url: str) -> Config:
    keyed = "path: /keyed, dialect: openai, interceptors: [keys]"
    return configuration(url, "path: /, dialect: openai, allowed_hosts: [h]", keyed)


async def test_a_websocket_handshake_is_the_plain_request_that_it_also_is(log: Log) -> None:
    """Route, host, interceptors, one line, one count; and the connection serves the next request."""
    async with rig_of(guarded, log) as rig:
        versions = (
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Version: 8",
            "Sec-WebSocket-Version: 13\r\nUpgrade: h2c",
        )
        for version in versions:
            answer = await rig.get("/v1/realtime?model=m", "h", *HANDSHAKE, version)
            assert (answer.status, answer.body) == (200, b"ok")
            (request,) = rig.sent()
            assert request.target == b"/v1/realtime?model=m"
            assert request.all("upgrade") == request.all("connection") == []
        for target, host, status in (("/", "foreign", 403), ("/keyed", "h", 401)):
            answer = await rig.get(target, host, *HANDSHAKE, versions[0])
            assert answer.status == status
            assert "message" in json.loads(answer.body)["error"]
        assert rig.sent() == []
        lines = await rig.lines(5)
        assert [line["status"] for line in lines] == [200, 200, 200, 403, 401]
        value = rig.proxy.worker.metrics.registry.get_sample_value
        counted = value("weirpool_exchanges_total", {"route": "/", "outcome": "completed"})
        assert counted == 3
        client = await open_client(rig.proxy.port)
        for _ in range(2):
            await client.send(
                "GET",
                "/x",
                [("Host", "h"), *(tuple(line.split(": ")) for line in [*HANDSHAKE, versions[0]])],
            )  # type: ignore[misc]
            assert (await client.answer()).body == b"ok"
            client.next_cycle()
        await client.aclose()


async def test_an_extended_connect_is_refused_and_not_announced(
    log: Log, certificates: Certificates
) -> None:
    """As an exchange of its route, like a plain CONNECT of none; the connection's other streams go
    on.
    """
    async with rig_of(guarded, log, certificates) as rig:
        assert rig.http2 is not None
        await rig.h2("/x")
        rig.sent()
        announced = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
        assert not rig.http2.h2.remote_settings.get(announced)
        websocket = (":protocol", "websocket"), ("sec-websocket-version", "13")
        answer = await rig.h2("/v1/realtime", "h", "CONNECT", *websocket)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (501, "not_supported")
        assert (await rig.h2("/v1/realtime", "foreign", "CONNECT", *websocket)).status == 403
        ident = rig.http2.h2.get_next_available_stream_id()
        rig.http2.streams[ident] = stream = Exchanged()
        rig.http2.h2.send_headers(
            ident, [(":method", "CONNECT"), (":authority", "victim.example:443")], end_stream=True
        )
        await rig.http2.flush()
        await until(lambda: stream.over)
        assert stream.status == 501
        assert (await rig.h2("/x")).body == b"ok"
        assert len(rig.sent()) == 1
        assert [(line["route"], line["status"]) for line in (await rig.lines(5))[1:4]] == [
            ("/", 501),
            ("/", 403),
            ("", 501),
        ]


async def test_connect_is_refused(log: Log) -> None:
    async with rig_of(guarded, log) as rig:
        for target in ("victim.example:443", "/x"):
            assert ((await rig.get(target, "h", method="CONNECT")).status, rig.sent()) == (501, [])


async def test_an_upgrade_to_h2c_is_ignored(log: Log) -> None:
    """RFC 9113, section 3.1: obsolete; a proxy in front would not see it."""
    async with rig_of(guarded, log) as rig:
        for headers in (
            ["Upgrade: h2c"],
            [
                "Connection: Upgrade, HTTP2-Settings",
                "Upgrade: h2c",
                "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
            ],
        ):
            answer = await rig.get("/x", "h", *headers)
            assert (answer.status, answer.body) == (200, b"ok")


# The port of the pages


async def test_the_admin_port_answers_to_addresses_and_names_that_are_listed(
    log: Log, tmp_path: Path
) -> None:
    """A page in the operator's browser reaches it by its own name (DNS rebinding)."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    admin = f"admin: {{port: {port}, hosts: [Weirpool.internal, 'metrics.example:8443']}}"
    async with rig_of(lambda url: configuration(url, rest=admin), log) as rig:
        rig.proxy.port = port
        right = ["127.0.0.1", "[::1]", "localhost", "LOCALHOST", "10.1.2.3", "weirpool.internal"]
        right = [*right, *(f"{host}:{port}" for host in right), "metrics.example:8443"]
        wrong = [
            "rebound.evil.example",
            f"rebound.evil.example:{port}",
            "localhost.evil.example",
            "",
            "metrics.example:1",
            "1.2.3",
            "0x7f.1",
        ]
        for page in ("/metrics", "/status"):
            for host in right:
                assert (await rig.get(page, host)).status == 200, host
            for host in wrong:
                assert (await rig.get(page, host, f"Origin: http://{host}")).status == 421, host
            assert (await rig.get(f"http://rebound.evil.example{page}", "127.0.0.1")).status == 421
            assert (await rig.raw(f"GET {page} HTTP/1.0")).status == 421
        for page in ("/healthz", "/readyz"):
            for host in [*right, *wrong]:
                assert (await rig.get(page, host)).status == 200, host
        for path in ("/%6detrics", "//metrics", "/other"):
            assert (await rig.get(path, "127.0.0.1")).status == 404
        for host in ("a b", "<x>"):
            assert (await rig.get("/status", host)).status in (400, 421)
