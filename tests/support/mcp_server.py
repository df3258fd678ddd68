"""An MCP server made with the official SDK, which reads annotations at run time: no `from
__future__ import annotations` here.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import trio
import trio.testing
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, Resolve, Sample
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import CreateMessageResult, JSONRPCMessage, SamplingMessage, TextContent
from opentelemetry.trace import get_current_span
from pydantic import BaseModel

__all__ = ["McpServer", "open_mcp_server"]


_LOST = "this never arrives"


class _Name(BaseModel):
    name: str


@dataclass
class McpServer:
    """What the server has seen. Times are of `time.perf_counter`, which all threads share."""

    url: str = ""
    requests: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    """How many requests there were, by method, path, status and the headers that MCP names."""
    open: int = 0
    """How many of them are not over."""
    waits: int = 0
    """Calls of the tool `wait`, which continue until they are cancelled."""
    cancelled_at: list[float] = field(default_factory=list)
    """When those were."""
    traced: list[str] = field(default_factory=list)
    """The trace and the span that the tool `add` was called in: what a message's `_meta` names."""
    traceparents: list[str] = field(default_factory=list)
    """The header of each request that has one."""


class _Events(EventStore):
    """Keeps what was sent, so that a client can come back for it."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._kept.append((stream_id, message))
        return str(len(self._kept))

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        stream_id, _ = self._kept[int(last_event_id) - 1]
        for number, (owner, message) in enumerate(list(self._kept), start=1):
            if owner == stream_id and number > int(last_event_id) and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


async def _ask_name() -> Elicit[_Name]:
    return Elicit("Who is asking?", _Name)


async def _ask_model() -> Sample:
    return Sample(
        [SamplingMessage(role="user", content=TextContent(type="text", text="Name a river."))],
        max_tokens=10,
    )


def _make(seen: McpServer) -> MCPServer:
    server = MCPServer("calculator", instructions="Adds, counts and waits.", log_level="CRITICAL")

    @server.tool()
    async def add(a: int, b: int, context: Context) -> int:
        """Add two numbers; sends nothing before it is done."""
        caller = get_current_span().get_span_context()
        seen.traced.append(f"{caller.trace_id:032x}-{caller.span_id:016x}")
        return a + b

    @server.tool()
    async def count(to: int, context: Context) -> list[str]:
        """Count, with progress."""
        for number in range(1, to + 1):
            await context.report_progress(number, to, f"– {number} 水")
        return [str(number) for number in range(1, to + 1)]

    @server.tool()
    async def fail() -> str:
        """Fail."""
        raise ValueError("this tool fails")

    @server.tool()
    async def greet(name: Annotated[_Name, Resolve(_ask_name)]) -> str:
        """Ask the client's user for a name: in a request to the client, or from 2026-07-28 on in an
        answer that asks.
        """
        return f"Hello, {name.name}"

    @server.tool()
    async def river(answer: Annotated[CreateMessageResult, Resolve(_ask_model)]) -> str:
        """Ask the client's model."""
        assert isinstance(answer.content, TextContent)
        return answer.content.text

    @server.tool()
    async def poll(context: Context) -> str:
        """Close the stream in the middle of the call; the client comes back for the rest."""
        await context.report_progress(1, 3)
        # The SDK drops what it has not written, and without an id the client cannot come back.
        await trio.testing.wait_all_tasks_blocked(0.01)
        await context.close_sse_stream()
        await context.report_progress(2, 3)
        await trio.sleep(
            0.1
        )  # the client comes back after 20 ms, and some of this comes while it is there
        await context.report_progress(3, 3)
        return "polled"

    @server.tool()
    async def wait(progress: bool, context: Context) -> str:
        """Wait forever, after some progress or in silence."""
        if progress:
            await context.report_progress(1, 2)
        seen.waits += 1
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.cancelled_at.append(time.perf_counter())
            raise
        return ""

    @server.tool()
    async def change(context: Context) -> str:
        """Say that the list of tools has changed."""
        await context.notify_tools_changed()
        return "changed"

    @server.tool()
    async def announce(context: Context) -> str:
        """Say, outside of any call, that the list of tools has changed: on the stream that the
        client has opened for that.
        """
        await context.session.send_tool_list_changed()
        return "announced"

    @server.tool()
    async def lose(context: Context) -> str:
        """Lose the connection in the middle of the call's stream."""
        await context.report_progress(1, 2)
        await context.report_progress(2, 2, _LOST)
        return ""

    @server.resource("river://{name}")
    async def about(name: str) -> str:
        """A river."""
        return f"{name} flows into the sea\r\nand is long"

    @server.prompt()
    async def explain(word: str) -> str:
        """Ask for an explanation."""
        return f"What is a {word}?"

    return server


def _noting(app: Any, seen: McpServer) -> Any:
    """The app, with every request noted when its answer begins."""

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        noted = False

        async def send_noted(message: Any) -> None:
            nonlocal noted
            if message["type"] == "http.response.start" and not noted:
                noted = True  # the app for the old transport begins a second answer when the client has left
                headers = dict(scope["headers"])
                named = [
                    headers.get(name, b"").decode()
                    for name in (b"mcp-protocol-version", b"mcp-method", b"mcp-name")
                ]
                has = [
                    name.decode()
                    for name in (b"mcp-session-id", b"last-event-id", b"authorization")
                    if name in headers
                ]
                if b"traceparent" in headers:
                    seen.traceparents.append(headers[b"traceparent"].decode())
                accept = headers.get(b"accept", b"").decode()
                seen.requests[
                    scope["method"], scope["path"], message["status"], accept, *named, *has
                ] += 1
            if _LOST.encode() in message.get("body", b""):
                raise ConnectionError  # Hypercorn then closes the connection, and the body has no end
            await send(message)

        seen.open += 1
        try:
            await app(scope, receive, send_noted)
        finally:
            seen.open -= 1

    return noting


@asynccontextmanager
async def open_mcp_server(
    transport: str = "http", *, resumable: bool = False
) -> AsyncIterator[McpServer]:
    """Serve on a free loopback port: Streamable HTTP on `/mcp`, answers as JSON there (`json`), or
    the old transport on `/sse`.

    `both`: Streamable HTTP and the old transport.
    `resumable`: keep what was sent, and let clients come back after 20 ms.
    """
    seen = McpServer()
    server = _make(seen)
    if transport == "sse":
        app = server.sse_app()
    elif transport == "both":
        app = server.streamable_http_app()
        app.router.routes += server.sse_app().routes
    elif resumable:
        app = server.streamable_http_app(event_store=_Events(), retry_interval=20)
    else:
        app = server.streamable_http_app(json_response=transport == "json")
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    config.keep_alive_timeout = 60.0  # after the default of 5 s it closes while requests arrive
    async with trio.open_nursery() as nursery:
        (seen.url,) = await nursery.start(
            lambda task_status: hypercorn_serve(
                _noting(app, seen),
                config,
                shutdown_trigger=trio.sleep_forever,
                mode="asgi",
                task_status=task_status,
            )
        )
        yield seen
        nursery.cancel_scope.cancel()
