"""`record` and `replay`: what was recorded is played back, event for event and at its time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from interceptors import Abort, Event, LoadError, Outcome, Request, Response
from interceptors.loader import load_interceptor
from interceptors.replay import Replay
from interceptors.tape import read_tape
from interceptors.testing import run_chain

STREAM = b'id: 1\nretry: 50\n\nevent: e\ndata: {"a": 1}\ndata: more\n\ndata: \xe2\x80\xa8x\n\ndata:\n\n'
EVENTS = [Event(id="1", retry=50), Event('{"a": 1}\nmore', event="e"), Event("\u2028x"), Event("")]
HEAD = b'{"weirpool_tape":1,"method":"GET","path":"/","status":200}\n'


def replay(path: Path, **options: Any) -> Replay:
    loaded = load_interceptor("interceptors.replay:Replay", {"path": str(path), **options})
    assert isinstance(loaded, Replay)
    return loaded


async def played(interceptor: Replay) -> list[tuple[float, bytes]]:
    """What a client gets and when, counted from the request."""
    async with interceptor.lifespan():
        began = trio.current_time()
        answer = await interceptor.on_request(Request())
        assert isinstance(answer, Response)
        assert isinstance(answer.events, AsyncIterator)
        return [(round(trio.current_time() - began, 6), event.raw) async for event in answer.events]


def test_a_recorded_stream_is_played_back(tmp_path: Path) -> None:
    """Types, ids, retries, several lines, no data and empty data, and characters that are line ends only elsewhere."""
    record = load_interceptor("interceptors.record:Record", {"directory": str(tmp_path / "tapes")})
    request = Request(
        method="POST", path="/v1/chat", query=b"key=secret", headers=[(b"authorization", b"secret")], body=b"secret"
    )
    assert run_chain([record], [STREAM[:20], STREAM[20:]], request=request).output == STREAM
    (tape,) = (tmp_path / "tapes").iterdir()
    assert "secret" not in tape.read_text()
    head = json.loads(tape.read_text().splitlines()[0])
    assert (head["method"], head["path"], head["status"]) == ("POST", "/v1/chat", 200)
    assert read_tape(tape.read_bytes().splitlines()).outcome is Outcome.COMPLETED
    events = trio.run(played, replay(tape, speed="instant"))
    assert [event for _, event in events] == [event.raw for event in EVENTS]


@pytest.mark.parametrize(("speed", "times"), [("real", [0.5, 2.0]), (2, [0.25, 1.0]), ("instant", [0, 0])])
async def test_events_come_at_their_times(speed: Any, times: list[float], tmp_path: Path, autojump_clock: MockClock) -> None:
    tape = tmp_path / "tape.jsonl"
    tape.write_bytes(HEAD + b'{"at":0.5,"data":"a"}\n{"at":2,"data":"b"}\n{"at":2.5,"end":"completed"}\n')
    assert await played(replay(tape, speed=speed)) == list(zip(times, (b"data: a\n\n", b"data: b\n\n"), strict=True))


@pytest.mark.parametrize("end", [b'{"at":1,"end":"upstream_error"}\n', b""])
async def test_what_broke_off_breaks_off_again(end: bytes, tmp_path: Path) -> None:
    """A stream that did not complete, or whose recording stopped, must not look whole."""
    tape = tmp_path / "tape.jsonl"
    tape.write_bytes(HEAD + b'{"at":0.5,"data":"a"}\n' + end)
    with pytest.raises(Abort, match="the recorded stream ended"):
        await played(replay(tape, speed="instant"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "line 1: the file is empty"),
        (b"{}\n", "line 1: .*weirpool_tape"),
        (HEAD.replace(b":1,", b":2,"), "line 1: this is a tape of version 2"),
        (HEAD + b'{"at":1}\nnonsense\n', "line 3: "),
        (HEAD + b'{"at":1}\n{"at":0.5}\n', "line 3: at is 0.5, before"),
        (HEAD + b'{"at":1,"end":"happily"}\n', "line 2: .*happily"),
        (HEAD + b'{"at":1,"id":"a\\nb"}\n', "line 2: .*line end"),
    ],
)
async def test_what_is_no_tape_is_refused_with_its_line(text: bytes, problem: str, tmp_path: Path) -> None:
    tape = tmp_path / "tape.jsonl"
    tape.write_bytes(text)
    with pytest.raises(ValueError, match=f"tape.jsonl: {problem}"):
        await played(replay(tape))


@pytest.mark.parametrize("speed", [0, -1, "fast"])
def test_a_wrong_speed_is_refused(speed: Any, tmp_path: Path) -> None:
    with pytest.raises(LoadError) as refused:
        replay(tmp_path, speed=speed)
    assert refused.value.option == "speed"
