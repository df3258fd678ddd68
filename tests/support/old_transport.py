"""The old transport of MCP (2024-11-05, HTTP with SSE): a server whose sessions are spelt as a test
likes, and a client.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import trio

from support.client import Answer, Client, fetch, open_client
from support.upstream import Peer, Request

__all__ = ["OldClient", "OldServer", "rpc"]


def rpc(method: str, ident: Any, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": ident, "method": method, "params": params}).encode()


class OldServer:
    """Answers a call on the stream of the session that its URI names; `endpoints` makes the URI of
    the nth session.
    """

    def __init__(
        self, endpoint: Callable[[int], str], *, before: bytes = b": hello\n\nretry: 50\n\n"
    ) -> None:
        self._endpoint = endpoint
        self._before = before
        self._streams: dict[bytes, Peer] = {}
        self._made = 0
        self.calls: list[Any] = []
        """The messages that have come, without their parameters."""

    async def __call__(self, peer: Peer) -> None:
        while True:
            await self.handle(peer, await peer.request())

    async def handle(self, peer: Peer, request: Request) -> None:
        """Raises `EOFError` when a stream is over."""
        if request.method == "POST":
            await self._post(peer, request.target, json.loads(request.body))
            return
        self._made += 1
        endpoint = self._endpoint(self._made).replace(
            "AUTHORITY", f"127.0.0.1:{peer.upstream.port}"
        )
        target = endpoint.removeprefix(f"http://127.0.0.1:{peer.upstream.port}").encode()
        self._streams[target] = peer
        await peer.start_stream()
        await peer.chunk(self._before + f"event: endpoint\ndata: {endpoint}\n\n".encode())
        await peer.wait_closed()
        del self._streams[target]
        raise EOFError

    async def _post(self, peer: Peer, target: bytes, message: Any) -> None:
        stream = self._streams.get(target)
        if stream is None:
            await peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted")
        self.calls.append((target, message["method"]))
        answer: dict[str, Any] = {"error": {"code": -32601, "message": "Method not found"}}
        if message["method"] == "tools/list":
            answer = {
                "result": {"tools": [{"name": "add"}, {"name": "shell"}], "by": target.decode()}
            }
        elif message["method"] == "tools/call":
            answer = {"result": {"content": [], "tool": message["params"]["name"]}}
        data = json.dumps({"jsonrpc": "2.0", "id": message["id"]} | answer).encode()
        await stream.chunk(b"event: message\ndata: " + data + b"\n\n")


class OldClient:
    """One session."""

    def __init__(self, port: int, connection: Client, answer: Answer) -> None:
        self._port = port
        self._connection = connection
        self._rest = b""
        self.answer = answer
        self.target = ""

    @classmethod
    async def open(
        cls, port: int, path: str = "/sse", headers: list[tuple[str, str]] | None = None
    ) -> OldClient:
        connection = await open_client(port)
        await connection.send("GET", path, headers)
        client = cls(port, connection, await connection.head())
        assert client.answer.status == 200
        block = await client._block()
        assert block.startswith(b"event: endpoint\n"), block
        client.target = block.partition(b"data: ")[2].decode()
        return client

    async def post(
        self,
        body: bytes,
        *,
        target: str | None = None,
        headers: list[tuple[str, str]] | None = None,
    ) -> Answer:
        """Over its own connection."""
        headers = [("Content-Type", "application/json"), *(headers or [])]
        with trio.fail_after(10):
            return await fetch(
                self._port, target or self.target, method="POST", headers=headers, body=body
            )

    async def next(self) -> Any:
        """The next message on the stream."""
        block = await self._block()
        assert block.startswith(b"event: message\n"), block
        return json.loads(block.partition(b"data: ")[2])

    async def ask(self, method: str, ident: Any, **params: Any) -> Any:
        """The response to a request, whose POST must be accepted."""
        answer = await self.post(rpc(method, ident, **params))
        assert 200 <= answer.status < 300, answer
        return await self.next()

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def _block(self) -> bytes:
        """The next event; a block without data is skipped."""
        with trio.fail_after(10):
            while True:
                block, end, rest = self._rest.partition(b"\n\n")
                if not end:
                    self._rest += await self._connection.read_some()
                    continue
                self._rest = rest
                if b"data" in block:
                    return block
