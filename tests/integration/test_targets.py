"""One reading of a request's target and of its host: what routes, policies and endpoints decide on
is what goes upstream.

Over HTTP/1.1 as `weirpool serve` runs it, and over HTTP/2 under plain Hypercorn, on real sockets.
`tests/unit/proxy/http` has the grammar of targets and hosts octet by octet.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import h2.settings
import h11
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, open_client
from support.http2_client import Exchanged, Http2Client, open_http2
from support.interceptors import Log, until
from support.proxy import Proxy, open_proxy
from support.tables import words
from support.upstream import Request, Upstream, answering, open_upstream

from interceptors import Interceptor, Response
from interceptors import Request as HookRequest
from interceptors.api_keys import hash_key
from proxy.config import Config, parse_config

answer_ok = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Acts(Interceptor):
    """Notes the target, sets a path or query that a header names, names the client, and removes the
    tenant that the client names.
    """

    async def on_request(self, request: HookRequest) -> Response | None:
        request.headers["x-saw"] = f"{request.path} {request.target!r} {request.headers['host']}"
        if "x-path" in request.headers:
            request.path = request.headers["x-path"]
        if "x-query" in request.headers:
            request.query = request.headers["x-query"].encode()
        request.headers["x-user-id"] = "alice"
        request.headers.pop("x-tenant", None)
        request.headers["x_set_here"] = "1"
        return None


def configuration(endpoints: str, *routes: str, upstream: str = "", rest: str = "") -> Config:
    return parse_config(
        f"""
reverse_proxy:
  upstreams: [{{name: u, endpoints: [{endpoints}]{", " + upstream if upstream else ""}}}]
  routes: [{", ".join(f"{{upstream: u, {route}}}" for route in routes or ("path: /",))}]
interceptors:
  - {{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("good")}"}}, upstream: "Bearer sk-upstream"}}}}
  - {{name: acts, use: "{__name__}:Acts"}}
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
    http2: Http2Client

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
        lines = f"{method} {target} HTTP/1.1", f"Host: {host}", *headers
        return await self.raw(*lines, method=method)

    async def h2(
        self, path: str, authority: str = "h", *more: tuple[str, str], method: str = "GET"
    ) -> Exchanged:
        """One HTTP/2 request; `path` "": without `:path` and `:scheme`, as CONNECT has it."""
        ident = self.http2.h2.get_next_available_stream_id()
        self.http2.streams[ident] = stream = Exchanged()
        pseudo = [(":method", method), (":authority", authority)]
        if path:
            pseudo[1:1] = [(":path", path), (":scheme", "https")]
        headers = [(name.encode(), value.encode("latin-1")) for name, value in [*pseudo, *more]]
        self.http2.h2.send_headers(ident, headers, end_stream=True)
        await self.http2.flush()
        await until(lambda: stream.over or self.http2.closed)
        return stream

    def sent(self) -> list[Request]:
        """What went upstream since the last look."""
        taken, self.upstream.requests[:] = self.upstream.requests[:], []
        return taken

    def check(self, answer: Answer | Exchanged, expected: int | str, case: str) -> None:
        """`expected`: the status of a refusal, or the target that goes upstream."""
        targets = [request.target.decode("latin-1") for request in self.sent()]
        if isinstance(expected, int):
            assert (answer.status, targets) == (expected, []), case
        else:
            assert (answer.status, targets) == (200, [expected]), case

    async def lines(self, count: int) -> Log:
        """The `exchange` lines, when there are as many as that."""

        def found() -> Log:
            return [line for line in self.log if line["event"] == "exchange"]

        await until(lambda: len(found()) >= count)
        return found()


Configure = Callable[[str], Config]
RigOf = Callable[[Configure], AbstractAsyncContextManager[Rig]]


@pytest.fixture
def rig_of(log: Log, certificates: Certificates) -> RigOf:
    """`async with rig_of(make) as rig`: `make` has the upstream's URL, in quotes."""

    @asynccontextmanager
    async def rig_of(make: Configure) -> AsyncIterator[Rig]:
        async with open_upstream(answer_ok) as upstream:
            config = make(f'"{upstream.url}"')
            async with (
                open_proxy(config) as proxy,
                open_proxy(config, tls=certificates.files) as http2_proxy,
                open_http2(http2_proxy, certificates) as http2,
            ):
                yield Rig(upstream, proxy, log, http2)
                assert not [line for line in log if line["event"] == "internal_error"]

    return rig_of


# Targets: RFC 9112, section 3.2; RFC 3986, sections 3.3 and 6.2.3

# `#` anywhere and a backslash in the path: servers differ in which path that is. nginx decodes
# `%2f` and Tomcat removes `;x` before they resolve dot segments, and find a route with a key.
REFUSED = words(
    r"""/admin/x#/../../open /open/..\admin/x /open# /# /x?a#b /\admin /open/..\..\admin?x
    /open/..;/admin/x /admin;a=b/x /admin; /;/admin/x /.;/ADMIN /%2e%2e;x/admin
    /open;p/%2e%2E;q/admin /open/..%2fadmin/x /open%2F..%2Fadmin /%2fadmin/x /admin%2Fx
    /open/..;x%2fadmin /%2e%2e%2fadmin /sub/..%2fother /sub/..;/other
    /sub/../sub/x /sub/a/../../sub/x /sub/%2e%2e/sub /BOTH/x /risk%2Fdesk"""
)
# The case of letters, and letters that fold to ASCII ones: upstreams differ in whether they count.
KEYED = words(
    """/admin/x /admin/a%2fb /admin/x;y /RISK/DESK /Risk//desk/x /x/../rISK/./DESK /%52isk/%44esk
    /ri%C5%BFk/desk /ris%E2%84%AA/des%e2%84%aa /r%C4%B1sk/desk /both/x"""
)
PASSED = words(
    r"""/open%23x /open/..%5Cadmin /a"<>^`{|}~b /a?b\c"<>^`{|} /a%zz /a;b=c,d!$&'()*+:@-._ /a/?/?
    /open/a%2fb /open/..%252fadmin /a;b=c/d /open;admin /x?a=..;/admin /x? /x?? /x /w/x?
    /w/x?a=%20? /Both/x /risk/desks"""
)
STRIPPED = words("/a%2Fb;v=1 /x/..%2fy /x? /x?? //x /a/../b /a/.. /./x? /v/")  # after `/sub`


def routes(url: str) -> Config:
    return configuration(
        url,
        "path: /",
        "path: /sub, strip_prefix: true",
        "path: /w, interceptors: [acts]",
        *(f"path: {path}, interceptors: [keys]" for path in ("/admin", "/risk/desk", "/both")),
        "path: /Both",
    )


async def test_a_target_is_read_once_and_goes_up_byte_for_byte(rig_of: RigOf) -> None:
    """In origin-form, in absolute-form and over HTTP/2, where a refusal ends its own stream only."""
    cases: list[tuple[str, int | str]] = [
        *((target, 400) for target in REFUSED),
        *((target, 401) for target in KEYED),
        *((target, target) for target in PASSED),
        *(("/sub" + target, target) for target in STRIPPED),
        *(("/sub", "/"), ("/sub?", "/?"), ("/sub/", "/")),
    ]
    async with rig_of(routes) as rig:
        for target, expected in cases:
            rig.check(await rig.get(target), expected, target)
            rig.check(await rig.get("http://h" + target), expected, target)
            rig.check(await rig.h2(target), expected, target)
        for target in words(r"http://h#/x http://h\x/ http:///x * h:80 a/b ftp://h/ http:/a ? #"):
            rig.check(await rig.get(target), 400, target)
        for target, expected in (("http://h?b", "/?b"), ("HTTPS://h?", "/?"), ("http://h", "/")):
            rig.check(await rig.get(target), expected, target)
        for target in ("/caf\xe9", "/a\x7fb", "/a\x01b", "/a b", "/a\tb", "/x?\xff"):
            rig.check(await rig.get(target), 400, target)  # by the server itself
            rig.check(await rig.h2(target), 400, target)
        for target in ("http://h/x", "*", "x"):
            rig.check(await rig.h2(target), 400, target)
        assert (await rig.get("/RISK/Desk", "h", "Authorization: Bearer good")).status == 200
        assert rig.sent()[0].target == b"/RISK/Desk"
        refused = [line for line in await rig.lines(len(cases)) if line["status"] == 400]
        assert {line["outcome"] for line in refused} == {"refused"}


# The path of an endpoint

OUTSIDE = words(
    """/../tenant-b/secret /v1/x/../../v1/../../tenant-b/secret /v1/a/..%2f..%2ftenant-b
    /v1/..%5C..%5ctenant-b /%2e%2e/tenant-b /.%2E/tenant-b //..//../tenant-b /a/../../ /.. /..?x
    /a%2fb/../.. /..%2f..%5Cx /%2e%2e%2ftenant-b /../tenant-a2/x /..;/tenant-b /..;a=b/tenant-b"""
)
INSIDE = words("""/a/../b /a%2f..%2fb /a/%2e%2e/b /..a/b /a..b /a?../../x /x / /./""")


async def test_no_target_leaves_an_endpoints_own_path(rig_of: RigOf) -> None:
    """Neither what a client sends, nor what an interceptor sets; what stays inside goes up as it
    came. Whichever endpoint is asked first: one of these refuses every connection, and a retry goes
    to the other.
    """
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        closed = f'"http://127.0.0.1:{sock.getsockname()[1]}/tenant-b"'

        def make(url: str) -> Config:
            paths = "path: /", "path: /v1, strip_prefix: true", "path: /set, interceptors: [acts]"
            return configuration(f'{closed}, {url[:-1]}/tenant-a/"', *paths)

        async with rig_of(make) as rig:
            for target in OUTSIDE:
                rig.check(await rig.get(target), 400, target)
                rig.check(await rig.h2(target), 400, target)
            rig.check(await rig.get("http://h/../tenant-b"), 400, "absolute")
            for path in ("/../tenant-b", "/x/..%2f..", "/..\\tenant-b"):
                rig.check(await rig.get("/set", "h", f"X-Path: {path}"), 400, path)
            for target in INSIDE:
                rig.check(await rig.get(target), "/tenant-a" + target, target)
                rig.check(await rig.get("/v1" + target), "/tenant-a" + target, target)
            answer = await rig.get("/set", "h", "X-Path: /a/../b")
            rig.check(answer, "/tenant-a/a/../b", "set")


async def test_a_query_that_no_target_has_does_not_leave(rig_of: RigOf) -> None:
    """What an interceptor sets is held to the same grammar."""
    async with rig_of(lambda url: configuration(url, "path: /, interceptors: [acts]")) as rig:
        for query, expected in (("a#b", 502), ("a b", 502), ("a\\b", "/x?a\\b")):
            rig.check(await rig.get("/x", "h", f"X-Query: {query}"), expected, query)


# Names with an underscore: RFC 3875, section 4.1.18


async def test_no_other_spelling_of_a_name_that_the_proxy_sets_goes_up(rig_of: RigOf) -> None:
    """CGI, WSGI and PHP make one variable of both: the client's would be read instead of what was
    set, checked or removed here. On `/plain` only the configuration sets and removes.
    """

    def make(url: str) -> Config:
        upstream = "headers: {set: {x-plan-name: free}, remove: [x-not-here]}"
        paths = "path: /plain", "path: /, interceptors: [keys, acts]"
        return configuration(url, *paths, upstream=upstream)

    plain = words("x_plan_name x_plan-name x_not_here content_length content_type mcp_name")
    hooked = words("x_user_id x-user_id x-tenant x_tenant x_api_key transfer_encoding keep_alive")
    passing = [(name, "passes") for name in ("x_other", "x-both", "x_both")]
    async with rig_of(make) as rig:
        for path, names in (("/plain", plain), ("/x", plain + hooked)):
            more = [("authorization", "Bearer good"), *passing, *((name, "m") for name in names)]
            await rig.get(path, "h", *(f"{name.upper()}: {value}" for name, value in more))
            await rig.h2(path, "h", *more)
            first, second = rig.sent()
            assert (first.all("via")[0][:4], second.all("via")[0][:2]) == (b"1.1 ", b"2 ")
            for request in (first, second):
                named = {name.decode().lower(): value.decode() for name, value in request.headers}
                assert "m" not in named.values()
                assert dict(passing).items() <= named.items()
                assert named["x-plan-name"] == "free"
                if path == "/x":
                    assert (named["x-user-id"], named["x_set_here"]) == ("alice", "1")


# The host: RFC 9112, section 3.2; RFC 9110, section 7.2; RFC 3986, section 3.2.2

NO_HOSTS = [
    "a b", "user@a", "a/../b", "[::1", "<script>", "a:80@b", "a:65536", "a%zz", "a?x", "a#x", "a\\b",
    'a"b', "a\xe9", ":80",
]  # fmt: skip
HOSTS = words(
    """a_b A.Example a.example. a.example: [2001:db8::1]:8000 127.0.0.1:1 a%20b a!$&'()*+,;=~-b
    xn--strae-oqa.de:65535 [::ffff:1.2.3.4]"""
)
ALLOWED = words("a.example A.Example:443 a.example: a.EXAMPLE:1 b.example:81 [2001:DB8::1]:8000")
FOREIGN = words("b.example b.example:82 a.example. x.a.example [2001:db8::2] a.example,b")


def hosts(url: str) -> Config:
    allowed = "allowed_hosts: [a.example, 'b.example:81', '[2001:db8:0::1]'], interceptors: [acts]"
    return configuration(url, "path: /", f"path: /listed, {allowed}", upstream="host: preserve")


async def test_a_host_is_refused_or_sent_upstream_unchanged(rig_of: RigOf) -> None:
    """An invalid one would be read as another host in a link, a cache or a log. `allowed_hosts`
    compares the host that was parsed.
    """
    async with rig_of(hosts) as rig:
        for host in NO_HOSTS:
            for path in ("/", "/listed", "/metrics"):
                rig.check(await rig.get(path, host), 400, host)
            if not set(host) & set("/?"):
                rig.check(await rig.get(f"http://{host}/", "a.example"), 400, host)
            rig.check(await rig.h2("/", host), 400, host)
        for path, good in (("/", HOSTS), ("/listed", ALLOWED)):
            for host in good:
                for answer in (await rig.get(path, host), await rig.h2(path, host)):
                    assert answer.status == 200, host
                for request in rig.sent():
                    assert request.all("x-forwarded-host") == [host.encode()]
                    assert request.all("host") == [host.encode()]
        assert (await rig.get("/", "")).status == 200
        (request,) = rig.sent()
        assert (request.all("host"), request.all("x-forwarded-host")) == ([b""], [])
        for host in [*FOREIGN, ""]:
            rig.check(await rig.get("/listed", host), 403, host)


async def test_the_authority_of_an_absolute_target_is_the_host(rig_of: RigOf) -> None:
    """RFC 9112, section 3.2.2: independent of `Host`."""
    async with rig_of(hosts) as rig:
        refused = await rig.get("http://b.example:82/listed", "a.example")
        rig.check(refused, 403, "the authority is not allowed")
        for origin, host in (
            ("http://a.example", "x"),
            ("HTTP://A.Example:81", "b"),
            ("https://a.example", ""),
        ):
            assert (await rig.get(f"{origin}/listed", host)).status == 200
            (request,) = rig.sent()
            named = origin.split("/")[2].encode()
            assert request.target == b"/listed"
            assert request.all("host") == request.all("x-forwarded-host") == [named]
            assert request.all("x-saw")[0].split()[-1] == named
        line = "GET http://a.example/listed HTTP/1.1"
        for lines in (
            [line],
            [line, "Host: a.example", "Host: a.example"],
            [line, "Host: a b"],
            ["GET http://u@a.example/listed HTTP/1.1", "Host: a.example"],
            ["GET / HTTP/1.2"],
        ):
            rig.check(await rig.raw(*lines), 400, str(lines))
        assert (await rig.raw("GET http://a.example/listed HTTP/1.0")).status == 200


# The proxy's pages


@pytest.mark.parametrize("prefix", ["", "/-"])
async def test_a_page_is_served_for_one_spelling_of_its_path(prefix: str, rig_of: RigOf) -> None:
    """A balancer's rule for `/metrics` protects it, and an upstream's own `/%6detrics` can be
    reached.
    """
    others = words(
        """/%6detrics /%73tatus /metrics/ //metrics /./metrics /x/../metrics /METRICS /metrics%20
        /metrics;x /healthz%3f /readyz%00 /status%2f"""
    )
    async with rig_of(lambda url: configuration(url, rest=f'admin: {{prefix: "{prefix}"}}')) as rig:
        for ask in (rig.get, rig.h2):
            for page in ("/metrics", "/status", "/dashboard", "/healthz", "/readyz"):
                for target in (prefix + page, prefix + page + "?x=1"):
                    assert ((await ask(target)).status, rig.sent()) == (200, [])
            for path in [*others, *(["/metrics"] if prefix else [])]:
                target = path if path == "/metrics" else prefix + path
                rig.check(await ask(target), target, target)
        rig.check(await rig.get(prefix + "/metrics#x"), 400, "#")
        assert b"weirpool_exchanges_total" in (await rig.get(f"http://h{prefix}/metrics")).body
        target = f"{prefix}/%6detrics"
        rig.check(await rig.get("http://h" + target), target, target)


async def test_the_admin_port_answers_to_addresses_and_names_that_are_listed(rig_of: RigOf) -> None:
    """A page in the operator's browser reaches it by its own name (DNS rebinding)."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    admin = f"admin: {{port: {port}, hosts: [Weirpool.internal, 'metrics.example:8443']}}"
    right = words("127.0.0.1 [::1] localhost LOCALHOST 10.1.2.3 weirpool.internal")
    right = [*right, *(f"{host}:{port}" for host in right), "metrics.example:8443"]
    evil = "rebound.evil.example"
    wrong = [
        evil,
        f"{evil}:{port}",
        "localhost.evil.example",
        "",
        "metrics.example:1",
        "1.2.3",
        "0x7f.1",
    ]
    async with open_upstream(answer_ok) as upstream:
        config = configuration(f'"{upstream.url}"', rest=admin)
        async with open_proxy(config) as proxy:
            rig = Rig(upstream, Proxy(proxy.app, port), [], None)  # type: ignore[arg-type]
            for page in ("/metrics", "/status", "/dashboard"):
                for host in right:
                    assert (await rig.get(page, host)).status == 200, host
                for host in wrong:
                    assert (await rig.get(page, host, f"Origin: http://{host}")).status == 421, host
                assert (await rig.get(f"http://{evil}{page}", "127.0.0.1")).status == 421
                assert (await rig.raw(f"GET {page} HTTP/1.0")).status == 421
            for page in ("/healthz", "/readyz"):
                for host in ("localhost", *wrong):
                    assert (await rig.get(page, host)).status == 200, host
            for path in ("/%6detrics", "//metrics", "/other"):
                assert (await rig.get(path, "127.0.0.1")).status == 404
            assert (await rig.get("/status", "<x>")).status in (400, 421)


# WebSocket and CONNECT: RFC 9110, section 7.8; RFC 8441

HANDSHAKE = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


def guarded(url: str) -> Config:
    keyed = "path: /keyed, dialect: openai, interceptors: [keys]"
    return configuration(url, "path: /, dialect: openai, allowed_hosts: [h]", keyed)


async def test_a_websocket_handshake_is_the_plain_request_that_it_also_is(rig_of: RigOf) -> None:
    """Route, host, interceptors, one line, one count; and the connection serves the next request.
    An upgrade to h2c (RFC 9113, section 3.1: obsolete) is ignored, too.
    """
    h2c = ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"]
    async with rig_of(guarded) as rig:
        for upgrade in (
            [*HANDSHAKE, "Sec-WebSocket-Version: 13"],
            [*HANDSHAKE, "Sec-WebSocket-Version: 8"],
            [*HANDSHAKE, "Sec-WebSocket-Version: 13", "Upgrade: h2c"],
            h2c[:1],
            ["Connection: Upgrade, HTTP2-Settings", *h2c],
        ):
            answer = await rig.get("/v1/realtime?model=m", "h", *upgrade)
            assert (answer.status, answer.body) == (200, b"ok")
            (request,) = rig.sent()
            assert request.target == b"/v1/realtime?model=m"
            assert request.all("upgrade") == request.all("connection") == []
        for target, host, status in (("/", "foreign", 403), ("/keyed", "h", 401)):
            answer = await rig.get(target, host, *HANDSHAKE, "Sec-WebSocket-Version: 13")
            assert (answer.status, rig.sent()) == (status, [])
            assert "message" in json.loads(answer.body)["error"]
        assert [line["status"] for line in await rig.lines(7)] == [*[200] * 5, 403, 401]
        value = rig.proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_exchanges_total", {"route": "/", "outcome": "completed"}) == 5
        client = await open_client(rig.proxy.port)
        headers = [tuple(line.split(": ")) for line in HANDSHAKE]
        for _ in range(2):
            await client.send("GET", "/x", [*headers, ("Host", "h")])  # type: ignore[list-item]
            assert (await client.answer()).body == b"ok"
            client.next_cycle()
        await client.aclose()


async def test_connect_is_refused_and_not_announced(rig_of: RigOf) -> None:
    """As an exchange of its route, or of none; the connection's other streams are served."""
    websocket = (":protocol", "websocket"), ("sec-websocket-version", "13")
    async with rig_of(guarded) as rig:
        assert (await rig.h2("/x")).body == b"ok"
        rig.sent()
        announced = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
        assert not rig.http2.h2.remote_settings.get(announced)
        answer = await rig.h2("/v1/realtime", "h", *websocket, method="CONNECT")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (501, "not_supported")
        assert (await rig.h2("/x", "foreign", *websocket, method="CONNECT")).status == 403
        assert (await rig.h2("", "victim.example:443", method="CONNECT")).status == 501
        for target in ("victim.example:443", "/x"):
            rig.check(await rig.get(target, "h", method="CONNECT"), 501, target)
        assert (await rig.h2("/x")).body == b"ok"
        assert len(rig.sent()) == 1
        expected = [("/", 501), ("/", 403), ("", 501), ("", 501), ("/", 501)]
        lines = (await rig.lines(7))[1:6]
        assert [(line["route"], line["status"]) for line in lines] == expected
