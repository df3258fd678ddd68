"""The fault matrix: each fault of an upstream, for each kind of client, interceptor and way of serving
whose combination can matter. One test a cell.

Each cell shows the outcome in the log and in the metric, what the client sees, and that everything
is back: the leases, the one connection that the upstream may have (`max_connections: 1`), and the
sockets of the upstream's side. A cell sets only the deadline that it is about, so that a slow
machine changes nothing.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import h2.errors
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.http2_client import BROKEN, Http2Requester, Side, open_side
from support.interceptors import Log, Way, on_event, until
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
Act = Callable[[Peer, "Stage"], Awaitable[None]]
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


async def trickles_head(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    for byte in SSE_HEAD * 20:
        await peer.send(bytes([byte]))
        await trio.sleep(0.02)


async def floods_with_1xx(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    while True:
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")


async def endless_head(peer: Peer, stage: Stage) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    await stage.reach()
    while True:
        await peer.send(b"X-More: " + b"x" * 1000 + b"\r\n")


async def closes_before_head(peer: Peer, stage: Stage) -> None:
    await stage.reach()


async def trickles_body(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    while True:
        for byte in b"data: slow\n\n":
            await peer.chunk(bytes([byte]))
            await trio.sleep(0.01)


async def endless_event(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await peer.chunk(b"data: ")
    while True:
        await peer.chunk(b"y" * 500)
        await trio.sleep(0.002)


async def resets_mid_chunk(peer: Peer, stage: Stage) -> None:
    await start(peer, stage)
    await peer.send(b"100\r\ndata: half")
    await trio.sleep(0.01)  # a reset may overtake what is under way
    sock = transport_of(peer).socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def stops_reading(peer: Peer, stage: Stage) -> None:
    await stage.reach()
    await stage.over.wait()
    await peer.wait_closed()


async def says_it_closes(peer: Peer, stage: Stage) -> None:
    """No fault: a body that is framed by the connection's end, and an end with close_notify."""
    await peer.send(SSE_HEAD + b"\r\ndata: 1\n\n")
    await stage.reach()
    assert isinstance(peer.stream, trio.SSLStream)
    await peer.stream.unwrap()


def head(then: bytes, first: bytes = b"", *, below_tls: bool = False, closes: bool = False) -> Act:
    """Send `first`, and then, at fault, `then` instead of the rest of a head."""

    async def act(peer: Peer, stage: Stage) -> None:
        await peer.send(first) if first else None
        await stage.reach()
        await (transport_of(peer).send_all if below_tls else peer.send)(then)
        if not closes:
            await peer.wait_closed()

    return act


def body(
    then: bytes, length: int | None = None, *, below_tls: bool = False, closes: bool = False
) -> Act:
    """A stream that begins well, and then `then`."""

    async def act(peer: Peer, stage: Stage) -> None:
        await start(peer, stage, length)
        await (transport_of(peer).send_all if below_tls else peer.send)(then) if then else None
        if not closes:
            await peer.wait_closed()

    return act


@dataclass(frozen=True)
class Fault:
    """`kind` "": the upstream's own answer. `whole`: the client gets all of it."""

    script: Act | None
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
LATE_HEAD = (TIMEOUT, 504, "upstream_read_timeout", False, "first_byte")
PROTOCOL = (ERROR, 502, "upstream_protocol_error")
GARBAGE = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
EARLY = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nslow"
)
FORGED = b"data: 2\n\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
BEFORE_HEAD = {
    "refuses": Fault(None, ERROR, 502, "upstream_connect_failed"),
    "closes before head": Fault(closes_before_head, ERROR, 502, "upstream_connection_lost"),
    "hangs before head": Fault(hangs_before_head, *LATE_HEAD),
    "hangs mid-head": Fault(head(b"ntent-Ty", b"HTTP/1.1 200 OK\r\nCo"), *LATE_HEAD),
    "trickles its head": Fault(trickles_head, *LATE_HEAD),
    "sends garbage": Fault(head(GARBAGE), *PROTOCOL),
    "endless head": Fault(endless_head, *PROTOCOL),
    "1xx flood": Fault(floods_with_1xx, *PROTOCOL),
    "stops reading": Fault(
        stops_reading, TIMEOUT, 504, "upstream_write_timeout", timeout="write", uploads=True
    ),
    "answers early": Fault(head(EARLY), "completed", 429, "", True, "", b"slow", uploads=True),
}
IN_BODY = {
    "hangs mid-event": Fault(body(b"a\r\ndata: half\r\n"), TIMEOUT, timeout="idle"),
    "trickles its body": Fault(trickles_body, TIMEOUT, timeout="total"),
    "resets mid-chunk": Fault(resets_mid_chunk, ERROR),
    "ends early": Fault(body(b"", closes=True), ERROR),
    "garbage for a chunk": Fault(body(b"this is no chunk\r\n"), ERROR),
    "endless event": Fault(endless_event, TIMEOUT, timeout="total"),
    "less than Content-Length": Fault(body(b"", 1000, closes=True), ERROR),
    "more than Content-Length": Fault(
        body(FORGED, 18), "completed", whole=True, body=b"data: 1\n\ndata: 2\n\n"
    ),
}
CHUNK = b"e\r\ndata: forged\n\n\r\n0\r\n\r\n"
RECORD = b"\x17\x03\x03\x00\x40"  # RFC 8446, section 5.2: unencrypted application data
OF_TLS = {
    "says that it closes": Fault(says_it_closes, "completed", whole=True),
    "closes without close_notify": Fault(
        head(b"", SSE_HEAD + b"\r\ndata: 1\n\n", closes=True), ERROR
    ),
    "plain text for a head": Fault(
        head(SSE_HEAD + b"\r\ndata: forged\n\n", below_tls=True),
        ERROR,
        502,
        "upstream_connection_lost",
    ),
    "plain text in the body": Fault(body(CHUNK, below_tls=True), ERROR),
    "forged record": Fault(body(RECORD + bytes(64), below_tls=True), ERROR),
    "half a record": Fault(body(RECORD + bytes(32), below_tls=True, closes=True), ERROR),
}
FAULTS = BEFORE_HEAD | IN_BODY | OF_TLS
LEAVING = ["gone", "resets its stream"]


def _edit(event: Event) -> EventResult:
    return event.replace(data=event.data + "!")


INTERCEPTORS: dict[str, tuple[type[Interceptor], ...]] = {"none": (), "editing": (on_event(_edit),)}


def expected(name: str, client: str, interceptors: str) -> tuple[Fault, set[str]]:
    """The fault as this cell sees it, and the outcomes that it may have."""
    fault = FAULTS[name]
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


# A client that leaves or stalls meets each way of waiting for the upstream, not each fault.
WAITS = ["hangs before head", "stops reading", "answers early", "hangs mid-event", "ends early"]
STALLS = ["hangs mid-event", "less than Content-Length"]
BROKEN_BODY = ["resets mid-chunk", "ends early", "less than Content-Length", "endless event"]
ENCRYPTED = ["refuses", "hangs before head", "hangs mid-event", "more than Content-Length"]
CELLS = [
    *(("http1", name, "patient", "none") for name in [*BEFORE_HEAD, *IN_BODY]),
    *(("http1", name, "patient", "editing") for name in IN_BODY),
    *(("http1", name, "gone", "none") for name in [*WAITS, "refuses", "trickles its body"]),
    *(("http1", name, "gone", "editing") for name in ["hangs mid-event", "endless event"]),
    *(("http1", name, "stalled", "none") for name in [*STALLS, "stops reading", "answers early"]),
    ("http1", "hangs mid-event", "stalled", "editing"),
    *(("http2", name, "patient", "none") for name in [*BEFORE_HEAD, *IN_BODY]),
    *(("http2", name, "patient", "editing") for name in BROKEN_BODY),
    *(("http2", name, "gone", "none") for name in WAITS),
    *(("http2", name, "resets its stream", "none") for name in WAITS),
    *(("http2", name, "stalled", "editing") for name in STALLS),
    *(("tls upstream", name, "patient", "none") for name in [*BROKEN_BODY, *ENCRYPTED, *OF_TLS]),
    *(("tls client", name, "patient", "none") for name in [*BROKEN_BODY, "hangs mid-event"]),
    *(("no hub", name, "patient", kind) for name in IN_BODY for kind in INTERCEPTORS),
    ("no hub", "hangs mid-event", "gone", "none"),
]


@pytest.mark.parametrize(("way", "name", "client", "interceptors"), CELLS)
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
    fault, outcomes = expected(name, client, interceptors)
    limit_send_buffers(monkeypatch, 65536)
    # For a client that neither sends nor reads. One of HTTP/2 that reads must have its end, however
    # busy the machine is.
    patient_http2 = way == "http2" and client == "patient"
    monkeypatch.setattr("proxy.exchange.request_body.LINGER_S", 5.0 if patient_http2 else 0.2)
    if client != "patient":
        monkeypatch.setattr("proxy.downstream.asgi._QUIET_S", SHORT_S)
        monkeypatch.setattr("proxy.downstream.transport.LAST_BYTES_S", SHORT_S)
    stage = Stage(client)

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
    given = settings(fault, client)
    context = None
    if way == "tls upstream":
        context = certificates.server
        given["upstream"] += f', ca_file: "{certificates.ca_file}"'
    serve = Way(way != "no hub", certificates if way in ("http2", "tls client") else None)
    async with serve.serve(log, monkeypatch)(
        script, *INTERCEPTORS[interceptors], upstream_tls=context, **given
    ) as rig:
        window = WINDOW if client == "stalled" else None
        async with open_side(rig, certificates if way == "http2" else None, window=window) as side:
            if isinstance(side, Client):
                transport = getattr(side.stream, "transport_stream", side.stream)
                transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            answer = await play(side, client, fault, stage, lambda: rig.lines("exchange"))
            (outcome,) = await rig.outcomes()
            stage.over.set()
            assert outcome in outcomes
            for each in Outcome:
                assert rig.metric("weirpool_exchanges_total", route="/", outcome=each.value) == (
                    each.value == outcome
                )
            if client == "patient" or (client == "stalled" and not fault.in_body):
                assert answer is not None
                check_answer(answer, fault, interceptors)
            elif answer is not None:
                assert not answer.complete
            if isinstance(side, Http2Requester) and client != "gone":
                await check_connection(side, client, answer)
        await rig.everything_is_back()
        (state,) = rig.proxy.worker.routes.transports["up"].statistics()
        await until(lambda: rig.upstream.open <= state.idle)
        good = await rig.fetch("/good")
        assert (good.status, good.complete) == (200, True)


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
