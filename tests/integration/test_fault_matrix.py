"""The fault matrix: each fault of an upstream, for each way of waiting for it and each kind of
interceptor. One test a cell.

Over HTTP/1.1 and HTTP/2, and with upstreams over TLS, which have faults of their own.

Each cell shows the outcome in the log and in the metric, what the client sees, and that everything
is back: the leases, the one connection that the upstream may have (`max_connections: 1`), and the
sockets of the upstream's side. A cell sets only the deadline that it is about, so that a slow
machine changes nothing.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import h2.errors
import h11
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.http2_client import Http2Requester, open_http2
from support.interceptors import Log, Rig, Way, on_event, until
from support.proxy import limit_send_buffers
from support.upstream import Peer

from interceptors import Event, EventResult, Interceptor, Outcome
from proxy.upstream import Resolver, dial
from proxy.upstream.origin import Origin

FAULTY = "/faulty"
UPLOAD = bytes(2_000_000)
FLOOD = b"data: " + b"x" * 8000 + b"\n\n"
FLOOD_COUNT = 2000
WINDOW = 20_000
"""Of an HTTP/2 stream whose client never opens it: answers that are not streams fit."""
SHORT_S = 0.1
TOTAL_S = 0.4
"""In which a head and an event arrive."""
BROKEN = (
    EOFError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    h11.RemoteProtocolError,
    h11.LocalProtocolError,
)
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


class Stage:
    """What a script does before it does wrong: it lets the client know, and waits for it."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.reached = trio.Event()
        self.go_on = trio.Event()
        self.over = trio.Event()
        """The exchange has ended."""
        if client not in LEAVING:
            self.go_on.set()

    async def reach(self) -> None:
        self.reached.set()
        await self.go_on.wait()

    @property
    def floods(self) -> bool:
        """More than fits into all buffers comes before the fault, for a client that does not take
        it.
        """
        return self.client == "stalled"


async def start(peer: Peer, stage: Stage, length: int | None = None) -> None:
    """The head of an event stream, an event, and as much as it takes to stall a client."""
    flood = FLOOD_COUNT if stage.floods else 0
    if length is None:
        await peer.start_stream()
    else:
        await peer.send(SSE_HEAD + b"Content-Length: %d\r\n\r\n" % (length + flood * len(FLOOD)))
    put = peer.chunk if length is None else peer.send
    await put(b"data: 1\n\n")
    for _ in range(flood):
        await put(FLOOD)
    await stage.reach()


def transport_of(peer: Peer) -> trio.SocketStream:
    """What is below TLS, if there is TLS."""
    stream = getattr(peer.stream, "transport_stream", peer.stream)
    assert isinstance(stream, trio.SocketStream)
    return stream


# What the upstream does. A script that returns closes its connection; under TLS without
# close_notify.


async def hangs_before_head(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    await peer.wait_closed()


async def hangs_mid_head(peer: Peer, stage: Stage) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    await stage.reach()
    await peer.wait_closed()


async def trickles_head(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    for byte in SSE_HEAD * 20:
        await peer.send(bytes([byte]))
        await trio.sleep(0.02)


async def sends_garbage(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    await peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    await peer.wait_closed()


async def endless_head(peer: Peer, stage: Stage) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    await stage.reach()
    while True:
        await peer.send(b"X-More: " + b"x" * 1000 + b"\r\n")


async def floods_with_1xx(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    while True:
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


async def closes_before_head(peer: Peer, stage: Stage) -> None:
    await stage.reach()


async def hangs_mid_event(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await peer.chunk(b"data: half")
    await peer.wait_closed()


async def trickles_body(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    while True:
        for byte in b"data: slow\n\n":
            await peer.chunk(bytes([byte]))
            await trio.sleep(0.01)


async def resets_mid_chunk(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await peer.send(b"100\r\ndata: half")
    await trio.sleep(0.01)  # a reset may overtake what is under way
    sock = transport_of(peer).socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def ends_early(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)


async def garbage_for_a_chunk(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await peer.send(b"this is no chunk\r\n")
    await peer.wait_closed()


async def endless_event(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await peer.chunk(b"data: ")
    while True:
        await peer.chunk(b"y" * 500)
        await trio.sleep(0.002)


async def less_than_content_length(peer: Peer, stage: Stage) -> None:
    await start(peer, stage, length=1000)


async def more_than_content_length(peer: Peer, stage: Stage) -> None:
    await start(peer, stage, length=18)
    await peer.send(b"data: 2\n\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    await peer.wait_closed()


async def stops_reading(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    await stage.over.wait()
    await peer.wait_closed()


async def answers_early(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    await peer.send(
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nslow"
    )
    await peer.wait_closed()


# What it does where there is TLS


async def says_it_closes(peer: Peer, stage: Stage) -> None:
    """No fault: a body that is framed by the connection's end, and an end with close_notify."""
    await peer.send(SSE_HEAD + b"\r\ndata: 1\n\n")
    await stage.reach()
    assert isinstance(peer.stream, trio.SSLStream)
    await peer.stream.unwrap()


async def closes_without_a_word(peer: Peer, stage: Stage) -> None:
    await peer.send(SSE_HEAD + b"\r\ndata: 1\n\n")
    await stage.reach()


async def plain_text_for_a_head(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    await transport_of(peer).send_all(SSE_HEAD + b"\r\ndata: forged\n\n")
    await peer.wait_closed()


async def plain_text_in_the_body(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await transport_of(peer).send_all(b"e\r\ndata: forged\n\n\r\n0\r\n\r\n")
    await peer.wait_closed()


async def forged_record(peer: Peer, stage: Stage) -> None:
    """RFC 8446, section 5.2: unencrypted application data."""
    await start(peer, stage)
    await transport_of(peer).send_all(b"\x17\x03\x03\x00\x40" + bytes(64))
    await peer.wait_closed()


async def half_a_record(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await transport_of(peer).send_all(b"\x17\x03\x03\x00\x40" + bytes(32))


@dataclass(frozen=True)
class Fault:
    """`kind` "": the upstream's own answer. `whole`: the client gets all of it."""

    script: Callable[[Peer, Stage], Awaitable[None]] | None
    outcome: str
    status: int = 200
    kind: str = ""
    whole: bool = False
    timeout: str = ""
    body: bytes = b"data: 1\n\n"
    uploads: bool = False

    @property
    def in_body(self) -> bool:
        return self.status == 200


ERROR, TIMEOUT = "upstream_error", "upstream_timeout"
FAULTS = {
    "refuses": Fault(None, ERROR, 502, "upstream_connect_failed"),
    "closes before head": Fault(closes_before_head, ERROR, 502, "upstream_connection_lost"),
    "hangs before head": Fault(
        hangs_before_head, TIMEOUT, 504, "upstream_read_timeout", timeout="first_byte"
    ),
    "hangs mid-head": Fault(
        hangs_mid_head, TIMEOUT, 504, "upstream_read_timeout", timeout="first_byte"
    ),
    "trickles its head": Fault(
        trickles_head, TIMEOUT, 504, "upstream_read_timeout", timeout="first_byte"
    ),
    "sends garbage": Fault(sends_garbage, ERROR, 502, "upstream_protocol_error"),
    "endless head": Fault(endless_head, ERROR, 502, "upstream_protocol_error"),
    "1xx flood": Fault(floods_with_1xx, ERROR, 502, "upstream_protocol_error"),
    "stops reading": Fault(
        stops_reading, TIMEOUT, 504, "upstream_write_timeout", timeout="write", uploads=True
    ),
    "answers early": Fault(answers_early, "completed", 429, body=b"slow", whole=True, uploads=True),
    "hangs mid-event": Fault(hangs_mid_event, TIMEOUT, timeout="idle"),
    "trickles its body": Fault(trickles_body, TIMEOUT, timeout="total"),
    "resets mid-chunk": Fault(resets_mid_chunk, ERROR),
    "ends early": Fault(ends_early, ERROR),
    "garbage for a chunk": Fault(garbage_for_a_chunk, ERROR),
    "endless event": Fault(endless_event, TIMEOUT, timeout="total"),
    "less than Content-Length": Fault(less_than_content_length, ERROR),
    "more than Content-Length": Fault(
        more_than_content_length, "completed", whole=True, body=b"data: 1\n\ndata: 2\n\n"
    ),
}
TLS_FAULTS = FAULTS | {
    "says that it closes": Fault(says_it_closes, "completed", whole=True),
    "closes without close_notify": Fault(closes_without_a_word, ERROR),
    "plain text for a head": Fault(plain_text_for_a_head, ERROR, 502, "upstream_connection_lost"),
    "plain text in the body": Fault(plain_text_in_the_body, ERROR),
    "forged record": Fault(forged_record, ERROR),
    "half a record": Fault(half_a_record, ERROR),
}
CLIENTS = ["patient", "gone", "stalled"]
LEAVING = ["gone", "resets its stream"]


def _edit(event: Event) -> EventResult:
    return event.replace(data=event.data + "!")


INTERCEPTORS: dict[str, tuple[type[Interceptor], ...]] = {"none": (), "editing": (on_event(_edit),)}


def expected(name: str, client: str, interceptors: str) -> tuple[Fault, set[str]]:
    """The fault as this cell sees it, and the outcomes that it may have."""
    fault = TLS_FAULTS[name]
    if name == "endless event" and interceptors == "editing":
        fault = Fault(endless_event, ERROR)  # `max_event_bytes`
    if client in LEAVING:  # it leaves just before the fault: either may be seen first
        return fault, {"client_disconnected", fault.outcome}
    if client == "stalled" and fault.in_body:
        return fault, {"send_stalled"}
    return fault, {fault.outcome}


def settings(fault: Fault, client: str) -> dict[str, str]:
    short = {}
    if fault.timeout and not (client == "stalled" and fault.in_body):
        short[fault.timeout] = TOTAL_S if fault.timeout == "total" else SHORT_S
    if client == "stalled":
        short["send"] = SHORT_S
    return {
        "upstream": "max_connections: 1",
        "proxy": f"  timeouts: {json.dumps(short)}\n  limits: {{max_event_bytes: 20000}}",
    }


Side = Client | Http2Requester


async def play(
    client: Side, kind: str, fault: Fault, stage: Stage, over: Callable[[], object]
) -> Answer | None:
    """The client's part; what it saw."""
    with suppress(*BROKEN):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send, client, fault)
            try:
                if kind in LEAVING:
                    await stage.reached.wait()
                    if isinstance(client, Http2Requester) and kind == "resets its stream":
                        await client.reset_stream()
                    else:
                        client.reset()
                    stage.go_on.set()
                    return None
                if kind == "stalled":
                    await until(over)
                return await client.answer()
            finally:
                nursery.cancel_scope.cancel()
    return None


async def _send(client: Side, fault: Fault) -> None:
    with suppress(*BROKEN):
        await client.send(
            "POST" if fault.uploads else "GET", FAULTY, body=UPLOAD if fault.uploads else None
        )


def refuse(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the exchange is over, let the proxy connect to a port without a listener."""

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        if stage.over.is_set():
            return await original(origin, resolver)
        await stage.reach()
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            return await original(origin._replace(port=unused.getsockname()[1]), resolver)

    original = dial.connect
    monkeypatch.setattr(dial, "connect", connect)


WAYS = {
    "http1": [(name, client) for name in FAULTS for client in ("patient", "gone", "stalled")],
    "http2": [
        (name, client)
        for name, fault in FAULTS.items()
        for client in ("patient", "gone", "resets its stream", "stalled")
        if client != "stalled" or fault.in_body  # a whole answer fits into the window
    ],
    "tls upstream": [(name, "patient") for name in TLS_FAULTS],
    "tls client": [(name, "patient") for name, fault in FAULTS.items() if fault.in_body],
    "no hub": [
        (name, client) for name, fault in FAULTS.items() if fault.in_body for client in CLIENTS
    ],
}
CELLS = [(way, *cell) for way, cells in WAYS.items() for cell in cells]


@pytest.mark.parametrize("interceptors", INTERCEPTORS)
@pytest.mark.parametrize(("way", "name", "client"), CELLS)
async def test_a_fault(
    way: str,
    name: str,
    client: str,
    interceptors: str,
    certificates: Certificates,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One outcome in log and metric, a visible end, everything back, and a next request."""
    cell = Cell(name, client, interceptors, hub=way != "no hub")
    if way == "http2":
        cell = replace(cell, http2=certificates)
    elif way == "tls upstream":
        cell = replace(cell, upstream_tls=certificates)
    elif way == "tls client":
        cell = replace(cell, client_tls=certificates)
    await cell.check(log, monkeypatch)


async def test_a_broken_stream_is_reset_on_http10(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection's end completes an HTTP/1.0 body, so a broken one ends with a reset."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await start(peer, Stage("patient"))

    async with Way().serve(log, monkeypatch)(script) as rig:
        stream = await trio.open_tcp_stream("127.0.0.1", rig.proxy.port)
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        with pytest.raises(trio.BrokenResourceError) as caught:
            while data := await stream.receive_some():
                received += data
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert b"data: 1\n\n" in received
        await stream.aclose()


@dataclass(frozen=True)
class Cell:
    name: str
    client: str
    interceptors: str
    http2: Certificates | None = None
    """A proxy whose client uses HTTP/2."""
    upstream_tls: Certificates | None = None
    client_tls: Certificates | None = None
    hub: bool = True

    async def check(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """Play it, and check what the module's docstring promises."""
        fault, outcomes = expected(self.name, self.client, self.interceptors)
        limit_send_buffers(monkeypatch, 65536)
        # For a client that neither sends nor reads. One of HTTP/2 that reads must have its end,
        # however busy the machine is.
        patient_http2 = self.http2 is not None and self.client == "patient"
        monkeypatch.setattr("proxy.exchange.request_body.LINGER_S", 5.0 if patient_http2 else 0.2)
        if self.client != "patient":
            monkeypatch.setattr("proxy.exchange.request_body._QUIET_S", SHORT_S)
            monkeypatch.setattr(
                "proxy.downstream.hypercorn.client._LAST_BYTES_S", SHORT_S
            )  # that it does not take
        stage = Stage(self.client)

        async def script(peer: Peer) -> None:
            while True:
                request = await peer.request(body=False)
                if request.target == FAULTY.encode():
                    assert fault.script is not None
                    if not fault.uploads:
                        await peer.take_body(request)
                    await fault.script(peer, stage)
                    return
                await peer.take_body(request)
                await peer.start_stream()
                await peer.chunk(b"data: good\n\n")
                await peer.end()

        if fault.script is None:
            refuse(stage, monkeypatch)
        given = settings(fault, self.client)
        context = None
        if self.upstream_tls is not None:
            context = self.upstream_tls.server
            given["upstream"] += f', ca_file: "{self.upstream_tls.ca_file}"'
        serve = Way(self.hub, self.http2 or self.client_tls).serve(log, monkeypatch)
        async with serve(
            script, *INTERCEPTORS[self.interceptors], upstream_tls=context, **given
        ) as rig:
            async with self.open_side(rig) as side:
                answer = await play(side, self.client, fault, stage, lambda: rig.lines("exchange"))
                (outcome,) = await rig.outcomes()
                stage.over.set()
                assert outcome in outcomes
                for each in Outcome:
                    assert rig.metric(
                        "weirpool_exchanges_total", route="/", outcome=each.value
                    ) == (each.value == outcome)
                if self.client == "patient" or (self.client == "stalled" and not fault.in_body):
                    assert answer is not None
                    check_answer(answer, fault, self.interceptors)
                elif answer is not None:
                    assert not answer.complete
                if isinstance(side, Http2Requester) and self.client != "gone":
                    await check_connection(side, self.client, answer)
            await rig.everything_is_back()
            (state,) = rig.proxy.worker.routes.transports["up"].statistics()
            await until(lambda: rig.upstream.open <= state.idle)
            good = await rig.fetch("/good")
            assert (good.status, good.complete) == (200, True)

    @asynccontextmanager
    async def open_side(self, rig: Rig) -> AsyncIterator[Side]:
        """The client, whose connection ends with this."""
        if self.http2 is not None:
            window = WINDOW if self.client == "stalled" else None
            async with open_http2(rig.proxy, self.http2, window=window) as connection:
                yield Http2Requester(connection)
            return
        side = await rig.client()
        if self.client_tls is None:
            side.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # type: ignore[attr-defined]
        yield side
        await side.aclose()
        rig.clients.clear()


async def check_connection(side: Http2Requester, client: str, answer: Answer | None) -> None:
    """A stream that was not whole has been reset; and the connection serves another."""
    if client == "stalled":
        assert answer is not None
    if answer is not None and not answer.complete:
        assert answer.error == f"reset: {int(h2.errors.ErrorCodes.INTERNAL_ERROR)}"
    good = await side.connection.get("/good")
    assert (good.status, good.ended, good.reset) == (200, True, None)


def check_answer(answer: Answer, fault: Fault, interceptors: str) -> None:
    """What a client sees that has read all there was."""
    assert answer.status == fault.status
    if fault.kind:
        assert answer.complete
        assert json.loads(answer.body)["error"]["type"] == fault.kind
        return
    body = fault.body
    if fault.in_body and interceptors == "editing":
        body = body.replace(b"\n\n", b"!\n\n")
    assert answer.complete is fault.whole
    assert answer.body == body if fault.whole else answer.body.startswith(body)
