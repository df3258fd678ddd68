"""Any JSON, in any order: it passes unchanged; what is not understood is counted, and ends nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.tables import words
from unit.interceptors.dialects.recorder import Made, Recorder
from unit.interceptors.dialects.test_transcripts import BODIES, STREAMS
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    RESPONSES,
    choice,
    chunk,
    request,
    stream_of,
    tool_delta,
)

from interceptors import HookError, Interceptor
from interceptors.testing import run_chain, run_json

WORDS = words("choices delta message content type index tool_calls function arguments usage error")
WORDS += words("response output item part text input message_start content_block_delta text_delta")
WORDS += words(
    "response.output_text.delta response.completed content_block tool_use finish_reason object"
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([*WORDS, "", "x"])
    | st.floats(0, 1)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in it."""
    found = []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found.append((value, key))
        found += places(inner)
    return found


@st.composite
def spoilt(draw: st.DrawFn, messages: list[Any]) -> list[Any]:
    """A transcript with a few things in it changed, gone, doubled or out of order."""
    messages = copy.deepcopy(messages)
    for _ in range(draw(st.integers(0, 3))):
        if not messages:
            break
        action = draw(st.sampled_from(["set", "set", "set", "remove", "double", "swap", "drop"]))
        at = draw(st.integers(0, len(messages) - 1))
        if action == "double":
            messages.insert(at, copy.deepcopy(messages[at]))
        elif action == "drop":
            del messages[at]
        elif action == "swap":
            messages.insert(draw(st.integers(0, len(messages) - 1)), messages.pop(at))
        elif inner := places(messages[at]):
            holder, key = draw(st.sampled_from(inner))
            if action == "remove":
                del holder[key]
            elif isinstance(holder, dict) and key == "type":
                holder[key] = draw(st.sampled_from(WORDS) | values)
            else:
                holder[key] = draw(values)
    return messages


def written(messages: list[Any], path: str) -> bytes:
    """As a stream; the event types are those of the data, where that has one."""
    named = path != CHAT
    return b"".join(
        stream_of(
            [message],
            named=named and isinstance(message, dict) and isinstance(message.get("type"), str),
        )
        if isinstance(message, str)
        else f"data: {json.dumps(message)}\n\n".encode()
        if not (named and isinstance(message, dict) and isinstance(message.get("type"), str))
        else stream_of([message], named=True)
        for message in messages
    )


def check_failure(failure: Exception | None) -> None:
    assert failure is None or (
        isinstance(failure, HookError) and "DialectError: " in str(failure)
    ), failure


streams = st.sampled_from(sorted(STREAMS)).flatmap(
    lambda name: st.tuples(st.just(STREAMS[name].path), spoilt(STREAMS[name].messages))
)


def _keep(stream: Any, delta: Any) -> None:
    stream.kept = getattr(stream, "kept", {})
    stream.kept[delta.block] = stream.kept.get(delta.block, "") + delta.text
    delta.drop()


def _release(stream: Any, end: Any) -> None:
    end.add(getattr(stream, "kept", {}).pop(end.block, ""))


CHANGES: dict[str, Callable[[], Interceptor]] = {
    "upper": lambda: Made(
        on_text_delta=lambda _, delta: setattr(delta, "text", delta.text.upper())
    ),
    "drop": lambda: Made(on_text_delta=lambda _, delta: delta.drop()),
    "late": lambda: Made(on_text_delta=_keep, on_text_end=_release),
    "calls": lambda: Made(
        on_tool_call=lambda _, call: setattr(call, "arguments", '{"b":2}'), holds_tool_calls=True
    ),
    "finish": lambda: Made(on_text_delta=lambda stream, _: stream.finish(text="!")),
    "finish at the end": lambda: Made(on_text_end=lambda stream, _: stream.finish(text="!")),
    "finish at a call": lambda: Made(
        on_tool_call=lambda stream, _: stream.finish(), holds_tool_calls=True
    ),
    "finish at arguments": lambda: Made(on_tool_call_delta=lambda stream, _: stream.finish()),
}


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(stream=streams)
def test_hooks_that_change_meet_no_other_error(change: str, stream: tuple[str, list[Any]]) -> None:
    """Every change there is, on streams that are not as they should be: whole events, or the named
    error.
    """
    path, messages = stream
    with capture_logs():
        result = run_chain([CHANGES[change]()], [written(messages, path)], request=request(path))
    check_failure(result.failure)
    assert result.output[-2:] in (b"", b"\n\n")


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_bodies_that_are_not_as_they_should_be(change: str, data: st.DataObject) -> None:
    """The same of responses that are not streamed: a whole body, or the named error."""
    path, body, _ = BODIES[data.draw(st.sampled_from(sorted(BODIES)))]
    for item in data.draw(spoilt([body])):
        sent = json.dumps(item).encode()
        with capture_logs():
            try:
                json.loads(run_json([CHANGES[change]()], sent, request=request(path)))
                assert run_json([Recorder()], sent, request=request(path)) == sent
            except HookError as error:
                check_failure(error)


@pytest.mark.parametrize(
    ("path", "message", "problem"),
    [
        (CHAT, {"choices": "none"}, "choices is a string, expected a list"),
        (CHAT, {"choices": [1]}, "choices[] is a number, expected an object"),
        (
            CHAT,
            chunk(choice({"content": {"x": 1}})),
            "choices[].delta.content is an object, expected a string",
        ),
        (
            CHAT,
            chunk(choice({"content": ["x"]})),
            "choices[].delta.content[] is a string, expected an object",
        ),
        (CHAT, chunk(choice({}, 1)), "choices[].finish_reason is a number, expected a string"),
        (CHAT, chunk(usage=[1]), "usage is a list, expected an object"),
        (CHAT, [1], "the data is a list, expected an object"),
        (
            RESPONSES,
            {"type": "response.output_text.delta", "delta": {}},
            "delta is an object, expected a string",
        ),
        (
            ANTHROPIC,
            {"type": "content_block_delta", "delta": {}},
            "index is null, expected the number of a content block",
        ),
    ],
)
def test_what_is_not_understood_is_logged_once_and_passes(
    path: str, message: Any, problem: str
) -> None:
    """The line names the field and not its content, and a second one does not follow."""
    block = b"data: " + json.dumps(message).encode() + b"\n\n"
    with capture_logs() as lines:
        result = run_chain([Recorder(), Recorder()], [block * 3], request=request(path, "generic"))
    assert (result.failure, result.output) == (None, block * 3)
    assert [line["reason"] for line in lines if line["event"] == "unread_part"] == [problem]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        (CHAT, b": keep-alive\n\n"),
        (CHAT, b"id: 7\n\n"),
        (CHAT, b"data: [DONE]\n\n"),
        (CHAT, b"data:[DONE]\n\n"),
        (CHAT, b"event: heartbeat\ndata: now\n\n"),
        (CHAT, b"data: []\n\n"),
        (CHAT, b'data: {"object":"chat.completion.chunk","choices":null,"x":"\\u0061"}\n\n'),
        (
            CHAT,
            b'data: {"choices":[{"index":0,"delta":{"content":"a","audio":{"id":"x"}},"content_filter_results":{}}]}\n\n',
        ),
        (ANTHROPIC, b'event: ping\ndata: {"type": "ping"}\n\n'),
        (ANTHROPIC, b"event: ping\ndata: pong\n\n"),
        (ANTHROPIC, b'event: new\ndata: {"type":"new_kind","index":"a"}\n\n'),
        (
            ANTHROPIC,
            b'data: {"type":"content_block_delta","index":0,"delta":{"type":"new_delta","text":1}}\n\n',
        ),
        (
            RESPONSES,
            b'event: response.new.delta\ndata: {"type":"response.new.delta","delta":1}\n\n',
        ),
        (RESPONSES, b"data: [DONE]\n\n"),
    ],
)
def test_what_is_unknown_passes(path: str, block: bytes) -> None:
    """Event types, fields and kinds of content that a dialect does not have yet, and what is no
    message.
    """
    result = run_chain([Recorder()], [block], request=request(path))
    assert (result.output, result.failure) == (block, None)


def test_arguments_that_never_end_are_refused() -> None:
    """They are joined in memory, up to a million characters."""
    deltas = [
        chunk(choice(tool_delta(0, "x" * 900_000, "call_a", "f"))),
        chunk(choice(tool_delta(0, "x" * 200_000))),
    ]
    with capture_logs():
        result = run_chain([Recorder()], [stream_of(deltas, named=False)], request=request(CHAT))
    assert "the arguments of a tool call are longer than 1048576 characters" in str(result.failure)
    assert result.output == stream_of(deltas[:1], named=False)
