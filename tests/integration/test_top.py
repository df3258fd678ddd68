"""`weirpool top` against a proxy with streams: in a terminal, and as text."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from support.client import open_client
from support.process import ROOT, WEIRPOOL, Done, free_port, run_command, running, serve
from support.terminal import open_terminal
from support.upstream import Peer, open_upstream

CONFIG = """
reverse_proxy:
  upstreams: [{name: llm, endpoints: ["%s"]}]
  routes:
    - {path: /v1, upstream: llm, dialect: openai, interceptors: [redact-keys]}
    - {path: /mcp, upstream: llm}
interceptors: [{name: redact-keys, use: redact, options: {patterns: ["sk-[a-z]{20}"]}}]
admin: {port: %d, prefix: /-, token: "${TOKEN}"}
drain: {timeout: 1}
"""
TOKEN = "a-token-of-26-characters!!"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'


async def script(peer: Peer) -> None:
    """An event ten times a second."""
    await peer.request()
    await peer.start_stream()
    while True:
        await peer.chunk(EVENT)
        await trio.sleep(0.1)


def top(*options: str, **env: str) -> Done:
    """The command, where no terminal is."""
    return run_command("top", *options, env=env)


async def test_live_streams_in_a_terminal_and_as_text(tmp_path: Path) -> None:
    """The values move, a filter selects, a proxy that restarts is found again, `q` ends it."""
    file, port, admin = tmp_path / "weirpool.yaml", free_port(), free_port()
    async with open_upstream(script) as upstream, trio.open_nursery() as nursery:
        file.write_text(CONFIG % (upstream.url, admin))
        command = serve("--config", str(file), "--workers", "2")
        command[command.index("127.0.0.1:0")] = f"127.0.0.1:{port}"

        async def stream(path: str) -> None:
            client = await open_client(port)
            await client.send("POST", path, [("Accept", "text/event-stream")], b'{"stream": true}')
            await client.rest(await client.head())
            await client.aclose()

        url = f"http://127.0.0.1:{admin}/-"
        shown = [*WEIRPOOL, "top", "--url", url, "--interval", "1.5"]
        async with (
            running(command, env={"TOKEN": TOKEN}) as process,
            open_terminal(shown, tmp_path, {"WEIRPOOL_ADMIN_TOKEN": TOKEN}) as terminal,
        ):
            await process.event("started", 2)
            for path in ("/v1/chat/completions", "/v1/chat/completions", "/mcp"):
                nursery.start_soon(stream, path)
            screen = await terminal.until(lambda text: "events/s 2" in text or "events/s 1" in text)
            screen = await terminal.until(lambda text: text.count("relay") == 3 and "█" in text)
            lines = screen.splitlines()
            assert len(lines) == 24
            assert "2 of 2 workers" in lines[0]
            assert lines[-1].split() == [
                "tab",
                "Page",
                "q",
                "Quit",
                "/",
                "Filter",
                "s",
                "Sort",
                "r",
                "Reverse",
                "f",
                "Follow",
                "space",
                "Pause",
            ]
            await terminal.press("/mcp", "Enter")
            await terminal.until(lambda text: text.count("relay") == 1)
            await terminal.press("Escape")  # alone: with another key it would be Alt and that key
            await terminal.until(lambda text: text.count("relay") == 3)
            await terminal.press("4")
            screen = await terminal.until(lambda text: "redact-keys" in text)
            assert "PER EVENT" in screen
            await terminal.resize(170, 40)
            screen = await terminal.until(lambda text: "Workers" in text and "Limits" in text)
            assert any(len(line) > 160 for line in screen.splitlines())

            token = await trio.to_thread.run_sync(
                lambda: top("--once", "--url", url, "--token", TOKEN)
            )
            assert (token.returncode, token.stderr) == (0, "")
            assert token.stdout.count("relay") == 3
            assert f"llm       {upstream.url}  up           3" in token.stdout
            refused = await trio.to_thread.run_sync(lambda: top("--once", "--url", url))
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "the proxy requires a token: use --token" in refused.stderr

            await process.stop()
            await terminal.until(
                lambda text: "not connected" in text and "Connection refused" in text
            )
            async with running(command, env={"TOKEN": TOKEN}):
                await terminal.until(lambda text: " live " in text[:80])
                await terminal.press("q")
                assert await terminal.is_over()


async def test_without_colour_no_colour_is_written(tmp_path: Path) -> None:
    """NO_COLOR. The proxy is not there, which the screen says."""
    command = [*WEIRPOOL, "top", "--url", f"http://127.0.0.1:{free_port()}"]
    async with open_terminal(command, tmp_path, {"NO_COLOR": "1"}) as terminal:
        await terminal.until(lambda text: "Connection refused; next attempt in" in text)
        styled = await terminal.screen(styles=True)
        assert "[38;" not in styled
        assert "[48;" not in styled
        await terminal.press("C-c")
        assert await terminal.is_over()


@contextmanager
def plain_server() -> Iterator[int]:
    """A server without TLS."""

    def serve() -> None:
        connection, _ = sock.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=serve)
        thread.start()
        yield sock.getsockname()[1]
        thread.join()


WITHOUT = """
import sys
sys.modules["textual"] = None
sys.stdin.isatty = sys.stderr.isatty = lambda: True
from proxy.commands.cli import main
sys.exit(main(["top"]))
"""


def test_mistakes_are_named(tmp_path: Path) -> None:
    """A wrong address, no terminal, no package. ASCII where the encoding has no other characters."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = top("--once", "--url", nowhere)
    assert (done.returncode, done.stderr) == (1, f"weirpool: {nowhere}: Connection refused\n")
    with plain_server() as port:
        done = top("--once", "--url", f"https://127.0.0.1:{port}")
    assert (done.returncode, done.stderr.split(": ", 2)[2][:12]) == (1, "TLS failed: ")
    done = top("--url", "ftp://h")
    assert (done.returncode, done.stderr) == (
        2,
        "weirpool: --url: 'ftp://h' is not a URL such as http://127.0.0.1:9000\n",
    )
    done = top()
    assert (done.returncode, done.stderr) == (
        2,
        "weirpool: top needs a terminal: use --once for text\n",
    )
    assert top("--interval", "0.1").returncode == 2
    command = [sys.executable, "-c", WITHOUT]
    without = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert without.returncode == 2
    assert (
        without.stderr
        == 'weirpool: top needs the package textual: pip install "weirpool[top]", or use --once\n'
    )
