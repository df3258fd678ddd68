"""Resource exhaustion against `weirpool serve` in its own process: descriptors, memory,
statuses, ejected endpoints.

    PYTHONPATH=.:tests .venv/bin/python tests/bench/exhaustion.py

Each case prints one line: what was tried, what the clients got, the most descriptors and the most
resident memory of the worker above its idle state, and how many endpoints were ejected. The exit
status is 1 where a bound of docs/security.md does not hold.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from support.process import ROOT, WEIRPOOL, free_port

from interceptors.api_keys import hash_key
from proxy.commands.bench.processes import cpu_seconds, resident_kb

KEY = "a-key-of-a-client"
FILES = 64
MIB = 1 << 20

CONFIG = f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["http://HOST:PORT"]}}]
  routes:
    - {{path: /, upstream: up}}
    - {{path: /keyed, upstream: up, dialect: mcp, interceptors: [keys]}}
    - {{path: /wanted, upstream: up, interceptors: [keys, body], limits: {{max_request_body_bytes: 16777216}}}}
    - {{path: /policy, upstream: up, dialect: mcp, interceptors: [policy]}}
interceptors:
  - {{name: keys, use: api_keys, options: {{keys: {{ann: "{hash_key(KEY)}"}}}}}}
  - {{name: policy, use: mcp_policy, options: {{tools: {{deny: [shell]}}}}}}
  - {{name: body, use: "./body.py:Body"}}
"""
BODY = """
from interceptors import Interceptor


class Body(Interceptor):
    wants_body = True
"""


POST = "POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"


class Upstream:
    """Answers every request; an endless event stream on a path that ends with `/stream`."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), client.makefile("rb") as file:
            while line := file.readline():
                length = 0
                while field := file.readline().strip():
                    name, _, value = field.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                while length > 0 and (data := file.read(min(length, MIB))):
                    length -= len(data)
                if b"/stream " in line:
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                    while True:
                        client.sendall(b"data: {}\n\n")
                        time.sleep(0.05)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Server:
    """`weirpool serve`, with what it uses."""

    def __init__(self, directory: Path, upstream: Upstream, host: str, files: int | None) -> None:
        file = directory / "weirpool.yaml"
        file.write_text(CONFIG.replace("HOST", host).replace("PORT", str(upstream.port)))
        (directory / "body.py").write_text(BODY)
        self.port = free_port()
        self.log = directory / "log"

        def limit() -> None:
            if files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*WEIRPOOL, "serve", "--config", str(file), "--bind", f"127.0.0.1:{self.port}"],
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                preexec_fn=limit,
            )
        for _ in range(200):
            with suppress(OSError), self.connect():
                break
            time.sleep(0.05)
        time.sleep(0.5)
        self.idle_memory = self.memory()
        self.most_files = 0
        self.most_memory = 0
        self.watching = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        with suppress(OSError):
            while not self.watching.wait(0.02):
                files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
                self.most_files = max(self.most_files, files)
                self.most_memory = max(self.most_memory, self.memory() - self.idle_memory)

    def memory(self) -> int:
        return resident_kb([self.process.pid]) * 1024

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        return client

    def count(self, event: str) -> int:
        return self.log.read_text().count(f'"event": "{event}"')

    def close(self) -> None:
        self.watching.set()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def serving(host: str = "127.0.0.1", files: int | None = None) -> Iterator[Server]:
    upstream = Upstream()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory), upstream, host, files)
        try:
            yield server
        finally:
            server.close()
            upstream.listener.close()


def status_of(client: socket.socket) -> str:
    """The status of the next answer, whose short body is read as well."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            piece = client.recv(65536)
            if not piece:
                return "closed"
            data += piece
    except OSError as error:
        return type(error).__name__
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)content-length: *(\d+)", head) or [0]
    with suppress(OSError):
        while len(body) < int(length) and (piece := client.recv(65536)):
            body += piece
    return head.split(b" ")[1].decode()


def get(client: socket.socket, path: str = "/x") -> str:
    with suppress(OSError):
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return status_of(client)


def descriptors(host: str) -> tuple[dict[str, object], bool]:
    """Sixty clients that send nothing, with 64 descriptors."""
    with serving(host, FILES) as server, ExitStack() as stack:
        kept = stack.enter_context(server.connect())
        first = get(kept)
        live = stack.enter_context(server.connect())
        live.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        began = status_of(live)
        silent = [stack.enter_context(server.connect()) for _ in range(60)]
        time.sleep(1)
        results = Counter(get(kept) for _ in range(10))
        with server.connect() as new:
            fresh = get(new)
        live.settimeout(2)
        goes_on = bool(live.recv(100))
        closed = 0
        for client in silent:
            client.setblocking(False)
            with suppress(BlockingIOError):
                closed += not client.recv(1)
        for client in silent:
            client.close()
        time.sleep(0.5)
        with server.connect() as after:
            later = get(after)
        ejected, failed = server.count("endpoint_ejected"), server.count("internal_error")
        said = {
            "kept client": dict(results),
            "new client": fresh,
            "live stream goes on": goes_on,
            "closed idle": closed,
            "afterwards": later,
            "descriptors": server.most_files,
            "log bytes": server.log.stat().st_size,
            "ejected": ejected,
        }
        holds = (
            (first, began, fresh, later, goes_on, ejected, failed)
            == ("200", "200", "200", "200", True, 0, 0)
            and set(results) <= {"200", "503"}
            and server.most_files <= FILES
        )
        return said, holds


def bodies(path: str, key: bool, most: int, wanted: set[str]) -> tuple[dict[str, object], bool]:
    """Forty clients that send 15 MB of 16 and then wait."""
    with serving() as server:
        results: list[str] = []
        piece = b"x" * 65536

        def client() -> None:
            with server.connect() as sock:
                sock.settimeout(4)
                authorization = f"Authorization: Bearer {KEY}\r\n" if key else ""
                try:
                    sock.sendall((POST % (path, 16_000_000) + authorization + "\r\n").encode())
                    for _ in range(15_000_000 // len(piece)):
                        sock.sendall(piece)
                except OSError:
                    pass
                results.append(status_of(sock))

        threads = [threading.Thread(target=client) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = {
            "statuses": dict(Counter(results)),
            "memory MiB": round(server.most_memory / MIB, 1),
        }
        return said, server.most_memory <= most and set(results) <= wanted


def numbers(size: int, wanted: str, most: int) -> tuple[dict[str, object], bool]:
    """A batch of numbers, which are not messages."""
    with serving() as server, server.connect() as client:
        body = b"[" + b"0," * ((size - 3) // 2) + b"0]"
        head = (POST % ("/policy", len(body)) + "\r\n").encode()
        before = cpu_seconds([server.process.pid])
        with suppress(OSError):
            client.sendall(head + body)
        status = status_of(client)
        spent = cpu_seconds([server.process.pid]) - before
        said = {
            "status": status,
            "CPU ms": round(spent * 1000),
            "memory MiB": round(server.most_memory / MIB, 1),
        }
        return said, status == wanted and server.most_memory <= most


CASES: dict[str, Callable[[], tuple[dict[str, object], bool]]] = {
    "64 descriptors, endpoint by address": lambda: descriptors("127.0.0.1"),
    "64 descriptors, endpoint by name": lambda: descriptors("localhost"),
    "40 bodies of 15 MB, no key": lambda: bodies("/keyed", False, 32 * MIB, {"401"}),
    "40 bodies of 15 MB, a key, collected": lambda: bodies(
        "/wanted", True, (64 + 48) * MIB, {"503", "TimeoutError"}
    ),
    "2.1 MB of numbers": lambda: numbers(2_100_000, "400", 100 * MIB),
    "16 MB of numbers": lambda: numbers(16_000_000, "413", 32 * MIB),
}


def main() -> None:
    failed = False
    for name, case in CASES.items():
        said, holds = case()
        failed = failed or not holds
        print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'} {json.dumps(said)}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
