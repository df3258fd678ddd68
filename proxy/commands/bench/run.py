"""Scenarios, and the proxy to run them against: on one core, with the load on another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .figures import Result

__all__ = [
    "SCENARIOS",
    "USUAL",
    "Scenario",
    "Target",
    "free_port",
    "pinned",
    "run_bench",
    "run_scenario",
    "running",
    "weirpool_target",
]

PROXY_CORE, LOAD_CORE = "0", "1"


@dataclass(frozen=True)
class Scenario:
    name: str
    streams: int
    events: int = 0
    """For each stream; 0: as many as fit in `seconds`."""
    rate: float = 0
    seconds: float = 0
    limit_s: float = 60
    kind: str = "sse"
    mode: str = "pass"
    """`pass`, `inspect` (decode each event's JSON) or `edit` (decode, change a field, encode)."""
    tls: bool = False
    hold: bool = False
    beside: int = 0
    """Saturated streams besides the measured ones."""
    new_connections: bool = False
    text: str = ""


def _in_each_mode(scenario: Scenario) -> Iterator[Scenario]:
    """A scenario, and the same with interceptors."""
    yield scenario
    for mode, what in (("inspect", "decoded"), ("edit", "decoded, edited, encoded")):
        unit = "event" if scenario.kind == "sse" else "body"
        yield replace(
            scenario,
            name=f"{scenario.name} {mode}",
            mode=mode,
            text=f"the same, every {unit} {what}",
        )


SCENARIOS = (
    *_in_each_mode(Scenario("paced", 100, 400, 40, text="100 streams x 40 events/s")),
    *_in_each_mode(
        Scenario(
            "paced tls",
            100,
            400,
            40,
            tls=True,
            text="as paced, from a TLS upstream, handshakes included",
        )
    ),
    *_in_each_mode(Scenario("busy", 400, 400, 40, text="400 streams x 40 events/s")),
    *_in_each_mode(Scenario("saturated", 50, seconds=3, text="50 streams, as fast as they go")),
    Scenario(
        "beside saturated",
        100,
        400,
        40,
        mode="edit",
        beside=10,
        text="100 x 40 events/s, beside 10 as fast as they go; all edited",
    ),
    *_in_each_mode(
        Scenario(
            "2000 streams", 2000, 8, 1, hold=True, limit_s=180, text="2,000 streams x 1 event/s"
        )
    ),
    *_in_each_mode(
        Scenario(
            "5000 streams",
            5000,
            8,
            0.5,
            hold=True,
            limit_s=180,
            text="5,000 streams x 0.5 events/s",
        )
    ),
    *_in_each_mode(
        Scenario("short", 20, 250, kind="json", text="JSON POSTs on 20 keep-alive connections")
    ),
    Scenario("opening", 20, 250, kind="opening", text="streams of one event on 20 connections"),
    Scenario(
        "opening new",
        20,
        100,
        kind="opening",
        new_connections=True,
        text="streams of one event, each on a new connection",
    ),
)

USUAL = (
    *(
        "paced",
        "paced inspect",
        "paced edit",
        "paced tls",
        "busy",
        "saturated",
        "saturated inspect",
        "saturated edit",
    ),
    *("beside saturated", "2000 streams", "short", "opening", "opening new"),
)
"""The default scenarios."""


@dataclass
class Target:
    """A proxy under test."""

    name: str
    port: int
    pids: list[int]
    paths: dict[str, str] = field(
        default_factory=lambda: {"pass": "/", "inspect": "/inspect", "edit": "/edit"}
    )
    """The path of each mode; a mode without one is not measured."""
    tls_port: int | None = None
    """The port for the TLS upstream."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pinned(core: str, command: Sequence[str]) -> list[str]:
    """Return a command that runs on one core, if there are two."""
    if (os.cpu_count() or 1) < 2 or not Path("/usr/bin/taskset").exists():
        return list(command)
    return ["taskset", "-c", core, *command]


@contextmanager
def running(command: Sequence[str], port: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on the proxies' core, from the moment that `port` accepts connections."""
    process = subprocess.Popen(
        pinned(PROXY_CORE, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options
    )
    try:
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                assert process.stderr is not None
                raise RuntimeError(f"{command[0]} ended: {process.stderr.read().decode()[-2000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_scenario(
    scenario: Scenario, target: Target, upstream_port: int, certificate: str | None = None
) -> Result | None:
    """Run one scenario against one proxy, with the load in another process. None if the proxy lacks
    the mode.
    """
    path = target.paths.get(scenario.mode)
    port = target.tls_port if scenario.tls else target.port
    if path is None or port is None:
        return None
    settings = {
        "proxy_port": port,
        "upstream_port": upstream_port,
        "pids": target.pids,
        "streams": scenario.streams,
        "events": scenario.events,
        "rate": scenario.rate,
        "seconds": scenario.seconds,
        "limit_s": scenario.limit_s,
        "kind": scenario.kind,
        "path": path,
        "certificate": certificate if scenario.tls else None,
        "hold": scenario.hold,
        "beside": scenario.beside,
        "new_connections": scenario.new_connections,
    }
    command = pinned(
        LOAD_CORE, [sys.executable, "-m", "proxy.commands.bench.load", json.dumps(settings)]
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Result(**json.loads(done.stdout))


@contextmanager
def weirpool_target(
    upstream_port: int,
    tls_upstream: tuple[int, str] | None = None,
    python: Sequence[str] = (sys.executable,),
) -> Iterator[Target]:
    """Run `weirpool serve` with a route for each mode. `tls_upstream`: port and certificate file.
    `python`: the interpreter's command.
    """
    port = free_port()
    upstreams: list[dict[str, Any]] = [
        {"name": "up", "endpoints": [f"http://127.0.0.1:{upstream_port}"]}
    ]
    routes: list[dict[str, Any]] = [
        {"path": "/", "upstream": "up"},
        {"path": "/inspect", "upstream": "up", "interceptors": ["inspect"]},
        {"path": "/edit", "upstream": "up", "interceptors": ["edit"]},
    ]
    config: dict[str, Any] = {
        "interceptors": [
            {"name": "inspect", "use": "proxy.commands.bench.hooks:Inspect"},
            {"name": "edit", "use": "proxy.commands.bench.hooks:Edit"},
        ],
        "log": {"level": "error"},
        "drain": {"timeout": 0},
    }
    with tempfile.TemporaryDirectory() as directory:
        command = [*python, "-m", "proxy", "serve"]
        plain = Path(directory) / "plain.yaml"
        plain.write_text(
            json.dumps(config | {"reverse_proxy": {"upstreams": upstreams, "routes": routes}})
        )
        with running(
            [*command, "--config", str(plain), "--bind", f"127.0.0.1:{port}"], port
        ) as process:
            target = Target("weirpool", port, [process.pid])
            if tls_upstream is None:
                yield target
                return
            upstreams[0]["endpoints"] = [f"https://localhost:{tls_upstream[0]}"]
            upstreams[0]["ca_file"] = tls_upstream[1]
            secure = Path(directory) / "secure.yaml"
            secure.write_text(
                json.dumps(config | {"reverse_proxy": {"upstreams": upstreams, "routes": routes}})
            )
            tls_port = free_port()
            with running(
                [*command, "--config", str(secure), "--bind", f"127.0.0.1:{tls_port}"], tls_port
            ) as second:
                target.pids.append(second.pid)
                target.tls_port = tls_port
                yield target


def leases(target: Target) -> tuple[float, float]:
    """Return how many leases of all pools have created a buffer, and how many have reused one."""
    counts = {"allocations": 0.0, "reuses": 0.0}
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            for name in counts:
                if line.startswith(f"buffer_pool_{name}_total{{"):
                    counts[name] += float(line.rpartition(" ")[2])
    return counts["allocations"], counts["reuses"]


def reuse_rate(target: Target, since: tuple[float, float] = (0.0, 0.0)) -> float:
    """The share of leases that reused a buffer, since the given counts."""
    made, taken = leases(target)
    made, taken = made - since[0], taken - since[1]
    return taken / (taken + made)


def run_bench(names: Sequence[str] = ()) -> int:
    """Run scenarios against this proxy and print a table. Returns the exit status."""
    chosen = [item for item in SCENARIOS if not item.tls and item.name in (names or USUAL)]
    if not chosen:
        print(
            "weirpool: unknown scenario; must be one of "
            + ", ".join(item.name for item in SCENARIOS if not item.tls),
            file=sys.stderr,
        )
        return 2
    upstream_port = free_port()
    print(
        f"{'scenario':20} {'CPU us/event':>13} {'events/s':>11} {'p50 us':>8} {'p99 us':>8}"
        f" {'kB/stream':>10} {'load':>5}"
    )
    with weirpool_target(upstream_port) as target:
        for scenario in chosen:
            result = run_scenario(scenario, target, upstream_port)
            assert result is not None
            memory = (result.rss_peak_kb - result.rss_before_kb) / scenario.streams
            print(
                f"{scenario.name:20} {result.cpu_us_per_event:13.1f} {result.events_per_s:11,.0f}"
                f" {result.p50_us:8.0f}"
                f" {result.p99_us:8.0f} {memory:10.1f} {result.load_cpu:5.2f}"
                + (f"  {result.failed} streams failed" if result.failed else ""),
                flush=True,
            )
        print(f"\nreuse rate of all pools: {reuse_rate(target):.5f}")
        print("load: the share of its own core that the load used; near 1 the load is the limit.")
    return 0
