"""URL references in response headers, on real sockets: a client that follows them comes back to the
same server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.certificates import Certificates
from support.client import Answer, fetch
from support.http2_client import open_http2
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, Upstream, open_upstream

from proxy.config import parse_config

METADATA = "/.well-known/oauth-protected-resource/mcp"
FORWARDED = [
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "public.test:8443"),
    ("X-Forwarded-Prefix", "/gw"),
]
CONFIG = """
reverse_proxy:
  upstreams:
    - {name: tools, endpoints: ["URL"]}
    - {name: keep, endpoints: ["URL"], host: preserve}
    - {name: named, endpoints: ["URL"], host: tools.internal}
    - {name: set, endpoints: ["URL"], headers: {set: {x-forwarded-prefix: /set}}}
  routes:
    - {path: /tools, upstream: tools, dialect: mcp, strip_prefix: true}
    - {path: /generic, upstream: tools, strip_prefix: true}
    - {path: /openai, upstream: tools, dialect: openai, strip_prefix: true}
    - {path: /abort, upstream: tools, dialect: abort, strip_prefix: true}
    - {path: /slash/, upstream: tools, dialect: mcp, strip_prefix: true}
    - {path: /keep, upstream: keep, dialect: mcp, strip_prefix: true}
    - {path: /named, upstream: named, dialect: mcp, strip_prefix: true}
    - {path: /set, upstream: set, dialect: mcp, strip_prefix: true}
    - {path: /mcp, upstream: tools, dialect: mcp}
  trusted_proxies: [TRUSTED]
  leak_detection: paranoid
log: {level: error}
"""


class Server:
    """It answers everything with these header lines, where OWN is its origin."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.lines: list[str] = []
        self.upstream: Upstream
        self.proxy: Proxy

    async def script(self, peer: Peer) -> None:
        while True:
            await peer.request()
            lines = [f"HTTP/1.1 {self.status}", *self.lines, "Content-Length: 0\r\n\r\n"]
            await peer.send("\r\n".join(lines).replace("OWN", self.upstream.url).encode())

    async def ask(self, target: str, *headers: tuple[str, str]) -> Answer:
        headers = (("Host", "mcp.example.com"), *headers)
        return await fetch(self.proxy.port, target, method="POST", headers=list(headers), body=b"")

    def seen(self, name: str) -> list[list[bytes]]:
        return [request.all(name) for request in self.upstream.requests]


@asynccontextmanager
async def serving(
    base: str = "", trusted: str = "", tls: tuple[str, str] | None = None
) -> AsyncIterator[Server]:
    """A gateway with routes to that server, whose endpoints have the path `base`."""
    server = Server()
    async with open_upstream(server.script) as server.upstream:
        text = CONFIG.replace("URL", server.upstream.url + base).replace("TRUSTED", trusted)
        async with open_proxy(parse_config(text), tls=tls) as server.proxy:
            yield server


async def test_what_the_client_follows() -> None:
    """On a route of any dialect, with any status."""
    async with serving() as server:
        for target, status, line, expected in (
            ("/tools/mcp/", "307 x", "Location: OWN/mcp", "/tools/mcp"),
            ("/generic/mcp/", "307 x", "Location: OWN/mcp", "/generic/mcp"),
            ("/openai/mcp/", "307 x", "Location: OWN/mcp", "/openai/mcp"),
            ("/abort/mcp/", "307 x", "Location: OWN/mcp", "/abort/mcp"),
            ("/tools/rel/", "308 x", "location: /mcp", "/tools/mcp"),
            ("/keep/mcp/", "301 x", "Location: http://mcp.example.com/mcp", "/keep/mcp"),
            ("/keep/mcp/", "302 x", "Location: OWN/mcp", "/keep/mcp"),
            ("/named/mcp/", "303 x", "Location: https://tools.internal/mcp", "/named/mcp"),
            ("/slash/mcp/", "307 x", "Location: /mcp", "/slash/mcp"),
            ("/mcp/", "307 x", "Location: OWN/mcp", "/mcp"),
            ("/mcp/", "307 x", "Location: http://login.test/?to=OWN", "http://login.test/?to=OWN"),
            ("/tools/a", "201 x", "Location: OWN/tasks/42?x=%2F#f", "/tools/tasks/42?x=%2F#f"),
            ("/tools/a", "202 x", "Content-Location: OWN/tasks/42", "/tools/tasks/42"),
            ("/tools/a?page=1", "200 x", "Content-Location: a?page=2", "a?page=2"),
            ("/tools/a", "200 x", 'Link: </api>; rel="x"', '</tools/api>; rel="x"'),
        ):  # fmt: skip
            server.status, server.lines = status, [line]
            answer = await server.ask(target)
            assert answer.status == int(status[:3])
            name = line.partition(":")[0].lower()
            expected = expected.replace("OWN", server.upstream.url)
            assert answer.all(name) == [expected.encode()], (target, line)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_where_the_metadata_is(status: str) -> None:
    """`resource_metadata` is a URL, in each header line; the rest of the challenges stays."""
    async with serving() as server:
        server.status = status
        server.lines = [
            f'WWW-Authenticate: Bearer error="invalid_token", resource_metadata="OWN{METADATA}"',
            "www-authenticate: Basic realm=OWN",
        ]
        url = f"http://mcp.example.com/tools{METADATA}"
        assert (await server.ask("/tools/mcp")).all("www-authenticate") == [
            f'Bearer error="invalid_token", resource_metadata="{url}"'.encode(),
            b"Basic realm=" + server.upstream.url.encode(),
        ]


@pytest.mark.parametrize(
    ("trusted", "location", "origin", "outer"),
    [
        ("", "/tools/a", "http://mcp.example.com", ""),
        ("127.0.0.1", "https://public.test:8443/gw/tools/a", "https://public.test:8443", "/gw"),
    ],
)
async def test_after_trusted_proxies_the_origin_is_theirs(
    trusted: str, location: str, origin: str, outer: str
) -> None:
    """A reference of a server that honours these fields is recognised, and stays."""
    async with serving(trusted=trusted) as server:
        server.lines = [
            f'WWW-Authenticate: Bearer resource_metadata="OWN{METADATA}"',
            f"Location: {location}",
        ]
        answer = await server.ask("/tools/mcp", *FORWARDED)
        url = f"{origin}{outer}/tools{METADATA}"
        assert answer.all("www-authenticate") == [f'Bearer resource_metadata="{url}"'.encode()]
        assert answer.all("location") == [location.encode()]
        assert server.seen("x-forwarded-prefix") == [[f"{outer}/tools".encode()]]


async def test_the_server_sees_the_stripped_prefix() -> None:
    """Never the one that the client sends; `headers.set` decides last."""
    async with serving() as server:
        for target, expected in (
            ("/tools/mcp", [b"/tools"]),
            ("/slash/mcp", [b"/slash"]),
            ("/set/mcp", [b"/set"]),
            ("/mcp", []),
        ):
            server.upstream.requests.clear()
            await server.ask(target)
            await server.ask(target, ("X-Forwarded-Prefix", "/evil"))
            assert server.seen("x-forwarded-prefix") == [expected, expected]


async def test_an_endpoint_with_a_path() -> None:
    """Its path is not part of the client's."""
    async with serving("/srv") as server:
        server.lines = ["Location: /srv/mcp"]
        for target, expected in (("/mcp/", b"/mcp"), ("/tools/mcp/", b"/tools/mcp")):
            assert (await server.ask(target)).all("location") == [expected]
        assert [request.target for request in server.upstream.requests] == [b"/srv/mcp/"] * 2


async def test_a_client_of_http_2(certificates: Certificates) -> None:
    """Its authority is its host, and its scheme https."""
    async with (
        serving(tls=certificates.files) as server,
        open_http2(server.proxy, certificates) as client,
    ):
        server.lines = [
            f'WWW-Authenticate: Bearer resource_metadata="OWN{METADATA}"',
            "Location: https://localhost/mcp",
        ]
        headers = dict((await client.get("/keep/mcp")).headers)
        url = f"https://localhost/keep{METADATA}"
        assert headers["www-authenticate"] == f'Bearer resource_metadata="{url}"'
        assert headers["location"] == "/keep/mcp"
