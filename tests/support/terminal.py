"""A command in a real terminal, by tmux, with a server of its own."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from .process import ROOT
from .required import lacking

__all__ = ["Terminal", "open_terminal"]


class Terminal:
    """The screen and the keyboard."""

    def __init__(self, tmux: list[str]) -> None:
        self._tmux = tmux

    async def _run(self, *arguments: str) -> str:
        done = await trio.run_process([*self._tmux, *arguments], capture_stdout=True)
        return done.stdout.decode()

    async def screen(self, *, styles: bool = False) -> str:
        """What is shown; with the escape sequences of its styles."""
        return await self._run("capture-pane", "-p", *(["-e"] if styles else []))

    async def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        await self._run("send-keys", *keys)

    async def resize(self, columns: int, lines: int) -> None:
        await self._run("resize-window", "-x", str(columns), "-y", str(lines))

    async def until(self, holds: Callable[[str], bool]) -> str:
        """The screen for which this holds."""
        screen = ""
        with trio.move_on_after(60):
            while not holds(screen):
                await trio.sleep(0.1)
                screen = await self.screen()
            return screen
        raise AssertionError(f"the screen stays at:\n{screen}")

    async def is_over(self) -> bool:
        """Whether the command has ended. Waits for that."""
        with trio.move_on_after(30):
            while True:
                done = await trio.run_process(
                    [*self._tmux, "list-sessions"],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
                if done.returncode:
                    return True
                await trio.sleep(0.1)
        return False


@asynccontextmanager
async def open_terminal(
    command: list[str], directory: Path, env: dict[str, str] | None = None
) -> AsyncIterator[Terminal]:
    """Run a command in a terminal of 80 columns and 24 lines."""
    if shutil.which("tmux") is None:
        lacking("tmux", "WEIRPOOL_REQUIRE_TMUX")
    tmux = ["tmux", "-S", str(directory / "tmux"), "-f", "/dev/null"]
    set_ = [f"{name}={value}" for name, value in {"PYTHONPATH": str(ROOT), **(env or {})}.items()]
    unset = ["-u", "NO_COLOR", "-u", "COLUMNS", "-u", "LINES"]  # pytest sets the last two
    line = shlex.join(["env", *unset, "LC_ALL=C.UTF-8", *set_, *command])
    start = [*tmux, "-u", "new-session", "-d", "-x", "80", "-y", "24", "-c", str(ROOT), line]
    await trio.run_process(start)
    try:
        yield Terminal(tmux)
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True)
