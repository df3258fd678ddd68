"""The app's own pages: metrics, health, readiness."""

from __future__ import annotations

from support.client import fetch
from support.interceptors import until
from support.proxy import config_for, open_proxy
from support.upstream import open_upstream, stream_of

from interceptors import Outcome

POOLS = ("sse_event", "http_response", "json")
FROM_THE_START = {
    *(
        f'buffer_pool_{name}{{pool="{pool}"}}'
        for pool in POOLS
        for name in (
            "reuse_rate", "current_size", "in_use", "high_water", "allocations_total",
            "reuses_total", "leaks_total",
        )
    ),
    *(
        f'buffer_pool_discards_total{{pool="{pool}",reason="{reason}"}}'
        for pool in POOLS
        for reason in ("oversize", "full", "exported")
    ),
    'weirpool_streams_active{route="/"}',
    'weirpool_time_to_first_byte_seconds_count{route="/"}',
    *(f'weirpool_exchanges_total{{outcome="{outcome}",route="/"}}' for outcome in Outcome),
    *(
        f'weirpool_events_total{{action="{action}",route="/"}}'
        for action in ("passed", "changed", "dropped", "added")
    ),
    *(f'weirpool_bytes_total{{direction="{d}",route="/"}}' for d in ("upstream", "downstream")),
    *(f'weirpool_writer_total{{writer="{name}"}}' for name in ("asgi", "direct")),
}  # fmt: skip


async def test_the_pages() -> None:
    """Every metric is there before the first request; one stream is counted once."""
    async with (
        open_upstream(stream_of(b"data: 1\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):

        async def metrics() -> dict[str, float]:
            answer = await fetch(proxy.port, "/metrics")
            assert answer.all("content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
            lines = answer.body.decode().splitlines()
            samples = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
            return {name: float(value) for name, value in samples}

        first = await metrics()
        assert {first[name] for name in FROM_THE_START} == {0.0}
        assert not [name for name in first if "_created" in name]
        await fetch(proxy.port, method="POST", body=b"hello")
        await until(lambda: not proxy.worker.live)
        second = await metrics()
        counted = {
            name: value for name, value in second.items() if name in FROM_THE_START and value
        }
        assert {name: value for name, value in counted.items() if "buffer_pool" not in name} == {
            'weirpool_exchanges_total{outcome="completed",route="/"}': 1,
            'weirpool_bytes_total{direction="downstream",route="/"}': 9,
            'weirpool_bytes_total{direction="upstream",route="/"}': 5,
            'weirpool_writer_total{writer="direct"}': 1,
            'weirpool_time_to_first_byte_seconds_count{route="/"}': 1,
        }
        assert counted['buffer_pool_allocations_total{pool="sse_event"}'] == 1
        assert 'buffer_pool_in_use{pool="sse_event"}' not in counted
        for ready in (True, False):
            proxy.worker.ready = ready
            assert (await fetch(proxy.port, "/readyz")).status == (200 if ready else 503)
            assert (await fetch(proxy.port, "/healthz")).status == 200
