"""The official MCP client as a test uses it: in every revision that it supports, and over both
transports.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import mcp_types
import pytest
import trio
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from support.chains import KEY
from support.mcp_server import McpServer

__all__ = ["REVISIONS", "call_with_progress", "leave_call", "open_mcp_client", "use"]

REVISIONS = ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"]
"""Those of Streamable HTTP."""


@asynccontextmanager
async def open_mcp_client(
    url: str,
    revision: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    sse: bool = False,
    on_message: Callable[[Any], Awaitable[None]] | None = None,
) -> AsyncIterator[Client]:
    """A client that uses this revision with the server at `url`, whichever newer ones both know;
    `auto`: the newest.

    `on_message` gets what the server says outside of calls.
    """

    async def elicit(_: Any, params: mcp_types.ElicitRequestParams) -> mcp_types.ElicitResult:
        assert params.message == "Who is asking?"
        return mcp_types.ElicitResult(action="accept", content={"name": "Ann"})

    async def sample(
        _: Any, params: mcp_types.CreateMessageRequestParams
    ) -> mcp_types.CreateMessageResult:
        assert params.max_tokens == 10
        text = mcp_types.TextContent(type="text", text="Rhein")
        return mcp_types.CreateMessageResult(
            role="assistant", content=text, model="m", stop_reason="endTurn"
        )

    headers = {"authorization": f"Bearer {KEY}"}
    modern = revision in ("2026-07-28", "auto")
    # The client always offers the newest revision with a handshake; servers answer older clients in
    # theirs.
    monkeypatch.setattr(
        "mcp.client.session.LATEST_HANDSHAKE_VERSION", "2025-11-25" if modern else revision
    )
    async with httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30)) as http:
        transport = (
            sse_client(url + "/sse", headers=headers)
            if sse
            else streamable_http_client(url + "/mcp", http_client=http)
        )
        mode = revision if modern else "legacy"
        async with Client(
            transport,
            mode=mode,
            elicitation_callback=elicit,
            sampling_callback=sample,
            message_handler=on_message,
        ) as client:
            assert client.protocol_version == ("2026-07-28" if modern else revision)
            yield client


async def use(client: Client) -> dict[str, Any]:
    """What one client sees of everything that the server offers; an error that the server answers
    with is an answer, too.
    """
    seen: dict[str, Any] = {
        "server": (
            client.protocol_version,
            client.server_info,
            client.server_capabilities,
            client.instructions,
        )
    }
    for name, ask in {
        "tools": client.list_tools,
        "resources": client.list_resource_templates,
        "prompts": client.list_prompts,
        "resource": lambda: client.read_resource("river://Rhein"),
        "no resource": lambda: client.read_resource("mountain://Rhein"),
        "prompt": lambda: client.get_prompt("explain", {"word": "weir"}),
        "no prompt": lambda: client.get_prompt("nothing", {}),
        "add": lambda: client.call_tool("add", {"a": 19, "b": 23}),
        "count": lambda: call_with_progress(client, "count", {"to": 5}),
        "fail": lambda: client.call_tool("fail", {}),
        "no tool": lambda: client.call_tool("nothing", {}),
        "greet": lambda: client.call_tool("greet", {}),
        "river": lambda: client.call_tool("river", {}),
    }.items():
        try:
            seen[name] = await ask()
        except MCPError as error:
            seen[name] = error.error
    return seen


async def call_with_progress(
    client: Client, tool: str, arguments: dict[str, Any]
) -> tuple[Any, list[Any]]:
    """A call's result, and the progress that was reported meanwhile."""
    progress: list[Any] = []

    async def note(done: float, total: float | None, message: str | None) -> None:
        progress.append((done, total, message))

    result = await client.call_tool(tool, arguments, progress_callback=note)
    return result, progress


async def leave_call(server: McpServer, client: Client, *, progress: bool) -> float:
    """Cancel a call that waits, after some `progress` or in silence. How many seconds until the
    server's tool was cancelled.
    """
    waits, cancelled = server.waits, len(server.cancelled_at)
    reported = trio.Event()

    async def note(*_: object) -> None:
        reported.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: client.call_tool("wait", {"progress": progress}, progress_callback=note)
        )
        while server.waits == waits or (progress and not reported.is_set()):
            await trio.sleep(0.001)
        left_at = time.perf_counter()
        nursery.cancel_scope.cancel()
    while len(server.cancelled_at) == cancelled:
        await trio.sleep(0.001)
    return server.cancelled_at[-1] - left_at
