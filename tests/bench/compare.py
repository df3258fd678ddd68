"""Compare Weirpool with other proxies, in one run on one machine; write the results as JSON, a
table and a plot.

    pip install -e '.[bench]' && python tests/bench/compare.py --out docs/bench

The proxies run on one core, the load on the other. Compared are: the naive Quart-Trio + httpx proxy
(`naive.py`), aiohttp on uvloop (`aiohttp_proxy.py`), and nginx where it is installed. Each scenario
runs against all of them in turn, `--rounds` times; figures are medians. CPU time is the operating
system's accounting of the proxy's processes over the whole run, the opening of streams included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import trustme

from proxy.commands.bench.run import (
    SCENARIOS,
    USUAL,
    Scenario,
    Target,
    free_port,
    leases,
    reuse_rate,
    run_scenario,
    running,
    weirpool_target,
)

HERE = Path(__file__).parent
NGINX = """
worker_processes 1; daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16000; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000;
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_buffering off; proxy_set_header Connection ""; }}
  }}
}}
"""
ALLOCATION_RUNS = (60, 260)  # events of each of 20 streams
RATIOS = (
    # scenario, figure, against, the most (or the least) it may be
    ("paced", "cpu_us_per_event", "naive", "<=", 0.30),
    ("paced", "cpu_us_per_event", "nginx", "<=", 1.7),
    ("paced", "cpu_us_per_event", "aiohttp", "<=", 1.1),
    ("busy", "cpu_us_per_event", "nginx", "<=", 1.6),
    ("busy", "cpu_us_per_event", "aiohttp", "<=", 0.8),
    ("busy", "p99_us", "aiohttp", "<=", 1.0),
    ("paced edit", "cpu_us_per_event", "naive", "<=", 0.38),
    ("saturated", "events_per_s", "naive", ">=", 30),
    ("saturated", "events_per_s", "nginx", ">=", 0.4),
    ("saturated edit", "events_per_s", "naive", ">=", 15),
    ("saturated edit", "events_per_s", "aiohttp", ">=", 1.0),
    ("beside saturated", "p99_us", "naive", "<=", 1.0),
    ("beside saturated", "p99_us", "aiohttp", "<=", 1.0),
    ("2000 streams", "kb_per_stream", "naive", "<=", 0.45),
    ("2000 streams", "kb_per_stream", "nginx", "<=", 0.88),
    ("2000 streams", "p99_us", "naive", "<=", 0.05),
    ("short", "cpu_us_per_event", "naive", "<=", 0.30),
    ("short", "cpu_us_per_event", "aiohttp", "<=", 0.5),
    ("short", "cpu_us_per_event", "nginx", "<=", 5),
    ("opening", "cpu_us_per_event", "aiohttp", "<=", 0.7),
    ("opening new", "cpu_us_per_event", "aiohttp", "<=", 1.0),
    ("allocations", "allocations_per_event", "naive", "<=", 0.2),
    ("allocations", "bytes_per_event", "naive", "<=", 0.05),
)


@contextmanager
def naive(upstream_port: int, python: Sequence[str] = (sys.executable,)) -> Iterator[Target]:
    port = free_port()
    command = [
        *python,
        "-m",
        "hypercorn",
        "--worker-class",
        "trio",
        "--bind",
        f"127.0.0.1:{port}",
        "--backlog",
        "4096",
    ]
    environment = {**os.environ, "UPSTREAM": f"http://127.0.0.1:{upstream_port}"}
    with running(
        [*command, "--workers", "0", "naive:app"], port, env=environment, cwd=HERE
    ) as process:
        yield Target("naive", port, [process.pid], {"pass": "/", "edit": "/edit"})


@contextmanager
def aiohttp(upstream_port: int) -> Iterator[Target]:
    port = free_port()
    environment = {**os.environ, "UPSTREAM": f"http://127.0.0.1:{upstream_port}"}
    command = [sys.executable, str(HERE / "aiohttp_proxy.py"), str(port)]
    with running(command, port, env=environment) as process:
        yield Target("aiohttp", port, [process.pid], {"pass": "/", "edit": "/edit"})


@contextmanager
def nginx(upstream_port: int) -> Iterator[Target]:
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "nginx.conf"
        config.write_text(NGINX.format(directory=directory, upstream=upstream_port, port=port))
        with running(["nginx", "-c", str(config)], port) as process:
            yield Target("nginx", port, [process.pid], {"pass": "/"})


def figures(
    scenario: Scenario, target: Target, upstream_port: int, certificate: str
) -> dict[str, float] | None:
    """One measurement, or None where the target has no such mode."""
    result = run_scenario(scenario, target, upstream_port, certificate)
    if result is None:
        return None
    found = {key: float(value) for key, value in vars(result).items()}
    found["kb_per_stream"] = (result.rss_peak_kb - result.rss_before_kb) / scenario.streams
    return found


def allocations(make: Callable[..., AbstractContextManager[Target]]) -> dict[str, float]:
    """Allocations and bytes allocated per event in the steady state, as memray counts them,
    Python's own allocator included.

    Two runs that differ in their length alone, one subtracted from the other: what starting and
    opening cost falls out.
    """
    upstream_port = free_port()
    counted = []
    for events in ALLOCATION_RUNS:
        with tempfile.TemporaryDirectory() as directory:
            record = str(Path(directory) / "record.bin")
            tracing = (
                "memray",
                "run",
                "--quiet",
                "--force",
                "--trace-python-allocators",
                "--output",
                record,
            )
            with make(upstream_port, python=(sys.executable, "-m", *tracing)) as target:
                done = run_scenario(Scenario("allocations", 20, events, 20), target, upstream_port)
                assert done is not None
                assert not done.failed
            stats = Path(directory) / "stats.json"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "memray",
                    "stats",
                    "--json",
                    "--force",
                    "--output",
                    str(stats),
                    record,
                ],
                check=True,
                capture_output=True,
            )
            found = json.loads(stats.read_text())
            counted.append((found["total_num_allocations"], found["total_bytes_allocated"]))
    events = 20 * (ALLOCATION_RUNS[1] - ALLOCATION_RUNS[0])
    return {
        "allocations_per_event": (counted[1][0] - counted[0][0]) / events,
        "bytes_per_event": (counted[1][1] - counted[0][1]) / events,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def compare(names: list[str], rounds: int) -> dict[str, object]:
    upstream_port = free_port()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
        authority.cert_pem.write_to_path(directory / "ca.pem")
        for scenario in SCENARIOS:
            if scenario.name not in (names or USUAL):
                continue
            for number in range(rounds):
                # Fresh processes for every measurement: memory that one scenario has freed would
                # hide what the next needs.
                for make in (weirpool, naive, aiohttp, nginx):
                    if make is nginx and shutil.which("nginx") is None:
                        continue
                    if make is not weirpool and (
                        scenario.tls or (scenario.kind == "json" and scenario.mode != "pass")
                    ):
                        continue
                    manager = (
                        weirpool_target(upstream_port, (upstream_port, str(directory / "ca.pem")))
                        if scenario.tls
                        else make(upstream_port)
                    )
                    with manager as target:
                        if scenario.tls:
                            target.pids = target.pids[-1:]
                        found = figures(
                            scenario, target, upstream_port, str(directory / "server.pem")
                        )
                        if found is None:
                            continue
                        if (
                            target.name == "weirpool"
                            and scenario.kind == "sse"
                            and not scenario.tls
                        ):
                            # Steady is what comes after the first run of the same load.
                            before = leases(target)
                            run_scenario(scenario, target, upstream_port)
                            found["reuse_rate"] = reuse_rate(target, before)
                    results.setdefault(scenario.name, {}).setdefault(target.name, []).append(found)
                    print(
                        f"{scenario.name:18} {target.name:9} round {number + 1}: {found['cpu_us_per_event']:8.1f} us/event",
                        flush=True,
                    )
    if not names or "allocations" in names:
        results["allocations"] = {
            name: [allocations(make)] for name, make in (("weirpool", weirpool), ("naive", naive))
        }
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "versions": {
                name: version(name)
                for name in ("trio", "hypercorn", "h11", "quart-trio", "httpx", "aiohttp", "uvloop")
            },
            "nginx": nginx_version(),
        },
        "rounds": rounds,
        "results": {
            name: {target: medians(found) for target, found in targets.items()}
            for name, targets in results.items()
        },
    }


weirpool = weirpool_target


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def nginx_version() -> str | None:
    if shutil.which("nginx") is None:
        return None
    return (
        subprocess.run(["nginx", "-v"], capture_output=True, text=True)
        .stderr.strip()
        .rpartition("/")[2]
    )


def table(report: dict[str, object]) -> str:
    """The results, and what they must show, in Markdown."""
    results: dict[str, dict[str, dict[str, float]]] = report["results"]
    lines = [
        "| scenario | proxy | CPU us/event | events/s | p50 us | p99 us | kB/stream | failed |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, targets in results.items():
        if name == "allocations":
            continue
        for target, found in targets.items():
            lines.append(
                f"| {name} | {target} | {found['cpu_us_per_event']:.1f} | {found['events_per_s']:,.0f} | {found['p50_us']:,.0f} "
                f"| {found['p99_us']:,.0f} | {found['kb_per_stream']:.1f} | {found['failed']:.0f} |"
            )
    if "allocations" in results:
        lines += [
            "",
            "| per event, steady state | allocations | bytes allocated |",
            "|---|---:|---:|",
        ]
        for target, found in results["allocations"].items():
            lines.append(
                f"| {target} | {found['allocations_per_event']:.1f} | {found['bytes_per_event']:,.0f} |"
            )
    lines += [
        "",
        "| scenario | figure | against | ratio | asked | |",
        "|---|---|---|---:|---:|---|",
    ]
    for name, figure, against, sign, limit in RATIOS:
        targets = results.get(name, {})
        if "weirpool" not in targets or against not in targets or not targets[against][figure]:
            continue
        ratio = targets["weirpool"][figure] / targets[against][figure]
        met = ratio <= limit if sign == "<=" else ratio >= limit
        asked = f"{'at most' if sign == '<=' else 'at least'} {limit:g}"
        lines.append(
            f"| {name} | {figure} | {against} | {ratio:.2f} | {asked} | {'met' if met else '**not met**'} |"
        )
    steady = [
        found["weirpool"]["reuse_rate"]
        for found in results.values()
        if "reuse_rate" in found.get("weirpool", {})
    ]
    if steady:
        met = "met" if min(steady) > 0.999 else "**not met**"
        lines.append(
            f"| all but TLS and short | lowest reuse_rate, steady state | | {min(steady):.5f} | above 0.999 | {met} |"
        )
    if "paced" in results and "paced tls" in results:
        ratio = (
            results["paced tls"]["weirpool"]["cpu_us_per_event"]
            / results["paced"]["weirpool"]["cpu_us_per_event"]
        )
        lines.append(
            f"| paced tls | cpu_us_per_event | plain | {ratio:.2f} | at most 1.5 | {'met' if ratio <= 1.5 else '**not met**'} |"
        )
    return "\n".join(lines) + "\n"


def plot(report: dict[str, object]) -> str:
    """CPU time per event, as an SVG of bars."""
    results: dict[str, dict[str, dict[str, float]]] = report["results"]
    shown = [name for name in ("paced", "busy", "paced edit") if name in results]
    colours = {"weirpool": "#0b7285", "nginx": "#868e96", "aiohttp": "#e8590c", "naive": "#c92a2a"}
    largest = max(
        (found["cpu_us_per_event"] for name in shown for found in results[name].values()), default=1
    )
    parts, y = [], 34
    for name in shown:
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{name}</text>')
        for target in ("nginx", "weirpool", "aiohttp", "naive"):
            found = results[name].get(target)
            if found is None:
                continue
            y += 20
            width = found["cpu_us_per_event"] / largest * 420
            parts.append(f'<text x="90" y="{y}" text-anchor="end">{target}</text>')
            parts.append(
                f'<rect x="98" y="{y - 12}" width="{width:.0f}" height="14" fill="{colours[target]}"/>'
            )
            parts.append(
                f'<text x="{104 + width:.0f}" y="{y}">{found["cpu_us_per_event"]:.0f}</text>'
            )
        y += 30
    head = '<text x="10" y="14">CPU time per event, us (less is better)</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="{y}" font-family="sans-serif" font-size="12">'
        f'<rect width="600" height="{y}" fill="white"/>{head}{"".join(parts)}</svg>\n'
    )


HEAD = """\
# Benchmark results

Written by `tests/bench/compare.py`. [Performance](performance.md) explains the scenarios and how to
repeat them. *weirpool* runs without interceptors; *inspect* decodes every event, *edit* changes it.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write NAME.json, NAME.md and NAME.svg")
    arguments = parser.parse_args()
    report = compare(arguments.scenario, arguments.rounds)
    print(table(report))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(HEAD + table(report))
        arguments.out.with_suffix(".svg").write_text(plot(report))


if __name__ == "__main__":
    main()
