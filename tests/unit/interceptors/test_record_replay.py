"""Record and replay: a tape stores what happened and when; playing it back repeats it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from interceptors import Event, InterceptorError, Outcome, Request, ResponseHead, StreamContext
from interceptors.loader import load_interceptor
from interceptors.record import Record, RecordOptions
from interceptors.replay import Replay, read_tape
from interceptors.testing import run_chain
from interceptors.toolkit.jsonl import Line

HEADER = '{"weirpool_tape":1,"method":"GET","path":"/","status":200,"headers":{"content-type":"text/event-stream"}}\n'
EVENT, END = '{"at":1,"data":"1"}\n', '{"at":1,"end":"completed"}\n'


def record(directory: Path, stream: bytes, **given: Any) -> list[dict[str, Any]]:
    """The lines of the one tape that is made of a stream, without their times."""
    run_chain([Record(RecordOptions(directory=str(directory)))], [stream], **given)
    (tape,) = directory.iterdir()
    head, *lines = map(json.loads, tape.read_bytes().splitlines())
    times = [line.pop("at") for line in lines]
    assert times == sorted(times)
    assert times[0] >= 0
    return [head, *lines]


def replay_of(tmp_path: Path, tape: str, speed: Any = "real") -> Any:
    path = tmp_path / "tape.jsonl"
    path.write_text(tape)
    return load_interceptor("replay", {"path": str(path), "speed": speed})


async def play(replay: Replay) -> AsyncIterator[tuple[float, Event]]:
    """The events of one answer, each with the time since it was asked for."""
    async with replay.lifespan():
        response = await replay.on_request(Request())
        began = trio.current_time()
        events: Any = response.events
        async for event in events:
            yield trio.current_time() - began, event


# Recording


def test_a_tape_has_a_header_the_events_and_the_end(tmp_path: Path) -> None:
    """Each field that an event has, none that it has not, and the exchange's outcome."""
    stream = b"event: e\nid: 7\nretry: 10\ndata: one\n\n: a comment\n\ndata: w\xc3\xb6rld\ndata: 2\n\nid: 8\n\ndata:\n\n"
    request = Request(method="POST", path="/v1/chat", query=b"key=hidden")
    headers = {"content-type": "text/event-stream"}
    assert record(tmp_path, stream, request=request) == [
        {"weirpool_tape": 1, "method": "POST", "path": "/v1/chat", "status": 200, "headers": headers},
        {"event": "e", "id": "7", "retry": 10, "data": "one"},
        {"data": "wörld\n2"},
        {"id": "8"},
        {"data": ""},
        {"end": "completed"},
    ]  # fmt: skip


@pytest.mark.parametrize(("stream", "data"), [
    (b"data: 1\r\n\r\ndata: 2\r\rdata: 3\n\ndata: cut\n", ["1", "2", "3"]),
    (b"data: 1\r\n\r\ndata: cut\r\n", ["1"]),
])  # fmt: skip
def test_only_events_are_recorded(stream: bytes, data: list[str], tmp_path: Path) -> None:
    """A stream that stops within an event."""
    _, *events, end = record(tmp_path, stream)
    assert events == [{"data": each} for each in data]
    assert end == {"end": "completed"}


def test_each_stream_has_its_own_tape_which_only_its_owner_may_read(tmp_path: Path) -> None:
    """Names begin with the time, so that they sort by it; mode 0600 in a directory of mode 0700."""
    directory = tmp_path / "a" / "tapes"
    recorder = Record(RecordOptions(directory=str(directory)))
    for _ in range(3):
        run_chain([recorder], [b"data: 1\n\n"])
    tapes = sorted(directory.iterdir(), key=lambda tape: tape.stat().st_mtime_ns)
    assert len(tapes) == 3
    assert tapes == sorted(tapes)
    assert {tape.stat().st_mode & 0o777 for tape in tapes} == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    """When the process begins to serve."""
    (tmp_path / "file").touch()
    with pytest.raises(InterceptorError, match=r"cannot write to '.*/file/tapes': Not a directory"):
        run_chain([Record(RecordOptions(directory=str(tmp_path / "file" / "tapes")))], [])


def test_a_tape_of_which_the_disk_has_lost_something_has_no_end(tmp_path: Path) -> None:
    """Nothing is written after a gap, and other tapes are unaffected."""
    recorder = Record(RecordOptions(directory=str(tmp_path)))
    sink = recorder._writer._sink
    streams: list[Any] = [recorder.open_stream(StreamContext(Request())) for _ in range(2)]
    torn, whole = (stream._tape for stream in streams)
    Path(torn.path).mkdir()
    lost = [Line(b"1\n", torn), Line(b"2\n", torn)]
    left, error = sink.write([lost[0], Line(b"ok\n", whole), lost[1]])
    assert (left, type(error)) == (lost, IsADirectoryError)
    Path(torn.path).rmdir()
    assert sink.write([Line(b"end\n", torn), Line(b"end\n", whole)])[0] == [Line(b"end\n", torn)]
    assert not Path(torn.path).exists()
    assert Path(whole.path).read_bytes() == b"ok\nend\n"


async def test_a_tape_that_the_disk_could_not_follow_has_no_end(tmp_path: Path) -> None:
    """When a line found no room in memory, nothing more of that stream is recorded."""
    recorder = Record(RecordOptions(directory=str(tmp_path)))
    recorder._writer._max_held_bytes = 1000
    with capture_logs() as log:
        async with recorder.lifespan():
            stream: Any = recorder.open_stream(StreamContext(Request()))
            stream.on_start(ResponseHead(200, []))
            for event in (Event("small"), Event("x" * 1000), Event("small")):
                assert stream.on_event(event) is event
            stream.on_end(Outcome.COMPLETED)
    (tape,) = tmp_path.iterdir()
    assert len(tape.read_bytes().splitlines()) == 2
    assert read_tape(str(tape)).outcome is None
    assert [line["event"] for line in log] == ["lines_dropped"]


# Playing back


async def test_what_was_recorded_is_what_is_played(tmp_path: Path) -> None:
    """Status, content type, and every kind of event."""
    sent = b"\xef\xbb\xbfdata: a\r\ndata: b\r\n\r\nevent:e\rid: 1\rdata:x\r\rid: 2\n\nretry: 5\n\ndata\n\n"
    head = ResponseHead(203, [(b"content-type", b"text/event-stream; charset=utf-8")])
    await trio.to_thread.run_sync(lambda: record(tmp_path, sent, head=head))  # runs its own Trio
    (tape,) = tmp_path.iterdir()
    replay = replay_of(tmp_path, tape.read_text(), "instant")
    assert b"".join([event.raw async for _, event in play(replay)]) == (
        b"data: a\ndata: b\n\nevent: e\nid: 1\ndata: x\n\nid: 2\n\nretry: 5\n\ndata: \n\n"
    )
    response = await replay.on_request(Request(method="POST", path="/elsewhere"))
    assert (response.status, response.headers.multi_items()) == (203, head.headers.multi_items())


@pytest.mark.parametrize(
    ("speed", "factor"), [("real", 1), ("instant", 0), (inf, 0), (2, 0.5), (0.5, 2)]
)
async def test_events_come_at_their_times(
    speed: Any, factor: float, tmp_path: Path, autojump_clock: Any
) -> None:
    """As they were, and their times do not add up errors. The speed is a factor."""
    tape = '{"at":0.5,"data":"one"}\n{"at":0.5,"id":"8"}\n{"at":30,"data":"a"}\n{"at":31,"end":"completed"}\n'
    began = trio.current_time()
    times = [at async for at, _ in play(replay_of(tmp_path, HEADER + tape, speed))]
    assert times == pytest.approx([0.5 * factor, 0.5 * factor, 30 * factor])
    assert trio.current_time() - began == pytest.approx(31 * factor)


async def test_an_instant_tape_lets_others_have_their_turn(tmp_path: Path) -> None:
    """Each event is a checkpoint: a long tape must not hold the loop."""
    replay = replay_of(tmp_path, HEADER + EVENT * 3 + END, "instant")
    async with replay.lifespan():
        async with aclosing((await replay.on_request(Request())).events) as events:
            for _ in range(3):
                with trio.testing.assert_checkpoints():
                    await anext(events)


@pytest.mark.parametrize(("text", "problem"), [
    ("", "1: not a tape header"), (EVENT, "1: not a tape header"),
    (HEADER.replace('tape":1', 'tape":2'), "1: not a tape header: .*weirpool_tape"),
    (HEADER.replace("200", "100"), "1: not a tape header: .*status"),
    (HEADER + EVENT + '{"at":2,"da', "3: not a tape line"),
    (HEADER + "\n" + EVENT, "2: not a tape line"),
    (HEADER + '{"data":"1"}\n', "2: not a tape line: .*`at`"),
    (HEADER + '{"at":-1,"data":"1"}\n', "2: not a tape line"),
    (HEADER + '{"at":1,"data":1}\n', r"2: not a tape line: .*\$.data"),
    (HEADER + '{"at":1,"end":"well"}\n', r"2: not a tape line: .*\$.end"),
    (HEADER + '{"at":2,"data":"1"}\n' + EVENT, "3: the time 1.0 is before that of the previous line, 2.0"),
    (HEADER + END + EVENT, "3: a line after the end of the tape"),
    (HEADER + '{"at":1,"event":"a\\nb","data":"1"}\n', "2: an event's event cannot hold a line end"),
    (HEADER + '{"at":1,"data":"\\ud800"}\n', "2: not a tape line"),
    (HEADER + '{"at":1,"data":"\udcff"}\n', "2: not a tape line"),
    (HEADER + "[" * 100_000, "2: not a tape line"),
], ids=range(16))  # fmt: skip
def test_a_broken_tape_is_refused_by_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InterceptorError, match=rf"tape\.jsonl:{problem}"):
        read_tape(str(path))


async def test_a_tape_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """When the process begins to serve, and not in the middle of a stream."""
    replay = replay_of(tmp_path, HEADER)
    (tmp_path / "tape.jsonl").unlink()
    with pytest.raises(InterceptorError, match=r"cannot read the tape '.*tape\.jsonl': No such"):
        async with replay.lifespan():
            pass


async def test_the_documented_tape_plays(tmp_path: Path) -> None:
    """The example in the documentation is a tape, so that one may be written by hand after it."""
    text = (Path(__file__).parents[3] / "docs" / "builtins" / "record.md").read_text()
    (example,) = (block.partition("```")[0] for block in text.split("```json\n")[1:])
    assert [event.raw async for _, event in play(replay_of(tmp_path, example, "instant"))] == [
        b'data: {"delta":"Hel"}\n\n',
        b"event: note\nid: 7\nretry: 3000\ndata: two\ndata: lines\n\n",
    ]
