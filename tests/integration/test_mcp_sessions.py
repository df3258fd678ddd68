"""Sessions of MCP, in both transports: what names them, what they are tied to, and what outlives a
reload, another worker, and a dead endpoint. On real sockets, and where signals and workers matter
in real processes.
"""

from __future__ import annotations

import json
import signal
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp import MCPError
from mcp.client import Client
from mcp.client.sse import sse_client
from support.client import Answer, fetch
from support.mcp_server import open_mcp_server
from support.old_transport import OldClient, OldServer, rpc
from support.process import WEIRPOOL, Process, running
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Request, Script, open_upstream

from proxy.config import Config, parse_config

POLICY = '{name: policy, use: mcp_policy, options: {tools: {deny: ["%s"]}}}'


def config(
    *urls: str,
    deny: str = "shell",
    path: str = "/",
    route: str = "",
    upstream: str = "",
    health: str = "{}",
) -> Config:
    return parse_config(
        written(*urls, deny=deny, path=path, route=route, upstream=upstream, health=health)
    )


def written(
    *urls: str,
    deny: str = "shell",
    path: str = "/",
    route: str = "",
    upstream: str = "",
    health: str = "{}",
    more: str = "",
) -> str:
    return f"""
reverse_proxy:
  upstreams: [{{name: tools, endpoints: {json.dumps(urls)}, {upstream}}}]
  routes: [{{path: {path}, upstream: tools, dialect: mcp, interceptors: [policy{", seen" if more else ""}], {route}}}]
  health: {health}
  leak_detection: paranoid
interceptors:
  - {POLICY % deny}
  {more}
drain: {{timeout: 1}}
"""


DENIED = {"code": -32602, "message": "this tool is not allowed here"}

# --- which transport a stream uses
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"mcp-protocol-version": "2025-11-25"},
        {"mcp-protocol-version": "2026-07-28"},
        {"last-event-id": "7"},
        {"mcp-session-id": "s", "x-other": "1", "accept": "application/json, text/event-stream"},
    ],
    ids=str,
)
@pytest.mark.parametrize("before", [b"", b": hello\n\n", b"retry: 5\n\n: a\n: b\n\nid: 3\n\n"])
async def test_the_first_event_decides_that_a_stream_is_the_old_transports(
    headers: dict[str, str], before: bytes
) -> None:
    """Whatever the client sends: the event is rewritten for the prefix, and POSTs go to the
    endpoint that announced the session.
    """
    named = list(headers.items())
    servers = [
        OldServer(lambda number, name=name: f"/messages/?session_id={name}{number}", before=before)
        for name in "ab"
    ]
    async with open_upstream(servers[0]) as one, open_upstream(servers[1]) as two:
        async with open_proxy(
            config(one.url, two.url, path="/tools", route="strip_prefix: true")
        ) as proxy:
            clients = [await OldClient.open(proxy.port, "/tools/sse", named) for _ in range(4)]
            assert all(
                client.target.startswith("/tools/messages/?session_id=") for client in clients
            )
            for client in clients * 2:
                assert (await client.post(rpc("tools/list", 1), headers=named)).status == 202
                assert (await client.next())["result"]["by"] == client.target.removeprefix("/tools")
            for client in clients:
                await client.aclose()


@pytest.mark.parametrize(
    "before",
    [
        b'event: message\ndata: {"a":1}\n\n',
        b"id: 0\ndata:\n\n",
        b"data\n\n",
        b"event: x\ndata: 1\n\n",
        b": c\n\ndata: x\r\n\r\n",
    ],
)
@pytest.mark.parametrize("headers", [[], [("Mcp-Session-Id", "s")]], ids=["none", "session"])
async def test_an_event_called_endpoint_that_is_not_the_first_is_data(
    before: bytes, headers: list[tuple[str, str]]
) -> None:
    """It passes unchanged, and so does everything else on a stream of Streamable HTTP."""
    body = before + b"event: endpoint\ndata: /messages\n\n" + b"data: x\n\n" * 100

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for at in range(0, len(body), 50):
            await peer.chunk(body[at : at + 50])
        await peer.end()

    async with open_upstream(script) as upstream:
        async with open_proxy(
            config_for(upstream.url, route="dialect: mcp, strip_prefix: true")
        ) as proxy:
            answer = await fetch(proxy.port, "/sse", headers=headers)
    assert (answer.complete, answer.body) == (True, body)


# --- what names a session of the old transport
# --------------------------------------------------------------------------

SPELLINGS = [
    "/sse?sessionid=S{}", "/messages/S{}", "/S{}/messages", "/messages?sid=S{}",
    "/messages?a=1&token=%2F{}%3D&b", "/m;session=S{}", "http://AUTHORITY/messages/S{}",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("path", ["/", "/tools"])
async def test_the_uri_of_the_endpoint_event_is_the_session(spelling: str, path: str) -> None:
    """In any spelling: a denied call is answered on its stream, lists are filtered, and sessions
    with the same ids do not mix.
    """
    server = OldServer(spelling.format)
    async with open_upstream(server) as upstream:
        settings = config(
            upstream.url, path=path, route=f"strip_prefix: {str(path != '/').lower()}"
        )
        async with open_proxy(settings) as proxy:
            first, second = [
                await OldClient.open(proxy.port, path.rstrip("/") + "/sse") for _ in range(2)
            ]
            for client in (first, second, first):
                denied = await client.post(rpc("tools/call", 5, name="shell"))
                assert denied.status == 202
                assert await client.next() == {"jsonrpc": "2.0", "id": 5, "error": DENIED}
                assert (await client.ask("tools/list", 5))["result"]["tools"] == [{"name": "add"}]
                assert (await client.ask("tools/call", "5", name="add"))["result"]["tool"] == "add"
            for client in (first, second):
                await client.aclose()
    assert {method for _, method in server.calls} == {"tools/list", "tools/call"}
    assert len({target for target, _ in server.calls}) == 2


async def test_a_session_is_found_behind_a_proxy_that_strips_a_prefix() -> None:
    """The server knows the whole prefix, from `X-Forwarded-Prefix`; the proxy in front removes its
    part of it from the POSTs.
    """
    server = OldServer("/gateway/tools/messages/S{}".format)
    async with open_upstream(server) as upstream:
        text = written(upstream.url, path="/tools", route="strip_prefix: true").replace(
            "reverse_proxy:\n", 'reverse_proxy:\n  trusted_proxies: ["127.0.0.1"]\n', 1
        )
        async with open_proxy(parse_config(text)) as proxy:
            client = await OldClient.open(
                proxy.port, "/tools/sse", [("X-Forwarded-Prefix", "/gateway")]
            )
            assert client.target == "/gateway/tools/messages/S1"
            denied = await client.post(
                rpc("tools/call", 5, name="shell"), target="/tools/messages/S1"
            )
            assert denied.status == 202
            assert await client.next() == {"jsonrpc": "2.0", "id": 5, "error": DENIED}
            await client.aclose()


SEEN = '''
import json
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_request, on_mcp_response


class Seen(McpInterceptor):
    """Notes in each response which request it answers."""

    def __init__(self, mark: str = "") -> None:
        self.mark = mark

    @on_mcp_response("tools/list")
    def listed(self, message):
        message.result["seen"] = [message.request.method, self.mark]

    @on_mcp_response("tools/call")
    def called(self, message):
        message.result["seen"] = [message.request.name, self.mark]
'''


class Site:
    """A configuration file in a directory, for a process that reads it again."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "weirpool.yaml"
        (directory / "seen.py").write_text(SEEN)

    def write(self, *urls: str, mark: str | None = None, **settings: Any) -> None:
        more = (
            ""
            if mark is None
            else f'- {{name: seen, use: "seen.py:Seen", options: {{mark: "{mark}"}}}}'
        )
        self.file.write_text(written(*urls, more=more, **settings))


@asynccontextmanager
async def serving(
    site: Site, *arguments: str, workers: int = 1
) -> AsyncIterator[tuple[Process, int]]:
    command = [
        *WEIRPOOL,
        "serve",
        "--config",
        str(site.file),
        "--bind",
        "127.0.0.1:0",
        "--workers",
        str(workers),
        *arguments,
    ]
    async with running(command) as process:
        await process.event("started", workers)
        (bind,) = (await process.event("started"))[0]["bind"]  # type: ignore[misc]
        yield process, int(str(bind).rsplit(":", 1)[1])


async def reload(process: Process, count: int = 1) -> None:
    process.signal(signal.SIGHUP)
    assert (await process.event("reload", count))[count - 1]["ok"] is True


# --- a denied call never ends a session
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS[:2])
async def test_a_session_of_the_old_transport_outlives_reloads(
    tmp_path: Path, spelling: str
) -> None:
    """The new configuration applies to new requests on the old stream: denials, lists and new
    hooks. A response to a request from before a reload finds it.
    """
    site, server = Site(tmp_path), OldServer(spelling.format)
    async with open_upstream(server) as upstream:
        site.write(upstream.url)
        async with serving(site) as (process, port):
            client = await OldClient.open(port)
            assert (await client.ask("tools/call", 1, name="shell"))["error"] == DENIED
            changes: list[tuple[dict[str, Any], str, list[str], list[str] | None]] = [
                ({}, "shell", ["add"], None),
                ({"deny": "add"}, "add", ["shell"], None),
                ({"deny": "add", "mark": "one"}, "add", ["shell"], ["tools/list", "one"]),
                (
                    {"mark": "two", "upstream": "max_connections: 50"},
                    "shell",
                    ["add"],
                    ["tools/list", "two"],
                ),
                ({}, "shell", ["add"], None),
            ]
            for number, (change, denied, shown, seen) in enumerate(changes, 1):
                site.write(upstream.url, **change)
                await reload(process, number)
                assert await client.ask("tools/call", number, name=denied) == {
                    "jsonrpc": "2.0",
                    "id": number,
                    "error": DENIED,
                }
                result = (await client.ask("tools/list", number))["result"]
                assert ([tool["name"] for tool in result["tools"]], result.get("seen")) == (
                    shown,
                    seen,
                )
                assert (await client.ask("tools/call", 0, name=shown[0]))["result"][
                    "tool"
                ] == shown[0]
            await client.aclose()


@pytest.mark.parametrize("spelling", SPELLINGS[:2])
async def test_a_denied_call_is_answered_on_a_stream_of_another_worker(
    tmp_path: Path, spelling: str
) -> None:
    """Every session, and every call on its own connection, so that most come to a worker that
    does not have the stream. What no worker has is Streamable HTTP's, and is answered there.
    """
    site, server = Site(tmp_path), OldServer(spelling.format)
    async with open_upstream(server) as upstream:
        site.write(upstream.url)
        async with serving(site, workers=4) as (process, port):
            clients = [await OldClient.open(port) for _ in range(6)]
            for client in clients:
                for number in range(8):
                    assert await client.ask("tools/call", number, name="shell") == {
                        "jsonrpc": "2.0",
                        "id": number,
                        "error": DENIED,
                    }
                twice = await client.post(rpc("ping", 9)[:-1] + b',"method":"ping"}')
                assert (twice.status, (await client.next())["id"]) == (202, 9)
                for headers in (
                    [],
                    [("MCP-Protocol-Version", "2026-07-28")],
                    [("MCP-Protocol-Version", "2024-10-07")],
                ) * 2:
                    allowed = await client.post(rpc("tools/call", 10, name="add"), headers=headers)
                    assert (allowed.status, (await client.next())["result"]["tool"]) == (202, "add")
            answer = await clients[0].post(rpc("tools/call", 1, name="shell"), target="/mcp")
            assert (answer.status, json.loads(answer.body)["error"]) == (200, DENIED)
            process.signal(signal.SIGHUP)
            await process.event("reload", 4)
            for client in clients:
                async with trio.open_nursery() as nursery:  # more at once than a mailbox holds
                    for number in range(30):
                        nursery.start_soon(client.post, rpc("tools/call", number, name="shell"))
                answers = [await client.next() for _ in range(30)]
                assert sorted(answer["id"] for answer in answers) == list(range(30))
                assert (await client.ask("tools/call", 10, name="add"))["result"]["tool"] == "add"
                await client.aclose()
    assert Counter(method for _, method in server.calls) == {"tools/call": 42}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("workers", [1, 4])
async def test_the_official_client_continues_after_a_denied_call(
    tmp_path: Path, workers: int
) -> None:
    """The SDK's client and server, across reloads and workers: each denied call is an error, and
    the next allowed call works.
    """
    site = Site(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        async with open_mcp_server("sse") as server:
            site.write(server.url, deny="fail")
            async with serving(site, workers=workers) as (process, port), AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(
                        Client(sse_client(f"http://127.0.0.1:{port}/sse"), mode="legacy")
                    )
                    for _ in range(workers)
                ]
                for number in range(3):
                    for client in clients:
                        for _ in range(3):
                            with (
                                trio.fail_after(10),
                                pytest.raises(MCPError, match="not allowed here"),
                            ):
                                await client.call_tool("fail", {})
                        assert "fail" not in [
                            tool.name for tool in (await client.list_tools()).tools
                        ]
                        result = await client.call_tool("add", {"a": number, "b": 1})
                        assert result.structured_content == {"result": number + 1}
                    site.write(server.url, deny="fail", route=f"timeouts: {{idle: {100 + number}}}")
                    process.signal(signal.SIGHUP)
                    await process.event("reload", workers * (number + 1))


# --- ties of sessions to endpoints
# --------------------------------------------------------------------------------------


class Stateful:
    """A server of Streamable HTTP that knows the sessions that it has made, and answers 400 to
    others, as many do.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: set[str] = set()
        self.begin = trio.Event()
        self.begin.set()
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            await self.handle(peer, await peer.request())

    async def handle(self, peer: Peer, request: Request) -> None:
        session = b"".join(request.all("mcp-session-id")).decode()
        self.seen.append((request.method, session))
        if session and session not in self.sessions:
            await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return
        if not session:
            session = f"{self.name}{len(self.sessions)}"
            self.sessions.add(session)
            await self.begin.wait()
        body = b'{"jsonrpc":"2.0","id":1,"result":{}}'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: {session}\r\n"
        await peer.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)


async def ask(
    port: int, session: str | None = None, method: str = "POST", ident: Any = 9
) -> Answer:
    headers = [
        ("Content-Type", "application/json"),
        *([("Mcp-Session-Id", session)] if session else []),
    ]
    body = rpc("tools/list" if session else "initialize", ident) if method == "POST" else None
    with trio.fail_after(10):
        return await fetch(port, "/mcp", method=method, headers=headers, body=body)


async def made(port: int) -> str:
    answer = await ask(port)
    assert answer.status == 200
    return answer.all("mcp-session-id")[0].decode()


def gone(answer: Answer, ident: Any) -> bool:
    if answer.status != 404:
        return False
    body = json.loads(answer.body)
    assert (body["jsonrpc"], body["id"], body["error"]["data"]["type"]) == (
        "2.0",
        ident,
        "session_gone",
    )
    return True


async def test_every_tie_outlives_a_reload(tmp_path: Path) -> None:
    """Whatever changes while the endpoint is listed, however its URL is spelt; of both transports;
    of exchanges under way, too.
    """
    site = Site(tmp_path)
    servers = [Stateful("a"), Stateful("b"), Stateful("c")]
    olds = [OldServer(lambda number, name=name: f"/messages/{name}{number}") for name in "abc"]
    changes: list[dict[str, Any]] = [
        {},
        {"route": "timeouts: {idle: 100}"},
        {"upstream": "max_connections: 500"},
        {"health": "{eject: 20}"},
        {"upstream": "headers: {set: {x-a: b}}"},
    ]

    def both(stateful: Stateful, old: OldServer) -> Script:
        async def script(peer: Peer) -> None:
            while True:
                request = await peer.request()
                await (stateful if request.target == b"/mcp" else old).handle(peer, request)

        return script

    async with AsyncExitStack() as stack:
        urls = [
            (await stack.enter_async_context(open_upstream(both(*pair)))).url
            for pair in zip(servers, olds, strict=True)
        ]
        site.write(urls[0])
        process, port = await stack.enter_async_context(serving(site))
        sessions, clients = [await made(port)], [await OldClient.open(port)]
        site.write(*urls[:2])
        await reload(process)
        sessions += [await made(port) for _ in range(7)]
        clients += [await OldClient.open(port) for _ in range(4)]
        for server in servers:
            server.begin = trio.Event()
        async with trio.open_nursery() as nursery:

            async def begin() -> None:
                sessions.append(await made(port))

            for _ in range(4):
                nursery.start_soon(begin)
            while sum(len(server.sessions) for server in servers) < 12:
                await trio.sleep(0.01)
            site.write(*urls[:2], upstream="max_connections: 400")
            await reload(process, 2)
            for server in servers:
                server.begin.set()
        for number, change in enumerate(changes, 3):
            site.write(
                *(
                    urls[:2]
                    if number < 6
                    else [urls[2], urls[1] + "/", urls[0].replace("http", "HTTP")]
                ),
                **change,
            )
            await reload(process, number)
            assert [(await ask(port, session)).status for session in sessions] == [200] * 12
            for client in clients:
                assert (await client.ask("tools/list", 1))["result"]["by"] == client.target
        for client in clients:
            await client.aclose()
    assert not any(
        session not in server.sessions
        for server in servers
        for _, session in server.seen
        if session
    )


async def test_a_session_of_an_endpoint_that_is_no_longer_listed_gets_404(tmp_path: Path) -> None:
    """POST, GET and DELETE, again and again, with the request's id; no other endpoint is asked.
    Listed again, it continues.
    """
    site, one, two = Site(tmp_path), Stateful("a"), Stateful("b")
    old = OldServer(lambda number: f"/messages/{number}")
    async with (
        open_upstream(one) as kept,
        open_upstream(two) as removed,
        open_upstream(old) as third,
    ):
        site.write(kept.url, removed.url)
        async with serving(site) as (process, port):
            sessions = [await made(port) for _ in range(4)]
            lost = [session for session in sessions if session.startswith("b")]
            assert len(lost) == 2
            site.write(kept.url)
            await reload(process)
            two.seen.clear()
            one.seen.clear()
            for ident in (9, 0, "9", 9):
                assert gone(await ask(port, lost[0], ident=ident), ident)
            assert gone(await ask(port, lost[0], "GET"), None)
            assert gone(await ask(port, lost[0], "DELETE"), None)
            assert gone(await ask(port, lost[0], "DELETE"), None)
            assert one.seen == []
            assert (await made(port)).startswith("a")
            assert {
                (await ask(port, session)).status for session in sessions if session not in lost
            } == {200}
            site.write(removed.url)
            await reload(process, 2)
            assert [
                (await ask(port, session)).status for session in sessions if session in lost
            ] == [200, 200]
            site.write(third.url)
            await reload(process, 3)
            client = await OldClient.open(port)
            site.write(kept.url)
            await reload(process, 4)
            assert gone(await client.post(rpc("tools/list", 3)), 3)
            assert (await client.ask("tools/call", 4, name="shell"))["error"] == DENIED
            await client.aclose()
    assert {session for _, session in one.seen if session} <= one.sessions


@pytest.mark.parametrize("endpoints", [1, 2])
@pytest.mark.parametrize("limit", ["", "gone_after: 0.6"])
async def test_a_session_of_a_dead_endpoint_gets_404_after_a_limit(
    endpoints: int, limit: str, tmp_path: Path
) -> None:
    """Before the limit it fails as any request; a client that keeps trying, and a reload, do not
    prolong it; a new session begins elsewhere. An endpoint that comes back in time has its
    sessions.
    """
    other = Stateful("b")
    health = (
        f"{{consecutive_failures: 2, eject: 0.2, max_eject: {'60' if limit else '0.6'}, {limit}}}"
    )
    site, server = Site(tmp_path), Stateful("a")
    async with open_upstream(other) as up, trio.open_nursery() as nursery:
        scope, listeners = trio.CancelScope(), await trio.open_tcp_listeners(0, host="127.0.0.1")
        dying = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"

        async def serve(listener: trio.SocketListener) -> None:
            async def handle(stream: trio.SocketStream) -> None:
                with suppress(EOFError, trio.BrokenResourceError):
                    await server(Peer(stream, up))

            with scope:
                await trio.serve_listeners(handle, [listener])

        nursery.start_soon(serve, listeners[0])
        urls = [dying, up.url][:endpoints]
        site.write(*urls, health=health)
        async with serving(site) as (process, port):
            sessions = [await made(port) for _ in range(4)]
            mine = next(session for session in sessions if session.startswith("a"))
            scope.cancel()
            await listeners[0].aclose()
            began = trio.current_time()
            statuses: list[int] = []
            reloaded = False
            while not gone(answer := await ask(port, mine, ident=len(statuses)), len(statuses)):
                statuses.append(answer.status)
                assert trio.current_time() < began + 10
                await trio.sleep(0.07)
                if len(statuses) == 4:
                    site.write(*urls, health=health, upstream="max_connections: 40")
                    await reload(process)
                    reloaded = True
            assert reloaded
            assert trio.current_time() - began > 0.6
            assert set(statuses) <= {502, 503, 504}
            other.seen.clear()
            assert gone(await ask(port, mine, "GET"), None)
            assert gone(await ask(port, mine, "DELETE"), None)
            assert gone(await ask(port, mine), 9)
            assert other.seen == []
            if endpoints == 2:
                assert (await made(port)).startswith("b")
            nursery.cancel_scope.cancel()
