"""The official MCP client and server get the same through the proxy as without it, in every
revision that they support.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
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

each_protocol = pytest.mark.parametrize(
    ("transport", "revision"),
    [
        *(("http", revision) for revision in [*REVISIONS, "auto"]),
        *(("json", revision) for revision in REVISIONS[-2:]),
        *(("sse", revision) for revision in ("2024-11-05", "2025-11-25")),
    ],
)
Requests = Counter[tuple[Any, ...]]


@dataclass
class Rig:
    """One protocol, without a proxy and through one, after each chain."""

    transport: str
    revision: str
    directory: Path
    monkeypatch: pytest.MonkeyPatch
    resumable: bool = False
    dialect: str = "generic"
    said: list[str] = field(default_factory=list)
    """The types of what the server has sent outside of calls."""

    async def see(self, run: Callable[[McpServer, Client], Awaitable[Any]]) -> tuple[Any, Requests]:
        """What `run` gives, and the requests that the server got meanwhile: the same in every case."""
        async with open_mcp_server(self.transport, resumable=self.resumable) as server:
            direct = await self._run(run, server, server.url), server.requests
        for chain in CHAINS:
            async with open_mcp_server(self.transport, resumable=self.resumable) as server:
                async with open_proxy(
                    config_of(server.url, chain, self.directory, dialect=self.dialect, mcp=True)
                ) as proxy:
                    through = await self._run(run, server, proxy.url), server.requests
            assert through == direct, chain
        return direct

    async def _run(
        self, run: Callable[[McpServer, Client], Awaitable[Any]], server: McpServer, url: str
    ) -> Any:
        self.said.clear()

        async def note(message: Any) -> None:
            self.said.append(type(message).__name__)

        sse = self.transport == "sse"
        with trio.fail_after(30):
            async with open_mcp_client(
                url, self.revision, self.monkeypatch, sse=sse, on_message=note
            ) as client:
                result = await run(server, client)
                while self.revision < "2026" and not any(
                    method == "GET" for method, *_ in server.requests
                ):
                    await trio.sleep(0.001)  # the client asks for that stream in its own task
                return result


@pytest.fixture
def rig(transport: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(transport, revision, tmp_path, monkeypatch)


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


@each_protocol
async def test_everything_is_the_same(rig: Rig) -> None:
    """Handshake, lists, resources, prompts, calls with progress, errors, and what the server asks
    of the client meanwhile.
    """
    seen, requests = await rig.see(lambda _, client: use(client))
    assert seen["add"].structured_content == {"result": 42}
    assert seen["count"][0].structured_content == {"result": ["1", "2", "3", "4", "5"]}
    if rig.transport != "json":
        assert [progress[0] for progress in seen["count"][1]] == [1, 2, 3, 4, 5]
    if rig.revision not in ("2024-11-05", "2025-03-26") and (
        rig.transport != "json" or rig.revision == "2026-07-28"
    ):
        assert text_of(seen["greet"]) == "Hello, Ann"
        assert text_of(seen["river"]) == "Rhein"
    assert seen["fail"].is_error
    assert {request[0] for request in requests} == {
        "auto": {"POST"},
        "2026-07-28": {"POST"},
    }.get(rig.revision, {"POST", "GET"} if rig.transport == "sse" else {"POST", "GET", "DELETE"})


@pytest.mark.parametrize(("transport", "revision"), [("http", "2025-11-25")])
async def test_a_call_continues_when_the_server_has_closed_its_stream(rig: Rig) -> None:
    """The server closes the call's stream; the client comes back with `Last-Event-ID`, misses
    nothing and gets nothing twice.
    """
    rig.resumable = True
    (result, progress), requests = await rig.see(
        lambda _, client: call_with_progress(client, "poll", {})
    )
    assert text_of(result) == "polled"
    assert [done for done, _, _ in progress] == [1, 2, 3]
    assert sum(count for request, count in requests.items() if "last-event-id" in request) == 1


@pytest.mark.parametrize(("transport", "revision"), [("http", "2026-07-28")])
async def test_a_subscription_hears_of_changes(rig: Rig) -> None:
    """`subscriptions/listen` of 2026-07-28: the events come while other calls continue, and leaving it
    ends it at the server.
    """

    async def run(server: McpServer, client: Client) -> Any:
        async with client.listen(tools_list_changed=True) as subscription:
            await client.call_tool("change", {})
            event = await anext(aiter(subscription))
        while server.open:
            await trio.sleep(0.001)
        return subscription.honored, event, text_of(await client.call_tool("add", {"a": 1, "b": 2}))

    (_, event, three), _ = await rig.see(run)
    assert type(event).__name__ == "ToolsListChanged"
    assert three == "3"


@pytest.mark.parametrize(
    ("transport", "revision"),
    [*(("http", revision) for revision in REVISIONS[:3]), ("sse", "2024-11-05")],
)
async def test_what_the_server_sends_outside_of_calls_comes_once(rig: Rig) -> None:
    """A notification of no call's arrives on the stream that the client has opened with GET."""

    async def run(server: McpServer, client: Client) -> str:
        while not any(method == "GET" for method, *_ in server.requests):
            await trio.sleep(0.001)
        await client.call_tool("announce", {})
        while not rig.said:
            await trio.sleep(0.001)
        await client.call_tool("add", {"a": 1, "b": 2})
        return ", ".join(rig.said)

    said, _ = await rig.see(run)
    assert said == "ToolListChangedNotification"


@pytest.mark.parametrize("dialect", ["generic", "mcp", "abort"])
@pytest.mark.parametrize(
    ("transport", "revision"), [("http", "2025-11-25"), ("http", "2026-07-28")]
)
async def test_a_connection_lost_within_a_call_ends_the_call(
    rig: Rig, dialect: str, log: Log
) -> None:
    """The client's call ends with an `MCPError`, as without the proxy, and the next one is served."""
    rig.dialect = dialect

    async def run(_: McpServer, client: Client) -> Any:
        reported: list[float] = []

        async def note(done: float, *_: object) -> None:
            reported.append(done)

        with pytest.raises(MCPError) as lost:
            await client.call_tool("lose", {}, progress_callback=note)
        three = text_of(await client.call_tool("add", {"a": 1, "b": 2}))
        return type(lost.value), reported, three

    seen, _ = await rig.see(run)
    assert seen == (MCPError, [1], "3")
    assert [line["outcome"] for line in log if line["event"] == "exchange"].count(
        "upstream_error"
    ) == len(CHAINS)


@pytest.mark.parametrize(
    ("transport", "revision"),
    [*(("http", revision) for revision in REVISIONS), ("sse", "2024-11-05"), ("sse", "2025-11-25")],
)
async def test_a_cancelled_call_is_cancelled_at_the_server(rig: Rig) -> None:
    """Before its first byte and after it: until 2025-11-25 the client states it in a notification, from 2026-07-28 on by closing
    the stream; no notification is made up, and the client continues."""

    async def run(server: McpServer, client: Client) -> str:
        for progress in (False, True):
            with trio.fail_after(5):
                await leave_call(server, client, progress=progress)
        return text_of(await client.call_tool("add", {"a": 1, "b": 2}))

    three, _ = await rig.see(run)
    assert three == "3"
