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

HOST = ("Host", "mcp.example.com")
METADATA = "/.well-known/oauth-protected-resource/mcp"


@asynccontextmanager
async def serving(
    status: str,
    *lines: str,
    dialect: str = "mcp",
    base: str = "",
    trusted: str = "",
    tls: tuple[str, str] | None = None,
) -> AsyncIterator[tuple[Proxy, Upstream]]:
    """Routes as in a gateway, and a server that answers everything with these header lines, where
    OWN is its origin.
    """

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            head = "\r\n".join([f"HTTP/1.1 {status}", *lines, "Content-Length: 0"]) + "\r\n\r\n"
            await peer.send(head.replace("OWN", upstream.url).encode("latin-1"))

    async with open_upstream(script) as upstream:
        config = parse_config(
            f"""
reverse_proxy:
  upstreams:
    - {{name: tools, endpoints: ["{upstream.url}{base}"]}}
    - {{name: keep, endpoints: ["{upstream.url}{base}"], host: preserve}}
    - {{name: named, endpoints: ["{upstream.url}{base}"], host: tools.internal}}
    - {{name: set, endpoints: ["{upstream.url}{base}"], headers: {{set: {{x-forwarded-prefix: /set}}}}}}
  routes:
    - {{path: /tools, upstream: tools, dialect: {dialect}, strip_prefix: true}}
    - {{path: /slash/, upstream: tools, dialect: {dialect}, strip_prefix: true}}
    - {{path: /keep, upstream: keep, dialect: {dialect}, strip_prefix: true}}
    - {{path: /named, upstream: named, dialect: {dialect}, strip_prefix: true}}
    - {{path: /set, upstream: set, dialect: {dialect}, strip_prefix: true}}
    - {{path: /mcp, upstream: tools, dialect: {dialect}}}
  trusted_proxies: [{trusted}]
  leak_detection: paranoid
log: {{level: error}}
"""
        )
        async with open_proxy(config, tls=tls) as proxy:
            yield proxy, upstream


async def ask(proxy: Proxy, target: str, *headers: tuple[str, str], method: str = "POST") -> Answer:
    named = () if any(name == "Host" for name, _ in headers) else (HOST,)
    return await fetch(
        proxy.port,
        target,
        method=method,
        headers=[*named, *headers],
        body=b"" if method == "POST" else None,
    )


@pytest.mark.parametrize("dialect", ["mcp", "generic", "openai", "abort"])
@pytest.mark.parametrize(
    ("target", "status", "line", "expected"),
    [
        ("/tools/mcp/", "307 Temporary Redirect", "Location: OWN/mcp", "/tools/mcp"),
        ("/tools/rel/", "308 Permanent Redirect", "location: /mcp", "/tools/mcp"),
        (
            "/keep/mcp/",
            "301 Moved Permanently",
            "Location: http://mcp.example.com/mcp",
            "/keep/mcp",
        ),
        ("/keep/mcp/", "302 Found", "Location: OWN/mcp", "/keep/mcp"),
        ("/named/mcp/", "303 See Other", "Location: https://tools.internal/mcp", "/named/mcp"),
        ("/slash/mcp/", "307 Temporary Redirect", "Location: /mcp", "/slash/mcp"),
        ("/mcp/", "307 Temporary Redirect", "Location: OWN/mcp", "/mcp"),
        (
            "/mcp/",
            "307 Temporary Redirect",
            "Location: http://login.test/?to=OWN/mcp",
            "http://login.test/?to=OWN/mcp",
        ),
        (
            "/tools/tasks",
            "201 Created",
            "Location: OWN/tasks/42?x=%2F#f",
            "/tools/tasks/42?x=%2F#f",
        ),
        ("/tools/tasks", "202 Accepted", "Content-Location: OWN/tasks/42", "/tools/tasks/42"),
        ("/tools/tasks?page=1", "200 OK", "Content-Location: tasks?page=2", "tasks?page=2"),
        (
            "/tools/tasks",
            "200 OK",
            'Link: </openapi.json>; rel="service-desc"',
            '</tools/openapi.json>; rel="service-desc"',
        ),
    ],
)
async def test_what_the_client_follows(
    target: str, status: str, line: str, expected: str, dialect: str
) -> None:
    """On a route of any dialect, with any status."""
    async with serving(status, line, dialect=dialect) as (proxy, upstream):
        answer = await ask(proxy, target)
        name = line.partition(":")[0].lower()
        assert answer.status == int(status[:3])
        assert answer.all(name) == [expected.replace("OWN", upstream.url).encode()]


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_where_the_metadata_is(status: str) -> None:
    """`resource_metadata` is a URL, in each header line; the rest of the challenges stays."""
    lines = [
        f'WWW-Authenticate: Bearer error="invalid_token", resource_metadata="OWN{METADATA}"',
        "www-authenticate: Basic realm=OWN",
    ]
    async with serving(status, *lines) as (proxy, upstream):
        answer = await ask(proxy, "/tools/mcp")
        assert answer.all("www-authenticate") == [
            f'Bearer error="invalid_token", resource_metadata="http://mcp.example.com/tools{METADATA}"'.encode(),
            b"Basic realm=" + upstream.url.encode(),
        ]


@pytest.mark.parametrize(
    ("trusted", "origin"),
    [("", "http://mcp.example.com"), ("127.0.0.1", "https://public.test:8443")],
    ids=["", "trusted"],
)
async def test_behind_trusted_proxies_the_origin_is_theirs(trusted: str, origin: str) -> None:
    """A server that honours these fields is recognised."""
    lines = [
        f'WWW-Authenticate: Bearer resource_metadata="OWN{METADATA}"',
        f"Location: {origin}/gw/tools/a" if trusted else "Location: /tools/a",
    ]
    forwarded = [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "public.test:8443"),
        ("X-Forwarded-Prefix", "/gw"),
    ]
    async with serving("401 Unauthorized", *lines, trusted=trusted) as (proxy, upstream):
        answer = await ask(proxy, "/tools/mcp", *forwarded)
        outer = "/gw" if trusted else ""
        assert answer.all("www-authenticate") == [
            f'Bearer resource_metadata="{origin}{outer}/tools{METADATA}"'.encode()
        ]
        assert answer.all("location") == [
            f"{origin}/gw/tools/a".encode() if trusted else b"/tools/a"
        ]
        (request,) = upstream.requests
        assert request.all("x-forwarded-prefix") == [f"{outer}/tools".encode()]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/tools/mcp", [b"/tools"]),
        ("/slash/mcp", [b"/slash"]),
        ("/set/mcp", [b"/set"]),
        ("/mcp", []),
    ],
)
async def test_the_server_sees_the_stripped_prefix(target: str, expected: list[bytes]) -> None:
    """Never the client's own word; `headers.set` decides last."""
    async with serving("200 OK") as (proxy, upstream):
        await ask(proxy, target)
        await ask(proxy, target, ("X-Forwarded-Prefix", "/evil"))
        assert [request.all("x-forwarded-prefix") for request in upstream.requests] == [
            expected,
            expected,
        ]


async def test_an_endpoint_with_a_path() -> None:
    """Its path is not part of the client's."""
    async with serving("307 Temporary Redirect", "Location: /srv/mcp", base="/srv") as (
        proxy,
        upstream,
    ):
        assert (await ask(proxy, "/mcp/")).all("location") == [b"/mcp"]
        assert (await ask(proxy, "/tools/mcp/")).all("location") == [b"/tools/mcp"]
        assert [request.target for request in upstream.requests] == [b"/srv/mcp/", b"/srv/mcp/"]


async def test_a_client_of_http_2(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its authority is its host, and its scheme https."""
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    lines = [
        f'WWW-Authenticate: Bearer resource_metadata="OWN{METADATA}"',
        "Location: https://localhost/mcp",
    ]
    async with (
        serving("401 Unauthorized", *lines, tls=certificates.files) as (proxy, _),
        open_http2(proxy, certificates) as client,
    ):
        headers = dict((await client.get("/keep/mcp")).headers)
        assert (
            headers["www-authenticate"]
            == f'Bearer resource_metadata="https://localhost/keep{METADATA}"'
        )
        assert headers["location"] == "/keep/mcp"
