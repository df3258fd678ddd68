"""What `redact`, `guard` and the readers keep of a stream with many texts is bounded."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    choice,
    chunk,
    message_start,
    request,
    stream_of,
    text_block,
)

from interceptors import Event, Interceptor, StreamAborted, StreamInterceptor
from interceptors.guard import Guard
from interceptors.redact import Redact
from interceptors.testing import run_chain
from interceptors.toolkit.blocks import MAX_ENDED
from interceptors.toolkit.substitution import Flow

MAKERS = [lambda: Redact(["sk-[A-Za-z0-9]{20,}"]), lambda: Guard(["sk-[A-Za-z0-9]{20,}"])]


def ended(index: int) -> list[dict[str, Any]]:
    return [
        chunk({**choice({"content": f"text {index} sk"}), "index": index}),
        chunk({**choice({}, "stop"), "index": index}),
    ]


@pytest.mark.parametrize("make", MAKERS)
def test_a_text_that_continues_after_many_others_is_refused(make: Any) -> None:
    """Earlier text is gone and is not searched together with it."""
    for others, goes_on in ((MAX_ENDED - 1, True), (MAX_ENDED + 1, False)):
        messages = [message for index in range(others + 1) for message in ended(index)]
        data = stream_of(
            [*messages, chunk({**choice({"content": " more"}), "index": 0})], named=False
        )
        interceptor: Interceptor = make()
        result = run_chain([interceptor], [data], request=request(CHAT))
        assert (result.failure is None) is goes_on
        assert goes_on or isinstance(result.failure, StreamAborted)


def test_texts_that_have_ended_keep_little_memory() -> None:
    """Of 600 blocks, the flows and the templates of the last ones are kept."""
    counted: list[tuple[int, int]] = []

    class Count(Interceptor):
        """Looks, after `redact`, at what is alive."""

        def open_stream(self, context: Any) -> Any:
            class Look(StreamInterceptor):
                def on_event(self, event: Event) -> Event:
                    if event.event == "message_delta":
                        flows = [found for found in gc.get_objects() if isinstance(found, Flow)]
                        deltas = [
                            found
                            for found in gc.get_objects()
                            if isinstance(found, dict) and found.get("mark") == "x"
                        ]
                        counted.append((len(flows), len(deltas)))
                    return event

            return Look()

    blocks = [message for index in range(600) for message in text_block(index, "one")]
    for message in blocks:
        message["mark"] = "x"
    data = stream_of(
        [message_start(), *blocks, {"type": "message_delta", "delta": {}, "usage": {}}], named=True
    )
    gc.collect()
    before = [
        found for found in gc.get_objects() if isinstance(found, dict) and found.get("mark") == "x"
    ]
    run_chain([Redact(["sk-[A-Za-z0-9]{20,}"]), Count()], [data], request=request(ANTHROPIC))
    ((flows, deltas),) = counted
    assert flows <= MAX_ENDED + 2
    assert deltas - len(before) <= 200
