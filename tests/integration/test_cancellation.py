"""An exchange that is ended at any of its awaits leaks nothing, whatever ends it.

An exchange of each kind is run again and again: ended at its first checkpoint, at its second, and so
on, until it is over before its turn comes. The upstream has one connection (`max_connections: 1`),
so that whatever was lost would be missed by the request that follows.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from functools import partial
from termios import FIONREAD

import h11
import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.http2_client import BROKEN, Http2Requester, Side, open_side
from support.injection import ARMED, Injector, armed_exchanges
from support.interceptors import Log, Rig, Way, on_event, on_event_async, until
from support.proxy import limit_send_buffers
from support.upstream import Peer, Request

from interceptors import (
    Event,
    EventResult,
    Interceptor,
    Outcome,
    Response,
    StreamContext,
    StreamInterceptor,
)
from interceptors import Request as HookRequest

EVENTS = [b"data: %d\n\n" % number for number in range(4)]
LARGE = [b"data: %d %s\n\n" % (number, b"x" * 20_000) for number in range(40)]
UPLOAD = bytes(range(256)) * 2400
GOOD = b"data: good\n\n"
MOST_CHECKPOINTS = 1000
ROUNDS = 4  # no two exchanges on real sockets take quite the same steps, so that one round may pass an await by
SMALL_BYTES = 65536


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy soon waits for a client that does not read."""
    limit_send_buffers(monkeypatch, SMALL_BYTES)


# What ends it


def drain(client: Side, injector: Injector) -> None:
    """As the worker does when it has drained long enough."""
    assert injector.exchange is not None
    injector.exchange.stop()


def cancel(client: Side, injector: Injector) -> None:
    """From outside, as the server does when it shuts down."""
    injector.scope.cancel()


def reset(client: Side, injector: Injector) -> None:
    """The client's connection is reset, or its stream."""
    if isinstance(client, Http2Requester):
        client.reset_stream_soon()
    else:
        client.reset()


def leave(client: Side, injector: Injector) -> None:
    """The client closes its connection."""
    if isinstance(client, Http2Requester):
        client.connection.close_connection()
        return
    getattr(client.stream, "transport_stream", client.stream).socket.close()


ENDINGS = {
    "drain": (drain, "draining"),
    "cancel": (cancel, "draining"),
    "reset": (reset, "client_disconnected"),
    "leave": (leave, "client_disconnected"),
}


# What is ended


async def stream(peer: Peer, request: Request) -> None:
    """Events that come one by one."""
    await peer.take_body(request)
    await peer.start_stream()
    for event in EVENTS:
        await peer.chunk(event)
        await trio.sleep(0.001)
    await peer.end()


async def large_stream(peer: Peer, request: Request) -> None:
    await peer.take_body(request)
    await peer.start_stream()
    for event in LARGE:
        await peer.chunk(event)
    await peer.end()


async def take_upload(peer: Peer, request: Request) -> None:
    """Answer with the size of what came, which is not read at once."""
    sock = peer.stream.socket  # type: ignore[attr-defined]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
    await no_more_arrives(sock)
    await peer.take_body(request)
    body = b"%d" % len(request.body)
    await peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )


async def no_more_arrives(sock: trio.socket.SocketType) -> None:
    """Return when the sender waits. A time alone would pass while the whole process does."""
    seen, unchanged = -1, 0
    while unchanged < 4:
        await trio.sleep(0.005)
        waiting = bytearray(4)
        ioctl(sock.fileno(), FIONREAD, waiting)
        size = int.from_bytes(waiting, sys.byteorder)
        unchanged = unchanged + 1 if size == seen else 0
        seen = size


async def json_body(peer: Peer, request: Request) -> None:
    """A JSON body in two pieces."""
    await peer.take_body(request)
    await peer.send(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{"text": '
    )
    await trio.sleep(0.001)
    await peer.send(b'"secret"')


async def get(client: Side) -> Answer:
    await client.send("GET", ARMED)
    return await client.answer()


async def get_twice(client: Side) -> Answer:
    """The second request of a connection that the client keeps."""
    await client.send("GET", "/good")
    assert (await client.answer()).body == GOOD
    client.next_cycle()
    return await get(client)


async def get_slowly(client: Side) -> Answer:
    """So that the proxy has to wait for the client."""
    await client.send("GET", ARMED)
    answer = await client.head()
    await trio.sleep(0.05)
    return await client.rest(answer)


async def upload(client: Side) -> Answer:
    """A body in pieces, of unknown length."""
    assert isinstance(client, Client)
    head = f"POST {ARMED} HTTP/1.1\r\nHost: proxy.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.stream.send_all(head.encode())
    for at in range(0, len(UPLOAD), 60_000):
        piece = UPLOAD[at : at + 60_000]
        await client.stream.send_all(b"%x\r\n%s\r\n" % (len(piece), piece))
        await trio.sleep(0.001)
    await client.stream.send_all(b"0\r\n\r\n")
    client._h11.send(
        h11.Request(method="POST", target=ARMED, headers=[("Host", "x"), ("Content-Length", "0")])
    )
    client._h11.send(h11.EndOfMessage())
    return await client.answer()


@dataclass
class Streams:
    """How often `on_end` was called for each stream that was opened."""

    ends: list[list[Outcome]] = field(default_factory=list)

    def check(self) -> None:
        assert [len(ends) for ends in self.ends] == [1] * len(self.ends)

    def interceptor(
        self, on_event: Callable[[Event], EventResult] | None = None, **attributes: object
    ) -> type[Interceptor]:
        """One that counts; without `on_event` it emits an event now and then."""
        ends_of_streams = self.ends

        class Counted(StreamInterceptor):
            def __init__(self) -> None:
                self.ends: list[Outcome] = []
                ends_of_streams.append(self.ends)

            def on_end(self, outcome: Outcome) -> None:
                self.ends.append(outcome)

        class Counting(Interceptor):
            def open_stream(self, context: StreamContext) -> StreamInterceptor:
                if on_event is None:
                    context.start_soon(emit, context)
                else:
                    Counted.on_event = staticmethod(on_event)  # type: ignore[method-assign]
                return Counted()

        return type("Counting", (Counting,), attributes)


def edit(event: Event) -> EventResult:
    return event.replace(data=event.data + "!")


async def edit_later(event: Event) -> EventResult:
    await trio.sleep(0)
    return edit(event)


def hide(event: Event) -> EventResult:
    return event.replace(json={"text": "hidden"})


async def emit(context: StreamContext) -> None:
    for _ in range(2):
        await context.emit(Event("spoken"))
        await trio.sleep(0.001)
    await trio.sleep_forever()


class Answers(Interceptor):
    """Answers instead of the upstream, with events that take a while."""

    async def on_request(self, request: HookRequest) -> Response | None:
        return Response(events=self.events()) if request.path == ARMED else None

    async def events(self) -> AsyncIterator[Event]:
        for number in range(3):
            await trio.sleep(0.001)
            yield Event(str(number))


class WantsBody(Interceptor):
    wants_body = True

    async def on_request(self, request: HookRequest) -> None:
        await trio.sleep(0)


@dataclass(frozen=True)
class Exchanging:
    """A kind of exchange."""

    places: tuple[str, ...]
    """Where an ending must have happened."""
    play: Callable[[Side], Awaitable[Answer]] = get
    script: Callable[[Peer, Request], Awaitable[None]] = stream
    body: bytes | None = b"".join(EVENTS)
    """What the client gets when nothing ends it; None: not always the same."""
    outcome: str = "completed"
    others: int = 0
    """Exchanges that `play` needs besides the one that is ended."""
    given: Callable[[Streams], tuple[type[Interceptor], ...]] = lambda streams: ()
    upstream_tls: bool = False
    client_tls: bool = False
    http2: bool = False
    keep: bool = False
    """The upstream's connection is kept from one exchange to the next."""


UPLOADED = b"%d" % len(UPLOAD)
EDITED, TWICE = (b"".join(b"data: %d%b\n\n" % (n, end) for n in range(4)) for end in (b"!", b"!!"))
KINDS = {
    "stream": Exchanging(
        ("dial.start_tls", "dial._attempt", "http1._read_head", "hub.move"), upstream_tls=True
    ),
    "both sides kept": Exchanging(
        ("http1._read_head", "hub.move"), play=get_twice, others=1, keep=True
    ),
    "slow client": Exchanging(
        ("http1_stream.drain",),
        play=get_slowly,
        script=large_stream,
        body=b"".join(LARGE),
        keep=True,
    ),
    "editing": Exchanging(
        ("hub.move", "http1._read_head"),
        body=EDITED,
        given=lambda streams: (streams.interceptor(edit), on_event(lambda event: event)),
    ),
    "async hooks": Exchanging(
        ("passage.run_async", "hub.move"),
        body=TWICE,
        given=lambda _: (on_event_async(edit_later, "One"), on_event_async(edit_later, "Two")),
        keep=True,
    ),
    "emitting": Exchanging(
        ("api.emit", "context.run_task"), body=None, given=lambda streams: (streams.interceptor(),)
    ),
    "upload": Exchanging(
        (
            "request_body._read_rest",
            "request_body._hand_over",
            "request_body.run",
            "connection.send_all",
        ),
        play=upload,
        script=take_upload,
        body=UPLOADED,
    ),
    "collected body": Exchanging(
        ("hooks.call", "request_body.collect"),
        play=upload,
        script=take_upload,
        body=UPLOADED,
        given=lambda _: (WantsBody,),
    ),
    "JSON": Exchanging(
        ("response_body.read_json",),
        script=json_body,
        body=b'{"text":"hidden"}',
        given=lambda streams: (streams.interceptor(hide, wants_json=True),),
    ),
    "answered": Exchanging(
        ("answer._next_event",),
        body=b"data: 0\n\ndata: 1\n\ndata: 2\n\n",
        outcome="intercepted",
        given=lambda _: (Answers,),
    ),
    "tls client": Exchanging(("http1._read_head", "hub.move"), client_tls=True),
    "http2": Exchanging(
        ("http1._read_head", "hub.move", "passage.run_async"),
        http2=True,
        body=TWICE,
        given=lambda streams: (streams.interceptor(edit), on_event_async(edit_later)),
        keep=True,
    ),
}
RUNS = [
    *((kind, ending) for kind in KINDS for ending in ("cancel", "reset")),
    # These differ in how the client and the log see the end.
    *(("editing", ending) for ending in ("drain", "leave")),
    *(("http2", ending) for ending in ("drain", "leave")),
    ("upload", "leave"),
    ("slow client", "drain"),
]


@pytest.mark.parametrize(("kind", "ending"), RUNS)
async def test_an_exchange_ended_at_any_await_leaks_nothing(
    kind: str, ending: str, certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at each checkpoint: one log line and count; no task, lease or connection left."""
    exchanging = KINDS[kind]
    act, ends_as = ENDINGS[ending]
    streams = Streams()
    watch = armed_exchanges(monkeypatch)

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request(body=False)
            if request.target == ARMED.encode():
                await exchanging.script(peer, request)
            else:
                await peer.take_body(request)
                await peer.start_stream()
                await peer.chunk(GOOD)
                await peer.end()
            if not exchanging.keep:
                return

    settings = {"upstream": "max_connections: 1"}
    may_end_as = {exchanging.outcome, ends_as}
    if exchanging.upstream_tls:
        settings["upstream"] += f', ca_file: "{certificates.ca_file}"'
    tls = certificates if exchanging.client_tls or exchanging.http2 else None
    serve = Way(certificates=tls).serve(log, monkeypatch)
    upstream_tls = certificates.server if exchanging.upstream_tls else None
    places: Counter[str] = Counter()
    async with serve(
        script, *exchanging.given(streams), upstream_tls=upstream_tls, **settings
    ) as rig:
        await follow_up(rig, "before everything")
        at_rest = descriptors()
        for _ in range(ROUNDS):
            untouched = 0
            for at in range(1, MOST_CHECKPOINTS):
                lines, metric = len(rig.lines("exchange")), ended(rig)
                async with open_side(rig, certificates if exchanging.http2 else None) as client:
                    injector = Injector(at, partial(act, client))
                    watch(injector)
                    answer: Answer | None = None
                    with trio.fail_after(10), suppress(*BROKEN):
                        answer = await exchanging.play(client)
                    with trio.fail_after(10):
                        await injector.ended.wait()
                    fired, where = injector.fired, f"ended at checkpoint {at}: {injector.where}"
                    places.update(injector.where.split(" > "))
                assert not injector.left, where
                await rig.everything_is_back()
                new = [line["outcome"] for line in rig.lines("exchange")[lines:]]
                assert ended(rig) - metric == len(new), where
                *others, outcome = new
                assert others == ["completed"] * exchanging.others, where
                assert outcome in (may_end_as if fired else {exchanging.outcome}), where
                if not fired:
                    assert answer is not None, where
                    assert answer.complete, where
                if (
                    answer is not None
                    and answer.complete
                    and answer.status == 200
                    and exchanging.body is not None
                ):
                    assert answer.body == exchanging.body, where
                await follow_up(rig, where)
                await until(lambda: descriptors() <= at_rest)
                untouched += not fired
                if untouched == 2:  # no two are quite as long, on real sockets
                    break
            assert untouched == 2
            if all(map(places.get, exchanging.places)):
                break
        streams.check()
        assert [place for place in exchanging.places if not places[place]] == [], sorted(places)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def ended(rig: Rig) -> float:
    """The exchanges that the metric has counted."""
    return sum(
        rig.metric("weirpool_exchanges_total", route="/", outcome=outcome.value) or 0
        for outcome in Outcome
    )


async def follow_up(rig: Rig, where: str) -> None:
    """A request that needs the one connection that there may be."""
    answer = await rig.fetch("/good")
    assert (answer.status, answer.complete) == (200, True), where
    await until(lambda: not rig.proxy.worker.live)
