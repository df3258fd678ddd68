"""What traces cost: CPU time of the proxy without them, with none and with 10 % of the exchanges
sampled, in alternation.

PYTHONPATH=.:tests .venv/bin/python tests/bench/traces.py [--rounds 7] [--share 0.1] [short paced busy]

`short`: JSON; `paced`, `busy`: streams. A collector in this process takes the spans. Prints the median
CPU time of a request (streams: of an event), the exporter's thread included, and the median of its
ratios to off, each within one round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from proxy.commands.bench.processes import cpu_seconds
from proxy.commands.bench.run import (
    LOAD_CORE,
    SCENARIOS,
    Scenario,
    Target,
    free_port,
    run_scenario,
    weirpool_target,
)

EVENTS = {"short": 250, "paced": 100, "busy": 50}
DELAY_S = 0.5
"""Between two exports; each run ends when the last spans have been exported."""


class _Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[str]:
    """The endpoint of a collector that reads and forgets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


@contextmanager
def target(upstream_port: int, variables: Mapping[str, str]) -> Iterator[Target]:
    """A proxy with these variables of OpenTelemetry and no others."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    for name in kept:
        del os.environ[name]
    os.environ.update(variables)
    with weirpool_target(upstream_port) as started:
        for name in variables:
            del os.environ[name]
        os.environ.update(kept)
        yield started


def measure(scenario: Scenario, proxy: Target, upstream_port: int) -> float:
    """CPU time of an event, in us."""
    before = cpu_seconds(proxy.pids)
    result = run_scenario(scenario, proxy, upstream_port)
    assert result is not None
    if result.failed:
        print(f"{scenario.name}: {result.failed} streams failed")
    time.sleep(DELAY_S * 1.5)
    return (cpu_seconds(proxy.pids) - before) / result.events * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", default="0.1")
    parser.add_argument("names", nargs="*", default=list(EVENTS))
    given = parser.parse_args()
    upstream_port = free_port()
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    with ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {int(LOAD_CORE)})  # the collector takes no time of the proxy
        proxies = {"off": stack.enter_context(target(upstream_port, {}))}
        for share in ("0", given.share):
            variables = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": share,
                "OTEL_BSP_SCHEDULE_DELAY": f"{DELAY_S * 1000:.0f}",
            }
            proxies[share] = stack.enter_context(target(upstream_port, variables))
        for name in given.names:
            scenario = replace(scenarios[name], events=EVENTS[name])
            taken: dict[str, list[float]] = {which: [] for which in proxies}
            for number in range(given.rounds + 1):
                for which in reversed(proxies) if number % 2 else proxies:
                    cost = measure(scenario, proxies[which], upstream_port)
                    if number:  # the first round warms up
                        taken[which].append(cost)
            shown = []
            for which, costs in taken.items():
                ratios = [cost / off for cost, off in zip(costs, taken["off"], strict=True)]
                us, ratio = statistics.median(costs), statistics.median(ratios)
                shown.append(f"{which} {us:6.1f} us ({ratio:.2f})")
            print(f"{name:8}", *shown, sep="  ", flush=True)


if __name__ == "__main__":
    main()
