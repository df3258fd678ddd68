"""The built-ins that write files, in whole proxies on real sockets: what a stream writes to disk,
and how it is replayed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from support.interceptors import Feed, Serve, with_options
from support.upstream import Peer, stream_of

from interceptors import Interceptor
from interceptors.audit import Audit, AuditOptions
from interceptors.record import Record, RecordOptions
from interceptors.replay import Replay, ReplayOptions


def recording(tmp_path: Path) -> type[Interceptor]:
    return with_options(Record, RecordOptions(directory=str(tmp_path / "tapes")))


def replaying(tmp_path: Path, speed: Any = "instant") -> type[Interceptor]:
    (tape,) = (tmp_path / "tapes").iterdir()
    return with_options(Replay, ReplayOptions(path=str(tape), speed=speed))


def auditing(tmp_path: Path, **options: Any) -> type[Interceptor]:
    return with_options(Audit, AuditOptions(path=str(tmp_path / "audit.jsonl"), **options))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Of a file, or of the one file in a directory."""
    (path,) = path.iterdir() if path.is_dir() else [path]
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def never(peer: Peer) -> None:
    """An upstream that must not be called; the rig counts calls."""
    await peer.request()


# Tapes


async def test_a_recorded_stream_is_replayed(serve: Serve, tmp_path: Path) -> None:
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


async def test_a_stream_that_broke_breaks_again(serve_once: Serve, tmp_path: Path) -> None:
    """Upstream hangs up in the middle; then the tape has lost its end."""
    feed = Feed()
    async with serve_once(feed.script, recording(tmp_path)) as rig:
        feed.send(b"data: 1\n\n")
        feed.hang_up()
        assert not (await rig.fetch()).complete
        assert await rig.outcomes() == ["upstream_error"]
    for reason in ("upstream_error", "the rest was lost"):
        rig.log.clear()
        async with serve_once(never, replaying(tmp_path)) as rig:
            again = await rig.fetch()
            message = '{"error":{"type":"aborted","message":"the recorded stream ended here: %s"}}'
            error = b"event: error\ndata: " + (message % reason).encode()
            assert again.body == b"data: 1\n\n" + error + b"\n\n"
            assert not again.complete
            assert await rig.outcomes() == ["intercepted"]
            assert rig.failures() == []
        (tape,) = (tmp_path / "tapes").iterdir()
        tape.write_bytes(b"".join(tape.read_bytes().splitlines(keepends=True)[:2]))


async def test_a_client_may_leave_a_tape_that_plays(serve_once: Serve, tmp_path: Path) -> None:
    """The next event is an hour away."""
    tapes = tmp_path / "tapes"
    tapes.mkdir()
    (tapes / "tape.jsonl").write_text(
        '{"weirpool_tape":1,"method":"GET","path":"/","status":200,"headers":{"content-type":"text/event-stream"}}\n'
        '{"at":0,"data":"1"}\n{"at":3600,"data":"2"}\n{"at":3600,"end":"completed"}\n'
    )
    async with serve_once(never, replaying(tmp_path, "real")) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
        await client.aclose()
        assert await rig.outcomes() == ["client_disconnected"]


# Audit


async def test_every_exchange_has_its_lines(serve_once: Serve, tmp_path: Path) -> None:
    """Each exchange has its request under its own id, and each body that began has its end with the
    outcome. A JSON body passes unseen.
    """

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/json":
                await peer.send(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n"
                    b'"unseen"'
                )
                continue
            if request.target == b"/dead":
                return
            await peer.start_stream()
            await peer.chunk(b"event: hello\ndata: 1\n\ndata: 2\n\n")
            if request.target == b"/left":
                await peer.wait_closed()
                return
            await peer.end()

    async with serve_once(script, auditing(tmp_path, events="data")) as rig:
        assert (await rig.fetch("/whole")).complete
        client, answer = await rig.start("/left")
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 2\n\n")
        await client.aclose()
        await rig.outcomes(2)
        assert (await rig.fetch("/json")).body == b'"unseen"'
        assert (await rig.fetch("/dead", method="POST", body=b"{}")).status == 502
        await rig.outcomes(4)

    lines = lines_of(tmp_path / "audit.jsonl")
    exchanges: dict[str, list[str]] = {}
    for line in lines:
        exchanges.setdefault(line["exchange"], []).append(line["event"])
    whole = ["request", "response", "stream_event", "stream_event", "end"]
    assert [*exchanges.values()] == [whole, whole, ["request", "response", "end"], ["request"]]
    assert [line["path"] for line in lines if line["event"] == "request"] == [
        "/whole", "/left", "/json", "/dead",
    ]  # fmt: skip
    ends = [line for line in lines if line["event"] == "end"]
    assert [(line["path"], line["status"], line["events"], line["outcome"]) for line in ends] == [
        ("/whole", 200, 2, "completed"),
        ("/left", 200, 2, "client_disconnected"),
        ("/json", 200, None, "completed"),
    ]
    assert {line["client"] for line in ends} == {"127.0.0.1"}
    assert "unseen" not in str(lines)


async def test_a_shutdown_completes_the_files(serve_once: Serve, tmp_path: Path) -> None:
    """What is written while the process ends arrives, too."""
    feed = Feed()
    async with serve_once(feed.script, auditing(tmp_path), recording(tmp_path), drains=True) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
    assert lines_of(tmp_path / "audit.jsonl")[-1]["outcome"] == "draining"
    ends = [line.get("end") for line in lines_of(tmp_path / "tapes")]
    assert ends == [None, None, "draining"]
