"""The installed Hypercorn lets the direct writer in: this fails when a new one closes the private
path.
"""

from __future__ import annotations

import os
import sys
from fcntl import ioctl
from termios import TIOCOUTQ

import pytest
from support.certificates import Certificates
from support.interceptors import Log, Serve, Way, until
from support.proxy import config_for
from support.upstream import Peer, stream_of

from proxy.downstream import path_is_known, raw_target
from proxy.downstream.hypercorn import RAW_TARGET, inspect_server
from proxy.server.app import create_app


@pytest.mark.parametrize("writer", ["direct", "asgi"])
async def test_a_chunked_response_takes_the_direct_writer_where_the_path_is_known(
    writer: str, serve_once: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an unknown server the portable writer serves the same stream. A client that has left
    keeps no descriptor.
    """
    assert path_is_known()
    if writer == "asgi":
        monkeypatch.setattr("proxy.downstream.asgi.inspect_server", lambda _: None)
        monkeypatch.setattr("proxy.downstream.server.current_hub", lambda: None)
    async with serve_once(stream_of(b"data: x\n\n")) as rig:
        at_rest = 0
        for _ in range(10):
            answer = await rig.fetch()
            assert (answer.body, answer.complete) == (b"data: x\n\n", True)
            await until(lambda: not rig.proxy.worker.live)
            at_rest = at_rest or len(os.listdir("/proc/self/fd"))
        assert rig.metric("weirpool_writer_total", writer=writer) == 10
        await until(lambda: len(os.listdir("/proc/self/fd")) <= at_rest)


@pytest.mark.parametrize("tls", [False, True])
async def test_no_wait_for_a_client_that_was_reset(
    tls: bool, certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in flight has a time to arrive when a response is cut."""
    for name in ("hypercorn.client.LAST_BYTES_S", "http1_stream.LAST_BYTES_S"):
        monkeypatch.setattr(f"proxy.downstream.{name}", 60.0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        while True:
            await peer.chunk(b"data: " + b"x" * 8000 + b"\n\n")

    def unsent() -> int:
        (exchange,) = rig.proxy.worker.live
        assert exchange._stream._connection is not None
        return int.from_bytes(
            ioctl(exchange._stream._connection.sock.fileno(), TIOCOUTQ, bytes(4)), sys.byteorder
        )

    serve = Way(certificates=certificates if tls else None).serve(log, monkeypatch)
    async with serve(script) as rig:
        client, _ = await rig.start()
        await until(unsent)
        client.reset()
        assert await rig.outcomes() == ["client_disconnected"]  # within ten seconds
        rig.clients.clear()


def test_the_target_of_a_foreign_server_is_what_asgi_tells() -> None:
    """ASGI cannot distinguish `/x?` from `/x`; a server with Weirpool's parser can."""
    scope = {"raw_path": b"/%61", "query_string": b"", "extensions": {}}
    assert raw_target(scope) == raw_target({**scope, "extensions": None}) == b"/%61"
    assert raw_target({**scope, "query_string": b"a=?"}) == b"/%61?a=?"
    assert raw_target({**scope, "extensions": {RAW_TARGET: b"/%61?"}}) == b"/%61?"


async def test_a_foreign_servers_websocket_is_closed() -> None:
    """Before it is accepted: the server then answers 403."""
    sent: list[object] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        sent.append(message)

    assert inspect_server(send) is None
    scope = {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    await create_app(config_for("http://127.0.0.1:9"))(scope, receive, send)
    assert sent == [{"type": "websocket.close"}]
