"""Wherever a hook ends an answer, the client has a whole one: all that has begun ends once, and
nothing follows.
"""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any

import pytest
from pydantic import TypeAdapter
from unit.interceptors.dialects.recorder import Made
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    PATHS,
    RESPONSES,
    block,
    call_events,
    choice,
    chunk,
    message_end,
    message_start,
    messages_of,
    request,
    responses_stream,
    stream_of,
    summary_events,
    text_block,
    text_events,
    tool_block,
    tool_delta,
)

from interceptors.testing import run_chain

ANSWERS: dict[str, list[Any]] = {
    CHAT: [
        chunk(choice({"role": "assistant", "content": ""})),
        chunk(choice({"reasoning_content": "Hm"})),
        chunk(choice({"content": "a"}, index=1)),
        chunk(choice({"content": "b"}), choice({"content": "c"}, index=1)),
        chunk(choice({}, "stop", index=1)),
        chunk(choice(tool_delta(0, "", "call_a", "get_weather"))),
        chunk(choice(tool_delta(0, "{}"))),
        chunk(choice({}, "tool_calls")),
        "[DONE]",
    ],
    RESPONSES: responses_stream(
        summary_events(["Hm", "m"]),
        text_events(["a", "b"], 1),
        call_events(["{", "}"], 2),
        text_events(["c"], 3, "refusal", "msg_2"),
    ),
    ANTHROPIC: [
        message_start(),
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm"},
        ),
        *block(1, {"type": "text", "text": "at once"}, {"type": "text_delta", "text": " more"}),
        *text_block(2, "a", "b"),
        *tool_block(3, "{", "}"),
        *message_end(),
    ],
}


def finish_at(call: int, holds: bool, text: str, reason: str | None = None) -> Made:
    """Ends the answer at that call of a hook of content."""
    calls = 0

    def count(stream: Any, part: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            stream.finish(reason, text if hasattr(part, "kind") else "")

    hooks = dict.fromkeys(
        ("on_text_delta", "on_text_end", "on_tool_call_delta", "on_tool_call"), count
    )
    return Made(holds_tool_calls=holds, **hooks)


def check_chat(messages: list[Any]) -> None:
    """Each choice finishes once, after its last delta, and `[DONE]` is last."""
    assert messages.pop() == "[DONE]"
    seen, finished = set(), []
    for message in messages:
        assert message["id"] == ANSWERS[CHAT][0]["id"]
        for item in message["choices"]:
            assert item["index"] not in finished
            seen.add(item["index"])
            if item["finish_reason"] is not None:
                finished.append(item["index"])
    assert sorted(finished) == sorted(seen)


def check_anthropic(messages: list[Any]) -> None:
    """Each block that has started stops, and the message has one reason and one end."""
    started: list[int] = []
    for message in messages[:-2]:
        if message["type"] == "content_block_start":
            started.append(message["index"])
        elif message["type"] == "content_block_stop":
            started.remove(message["index"])
        elif message["type"] == "content_block_delta":
            assert message["index"] in started
    assert not started
    assert messages[-2]["delta"]["stop_reason"] == "refusal"
    assert [message["type"] for message in messages].count("message_delta") == 1
    assert messages[-1] == {"type": "message_stop"}


def check_responses(messages: list[Any]) -> None:
    """Items, parts and texts that have begun are done once, and the response has what the deltas
    said.
    """
    counts: Counter[Any] = Counter()
    texts: Counter[Any] = Counter()
    for message in messages:
        kind, where = message["type"], (message.get("output_index"), message.get("content_index"))
        if kind in ("response.output_item.added", "response.output_item.done"):
            counts[kind, where[0]] += 1
        elif kind in ("response.content_part.added", "response.content_part.done"):
            counts[kind, where] += 1
        elif kind in ("response.output_text.delta", "response.refusal.delta"):
            texts[where] = (texts[where] or "") + message["delta"]  # type: ignore[assignment]
    for kind, where in list(counts):
        done = kind.replace("added", "done")
        if "content_part" not in kind or texts[where]:
            assert counts[done, where] == 1, (done, where)
    last = messages[-1]
    assert last["type"] == "response.incomplete"
    assert [message["type"] for message in messages].count("response.incomplete") == 1
    for output, item in enumerate(last["response"]["output"]):
        for index, part in enumerate(item.get("content") or ()):
            assert (part.get("text") or part.get("refusal") or "") == (texts[output, index] or "")
    assert len(last["response"]["output"]) == sum(
        kind == "response.output_item.added" for kind, _ in counts
    )


def test_what_was_shown_before_in_the_same_event_leaves() -> None:
    """Another choice's text, which a hook has let pass."""
    stream = stream_of(
        [chunk(choice({"content": "b"}), choice({"content": "c"}, index=1))], named=False
    )
    messages = messages_of(
        run_chain([finish_at(2, False, "!")], [stream], request=request(CHAT)).output
    )
    said = [
        (item["index"], item["delta"]) for message in messages[:-1] for item in message["choices"]
    ]
    assert said == [(0, {"content": "b"}), (1, {"content": "!"}), (0, {}), (1, {})]


CHECKS = {CHAT: check_chat, RESPONSES: check_responses, ANTHROPIC: check_anthropic}
TYPES = {
    CHAT: ("openai.types.chat", "ChatCompletionChunk"),
    RESPONSES: ("openai.types.responses", "ResponseStreamEvent"),
    ANTHROPIC: ("anthropic.types", "RawMessageStreamEvent"),
}
OTHER_REASONS = {CHAT: "stop", RESPONSES: "completed", ANTHROPIC: "end_turn"}


@pytest.mark.parametrize(
    ("holds", "text", "usual"), [(False, "[stopped]", True), (True, "", True), (False, "!", False)]
)
@pytest.mark.parametrize("path", PATHS.values())
def test_an_ended_answer_is_whole(path: str, holds: bool, text: str, usual: bool) -> None:
    """At each hook of texts and tool calls, with last words and without, with the usual reason and
    another, and with tool calls held back. Every event has what the SDK's types demand.
    """
    module, name = TYPES[path]
    types: TypeAdapter[Any] = TypeAdapter(getattr(import_module(module), name))
    stream = stream_of(ANSWERS[path], named=path != CHAT)
    reason = None if usual else OTHER_REASONS[path]
    for call in range(1, 100):
        ends = finish_at(call, holds, text, reason)
        result = run_chain([ends], [stream], request=request(path))
        if not result.ended:
            break
        messages = messages_of(result.output)
        for message in messages:
            if message != "[DONE]":
                types.validate_python(message)
        if usual:
            CHECKS[path](messages)
    assert result.failure is None
    assert call > 10


def test_a_text_that_begins_with_its_block_does_not_leave() -> None:
    """The block's start must leave, so that the block can end; the text in it must not."""
    start = {"type": "text", "text": "at once"}
    stream = stream_of([message_start(), *block(0, start), *message_end()], named=True)
    output = run_chain([finish_at(1, False, "")], [stream], request=request(ANTHROPIC)).output
    assert b"content_block_start" in output
    assert b"at once" not in output
