"""Every metric in `GET /metrics`, of one proxy in which each of them has counted something.

A new metric needs a line in `METRICS` here (or its own test) and one in `tests/reach.txt`.
"""

from __future__ import annotations

import re
from pathlib import Path

import trio
from support.client import fetch, open_client
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from proxy.config import check_config

OWN = """
import trio
from interceptors import Event, Interceptor, Response, StreamInterceptor

class Own(Interceptor):
    wants_json = True

    async def on_request(self, request):
        await trio.sleep(0.001)
        return Response(status=403) if request.path == "/refused" else None

    def open_stream(self, context):
        context.note_unread("a field")
        return Stream()

class Stream(StreamInterceptor):
    def on_event(self, event):
        if event.data == "drop":
            return None
        if event.data == "add":
            return [event, Event("more")]
        return event.replace("other") if event.data == "change" else event
"""
CONFIG = """
reverse_proxy:
  upstreams:
    - {name: up, endpoints: ["%s"], max_connections: 1}
    - {name: dead, endpoints: ["http://127.0.0.1:9"]}
  routes:
    - {path: /, upstream: up, interceptors: [own]}
    - {path: /v1, upstream: up, interceptors: [usage]}
    - {path: /dead, upstream: dead}
  buffer_pools: {http_response: {size: 16384, max_pooled: 0}}
  health: {consecutive_failures: 2, eject: 60}
  max_client_connections: 20
interceptors: [{name: own, use: "./own.py:Own"}, {name: usage, use: usage}]
log: {level: error}
"""
BODY = b"data: drop\n\ndata: add\n\ndata: change\n\n"
WITH_USAGE = (
    b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
)
WITHOUT_USAGE = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'

METRICS = {
    "process_cpu_seconds": r"_total (?!0.0\n)",
    "process_open_fds": r" [1-9]",
    "process_resident_memory_bytes": r" [1-9]",
    "buffer_pool_allocations": r'_total{pool="sse_event"} [1-9]',
    "buffer_pool_current_size": r'{pool="sse_event"} [0-9]',
    "buffer_pool_discards": r'_total{pool="http_response",reason="full"} [1-9]',
    "buffer_pool_high_water": r'{pool="sse_event"} [1-9]',
    "buffer_pool_in_use": r'{pool="sse_event"} 1.0',
    "buffer_pool_reuse_rate": r'{pool="sse_event"} 0.[1-9]',
    "buffer_pool_reuses": r'_total{pool="sse_event"} [1-9]',
    "weirpool_bytes": r'_total{direction="upstream",route="/"} 2.0',
    "weirpool_client_connections": r" [3-9]",
    "weirpool_client_connections_limit": r" 20.0",
    "weirpool_endpoint_ejections": r'_total{endpoint="http://127.0.0.1:9",upstream="dead"} 1.0',
    "weirpool_endpoint_failures": r'_total{endpoint="http://127.0.0.1:9",upstream="dead"} 2.0',
    "weirpool_endpoint_outstanding": r'{endpoint="http://127.0.0.1:[0-9]+",upstream="up"} 2.0',
    "weirpool_endpoint_up": r'{endpoint="http://127.0.0.1:9",upstream="dead"} 0.0',
    "weirpool_events": r'_total{action="changed",route="/"} 1.0',
    "weirpool_exchange_duration_seconds": r'_count{route="/v1"} 2.0',
    "weirpool_exchanges": r'_total{outcome="completed",route="/v1"} 2.0',
    "weirpool_hook_seconds": r'_count{interceptor="own"} [1-9]',
    "weirpool_interceptor_seconds": r'_total{interceptor="own"} (?!0.0\n)',
    "weirpool_interceptor_waited_seconds": r'_total{interceptor="own"} (?!0.0\n)',
    "weirpool_intercepted": r'_total{interceptor="own",route="/"} 1.0',
    "weirpool_llm_answers_without_usage": r'_total{client="-",interceptor="usage",model="m",route="/v1"} 1.0',
    "weirpool_llm_requests": r'_total{client="-",interceptor="usage",model="m",route="/v1"} 2.0',
    "weirpool_llm_tokens": r'_total{client="-",interceptor="usage",kind="input",model="m",route="/v1"} 5.0',
    "weirpool_refused": r'_total{reason="no_endpoint",route="/dead"} 1.0',
    "weirpool_retries": r'_total{endpoint="http://127.0.0.1:9",upstream="dead"} 1.0',
    "weirpool_streams_limit": r" 10000.0",
    "weirpool_streams_active": r'{route="/"} 2.0',
    "weirpool_time_between_events_seconds": r'_count{route="/"} 2.0',
    "weirpool_time_to_first_byte_seconds": r'_count{route="/"} [1-9]',
    "weirpool_upstream_responses": r'_total{code="200",endpoint="http://127.0.0.1:[0-9]+",upstream="up"} [1-9]',
    "weirpool_unread_parts": r'_total{interceptor="own"} [2-9]',
    "weirpool_upstream_waiting": r'{upstream="up"} 1.0',
    "weirpool_writer": r'_total{writer="direct"} [1-9]',
}

SHOW_THE_SECOND = {"weirpool_endpoint_outstanding", "weirpool_upstream_waiting"}


async def upstream(peer: Peer) -> None:
    while True:
        request = await peer.request()
        if request.target == b"/json":
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            continue
        await peer.start_stream()
        if request.target == b"/live":
            await peer.chunk(b"data: whole\n\ndata: a part")
            await peer.wait_closed()
        await peer.chunk(
            {
                b"/v1/chat/completions": WITH_USAGE,
                b"/v1/chat/completions?without-usage": WITHOUT_USAGE,
            }.get(request.target, BODY)
        )
        await peer.end()


async def test_every_metric_counts(tmp_path: Path) -> None:
    """Two streams are open during the scrape; one of them waits for a connection."""
    (tmp_path / "own.py").write_text(OWN)
    async with open_upstream(upstream) as up:
        (tmp_path / "weirpool.yaml").write_text(CONFIG % up.url)
        async with open_proxy(check_config(str(tmp_path / "weirpool.yaml")).require()) as proxy:
            with trio.fail_after(20):
                answer = await fetch(proxy.port, "/", method="POST", body=b"{}")
                assert answer.body == b"data: add\n\ndata: more\n\ndata: other\n\n"
                await fetch(proxy.port, "/json")
                assert (await fetch(proxy.port, "/refused")).status == 403
                for query in ("", "?without-usage"):
                    await fetch(
                        proxy.port,
                        f"/v1/chat/completions{query}",
                        method="POST",
                        body=b'{"stream":true}',
                    )
                assert (await fetch(proxy.port, "/dead")).status == 502
                assert (await fetch(proxy.port, "/dead")).status == 503
                first, second = await open_client(proxy.port), await open_client(proxy.port)
                await first.send("GET", "/live")
                await first.read_until(await first.head(), b"data: whole\n\n")
                await second.send("GET", "/live")
                missing = set(METRICS)
                while missing:  # until the second stream waits for a connection
                    page = (await fetch(proxy.port, "/metrics")).body.decode()
                    missing = {
                        name
                        for name, line in METRICS.items()
                        if not re.search(f"(?m)^{name}{line}", page)
                    }
                    if missing and missing <= SHOW_THE_SECOND:
                        await trio.sleep(0.002)
                        continue
                    assert missing == set(), page
                await first.aclose()
                await second.aclose()
