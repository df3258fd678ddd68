"""The load: upstream and clients around a proxy, in one process with one clock.

python -m proxy.commands.bench.load '{"proxy_port": 8000, "upstream_port": 9001, ...}'

Prints one line of JSON. All sockets are non-blocking, in one epoll, and all data is prepared before
it is sent, so that the load is not what is measured; `load_cpu` is the share of its core that it
used. A stream has finished when the end of its chunked body has arrived. Latency is measured from
the write at the upstream to the read at the client.
"""

from __future__ import annotations

import heapq
import json
import resource
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from .figures import Result, Settings
from .processes import cpu_seconds, resident_kb

__all__ = ["run_load"]

_END = b"0\r\n\r\n"
_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_EVENTS_PER_WRITE = 16
_OPENING_AT_ONCE = 32


@dataclass(eq=False)
class _Peer:
    sock: Any
    kind: str
    out: bytes = b""
    left: int = 0
    tail: bytes = b""
    started: bool = False
    greedy: bool = False
    greeting: bool = False
    times: list[float] = field(default_factory=list)


class _Load:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.epoll = select.epoll()
        self.peers: dict[int, _Peer] = {}
        self.due: list[tuple[float, int, _Peer]] = []
        self.held: list[_Peer] = []  # upstream sides whose events have been sent
        self.opened = self.opening = self.finished = self.failed = self.requests = self.sent = (
            self.greedy
        ) = 0
        self.ends_at = 0.0
        self.rss_peak = 0
        self.latencies: list[float] = []
        self.tls = None
        if settings.certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(settings.certificate)
        pad = "x" * max(0, settings.size - 48)
        self.event = b'data: {"t":%%d,"i":1,"pad":"%s"}\n\n' % pad.encode()
        now = self.event % 10**15
        chunk = b"%x\r\n%s\r\n" % (len(now), now)
        self.many = chunk * _EVENTS_PER_WRITE
        self.json_body = b'{"t":1,"i":1,"pad":"%s"}' % pad.encode()
        self.json_end = self.json_body[-20:]  # unchanged when the body is edited
        self.json_answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (
                len(self.json_body),
                self.json_body,
            )
        )
        self.whole = {"json": self.json_answer, "opening": _SSE_HEAD + chunk + _END}
        """Answers that leave at once, by kind."""
        headers = b"Host: 127.0.0.1:%d\r\n" % settings.proxy_port
        if settings.kind == "json":
            headers += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(
                self.json_body
            )
            self.request = b"POST %s HTTP/1.1\r\n%s\r\n%s" % (
                settings.path.encode(),
                headers,
                self.json_body,
            )
        else:
            self.request = b"GET %s HTTP/1.1\r\n%sAccept: text/event-stream\r\n\r\n" % (
                settings.path.encode(),
                headers,
            )

    def run(self) -> Result:
        """Run until every stream has ended, or for `limit_s`. Blocks."""
        settings = self.settings
        listener = self._listen()
        cpu = cpu_seconds(settings.pids)
        before = self.rss_peak = resident_kb(settings.pids)
        begin = sample_at = time.perf_counter()
        self.ends_at = begin + settings.seconds
        own = time.process_time()
        while self.finished + self.failed < settings.streams:
            now = time.perf_counter()
            if now - begin > settings.limit_s:
                break
            self._open_streams()
            self._turn(listener, max(0.0, self.due[0][0] - now) if self.due else 0.1)
            all_held = len(self.held) >= settings.streams - self.failed and bool(self.held)
            now = time.perf_counter()
            if all_held or now > sample_at:
                self._sample_memory()
                sample_at = now + 0.2
            if all_held:
                self._let_go()
        wall_s = time.perf_counter() - begin
        cpu = cpu_seconds(settings.pids) - cpu
        self._sample_memory()
        return self._result(wall_s, cpu, time.process_time() - own, before)

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.settings.upstream_port))
        listener.listen(4096)
        listener.setblocking(False)
        self.epoll.register(listener, select.EPOLLIN)
        return listener

    def _open_streams(self) -> None:
        while self.greedy < self.settings.beside:
            self._open(greedy=True)
        while self.opened < self.settings.streams and self.opening < _OPENING_AT_ONCE:
            self._open()

    def _turn(self, listener: socket.socket, wait_s: float) -> None:
        """Serve every ready socket, then send the events that are due."""
        for number, mask in self.epoll.poll(wait_s, 256):
            peer = self.peers.get(number)
            if number == listener.fileno():
                self._accept(listener)
            elif peer is not None and peer.kind == "upstream":
                self._serve(peer, mask)
            elif peer is not None:
                self._read(peer)
        now = time.perf_counter()
        while self.due and self.due[0][0] <= now:
            at, _, peer = heapq.heappop(self.due)
            self._emit(peer, at)

    def _sample_memory(self) -> None:
        self.rss_peak = max(self.rss_peak, resident_kb(self.settings.pids))

    def _result(self, wall_s: float, cpu_s: float, own_s: float, rss_before_kb: int) -> Result:
        settings = self.settings
        events = self.finished * settings.events or self.sent
        if settings.kind in self.whole:
            events = self.requests
        latencies = sorted(self.latencies)
        return Result(
            streams=settings.streams,
            finished=self.finished,
            failed=settings.streams - self.finished,
            events=events,
            wall_s=round(wall_s, 3),
            events_per_s=round(events / wall_s),
            cpu_s=round(cpu_s, 2),
            cpu_us_per_event=round(cpu_s * 1e6 / events, 2) if events else 0.0,
            p50_us=round(latencies[len(latencies) // 2]) if latencies else 0.0,
            p99_us=round(latencies[int(len(latencies) * 0.99)]) if latencies else 0.0,
            rss_before_kb=rss_before_kb,
            rss_peak_kb=self.rss_peak,
            load_cpu=round(own_s / wall_s, 2),
        )

    # The clients

    def _open(self, *, greedy: bool = False, left: int | None = None) -> None:
        """Connect and send a request; `left`: on a new connection of a client that has had one."""
        self.greedy += greedy
        self.opened += not greedy and left is None
        sock = socket.create_connection(("127.0.0.1", self.settings.proxy_port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.opening += not greedy
        peer = _Peer(
            sock, "client", left=self.settings.events if left is None else left, greedy=greedy
        )
        self.peers[sock.fileno()] = peer
        self.epoll.register(sock, select.EPOLLIN)
        sock.send(
            self.request.replace(b"Accept:", b"X-Greedy: 1\r\nAccept:") if greedy else self.request
        )
        peer.times.append(time.perf_counter())

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if peer.greedy:
            if not data:
                raise RuntimeError("a stream that was to be beside the others has ended")
            return
        if not peer.started:
            peer.started = True
            self.opening -= 1
        if not data:
            self.failed += 1
            self._close(peer)
            return
        if self.settings.kind in self.whole:
            self._answered(peer, data)
            return
        if self.settings.rate:
            now = time.perf_counter_ns()
            at = data.find(b'"t":')
            while at >= 0:
                digits = (
                    data[at + 4 : at + 24].partition(b",")[0].strip()
                )  # some proxies encode with spaces
                if digits.isdigit():
                    self.latencies.append((now - int(digits)) / 1e3)
                at = data.find(b'"t":', at + 4)
        peer.tail = (peer.tail + data[-5:])[-5:]
        if peer.tail == _END:
            self.finished += 1
            self._close(peer)

    def _answered(self, peer: _Peer, data: bytes) -> None:
        peer.tail += data
        if not peer.tail.endswith((self.json_end, _END)):
            return
        peer.tail = b""
        self.requests += 1
        peer.left -= 1
        now = time.perf_counter()
        self.latencies.append((now - peer.times.pop()) * 1e6)
        if peer.left and self.settings.new_connections:
            self._close(peer)
            self._open(left=peer.left)
        elif peer.left:
            peer.sock.send(self.request)
            peer.times.append(now)
        else:
            self.finished += 1
            self._close(peer)

    # The upstream

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            if not self.settings.rate:
                # Data in buffers at the end still has to be relayed: a slow proxy would take
                # minutes for megabytes.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131072)
            peer = _Peer(sock, "upstream")
            if self.tls is not None:
                peer.sock = self.tls.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False
                )
                peer.greeting = True
            self.peers[peer.sock.fileno()] = peer
            self.epoll.register(peer.sock, select.EPOLLIN)

    def _serve(self, peer: _Peer, mask: int) -> None:
        if peer.greeting:
            try:
                peer.sock.do_handshake()
                peer.greeting = False
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                self._close(peer)
                return
        if mask & select.EPOLLOUT:
            self._flush(peer)
        if not mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = peer.sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if not data:
            self._close(peer)
            return
        peer.tail += data
        head, blank, body = peer.tail.partition(b"\r\n\r\n")
        if not blank or (
            self.settings.kind == "json"
            and not body.endswith(self.json_body)
            and not body.endswith(_END)
        ):
            return
        peer.tail = b""
        if self.settings.kind in self.whole:
            peer.out += self.whole[self.settings.kind]
            self._flush(peer)
            return
        peer.greedy = b"\r\nx-greedy:" in head.lower()
        peer.left = sys.maxsize if peer.greedy else self.settings.events or sys.maxsize
        peer.out += _SSE_HEAD
        if self.settings.rate and not peer.greedy:
            self._flush(peer)
            # Streams start at different points of their period, as in practice.
            first = time.perf_counter() + (self.opened * 0.6180339887 % 1) / self.settings.rate
            heapq.heappush(self.due, (first, id(peer), peer))
        else:
            self._flush(peer)

    def _emit(self, peer: _Peer, at: float) -> None:
        if peer.sock.fileno() < 0 or not peer.left:
            return
        event = self.event % time.perf_counter_ns()
        peer.left -= 1
        peer.out += b"%x\r\n%s\r\n" % (len(event), event)
        if peer.left:
            heapq.heappush(self.due, (at + 1 / self.settings.rate, id(peer), peer))
        elif self.settings.hold:
            self.held.append(peer)
        else:
            peer.out += _END
        self._flush(peer)

    def _let_go(self) -> None:
        """End all streams: all have had their events and are open."""
        for peer in self.held:
            if peer.sock.fileno() >= 0:
                peer.out += _END
                self._flush(peer)
        self.held.clear()

    def _flush(self, peer: _Peer) -> None:
        """Write what is queued; if all has left and the stream is not paced, queue more."""
        saturate = peer.greedy or (not self.settings.rate and self.settings.kind == "sse")
        for _ in range(4):  # then others get a turn
            if not peer.out and saturate and peer.left > 0:
                if self.settings.seconds and time.perf_counter() > self.ends_at:
                    peer.out = _END
                    peer.left = 0
                elif peer.left >= _EVENTS_PER_WRITE:
                    peer.out = self.many
                    peer.left -= _EVENTS_PER_WRITE
                    self.sent += _EVENTS_PER_WRITE
                else:
                    peer.out = self.many[: len(self.many) // _EVENTS_PER_WRITE * peer.left]
                    self.sent += peer.left
                    peer.left = 0
                if not peer.left and not peer.out.endswith(_END):
                    peer.out += _END
            if not peer.out:
                break
            try:
                sent = peer.sock.send(peer.out)
            except (BlockingIOError, ssl.SSLWantWriteError):
                break
            except OSError:
                self._close(peer)
                return
            peer.out = peer.out[sent:]
        more = bool(peer.out) or (saturate and peer.left > 0)
        self.epoll.modify(peer.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if more else 0))

    def _close(self, peer: _Peer) -> None:
        number = peer.sock.fileno()
        if number >= 0:
            if peer in self.held:
                self.held.remove(peer)  # its client has failed, which is counted there
            self.peers.pop(number, None)
            self.epoll.unregister(number)
            peer.sock.close()


def run_load(settings: Settings) -> Result:
    """Run one load in this process. Blocks until it is over, or for `limit_s`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _Load(settings).run()


if __name__ == "__main__":
    print(json.dumps(vars(run_load(Settings(**json.loads(sys.argv[1]))))))
