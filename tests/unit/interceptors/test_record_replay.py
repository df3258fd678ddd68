"""Record and replay: a tape stores what happened and when; playing it back repeats it."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from interceptors import (
    Abort,
    Event,
    Interceptor,
    InterceptorError,
    LoadError,
    Outcome,
    Request,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.loader import load_interceptor
from interceptors.record import Record, RecordOptions
from interceptors.replay import Replay, ReplayOptions, read_tape
from interceptors.testing import run_chain
from interceptors.toolkit.jsonl import Line

HEADER = '{"weirpool_tape":1,"method":"GET","path":"/","status":200,"headers":{"content-type":"text/event-stream"}}\n'


def record(
    tmp_path: Path, chunks: list[bytes], *others: Interceptor, **given: Any
) -> list[dict[str, Any]]:
    """The lines of the one tape that is made of a stream."""
    directory = tmp_path / "tapes"
    run_chain([Record(RecordOptions(directory=str(directory))), *others], chunks, **given)
    (tape,) = directory.iterdir()
    return [json.loads(line) for line in tape.read_bytes().splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "at"} for line in lines[1:]]


def tape_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tape.jsonl"
    path.write_text(text)
    return str(path)


def open_replay(path: str, speed: Any = "real") -> Replay:
    return Replay(ReplayOptions(path=path, speed=speed))


async def play(
    replay: Replay, request: Request | None = None
) -> AsyncIterator[tuple[float, Event]]:
    """The events of one answer, each with the time since it was asked for."""
    async with replay.lifespan():
        response = await replay.on_request(request or Request())
        began = trio.current_time()
        events: Any = response.events
        async for event in events:
            yield trio.current_time() - began, event


# Recording


def test_a_tape_has_a_header_the_events_and_the_end(tmp_path: Path) -> None:
    """Each field that an event has, none that it has not, times that never go back, and the
    exchange's outcome.
    """
    chunks = [
        b"event: e\nid: 7\nretry: 10\ndata: one\n\n: a comment\n\ndata: w\xc3\xb6rld\ndata: 2\n\n",
        b"id: 8\n\ndata:\n\n",
    ]
    lines = record(
        tmp_path, chunks, request=Request(method="POST", path="/v1/chat", query=b"key=hidden")
    )
    assert lines[0] == {
        "weirpool_tape": 1,
        "method": "POST",
        "path": "/v1/chat",
        "status": 200,
        "headers": {"content-type": "text/event-stream"},
    }
    assert without_times(lines) == [
        {"event": "e", "id": "7", "retry": 10, "data": "one"},
        {"data": "wörld\n2"},
        {"id": "8"},
        {"data": ""},
        {"end": "completed"},
    ]
    times = [line["at"] for line in lines[1:]]
    assert times == sorted(times)
    assert times[0] >= 0


def test_only_the_content_type_is_recorded_of_all_headers(tmp_path: Path) -> None:
    """Nothing of the request's headers and of its query, nothing of other headers of the response."""
    secret = b"s3cr3t"
    request = Request(
        query=b"key=" + secret, headers=[(b"authorization", secret), (b"cookie", secret)]
    )
    head = ResponseHead(
        201,
        [(b"content-type", b"text/event-stream; charset=utf-8"), (b"set-cookie", secret)],
        request,
    )
    lines = record(tmp_path, [b"data: 1\n\n"], request=request, head=head)
    assert lines[0]["headers"] == {"content-type": "text/event-stream; charset=utf-8"}
    assert lines[0]["status"] == 201
    (tape,) = (tmp_path / "tapes").iterdir()
    assert secret not in tape.read_bytes()


def test_what_a_client_would_not_count_as_an_event_is_not_recorded(tmp_path: Path) -> None:
    """A stream that stops within an event."""
    lines = record(tmp_path, [b"data: 1\r\n\r\ndata: 2\r\rdata: 3\n\ndata: cut\n"])
    assert without_times(lines) == [
        {"data": "1"},
        {"data": "2"},
        {"data": "3"},
        {"end": "completed"},
    ]
    lines = record(tmp_path / "again", [b"data: 1\r\n\r\ndata: cut\r\n"])
    assert without_times(lines) == [{"data": "1"}, {"end": "completed"}]


def test_a_stream_that_breaks_has_its_outcome_on_the_tape(tmp_path: Path) -> None:
    """Here a later interceptor broke it, after the event was recorded."""

    class BreaksStream(StreamInterceptor):
        def on_event(self, event: Event) -> Event:
            raise Abort("no more")

    class Breaks(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return BreaksStream()

    lines = record(tmp_path, [b"data: 1\n\n"], Breaks())
    assert without_times(lines) == [{"data": "1"}, {"end": "intercepted"}]


def test_each_stream_has_its_own_tape_which_only_its_owner_may_read(tmp_path: Path) -> None:
    """Names begin with the time, so that they sort by it; mode 0600 in a directory of mode 0700."""
    recorder = Record(RecordOptions(directory=str(tmp_path / "a" / "tapes")))
    for _ in range(3):
        run_chain([recorder], [b"data: 1\n\n"])
    tapes = sorted((tmp_path / "a" / "tapes").iterdir(), key=lambda tape: tape.stat().st_mtime_ns)
    assert [tape.name for tape in tapes] == sorted(tape.name for tape in tapes)
    assert len(tapes) == 3
    assert {tape.stat().st_mode & 0o777 for tape in tapes} == {0o600}
    assert (tmp_path / "a" / "tapes").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    """When the process begins to serve."""
    (tmp_path / "file").touch()
    with pytest.raises(InterceptorError, match=r"cannot write to '.*/file/tapes': Not a directory"):
        run_chain([Record(RecordOptions(directory=str(tmp_path / "file" / "tapes")))], [])


def test_a_tape_of_which_a_full_disk_has_lost_something_has_no_end(tmp_path: Path) -> None:
    """Nothing is written after a gap, other tapes are unaffected, and the loss is logged."""
    recorder = Record(RecordOptions(directory=str(tmp_path)))
    sink = recorder._writer._sink
    streams: list[Any] = [recorder.open_stream(StreamContext(Request())) for _ in range(2)]
    torn, whole = (stream._tape for stream in streams)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        left, error = sink.write(
            [Line(b"1234567\n", torn), Line(b"ok\n", whole), Line(b"1234567\n", torn)]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line.target for line in left] == [torn, torn]
    assert error is not None
    assert error.errno == errno.EFBIG
    assert sink.write([Line(b"end\n", torn), Line(b"end\n", whole)])[0] == [Line(b"end\n", torn)]
    assert Path(torn.path).read_bytes() == b"1234567\n12"
    assert Path(whole.path).read_bytes() == b"ok\nend\n"


async def test_a_tape_that_the_disk_could_not_follow_has_no_end(tmp_path: Path) -> None:
    """When a line found no room in memory, nothing more of that stream is recorded."""
    recorder = Record(RecordOptions(directory=str(tmp_path)))
    recorder._writer._max_held_bytes = 1000
    with capture_logs() as log:
        async with recorder.lifespan():
            stream: Any = recorder.open_stream(StreamContext(Request()))
            stream.on_start(ResponseHead(200, []))
            large, small = Event("x" * 1000), Event("small")
            assert stream.on_event(small) is small
            assert stream.on_event(large) is large
            assert stream.on_event(small) is small
            stream.on_end(Outcome.COMPLETED)
    (tape,) = tmp_path.iterdir()
    assert len(tape.read_bytes().splitlines()) == 2
    assert read_tape(str(tape)).outcome is None
    assert [line["event"] for line in log] == ["lines_dropped"]


# Playing back


async def test_what_was_recorded_is_what_is_played(tmp_path: Path) -> None:
    """Status, content type, and every kind of event."""
    sent = b"\xef\xbb\xbfdata: a\r\ndata: b\r\n\r\nevent:e\rid: 1\rdata:x\r\rid: 2\n\nretry: 5\n\ndata\n\n"
    kind = [("content-type", "text/event-stream; charset=utf-8")]
    head = ResponseHead(203, [(name.encode(), value.encode()) for name, value in kind])
    await trio.to_thread.run_sync(lambda: record(tmp_path, [sent], head=head))  # runs its own Trio
    (tape,) = (tmp_path / "tapes").iterdir()
    replay = open_replay(str(tape), "instant")
    assert b"".join([event.raw async for _, event in play(replay)]) == (
        b"data: a\ndata: b\n\nevent: e\nid: 1\ndata: x\n\nid: 2\n\nretry: 5\n\ndata: \n\n"
    )
    response = await replay.on_request(Request(method="POST", path="/elsewhere"))
    assert (response.status, response.headers.multi_items()) == (203, kind)


async def test_events_come_at_their_times(tmp_path: Path, autojump_clock: Any) -> None:
    """As they were, with their types, ids, retries and times, which do not add up errors."""
    path = tape_of(
        tmp_path,
        HEADER
        + '{"at":0.5,"data":"one","event":"e","id":"7","retry":10}\n{"at":0.5,"id":"8"}\n{"at":30,"data":"a\\nb"}\n'
        + '{"at":31,"end":"completed"}\n',
    )
    began = trio.current_time()
    got = [(at, event.raw) async for at, event in play(open_replay(path))]
    assert [raw for _, raw in got] == [
        b"event: e\nid: 7\nretry: 10\ndata: one\n\n",
        b"id: 8\n\n",
        b"data: a\ndata: b\n\n",
    ]
    assert [at for at, _ in got] == pytest.approx([0.5, 0.5, 30])
    assert trio.current_time() - began == pytest.approx(31)


@pytest.mark.parametrize(
    ("speed", "takes"), [("real", 31), ("instant", 0), (inf, 0), (2, 15.5), (0.5, 62)]
)
async def test_the_speed_is_a_factor(
    speed: Any, takes: float, tmp_path: Path, autojump_clock: Any
) -> None:
    """`real` is 1, `instant` is infinite, 2 is twice as fast."""
    path = tape_of(tmp_path, HEADER + '{"at":30,"data":"1"}\n{"at":31,"end":"completed"}\n')
    replay: Any = load_interceptor("replay", {"path": path, "speed": speed})
    began = trio.current_time()
    assert len([event async for event in play(replay)]) == 1
    assert trio.current_time() - began == pytest.approx(takes)


async def test_an_instant_tape_lets_others_have_their_turn(tmp_path: Path) -> None:
    """However many events it has, each is a checkpoint: a long tape must not hold the loop."""
    path = tape_of(
        tmp_path, HEADER + '{"at":1,"data":"1"}\n' * 100 + '{"at":1,"end":"completed"}\n'
    )
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert len([event async for event in play(open_replay(path, "instant"))]) == 100
        nursery.cancel_scope.cancel()
    assert turns >= 100


@pytest.mark.parametrize(("last", "reason"), [
    ('{"at":2,"end":"upstream_error"}\n', "the recorded stream ended here: upstream_error"),
    ("", "the recorded stream ended here: the rest was lost"),
])  # fmt: skip
async def test_a_tape_that_did_not_complete_ends_by_an_abort(
    last: str, reason: str, tmp_path: Path, autojump_clock: Any
) -> None:
    """After its last event, and not like a whole stream; the reason states it."""
    path = tape_of(tmp_path, HEADER + '{"at":1,"data":"1"}\n' + last)
    request = Request()
    got: list[Event] = []
    with pytest.raises(ExceptionGroup) as raised:
        async with trio.open_nursery() as nursery:
            request.spawn = lambda owner, async_fn, args: nursery.start_soon(async_fn, *args)
            async for _, event in play(open_replay(path), request):
                got.append(event)
    (abort,) = raised.value.exceptions
    assert isinstance(abort, Abort)
    assert abort.reason == reason
    assert [event.data for event in got] == ["1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: not a tape header"),
        ('{"at":1,"data":"1"}\n', "1: not a tape header"),
        (HEADER.replace('tape":1', 'tape":2'), "1: not a tape header: .*weirpool_tape"),
        (HEADER.replace("200", "100"), "1: not a tape header: .*status"),
        (HEADER + '{"at":1,"data":"1"}\n{"at":2,"da', "3: not a tape line"),
        (HEADER + '\n{"at":1,"data":"1"}\n', "2: not a tape line"),
        (HEADER + '{"data":"1"}\n', "2: not a tape line: .*`at`"),
        (HEADER + '{"at":-1,"data":"1"}\n', "2: not a tape line"),
        (HEADER + '{"at":1,"data":1}\n', r"2: not a tape line: .*\$.data"),
        (HEADER + '{"at":1,"end":"well"}\n', r"2: not a tape line: .*\$.end"),
        (
            HEADER + '{"at":2,"data":"1"}\n{"at":1,"data":"2"}\n',
            r"3: the time 1.0 is before that of the previous line, 2.0",
        ),
        (
            HEADER + '{"at":1,"end":"completed"}\n{"at":2,"data":"1"}\n',
            "3: a line after the end of the tape",
        ),
        (
            HEADER + '{"at":1,"event":"a\\nb","data":"1"}\n',
            "2: an event's event cannot hold a line end",
        ),
        (HEADER + '{"at":1,"data":"\\ud800"}\n', "2: not a tape line"),
        (HEADER + "[" * 100_000, "2: not a tape line"),
    ],
)
async def test_a_broken_tape_is_refused_with_file_and_line(
    text: str, problem: str, tmp_path: Path
) -> None:
    """When the process begins to serve, and not in the middle of a stream."""
    replay = open_replay(tape_of(tmp_path, text))
    with pytest.raises(InterceptorError, match=rf"tape\.jsonl:{problem}"):
        async with replay.lifespan():
            pass


async def test_a_tape_that_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 have their line, a missing file its name."""
    path = tmp_path / "tape.jsonl"
    path.write_bytes(HEADER.encode() + b'{"at":1,"data":"\xff"}\n')
    with pytest.raises(InterceptorError, match=r"tape\.jsonl:2: not a tape line"):
        read_tape(str(path))
    os.unlink(path)
    with pytest.raises(
        InterceptorError, match=r"cannot read the tape '.*tape\.jsonl': No such file"
    ):
        read_tape(str(path))


@pytest.mark.parametrize(("use", "options", "option"), [
    ("replay", {}, "path"), ("replay", {"path": "t", "speed": 0}, "speed"),
    ("replay", {"path": "t", "speed": -1.5}, "speed"),
    ("replay", {"path": "t", "speed": "fast"}, "speed"), ("record", {}, "directory"),
    ("record", {"directory": ""}, "directory"),
    ("record", {"directory": "t", "path": "t"}, "path"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused_at_load(
    use: str, options: dict[str, Any], option: str
) -> None:
    """With the path of the mistake, before any file is opened."""
    with pytest.raises(LoadError) as refused:
        load_interceptor(use, options)
    assert refused.value.option == option


async def test_the_documented_tape_plays(tmp_path: Path) -> None:
    """The example in the documentation is a tape, so that one may be written by hand after it."""
    text = (Path(__file__).parents[3] / "docs" / "builtins" / "record.md").read_text()
    (example,) = (block.partition("```")[0] for block in text.split("```json\n")[1:])
    got = [event.raw async for _, event in play(open_replay(tape_of(tmp_path, example), "instant"))]
    assert got == [
        b'data: {"delta":"Hel"}\n\n',
        b"event: note\nid: 7\nretry: 3000\ndata: two\ndata: lines\n\n",
    ]
