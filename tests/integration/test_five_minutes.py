"""The quick start of docs/interceptors.md: its files and three commands run an interceptor."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio
from support.client import fetch
from support.pages import ROOT, blocks_of, files_of

PAGE = "docs/interceptors.md"


class Command:
    """A command of the page, run in a directory, and its output."""

    def __init__(self, words: list[str], directory: Path) -> None:
        assert words[0] == "weirpool"
        self._words = [sys.executable, "-m", "proxy", *words[1:]]
        self._directory = directory
        self._printed = ""
        self._more = trio.Event()

    async def run(self) -> None:
        """Run until cancelled, which ends the process."""
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(
                    trio.run_process,
                    self._words,
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    check=False,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                )
            )
            async for data in process.stdout:
                self._printed += data.decode(errors="replace")
                self._more.set()
                self._more = trio.Event()

    async def says(self, pattern: str) -> str:
        """Wait for output that matches; returns the pattern's group."""
        with trio.move_on_after(60):
            while True:
                if match := re.search(pattern, self._printed):
                    return match[1]
                await self._more.wait()
        raise AssertionError(f"{self._words} did not say {pattern!r}, but:\n{self._printed}")


async def test_the_page_s_files_and_commands_put_an_interceptor_to_work(tmp_path: Path) -> None:
    """As written, except for the ports. The interceptor changes each event but the last."""
    assert files_of(PAGE, tmp_path) == ["shout.py", "weirpool.yaml", "looked.py"]
    block = next(block for block in blocks_of(PAGE) if block.language == "sh")
    demo_line, serve_line, curl_line = block.text.splitlines()
    assert demo_line == "weirpool demo"
    assert "--bind 127.0.0.1:8001" in serve_line
    target = re.fullmatch(r"curl -N http://127\.0\.0\.1:8001(/.*)", curl_line)
    assert target
    async with trio.open_nursery() as nursery:
        demo = Command([*shlex.split(demo_line), "--port", "0"], tmp_path)
        nursery.start_soon(demo.run)
        demo_port = await demo.says(r"<- http://127\.0\.0\.1:(\d+)/")
        config = tmp_path / "weirpool.yaml"
        assert "127.0.0.1:8000" in config.read_text()
        config.write_text(config.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{demo_port}"))
        serve = Command(shlex.split(serve_line.replace("8001", "0")), tmp_path)
        nursery.start_soon(serve.run)
        port = await serve.says(r'"bind": ?\["127\.0\.0\.1:(\d+)"\]')
        with trio.fail_after(60):
            answer = await fetch(int(port), target[1])
        nursery.cancel_scope.cancel()
    assert answer.complete
    *events, last, rest = answer.body.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    text = "".join(
        json.loads(event.removeprefix("data: "))["choices"][0]["delta"]["content"]
        for event in events
    )
    assert text.startswith("A WEIR LETS THE RIVER RUN AND STILL HAS A SAY IN IT")
