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

    def __init__(self, takes_s: float = 0.0, fails: Exception | None = None) -> None:
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
        return 2.0


async def beside(step_s: float, wait_s: float | None, beats: Beats, fails: bool = False) -> float:
    """How long a step of `step_s` seconds takes with heartbeats."""

    async def step() -> str:
        await trio.sleep(step_s)
        if fails:
            raise KeyError("step")
        return "answer"

    began = trio.current_time()
    assert await with_heartbeats(step, wait_s, beats) == "answer"
    beats.began = [at - began for at in beats.began]
    beats.ended = [at - began for at in beats.ended]
    return trio.current_time() - began


def test_a_heartbeat_is_a_comment_with_one_line_end() -> None:
    """A second one would be an empty line, which ends an event."""
    assert PING == b": ping\n"


@pytest.mark.parametrize(
    ("step_s", "wait_s", "beat_s", "began", "took_s"),
    [
        (8.5, 1.0, 0.0, [1.0, 3.0, 5.0, 7.0], 8.5),
        (0.9, 1.0, 0.0, [], 0.9),
        (1e6, None, 0.0, [], 1e6),
        (2.0, 1.0, 5.0, [1.0], 6.0),  # what it writes would be cut otherwise
    ],
    ids=["until the step is done", "the step ends before", "no interval", "one that has begun"],
)
async def test_when_it_beats(
    step_s: float,
    wait_s: float | None,
    beat_s: float,
    began: list[float],
    took_s: float,
    autojump_clock: MockClock,
) -> None:
    beats = Beats(takes_s=beat_s)
    assert await beside(step_s, wait_s, beats) == took_s
    assert (beats.began, len(beats.ended)) == (began, len(began))


async def test_a_beat_or_a_step_that_fails_ends_both(autojump_clock: MockClock) -> None:
    """The error comes out in no group, and at once."""
    began = trio.current_time()
    with pytest.raises(KeyError, match="gone"):
        await beside(1e6, 1.0, Beats(fails=KeyError("gone")))
    assert trio.current_time() - began == 1.0
    with pytest.raises(KeyError, match="step"):
        await beside(3.0, 1.0, Beats(), fails=True)


async def test_cancelled_from_outside_both_end(autojump_clock: MockClock) -> None:
    beats, began = Beats(takes_s=100.0), trio.current_time()
    with trio.move_on_after(3) as scope:
        await beside(1e6, 1.0, beats)
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
        ([], False),
    ],
)
def test_which_clients_leave_no_other_answer(accept: list[bytes], only: bool) -> None:
    """MCP's clients name JSON, too: to them, no head may go out before the upstream's."""
    assert only_accepts_streams(accept) is only
