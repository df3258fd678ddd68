"""The inspector's stream over several workers: one that ends is watched again once it is replaced."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from proxy.inspector import BEGIN, Inspector, Wanted, message
from proxy.server.inspecting import Inspecting


class Siblings:
    """One sibling, whose processes end after a message. `answers`: None does not take the letter."""

    others = (1,)
    show: Any = None

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = answers
        self.asked = 0

    async def connect(self, other: int, letter: dict[str, Any]) -> Any:
        self.asked += 1
        if not self.answers:
            await trio.sleep_forever()
        answer = self.answers.pop(0)
        if answer is None:
            return None
        own, its = trio.testing.memory_stream_pair()
        await its.send_all(answer)
        await its.aclose()
        return own


def begin(number: int) -> bytes:
    return message("begin", {"exchange": f"1-{number}"})


LOST = message("lost", {"worker": 1})


@pytest.mark.parametrize(
    ("wanted", "answers", "shown", "asked"),
    [
        (Wanted(), [begin(1), begin(2), None, begin(3)], [begin(1), LOST, begin(2), LOST, LOST, begin(3), LOST], 5),
        (Wanted(once=True), [b"", begin(1), begin(2)], [LOST, begin(1)], 2),
        (Wanted(exchange="1-1"), [begin(1), begin(2)], [begin(1)], 1),
        (Wanted(exchange="1-1"), [None], [LOST], 1),
    ],
)  # fmt: skip
async def test_the_replacement_of_a_worker_is_watched_too(
    wanted: Wanted,
    answers: list[bytes | None],
    shown: list[bytes],
    asked: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    siblings = Siblings(answers)
    inspecting = Inspecting(Inspector(0, lambda: ()), siblings, lambda: False)  # type: ignore[arg-type]
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inspecting.run)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(10):
            async for data in inspecting.events(wanted):
                got.append(data)
        nursery.cancel_scope.cancel()
    assert siblings.asked == asked
    assert [item for item in got if item.startswith((BEGIN, LOST))] == shown
