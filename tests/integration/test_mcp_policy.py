"""The policy in front of a real server, asked by the official client. The SDK reads annotations as
it runs: none is postponed.
"""

import json
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
from support.http2_client import Http2Client, Http2Requester
from support.interceptors import Serve, config_with, with_options
from support.proxy import open_proxy
from support.upstream import answering

from interceptors.mcp_policy import McpPolicy, McpPolicyOptions, Rule

POLICY = with_options(
    McpPolicy,
    McpPolicyOptions(
        tools=Rule(allow=["add", "sub*"], deny=["*_secret"]),
        resources=Rule(deny=["memo://private/*"]),
        prompts=Rule(allow=[]),
        methods=Rule(deny=["completion/*"]),
    ),
)


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


@pytest.mark.parametrize(("path", "mode", "dialect", "no_resource"), [
    ("/mcp", "auto", "generic", -32602), ("/mcp", "legacy", "mcp", -32002), ("/sse", "legacy", "generic", -32002),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
async def test_a_client_sees_and_uses_only_what_is_allowed(
    path: str, mode: str, dialect: str, no_resource: int
) -> None:
    """In the newest revision, in that with sessions, and over the old transport, whose answers come
    on another stream: the server is asked for nothing that is denied, and the session continues.
    """
    calls: list[str] = []
    with trio.fail_after(30):
        async with open_server(calls) as urls:
            config = config_with(urls[path], POLICY, route=f"dialect: {dialect}")
            async with open_proxy(config) as proxy:
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


def responding(status: bytes, types: list[bytes], body: bytes) -> Any:
    """A script that answers every request so."""
    lines = [b"Content-Type: " + each for each in types]
    head = b"\r\n".join([b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *lines])

    return answering(head + b"\r\n\r\n" + body)


JSON, STREAM = b"application/json", b"text/event-stream"
JSON_TYPE = ("Content-Type", "application/json")
HEADERS = [("Accept", "application/json, text/event-stream"), JSON_TYPE]
PLAIN = b'[{"jsonrpc":"2.0","id":1,"result":{}}]'


@pytest.mark.parametrize(("status", "content_type", "body", "ids"), [
    (b"200 OK", JSON, PLAIN, [1, 2]), (b"200 OK", STREAM, b"data: " + PLAIN[1:-1] + b"\n\n", [1, 2]),
    (b"202 Accepted", JSON, b"", [2]), (b"400 Bad Request", JSON, b'{"error":"no batches"}', None),
], ids=["json", "stream", "accepted", "refused"])  # fmt: skip
async def test_of_a_batch_only_what_is_denied_is_answered_here(
    status: bytes, content_type: bytes, body: bytes, ids: list[int] | None, serve_once: Serve
) -> None:
    """2025-03-26, however the server answers the rest."""
    batch = [
        {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name}}
        for number, name in enumerate(("add", "shell"), start=1)
    ]
    async with serve_once(responding(status, [content_type], body), POLICY) as rig:
        sent = json.dumps(batch).encode()
        answer = await rig.fetch("/mcp", method="POST", headers=HEADERS, body=sent)
        assert [json.loads(request.body) for request in rig.upstream.requests] == [batch[:1]]
    assert answer.complete
    if ids is None:
        assert (answer.status, answer.body) == (400, body)
        return
    assert answer.status == 200
    if content_type == STREAM:
        lines = answer.body.decode().split("\n")
        found = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    else:
        found = json.loads(answer.body)
    assert sorted(item["id"] for item in found) == ids
    assert [item["error"]["code"] for item in found if item["id"] == 2] == [-32602]


CALL = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"%s"}}'
UTF_7 = CALL % b"+AHMAaABlAGwAbA-"
DENIED: dict[str, tuple[list[tuple[str, str]], bytes, int]] = {
    "a call": ([JSON_TYPE], CALL % b"shell", 200),
    "a batch": ([JSON_TYPE], b"[%s]" % CALL % b"shell", 200),
    "a stream": ([JSON_TYPE, ("Accept", "text/event-stream")], CALL % b"shell", 200),
    "compressed": ([JSON_TYPE, ("Content-Encoding", "gzip")], b"\x1f\x8b", 415),
    "two methods": ([JSON_TYPE], (CALL % b"shell").replace(b'"method"', b'"method":"ping","method"'), 400),
    "a charset": ([("Content-Type", "application/json; charset=utf-7")], UTF_7, 415),
    "two types": ([JSON_TYPE, ("Content-Type", "text/plain")], UTF_7, 415),
    "no type": ([], CALL % b"add", 415),
}  # fmt: skip


async def test_what_is_denied_never_reaches_the_server(serve_once: Serve) -> None:
    """No connection is opened, neither over HTTP/1.1 nor over HTTP/2."""
    async with serve_once(responding(b"200 OK", [], b""), POLICY, route="dialect: mcp") as rig:
        async with trio.open_nursery() as nursery:
            stream = await trio.open_tcp_stream("127.0.0.1", rig.proxy.port)
            connection = Http2Client(stream, nursery)
            nursery.start_soon(connection.run)
            for name, (headers, body, status) in DENIED.items():
                answer = await rig.fetch("/mcp", method="POST", headers=headers, body=body)
                assert (answer.status, answer.complete) == (status, True), name
                assert answer.body.startswith(b"event: message\n") is (name == "a stream")
                requester = Http2Requester(connection)
                lowered = [(field.lower(), value) for field, value in headers]
                await requester.send("POST", "/mcp", lowered, body)
                assert (await requester.answer()).status == status, name
            connection.close_connection()
            nursery.cancel_scope.cancel()
        assert rig.upstream.accepted == 0


LIST = b'{"jsonrpc":"2.0","id":1,"error":null,"result":{"tools":[{"name":"add"},{"name":"shell"}]}}'


@pytest.mark.parametrize(("types", "status"), [
    ([b"Application/JSON-RPC; charset=utf-8"], 200), ([b"text/plain; was=text/event-stream"], 200), ([JSON, STREAM], 502),
])  # fmt: skip
async def test_what_official_clients_read_as_a_response_is_filtered(
    types: list[bytes], status: int, serve_once: Serve
) -> None:
    """They look for their media types in all of Content-Type."""
    body = b"data: " + LIST + b"\n\n" if b"event-stream" in types[0] else LIST
    async with serve_once(responding(b"200 OK", types, body), POLICY, route="dialect: mcp") as rig:
        asked = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
        answer = await rig.fetch("/mcp", method="POST", headers=HEADERS, body=asked)
    assert (answer.status, answer.complete) == (status, True)
    assert b"shell" not in answer.body
    assert (b'"add"' in answer.body) is (status == 200)
