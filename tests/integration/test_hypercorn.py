"""Under Hypercorn the proxy's own connections serve, under any other server ASGI does."""

from __future__ import annotations

import os
import sys
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

import hypercorn.trio.run as hypercorn_run
import pytest
from support.certificates import Certificates
from support.interceptors import Log, Serve, Way, until
from support.proxy import config_for
from support.upstream import endless_stream_of, stream_of

from proxy.downstream import raw_target, serves_connections
from proxy.downstream.server import contain_connections
from proxy.server.app import create_app


def test_an_unknown_hypercorn_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app then runs over ASGI, and `started` says so."""
    contain_connections()
    assert serves_connections()
    other = type("TCPServer", (), {})
    monkeypatch.setattr(hypercorn_run, "TCPServer", other)
    contain_connections()
    assert hypercorn_run.TCPServer is other  # type: ignore[attr-defined]
    assert not serves_connections()


@pytest.mark.parametrize("writer", ["direct", "asgi"])
async def test_a_stream_passes_over_either_writer(
    writer: str, serve_once: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has left keeps no descriptor; Hypercorn keeps its own for a while."""
    if writer == "asgi":
        monkeypatch.setattr("proxy.downstream.server.current_hub", lambda: None)
    async with serve_once(stream_of(b"data: x\n\n")) as rig:
        at_rest = 0
        for _ in range(10):
            answer = await rig.fetch()
            assert (answer.body, answer.complete) == (b"data: x\n\n", True)
            await until(lambda: not rig.proxy.worker.live)
            at_rest = at_rest or len(os.listdir("/proc/self/fd"))
        assert rig.metric("weirpool_writer_total", writer=writer) == 10
        if writer == "direct":
            await until(lambda: len(os.listdir("/proc/self/fd")) <= at_rest)


@pytest.mark.parametrize("tls", [False, True])
async def test_no_wait_for_a_client_that_was_reset(
    tls: bool, certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in flight has a time to arrive when a response is cut."""
    monkeypatch.setattr("proxy.downstream.transport.LAST_BYTES_S", 60.0)

    script = endless_stream_of(b"data: " + b"x" * 8000 + b"\n\n")

    def unsent() -> int:
        (exchange,) = rig.proxy.worker.live
        fd = exchange._stream._connection.transport.fileno()
        return int.from_bytes(ioctl(fd, TIOCOUTQ, bytes(4)), sys.byteorder)

    serve = Way(certificates=certificates if tls else None).serve(log, monkeypatch)
    async with serve(script) as rig:
        client, _ = await rig.start()
        await until(unsent)
        client.reset()
        assert await rig.outcomes() == ["client_disconnected"]  # within ten seconds
        rig.clients.clear()


def test_asgi_cannot_tell_an_empty_query_from_none() -> None:
    """`/x?` and `/x` are one target."""
    scope: dict[str, Any] = {"raw_path": b"/%61", "query_string": b""}
    assert raw_target(scope) == b"/%61"
    assert raw_target({**scope, "query_string": b"a=?"}) == b"/%61?a=?"


async def test_a_foreign_servers_websocket_is_closed() -> None:
    """Before it is accepted: the server then answers 403."""
    sent: list[object] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    await create_app(config_for("http://127.0.0.1:9"))(scope, receive, send)
    assert sent == [{"type": "websocket.close"}]
