"""The log of a running process: it cannot stop the process, and every line of it is whole."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.process import ROOT, WEIRPOOL

HYPERCORN = [sys.executable, "-m", "hypercorn", "--worker-class", "trio", "--graceful-timeout", "2"]
EVENT = b"data: tick\n\n"
NOISY = """
import logging, sys, threading, warnings
from interceptors import Interceptor

class Unraisable:
    def __del__(self):
        raise ValueError("in a finaliser")

def fail():
    raise ValueError("in a thread")

class Noisy(Interceptor):
    async def on_request(self, request):
        logging.getLogger("a.library").error("from %s\\nlogging", "a library")
        try:
            raise ValueError("caught")
        except ValueError:
            logging.getLogger("a.library").warning("with a traceback", exc_info=True)
        logging.getLogger("a.library").warning("wrong arguments %d", "x")
        warnings.warn("a warning", UserWarning)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        Unraisable()
        print("printed", file=sys.stderr)
        request.log.warning("odd values", half="\\ud800", number=float("nan"), object=object(), tuple={(1, 2): 3})
"""


class Upstream:
    """Answers `/live` with an endless event stream and all else with `ok`, from threads."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while head := sock.recv(65536):
                if head.startswith(b"GET /live"):
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                    while True:
                        sock.sendall(EVENT)
                        time.sleep(0.02)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.sock.close()


@pytest.fixture
def config(upstream: Upstream, tmp_path: Path) -> Path:
    (tmp_path / "noisy.py").write_text(NOISY)
    path = tmp_path / "weirpool.yaml"
    path.write_text(
        f"""
reverse_proxy:
  upstreams: [{{name: u, endpoints: ["http://127.0.0.1:{upstream.port}"]}}]
  routes:
    - {{path: /, upstream: u}}
    - {{path: /noisy, upstream: u, interceptors: [noisy]}}
interceptors: [{{name: noisy, use: "./noisy.py:Noisy"}}]
drain: {{timeout: 0.2}}
"""
    )
    return path


KINDS = ["serve", "workers", "hypercorn"]


def fill(fd: int) -> None:
    """Write to a pipe until it is full."""
    os.set_blocking(fd, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(fd, b"x" * 4096)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def command(kind: str, config: Path, port: int) -> list[str]:
    if kind == "hypercorn":
        return [*HYPERCORN, "--bind", f"127.0.0.1:{port}", "proxy:create_app()"]
    workers = ["--workers", "2"] if kind == "workers" else []
    return [*WEIRPOOL, "serve", "--config", str(config), "--bind", f"127.0.0.1:{port}", *workers]


@contextmanager
def serving(
    kind: str, config: Path, stderr: Any, **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The proxy as a process, once it answers."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WEIRPOOL_CONFIG": str(config)}
    process = subprocess.Popen(
        command(kind, config, port),
        stderr=stderr,
        cwd=config.parent,
        env=environment,
        start_new_session=True,
        **options,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                get(port)
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield process, port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.settimeout(10)
    return sock


def ask(sock: socket.socket, path: str = "/", extra: str = "") -> bytes:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n{extra}\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data or (b"200" in data[:16] and not data.endswith(b"ok")):
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return data


def get(port: int, path: str = "/", extra: str = "") -> bytes:
    with connect(port) as sock:
        return ask(sock, path, extra)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_never_reads_and_then_closes_ends_nothing(kind: str, config: Path) -> None:
    """The pipe is full from the first line on; later each write is EPIPE."""
    reader, writer = os.pipe()
    fill(writer)
    os.set_blocking(writer, True)
    with serving(kind, config, writer) as (process, port), connect(port) as live:
        os.close(writer)
        live.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b" 200 " in live.recv(65536)
        for _ in range(2):
            with connect(port) as kept:
                for _ in range(20):
                    assert ask(kept).endswith(b"ok")
            for _ in range(4):  # with several workers each of them answers some
                assert get(port).endswith(b"ok")
            for _ in range(3):
                assert b"tick" in live.recv(65536)
            if reader >= 0:
                os.close(reader)
                reader = -1
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_a_file_that_may_not_grow_ends_nothing_and_its_lines_are_counted(
    config: Path, tmp_path: Path
) -> None:
    """EFBIG; when the file has room again, one line has the count, and every line is whole."""
    path = tmp_path / "log"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    with (
        path.open("ab") as file,
        serving("serve", config, file, preexec_fn=limit) as (process, port),
    ):
        with connect(port) as kept:
            for _ in range(20):
                assert ask(kept).endswith(b"ok")
            until_dropped(port)
            resource.prlimit(
                process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            ask(kept)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (dropped,) = [line for line in lines if line["event"] == "lines_dropped"]
    exchanges = sum(line["event"] == "exchange" for line in lines)
    assert dropped["count"] + exchanges == 22  # the first request is that of `serving`
    assert "drain" in [line["event"] for line in lines]


def until_dropped(port: int) -> None:
    """The writer's thread has met the file's limit."""
    deadline = time.monotonic() + 20
    while not re.search(rb"weirpool_log_lines_dropped_total [1-9]", get_page(port)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def get_page(port: int) -> bytes:
    with connect(port) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_no_standard_error_ends_nothing(config: Path) -> None:
    """Its descriptor may then belong to any other file of the process, which gets no line."""
    with serving("serve", config, subprocess.DEVNULL, preexec_fn=lambda: os.close(2)) as (
        process,
        port,
    ):
        for _ in range(5):
            assert get(port).endswith(b"ok")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


@pytest.mark.parametrize("kind", ["workers", "hypercorn"])
def test_every_line_is_json(kind: str, config: Path, tmp_path: Path) -> None:
    """Records of `logging`, warnings, threads, finalisers, what is printed."""
    path = tmp_path / "log"
    with path.open("ab") as file, serving(kind, config, file) as (process, port):
        get(port, "/noisy")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    events = {line["event"]: line for line in lines}
    assert (
        events["from a library\nlogging"] | {"level": "error", "logger": "a.library"}
        == events["from a library\nlogging"]
    )
    assert "ValueError: caught" in events["with a traceback"]["exception"]
    assert events["wrong arguments %d"]["level"] == "warning"
    assert events["a warning"]["category"] == "UserWarning"
    assert "ValueError: in a thread" in events["thread_failed"]["exception"]
    assert "ValueError: in a finaliser" in events["unraisable_exception"]["exception"]
    assert events["printed"]["logger"] == "stderr"
    assert events["odd values"]["half"] == "\ud800"
    assert all(line["level"] and line["timestamp"] for line in lines)
    if kind == "hypercorn":
        assert any(line.get("logger") == "hypercorn.error" for line in lines)
