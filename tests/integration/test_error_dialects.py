"""Errors in the dialect: the official SDKs raise their own exceptions for the proxy's errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from support.client import fetch
from support.llm_sdks import anthropic, openai
from support.mcp_server import open_mcp_server
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

from interceptors.api_keys import hash_key

CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
)
DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
    b'"content_index":0,"delta":"hi","item_id":"i","output_index":0,"sequence_number":1,'
    b'"logprobs":[]}\n\n'
)
MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message",'
    b'"role":"assistant","content":[],"model":"m","stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":1,"output_tokens":1}}}\n\n'
)
CALL: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
TOO_EARLY = "the upstream's response ended too early"
SDKS = ["openai", "openai responses", "anthropic"]


def breaking_after(event: bytes) -> Script:
    """An upstream whose connection breaks after this event."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(event)

    return script


async def refuse(peer: Peer) -> None:
    """An upstream that closes every connection without an answer."""
    await peer.request()


@asynccontextmanager
async def serving(script: Script, dialect: str, **settings: str) -> AsyncIterator[Proxy]:
    route = f"dialect: {dialect}" + settings.pop("route", "")
    async with open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, route=route, **settings)) as proxy:
            with trio.fail_after(60):
                yield proxy


async def error_of(sdk: str, proxy: Proxy, *, stream: bool = False) -> tuple[Any, int]:
    """The error that an SDK raises for a call, and how many items of a stream came before it."""
    count, access = 0, {"api_key": "wk-nobody", "max_retries": 0}
    call = {"model": "m", "input": "?"} if sdk == "openai responses" else CALL
    client: Any
    if sdk == "anthropic":
        client = anthropic.AsyncAnthropic(base_url=proxy.url, **access)
        create, call = client.messages.create, CALL | {"max_tokens": 9}
    else:
        client = openai.AsyncOpenAI(base_url=proxy.url + "/v1", **access)
        create = (client.chat.completions if call is CALL else client.responses).create
    with pytest.raises((openai.APIError, anthropic.APIError)) as caught:
        async with client:
            answer = await create(**call, stream=stream)
            async for _ in answer:
                count += 1
    return caught.value, count


@pytest.mark.parametrize(("sdk", "event"), list(zip(SDKS, (CHUNK, DELTA, MESSAGE), strict=True)))
async def test_an_sdk_raises_its_error_inside_a_stream(sdk: str, event: bytes) -> None:
    """Events before the failure are yielded; then it is not a connection error."""
    async with serving(breaking_after(event), sdk.split()[0]) as proxy:
        error, count = await error_of(sdk, proxy, stream=True)
    assert count == 1
    if sdk == "anthropic":
        assert isinstance(error, anthropic.APIStatusError)
        body = {"type": "error", "error": {"type": "api_error", "message": TOO_EARLY}}
        assert error.body == body
    else:
        assert not isinstance(error, openai.APIConnectionError)
        assert (error.message, error.code) == (TOO_EARLY, "upstream_truncated")


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_an_sdk_raises_its_status_errors(sdk: str) -> None:
    """403 and 502 of the proxy, 401 and 429 of built-ins, with the kind or the type."""
    raised = []
    for script, settings, count in (
        (refuse, {"route": ', allowed_hosts: ["a.test"]'}, 1),
        (refuse, {}, 1),
        (refuse, {"interceptors": f"{KEYS}, {LIMIT}", "names": "limit, keys"}, 2),
    ):
        async with serving(script, sdk, **settings) as proxy:
            raised += [(await error_of(sdk, proxy, stream=bool(n)))[0] for n in range(count)]
    module = openai if sdk == "openai" else anthropic
    assert [type(error) for error in raised] == [
        module.PermissionDeniedError,
        module.InternalServerError,
        module.AuthenticationError,
        module.RateLimitError,
    ]
    if sdk == "openai":
        kinds = ["host_not_allowed", "upstream_connection_lost", "invalid_api_key", "rate_limited"]
        assert [error.code for error in raised] == kinds
    else:
        kinds = ["permission_error", "api_error", "authentication_error", "rate_limit_error"]
        assert [error.body["error"]["type"] for error in raised] == kinds
    assert "this API key is not valid" in str(raised[2])
    assert "too many requests; try again in 60 s" in str(raised[3])


@pytest.mark.parametrize("dialect", ["generic", "abort"])
async def test_generic_sends_an_error_event_and_abort_does_not(dialect: str) -> None:
    async with serving(breaking_after(b"data: 1\n\n"), dialect) as proxy:
        answer = await fetch(proxy.port, "/v1/responses")
    body = {"error": {"type": "upstream_truncated", "message": TOO_EARLY}}
    event = f"event: error\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
    assert answer.body == b"data: 1\n\n" + (event if dialect == "generic" else b"")
    assert not answer.complete


# MCP


@asynccontextmanager
async def limited_client(url: str) -> AsyncIterator[Client]:
    """A client of a server behind a route with a limit of 10 requests."""
    limit = LIMIT.replace("burst: 1", "burst: 10")
    config = config_for(url, route="dialect: mcp", interceptors=limit, names="limit")
    async with open_proxy(config) as proxy:
        with trio.fail_after(60):
            async with Client(proxy.url + "/mcp", mode="legacy") as client:
                yield client


# The SDK leaves generators to the garbage collector.
@pytest.mark.filterwarnings("default", "ignore::DeprecationWarning", "ignore::ResourceWarning")
async def test_the_mcp_sdk_shows_the_message_of_an_error() -> None:
    """Of a stream that breaks, and of a refusal, which contains the time to wait."""

    async def note(*_: object) -> None: ...

    async with open_mcp_server() as server, limited_client(server.url) as client:
        with pytest.raises(MCPError) as lost:
            await client.call_tool("lose", {}, progress_callback=note)
        with pytest.raises(MCPError) as limited:
            for _ in range(20):
                await client.call_tool("add", {"a": 1, "b": 2})
    error = lost.value.error
    assert (error.code, error.message) == (-32000, TOO_EARLY)
    assert error.data == {"type": "upstream_truncated"}
    error = limited.value.error
    assert (error.code, error.data) == (-32000, {"type": "rate_limited"})
    assert error.message.startswith("too many requests; try again in ")


NOTE = {"jsonrpc": "2.0", "method": "notifications/x"}
RESULT = {"jsonrpc": "2.0", "id": 1, "result": {}}


def post(body: Any, *headers: tuple[str, str]) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = list(headers or [("Content-Type", "application/json")])
    return {"method": "POST", "body": data, "headers": named}


def request(ident: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": {"name": "x"}}


ANSWERED = b'event: message\ndata: {"jsonrpc":"2.0","id":"b","result":{}}\n\n'
MODERN = ("MCP-Protocol-Version", "2026-07-28"), ("Content-Type", "application/json")
NAMED = ("Mcp-Method", "tools/call"), ("Mcp-Name", "x")


@pytest.mark.parametrize(
    ("asked", "event", "open_ids"),
    [
        (post([request(1), request("b"), NOTE, request(3)]), ANSWERED, [1, 3]),
        ({"method": "GET"}, ANSWERED, []),
        (post(NOTE), ANSWERED, []),
        (post(RESULT), ANSWERED, []),
        ({"method": "POST", "body": b"not JSON"}, ANSWERED, []),
        # The client can have the rest by a GET, up to 2025-11-25.
        (post(request(1)), b"id: 1\n" + ANSWERED, []),
        (post(request(1), *MODERN, *NAMED), b"id: 1\n" + ANSWERED, [1]),
        # A request of the server answers nothing.
        (post(request("b")), ANSWERED.replace(b'"result"', b'"method":"result","params"'), ["b"]),
    ],
)
async def test_mcp_ends_every_open_request(asked: Any, event: bytes, open_ids: list[Any]) -> None:
    """Without one there is no message that would be an answer; the stream breaks off."""
    async with serving(breaking_after(event), "mcp") as proxy:
        answer = await fetch(proxy.port, "/mcp", **asked)
    assert not answer.complete
    first, *others, end = answer.body.split(b"\n\n")
    assert (first + b"\n\n", end) == (event, b"")
    errors = [json.loads(other.removeprefix(b"event: message\ndata: ")) for other in others]
    assert [(error["jsonrpc"], error["id"]) for error in errors] == [("2.0", n) for n in open_ids]
    assert all(error["error"]["data"]["type"] == "upstream_truncated" for error in errors)


KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("wk-ann")}"}}}}}}'
LIMIT = "{name: limit, use: rate_limit, options: {requests_per_minute: 1, burst: 1, by: address}}"
REFUSED: list[tuple[dict[str, Any], object]] = [
    *((post(request(ident)), ident) for ident in (0, 7, "7", "", -1, 10**30, "é\u2028", 1.5)),
    (post(request(3), ("Content-Type", "text/plain")), 3),
    (post(request(None)), None),
    (post(request(True)), None),
    (post(NOTE), None),
    (post(RESULT), None),
    (post(RESULT | {"method": None}), None),
    (post(b'[{"id":"a","method":"x"},{"method":"notifications/x"}]'), "a"),
    (post([request(1), request(2)]), None),
    (post(b'{"jsonrpc":"2.0","id":1,"method":"x"'), None),
    (post(b"\x1f\x8b", ("Content-Encoding", "gzip")), None),
    (post(b""), None),
    ({"method": "GET"}, None),
    ({"method": "DELETE"}, None),
]


async def test_what_built_ins_answer_on_mcp_has_the_requests_id() -> None:
    """Of the same type; null where there is no request, where there are several, and where the body
    cannot be read.
    """
    async with serving(refuse, "mcp", interceptors=KEYS, names="keys") as proxy:
        for asked, ident in REFUSED:
            answer = await fetch(proxy.port, "/mcp", **asked)
            found = json.loads(answer.body)["id"]
            assert (answer.status, type(found), found) == (401, type(ident), ident), asked
