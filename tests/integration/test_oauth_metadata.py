"""OAuth under a prefix: clients that follow RFC 9728 find the metadata of each server of the
example in docs/mcp_proxy.md.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from mcp.client.auth.utils import (
    build_protected_resource_metadata_discovery_urls,
    extract_resource_metadata_from_www_auth,
)
from mcp.server.auth.routes import build_resource_metadata_url
from pydantic import AnyHttpUrl
from support.client import fetch
from support.pages import blocks_of
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, Request, open_upstream

from proxy.config import parse_config

WELL_KNOWN = "/.well-known/oauth-protected-resource"
Urls = Callable[[Request], tuple[str, str]]
"""The base of the server's URLs, and where its metadata is."""


def one(request: Request, name: str, default: str = "") -> str:
    (value,) = request.all(name) or [default.encode()]
    return value.decode()


def by_forwarded(request: Request) -> tuple[str, str]:
    """Like FastAPI behind a proxy middleware."""
    origin = f"{one(request, 'x-forwarded-proto', 'http')}://{one(request, 'x-forwarded-host')}"
    base = origin + one(request, "x-forwarded-prefix")
    return base, f"{base}{WELL_KNOWN}/mcp"


def by_settings(public: str, *, sdk: bool) -> Urls:
    """A public URL; `sdk`: the metadata is where the official Python SDK serves it."""
    metadata = f"{public}{WELL_KNOWN}/mcp"
    if sdk:
        metadata = str(build_resource_metadata_url(AnyHttpUrl(f"{public}/mcp")))
    return lambda request: (public, metadata)


def by_host(request: Request) -> tuple[str, str]:
    base = f"http://{one(request, 'host')}"
    return base, f"{base}{WELL_KNOWN}/mcp"


@asynccontextmanager
async def server(urls: Urls, *metadata_paths: str) -> AsyncIterator[str]:
    """An MCP server that wants a token. It serves its metadata at these paths and nowhere else."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            base, metadata = urls(request)
            path = request.target.decode()
            status, more, document = "404 Not Found", "", {}
            if path == "/mcp":
                status = "401 Unauthorized"
                more = f'WWW-Authenticate: Bearer resource_metadata="{metadata}"\r\n'
            elif path in metadata_paths:
                status, document = "200 OK", {"resource": f"{base}/mcp"}
            body = json.dumps(document)
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}"
            await peer.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    async with open_upstream(script) as upstream:
        yield upstream.url


def example(**servers: str) -> str:
    """The documentation's configuration, with these servers in place of those on fixed ports."""
    (block,) = [block for block in blocks_of("docs/mcp_proxy.md") if "tools-metadata" in block.text]
    text = block.text
    for port, name in ((9000, "tools"), (9001, "files"), (9002, "notes")):
        text = text.replace(f"http://127.0.0.1:{port}", servers.get(name, "http://127.0.0.1:9"))
    return text + "log: {level: error}\n"


async def discover(
    proxy: Proxy, url: str, *headers: tuple[str, str], host: str = "mcp.example.com"
) -> None:
    """As clients do: of a 401, and of what a client probes that does not read `WWW-Authenticate`,
    `resource` is the URL itself.
    """
    named, path = [("Host", host), *headers], urlsplit(url).path
    answer = await fetch(proxy.port, path, method="POST", headers=named, body=b"{}")
    assert answer.status == 401
    refusal = httpx.Response(answer.status, headers=answer.headers)
    told = extract_resource_metadata_from_www_auth(refusal)  # type: ignore[arg-type]
    assert told is not None
    for where in (told, build_protected_resource_metadata_discovery_urls(None, url)[0]):
        assert where.startswith("{0.scheme}://{0.netloc}/".format(urlsplit(url)))
        found = await fetch(proxy.port, urlsplit(where).path, headers=named)
        assert (found.status, json.loads(found.body)) == (200, {"resource": url}), where


@pytest.mark.parametrize(
    "urls",
    [by_forwarded, by_settings("http://mcp.example.com/tools", sdk=False)],
    ids=["forwarded", "settings"],
)
async def test_every_server_of_the_example_is_found(urls: Urls) -> None:
    """One whose URLs are made from X-Forwarded-* or which knows its public URL, and whose metadata
    path has no prefix; one with the prefix there; one that reads its Host header only.
    """
    public = by_settings("http://mcp.example.com/files", sdk=True)
    async with (
        server(urls, f"{WELL_KNOWN}/mcp") as tools,
        server(public, f"{WELL_KNOWN}/files/mcp") as files,
        server(by_host, f"{WELL_KNOWN}/mcp") as notes,
        open_proxy(parse_config(example(tools=tools, files=files, notes=notes))) as proxy,
    ):
        for path in ("/tools/mcp", "/files/mcp", "/mcp"):
            await discover(proxy, f"http://mcp.example.com{path}")


async def test_behind_a_proxy_that_ends_tls() -> None:
    """Its X-Forwarded-Proto and -Host are the client's URL, when it is trusted."""
    forwarded = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "mcp.example.com")]
    async with server(by_forwarded, f"{WELL_KNOWN}/mcp") as url:
        text = example(tools=url).replace("trusted_proxies: []", "trusted_proxies: [127.0.0.1]")
        async with open_proxy(parse_config(text)) as proxy:
            url, host = "https://mcp.example.com/tools/mcp", "weirpool.internal:8000"
            await discover(proxy, url, *forwarded, host=host)
