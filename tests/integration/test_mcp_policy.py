"""The policy in front of a real server, asked by the official client. The SDK reads annotations as
it runs: none is postponed.
"""

import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from mcp import MCPError
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.server import MCPServer
from support.client import fetch
from support.http2_client import Http2Client, Http2Requester
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream

POLICY = {
    "interceptors": """{name: policy, use: mcp_policy, options: {
        tools: {allow: ["add", "sub*"], deny: ["*_secret"]},
        resources: {deny: ["memo://private/*"]}, prompts: {allow: []}, methods: {deny: ["completion/*"]}}}""",
    "names": "policy",
}


@asynccontextmanager
async def open_server(calls: list[str]) -> AsyncIterator[dict[str, str]]:
    """A server that notes what is asked of it."""
    server = MCPServer("office")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add."""
        calls.append("add")
        return a + b

    @server.tool()
    def subtract(a: int, b: int) -> int:
        """Subtract."""
        calls.append("subtract")
        return a - b

    @server.tool()
    def sub_secret() -> str:
        """Denied by name."""
        calls.append("sub_secret")
        return "secret"

    @server.tool()
    def shell(command: str) -> str:
        """Not among the allowed."""
        calls.append("shell")
        return command

    @server.resource("memo://public/one")
    def public() -> str:
        calls.append("public")
        return "one"

    @server.resource("memo://private/two")
    def private() -> str:
        calls.append("private")
        return "two"

    @server.prompt()
    def greet() -> str:
        calls.append("greet")
        return "Hello"

    async with trio.open_nursery() as nursery:
        urls = {}
        for name, app in (("/mcp", server.streamable_http_app()), ("/sse", server.sse_app())):
            config = HypercornConfig()
            config.bind = ["127.0.0.1:0"]
            config.errorlog = None
            config.graceful_timeout = 0.1
            (urls[name],) = await nursery.start(
                lambda task_status, app=app, config=config: hypercorn_serve(
                    app, config, shutdown_trigger=trio.sleep_forever, task_status=task_status
                )
            )
        yield urls
        nursery.cancel_scope.cancel()


async def use(client: Client) -> dict[str, Any]:
    """What the client may see and do; of what it may not, the error's code."""
    found: dict[str, Any] = {
        "tools": [tool.name for tool in (await client.list_tools()).tools],
        "resources": [str(resource.uri) for resource in (await client.list_resources()).resources],
        "prompts": [prompt.name for prompt in (await client.list_prompts()).prompts],
        "5 - 3": (await client.call_tool("subtract", {"a": 5, "b": 3})).structured_content,
        "one": (await client.read_resource("memo://public/one")).contents[0].text,  # type: ignore[union-attr]
    }
    for name, request in {
        "shell": lambda: client.call_tool("shell", {"command": "ls"}),
        "sub_secret": lambda: client.call_tool("sub_secret", {}),
        "two": lambda: client.read_resource("memo://private/two"),
        "greet": lambda: client.get_prompt("greet"),
    }.items():
        with pytest.raises(MCPError) as refused:
            await request()
        assert "not allowed here" in str(refused.value)
        found[name] = refused.value.error.code
    found["2 + 2"] = (await client.call_tool("add", {"a": 2, "b": 2})).structured_content
    return found


@pytest.mark.parametrize(
    ("path", "mode", "no_resource"),
    [("/mcp", "auto", -32602), ("/mcp", "legacy", -32002), ("/sse", "legacy", -32002)],
)
@pytest.mark.parametrize("dialect", ["generic", "mcp"])
@pytest.mark.filterwarnings("default")
async def test_a_client_sees_and_uses_only_what_is_allowed(
    path: str, mode: str, no_resource: int, dialect: str
) -> None:
    """In the newest revision, in that with sessions, and over the old transport, whose answers come
    on another stream: the server is asked for nothing that is denied, and the session continues.
    """
    calls: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with trio.fail_after(30):
            async with (
                open_server(calls) as urls,
                open_proxy(config_for(urls[path], route=f"dialect: {dialect}", **POLICY)) as proxy,
            ):
                url = proxy.url + path
                server: Any = sse_client(url) if path == "/sse" else url
                async with Client(server, mode=mode) as client:
                    found = await use(client)
    assert found == {
        "tools": ["add", "subtract"],
        "resources": ["memo://public/one"],
        "prompts": [],
        "5 - 3": {"result": 2},
        "one": "one",
        "shell": -32602,
        "sub_secret": -32602,
        "two": no_resource,
        "greet": -32602,
        "2 + 2": {"result": 4},
    }
    assert calls == ["subtract", "public", "add"]


PLAIN = b'[{"jsonrpc":"2.0","id":1,"result":{}}]'
ANSWERS = {
    "json": (b"200 OK", b"Content-Type: application/json", PLAIN),
    "stream": (b"200 OK", b"Content-Type: text/event-stream", b"data: " + PLAIN[1:-1] + b"\n\n"),
    "accepted": (b"202 Accepted", b"Content-Type: application/json", b""),
    "refused": (b"400 Bad Request", b"Content-Type: application/json", b'{"error":"no batches"}'),
}


@pytest.mark.parametrize(("status", "content_type", "body"), ANSWERS.values(), ids=ANSWERS)
async def test_of_a_batch_only_what_is_denied_is_answered_here(
    status: bytes, content_type: bytes, body: bytes
) -> None:
    """2025-03-26, however the server answers the rest."""
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add"}},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "shell"}},
    ]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 %s\r\n%s\r\nContent-Length: %d\r\n\r\n%s"
            % (status, content_type, len(body), body)
        )

    with trio.fail_after(10):
        async with (
            open_upstream(script) as upstream,
            open_proxy(config_for(upstream.url, **POLICY)) as proxy,
        ):
            headers = [
                ("Accept", "application/json, text/event-stream"),
                ("Content-Type", "application/json"),
            ]
            answer = await fetch(
                proxy.port, "/mcp", method="POST", headers=headers, body=json.dumps(batch).encode()
            )
    assert [json.loads(request.body) for request in upstream.requests] == [batch[:1]]
    assert answer.complete
    if status.startswith(b"400"):
        assert (answer.status, answer.body) == (400, body)
        return
    assert answer.status == 200
    if b"event-stream" in content_type:
        found = [
            json.loads(line[6:])
            for line in answer.body.decode().split("\n")
            if line.startswith("data: ")
        ]
    else:
        found = json.loads(answer.body)
    assert sorted(item["id"] for item in found) == ([2] if not body else [1, 2])
    assert [item["error"]["code"] for item in found if item["id"] == 2] == [-32602]


async def test_who_is_denied_everything_never_reaches_the_server() -> None:
    """No connection is opened."""

    async def script(peer: Peer) -> None:
        raise AssertionError

    call = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"shell"}}'
    with trio.fail_after(10):
        async with (
            open_upstream(script) as upstream,
            open_proxy(config_for(upstream.url, **POLICY)) as proxy,
        ):
            answers = [
                await fetch(
                    proxy.port,
                    "/mcp",
                    method="POST",
                    headers=[("Content-Type", "application/json"), *headers],
                    body=body,
                )
                for headers, body in (
                    ([], call),
                    ([], b"[" + call + b"]"),
                    ([("Accept", "text/event-stream")], call),
                    ([("Content-Encoding", "gzip")], b"\x1f\x8b"),
                    ([], call.replace(b'"method"', b'"method":"ping","method"')),
                )
            ]
    assert upstream.accepted == 0
    assert [(answer.status, answer.complete) for answer in answers] == [
        (status, True) for status in (200, 200, 200, 415, 400)
    ]
    assert answers[2].body.startswith(b"event: message\ndata: {")


LIST = b'{"jsonrpc":"2.0","id":1,"error":null,"result":{"tools":[{"name":"add"},{"name":"shell"}]}}'


@pytest.mark.parametrize(("types", "status"), [
    ([b"application/json"], 200), ([b"text/event-stream"], 200),
    ([b"Application/JSON-RPC; charset=utf-8"], 200), ([b"text/html", b"application/json"], 502),
    ([b"text/event-streams"], 200), ([b"text/plain; was=text/event-stream"], 200),
    ([b"application/json", b"text/event-stream"], 502),
])  # fmt: skip
@pytest.mark.parametrize("dialect", ["generic", "mcp"])
async def test_what_official_clients_read_as_a_response_is_filtered(
    types: list[bytes], status: int, dialect: str
) -> None:
    """They look for their media types in all of Content-Type."""
    body = (
        b"event: message\ndata: " + LIST + b"\n\n"
        if any(b"event-stream" in item for item in types)
        else LIST
    )

    async def script(peer: Peer) -> None:
        await peer.request()
        lines = [b"Content-Type: " + item for item in types]
        head = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines]
        await peer.send(b"\r\n".join(head) + b"\r\n\r\n" + body)

    asked = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
    with trio.fail_after(10):
        async with open_upstream(script) as upstream:
            async with open_proxy(
                config_for(upstream.url, route=f"dialect: {dialect}", **POLICY)
            ) as proxy:
                headers = [
                    ("Accept", "application/json, text/event-stream"),
                    ("Content-Type", "application/json"),
                ]
                answer = await fetch(proxy.port, "/mcp", method="POST", headers=headers, body=asked)
    assert (answer.status, answer.complete) == (status, True)
    assert b"shell" not in answer.body
    assert (b'"add"' in answer.body) == (status == 200)


@pytest.mark.parametrize("dialect", ["generic", "mcp"])
async def test_a_charset_hides_no_tool(dialect: str) -> None:
    """Over HTTP/1.1 and HTTP/2."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    utf_7 = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"+AHMAaABlAGwAbA-","arguments":{}}}'
    add = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add","arguments":{}}}'
    sent = [
        (["application/json; charset=utf-7"], utf_7, 415),
        (["application/json; charset=utf-8; charset=utf-7"], utf_7, 415),
        (["application/json", "text/plain"], utf_7, 415),
        (["application/json", "application/json"], add, 415),
        ([], add, 415),
        (["application/json"], add, 202),
        (["Application/JSON;charset=UTF-8"], add, 202),
        (['application/json; charset="utf-8"'], add, 202),
    ]
    with trio.fail_after(20):
        async with open_upstream(script) as upstream:
            async with open_proxy(
                config_for(upstream.url, route=f"dialect: {dialect}", **POLICY)
            ) as proxy:
                async with trio.open_nursery() as nursery:
                    connection = Http2Client(
                        await trio.open_tcp_stream("127.0.0.1", proxy.port), nursery
                    )
                    nursery.start_soon(connection.run)
                    for types, body, status in sent:
                        headers = [("content-type", value) for value in types]
                        answer = await fetch(
                            proxy.port, "/mcp", method="POST", headers=headers, body=body
                        )
                        requester = Http2Requester(connection)
                        await requester.send("POST", "/mcp", headers, body)
                        assert (answer.status, (await requester.answer()).status) == (
                            status,
                            status,
                        )
                    connection.close_connection()
                    nursery.cancel_scope.cancel()
    passed = [value for types, _, status in sent if status == 202 for value in types]
    received = [request.all("content-type") for request in upstream.requests]
    assert received == [[value.encode()] for value in passed for _ in range(2)]
