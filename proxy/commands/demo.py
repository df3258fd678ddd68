"""`weirpool demo`: an embedded upstream, the proxy in front of it, and a stream to watch, without
network.

The upstream imitates an LLM API: `POST` or `GET /v1/chat/completions` answers with a stream of
OpenAI-like chunks.
"""

from __future__ import annotations

import socket
import sys

import h11
import httpx
import trio

from pools import Pools, decode_json, encode_json

from ..config import Config, parse_config
from ..server.app import create_app
from ..server.serve import bind_sockets, serve_app
from ..upstream import Http1Transport
from ..upstream.httpx_transport import HttpxTransport

__all__ = ["run_demo", "serve_upstream"]

_TEXT = (
    "A weir lets the river run and still has a say in it: what flows over can be measured, counted,"
    " held back or let go, and nothing is lost on the way."
    " The key sk-demo1234567890abcdefgh was never meant to be seen downstream."
)

_CONFIG = """
reverse_proxy:
  upstreams: [{{name: demo, endpoints: ["http://127.0.0.1:{port}"]}}]
  routes: [{{path: /, upstream: demo, interceptors: [redact-keys], dialect: generic}}]
interceptors:
  - name: redact-keys
    use: interceptors.redact:Redact
    options: {{patterns: ["sk-[A-Za-z0-9]{{20,}}"], replacement: "[redacted]"}}
drain: {{timeout: 1}}
log: {{format: console, level: warning}}
"""


def run_demo(port: int, *, once: bool, delay_s: float = 0.05) -> int:
    """Run the demo on `port` (0: any free one). `once`: end after the stream."""
    trio.run(_demo, port, once, delay_s)
    return 0


async def _demo(port: int, once: bool, delay_s: float) -> None:
    (sock,) = bind_sockets([f"127.0.0.1:{port}"], None)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1/chat/completions"
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve_upstream, delay_s)
        upstream_port = listeners[0].socket.getsockname()[1]
        config = parse_config(_CONFIG.format(port=upstream_port))
        await nursery.start(_serve_proxy, config, sock)
        print(f"upstream http://127.0.0.1:{upstream_port} <- weirpool <- {url}\n", flush=True)
        await _print_stream(url)
        if not once:
            print(f"\n\nStill serving; end with Ctrl-C. Try:\n\n    curl -N {url}\n", flush=True)
            await trio.sleep_forever()
        print()
        nursery.cancel_scope.cancel()


async def _serve_proxy(
    config: Config, sock: socket.socket, task_status: trio.TaskStatus[list[str]]
) -> None:
    await serve_app(create_app(config), [sock], trio.Event(), task_status=task_status)


async def _print_stream(url: str) -> None:
    """Read the stream through the proxy as a client, and print the text as it arrives."""
    body = {
        "model": "demo",
        "stream": True,
        "messages": [{"role": "user", "content": "What is a weir?"}],
    }
    pools = Pools()
    transport = HttpxTransport(pools, Http1Transport())
    client = httpx.AsyncClient(transport=transport, timeout=30)
    async with client, client.stream("POST", url, json=body) as response:
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data and data != "[DONE]":
                for choice in decode_json(data)["choices"]:
                    sys.stdout.write(choice["delta"].get("content", ""))
                    sys.stdout.flush()


async def serve_upstream(
    delay_s: float,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the LLM-like upstream on a free port of 127.0.0.1 until cancelled."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await _converse(stream, delay_s)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            return  # the other side has left

    await trio.serve_tcp(handle, 0, host="127.0.0.1", task_status=task_status)


async def _converse(stream: trio.SocketStream, delay_s: float) -> None:
    connection = h11.Connection(h11.SERVER)

    async def send(event: h11.Event) -> None:
        data = connection.send(event)
        if data:
            await stream.send_all(data)

    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.ConnectionClosed):
            return
        elif isinstance(event, h11.EndOfMessage):
            headers = [("content-type", "text/event-stream"), ("cache-control", "no-cache")]
            await send(h11.Response(status_code=200, headers=headers))
            for piece in (*_TEXT_PIECES, None):
                if piece is None:
                    await send(h11.Data(data=b"data: [DONE]\n\n"))
                else:
                    await send(h11.Data(data=b"data: " + encode_json(_chunk(piece)) + b"\n\n"))
                    await trio.sleep(delay_s)
            await send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()


# The key stays in one piece: in `generic` streams `redact` searches one event at a time.
_TEXT_PIECES = [f"{word} " for word in _TEXT.split(" ")]


def _chunk(text: str) -> dict[str, object]:
    return {
        "id": "chatcmpl-demo",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "demo",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
