"""The runbook's alerts, fired for real: Debian's Prometheus scrapes `weirpool serve`, evaluates the
deployed rules and answers `/api/v1/alerts`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio
from support.client import fetch, open_client
from support.process import free_port, port_in, running, serve
from support.prometheus import Prometheus, open_prometheus
from support.store_server import StoreServer
from support.upstream import Peer, open_upstream

LEAKY = """
import sys

from interceptors import Interceptor

class Leaky(Interceptor):
    async def on_request(self, request):
        frame = sys._getframe()
        while "worker" not in frame.f_locals:
            frame = frame.f_back
        frame.f_locals["worker"].pools.json.acquire()  # and never released
"""
SLOW = """
import time

from interceptors import Interceptor

class Slow(Interceptor):
    async def on_request(self, request):
        time.sleep(0.2)
"""
CONFIG = """
reverse_proxy:
  upstreams:
    - {{name: up, endpoints: ["{up}"]}}
    - {{name: dead, endpoints: ["http://127.0.0.1:9"]}}
  routes:
    - {{path: /, upstream: up}}
    - {{path: /dead, upstream: dead}}
    - {{path: /endless, upstream: up, timeouts: {{send: 0.3}}}}
    - {{path: /budget, upstream: up, interceptors: [budget]}}
    - {{path: /leaky, upstream: up, interceptors: [leaky]}}
    - {{path: /slow, upstream: up, interceptors: [slow]}}
    - {{path: /one, upstream: up, limits: {{max_streams: 1}}}}
  health: {{consecutive_failures: 1, eject: 60}}
  leak_detection: paranoid
interceptors:
  - {{name: budget, use: budget, options: {{limits: [{{requests: 0, per: day}}]}}}}
  - {{name: leaky, use: "./leaky.py:Leaky"}}
  - {{name: slow, use: "./slow.py:Slow"}}
store: {{url: "{store}"}}
admin: {{port: {admin}}}
drain: {{timeout: 1}}
"""
EVENT = b"data: " + b"x" * 100_000 + b"\n\n"

OF_REQUESTS = {
    "WeirpoolUpstreamDown": {"upstream": "dead"},
    "WeirpoolEndpointDown": {"endpoint": "http://127.0.0.1:9"},
    "WeirpoolEndpointFailing": {"endpoint": "http://127.0.0.1:9"},
    "WeirpoolExchangesFailing": {"route": "/dead"},
    "WeirpoolClientsStall": {"route": "/endless"},
    "WeirpoolBudgetReached": {"interceptor": "budget", "limit": "all/requests/day"},
    "WeirpoolBufferLeak": {"pool": "json"},
    "WeirpoolHookSlow": {"interceptor": "slow"},
    "WeirpoolLimitReached": {"route": "/one", "reason": "too_many_streams"},
    "WeirpoolReloadFailed": {},
}
OF_PROCESSES: dict[str, dict[str, str]] = {
    "WeirpoolStoreAway": {},
    "WeirpoolWorkerDied": {},
    "WeirpoolInternalErrors": {"route": "/one"},
}
OF_AN_END: dict[str, dict[str, str]] = {"WeirpoolDown": {}}


REQUESTS = {"/dead": 502, "/budget": 429, "/leaky": 200, "/slow": 200}
"""Requests with the statuses of their answers."""


async def upstream(peer: Peer) -> None:
    """`/endless`: events as long as somebody takes them; `/one`: one; else a short answer."""
    while True:
        request = await peer.request()
        if request.target == b"/endless":
            await peer.start_stream()
            while True:
                await peer.chunk(EVENT)
        if request.target == b"/one":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
            await peer.wait_closed()
            return
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def fired(prometheus: Prometheus, expected: dict[str, dict[str, str]]) -> None:
    """Wait until each of the expected alerts has fired with its labels, not all at once."""
    missing = dict(expected)
    while missing:
        firing = await prometheus.firing()
        for name, labels in list(missing.items()):
            if any(labels.items() <= alert.items() for alert in firing.get(name, ())):
                del missing[name]
        await trio.sleep(0.2)


async def test_the_alerts_fire_for_what_they_are_about(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    (tmp_path / "slow.py").write_text(SLOW)
    admin, store = free_port(), StoreServer("redis")
    async with open_upstream(upstream) as up, store.running():
        (tmp_path / "weirpool.yaml").write_text(
            CONFIG.format(up=up.url, store=store.url, admin=admin)
        )
        command = serve("--config", str(tmp_path / "weirpool.yaml"), "--workers", "2")
        async with (
            running(command) as process,
            open_prometheus(tmp_path, [f"127.0.0.1:{admin}"]) as prometheus,
        ):
            started = await process.event("started", 2)
            port = port_in(started[0])
            total = "sum(weirpool_exchanges_total)"
            with trio.fail_after(120):
                await fetch(port, "/")
                while await prometheus.values(total) != [1]:
                    await trio.sleep(0.2)
                while await prometheus.firing():  # it can have scraped before anything listened
                    await trio.sleep(0.2)

                clients = [await open_client(port) for _ in range(4)]
                await clients[0].send("GET", "/endless")  # and read nothing
                for client in clients[1:]:
                    await client.send("GET", "/one")
                statuses = [(await client.head()).status for client in clients[1:]]
                assert 503 in statuses  # more streams than workers
                for path, status in REQUESTS.items():
                    assert (await fetch(port, path)).status == status, path
                (tmp_path / "weirpool.yaml").write_text("reverse_proxy: {}")
                process.signal(signal.SIGHUP)
                await fired(prometheus, OF_REQUESTS)

                for line in started:
                    os.kill(int(str(line["pid"])), signal.SIGKILL)
                store.stop()
                await fired(prometheus, OF_PROCESSES)
                for client in clients:
                    await client.aclose()
                await process.stop()
                await fired(prometheus, OF_AN_END)
