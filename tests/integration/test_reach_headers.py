"""Every header that the proxy reads, writes or removes, over real sockets: what the upstream and
the client get of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.client import fetch
from support.proxy import Proxy, config_for, open_proxy
from support.tables import words
from support.upstream import Upstream, answering, open_upstream

from interceptors.api_keys import hash_key
from proxy.commands.cli import main

HOP = words(
    """connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info
    proxy-authorization te trailer upgrade http2-settings"""
)
CLAIMS = {
    **dict.fromkeys(("x-real-ip", "forwarded", "x-forwarded-for", "x-forwarded-host"), "10.9.8.7"),
    "x-forwarded-proto": "https",
    "x-forwarded-prefix": "/outer",
}


@asynccontextmanager
async def gateway(*lines: str, **settings: str) -> AsyncIterator[tuple[Upstream, Proxy]]:
    """An upstream whose answers have these header lines, and the proxy."""
    head = "\r\n".join(["HTTP/1.1 204 No Content", *lines]) + "\r\n\r\n"

    script = answering(head.encode())

    with trio.fail_after(10):
        async with open_upstream(script) as upstream:
            async with open_proxy(config_for(upstream.url, **settings)) as proxy:
                yield upstream, proxy


async def test_fields_of_the_hop_stay_on_it() -> None:
    """In neither direction does one of them pass; what `Connection` names goes with it."""
    headers = [(name, "x-named" if name == "connection" else "trailers") for name in HOP]
    async with gateway(*(f"{name}: close" for name in HOP), "X-End: 1") as (upstream, proxy):
        answer = await fetch(proxy.port, headers=[*headers, ("x-named", "1"), ("x-end", "1")])
    (sent,) = upstream.requests
    assert {name.decode().lower() for name, _ in sent.headers} & {*HOP, "x-named"} == set()
    got = {name.decode().lower() for name, _ in answer.headers}
    assert got & set(HOP) <= {"connection"}  # that of the proxy itself
    assert (sent.all("x-end"), answer.all("x-end")) == ([b"1"], [b"1"])


@pytest.mark.parametrize("trusted", [False, True])
async def test_what_a_proxy_in_front_reports(trusted: bool) -> None:
    """It reaches the upstream only from one of `trusted_proxies`."""
    proxies = "  trusted_proxies: [127.0.0.1]" if trusted else ""
    async with gateway(proxy=proxies) as (upstream, proxy):
        await fetch(proxy.port, headers=list(CLAIMS.items()))
    (sent,) = upstream.requests
    passed = [
        name
        for name, value in CLAIMS.items()
        if any(value.encode() in item for item in sent.all(name))
    ]
    assert passed == (list(CLAIMS) if trusted else [])


CREDENTIALS = words(
    """api-key authorization cookie proxy-authorization set-cookie x-amz-security-token x-api-key
    x-auth-token x-goog-api-key"""
)


def test_no_credential_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`audit` refuses each of these headers; `weirpool check` names it."""
    listed = f"[{', '.join(CREDENTIALS)}]"
    file = tmp_path / "weirpool.yaml"
    file.write_text(
        f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://127.0.0.1:9"]}}]
  routes: [{{path: /, upstream: up, interceptors: [audit]}}]
interceptors: [{{name: audit, use: audit, options: {{path: "{tmp_path}/a", headers: {listed}}}}}]
"""
    )
    assert main(["check", str(file)]) == 2
    errors = capsys.readouterr().err.replace(listed, "")
    assert [name for name in CREDENTIALS if name not in errors] == []


async def test_the_audit_has_the_user_agent(tmp_path: Path) -> None:
    """`User-Agent` and `Content-Type` are what `audit` writes down by default."""
    audit = f'{{name: audit, use: audit, options: {{path: "{tmp_path}/audit.jsonl"}}}}'
    async with gateway(interceptors=audit, names="audit") as (_, proxy):
        await fetch(proxy.port, headers=[("user-agent", "curl/8")])
    assert '"user-agent":"curl/8"' in (tmp_path / "audit.jsonl").read_text()


async def test_a_preflight_must_not_name_another_method() -> None:
    """A preflight needs no key."""
    keys = (
        f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("k")}"}}, upstream: u}}}}'
    )
    route = 'allowed_origins: ["https://app.test"]'
    async with gateway(route=route, interceptors=keys, names="keys") as (_, proxy):
        for name in ("", "x-http-method", "x-http-method-override", "x-method-override"):
            headers = [("origin", "https://app.test"), ("access-control-request-method", "POST")]
            headers += [(name, "DELETE")] if name else []
            answer = await fetch(proxy.port, method="OPTIONS", headers=headers)
            assert answer.status == (401 if name else 204), name
            assert bool(answer.all("access-control-max-age")) is not bool(name)


async def test_server_and_date_are_there_once() -> None:
    """The upstream's `Server` passes, and a response has one `Date`."""
    lines = "Server: theirs", "Date: Thu, 01 Jan 2026 00:00:00 GMT"
    async with gateway(*lines) as (_, proxy):
        answer = await fetch(proxy.port)
    assert (answer.all("server"), len(answer.all("date"))) == ([b"theirs"], 1)


async def test_rules_of_the_upstream() -> None:
    """`headers.set` replaces what a client sent, `headers.remove` takes it away."""
    rules = "headers: {set: {x-team: red}, remove: [x-internal]}"
    async with gateway(upstream=rules) as (upstream, proxy):
        await fetch(proxy.port, headers=[("x-team", "blue"), ("x-internal", "1")])
    (sent,) = upstream.requests
    assert (sent.all("x-team"), sent.all("x-internal")) == ([b"red"], [])
