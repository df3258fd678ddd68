"""Headless Chromium over the DevTools protocol: pages that tests open, look at and photograph.

The protocol's pipe needs no WebSocket: JSON messages, each ended by a zero byte, on file descriptors
3 and 4 of the browser (`--remote-debugging-pipe`).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import trio

from .required import lacking
from .tables import words

__all__ = ["FLAGS", "Browser", "Page", "find_browser", "open_browser"]

FLAGS = words("""
    --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-breakpad
    --disable-quic --no-proxy-server --disable-background-networking --disable-component-update
    --disable-sync --disable-default-apps --disable-extensions --password-store=basic
""")


def find_browser() -> str:
    """The browser's path. Skips the test without one."""
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return next(found, None) or lacking("Chromium", "WEIRPOOL_REQUIRE_CHROMIUM")


class Page:
    """One tab. `problems`: errors of the console, of scripts and of the network."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.problems: list[str] = []
        self.ignore_network = False

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.call(method, session=self._session, **params)

    async def run(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str, deadline_s: float = 20) -> Any:
        """The value of an expression, once it is true."""
        value = None
        with trio.move_on_after(deadline_s):
            while not (value := await self.run(script)):
                await trio.sleep(0.05)
        assert value, f"not true in {deadline_s} s: {script}\n{self.problems}"
        return value

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def look(self, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """The size of the window, and the colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def key(self, key: str, text: str = "") -> None:
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13}
        more = {"windowsVirtualKeyCode": codes.get(key, 0), "text": text}
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **more)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    async def picture(self) -> bytes:
        """A PNG of the window."""
        answer = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    def note(self, event: dict[str, Any]) -> None:
        method, params = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            is_ignored = self.ignore_network and entry["source"] == "network"
            if entry["level"] in ("error", "warning") and not is_ignored:
                self.problems.append(json.dumps(entry))


class Browser:
    """A running browser."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream
        self._numbers = count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._lock = trio.Lock()

    async def read(self) -> None:
        rest = b""
        while data := await self._stream.receive_some(65536):
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.pop(message["id"]).send_nowait(message)
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].note(message)

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        message: dict[str, Any] = {"id": next(self._numbers), "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[message["id"]] = send
        async with self._lock:
            await self._stream.send_all(json.dumps(message).encode() + b"\0")
        with trio.fail_after(60):
            answer = await receive.receive()
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    async def new_page(self) -> Page:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        return page


@asynccontextmanager
async def open_browser(directory: Path) -> AsyncIterator[Browser]:
    """Start a browser with its profile in a directory. Skips the test without Chromium."""
    path = find_browser()
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    script = (
        f"import os, sys; pair = os.dup({their_in}), os.dup({their_out})\n"
        "os.dup2(pair[0], 3); os.dup2(pair[1], 4)\n"
        "os.set_inheritable(3, True); os.set_inheritable(4, True); os.execv(sys.argv[1], sys.argv[1:])"
    )
    flags = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={directory}/profile"]
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-ISc", script, path, *flags, "about:blank"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(their_in)
        os.close(their_out)
    stream = trio.StapledStream(trio.lowlevel.FdStream(our_out), trio.lowlevel.FdStream(our_in))
    try:
        async with stream, trio.open_nursery() as nursery:
            browser = Browser(stream)
            nursery.start_soon(browser.read)
            yield browser
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
