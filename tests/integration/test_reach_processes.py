"""Log events and parts of the command line that no other test reaches, from the standard error of
processes.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from support.client import fetch
from support.process import WEIRPOOL, port_of, running, serve
from support.upstream import open_upstream, stream_of

from interceptors.loader import load_interceptor
from interceptors.testing import NothingCalled, run_chain
from proxy.commands.cli import main

OWN = """
from interceptors import Interceptor

class Odd(Interceptor):
    async def on_request(self, request):
        request.log.warning("odd", number=10**5000)  # cannot be written in decimal digits

"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /, upstream: up, dialect: openai, interceptors: [odd, guard, audit]}]
interceptors:
  - {name: odd, use: "./own.py:Odd"}
  - {name: guard, use: guard, options: {patterns: [secret]}}
  - {name: audit, use: audit, options: {path: /dev/full}}
drain: {timeout: 1}
log: {level: debug}
"""
ANSWER = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a secret"}}]}\n\n'
SERVED = ("server", "guard_stopped", "log_failed", "lines_dropped")
AT_THE_END = ("lines_lost",)


async def test_events_of_a_process_that_serves(tmp_path: Path) -> None:
    """A guard that stops, the server's own words at debug level (`log.level`), a line that
    cannot be written in any form, an audit on a full disk, and what of it is lost at the end."""
    (tmp_path / "own.py").write_text(OWN)
    async with open_upstream(stream_of(ANSWER)) as up:
        (tmp_path / "weirpool.yaml").write_text(CONFIG % up.url)
        command = serve("--config", str(tmp_path / "weirpool.yaml"))
        async with running(command) as process:
            await fetch(await port_of(process), "/v1/chat/completions")
            for event in SERVED:
                await process.event(event)
            process.signal(signal.SIGTERM)
            for event in AT_THE_END:
                await process.event(event)
            assert await process.exit_status() == 0


async def test_the_log_is_for_a_terminal(tmp_path: Path) -> None:
    """`log.format: console`: no line is JSON."""
    text = CONFIG.replace("log: {level: debug}", "log: {format: console}")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "weirpool.yaml").write_text(text % "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [*WEIRPOOL, "serve", "--config", str(tmp_path / "weirpool.yaml"), "--bind", bind]
        async with running(command) as process:
            assert await process.exit_status() == 3
            await trio.testing.wait_all_tasks_blocked()
    text = "\n".join(process.lines)
    assert "[error    ] start_failed" in text
    assert "{" not in text


COMMANDS = {
    "weirpool --version": (["--version"], 0, "weirpool "),
    "schema": (["schema"], 0, '"$schema": "https://json-schema.org/draft/2020-12/schema"'),
    "schema --markdown": (["schema", "--markdown"], 0, "# Configuration"),
    "schema --log": (["schema", "--log"], 0, "A line of Weirpool's log"),
    "bench SCENARIO": (
        ["bench", "no such scenario"],
        2,
        "weirpool: unknown scenario; must be one of ",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints, and its status."""
    arguments, status, printed = COMMANDS[name]
    try:
        returned = main(arguments)
    except SystemExit as end:
        returned = int(end.code or 0)
    done = capsys.readouterr()
    assert returned == status
    assert printed in done.out + done.err


def test_a_run_that_shows_nothing(tmp_path: Path) -> None:
    """`NothingCalled` is what the author of a test is warned with, when no hook was called."""
    (tmp_path / "quiet.py").write_text(
        "from interceptors import Interceptor, StreamInterceptor\n\n"
        "class Quiet(Interceptor):\n    def open_stream(self, context):\n        return None\n"
    )
    quiet = load_interceptor(f"{tmp_path / 'quiet.py'}:Quiet", {})
    with pytest.warns(NothingCalled):
        run_chain([quiet], [b""])
