"""Every header that the proxy reads, writes or removes, over real sockets: what the upstream and
the client get of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from support.client import fetch, open_client
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream

from interceptors.api_keys import hash_key
from proxy.commands.cli import main

HOP = (
    "connection", "keep-alive", "proxy-connection", "proxy-authenticate",
    "proxy-authentication-info", "proxy-authorization", "te", "trailer", "upgrade",
    "http2-settings",
)  # fmt: skip
CLAIMS = (
    "x-real-ip", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
    "x-forwarded-prefix",
)  # fmt: skip


async def test_fields_of_the_hop_stay_on_it() -> None:
    """In neither direction does one of them pass; what `Connection` names goes with it."""
    extra = b"".join(b"%s: close\r\n" % name.encode() for name in HOP)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + extra + b"X-End: 1\r\n\r\nok")

    headers = [(name, "x-named" if name == "connection" else "trailers") for name in HOP]
    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        with trio.fail_after(10):
            answer = await fetch(proxy.port, headers=[*headers, ("x-named", "1"), ("x-end", "1")])
    (sent,) = upstream.requests
    assert {name.decode().lower() for name, _ in sent.headers} & {*HOP, "x-named"} == set()
    assert {name.decode().lower() for name, _ in answer.headers} & set(HOP) <= {
        "connection"
    }  # that of the proxy itself
    assert (sent.all("x-end"), answer.all("x-end")) == ([b"1"], [b"1"])


@pytest.mark.parametrize("trusted", [False, True])
async def test_what_a_proxy_in_front_reports(trusted: bool) -> None:
    """It reaches the upstream only from one of `trusted_proxies`."""
    values = dict.fromkeys(CLAIMS, "10.9.8.7") | {
        "x-forwarded-proto": "https",
        "x-forwarded-prefix": "/outer",
    }

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with open_upstream(script) as upstream:
        config = config_for(upstream.url, proxy="  trusted_proxies: [127.0.0.1]" if trusted else "")
        async with open_proxy(config) as proxy:
            with trio.fail_after(10):
                await fetch(proxy.port, headers=list(values.items()))
    (sent,) = upstream.requests
    passed = [
        name
        for name, value in values.items()
        if any(value.encode() in item for item in sent.all(name))
    ]
    assert passed == (list(CLAIMS) if trusted else [])


ANN = "wk-ann-Zq3xV8"
KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(ANN)}"}}, upstream: "Bearer u-1"}}}}'


CREDENTIALS = (
    "api-key", "authorization", "cookie", "proxy-authorization", "set-cookie",
    "x-amz-security-token", "x-api-key", "x-auth-token", "x-goog-api-key",
)  # fmt: skip


def test_a_credential_is_written_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`audit` refuses each of these headers; `weirpool check` names it."""
    (tmp_path / "weirpool.yaml").write_text(
        f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://127.0.0.1:9"]}}]
  routes: [{{path: /, upstream: up, interceptors: [audit]}}]
interceptors:
  - {{name: audit, use: audit, options: {{path: "{tmp_path}/a", headers: [{", ".join(CREDENTIALS)}]}}}}
"""
    )
    assert main(["check", str(tmp_path / "weirpool.yaml")]) == 2
    errors = capsys.readouterr().err
    assert [
        name
        for name in CREDENTIALS
        if name not in errors.replace(f"[{', '.join(CREDENTIALS)}]", "")
    ] == []


async def test_the_audit_has_the_user_agent(tmp_path: Path) -> None:
    """`User-Agent` and `Content-Type` are what `audit` writes down by default."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    audit = f'{{name: audit, use: audit, options: {{path: "{tmp_path}/audit.jsonl"}}}}'
    async with open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, interceptors=audit, names="audit")) as proxy:
            with trio.fail_after(10):
                await fetch(proxy.port, headers=[("user-agent", "curl/8")])
    assert '"user-agent":"curl/8"' in (tmp_path / "audit.jsonl").read_text()


async def test_a_preflight_must_not_name_another_method() -> None:
    """A preflight needs no key."""
    headers = [("origin", "https://app.test"), ("access-control-request-method", "POST")]
    config = config_for(
        "http://127.0.0.1:9",
        route='allowed_origins: ["https://app.test"]',
        interceptors=KEYS,
        names="keys",
    )
    async with open_proxy(config) as proxy:
        with trio.fail_after(10):
            for name in ("", "x-http-method", "x-http-method-override", "x-method-override"):
                given = [*headers, *([(name, "DELETE")] if name else [])]
                answer = await fetch(proxy.port, method="OPTIONS", headers=given)
                assert answer.status == (401 if name else 204), name
                assert bool(answer.all("access-control-max-age")) is not bool(name)


async def test_server_and_date_are_there_once() -> None:
    """The upstream's `Server` passes, and a response has one `Date`."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 204 No Content\r\nServer: theirs\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
        )

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        with trio.fail_after(10):
            answer = await fetch(proxy.port)
    assert (len(answer.all("server")), len(answer.all("date"))) == (1, 1)


async def test_expect_is_answered_here() -> None:
    """`Expect: 100-continue` is the client's question to the proxy: the upstream does not see it."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        with trio.fail_after(10):
            await client.send("POST", "/", [("expect", "100-continue"), ("content-length", "2")])
            assert b" 100 " in await client.stream.receive_some(1000)
            await client.stream.send_all(b"ok")
            assert b" 204 " in await client.stream.receive_some(1000)
        await client.aclose()
    (sent,) = upstream.requests
    assert (sent.all("expect"), sent.body) == ([], b"ok")


async def test_rules_of_the_upstream() -> None:
    """`headers.set` replaces what a client sent, `headers.remove` takes it away."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    rules = "headers: {set: {x-team: red}, remove: [x-internal]}"
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, upstream=rules)) as proxy,
    ):
        with trio.fail_after(10):
            await fetch(proxy.port, headers=[("x-team", "blue"), ("x-internal", "1")])
    (sent,) = upstream.requests
    assert (sent.all("x-team"), sent.all("x-internal")) == ([b"red"], [])
