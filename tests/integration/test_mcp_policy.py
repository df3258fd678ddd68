"""The policy in front of a real server, asked by the official client. The SDK reads annotations as it runs: none are postponed here."""

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
from support.proxy import config_for, open_proxy

POLICY = {
    "interceptors": """{name: policy, use: mcp_policy, options: {
        tools: {allow: ["add", "sub*"], deny: ["*_secret"]},
        resources: {deny: ["memo://private/*"]}, prompts: {allow: []}, methods: {deny: ["completion/*"]}}}""",
    "names": "policy",
}


@asynccontextmanager
async def open_server(calls: list[str]) -> AsyncIterator[dict[str, str]]:
    """A server that notes what is asked of it; its URLs, of Streamable HTTP and of the old transport."""
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
    ("path", "mode", "no_resource"), [("/mcp", "auto", -32602), ("/mcp", "legacy", -32002), ("/sse", "legacy", -32002)]
)
@pytest.mark.filterwarnings("default")
async def test_a_client_sees_and_uses_only_what_is_allowed(path: str, mode: str, no_resource: int) -> None:
    """In the newest revision, in that with sessions, and over the old transport, whose answers come on another stream: the server
    is asked for nothing that is denied, and the session goes on.
    """
    calls: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with trio.fail_after(30):
            async with open_server(calls) as urls, open_proxy(config_for(urls[path], **POLICY)) as proxy:
                url = proxy.url + path
                server: Any = sse_client(url) if path == "/sse" else url
                async with Client(server, mode=mode) as client:  # type: ignore[arg-type]
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
