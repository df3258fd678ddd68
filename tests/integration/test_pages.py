"""The app's own pages: metrics, health, readiness, status."""

from __future__ import annotations

import msgspec
import trio
from support.client import fetch
from support.proxy import config_for, open_proxy
from support.upstream import open_upstream, stream_of

from interceptors import Outcome
from proxy.config import Admin

POOLS = ("sse_event", "http_response", "json")


async def test_every_metric_is_there_from_the_start() -> None:
    """Before the first request."""
    expected = set()
    for pool in POOLS:
        expected |= {
            f'buffer_pool_reuse_rate{{pool="{pool}"}}',
            f'buffer_pool_current_size{{pool="{pool}"}}',
        }
        expected |= {
            f'buffer_pool_in_use{{pool="{pool}"}}',
            f'buffer_pool_high_water{{pool="{pool}"}}',
        }
        expected |= {
            f'buffer_pool_allocations_total{{pool="{pool}"}}',
            f'buffer_pool_reuses_total{{pool="{pool}"}}',
        }
        expected |= {f'buffer_pool_leaks_total{{pool="{pool}"}}'}
        for reason in ("oversize", "full", "exported"):
            expected |= {f'buffer_pool_discards_total{{pool="{pool}",reason="{reason}"}}'}
    expected |= {
        'weirpool_streams_active{route="/"}',
        'weirpool_time_to_first_byte_seconds_count{route="/"}',
    }
    expected |= {
        f'weirpool_exchanges_total{{outcome="{outcome}",route="/"}}' for outcome in Outcome
    }
    for action in ("passed", "changed", "dropped", "added"):
        expected |= {f'weirpool_events_total{{action="{action}",route="/"}}'}
    expected |= {
        f'weirpool_bytes_total{{direction="{name}",route="/"}}'
        for name in ("upstream", "downstream")
    }
    expected |= {f'weirpool_writer_total{{writer="{name}"}}' for name in ("asgi", "direct")}
    async with open_proxy(config_for("http://127.0.0.1:9")) as proxy:
        answer = await fetch(proxy.port, "/metrics")
        assert answer.status == 200
        assert answer.all("content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
        series = dict(
            line.rsplit(" ", 1)
            for line in answer.body.decode().splitlines()
            if not line.startswith("#")
        )
        assert expected <= set(series)
        assert {float(series[name]) for name in expected} == {0.0}
        assert not [name for name in series if "_created" in name]


async def test_metrics_count_what_streamed() -> None:
    """After one stream: its outcome, its bytes, its writer, its pool."""
    async with (
        open_upstream(stream_of(b"data: 1\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        await fetch(proxy.port, method="POST", body=b"hello")
        with trio.fail_after(5):
            while proxy.worker.live:
                await trio.sleep(0.005)
        value = proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_exchanges_total", {"route": "/", "outcome": "completed"}) == 1
        assert value("weirpool_bytes_total", {"route": "/", "direction": "downstream"}) == 9
        assert value("weirpool_bytes_total", {"route": "/", "direction": "upstream"}) == 5
        assert value("weirpool_writer_total", {"writer": "direct"}) == 1
        assert value("weirpool_time_to_first_byte_seconds_count", {"route": "/"}) == 1
        assert value("weirpool_streams_active", {"route": "/"}) == 0
        assert value("buffer_pool_in_use", {"pool": "sse_event"}) == 0
        assert value("buffer_pool_allocations_total", {"pool": "sse_event"}) == 1


async def test_health_and_readiness() -> None:
    async with open_proxy(config_for("http://127.0.0.1:9")) as proxy:
        assert (await fetch(proxy.port, "/healthz")).status == 200
        assert (await fetch(proxy.port, "/readyz")).status == 200
        proxy.worker.ready = False
        assert (await fetch(proxy.port, "/readyz")).status == 503
        assert (await fetch(proxy.port, "/healthz")).status == 200


async def test_pages_can_move_out_of_the_upstreams_way() -> None:
    """`admin.prefix` moves the app's pages; the upstream's own /metrics is then reachable."""
    async with open_upstream(stream_of(b"data: its own\n\n")) as upstream:
        config = config_for(upstream.url)
        config = msgspec.structs.replace(config, admin=Admin(prefix="/_weirpool"))
        async with open_proxy(config) as proxy:
            assert (await fetch(proxy.port, "/metrics")).body == b"data: its own\n\n"
            assert b"buffer_pool_in_use" in (await fetch(proxy.port, "/_weirpool/metrics")).body
