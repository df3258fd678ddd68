"""`weirpool serve` under a service manager: sockets that it passes, messages that it gets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing
from support.client import fetch, open_client
from support.process import WEIRPOOL, free_port, running
from support.required import lacking
from support.systemd import open_manager
from support.upstream import Peer, open_upstream

CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [{path: /, upstream: up}]
drain: {timeout: 5}
admin: {port: %s}
"""


async def script(peer: Peer) -> None:
    """`/open`: one event, and no end; else a short answer."""
    while True:
        request = await peer.request()
        if request.target == b"/open":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
            await trio.sleep_forever()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=4096)


def write_config(directory: Path, url: str, admin: object = "null") -> str:
    file = directory / "weirpool.yaml"
    file.write_text(CONFIG % (url, admin))
    return str(file)


class Clients:
    """Connect and ask without a pause, each time on a new connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            try:
                answer = await fetch(self._port, "/")
                self.seen[f"{answer.status} {answer.body.decode()}"] += 1
            except (OSError, EOFError, trio.BrokenResourceError) as error:
                self.seen[repr(error)] += 1

    async def more(self, count: int = 50) -> None:
        """Return when so many further answers are there."""
        enough = self.seen.total() + count
        with trio.fail_after(30):
            while self.seen.total() < enough:
                await trio.sleep(0.01)


def is_ready(message: dict[str, str]) -> bool:
    return message.get("READY") == "1"


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_connection_is_refused_while_the_service_restarts(
    workers: int, tmp_path: Path
) -> None:
    """The sockets outlive each process. Then a second service takes over before the first one ends,
    with an open stream.
    """
    sockets = {"http": listener(), "weirpool.socket": listener(), "admin": listener()}
    async with (
        open_upstream(script) as upstream,
        open_manager(sockets, tmp_path / "notify") as systemd,
    ):
        file = write_config(tmp_path, upstream.url, systemd.port("admin"))
        options = ("--config", file, "--workers", str(workers))
        clients = [Clients(systemd.port(name)) for name in ("http", "weirpool.socket")]
        async with trio.open_nursery() as nursery:
            stop_clients = nursery.cancel_scope
            for client in clients * 4:
                nursery.start_soon(client.run)  # before anything runs
            at = 0
            for _ in range(2):
                async with systemd.start(*options) as process:
                    at = await systemd.until(is_ready, at)
                    for client in clients:
                        await client.more()
                    assert (await fetch(systemd.port("admin"), "/readyz")).status == 200
                    await process.stop()
            async with systemd.start(*options, "--bind", "systemd") as first:
                at = await systemd.until(is_ready, at)
                stream = await open_client(systemd.port("http"))
                await stream.send("GET", "/open")
                answer = await stream.head()
                async with systemd.start(*options) as second:
                    at = await systemd.until(is_ready, at)
                    first.signal(signal.SIGTERM)
                    for client in clients:
                        await client.more()
                    await stream.read_until(answer, b"data: 1\n\n")
                    await stream.aclose()
                    assert await first.exit_status() == 0
                    for client in clients:
                        await client.more()
                    stop_clients.cancel()
                    await second.stop()
        assert set(clients[0].seen + clients[1].seen) == {"200 ok"}


@pytest.mark.parametrize(("workers", "inbox"), [(1, "path"), (2, "abstract")])
async def test_messages(workers: int, inbox: str, tmp_path: Path) -> None:
    """What `systemctl status` and `reload` show, and the watchdog: a worker's event loop runs."""
    address = str(tmp_path / "notify") if inbox == "path" else f"\0weirpool-{os.getpid()}"
    async with (
        open_upstream(script) as upstream,
        open_manager({"http": listener()}, address) as systemd,
    ):
        file = write_config(tmp_path, upstream.url)
        watched = {"WATCHDOG_USEC": "600000"}
        async with systemd.start("--config", file, "--workers", str(workers), **watched) as process:
            at = await systemd.until(is_ready)
            assert systemd.messages[0]["READY"] == "1"
            counted = "0 streams" if workers == 1 else "0 streams, 2 of 2 workers serve"
            assert systemd.messages[0]["STATUS"] == counted
            stream = await open_client(systemd.port("http"))
            await stream.send("GET", "/open")
            await stream.head()
            at = await systemd.until(lambda message: message.get("WATCHDOG") == "1", at)
            at = await systemd.until(lambda message: "1 stream" in message.get("STATUS", ""))

            for text in ((tmp_path / "weirpool.yaml").read_text(), "nonsense: 1"):
                (tmp_path / "weirpool.yaml").write_text(text)
                process.signal(signal.SIGHUP)
                at = await systemd.until(lambda message: "RELOADING" in message, at)
                assert int(systemd.messages[at - 1]["MONOTONIC_USEC"]) > 0
                at = await systemd.until(is_ready, at)

            pids = [int(str(line["pid"])) for line in await process.event("started", workers)]
            if workers > 1:
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                await trio.sleep(1)
                before = len(systemd.messages)
                await trio.sleep(1)
                assert not any("WATCHDOG" in message for message in systemd.messages[before:])
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                at = await systemd.until(lambda message: message.get("WATCHDOG") == "1", before)

            process.signal(signal.SIGTERM)
            at = await systemd.until(lambda message: message.get("STOPPING") == "1", at)
            stopping = systemd.messages[at - 1]
            assert stopping["STATUS"] == "draining, 1 stream left"
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 5_000_000
            await stream.aclose()
            assert await process.exit_status() == 0


MISTAKES = [
    # sockets, admin.port, options, the message
    ((), "null", ["--bind", "systemd"], "--bind systemd: systemd passed no socket"),
    (("http",), "null", ["--bind", "127.0.0.1:0"], "remove --bind, or add --bind systemd"),
    (("admin",), "null", [], "set admin.port to its port"),
    (("unix",), "null", [], "file descriptor 3 (unix), which is not a TCP socket"),
    (("connected",), "null", [], "which does not listen: use Accept=no"),
]


@pytest.mark.parametrize(("names", "admin", "options", "message"), MISTAKES)
async def test_sockets_that_would_not_be_served_are_mistakes(
    names: tuple[str, ...], admin: str, options: list[str], message: str, tmp_path: Path
) -> None:
    """Status 2, which `RestartPreventExitStatus` names."""
    unix = socket.socket(socket.AF_UNIX)
    made = {"unix": unix, "connected": socket.socket()}
    sockets = {name: made.get(name) or listener() for name in names}
    async with open_manager(sockets, tmp_path / "notify") as systemd:
        file = write_config(tmp_path, "http://127.0.0.1:9", admin)
        async with systemd.start("--config", file, *options) as process:
            assert await process.exit_status() == 2
            await trio.testing.wait_all_tasks_blocked()
    for sock in made.values():
        sock.close()
    assert message in "".join(process.lines)


async def test_systemds_own_program_passes_a_socket(tmp_path: Path) -> None:
    """With the variables that systemd sets; the name is the socket unit's by default."""
    if shutil.which("systemd-socket-activate") is None:
        lacking("systemd", "WEIRPOOL_REQUIRE_SYSTEMD")
    async with open_upstream(script) as upstream:
        file, port = write_config(tmp_path, upstream.url), free_port()
        activate = [
            "systemd-socket-activate",
            "-l",
            f"127.0.0.1:{port}",
            "--fdname=weirpool.socket",
        ]
        command = [*activate, *WEIRPOOL, "serve", "--config", file, "--bind", "systemd"]
        command += ["--bind", "127.0.0.1:0"]
        async with running(command) as process:
            with trio.fail_after(30):
                while True:  # it starts the program at the first connection
                    try:
                        answer = await fetch(port, "/")
                        break
                    except OSError:
                        await trio.sleep(0.01)
            assert answer.body == b"ok"
            (started,) = await process.event("started")
            passed, own = started["bind"]  # type: ignore[misc]
            assert passed == f"127.0.0.1:{port}"
            assert (await fetch(int(str(own).rpartition(":")[2]), "/")).body == b"ok"
            await process.stop()
