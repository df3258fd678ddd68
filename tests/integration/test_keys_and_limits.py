"""`api_keys` and `rate_limit` in a whole proxy on real sockets: what the upstream and the
client get.
"""

from __future__ import annotations

import json

import trio
from support.client import Answer, Client
from support.interceptors import Serve, with_options
from support.upstream import stream_of

from interceptors import Interceptor
from interceptors.api_keys import ApiKeys, ApiKeysOptions, hash_key
from interceptors.rate_limit import RateLimit

ANN, BOB, STRANGER = "wk-ann-Zq3xV8", "wk-bob-1LmT7c", "wk-stranger-5Hd"
UPSTREAM = "upstream-credential-8sQ"
EVENTS = b"data: 1\n\n", b"data: [DONE]\n\n"
KEYS = with_options(
    ApiKeys,
    ApiKeysOptions(
        keys={"ann": hash_key(ANN), "bob": [hash_key(BOB)]}, upstream=f"Bearer {UPSTREAM}"
    ),
)


def limit(burst: int, by: str) -> type[Interceptor]:
    """A limit with a burst and then, for as long as a test takes, nothing."""
    return with_options(RateLimit, 0.001, burst=burst, by=by)


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


def error_of(answer: Answer) -> tuple[int, str]:
    """The status, and the type of the JSON error."""
    assert answer.all("content-type") == [b"application/json"]
    error = json.loads(answer.body)["error"]
    assert sorted(error) == ["message", "type"]
    return answer.status, error["type"]


async def test_upstream_sees_its_own_credential_and_never_a_clients_key(serve_once: Serve) -> None:
    """In whichever header the key comes, alone or twice."""
    async with serve_once(stream_of(*EVENTS), KEYS) as rig:
        client = await rig.client()
        for headers in (
            [bearer(ANN)],
            [("X-API-Key", BOB)],
            [bearer(BOB), ("x-api-key", BOB), ("x-api-key", BOB)],
        ):
            answer = await ask(client, *headers, ("X-Other", "stays"), method="POST", body=b"{}")
            assert (answer.status, answer.body) == (200, b"".join(EVENTS))
        assert len(rig.upstream.requests) == 3
        for request in rig.upstream.requests:
            assert request.all("authorization") == [b"Bearer " + UPSTREAM.encode()]
            assert request.all("x-api-key") == []
            assert request.all("x-other") == [b"stays"]
            assert request.body == b"{}"
            assert not any(key in repr(request) for key in (ANN, BOB))
        assert await rig.outcomes(3) == ["completed"] * 3


async def test_without_a_valid_key_the_client_gets_401_and_may_continue(serve: Serve) -> None:
    """On one connection."""
    async with serve(stream_of(*EVENTS), KEYS) as rig:
        client = await rig.client()
        answer = await ask(client)
        assert error_of(answer) == (401, "missing_api_key")
        assert answer.all("www-authenticate") == [b'Bearer realm="weirpool"']
        large = {"method": "POST", "body": b"x" * 50_000}
        for answer in (
            await ask(client, bearer(STRANGER), **large),
            await ask(client, bearer(STRANGER), ("Transfer-Encoding", "chunked"), **large),
            await ask(client, bearer(ANN), ("X-Api-Key", STRANGER)),
        ):
            assert error_of(answer) == (401, "invalid_api_key")
            challenge = b'Bearer realm="weirpool", error="invalid_token"'
            assert answer.all("www-authenticate") == [challenge]
            assert not any(key in repr(answer) for key in (ANN, STRANGER, UPSTREAM))
        assert rig.upstream.accepted == 0
        answer = await ask(client, bearer(ANN))
        assert (answer.status, answer.body) == (200, b"".join(EVENTS))
        assert await rig.outcomes(5) == ["intercepted"] * 4 + ["completed"]
        assert [line["status"] for line in rig.lines("exchange")] == [401] * 4 + [200]


async def test_beyond_its_limit_a_client_gets_429_and_may_continue(serve_once: Serve) -> None:
    """On one connection."""
    async with serve_once(stream_of(*EVENTS), KEYS, limit(2, "client_key")) as rig:
        client = await rig.client()
        assert [(await ask(client, bearer(ANN))).status for _ in range(3)] == [200, 200, 429]
        answer = await ask(client, ("x-api-key", ANN), method="POST", body=b"x" * 50_000)
        assert error_of(answer) == (429, "rate_limited")
        (retry_after,) = answer.all("retry-after")
        assert 59_000 < int(retry_after) <= 60_000
        assert [(await ask(client, bearer(BOB))).status for _ in range(3)] == [200, 200, 429]
        assert len(rig.upstream.requests) == 4
        assert rig.upstream.accepted == 1
        refused, passed = ["intercepted"], ["completed"] * 2
        assert await rig.outcomes(7) == passed + refused * 2 + passed + refused


async def test_a_limit_by_address_before_the_keys_bounds_strangers(serve_once: Serve) -> None:
    """Refused keys count by the address when the limit stands first."""
    async with serve_once(stream_of(*EVENTS), limit(2, "address"), KEYS) as rig:
        client = await rig.client()
        assert [(await ask(client, bearer(STRANGER))).status for _ in range(3)] == [401, 401, 429]
        # Another connection, from the same address.
        assert (await rig.fetch(headers=[bearer(ANN)])).status == 429
        assert rig.upstream.accepted == 0
