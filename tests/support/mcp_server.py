"""An MCP server made with the official SDK, which reads annotations at run time: no `from __future__ import annotations` here."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

__all__ = ["open_mcp_server", "open_old_mcp_server"]


def open_mcp_server() -> AbstractAsyncContextManager[str]:
    """Serve Streamable HTTP at /mcp on a free loopback port; yields the server's URL."""
    return _serve(_calculator().streamable_http_app())


def open_old_mcp_server() -> AbstractAsyncContextManager[str]:
    """Serve the old transport, HTTP+SSE, at /sse; as `open_mcp_server`."""
    return _serve(_calculator().sse_app())


def _calculator() -> MCPServer:
    server = MCPServer("calculator")

    @server.tool()
    async def add(a: int, b: int, context: Context) -> int:
        """Add two numbers."""
        await context.report_progress(0.5, 1.0)
        return a + b

    return server


@asynccontextmanager
async def _serve(app: Any) -> AsyncIterator[str]:
    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    async with trio.open_nursery() as nursery:
        (bind,) = await nursery.start(
            lambda task_status: hypercorn_serve(
                app,
                config,
                shutdown_trigger=trio.sleep_forever,
                task_status=task_status,
            )
        )
        yield bind
        nursery.cancel_scope.cancel()
