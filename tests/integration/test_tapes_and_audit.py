"""The built-ins that write files, in whole proxies on real sockets: what a stream writes to disk,
and how it is replayed.

Where it matters who waits and who writes, a test runs three times: with the hub, without it, and
with TLS.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from support.interceptors import Feed, Serve
from support.upstream import Peer, stream_of

from interceptors import Interceptor
from interceptors.audit import Audit, AuditOptions
from interceptors.record import Record, RecordOptions
from interceptors.replay import Replay, ReplayOptions

SECRET = "s3cr3t"


def given(cls: Any, options: Any) -> type[Interceptor]:
    """The class as one without options, as the rig takes them."""
    return type(
        cls.__name__,
        (cls,),
        {"__init__": lambda self: cls.__init__(self, options), "__module__": __name__},
    )


def recording(tmp_path: Path) -> type[Interceptor]:
    return given(Record, RecordOptions(directory=str(tmp_path / "tapes")))


def replaying(tmp_path: Path, speed: Any = "instant") -> type[Interceptor]:
    (tape,) = (tmp_path / "tapes").iterdir()
    return given(Replay, ReplayOptions(path=str(tape), speed=speed))


def auditing(tmp_path: Path, **options: Any) -> type[Interceptor]:
    return given(Audit, AuditOptions(path=str(tmp_path / "audit.jsonl"), **options))


def audited(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]


async def never(peer: Peer) -> None:
    """An upstream that must not be called; the rig counts calls."""
    await peer.request()


# Tapes


async def test_a_recorded_stream_comes_back_from_another_proxy(
    serve: Serve, tmp_path: Path
) -> None:
    """The same head and the same events, whole, and no upstream is asked."""
    events = [
        b"data: 1\n\n",
        b"event: e\nid: 2\nretry: 10\ndata: a\ndata: w\xc3\xb6\n\nid: 3\n\n",
        b'data: {"x":"' + b"y" * 20000 + b'"}\n\n',
    ]
    async with serve(stream_of(b": comment\n\n", *events), recording(tmp_path)) as rig:
        answer = await rig.fetch("/v1?key=1", method="POST", body=b"{}")
        assert answer.body == b": comment\n\n" + b"".join(events)
        assert await rig.outcomes() == ["completed"]
    async with serve(never, replaying(tmp_path)) as rig:
        for _ in range(2):
            again = await rig.fetch("/other")
            assert (again.status, again.all("content-type")) == (200, [b"text/event-stream"])
            assert (again.body, again.complete) == (b"".join(events), True)
        assert rig.upstream.accepted == 0
        assert (await rig.outcomes(3))[1:] == ["intercepted"] * 2


async def test_a_stream_that_broke_breaks_again(serve: Serve, tmp_path: Path) -> None:
    """Upstream hangs up in the middle."""
    feed = Feed()
    async with serve(feed.script, recording(tmp_path)) as rig:
        feed.send(b"data: 1\n\n")
        feed.hang_up()
        answer = await rig.fetch()
        assert not answer.complete
        assert await rig.outcomes() == ["upstream_error"]
    async with serve(never, replaying(tmp_path)) as rig:
        again = await rig.fetch()
        message = '{"error":{"type":"aborted","message":"the recorded stream ended here: upstream_error"}}'
        assert again.body == b"data: 1\n\nevent: error\ndata: " + message.encode() + b"\n\n"
        assert not again.complete
        assert await rig.outcomes(2) == ["upstream_error", "intercepted"]
        assert rig.failures() == []


async def test_a_client_may_leave_a_tape_that_plays(serve: Serve, tmp_path: Path) -> None:
    """The next event is an hour away."""
    tapes = tmp_path / "tapes"
    tapes.mkdir()
    (tapes / "tape.jsonl").write_text(
        '{"weirpool_tape":1,"method":"GET","path":"/","status":200,"headers":{"content-type":"text/event-stream"}}\n'
        '{"at":0,"data":"1"}\n{"at":3600,"data":"2"}\n{"at":3600,"end":"completed"}\n'
    )
    async with serve(never, replaying(tmp_path, "real")) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
        await client.aclose()
        assert await rig.outcomes() == ["client_disconnected"]


# Audit


async def test_every_exchange_has_its_lines(serve: Serve, tmp_path: Path) -> None:
    """A stream that completes, a client that leaves in the middle of one, a JSON answer, an
    upstream that hangs up: each has its request under its own id, and each body that began
    has its end with the outcome.
    """
    gone = trio.Event()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/json":
                await peer.send(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                )
                continue
            if request.target == b"/dead":
                return
            await peer.start_stream()
            await peer.chunk(b"event: hello\ndata: 1\n\ndata: 2\n\n")
            if request.target == b"/left":
                await peer.wait_closed()
                gone.set()
                return
            await peer.end()

    async with serve(script, auditing(tmp_path)) as rig:
        assert (await rig.fetch("/whole")).complete
        client, answer = await rig.start("/left")
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 2\n\n")
            await client.aclose()
            await gone.wait()
        assert (await rig.fetch("/json")).body == b"{}"
        assert (await rig.fetch("/dead", method="POST", body=b"{}")).status == 502
        outcomes = await rig.outcomes(4)
        assert outcomes == ["completed", "client_disconnected", "completed", "upstream_error"]

    lines = audited(tmp_path)
    requests = {line["path"]: line["exchange"] for line in lines if line["event"] == "request"}
    assert list(requests) == ["/whole", "/left", "/json", "/dead"]
    assert len(set(requests.values())) == 4
    exchanges = {
        path: [line for line in lines if line["exchange"] == exchange]
        for path, exchange in requests.items()
    }
    whole = ["request", "response", "stream_event", "stream_event", "end"]
    assert {path: [line["event"] for line in own] for path, own in exchanges.items()} == {
        "/whole": whole,
        "/left": whole,
        "/json": ["request", "response", "end"],
        "/dead": ["request"],
    }
    ends = {
        line["path"]: (line["status"], line["events"], line["outcome"])
        for line in lines
        if line["event"] == "end"
    }
    assert ends == {
        "/whole": (200, 2, "completed"),
        "/left": (200, 2, "client_disconnected"),
        "/json": (200, None, "completed"),
    }
    assert {line["client"] for line in lines if line["event"] == "end"} == {"127.0.0.1"}


async def test_a_secret_in_headers_or_query_is_in_no_file(
    serve_once: Serve, tmp_path: Path
) -> None:
    """Whatever else is asked for."""
    secret = SECRET.encode()

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request.all("authorization") == [b"Bearer " + secret]
        await peer.start_stream(b"Set-Cookie: session=" + secret)
        await peer.chunk(b"data: 1\n\n")
        await peer.end()

    headers = [
        (name, f"Bearer {SECRET}")
        for name in ("Authorization", "Cookie", "X-Api-Key", "Proxy-Authorization")
    ]
    interceptors = auditing(tmp_path, events="data", body=True), recording(tmp_path)
    async with serve_once(script, *interceptors) as rig:
        answer = await rig.fetch(
            f"/v1?key={SECRET}", headers=headers, method="POST", body=b'{"public":1}'
        )
        assert answer.all("set-cookie") == [b"session=" + secret]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert secret not in path.read_bytes()
    assert [line["body"] for line in audited(tmp_path) if line["event"] == "request"] == [
        '{"public":1}'
    ]


async def test_an_audit_without_events_leaves_a_stream_unparsed(
    serve_once: Serve, tmp_path: Path
) -> None:
    """The proxy counts no events, as without interceptors, and yet the end is written down."""
    async with serve_once(stream_of(b"data: 1\n\n"), auditing(tmp_path, events="none")) as rig:
        assert (await rig.fetch()).body == b"data: 1\n\n"
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] is None
    assert [line["event"] for line in audited(tmp_path)] == ["request", "response", "end"]


async def test_streams_that_a_shutdown_ends_are_in_the_files(
    serve_once: Serve, tmp_path: Path
) -> None:
    """What is written while the process ends arrives, too."""
    feed = Feed()
    async with serve_once(feed.script, auditing(tmp_path), recording(tmp_path), drains=True) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
    assert audited(tmp_path)[-1]["outcome"] == "draining"
    (tape,) = (tmp_path / "tapes").iterdir()
    assert [json.loads(line).get("end") for line in tape.read_bytes().splitlines()] == [
        None,
        None,
        "draining",
    ]
