"""MCP clients from npm get the same through a Weirpool process as without it: the official
TypeScript SDK and the AI SDK. All sessions run once, before the first test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
from support.mcp_server import open_mcp_server
from support.npm_clients import drive, require_packages, serve
from support.process import port_of, running
from support.process import serve as weirpool_serve

# The Python SDK leaves streams and generators to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "default", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

OLD = ["sdk sse", "sdk sse, headers", "ai sse", "ai1 sse"]
STREAMABLE = ["sdk http", "ai http", "ai http legacy", "ai1 http"]
CLIENTS = [*OLD, *STREAMABLE]
"""`sdk`: the TypeScript SDK; `ai` and `ai1`: the AI SDK's versions 2 and 1. `drive.mjs` makes them.
"""

PLACES = {
    "root": ("one", ""),
    "four workers": ("workers", ""),
    "two endpoints, prefix": ("two", "/tools"),
    "two endpoints, prefix, no interceptor": ("two", "/plain"),
    "TypeScript server, prefix": ("one", "/ts"),
    "TypeScript server, two endpoints, prefix": ("two", "/ts"),
    "TypeScript server, four workers, prefix": ("workers", "/ts"),
}
"""The process, and the prefix that is stripped there."""

CONFIG = """
reverse_proxy:
  upstreams:
    - {{name: python, endpoints: {python}}}
    - {{name: typescript, endpoints: {typescript}}}
  routes:
    - {{path: /, upstream: python, dialect: mcp, interceptors: [policy]}}
    - {{path: /tools, upstream: python, dialect: mcp, interceptors: [policy], strip_prefix: true}}
    - {{path: /plain, upstream: python, dialect: mcp, strip_prefix: true}}
    - {{path: /ts, upstream: typescript, dialect: mcp, interceptors: [policy], strip_prefix: true}}
interceptors: [{{name: policy, use: mcp_policy, options: {{tools: {{deny: [fail]}}}}}}]
drain: {{timeout: 1}}
"""

DENIED = 4
"""Which step of a session calls the tool that the policy denies."""


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"op": "call", "tool": tool, "arguments": arguments}


def add(a: int, b: int) -> dict[str, Any]:
    return call("add", a=a, b=b)


def wait(what: str, count: int) -> dict[str, Any]:
    return {"op": what, "count": count}


def steps(client: str, server: str) -> list[dict[str, Any]]:
    """List, a call, one with progress, many at once, one that the policy denies, one more, and a
    notification outside of calls.
    """
    at_once = {"op": "together", "calls": [add(number, number) for number in range(5)]}
    common = [{"op": "list"}, add(19, 23), call("count", to=3), at_once, call("fail"), add(1, 2)]
    if client == "ai http":  # in 2026-07-28 a client does not listen with GET
        return common
    welcome = 1 if client in OLD and server == "TypeScript" else 0
    return [*common, wait("listening", 1), call("announce"), wait("notified", welcome + 1)]


def reconnecting(client: str, how: str) -> list[dict[str, Any]]:
    """The stream on which the client listens is cut, the client opens another one, and calls continue."""
    leave = call("leave", how=how)
    if client in OLD:  # a new session, in which the server sends a welcome
        return [wait("notified", 1), add(1, 2), leave, wait("notified", 2), add(3, 4)]
    announced = [wait("listening", 1), call("announce"), wait("notified", 1)]
    poll = [call("poll")] if client == "sdk http" else []
    return [*announced, leave, wait("notified", 2), add(3, 4), *poll]


RECONNECTING = [
    ("sdk sse", "end"),
    ("sdk http", "end"),
    ("sdk http", "reset"),
    ("ai http", "reset"),
    ("ai1 http", "reset"),
]
"""After which end of its stream each client reconnects. The AI SDK does not on the old transport,
nor after a clean end.
"""

NAMES = ["path", "middle of the path", "another parameter", "value only"]
"""How a server of the old transport may name a session (`serve.mjs`)."""

TYPESCRIPT = [place for place in PLACES if place.startswith("TypeScript")]


def server_of(place: str) -> str:
    return "TypeScript" if place in TYPESCRIPT else "Python"


@dataclass
class Seen:
    """What every session saw, and how many requests reached each of the two Python servers."""

    sessions: dict[str, Any]
    shares: list[int]

    def direct(self, client: str, place: str) -> Any:
        """What a session sees without Weirpool, at a server of the same kind."""
        return self.sessions[f"{client}, {server_of(place)}"]

    def through(self, client: str, place: str) -> list[Any]:
        """What the sessions at that place saw."""
        return [self.sessions[name] for name in names(client, place)]


def names(client: str, place: str) -> list[str]:
    """One session at one endpoint, two at two."""
    return [
        f"{client}, {place}, {number}" for number in range(2 if "two endpoints" in place else 1)
    ]


def sessions_at(base: dict[str, str]) -> Iterator[dict[str, Any]]:
    """All sessions. `base`: the URLs of the servers and of the Weirpool processes."""

    def session(name: str, client: str, url: str, steps: Any, path: str = "/sse") -> dict[str, Any]:
        return {"name": name, "client": client, "url": url, "path": path, "steps": steps}

    for client in CLIENTS:
        for server in ("Python", "TypeScript"):
            yield session(f"{client}, {server}", client, base[server], steps(client, server))
        for place, (process, prefix) in PLACES.items():
            for name in names(client, place):
                yield session(name, client, base[process] + prefix, steps(client, server_of(place)))
    for place in TYPESCRIPT:
        process, prefix = PLACES[place]
        url = base[process] + prefix
        for client, how in RECONNECTING:
            yield session(f"{client}, {how}, {place}", client, url, reconnecting(client, how))
        for name in NAMES:
            path = f"/sse?name={quote(name)}"
            yield session(f"{name}, {place}", "sdk sse", url, steps("sdk sse", "TypeScript"), path)


@asynccontextmanager
async def weirpool(file: Path, text: str, workers: int = 1) -> AsyncIterator[str]:
    """The URL of a process with this configuration."""
    file.write_text(text)
    command = weirpool_serve("--config", str(file), "--workers", str(workers))
    async with running(command) as process:
        yield f"http://127.0.0.1:{await port_of(process)}"


async def see_all(directory: Path) -> Seen:
    async with AsyncExitStack() as stack:
        python = [await stack.enter_async_context(open_mcp_server("both")) for _ in range(2)]
        typescript = await stack.enter_async_context(serve(2))
        base = {"Python": python[0].url, "TypeScript": typescript[0]}
        for name, count, workers in [("one", 1, 1), ("two", 2, 1), ("workers", 1, 4)]:
            urls = [server.url for server in python[:count]]
            text = CONFIG.format(python=urls, typescript=typescript[:count])
            base[name] = await stack.enter_async_context(
                weirpool(directory / f"{name}.yaml", text, workers)
            )
        results = await drive(list(sessions_at(base)), at_once=8, step_timeout_s=10, timeout_s=240)
        return Seen(results, [sum(server.requests.values()) for server in python])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    require_packages()
    return trio.run(see_all, tmp_path_factory.mktemp("npm"))


def sent(session: Any) -> list[tuple[str, str, int]]:
    """What a session sent besides GET: when the AI SDK opens and reopens its listening stream is a
    race of its own.
    """
    return [
        (request["method"], request["path"], request["status"])
        for request in session["requests"]
        if request["method"] != "GET"
    ]


def without_denied(steps: list[Any]) -> list[Any]:
    """The steps without the denied tool and its call."""
    tools = [tool for tool in steps[0] if tool["name"] != "fail"] if steps else []
    return [tools, *steps[1:DENIED], *steps[DENIED + 1 :]]


def is_denial(step: Any) -> bool:
    """The TypeScript SDK puts the code into the message, too."""
    error = step["error"] if isinstance(step, dict) and "error" in step else {}
    message = "this tool is not allowed here"
    return error.get("code") == -32602 and error["message"].endswith(message)


def check_denied(session: Any, place: str) -> None:
    """The client gets the policy's error for that call, on whichever stream it waits for it."""
    assert "connect" not in session, (session["connect"], session["requests"])
    denied = session["steps"][DENIED]
    if "four workers" in place:  # it may be the server's, where another worker has the stream
        assert "error" in denied, (denied, session["requests"])
    else:
        assert is_denial(denied), (denied, session["requests"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("client", CLIENTS)
def test_everything_is_the_same(seen: Seen, client: str, place: str) -> None:
    """Tools, results, progress and notifications are the server's, and so are the paths and
    statuses of all requests. After a denied call the session continues.
    """
    direct = seen.direct(client, place)
    policy = "no interceptor" not in place
    for through in seen.through(client, place):
        assert "connect" not in through, (through["connect"], through["requests"])
        steps = [through["steps"], direct["steps"]]
        if policy:
            check_denied(through, place)
            steps = [without_denied(each) for each in steps]
        assert steps[0] == steps[1], through["requests"]
        if not (policy and client == "ai http" and server_of(place) == "Python"):
            assert sent(through) == sent(direct)  # else, denied calls have their own status


@pytest.mark.parametrize("place", TYPESCRIPT)
def test_the_server_names_a_session_as_it_likes(seen: Seen, place: str) -> None:
    """The old transport: whatever URI the `endpoint` event has, calls reach the session, and a
    denied one gets its error.
    """
    direct = seen.direct("sdk sse", place)["steps"]
    for name in NAMES:
        through = seen.sessions[f"{name}, {place}"]
        check_denied(through, place)
        assert without_denied(through["steps"]) == without_denied(direct), through["requests"]
        assert {status for _, _, status in sent(through)} == {202}


@pytest.mark.parametrize("place", TYPESCRIPT)
@pytest.mark.parametrize(("client", "how"), RECONNECTING)
def test_a_client_reconnects_after_a_cut(seen: Seen, client: str, how: str, place: str) -> None:
    """Streamable HTTP: with `Last-Event-ID`, and it gets what it missed. The old transport: a new
    session works, too.
    """
    session = seen.sessions[f"{client}, {how}, {place}"]
    steps = session["steps"]
    assert "timeout" not in steps, session
    assert not [step for step in steps if isinstance(step, dict) and "error" in step], session
    if client == "sdk http":
        polled = steps.pop()
        assert polled["progress"] == [[number, None, f"– {number} 水"] for number in (1, 2, 3)]
    assert text_of(steps[-1]) == "7"
    streams = [
        request
        for request in session["requests"]
        if (request["method"], request["status"]) == ("GET", 200)
    ]
    assert len(streams) > 1
    if client in OLD:
        assert streams[1]["version"] == "2025-11-25"
    else:
        for request in streams[1:]:
            assert request["last_event_id"], streams
            assert request["session"], streams


def text_of(step: Any) -> str:
    has_result = isinstance(step, dict) and "result" in step
    return str(step["result"]["content"][0]["text"] if has_result else step)


def test_both_endpoints_have_sessions(seen: Seen) -> None:
    """The sessions at two endpoints were not all at one."""
    assert min(seen.shares) > 100
