"""Makes what docs/inspector.md shows: `PYTHONPATH=.:tests python tests/bench/inspector_pictures.py`.

    --to docs        the folder for inspector.png

Prints the screen of `weirpool tail --events` under tmux. Requires Chromium and tmux.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio
from PIL import Image
from support.browser import open_browser
from support.client import fetch
from support.process import ROOT, free_port, port_in, running, serve
from support.upstream import Peer, open_upstream

TOKEN = "token-of-the-pictures"
MODULE = """
from interceptors import Interceptor, StreamInterceptor

class Calm(Interceptor):
    def open_stream(self, context):
        return CalmStream()

class CalmStream(StreamInterceptor):
    def on_event(self, event):
        if "keepalive" in event.data:
            return None
        return event.replace(event.data.replace("!", ".")) if "!" in event.data else event
"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /v1, upstream: up, dialect: openai, interceptors: [redact, calm]}]
interceptors:
  - {name: redact, use: redact, options: {patterns: ["[A-Z][a-z]+ \\\\d{4}"]}}
  - {name: calm, use: "./calm.py:Calm"}
admin: {port: %d, inspect: true, token: token-of-the-pictures}
"""
TEXTS = ["Your", " booking", " Opal 7731", " is", " confirmed!", None, " Anything", " else?"]


def chunk(delta: dict[str, Any], **more: Any) -> bytes:
    data = {"model": "m-1", "choices": [{"index": 0, "delta": delta, **more}]}
    return b"data: %s\n\n" % json.dumps(data).encode()


async def script(peer: Peer) -> None:
    while True:
        await peer.request()
        await trio.sleep(0.3)
        await peer.start_stream()
        for text in TEXTS:
            await trio.sleep(0.12)
            await peer.chunk(b"data: keepalive\n\n" if text is None else chunk({"content": text}))
        await peer.chunk(chunk({}, finish_reason="stop"))
        usage = {"prompt_tokens": 31, "completion_tokens": 9}
        data = {"model": "m-1", "choices": [], "usage": usage}
        await peer.chunk(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(data).encode())
        await peer.end()


async def main(to: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        async with open_upstream(script) as upstream, open_browser(directory) as browser:
            admin = free_port()
            (directory / "calm.py").write_text(MODULE)
            (directory / "weirpool.yaml").write_text(CONFIG % (upstream.url, admin))
            async with running(serve("--config", str(directory / "weirpool.yaml"))) as process:
                port = port_in((await process.event("started"))[0])
                url = f"http://127.0.0.1:{admin}"
                page = await browser.new_page()
                await page.look(width=1360, height=1000)
                await page.open(url + "/inspect")
                await page.run(f"sessionStorage.setItem('weirpool-token', '{TOKEN}')")
                await page.open(url + "/inspect")
                await page.until("!document.querySelector('#data').hidden")
                await page.run("document.querySelector('#next button').click()")
                await trio.sleep(0.5)
                await fetch(port, "/v1/chat/completions", method="POST", body=b"{}")
                await page.until("document.querySelector('#connection').dataset.state === 'still'")
                await page.run("document.querySelector('#events .scroll').scrollTop = 0")
                picture = Image.open(io.BytesIO(await page.picture())).convert("RGB")
                small = picture.quantize(128, dither=Image.Dither.NONE)
                small.save(to / "inspector.png", optimize=True)
                print(
                    f"inspector.png: {(to / 'inspector.png').stat().st_size} bytes", page.problems
                )
                print(await screen_of_tail(url, port))


async def screen_of_tail(url: str, port: int) -> str:
    """The screen of a terminal after one stream."""
    socket = ["tmux", "-L", f"weirpool-{port}"]
    command = f"env PYTHONPATH={ROOT} {sys.executable} -P -m proxy tail --url {url} --token {TOKEN} --events"
    await trio.run_process([*socket, "new-session", "-d", "-x", "120", "-y", "30", command])
    try:
        await trio.sleep(4)
        await fetch(port, "/v1/chat/completions", method="POST", body=b"{}")
        await trio.sleep(0.5)
        done = await trio.run_process([*socket, "capture-pane", "-p"], capture_stdout=True)
        return done.stdout.decode().rstrip()
    finally:
        with trio.CancelScope(shield=True):
            await trio.run_process([*socket, "kill-server"], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("docs"))
    trio.run(main, parser.parse_args().to)
