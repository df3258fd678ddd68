"""The exit statuses of docs/operations.md and their events, from outside: each row of its table,
with one worker and with two.
"""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from support.process import ROOT, WEIRPOOL, running

INTERCEPTORS = """
import sys
from contextlib import asynccontextmanager
from interceptors import Interceptor
from proxy.worker import generations
from proxy.relay.hub import Hub

class Fails(Interceptor):
    @asynccontextmanager
    async def lifespan(self):
        raise ValueError("no key")
        yield

class Exits(Interceptor):
    @asynccontextmanager
    async def lifespan(self):
        sys.exit("no key")
        yield

class Hangs(Interceptor):
    @asynccontextmanager
    async def lifespan(self):
        import trio
        print("entering", file=sys.stderr, flush=True)
        await trio.sleep_forever()
        yield

class IsSlow(Hangs):
    def __init__(self):
        generations._ENTER_S = 0.2

class Quotes(Interceptor):
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @asynccontextmanager
    async def lifespan(self):
        raise ValueError(f"cannot connect to {self.dsn}")
        yield

class EndsHub(Interceptor):
    def __init__(self):
        async def run(self):
            raise RuntimeError("a defect")
        Hub.run = run
"""

CASES: dict[int, list[tuple[str, dict[str, Any]]]] = {
    0: [
        ("sigterm", {"signal": signal.SIGTERM}),
        ("sigint-workers", {"signal": signal.SIGINT, "workers": 2}),
    ],
    1: [("hub", {"use": "EndsHub", "event": "hub_died"})],
    2: [("usage", {"config": "nonsense: 1"})],
    3: [
        ("port", {"taken": True, "event": "start_failed", "errors": "--bind: cannot listen on "}),
        (
            "port-workers",
            {
                "taken": True,
                "workers": 2,
                "event": "start_failed",
                "errors": "--bind: cannot listen on ",
            },
        ),
        ("lifespan", {"use": "Fails", "event": "start_failed", "errors": "interceptors[0]: "}),
        (
            "slow",
            {
                "use": "IsSlow",
                "event": "start_failed",
                "errors": "interceptors: their lifespans were not entered within",
            },
        ),
        (
            "lifespan-exits",
            {
                "use": "Exits",
                "event": "start_failed",
                "errors": "interceptors[0]: the lifespan of 'own' failed",
            },
        ),
        (
            "lifespan-workers",
            {"use": "Fails", "workers": 2, "event": "start_failed", "errors": "interceptors[0]: "},
        ),
    ],
}


def test_every_documented_status_has_a_case() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page[page.index("| status | meaning |") :].split("\n\n")[0]
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(
        CASES
    )


@pytest.mark.parametrize(
    ("status", "case"),
    [(status, case) for status, cases in CASES.items() for _, case in cases],
    ids=[f"{status}-{name}" for status, cases in CASES.items() for name, _ in cases],
)
async def test_exit_status(status: int, case: dict[str, Any], tmp_path: Path) -> None:
    """With its event, whose line is JSON; and nothing else on standard error but lines of JSON,
    except for wrong usage.
    """
    (tmp_path / "own.py").write_text(INTERCEPTORS)
    own = f'interceptors: [{{name: own, use: "./own.py:{case["use"]}"}}]' if "use" in case else ""
    default = "reverse_proxy: {upstreams: [{name: u, endpoints: ['http://127.0.0.1:9']}], routes: [{path: /, upstream: u}]}"
    (tmp_path / "weirpool.yaml").write_text(case.get("config", f"{default}\n{own}\n"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1] if case.get("taken") else 0
        options = ["--bind", f"127.0.0.1:{port}", "--workers", str(case.get("workers", 1))]
        async with running(
            [*WEIRPOOL, "serve", "--config", str(tmp_path / "weirpool.yaml"), *options]
        ) as process:
            if "signal" in case:
                await process.event("started", case.get("workers", 1))
                process.signal(case["signal"])
            assert await process.exit_status() == status
            if "event" in case:
                line, *_ = await process.event(case["event"])
                assert line["level"] in ("error", "critical")
                if "errors" in case:
                    (error,) = line["errors"]  # type: ignore[misc]
                    assert str(error).startswith(case["errors"])
            with trio.move_on_after(0.1):
                await trio.sleep_forever()
            if status == 2:
                assert "nonsense" in process.lines[0]
            else:
                assert all(isinstance(json.loads(text), dict) for text in process.lines)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_signal_while_it_starts_ends_it(workers: int, tmp_path: Path) -> None:
    """With status 0 and at once: there is nothing to drain."""
    (tmp_path / "own.py").write_text(INTERCEPTORS)
    (tmp_path / "weirpool.yaml").write_text(
        "reverse_proxy: {upstreams: [{name: u, endpoints: ['http://127.0.0.1:9']}], routes: [{path: /, upstream: u}]}\n"
        'interceptors: [{name: own, use: "./own.py:Hangs"}]\n'
    )
    options = ["--bind", "127.0.0.1:0", "--workers", str(workers)]
    async with running(
        [*WEIRPOOL, "serve", "--config", str(tmp_path / "weirpool.yaml"), *options]
    ) as process:
        while sum("entering" in line for line in process.lines) < workers:
            await trio.sleep(0.02)
        process.signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await process.exit_status() == 0
        assert not any("Traceback" in line for line in process.lines)


async def test_what_a_reference_gave_is_not_in_the_log_when_a_lifespan_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_DSN", "db://ann:s3cr3t@h")
    (tmp_path / "own.py").write_text(INTERCEPTORS)
    (tmp_path / "weirpool.yaml").write_text(
        "reverse_proxy: {upstreams: [{name: u, endpoints: ['http://127.0.0.1:9']}], routes: [{path: /, upstream: u}]}\n"
        'interceptors: [{name: own, use: "./own.py:Quotes", options: {dsn: "${OWN_DSN}"}}]\n'
    )
    options = ["--config", str(tmp_path / "weirpool.yaml"), "--bind", "127.0.0.1:0"]
    async with running([*WEIRPOOL, "serve", *options]) as process:
        assert await process.exit_status() == 3
        (line,) = await process.event("start_failed")
        assert line["errors"] == [
            "interceptors[0]: the lifespan of 'own' failed: ValueError: cannot connect to ${OWN_DSN}"
        ]
