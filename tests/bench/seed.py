"""The figures that this project began from, with ours beside them.

    pip install -e '.[bench]' && python tests/bench/seed.py --out docs/seed.md

Memory and allocations against the naive proxy are read from `docs/bench.json`, which `compare.py`
writes; the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
import urllib.request
from dataclasses import replace
from pathlib import Path

from pools import BufferPool
from proxy.commands.bench.processes import resident_kb
from proxy.commands.bench.run import Scenario, free_port, run_scenario, weirpool_target

SIZES = (4096, 8192, 16384, 65536)
BENCH = Path(__file__).parents[2] / "docs" / "bench.json"


def pool_costs() -> list[tuple[int, float, float]]:
    """For each size: ns of acquire and release, and of a fresh `bytearray`; medians of 15 rounds."""
    rows = []
    for size in SIZES:
        pool = BufferPool("bench", size, 10)
        pool.acquire().release()

        def borrow(pool: BufferPool = pool) -> None:
            pool.acquire().release()

        def make(size: int = size) -> None:
            bytearray(size)

        pooled, fresh = (
            statistics.median(timeit.repeat(run, number=20000, repeat=15)) / 20000 * 1e9
            for run in (borrow, make)
        )
        rows.append((size, pooled, fresh))
    return rows


def growth() -> dict[str, float]:
    """A warm proxy relays 10,000 more events, passed and edited: the memory that remains."""
    upstream_port = free_port()
    with weirpool_target(upstream_port) as target:
        load = Scenario("growth", 10, 1000)
        for mode in ("pass", "edit"):
            run_scenario(replace(load, mode=mode), target, upstream_port)
        before = resident_kb(target.pids)
        for mode in ("pass", "edit"):
            done = run_scenario(replace(load, mode=mode, events=500), target, upstream_port)
            assert done is not None
            assert not done.failed
        after = resident_kb(target.pids)
        run_scenario(Scenario("steady", 100, 100, 40), target, upstream_port)
        with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/metrics") as answer:
            metrics = dict(
                line.rsplit(" ", 1)
                for line in answer.read().decode().splitlines()
                if not line.startswith("#")
            )
    pools = ("sse_event", "http_response", "json")
    return {
        "growth_mb": (after - before) / 1024,
        "reuse_rate": float(metrics['buffer_pool_reuse_rate{pool="sse_event"}']),
        "leaks": sum(float(metrics[f'buffer_pool_leaks_total{{pool="{pool}"}}']) for pool in pools),
        "in_use": sum(float(metrics[f'buffer_pool_in_use{{pool="{pool}"}}']) for pool in pools),
    }


def table() -> str:
    found = growth()
    bench = json.loads(BENCH.read_text())["results"]
    ours, naive = bench["allocations"]["weirpool"], bench["allocations"]["naive"]
    fewer = 1 - ours["allocations_per_event"] / naive["allocations_per_event"]
    many = bench["2000 streams"]
    smaller = 1 - many["weirpool"]["kb_per_stream"] / many["naive"]["kb_per_stream"]
    word = "less" if smaller >= 0 else "**more**"
    lines = [
        "| figure | asked | ours |",
        "|---|---:|---:|",
        f"| buffers reused (`sse_event`) | above 90 % | {found['reuse_rate']:.2%} |",
        f"| allocations per event, against the naive proxy | 50 % fewer | {fewer:.0%} fewer |",
        f"| memory per stream, 2,000 streams, against the naive proxy | 40 % less | {abs(smaller):.0%} {word} |",
        f"| growth over 10,000 events | below 10 MB | {found['growth_mb']:.1f} MB |",
        f"| buffers lost; on loan at the end | none | {found['leaks']:.0f}; {found['in_use']:.0f} |",
        "",
        "| buffer | acquire and release | a fresh `bytearray` | |",
        "|---|---:|---:|---|",
    ]
    for size, pooled, fresh in pool_costs():
        verdict = "the pool wins" if pooled < fresh else "**the pool loses**"
        lines.append(f"| {size // 1024} KiB | {pooled:.0f} ns | {fresh:.0f} ns | {verdict} |")
    return "\n".join(lines) + "\n"


HEAD = """\
# Pool measurements

Written by `tests/bench/seed.py`. [Performance](performance.md) explains them.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the tables there, too")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(HEAD + text)


if __name__ == "__main__":
    main()
