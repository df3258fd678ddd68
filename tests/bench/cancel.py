"""How long after a client has left the upstream knows it: per SDK and stage, without a proxy and
through Weirpool. Prints a table.

    PYTHONPATH=.:tests .venv/bin/python tests/bench/cancel.py

Medians of 20, in milliseconds, from the client's `cancel()` or `close()` to the end of the
upstream's connection, or for MCP to the moment when the server's tool was cancelled. Weirpool runs
in its own process, the client and the upstream share one: what that costs is in every column.
A client's own timeout, the only way out of a synchronous call before its head, has no such moment.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.chains import yaml_of
from support.llm_sdks import HEADERS, LEAVES, Leave, leave
from support.llm_upstream import LlmUpstream, open_llm_upstream
from support.mcp_client import leave_call, open_mcp_client
from support.mcp_server import open_mcp_server

from proxy.commands.bench.run import free_port

CHAINS = ["none", "built-ins"]
ROOT = Path(__file__).parents[2]
Measure = Callable[[str], Awaitable[float]]
"""With a URL: seconds."""


@asynccontextmanager
async def weirpool(url: str, chain: str, header: str, *, mcp: bool = False) -> AsyncIterator[str]:
    """`weirpool serve` in front of `url`."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "weirpool.yaml"
        config.write_text(yaml_of(url, chain, Path(directory), header=header, mcp=mcp))
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "proxy",
            "serve",
            "--config",
            str(config),
            "--bind",
            f"127.0.0.1:{port}",
        ]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        process = await trio.lowlevel.open_process(command, env={**os.environ, "PYTHONPATH": paths})
        try:
            with trio.fail_after(20):
                while True:
                    try:
                        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                        break
                    except OSError:
                        await trio.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()


async def median_ms(rounds: int, measure: Callable[[], Awaitable[float]]) -> float:
    await measure()  # what is done once
    return statistics.median([await measure() * 1000 for _ in range(rounds)])


async def measure_llm(upstream: LlmUpstream, leaving: Leave, provider: str, url: str) -> float:
    waits, left = upstream.waits, len(upstream.left_at)
    with trio.fail_after(10):
        left_at = await leave(leaving, provider, url, lambda: upstream.waits > waits)
        while len(upstream.left_at) == left:
            await trio.sleep(0.001)
    return upstream.left_at[-1] - left_at


async def llm_rows(provider: str, rounds: int) -> list[tuple[str, list[float]]]:
    leaves = [leaving for leaving in LEAVES if leaving.how != "timeout"]
    rows: list[tuple[str, list[float]]] = [
        (f"`{provider}`, {_words(leaving)}", []) for leaving in leaves
    ]
    async with open_llm_upstream() as upstream:
        # B023 below: each closure is awaited within its turn of the loop.
        async def fill(url: str) -> None:
            for leaving, (_, cells) in zip(leaves, rows, strict=True):
                cells.append(
                    await median_ms(rounds, lambda: measure_llm(upstream, leaving, provider, url))  # noqa: B023
                )

        await fill(upstream.url)
        for chain in CHAINS:
            async with weirpool(upstream.url, chain, HEADERS[provider]) as url:
                await fill(url)
    return rows


def _words(leaving: Leave) -> str:
    stages = {
        "head": "before the head",
        "first": "before the first event",
        "second": "after the first event",
        "body": "within a JSON body",
    }
    return f"{leaving.way}, {leaving.how} {stages[leaving.stage]}"


async def mcp_rows(rounds: int, patch: pytest.MonkeyPatch) -> list[tuple[str, list[float]]]:
    rows = []
    for transport, revision in (
        ("http", "2026-07-28"),
        ("http", "2025-11-25"),
        ("sse", "2024-11-05"),
    ):
        sse = transport == "sse"
        name = f"`mcp` {revision}, {'closes the stream' if revision == '2026-07-28' else 'sends a notification'}"
        made: list[tuple[str, list[float]]] = [
            (f"{name}, {when} its first message", []) for when in ("before", "after")
        ]
        async with open_mcp_server(transport) as server:
            # B023 below, as above.
            async def fill(url: str) -> None:
                async with open_mcp_client(url, revision, patch, sse=sse) as client:  # noqa: B023
                    for progress, (_, cells) in enumerate(made):  # noqa: B023
                        with trio.fail_after(30):
                            cells.append(
                                await median_ms(
                                    rounds,
                                    lambda: leave_call(server, client, progress=bool(progress)),  # noqa: B023
                                )
                            )

            await fill(server.url)
            for chain in CHAINS:
                async with weirpool(server.url, chain, "authorization", mcp=True) as url:
                    await fill(url)
        rows += made
    return rows


async def run(rounds: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rows = [
            *await llm_rows("openai", rounds),
            *await llm_rows("anthropic", rounds),
            *await mcp_rows(rounds, patch),
        ]
    print(
        "| SDK, and how an answer is left | direct | Weirpool, no chain | Weirpool, every built-in |"
    )
    print("|---|---:|---:|---:|")
    for name, cells in rows:
        print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    sys.unraisablehook = lambda _: None  # the SDKs leave generators to the garbage collector
    began = time.perf_counter()
    trio.run(run, arguments.rounds)
    print(f"\n{arguments.rounds} rounds, {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
