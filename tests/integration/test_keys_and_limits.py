"""`api_keys` and `rate_limit` in a whole proxy on real sockets: what the upstream, the client and
the log get.

Most tests run twice: over plain HTTP/1.1, where the direct writer serves the client, and over TLS,
where the portable one does.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.interceptors import Log, Rig
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, open_upstream, stream_of

from interceptors import Interceptor, Request
from interceptors.api_keys import hash_key
from proxy.errors import ConfigError
from proxy.server.app import create_app

ANN, BOB, STRANGER = "wk-ann-Zq3xV8", "wk-bob-1LmT7c", "wk-stranger-5Hd"
UPSTREAM = "upstream-credential-8sQ"
EVENTS = b"data: 1\n\n", b"data: [DONE]\n\n"

KEYS = (
    f'{{name: keys, use: "interceptors.api_keys:ApiKeys", options: {{upstream: "Bearer ${{UPSTREAM_KEY}}", '
    f'keys: {{ann: "{hash_key(ANN)}", bob: ["{hash_key(BOB)}"]}}}}}}'
)

Serve = Callable[..., AbstractAsyncContextManager[Rig]]


def limit(name: str = "limit", *, burst: int = 2, by: str = "auto") -> str:
    """A limit with a burst and then, for as long as a test takes, nothing."""
    options = f"{{requests_per_minute: 0.001, burst: {burst}, by: {by}}}"
    return f'{{name: {name}, use: "interceptors.rate_limit:RateLimit", options: {options}}}'


@pytest.fixture(params=["plain", "tls"])
def serve(
    request: pytest.FixtureRequest,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
) -> Serve:
    """`async with serve(script, names, *entries) as rig`."""
    tls = request.param == "tls"
    monkeypatch.setenv("UPSTREAM_KEY", UPSTREAM)

    @asynccontextmanager
    async def serve(script: Script, names: str, *entries: str) -> AsyncIterator[Rig]:
        async with open_upstream(script) as upstream:
            config = config_for(upstream.url, interceptors=", ".join(entries), names=names)
            async with open_proxy(config, tls=certificates.files if tls else None) as proxy:
                rig = Rig(upstream, proxy, log, certificates.client() if tls else None)
                yield rig
                for client in rig.clients:
                    await client.aclose()
                await rig.everything_is_back()

    return serve


async def ask(
    client: Client, *headers: tuple[str, str], method: str = "GET", body: bytes | None = None
) -> Answer:
    """One more request on the client's connection, which must continue."""
    with trio.fail_after(10):
        await client.send(method, "/v1/chat", list(headers), body)
        answer = await client.answer()
    assert answer.complete, answer.error
    client.next_cycle()
    return answer


def bearer(key: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {key}"


def error_of(answer: Answer) -> str:
    """The type of the JSON error."""
    assert answer.all("content-type") == [b"application/json"]
    error = json.loads(answer.body)["error"]
    assert sorted(error) == ["message", "type"]
    kind: str = error["type"]
    return kind


async def test_upstream_sees_its_own_credential_and_never_a_clients_key(serve: Serve) -> None:
    """In whichever header the key comes, alone or twice, with a body or without."""
    async with serve(stream_of(*EVENTS), "keys", KEYS) as rig:
        client = await rig.client()
        sent: list[tuple[tuple[str, str], ...]] = [
            (bearer(ANN),),
            (("X-API-Key", BOB),),
            (bearer(BOB), ("x-api-key", BOB), ("x-api-key", BOB)),
        ]
        for headers in sent:
            answer = await ask(
                client, *headers, ("X-Other", "stays"), method="POST", body=b'{"model": "m"}'
            )
            assert (answer.status, answer.body) == (200, b"".join(EVENTS))
        assert len(rig.upstream.requests) == len(sent)
        for request in rig.upstream.requests:
            assert request.all("authorization") == [b"Bearer " + UPSTREAM.encode()]
            assert request.all("x-api-key") == []
            assert request.all("x-other") == [b"stays"]
            assert request.body == b'{"model": "m"}'
            assert not any(key.encode() in repr(request).encode() for key in (ANN, BOB))
        assert await rig.outcomes(len(sent)) == ["completed"] * len(sent)


async def test_with_its_own_header_the_clients_token_reaches_the_server(serve: Serve) -> None:
    """An MCP server with OAuth, reached with a gateway's key."""
    entry = KEYS.replace('upstream: "Bearer ${UPSTREAM_KEY}"', "header: x-gateway-key")
    async with serve(stream_of(*EVENTS), "keys", entry) as rig:
        client = await rig.client()
        token = ("Authorization", "Bearer user-oauth-token")
        assert (await ask(client, ("X-Gateway-Key", ANN), token)).status == 200
        (request,) = rig.upstream.requests
        assert request.all("authorization") == [b"Bearer user-oauth-token"]
        assert request.all("x-gateway-key") == []
        assert (
            await ask(client, bearer(ANN))
        ).status == 401  # a key in any other header is not a key


async def test_without_a_valid_key_the_client_gets_401_and_may_continue(serve: Serve) -> None:
    """On one connection."""
    async with serve(stream_of(*EVENTS), "keys", KEYS) as rig:
        client = await rig.client()
        answer = await ask(client)
        assert (answer.status, error_of(answer)) == (401, "missing_api_key")
        assert answer.all("www-authenticate") == [b'Bearer realm="weirpool"']
        refused = [
            await ask(client, bearer(STRANGER), method="POST", body=b"x" * 50_000),
            await ask(
                client,
                bearer(STRANGER),
                ("Transfer-Encoding", "chunked"),
                method="POST",
                body=b"x" * 50_000,
            ),
            await ask(client, bearer(ANN), ("X-Api-Key", STRANGER)),
        ]
        for answer in refused:
            assert (answer.status, error_of(answer)) == (401, "invalid_api_key")
            assert answer.all("www-authenticate") == [
                b'Bearer realm="weirpool", error="invalid_token"'
            ]
            assert not any(
                key.encode() in answer.body + repr(answer.headers).encode()
                for key in (ANN, STRANGER, UPSTREAM)
            )
        assert rig.upstream.accepted == 0
        answer = await ask(client, bearer(ANN))
        assert (answer.status, answer.body) == (200, b"".join(EVENTS))
        assert await rig.outcomes(5) == ["intercepted"] * 4 + ["completed"]
        assert [line["status"] for line in rig.lines("exchange")] == [401] * 4 + [200]


async def test_beyond_its_limit_a_client_gets_429_and_may_continue(serve: Serve) -> None:
    """On one connection."""
    async with serve(
        stream_of(*EVENTS), "keys, limit", KEYS, limit(burst=2, by="client_key")
    ) as rig:
        client = await rig.client()
        assert [(await ask(client, bearer(ANN))).status for _ in range(3)] == [200, 200, 429]
        answer = await ask(client, ("x-api-key", ANN), method="POST", body=b"x" * 50_000)
        assert (answer.status, error_of(answer)) == (429, "rate_limited")
        (retry_after,) = answer.all("retry-after")
        assert 59_000 < int(retry_after) <= 60_000
        assert [(await ask(client, bearer(BOB))).status for _ in range(3)] == [200, 200, 429]
        assert len(rig.upstream.requests) == 4
        assert rig.upstream.accepted == 1
        outcomes = await rig.outcomes(7)
        assert outcomes == ["completed"] * 2 + ["intercepted"] * 2 + ["completed"] * 2 + [
            "intercepted"
        ]


async def test_a_limit_by_address_before_the_keys_bounds_strangers(serve: Serve) -> None:
    """Refused keys count by the address when the limit stands first."""
    async with serve(stream_of(*EVENTS), "limit, keys", limit(burst=2, by="address"), KEYS) as rig:
        client = await rig.client()
        assert [(await ask(client, bearer(STRANGER))).status for _ in range(3)] == [401, 401, 429]
        assert (
            await rig.fetch(headers=[bearer(ANN)])
        ).status == 429  # another connection, from the same address
        assert rig.upstream.accepted == 0
    async with serve(stream_of(*EVENTS), "limit", limit(burst=1)) as rig:
        assert [(await rig.fetch()).status for _ in range(2)] == [200, 429]


async def test_no_key_stands_in_any_log_line(
    serve: Serve, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever happens to a request with a key, neither the client's key nor the upstream's
    credential is logged or printed: an answer, refusals, a limit, an upstream that fails, and an
    interceptor after that raises, with its traceback.
    """
    caplog.set_level(0)

    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.target == b"/fails":
            return
        await peer.start_stream()
        await peer.chunk(EVENTS[0])
        await peer.end()

    async with serve(
        script,
        "keys, limit, raises",
        KEYS,
        limit(burst=3),
        f'{{name: raises, use: "{__name__}:Raises"}}',
    ) as rig:
        statuses = []
        for target, key in [
            ("/", ANN),
            ("/fails", ANN),
            ("/raises", ANN),
            ("/", ANN),
            ("/", STRANGER),
        ]:
            statuses.append(
                (await rig.fetch(target, headers=[bearer(key), ("X-Api-Key", key)])).status
            )
        assert statuses == [200, 502, 502, 429, 401]
        assert len(await rig.outcomes(5)) == 5
        assert rig.failures() == [("raises", "on_request")]
    written = [repr(rig.log), caplog.text, *capfd.readouterr()]
    written += [
        "".join(traceback.format_exception(line["exc_info"]))
        for line in rig.log
        if line.get("exc_info")
    ]
    assert "not today" in "".join(written)  # the traceback is among what was looked at
    for text in written:
        assert not any(secret in text for secret in (ANN, STRANGER, UPSTREAM))


class Raises(Interceptor):
    """Fails on one path, with what it was given at hand."""

    async def on_request(self, request: Request) -> None:
        if request.path == "/raises":
            raise RuntimeError(f"not today: {request!r} of {request.state!r}")


def test_a_key_in_the_place_of_its_hash_is_refused_at_start_and_not_shown() -> None:
    """The mistake is named by the interceptor's and the option's path."""
    entry = (
        f'{{name: keys, use: "interceptors.api_keys:ApiKeys", options: {{keys: {{ann: "{ANN}"}}}}}}'
    )
    with pytest.raises(ConfigError, match=r"^interceptors\[0\]\..*keys\.ann: expected") as caught:
        create_app(config_for("http://127.0.0.1:9", interceptors=entry, names="keys"))
    assert ANN not in str(caught.value)
