"""An MCP server made with the official SDK, which reads annotations at run time: no `from __future__ import annotations` here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

__all__ = ["open_mcp_server"]


@asynccontextmanager
async def open_mcp_server() -> AsyncIterator[str]:
    """Serve on a free loopback port; yields the server's URL."""
    server = MCPServer("calculator")

    @server.tool()
    async def add(a: int, b: int, context: Context) -> int:
        """Add two numbers."""
        await context.report_progress(0.5, 1.0)
        return a + b

    config = HypercornConfig()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.graceful_timeout = 0.1
    async with trio.open_nursery() as nursery:
        (bind,) = await nursery.start(
            lambda task_status: hypercorn_serve(
                server.streamable_http_app(),  # type: ignore[arg-type]
                config,
                shutdown_trigger=trio.sleep_forever,
                task_status=task_status,
            )
        )
        yield bind
        nursery.cancel_scope.cancel()
