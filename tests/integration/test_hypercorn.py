"""The installed Hypercorn lets the direct writer in: this fails when a new one closes the private
path.
"""

from __future__ import annotations

import os
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCOUTQ

import pytest
from support.certificates import Certificates
from support.client import fetch
from support.interceptors import Log, Way, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from proxy.downstream import inspect_server, path_is_known, raw_target
from proxy.downstream.hypercorn import RAW_TARGET
from proxy.exchange import exchange
from proxy.server.app import create_app


async def test_the_path_is_known() -> None:
    """Every hop from ASGI's send to the client's socket is of the type we know."""
    assert path_is_known()


async def test_a_chunked_response_takes_the_direct_writer() -> None:
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        await fetch(proxy.port)
        value = proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_writer_total", {"writer": "direct"}) == 1


async def test_without_the_path_everything_works_through_asgi(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that we do not know: the same stream through the portable writer."""
    monkeypatch.setattr(exchange, "inspect_server", lambda _: None)
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert answer.body == b"data: x\n\n"
        assert answer.complete
        value = proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_writer_total", {"writer": "asgi"}) == 1


async def test_a_send_that_is_not_hypercorns_is_not_inspected() -> None:
    async def send(_: object) -> None: ...

    assert inspect_server(send) is None


async def test_a_client_that_has_left_keeps_no_descriptor() -> None:
    """One that closes its connection after its answer is forgotten at once."""
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        await fetch(proxy.port)
        await until(lambda: not proxy.worker.live)
        at_rest = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            assert (await fetch(proxy.port)).complete
        await until(lambda: len(os.listdir("/proc/self/fd")) <= at_rest)


@pytest.mark.parametrize("tls", [False, True])
async def test_no_wait_for_a_client_that_was_reset(
    tls: bool, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in flight has a time to arrive when a response is cut."""
    monkeypatch.setattr("proxy.downstream.hypercorn.client._LAST_BYTES_S", 60.0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        while True:
            await peer.chunk(b"data: " + b"x" * 8000 + b"\n\n")

    def unsent() -> int:
        (exchange,) = rig.proxy.worker.live
        assert exchange._connection is not None
        return int.from_bytes(
            ioctl(exchange._connection.sock.fileno(), TIOCOUTQ, bytes(4)), sys.byteorder
        )

    async with Way(certificates=Certificates(tmp_path) if tls else None).serve(log, monkeypatch)(
        script
    ) as rig:
        client, _ = await rig.start()
        await until(unsent)
        client.reset()
        assert await rig.outcomes() == ["client_disconnected"]  # within ten seconds
        rig.clients.clear()


async def test_the_target_of_a_foreign_server_is_what_asgi_tells() -> None:
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

    app = create_app(config_for("http://127.0.0.1:9"))
    await app(
        {"type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []},
        receive,
        send,
    )
    assert sent == [{"type": "websocket.close"}]
