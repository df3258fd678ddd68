"""What `redact`, `guard` and the readers keep of a stream with many texts is bounded."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    delta,
    message_end,
    message_start,
    request,
    stream_of,
    text_block,
)
from unit.interceptors.scripted import Hook

from interceptors import Event, StreamAborted
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import run_chain
from interceptors.toolkit.blocks import MAX_ENDED
from interceptors.toolkit.substitution import Flow

PATTERNS = ["sk-[A-Za-z0-9]{20,}"]


@pytest.mark.parametrize("cls", [Redact, Guard])
def test_a_text_that_continues_after_many_others_is_refused(cls: Any) -> None:
    """Earlier text is gone and is not searched together with it."""
    for others, goes_on in ((MAX_ENDED - 1, True), (MAX_ENDED + 1, False)):
        messages = []
        for index in range(others + 1):
            messages.append(delta(content=f"text {index} sk", index=index))
            messages.append(delta("stop", index=index))
        data = stream_of([*messages, delta(content=" more")], named=False)
        result = run_chain([cls(PATTERNS)], [data], request=request(CHAT))
        assert (result.failure is None) is goes_on
        assert goes_on or isinstance(result.failure, StreamAborted)


def marked() -> int:
    """How many decoded messages with our mark are alive."""
    found = (item for item in gc.get_objects() if isinstance(item, dict))
    return sum(item.get("mark") == "x" for item in found)


def test_texts_that_have_ended_keep_little_memory() -> None:
    """Of 600 blocks, the flows and the templates of the last ones are kept."""
    counted: list[tuple[int, int]] = []

    def count(event: Event) -> Event:
        """After `redact`, at the end."""
        if event.event == "message_delta":
            flows = sum(isinstance(item, Flow) for item in gc.get_objects())
            counted.append((flows, marked()))
        return event

    blocks = [message for index in range(600) for message in text_block(index, "one")]
    for message in blocks:
        message["mark"] = "x"
    data = stream_of([message_start(), *blocks, *message_end()], named=True)
    gc.collect()
    before = marked()
    run_chain([Redact(PATTERNS), Hook(count)], [data], request=request(ANTHROPIC))
    ((flows, messages),) = counted
    assert flows <= MAX_ENDED + 2
    assert messages - before <= 200
