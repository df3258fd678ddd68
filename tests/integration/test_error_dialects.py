"""Errors in the dialect: the official SDKs raise their own exceptions for the proxy's errors."""

from __future__ import annotations

import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.client import fetch
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, Script, open_upstream

from interceptors.api_keys import hash_key

CHAT = [
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
]
RESPONSE = [
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","content_index":0,"delta":"hi","item_id":"i",'
    b'"output_index":0,"sequence_number":1,"logprobs":[]}\n\n'
]
MESSAGE = [
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],'
    b'"model":"m","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}\n\n',
    b'event: ping\ndata: {"type":"ping"}\n\n',
]


def breaking_after(*events: bytes) -> Script:
    """An upstream whose connection breaks after these events."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for event in events:
            await peer.chunk(event)

    return script


@asynccontextmanager
async def serving(script: Script, dialect: str, *, route: str = "") -> AsyncIterator[Proxy]:
    async with open_upstream(script) as upstream:
        async with open_proxy(
            config_for(upstream.url, route=f"dialect: {dialect}{', ' + route if route else ''}")
        ) as proxy:
            yield proxy


async def refuse(peer: Peer) -> None:
    """An upstream that closes every connection without an answer."""
    await peer.request()


def data_of(body: bytes) -> Any:
    """The data of the last event."""
    assert body.endswith(b"\n\n")
    (line,) = [
        line
        for line in body.rstrip(b"\n").split(b"\n\n")[-1].split(b"\n")
        if line.startswith(b"data: ")
    ]
    return json.loads(line.removeprefix(b"data: "))


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_openai_raises_api_error_inside_a_stream(api: str) -> None:
    """Events before the failure are yielded; then `APIError`, not a connection error."""
    import openai

    call: dict[str, Any] = {"model": "m", "stream": True}
    async with serving(breaking_after(*(CHAT if api == "chat" else RESPONSE)), "openai") as proxy:
        seen = []
        with trio.fail_after(10), pytest.raises(openai.APIError) as caught:
            async with openai.AsyncOpenAI(
                base_url=proxy.url + "/v1", api_key="sk-test", max_retries=0
            ) as client:
                if api == "chat":
                    message: Any = {"role": "user", "content": "?"}
                    stream = await client.chat.completions.create(**call, messages=[message])
                else:
                    stream = await client.responses.create(**call, input="?")
                async for item in stream:
                    seen.append(item)
    assert len(seen) == 1
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert (caught.value.message, caught.value.code) == (
        "the upstream's response ended too early",
        "upstream_truncated",
    )


async def test_anthropic_raises_api_status_error_inside_a_stream() -> None:
    """The `error` event becomes `APIStatusError`, with the body that the API sends."""
    import anthropic

    seen = []
    async with serving(breaking_after(*MESSAGE), "anthropic") as proxy:
        with trio.fail_after(10), pytest.raises(anthropic.APIStatusError) as caught:
            async with anthropic.AsyncAnthropic(
                base_url=proxy.url, api_key="sk-test", max_retries=0
            ) as client:
                async for event in await client.messages.create(
                    model="m",
                    max_tokens=9,
                    messages=[{"role": "user", "content": "?"}],
                    stream=True,
                ):
                    seen.append(event.type)
    assert seen == ["message_start"]
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "api_error", "message": "the upstream's response ended too early"},
    }


def mcp_server(*, event_id: bytes = b"", resumed: bytes | None = None) -> Script:
    """An MCP server whose `tools/call` sends a notification, and then breaks off. `resumed`: what a
    GET with Last-Event-ID gets.
    """

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.method == "GET":
                if resumed is None or not request.all("last-event-id"):
                    await peer.send(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
                    continue
                await peer.start_stream()
                await peer.chunk(resumed)
                await peer.end()
                continue
            message = json.loads(request.body or b"{}")
            if "id" not in message:
                await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
                continue
            if message["method"] == "tools/call":
                await peer.start_stream()
                await peer.chunk(
                    event_id
                    + b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/message",'
                    b'"params":{"level":"info","data":"x"}}\n\n'
                )
                return
            result: dict[str, Any] = {"tools": []}
            if message["method"] == "initialize":
                server = {"name": "s", "version": "1"}
                result = {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {"tools": {}},
                    "serverInfo": server,
                }
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s-1\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )

    return script


@pytest.mark.filterwarnings("default")
async def test_mcp_raises_its_error_for_a_call_whose_stream_breaks() -> None:
    """The open request gets a JSON-RPC error response: `MCPError`, with the proxy's words, and at
    once.
    """
    from mcp.client import Client
    from mcp.shared.exceptions import MCPError

    async with serving(mcp_server(), "mcp") as proxy:
        with trio.fail_after(10), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            async with Client(proxy.url + "/mcp", mode="legacy") as client:
                with pytest.raises(MCPError) as caught:
                    await client.call_tool("add", {})
        assert caught.value.error.code == -32000
        assert caught.value.error.message == "the upstream's response ended too early"
        assert caught.value.error.data == {"type": "upstream_truncated"}


@pytest.mark.filterwarnings("default")
async def test_an_mcp_stream_that_can_be_resumed_is_left_to_the_client() -> None:
    """Events with ids have passed: an error response would end the call, where the client can have
    the rest by a GET.
    """
    from mcp.client import Client

    resumed = b'id: 2\nevent: message\ndata: {"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"done"}]}}\n\n'
    async with serving(mcp_server(event_id=b"id: 1\nretry: 10\n", resumed=resumed), "mcp") as proxy:
        with trio.fail_after(10), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            async with Client(proxy.url + "/mcp", mode="legacy") as client:
                result = await client.call_tool("add", {})
        assert result.content[0].text == "done"  # type: ignore[union-attr]


def post(*messages: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(messages[0] if len(messages) == 1 else messages).encode()
    return {"method": "POST", "body": body, "headers": [("Content-Type", "application/json")]}


def request(ident: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": {"name": "x"}}


async def test_mcp_answers_every_open_request_and_no_other() -> None:
    """In a batch, those that upstream has answered have their answer; each other one gets an error
    of its own.
    """
    answered = b'event: message\ndata: {"jsonrpc":"2.0","id":"b","result":{}}\n\n'
    async with serving(breaking_after(answered), "mcp") as proxy:
        batch = post(
            request(1), request("b"), {"jsonrpc": "2.0", "method": "notifications/x"}, request(3)
        )
        answer = await fetch(proxy.port, "/mcp", **batch)
    assert not answer.complete
    assert answer.body.startswith(answered)
    events = answer.body.removeprefix(answered).split(b"\n\n")
    assert [event.split(b"\n")[0] for event in events] == [
        b"event: message",
        b"event: message",
        b"",
    ]
    said = [json.loads(event.split(b"\n")[1].removeprefix(b"data: ")) for event in events[:2]]
    assert [(message["jsonrpc"], message["id"]) for message in said] == [("2.0", 1), ("2.0", 3)]
    assert {message["error"]["data"]["type"] for message in said} == {"upstream_truncated"}


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "GET"},
        post({"jsonrpc": "2.0", "method": "notifications/x"}),
        post({"jsonrpc": "2.0", "id": 1, "result": {}}),
        {"method": "POST", "body": b"not JSON"},
    ],
    ids=["GET", "notification", "response", "not JSON"],
)
async def test_mcp_sends_no_error_event_without_an_open_request(asked: dict[str, Any]) -> None:
    """Without an open request there is no message that would be an answer; the stream breaks off,
    and that is seen.
    """
    event = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/x"}\n\n'
    async with serving(breaking_after(event), "mcp") as proxy:
        answer = await fetch(proxy.port, "/mcp", **asked)
    assert answer.body == event
    assert not answer.complete


@pytest.mark.parametrize("dialect", ["generic", "abort"])
async def test_generic_sends_an_error_event_and_abort_does_not(dialect: str) -> None:
    """generic sends its `error` event, abort sends nothing."""
    async with serving(breaking_after(b"data: 1\n\n"), dialect) as proxy:
        answer = await fetch(proxy.port, "/v1/responses")
    said = b'event: error\ndata: {"error":{"type":"upstream_truncated","message":"the upstream\'s response ended too early"}}\n\n'
    assert answer.body == b"data: 1\n\n" + (said if dialect == "generic" else b"")
    assert not answer.complete


async def test_the_sdks_raise_their_status_errors_for_whole_answers() -> None:
    """403 becomes each SDK's own permission error, 502 its server error."""
    import anthropic
    import openai

    for refused, openai_error, anthropic_error in (
        (True, openai.PermissionDeniedError, anthropic.PermissionDeniedError),
        (False, openai.InternalServerError, anthropic.InternalServerError),
    ):
        route = 'allowed_hosts: ["a.test"]' if refused else ""
        async with serving(refuse, "openai", route=route) as proxy:
            async with openai.AsyncOpenAI(
                base_url=proxy.url + "/v1", api_key="sk-test", max_retries=0
            ) as client:
                with pytest.raises(openai_error) as caught:
                    await client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": "?"}]
                    )
        assert caught.value.code == ("host_not_allowed" if refused else "upstream_connection_lost")  # type: ignore[attr-defined]
        async with serving(refuse, "anthropic", route=route) as proxy:
            async with anthropic.AsyncAnthropic(
                base_url=proxy.url, api_key="sk-test", max_retries=0
            ) as client:
                with pytest.raises(anthropic_error):
                    await client.messages.create(
                        model="m", max_tokens=9, messages=[{"role": "user", "content": "?"}]
                    )


# --- what built-ins answer
# ------------------------------------------------------------------------------------------------

KEYS = f'{{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key("wk-ann")}"}}}}}}'
LIMIT = "{name: limit, use: rate_limit, options: {requests_per_minute: 1, burst: 1, by: address}}"
LIMITED = "too many requests; try again in 60 s"


@asynccontextmanager
async def refusing(dialect: str, names: str = "limit, keys") -> AsyncIterator[Proxy]:
    """A proxy whose built-ins refuse: the first request has no key, and the second is one too many.
    No server is asked.
    """
    config = config_for(
        "http://127.0.0.1:1",
        route=f"dialect: {dialect}",
        interceptors=f"{KEYS}, {LIMIT}",
        names=names,
    )
    async with open_proxy(config) as proxy:
        yield proxy


HUGE = 123456789012345678901234567890


@pytest.mark.parametrize(
    ("asked", "ident"),
    [
        *((post(request(ident)), ident) for ident in (0, 7, "7", "", -1, HUGE, "é\u2028")),
        (post(request(1.5)), 1.5),
        (post(request(3)) | {"headers": [("Content-Type", "text/plain")]}, 3),
        (post(request(None)), None),
        (post(request(True)), None),
        (post({"jsonrpc": "2.0", "method": "notifications/x"}), None),
        (post({"jsonrpc": "2.0", "id": 1, "result": {}}), None),
        (post({"jsonrpc": "2.0", "id": 1, "method": None, "result": {}}), None),
        (
            {"method": "POST", "body": b'[{"id":"a","method":"x"},{"method":"notifications/x"}]'},
            "a",
        ),
        (post(request(1), request(2)), None),
        ({"method": "POST", "body": b'{"jsonrpc":"2.0","id":1,"method":"x"'}, None),
        ({"method": "POST", "body": b"\x1f\x8b", "headers": [("Content-Encoding", "gzip")]}, None),
        ({"method": "POST", "body": b""}, None),
        ({"method": "GET"}, None),
        ({"method": "DELETE"}, None),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_built_ins_answer_on_mcp_has_the_requests_id(
    asked: dict[str, Any], ident: object
) -> None:
    """Of the same type; null where there is no request, where there are several, and where the body
    cannot be read.
    """
    async with refusing("mcp", "keys") as proxy:
        answer = await fetch(proxy.port, "/mcp", **asked)
    message = json.loads(answer.body)
    assert (answer.status, type(message["id"]), message["id"]) == (401, type(ident), ident)


async def test_sdks_raise_what_they_have_for_401_and_429() -> None:
    """`AuthenticationError` and `RateLimitError`, with the kind or the type and the message."""
    import anthropic
    import openai

    call: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
    with trio.fail_after(20):
        async with refusing("openai") as proxy:
            async with openai.AsyncOpenAI(
                base_url=proxy.url + "/v1", api_key="wk-nobody", max_retries=0
            ) as client:
                with pytest.raises(openai.AuthenticationError) as wrong_key:
                    await client.chat.completions.create(**call)
                with pytest.raises(openai.RateLimitError) as limited:
                    await client.chat.completions.create(**call, stream=True)
        assert (wrong_key.value.code, limited.value.code) == ("invalid_api_key", "rate_limited")
        assert "this API key is not valid" in str(wrong_key.value)
        assert LIMITED in str(limited.value)
        async with refusing("anthropic") as proxy:
            async with anthropic.AsyncAnthropic(
                base_url=proxy.url, api_key="wk-nobody", max_retries=0
            ) as other:
                with pytest.raises(anthropic.AuthenticationError) as denied:
                    await other.messages.create(**call, max_tokens=9)
                with pytest.raises(anthropic.RateLimitError) as too_many:
                    await other.messages.create(**call, max_tokens=9, stream=True)
        assert denied.value.body == {
            "type": "error",
            "error": {"type": "authentication_error", "message": "this API key is not valid"},
        }
        assert too_many.value.body == {
            "type": "error",
            "error": {"type": "rate_limit_error", "message": LIMITED},
        }


@pytest.mark.filterwarnings("default")
async def test_the_mcp_sdk_shows_the_message_of_a_refusal() -> None:
    """The message contains the time to wait, which a model can use; "Server returned an error
    response" would not help it.
    """
    from mcp.client import Client
    from mcp.shared.exceptions import MCPError

    limit = LIMIT.replace("burst: 1", "burst: 3")
    async with open_upstream(mcp_server()) as upstream:
        config = config_for(upstream.url, route="dialect: mcp", interceptors=limit, names="limit")
        async with open_proxy(config) as proxy:
            with trio.fail_after(10), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                async with Client(proxy.url + "/mcp", mode="legacy") as client:
                    with pytest.raises(MCPError) as caught:
                        for _ in range(4):
                            await client.list_tools(cursor=str(_))
    assert (caught.value.error.code, caught.value.error.data) == (-32000, {"type": "rate_limited"})
    assert caught.value.error.message.startswith("too many requests; try again in ")
