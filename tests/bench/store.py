"""What a shared limit costs: CPU and latency of a short request without one, in memory, and over the
store, for the proxy and for the store's server.

    PYTHONPATH=.:tests .venv/bin/python tests/bench/store.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.store_server import SERVERS

from proxy.commands.bench.processes import cpu_seconds
from proxy.commands.bench.run import Scenario, Target, free_port, run_scenario, running

REQUESTS = 4000
LIMIT = {"requests_per_minute": 1_000_000, "burst": 1_000_000}


@contextmanager
def proxy(directory: Path, upstream_port: int, name: str, store: str | None) -> Iterator[Target]:
    port = free_port()
    config = {
        "reverse_proxy": {
            "upstreams": [{"name": "up", "endpoints": [f"http://127.0.0.1:{upstream_port}"]}],
            "routes": [
                {"path": "/", "upstream": "up"},
                {"path": "/limit", "upstream": "up", "interceptors": ["limit"]},
            ],
        },
        "interceptors": [{"name": "limit", "use": "rate_limit", "options": LIMIT}],
        "log": {"level": "error"},
        "store": {"url": store, "timeout": 0.25},
    }
    file = directory / f"{name}.yaml"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(file)]
    with running([*command, "--bind", f"127.0.0.1:{port}"], port) as process:
        paths = {"pass": "/", "inspect": "/limit"}
        yield Target(name, port, [process.pid], paths)


def main() -> None:
    upstream_port, store_port = free_port(), free_port()
    program = SERVERS["redis"]() or SERVERS["valkey"]()
    assert program is not None, "redis-server or valkey-server must be on PATH"
    print(f"{'':24} {'CPU us/request':>15} {'server us':>10} {'p50 us':>8} {'p99 us':>8}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        command = [program, "--port", str(store_port), "--save", "", "--bind", "127.0.0.1"]
        server = stack.enter_context(running(command, store_port))
        url = f"redis://127.0.0.1:{store_port}"
        memory = stack.enter_context(proxy(Path(name), upstream_port, "memory", None))
        shared = stack.enter_context(proxy(Path(name), upstream_port, "store", url))
        for clients in (1, 20, 100):
            for target, mode in ((memory, "pass"), (memory, "inspect"), (shared, "inspect")):
                scenario = Scenario("short", clients, REQUESTS // clients // 10, kind="json")
                run_scenario(scenario, target, upstream_port)  # warm
                before = cpu_seconds([server.pid])
                limited = Scenario("short", clients, REQUESTS // clients, kind="json", mode=mode)
                result = run_scenario(limited, target, upstream_port)
                assert result is not None
                assert not result.failed
                spent_us = (cpu_seconds([server.pid]) - before) / result.events * 1e6
                what = "no limit" if mode == "pass" else target.name
                print(
                    f"{clients:4} clients, {what:10} {result.cpu_us_per_event:15.0f}"
                    f" {spent_us:10.0f} {result.p50_us:8.0f} {result.p99_us:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
