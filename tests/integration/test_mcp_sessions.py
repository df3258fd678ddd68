"""Sessions of MCP, in both transports: what names them, what they are tied to, and what outlives a
reload, another worker, and a dead endpoint.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp import MCPError
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from support.client import Answer, fetch
from support.interceptors import Serve, until
from support.mcp_server import open_mcp_server
from support.old_transport import OldClient, OldServer, rpc
from support.process import HYPERCORN, Process, free_port, port_of, running, serve
from support.proxy import open_proxy
from support.upstream import Peer, Request, Script, open_upstream

from proxy.config import parse_config

POLICY = '{name: policy, use: mcp_policy, options: {tools: {deny: ["%s"]}}}'


def written(
    *urls: str,
    deny: str = "shell",
    path: str = "/",
    route: str = "",
    upstream: str = "",
    health: str = "{}",
    more: str = "",
    last: str = "",
) -> str:
    names = "policy, seen" if more else "policy"
    return f"""
reverse_proxy:
  trusted_proxies: ["127.0.0.1"]
  upstreams: [{{name: tools, endpoints: {json.dumps(urls)}, {upstream}}}]
  routes: [{{path: {path}, upstream: tools, dialect: mcp, interceptors: [{names}], {route}}}]
  health: {health}
  leak_detection: paranoid
interceptors:
  - {POLICY % deny}
  {more}
drain: {{timeout: 1}}
{last}
"""


@asynccontextmanager
async def stripping(*urls: str, **settings: str) -> AsyncIterator[int]:
    """The port of a proxy whose route strips `/tools`."""
    config = parse_config(written(*urls, path="/tools", route="strip_prefix: true", **settings))
    async with open_proxy(config) as proxy:
        yield proxy.port


SECRET = "0123456789abcdef" * 2
SIGNED = f"secret: {SECRET}"
DENIED = {"code": -32602, "message": "this tool is not allowed here"}

# --- which transport a stream uses


@pytest.mark.parametrize("last", ["", SIGNED])
async def test_the_first_event_decides_that_a_stream_is_the_old_transports(last: str) -> None:
    """Whatever the client sends: the event is rewritten for the prefix, and POSTs go to the
    endpoint that announced the session.
    """
    headers: list[list[tuple[str, str]]] = [
        [],
        [("mcp-protocol-version", "2025-11-25")],
        [("mcp-protocol-version", "2026-07-28")],
        [("last-event-id", "7")],
        [("mcp-session-id", "s"), ("accept", "application/json, text/event-stream")],
    ]
    async with AsyncExitStack() as stack:
        urls = []
        for name, before in (
            ("a", b""),
            ("b", b": hello\n\n"),
            ("c", b"retry: 5\n\n: a\n: b\n\nid: 3\n\n"),
        ):
            server = OldServer(f"/messages/?session_id={name}{{}}".format, before=before)
            urls.append((await stack.enter_async_context(open_upstream(server))).url)
        port = await stack.enter_async_context(stripping(*urls, last=last))
        for named in headers:
            clients = [await OldClient.open(port, "/tools/sse", named) for _ in range(3)]
            for client in clients * 2:
                assert client.target.startswith("/tools/messages/?session_id=")
                assert (await client.post(rpc("tools/list", 1), headers=named)).status == 202
                by = client.target.removeprefix("/tools").partition("&weirpool_session=")[0]
                assert (await client.next())["result"]["by"] == by
            for client in clients:
                await client.aclose()


async def test_an_event_called_endpoint_that_is_not_the_first_is_data(serve_once: Serve) -> None:
    """It passes unchanged, and so does everything else on a stream of Streamable HTTP."""
    first = [
        b'event: message\ndata: {"a":1}\n\n',
        b"id: 0\ndata:\n\n",
        b"data\n\n",
        b"event: x\ndata: 1\n\n",
        b": c\n\ndata: x\r\n\r\n",
    ]
    rest = b"event: endpoint\ndata: /messages\n\n" + b"data: x\n\n" * 100

    async def script(peer: Peer) -> None:
        body = first[int((await peer.request()).target[1:])] + rest
        await peer.start_stream()
        for at in range(0, len(body), 50):
            await peer.chunk(body[at : at + 50])
        await peer.end()

    async with serve_once(script, route="dialect: mcp, strip_prefix: true") as rig:
        for number, event in enumerate(first):
            for headers in ([], [("Mcp-Session-Id", "s")]):
                answer = await rig.fetch(f"/{number}", headers=headers)
                assert (answer.complete, answer.body) == (True, event + rest)


# --- what names a session of the old transport

SPELLINGS = [
    "/sse?sessionId=S{}", "/messages/S{}", "/S{}/messages", "/messages?sid=S{}",
    "/messages?a=1&token=%2F{}%3D&b", "/m;session=S{}", "http://AUTHORITY/messages/S{}",
]  # fmt: skip


def spelt(*spellings: str) -> OldServer:
    """A server that uses each of these twice in turn."""
    return OldServer(lambda n: spellings[(n - 1) // 2 % len(spellings)].format(n))


@pytest.mark.parametrize("last", ["", SIGNED])
async def test_the_uri_of_the_endpoint_event_is_the_session(last: str) -> None:
    """In any spelling: a denied call is answered on its stream, lists are filtered, and sessions
    with the same ids do not mix. The server gets its own URI, marked for the client or not.
    """
    server = spelt(*SPELLINGS)
    async with open_upstream(server) as upstream, stripping(upstream.url, last=last) as port:
        for _ in SPELLINGS:
            first, second = [await OldClient.open(port, "/tools/sse") for _ in range(2)]
            for client in (first, second, first):
                assert ("weirpool_session=w1." in client.target) == bool(last)
                denied = await client.post(rpc("tools/call", 5, name="shell"))
                assert denied.status == 202
                assert await client.next() == {"jsonrpc": "2.0", "id": 5, "error": DENIED}
                assert (await client.ask("tools/list", 5))["result"]["tools"] == [{"name": "add"}]
                assert (await client.ask("tools/call", "5", name="add"))["result"]["tool"] == "add"
            for client in (first, second):
                await client.aclose()
    assert {method for _, method in server.calls} == {"tools/list", "tools/call"}
    assert len({target for target, _ in server.calls}) == 2 * len(SPELLINGS)


@pytest.mark.parametrize("last", ["", SIGNED])
@pytest.mark.parametrize("origin", ["", "https://Public:8443"])
async def test_a_session_is_found_behind_a_proxy_that_strips_a_prefix(
    origin: str, last: str
) -> None:
    """The server knows the whole prefix and the host, from `X-Forwarded-Prefix` and `-Host`; the
    proxy in front removes its part of it from the POSTs.
    """
    server = OldServer((origin + "/gateway/tools/messages/S{}").format)
    async with open_upstream(server) as upstream, stripping(upstream.url, last=last) as port:
        named = [("X-Forwarded-Prefix", "/gateway"), ("X-Forwarded-Host", "public:8443")]
        client = await OldClient.open(port, "/tools/sse", named)
        assert client.target.partition("?")[0] == origin + "/gateway/tools/messages/S1"
        assert ("?weirpool_session=w1." in client.target) == bool(last)
        body = rpc("tools/call", 5, name="shell")
        target = client.target.removeprefix(origin + "/gateway")
        assert (await client.post(body, target=target)).status == 202
        assert await client.next() == {"jsonrpc": "2.0", "id": 5, "error": DENIED}
        await client.aclose()


SEEN = '''
import json
from interceptors import Interceptor
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


class Ids(Interceptor):
    """Shows the session ids that an interceptor sees."""

    async def on_response(self, head):
        for name, headers in ("x-asked", head.request.headers), ("x-answered", head.headers):
            head.headers[name] = headers.get("mcp-session-id", "")
'''


class Site:
    """A configuration file in a directory, for a process that reads it again."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "weirpool.yaml"
        (directory / "seen.py").write_text(SEEN)

    def write(self, *urls: str, mark: str | None = None, **settings: Any) -> None:
        seen = f'- {{name: seen, use: "seen.py:Seen", options: {{mark: "{mark}"}}}}'
        self.file.write_text(written(*urls, **{"more": seen if mark else "", **settings}))


@asynccontextmanager
async def serving(
    site: Site, *, workers: int = 1, env: dict[str, str] | None = None
) -> AsyncIterator[tuple[Process, int]]:
    command = serve("--config", str(site.file), "--workers", str(workers))
    async with running(command, env=env or {}) as process:
        await process.event("started", workers)
        yield process, await port_of(process)


async def reload(process: Process, count: int = 1) -> None:
    process.signal(signal.SIGHUP)
    assert (await process.event("reload", count))[count - 1]["ok"] is True


# --- a denied call never ends a session


async def test_a_session_of_the_old_transport_outlives_reloads(tmp_path: Path) -> None:
    """The new configuration applies to new requests on the old stream: denials, lists and new
    hooks.
    """
    site, server = Site(tmp_path), spelt(*SPELLINGS[:2])
    async with open_upstream(server) as upstream:
        site.write(upstream.url)
        async with serving(site) as (process, port):
            client = await OldClient.open(port)
            assert (await client.ask("tools/call", 1, name="shell"))["error"] == DENIED
            changes: list[tuple[dict[str, Any], str, str, list[str] | None]] = [
                ({}, "shell", "add", None),
                ({"deny": "add"}, "add", "shell", None),
                ({"deny": "add", "mark": "one"}, "add", "shell", ["tools/list", "one"]),
                ({"mark": "two", "upstream": "max_connections: 50"}, "shell", "add",
                 ["tools/list", "two"]),
                ({}, "shell", "add", None),
            ]  # fmt: skip
            for number, (change, denied, shown, seen) in enumerate(changes, 1):
                site.write(upstream.url, **change)
                await reload(process, number)
                refused = await client.ask("tools/call", number, name=denied)
                assert refused == {"jsonrpc": "2.0", "id": number, "error": DENIED}
                result = (await client.ask("tools/list", number))["result"]
                assert (result["tools"], result.get("seen")) == ([{"name": shown}], seen)
                called = await client.ask("tools/call", 0, name=shown)
                assert called["result"]["tool"] == shown
            await client.aclose()


async def test_a_denied_call_is_answered_on_a_stream_of_another_worker(tmp_path: Path) -> None:
    """Every session, and every call on its own connection, so that most come to a worker that
    does not have the stream. What no worker has is Streamable HTTP's, and is answered there.
    """
    site, server = Site(tmp_path), spelt(*SPELLINGS[:2])
    async with open_upstream(server) as upstream:
        site.write(upstream.url)
        async with serving(site, workers=4) as (process, port):
            clients = [await OldClient.open(port) for _ in range(6)]
            for client in clients:
                for number in range(8):
                    denied = await client.ask("tools/call", number, name="shell")
                    assert denied == {"jsonrpc": "2.0", "id": number, "error": DENIED}
                twice = await client.post(rpc("ping", 9)[:-1] + b',"method":"ping"}')
                assert (twice.status, (await client.next())["id"]) == (202, 9)
                for revision in ("", "2026-07-28", "2024-10-07") * 2:
                    headers = [("MCP-Protocol-Version", revision)] if revision else []
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


@pytest.mark.filterwarnings("default", "ignore::DeprecationWarning", "ignore::ResourceWarning")
async def test_the_official_client_continues_after_a_denied_call(tmp_path: Path) -> None:
    """Across reloads and workers, behind a prefix."""
    site, workers = Site(tmp_path), 2
    under = {"deny": "fail", "path": "/tools"}
    async with open_mcp_server("sse") as server, AsyncExitStack() as stack:
        site.write(server.url, route="strip_prefix: true", **under)
        process, port = await stack.enter_async_context(serving(site, workers=workers))
        opened = [
            Client(sse_client(f"http://127.0.0.1:{port}/tools/sse"), mode="legacy")
            for _ in range(3)
        ]
        clients = [await stack.enter_async_context(client) for client in opened]
        for number in range(1, 4):
            for client in clients:
                for _ in range(2):
                    with trio.fail_after(10), pytest.raises(MCPError, match="not allowed here"):
                        await client.call_tool("fail", {})
                assert "fail" not in [tool.name for tool in (await client.list_tools()).tools]
                result = await client.call_tool("add", {"a": number, "b": 1})
                assert result.structured_content == {"result": number + 1}
            idle = f"strip_prefix: true, timeouts: {{idle: {100 + number}}}"
            site.write(server.url, route=idle, **under)
            process.signal(signal.SIGHUP)
            await process.event("reload", workers * number)


# --- ties of sessions to endpoints


class Stateful:
    """A server of Streamable HTTP that answers 400 to sessions that it has not made."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: set[str] = set()
        self.begin = trio.Event()
        self.begin.set()
        self.seen: list[str] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            await self.handle(peer, await peer.request())

    async def handle(self, peer: Peer, request: Request) -> None:
        session = b"".join(request.all("mcp-session-id")).decode()
        self.seen.append(session)
        if session and session not in self.sessions:
            await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return
        if not session:
            session = f"{self.name}{len(self.sessions)}"
            self.sessions.add(session)
            await self.begin.wait()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: {session}\r\n"
        await peer.send(head.encode() + b"Content-Length: 2\r\n\r\n{}")


async def ask(port: int, session: str = "", method: str = "POST", ident: Any = 9) -> Answer:
    headers = [("Content-Type", "application/json")]
    headers += [("Mcp-Session-Id", session)] if session else []
    body = rpc("tools/list" if session else "initialize", ident) if method == "POST" else None
    with trio.fail_after(10):
        return await fetch(port, "/mcp", method=method, headers=headers, body=body)


async def made(port: int) -> str:
    answer = await ask(port)
    assert answer.status == 200
    return answer.all("mcp-session-id")[0].decode()


def gone(answer: Answer, ident: Any = None) -> bool:
    if answer.status != 404:
        return False
    body = json.loads(answer.body)
    assert (body["id"], body["error"]["data"]["type"]) == (ident, "session_gone")
    return True


async def test_every_tie_outlives_a_reload(tmp_path: Path) -> None:
    """Whatever changes while the endpoint is listed, however its URL is spelt; of both transports;
    of exchanges under way, too.
    """
    site = Site(tmp_path)
    servers = [Stateful("a"), Stateful("b"), Stateful("c")]
    changes = [
        {},
        {"route": "timeouts: {idle: 100}"},
        {"upstream": "max_connections: 500"},
        {"health": "{eject: 20}"},
        {"upstream": "headers: {set: {x-a: b}}"},
    ]

    def both(stateful: Stateful) -> Script:
        old = OldServer(f"/messages/{stateful.name}{{}}".format)

        async def script(peer: Peer) -> None:
            while True:
                request = await peer.request()
                await (stateful if request.target == b"/mcp" else old).handle(peer, request)

        return script

    async with AsyncExitStack() as stack:
        a, b, c = [
            (await stack.enter_async_context(open_upstream(both(server)))).url for server in servers
        ]
        site.write(a)
        process, port = await stack.enter_async_context(serving(site))
        sessions, clients = [await made(port)], [await OldClient.open(port)]
        site.write(a, b)
        await reload(process)
        sessions += [await made(port) for _ in range(7)]
        clients += [await OldClient.open(port) for _ in range(4)]
        for server in servers:
            server.begin = trio.Event()

        async def begin() -> None:
            sessions.append(await made(port))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(begin)
            await until(lambda: sum(len(server.sessions) for server in servers) == 12)
            site.write(a, b, upstream="max_connections: 400")
            await reload(process, 2)
            for server in servers:
                server.begin.set()
        for number, change in enumerate(changes, 3):
            urls = [a, b] if number < 6 else [c, b + "/", a.replace("http", "HTTP")]
            site.write(*urls, **change)
            await reload(process, number)
            assert [(await ask(port, session)).status for session in sessions] == [200] * 12
            for client in clients:
                assert (await client.ask("tools/list", 1))["result"]["by"] == client.target
        for client in clients:
            await client.aclose()
    for server in servers:
        assert set(server.seen) <= {"", *server.sessions}


async def test_a_session_of_an_endpoint_that_is_no_longer_listed_gets_404(tmp_path: Path) -> None:
    """POST, GET and DELETE, again and again; no other endpoint is asked. Listed again, it
    continues.
    """
    site, one, two = Site(tmp_path), Stateful("a"), Stateful("b")
    async with AsyncExitStack() as stack:
        kept, removed, third = [
            (await stack.enter_async_context(open_upstream(script))).url
            for script in (one, two, OldServer("/messages/{}".format))
        ]
        site.write(kept, removed)
        process, port = await stack.enter_async_context(serving(site))
        sessions = [await made(port) for _ in range(4)]
        lost = [session for session in sessions if session.startswith("b")]
        assert len(lost) == 2
        site.write(kept)
        await reload(process)
        one.seen.clear()
        for ident in (9, 0, "9", 9):
            assert gone(await ask(port, lost[0], ident=ident), ident)
        for method in ("GET", "DELETE", "DELETE"):
            assert gone(await ask(port, lost[0], method))
        assert one.seen == []
        assert (await made(port)).startswith("a")
        assert {(await ask(port, name)).status for name in sessions if name not in lost} == {200}
        site.write(removed)
        await reload(process, 2)
        assert [(await ask(port, session)).status for session in lost] == [200, 200]
        site.write(third)
        await reload(process, 3)
        client = await OldClient.open(port)
        site.write(kept)
        await reload(process, 4)
        assert gone(await client.post(rpc("tools/list", 3)), 3)
        assert (await client.ask("tools/call", 4, name="shell"))["error"] == DENIED
        await client.aclose()


@pytest.mark.parametrize(
    ("endpoints", "limit"), [(1, "max_eject: 0.6"), (2, "max_eject: 60, gone_after: 0.6")]
)
async def test_a_dead_endpoints_session_gets_404(
    endpoints: int, limit: str, tmp_path: Path
) -> None:
    """Before the limit it fails as any request; a client that keeps trying, and a reload, do not
    prolong it; a new session begins elsewhere.
    """
    other = Stateful("b")
    health = f"{{consecutive_failures: 2, eject: 0.2, {limit}}}"
    site, statuses, dies = Site(tmp_path), list[int](), trio.Event()

    async def live(task_status: trio.TaskStatus[str]) -> None:
        async with open_upstream(Stateful("a")) as upstream:
            task_status.started(upstream.url)
            await dies.wait()

    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        up = await stack.enter_async_context(open_upstream(other))
        urls = [await nursery.start(live), up.url]
        site.write(*urls[:endpoints], health=health)
        process, port = await stack.enter_async_context(serving(site))
        sessions = [await made(port) for _ in range(4)]
        mine = next(session for session in sessions if session.startswith("a"))
        dies.set()
        await until(lambda: not nursery.child_tasks)
        began = trio.current_time()
        while not gone(answer := await ask(port, mine, ident=len(statuses)), len(statuses)):
            statuses.append(answer.status)
            assert trio.current_time() < began + 10
            await trio.sleep(0.07)
            if len(statuses) == 4:
                site.write(*urls[:endpoints], health=health, upstream="max_connections: 40")
                await reload(process)
        assert len(statuses) >= 4
        assert trio.current_time() - began > 0.6
        assert set(statuses) <= {502, 503, 504}
        other.seen.clear()
        for method, ident in (("GET", None), ("DELETE", None), ("POST", 9)):
            assert gone(await ask(port, mine, method), ident)
        assert other.seen == []
        if endpoints == 2:
            assert (await made(port)).startswith("b")


# --- the endpoint inside the session's id


async def all_gone(port: int, sessions: list[str]) -> None:
    for session in sessions:
        assert gone(await ask(port, session), 9)


IDS = '- {name: seen, use: "seen.py:Ids"}'


async def test_a_signed_session_id_is_valid_wherever_its_secret_is(tmp_path: Path) -> None:
    """Across reloads, restarts, orders of the endpoints, and modes. The server sees its own id,
    interceptors and the client the signed one, and the log none.
    """
    site, one, two = Site(tmp_path), Stateful("first-"), Stateful("second-")
    lines, settings = list[str](), {"more": IDS, "last": SIGNED}
    async with open_upstream(one) as a, open_upstream(two) as b:
        site.write(a.url, b.url, **settings)
        async with serving(site) as (process, port):
            sessions = [await made(port) for _ in range(4)]
            site.write(b.url.replace("http", "HTTP") + "/", a.url, **settings)
            await reload(process)
            for session in sessions:
                answer = await ask(port, session)
                shown = [answer.all(name) for name in ("x-asked", "x-answered", "mcp-session-id")]
                assert (answer.status, shown) == (200, [[session.encode()]] * 3)
                assert (await ask(port, session, "DELETE")).status == 200
            site.write(a.url, b.url, upstream="session_affinity: {mode: table}", **settings)
            await reload(process, 2)
            tabled = [await made(port) for _ in range(2)]
            assert {*tabled} <= one.sessions | two.sessions
            for number in (2, 3):
                statuses = [(await ask(port, name)).status for name in sessions + tabled]
                assert statuses == [200] * 6
                site.write(a.url, b.url, upstream="session_affinity: {mode: id}", **settings)
                await reload(process, number + 1)
            lines += process.lines
        site.write(a.url, b.url)
        env = {"WEIRPOOL_SECRET": SECRET}
        async with serving(site, workers=2, env=env) as (process, port):
            assert {(await ask(port, session)).status for session in sessions * 3} == {200}
            await all_gone(port, tabled * 2)
            lines += process.lines
        assert not any("random_secret" in line for line in lines)
        async with serving(site, workers=2) as (process, port):
            await all_gone(port, sessions)
            random = [await made(port) for _ in range(4)]
            await reload(process, 2)
            assert {(await ask(port, session)).status for session in random * 3} == {200}
            assert len(await process.event("random_secret")) == 1
            site.write(a.url, b.url, last=SIGNED)
            await reload(process, 4)
            assert {(await ask(port, session)).status for session in sessions * 3} == {200}
            await all_gone(port, random)
            lines += process.lines
        site.write(a.url, b.url)
        async with serving(site, workers=2) as (process, port):
            await all_gone(port, random)
    command = serve("--config", str(site.file))
    async with running(command, env={"WEIRPOOL_SECRET": SECRET[1:]}) as process:
        assert await process.exit_status() == 2
        assert "WEIRPOOL_SECRET must have at least 32 characters" in process.lines[-1]
    assert [line for line in lines if "first-" in line or "second-" in line] == []
    assert {*one.seen} == one.sessions | {""}
    assert {*two.seen} == two.sessions | {""}


async def test_an_id_that_this_upstream_has_not_made_gets_404(tmp_path: Path) -> None:
    """Forged, foreign or stale: no server sees it. In both transports."""
    site, server = Site(tmp_path), Stateful("a")
    old = OldServer("/messages?s={}".format)

    async def both(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await (server if request.target == b"/mcp" else old).handle(peer, request)

    async with open_upstream(both) as a, open_upstream(both) as b, open_upstream(both) as c:
        site.write(a.url, b.url, last=SIGNED)
        text = site.file.read_text()
        urls = json.dumps([a.url, b.url])
        text = text.replace("upstreams: [", f"upstreams: [{{name: other, endpoints: {urls}}}, ")
        route = "{path: /other, upstream: other, dialect: mcp, strip_prefix: true}"
        site.file.write_text(text.replace("routes: [", f"routes: [{route}, "))
        async with serving(site) as (process, port):
            valid = [await made(port) for _ in range(2)]
            heads, ids = zip(*(item.rsplit(".", 1) for item in valid), strict=True)
            foreign = await fetch(port, "/other/mcp", method="POST", body=rpc("initialize", 1))
            forged = [
                *ids, "x", f"{heads[0]}.{ids[1]}", f"{heads[0][:-1]}.{ids[0]}", valid[0] + "0",
                valid[0].replace("w1", "w2"), foreign.all("mcp-session-id")[0].decode(),
            ]  # fmt: skip
            client = await OldClient.open(port)
            uris = [
                client.target[:-1], client.target + "&x=1", client.target.replace("s=", "s=1"),
            ]  # fmt: skip
            server.seen.clear()
            for session in forged:
                for method, ident in (("GET", None), ("DELETE", None), ("POST", "7")):
                    assert gone(await ask(port, session, method, ident), ident)
            for uri in uris:
                assert gone(await client.post(rpc("tools/list", 3), target=uri), 3)
            site.write(c.url, last=SIGNED)
            await reload(process)
            await all_gone(port, valid)
            assert gone(await client.post(rpc("tools/list", 3)), 3)
            assert (server.seen, old.calls) == ([""] * 4, [])  # GETs without a session
            await client.aclose()


async def test_the_workers_of_hypercorn_share_a_random_secret(tmp_path: Path) -> None:
    """Each logs that it is random."""
    site, port = Site(tmp_path), free_port()
    async with open_upstream(Stateful("a")) as a, open_upstream(Stateful("b")) as b:
        site.write(a.url, b.url, upstream="session_affinity: {mode: id}")
        command = [*HYPERCORN, "--workers", "2", "--bind", f"127.0.0.1:{port}"]
        async with running(command, env={"WEIRPOOL_CONFIG": str(site.file)}) as process:
            await process.event("started", 2)
            await process.event("random_secret", 2)
            sessions = [await made(port) for _ in range(4)]
            assert {(await ask(port, session)).status for session in sessions * 4} == {200}
            await process.stop()


@pytest.mark.filterwarnings("default", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_no_session_breaks_with_several_workers(transport: str, tmp_path: Path) -> None:
    """Of the official client, with two endpoints that keep their sessions: across a reload that
    reorders them, and the death of a worker. Only the streams of the old transport that it had end.
    """
    count = int(os.environ.get("WEIRPOOL_TEST_SESSIONS", "8"))
    site, clients, lost = Site(tmp_path), list[Client](), set[int]()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(open_mcp_server(transport)) for _ in range(2)]
        urls = [server.url for server in servers]
        site.write(*urls)
        process, port = await stack.enter_async_context(serving(site, workers=4))

        async def call(number: int) -> None:
            try:
                with trio.fail_after(60):
                    result = await clients[number].call_tool("add", {"a": number, "b": 1})
            except MCPError:
                lost.add(number)
            else:
                assert result.structured_content == {"result": number + 1}

        async def call_all() -> None:
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    for number in {*range(count)} - lost:
                        nursery.start_soon(call, number)

        for _ in range(count):
            url = f"http://127.0.0.1:{port}"
            opened = sse_client(f"{url}/sse") if transport == "sse" else None
            client = Client(opened or streamable_http_client(f"{url}/mcp"), mode="legacy")
            clients.append(await stack.enter_async_context(client))
        await call_all()
        site.write(*urls[::-1])
        await reload(process, 4)
        await call_all()
        assert lost == set()
        os.kill(int(str((await process.event("started", 4))[0]["pid"])), signal.SIGKILL)
        await process.event("started", 5)
        await call_all()
        if transport == "sse":
            await until(lambda: sum(server.open for server in servers) == count - len(lost))
        else:
            assert lost == set()
    # A call of a lost session can still reach its server, which has seen the stream end.
    answers = {200, 202, 404} if transport == "sse" and lost else {200, 202}
    for server in servers:
        assert {key[2] for key in server.requests} <= answers
