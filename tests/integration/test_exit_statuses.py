"""The exit statuses of docs/operations.md and their events, from outside: each row of its table."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from support.client import fetch
from support.process import ROOT, WEIRPOOL, free_port, running

INTERCEPTORS = """
import sys
from contextlib import asynccontextmanager
import trio
from interceptors import Interceptor
from proxy.worker import generations
from proxy.hub.hub import Hub

class Own(Interceptor):
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

class Fails(Own):
    @asynccontextmanager
    async def lifespan(self):
        raise ValueError(f"cannot connect to {self.dsn}")
        yield

class FailsLater(Own):
    @asynccontextmanager
    async def lifespan(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fail)
            yield
            nursery.cancel_scope.cancel()

    async def fail(self):
        await trio.sleep(0.2)
        raise OSError("lost")

class Exits(Own):
    @asynccontextmanager
    async def lifespan(self):
        sys.exit("no key")
        yield

class Hangs(Own):
    @asynccontextmanager
    async def lifespan(self):
        print('{"event": "entering"}', file=sys.stderr, flush=True)
        await trio.sleep_forever()
        yield

class IsSlow(Hangs):
    def __init__(self, dsn: str) -> None:
        generations._ENTER_S = 0.2

class EndsHub(Own):
    def __init__(self, dsn: str) -> None:
        async def run(self):
            raise RuntimeError("a defect")
        Hub.run = run

class Fatal(BaseException):
    pass

class Dies(Own):
    made = 0

    def __init__(self, dsn: str) -> None:
        Dies.made += 1
        if Dies.made > 1:  # the first one is made for the check of the configuration
            raise Fatal("a defect")
"""
PLAIN = """
reverse_proxy: {upstreams: [{name: u, endpoints: ['http://127.0.0.1:9']}], routes: [{path: /, upstream: u}]}
"""
CONFIG = f"""{PLAIN}
interceptors: [{{name: own, use: "./own.py:%s", options: {{dsn: "${{OWN_DSN}}"}}}}]
"""
TAKEN = "--bind: cannot listen on "
FAILED = "interceptors[0]: the lifespan of 'own' failed: "
# A reference is in the log as the file has it.
QUOTED = FAILED + "ValueError: cannot connect to ${OWN_DSN}"

CASES = [
    # status, workers, interceptor or what else is the case, its log event, part of that line
    (0, 1, "SIGTERM", "started", ""),
    (0, 2, "SIGINT", "started", ""),
    (0, 1, "Hangs", "entering", ""),
    (0, 2, "Hangs", "entering", ""),
    (1, 1, "EndsHub", "hub_died", "critical"),
    (1, 1, "FailsLater", "lifespan_failed", "OSError: lost"),
    (1, 1, "Dies", "process_failed", "Fatal"),
    (2, 1, "wrong usage", "", ""),
    (3, 1, "taken port", "start_failed", TAKEN),
    (3, 2, "taken port", "start_failed", TAKEN),
    (3, 1, "Fails", "start_failed", QUOTED),
    (3, 2, "Fails", "start_failed", QUOTED),
    (3, 1, "Exits", "start_failed", FAILED),
    (3, 1, "IsSlow", "start_failed", "interceptors: their lifespans were not entered within"),
]


def test_every_documented_status_has_a_case() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page[page.index("| status | meaning |") :].split("\n\n")[0]
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert documented == {status for status, *_ in CASES}


@pytest.mark.parametrize(("status", "workers", "case", "event", "part"), CASES)
async def test_exit_status(
    status: int,
    workers: int,
    case: str,
    event: str,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing but lines of JSON is on standard error, except for wrong usage. A signal ends a
    process with status 0, also while a lifespan is entered.
    """
    monkeypatch.setenv("OWN_DSN", "db://ann:s3cr3t@h")
    (tmp_path / "own.py").write_text(INTERCEPTORS)
    text = CONFIG % case if f"class {case}(" in INTERCEPTORS else CONFIG % "Own"
    (tmp_path / "weirpool.yaml").write_text("nonsense: 1" if case == "wrong usage" else text)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1] if case == "taken port" else 0
        options = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
        command = [*WEIRPOOL, "serve", "--config", str(tmp_path / "weirpool.yaml"), *options]
        async with running(command) as process:
            if status == 0:
                await process.event(event, workers)
                process.signal(signal.SIGINT if case == "SIGINT" else signal.SIGTERM)
            assert await process.exit_status() == status
            if event:
                line, *_ = await process.event(event)
                assert part in str(line)
                assert status == 0 or line["level"] in ("error", "critical")
                assert event != "start_failed" or len(line["errors"]) == 1  # type: ignore[arg-type]
            await trio.sleep(0.1)
            if status == 2:
                assert "nonsense" in process.lines[0]
            else:
                assert all(isinstance(json.loads(text), dict) for text in process.lines)
            assert "s3cr3t" not in "".join(process.lines)


async def test_closed_standard_files(tmp_path: Path) -> None:
    """As some supervisors start a service: no socket gets their numbers, and the exit status is that
    of a drain.
    """
    port = free_port()
    (tmp_path / "weirpool.yaml").write_text(f"admin: {{port: {port}}}\n{PLAIN}")
    options = ["--config", str(tmp_path / "weirpool.yaml"), "--bind", "127.0.0.1:0"]
    serve = [*WEIRPOOL, "serve", *options, "--workers", "2"]
    async with running(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *serve]) as process:
        with trio.fail_after(20):
            while True:
                with suppress(OSError):
                    if (await fetch(port, "/readyz")).status == 200:
                        break
                await trio.sleep(0.05)
        files = Path(f"/proc/{process.process.pid}/fd")
        assert {os.readlink(files / str(fd)) for fd in range(3)} == {os.devnull}
        await process.stop()


async def test_a_worker_that_hangs_is_killed(tmp_path: Path) -> None:
    """Here by the second signal; after one signal, when the time of the drain is over."""
    (tmp_path / "weirpool.yaml").write_text(PLAIN)
    options = ["--config", str(tmp_path / "weirpool.yaml"), "--bind", "127.0.0.1:0"]
    async with running([*WEIRPOOL, "serve", *options, "--workers", "2"]) as process:
        _, line = await process.event("started", 2)
        os.kill(int(str(line["pid"])), signal.SIGSTOP)
        process.signal(signal.SIGTERM)
        await trio.sleep(1.2)
        process.signal(signal.SIGTERM)
        assert await process.exit_status() == 1
        killed = await process.event("worker_killed")
    assert [item["pid"] for item in killed] == [line["pid"]]
