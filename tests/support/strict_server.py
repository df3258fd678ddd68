"""A strict HTTP/1.1 server that keeps what it has parsed of each request, and what it has refused.

It is stricter than most servers: a request that any careful server could refuse, or read
differently, gets 400. One connection serves one request. It runs in threads, for tests that are
synchronous.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["Seen", "StrictServer", "final_status", "is_host"]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
# RFC 3986 sections 3.3 and 3.4, with the characters that clients send although it leaves them out.
_PATH = re.compile(rb"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/\"<>^`{|}\[\]]|%[^#\\ ?]?)*")
_QUERY = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?\"<>^`{|}\[\]\\]|%[^# ]?)*")
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?",
    re.IGNORECASE,
)


class _Refused(Exception):
    pass


@dataclass
class Seen:
    """One request as the server has read it."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class StrictServer:
    """Listens on a free port of loopback until `close`."""

    seen: list[Seen] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def forget(self) -> None:
        """Forget everything, once no connection is served any more."""
        while True:
            with self._lock:
                if not self._serving:
                    break
                thread = self._serving.pop()
            thread.join(10)
        self.seen.clear()
        self.refusals.clear()

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        self._serving: list[threading.Thread] = []
        self._lock = threading.Lock()  # a listed thread has been started
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._lock:
                self._serving.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(10)
        with client, suppress(OSError), client.makefile("rb") as file:
            try:
                seen = _read_request(file)  # type: ignore[arg-type]
            except _Refused as error:
                self.refusals.append(str(error))
                client.sendall(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            if seen is not None:
                self.seen.append(seen)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _line(file: socket.SocketIO) -> bytes:
    line = file.readline(70_000)
    if not line:
        raise EOFError
    if not line.endswith(b"\r\n"):
        raise _Refused(f"a line without CRLF: {line!r}")
    return line[:-2]


def _read_request(file: socket.SocketIO) -> Seen | None:
    try:
        return _parse(file)
    except EOFError:
        return None


def _parse(file: socket.SocketIO) -> Seen:
    parts = _line(file).split(b" ")
    if len(parts) != 3:
        raise _Refused(f"a request line of {len(parts)} parts")
    method, target, version = parts
    if not _TOKEN.fullmatch(method):
        raise _Refused(f"method {method!r}")
    if not re.fullmatch(
        rb"HTTP/1\.[0-9]", version
    ):  # a greater minor version is read as the greatest known: RFC 9110, section 2.5
        raise _Refused(f"version {version!r}")
    headers = _fields(file)
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version != b"HTTP/1.0"):
        raise _Refused(f"{len(hosts)} Host lines")
    if hosts and hosts[0] and not is_host(hosts[0]):
        raise _Refused(f"Host {hosts[0]!r}")
    _check_target(method, target)
    body = _body(file, headers, version)
    return Seen(
        method.decode(),
        target.decode("latin-1"),
        version.decode(),
        [(name.decode(), value.decode("latin-1")) for name, value in headers],
        body,
    )


def is_host(value: bytes) -> bool:
    """Whether it is `uri-host [":" port]` (RFC 3986, section 3.2.2), with a port that exists."""
    if not _HOST.fullmatch(value):
        return False
    port = value.rpartition(b":")[2] if not value.endswith(b"]") and b":" in value else b""
    if port and int(port) > 65535:
        return False
    if value.startswith(b"["):
        try:
            socket.inet_pton(socket.AF_INET6, value[1:].partition(b"]")[0].decode())
        except OSError:
            return False
    return True


def _check_target(method: bytes, target: bytes) -> None:
    if method == b"OPTIONS" and target == b"*":
        return
    lowered = target.lower()
    for scheme in (b"http://", b"https://"):
        if lowered.startswith(scheme):
            authority, slash, rest = target[len(scheme) :].partition(b"/")
            authority, question, query = authority.partition(b"?")
            if not is_host(authority):
                raise _Refused(f"authority {authority!r}")
            target = (
                slash + rest if slash and not question else b"/" + question + query + slash + rest
            )
    path, _, query = target.partition(b"?")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise _Refused(f"target {target!r}")


def _fields(file: socket.SocketIO) -> list[tuple[bytes, bytes]]:
    fields: list[tuple[bytes, bytes]] = []
    while line := _line(file):
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _Refused(f"field {line!r}")
        value = value.strip(b" \t")
        if not _VALUE.fullmatch(value):
            raise _Refused(f"value {value!r}")
        fields.append((name.lower(), value))
    return fields


def _body(file: socket.SocketIO, headers: list[tuple[bytes, bytes]], version: bytes) -> bytes:
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings:
        if (
            lengths
            or len(codings) > 1
            or codings[0].lower() != b"chunked"
            or version == b"HTTP/1.0"
        ):
            raise _Refused(f"two lengths, or codings: {codings} {lengths}")
        return _chunked(file)
    if not lengths:
        return b""
    equal = {item.strip() for value in lengths for item in value.split(b",")}
    if len(equal) > 1 or not re.fullmatch(rb"[0-9]{1,15}", length := equal.pop()):
        raise _Refused(f"lengths {lengths}")
    body = file.read(int(length)) or b""
    if len(body) < int(length):
        raise EOFError
    return body


def _chunked(file: socket.SocketIO) -> bytes:
    body = b""
    while True:
        size, _, _extension = _line(file).partition(b";")
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise _Refused(f"chunk size {size!r}")
        count = int(size, 16)
        if count == 0:
            _fields(file)
            return body
        piece = file.read(count) or b""
        if len(piece) < count:
            raise EOFError
        body += piece
        if (end := file.read(2)) != b"\r\n":
            raise _Refused(f"after a chunk: {end!r}")


def final_status(port: int, data: bytes, timeout_s: float = 5) -> int:
    """Send bytes on a new connection to a port of loopback; the status of the final answer.

    0 where the connection ends without an answer, -1 where nothing comes in time.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as client:
        with suppress(OSError):
            client.sendall(data)
        with client.makefile("rb") as file:
            try:
                while True:
                    line = file.readline()
                    if not line:
                        return 0
                    status = int(line.split(b" ")[1])
                    while file.readline().rstrip(b"\r\n"):
                        pass
                    if status >= 200:
                        return status
            except TimeoutError:
                return -1
            except OSError:
                return 0
