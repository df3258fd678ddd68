"""The official MCP client and server get the same through the proxy as without it, in every
revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from support.chains import CHAINS, config_of
from support.interceptors import Log
from support.mcp_client import REVISIONS, call_with_progress, leave_call, open_mcp_client, use
from support.mcp_server import McpServer, open_mcp_server
from support.proxy import open_proxy

# The SDK warns of what it will drop, and leaves streams and generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "default", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

PROTOCOLS = [
    *(("http", revision) for revision in [*REVISIONS, "auto"]),
    *(("json", revision) for revision in REVISIONS[-2:]),
    *(("sse", revision) for revision in ("2024-11-05", "2025-11-25")),
]
FEW_CHAINS = ["none", "built-ins"]
ANNOUNCED = "ToolListChangedNotification"
Run = Callable[[McpServer, Client, list[str]], Awaitable[Any]]


async def see(
    run: Run,
    transport: str,
    revision: str,
    directory: Path,
    *,
    dialect: str = "generic",
    resumable: bool = False,
    chains: list[str] = FEW_CHAINS,
) -> tuple[Any, Counter[tuple[Any, ...]]]:
    """What `run` returns, and the requests that the server got: the same without a proxy and through
    one. `run` gets the server, the client, and the types of messages outside of calls.
    """
    seen = []
    for chain in (None, *chains):
        async with open_mcp_server(transport, resumable=resumable) as server:
            if chain is None:
                seen.append((await _run(run, server, server.url, transport, revision), server))
                continue
            config = config_of(server.url, chain, directory, dialect=dialect, mcp=True)
            async with open_proxy(config) as proxy:
                seen.append((await _run(run, server, proxy.url, transport, revision), server))
    (direct, server), *others = seen
    for chain, (result, other) in zip(chains, others, strict=True):
        assert (result, other.requests) == (direct, server.requests), chain
    return direct, server.requests


async def _run(run: Run, server: McpServer, url: str, transport: str, revision: str) -> Any:
    received: list[str] = []

    async def note(message: Any) -> None:
        received.append(type(message).__name__)

    sse = transport == "sse"
    with trio.fail_after(30), pytest.MonkeyPatch.context() as patch:
        async with open_mcp_client(url, revision, patch, sse=sse, on_message=note) as client:
            while listens(revision) and not any(method == "GET" for method, *_ in server.requests):
                await trio.sleep(0.001)  # the client asks for that stream in its own task
            return await run(server, client, received)


def listens(revision: str) -> bool:
    return revision < "2026"


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


@pytest.mark.parametrize(("transport", "revision"), PROTOCOLS)
async def test_everything_is_the_same(transport: str, revision: str, tmp_path: Path) -> None:
    """Handshake, lists, resources, prompts, calls with progress, errors, what the server asks of the
    client meanwhile, what it sends outside of calls, a call that continues on another stream, and
    calls that the client cancels.
    """
    resumable = transport == "http" and revision == "2025-11-25"

    async def run(server: McpServer, client: Client, received: list[str]) -> Any:
        seen = await use(client)
        if listens(revision) and transport != "json":
            await client.call_tool("announce", {})
            while ANNOUNCED not in received:
                await trio.sleep(0.001)
        if resumable:
            seen["poll"] = await call_with_progress(client, "poll", {})
        if transport != "json" and revision != "auto":
            for progress in (False, True):
                with trio.fail_after(5):
                    await leave_call(server, client, progress=progress)
            seen["received"] = received.count(ANNOUNCED)
            seen["after"] = text_of(await client.call_tool("add", {"a": 1, "b": 2}))
        return seen

    chains = CHAINS if resumable else FEW_CHAINS
    seen, requests = await see(
        run, transport, revision, tmp_path, resumable=resumable, chains=chains
    )
    assert seen["add"].structured_content == {"result": 42}
    assert seen["count"][0].structured_content == {"result": ["1", "2", "3", "4", "5"]}
    assert seen["fail"].is_error
    assert seen.get("after", "3") == "3"
    announced = int(listens(revision))
    assert seen.get("received", announced) == announced
    if transport != "json":
        assert [progress[0] for progress in seen["count"][1]] == [1, 2, 3, 4, 5]
    if revision > "2025-03-26" and (transport != "json" or revision == "2026-07-28"):
        assert (text_of(seen["greet"]), text_of(seen["river"])) == ("Hello, Ann", "Rhein")
    if resumable:
        result, progress = seen["poll"]
        assert (text_of(result), [done for done, _, _ in progress]) == ("polled", [1, 2, 3])
        assert any("last-event-id" in request for request in requests)
    modern = {"POST"} if revision in ("auto", "2026-07-28") else {"POST", "GET"}
    ends = {"DELETE"} if len(modern) == 2 and transport != "sse" else set()
    assert {request[0] for request in requests} == modern | ends


async def test_a_subscription_gets_changes(tmp_path: Path) -> None:
    """`subscriptions/listen` of 2026-07-28: the events come while other calls continue, and leaving
    it ends it at the server.
    """

    async def run(server: McpServer, client: Client, _: list[str]) -> Any:
        async with client.listen(tools_list_changed=True) as subscription:
            await client.call_tool("change", {})
            event = await anext(aiter(subscription))
        while server.open:
            await trio.sleep(0.001)
        return subscription.honored, event, text_of(await client.call_tool("add", {"a": 1, "b": 2}))

    (_, event, three), _ = await see(run, "http", "2026-07-28", tmp_path)
    assert (type(event).__name__, three) == ("ToolsListChanged", "3")


@pytest.mark.parametrize(
    ("dialect", "revision"),
    [("generic", "2025-11-25"), ("mcp", "2026-07-28"), ("abort", "2026-07-28")],
)
async def test_a_connection_lost_within_a_call_ends_the_call(
    dialect: str, revision: str, tmp_path: Path, log: Log
) -> None:
    """The client's call ends with an `MCPError`, as without the proxy, and the next one is served."""

    async def run(_: McpServer, client: Client, received: list[str]) -> Any:
        reported: list[float] = []

        async def note(done: float, *_: object) -> None:
            reported.append(done)

        with pytest.raises(MCPError) as lost:
            await client.call_tool("lose", {}, progress_callback=note)
        three = text_of(await client.call_tool("add", {"a": 1, "b": 2}))
        return type(lost.value), reported, three

    seen, _ = await see(run, "http", revision, tmp_path, dialect=dialect)
    assert seen == (MCPError, [1], "3")
    outcomes = [line["outcome"] for line in log if line["event"] == "exchange"]
    assert outcomes.count("upstream_error") == len(FEW_CHAINS)
