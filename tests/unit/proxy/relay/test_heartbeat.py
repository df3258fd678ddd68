"""Heartbeats beside something that is awaited, and when a client leaves no other answer than an
event stream.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from proxy.relay.heartbeat import PING, only_accepts_streams, with_heartbeats


class Beats:
    """Notes when it was called, and may take its time or fail."""

    def __init__(
        self, every_s: float = 2.0, takes_s: float = 0.0, fails: Exception | None = None
    ) -> None:
        self.every_s = every_s
        self.takes_s = takes_s
        self.fails = fails
        self.began: list[float] = []
        self.ended: list[float] = []

    async def __call__(self) -> float:
        self.began.append(trio.current_time())
        await trio.sleep(self.takes_s)
        if self.fails is not None:
            raise self.fails
        self.ended.append(trio.current_time())
        return self.every_s


async def sleep_and_answer(seconds: float) -> str:
    await trio.sleep(seconds)
    return "answer"


def test_a_heartbeat_is_a_comment_with_one_line_end() -> None:
    """A second one would be an empty line, which ends an event."""
    assert PING == b": ping\n"


async def test_it_beats_until_the_step_is_done(autojump_clock: MockClock) -> None:
    """First after the wait, then after the time that each beat returns; none if the step ends before."""
    beats, began = Beats(every_s=2.0), trio.current_time()
    assert await with_heartbeats(lambda: sleep_and_answer(8.5), 1.0, beats) == "answer"
    assert [at - began for at in beats.began] == [1.0, 3.0, 5.0, 7.0]
    assert trio.current_time() - began == 8.5
    assert await with_heartbeats(lambda: sleep_and_answer(0.9), 1.0, beats) == "answer"
    assert len(beats.began) == 4


async def test_without_an_interval_nothing_beats(autojump_clock: MockClock) -> None:
    beats = Beats()
    assert await with_heartbeats(lambda: sleep_and_answer(1e6), None, beats) == "answer"
    assert beats.began == []


async def test_a_beat_that_has_begun_is_finished(autojump_clock: MockClock) -> None:
    """What it writes would be cut otherwise."""
    beats, began = Beats(takes_s=5.0), trio.current_time()
    assert await with_heartbeats(lambda: sleep_and_answer(2.0), 1.0, beats) == "answer"
    assert [at - began for at in beats.ended] == [6.0]
    assert len(beats.began) == 1


async def test_a_beat_that_fails_ends_the_step(autojump_clock: MockClock) -> None:
    """Its own error comes out, in no group, and at once."""
    began = trio.current_time()
    with pytest.raises(KeyError):
        await with_heartbeats(lambda: sleep_and_answer(1e6), 1.0, Beats(fails=KeyError("gone")))
    assert trio.current_time() - began == 1.0


async def test_a_step_that_fails_raises_what_failed(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(3)
        raise KeyError("step")

    with pytest.raises(KeyError, match="step"):
        await with_heartbeats(fail, 1.0, Beats())


async def test_cancelled_from_outside_both_end(autojump_clock: MockClock) -> None:
    beats, began = Beats(takes_s=100.0), trio.current_time()
    with trio.move_on_after(3) as scope:
        await with_heartbeats(lambda: sleep_and_answer(1e6), 1.0, beats)
    assert scope.cancelled_caught
    assert (trio.current_time() - began, beats.ended) == (3.0, [])


@pytest.mark.parametrize(
    ("accept", "only"),
    [
        ([b"text/event-stream"], True),
        ([b"Text/Event-Stream;charset=utf-8"], True),
        ([b"text/event-stream, */*;q=0.1"], True),
        ([b"text/event-stream", b"*/*"], True),
        ([b"application/json;q=0, text/event-stream"], True),
        ([b"application/json, text/event-stream"], False),
        ([b"text/event-stream", b"application/json"], False),
        ([b"text/event-stream;q=0"], False),
        ([b"text/event-stream;q=0.0, */*"], False),
        ([b"text/*"], False),
        ([b"*/*"], False),
        ([b""], False),
        ([], False),
    ],
)
def test_who_leaves_no_other_answer(accept: list[bytes], only: bool) -> None:
    """MCP's clients name JSON, too, and get it: to them, no head may go out before the upstream's."""
    assert only_accepts_streams(accept) is only
