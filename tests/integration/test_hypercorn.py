"""The installed Hypercorn lets the direct writer in: this fails when a new one closes the private path."""

from __future__ import annotations

import pytest
from support.client import fetch
from support.proxy import config_for, open_proxy
from support.upstream import open_upstream, stream_of

from proxy import exchange
from proxy.downstream import inspect_server, path_is_known


async def test_the_path_is_known() -> None:
    """Every hop from ASGI's send to the client's socket is of the type we know."""
    assert path_is_known()


async def test_a_chunked_response_takes_the_direct_writer() -> None:
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        await fetch(proxy.port)
        value = proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_writer_total", {"writer": "direct"}) == 1


async def test_without_the_path_everything_works_through_asgi(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that we do not know: the same stream through the portable writer."""
    monkeypatch.setattr(exchange, "inspect_server", lambda _: None)
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        answer = await fetch(proxy.port)
        assert answer.body == b"data: x\n\n"
        assert answer.complete
        value = proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_writer_total", {"writer": "asgi"}) == 1


async def test_a_send_that_is_not_hypercorns_is_not_inspected() -> None:
    async def send(_: object) -> None: ...

    assert inspect_server(send) is None
