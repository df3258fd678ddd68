"""Every dialect, as providers use it: what the hooks see, however the bytes arrive, and that the
bytes leave unchanged.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs
from unit.interceptors.dialects.recorder import Recorder
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    PATHS,
    RESPONSES,
    Transcript,
    anthropic_body,
    chat_body,
    choice,
    chunk,
    chunkings,
    delta,
    load_transcripts,
    message_item,
    request,
    response,
    stream_of,
    text_part,
    tool_delta,
)

from interceptors.testing import run_chain, run_json


def texts(*given: tuple[int, dict[str, Any], str | None]) -> dict[str, Any]:
    """A chunk with these deltas of choices."""
    return chunk(*(choice(delta, reason, index) for index, delta, reason in given))


STREAMS = load_transcripts(streamed=True)
MORE_STREAMS = {
    "two choices at once": (
        [
            texts((1, {"content": "a"}, None)),
            texts((0, {"content": "b"}, None), (1, {"content": "c"}, None)),
            texts((1, {}, "length")),
            texts((0, {"content": "d"}, "stop")),
        ],
        "text 1 a | text 0 b | text 1 c | text ends 1 | finish 1 length"
        " | text 0 d | text ends 0 | finish 0 stop",
    ),
    "two entries of one choice in one chunk": (
        [
            texts((0, {"content": "a"}, None), (1, {"content": "b"}, None), (0, {"content": "c"}, None)),
            texts((0, {"content": "d"}, None), (0, {"reasoning_content": "e"}, None), (0, {"content": "f"}, "stop")),
            texts((1, {"content": "g"}, None), (1, {}, "stop")),
        ],
        "text 0 a | text 1 b | text 0 c | text 0 d | thinking 0 e | text 0 f | text ends 0"
        " | thinking ends 0 | finish 0 stop | text 1 g | text ends 1 | finish 1 stop",
    ),
    "an error beside usage (Groq)": ([{"choices": [], "x_groq": {"error": {"code": 5}}}], "error None 5"),
    "no finish reason at all": ([delta(content="Hel"), "[DONE]"], "text 0 Hel | text ends 0"),
}  # fmt: skip
for _name, (_messages, _seen) in MORE_STREAMS.items():
    STREAMS[_name] = Transcript(CHAT, stream_of(_messages, named=False), _seen)
STREAMS["a whole response as an event"] = Transcript(
    RESPONSES,
    stream_of([response("completed", [message_item(text_part("Hi"))])], named=False),
    "text 0 Hi (whole) | text ends 0 (whole) | finish 0 completed",
)
STREAMS["a whole message as an event"] = Transcript(
    ANTHROPIC,
    stream_of([anthropic_body({"type": "text", "text": "Hi"})], named=True),
    "text 0 Hi (whole) | text ends 0 (whole) | finish 0 end_turn | usage claude-opus-4-1 472 2 0 None",
)


@pytest.mark.parametrize("transcript", STREAMS.values(), ids=STREAMS)
def test_a_stream_is_understood_in_any_cuts(transcript: Transcript) -> None:
    """With any line ends; whole, byte by byte and re-chunked."""
    for line_end in (b"\n", b"\r\n", b"\r"):
        stream = transcript.data.replace(b"\n", line_end)
        for chunks in chunkings(stream) if line_end == b"\n" else [[stream]]:
            recorder = Recorder()
            result = run_chain([recorder], chunks, request=request(transcript.path))
            assert (result.failure, result.output) == (None, stream)
            assert " | ".join(recorder.seen) == transcript.seen
            assert result.counts.changed == result.counts.dropped == result.counts.added == 0


BODIES = load_transcripts(streamed=False)
PARTS = [{"type": "text", "text": "a"}, {"type": "new"}, {"type": "refusal", "refusal": "b"}]
MORE_BODIES: dict[str, tuple[Any, str]] = {
    "two choices": (
        chat_body({"content": "a"}, {"content": "b"}),
        "text 0 a (whole) | text ends 0 (whole) | finish 0 stop | text 1 b (whole)"
        " | text ends 1 (whole) | finish 1 stop | usage gpt-4o 1117 46 1024 0",
    ),
    "a content that is a list": (
        chat_body({"content": PARTS}, {"content": []}, usage=None),
        "text 0 a (whole) | text ends 0 (whole) | refusal 0 b (whole) | refusal ends 0 (whole)"
        " | finish 0 stop | finish 1 stop",
    ),
    "function_call, from before tool calls": (
        chat_body({"function_call": {"name": "f", "arguments": "{}"}}, usage=None),
        "call 0 0 None f {} | finish 0 stop",
    ),
    "calls without ids": (
        chat_body({"tool_calls": [{"function": {"name": name, "arguments": "{}"}} for name in "fg"]}, usage=None),
        "call 0 0 None f {} | call 0 1 None g {} | finish 0 stop",
    ),
    "an error that is text": ({"error": "not found"}, "error None None not found"),
    "a list that is not an answer": ([{"choices": 1}], ""),
    "a list of errors": ([{"error": {"message": "no", "code": 400}}], "error None 400 no"),
    "an object of another kind": ({"input_tokens": 14}, ""),
}  # fmt: skip
for _name, (_body, _seen) in MORE_BODIES.items():
    BODIES[_name] = Transcript(CHAT, json.dumps(_body, indent=2).encode(), _seen)


@pytest.mark.parametrize("transcript", BODIES.values(), ids=BODIES)
def test_a_body_is_shown_to_the_same_hooks_and_leaves_unchanged(transcript: Transcript) -> None:
    """As whole texts and whole calls."""
    recorder = Recorder()
    left = run_json([recorder], transcript.data, request=request(transcript.path))
    assert left == transcript.data
    assert " | ".join(recorder.seen) == transcript.seen


UNREAD = """
chat      choices is a string, expected a list | {"choices": "none"}
chat      choices[] is a number, expected an object | {"choices": [1]}
chat      choices[].delta.content is an object, expected a string | {"choices": [{"index": 0, "delta": {"content": {"x": 1}}}]}
chat      choices[].delta.content[] is a string, expected an object | {"choices": [{"index": 0, "delta": {"content": ["x"]}}]}
chat      choices[].finish_reason is a number, expected a string | {"choices": [{"index": 0, "finish_reason": 1}]}
chat      choices[].delta is a string, expected an object | {"choices": [{"index": 0, "delta": "x"}]}
chat      choices[].delta.tool_calls is a string, expected a list | {"choices": [{"index": 0, "delta": {"tool_calls": "x"}}]}
chat      choices[].delta.tool_calls[] is a number, expected an object | {"choices": [{"index": 0, "delta": {"tool_calls": [1]}}]}
chat      choices[].delta.reasoning_details[] is a number, expected an object | {"choices": [{"index": 0, "delta": {"reasoning_details": [1]}}]}
chat      choices[].message.content is a number, expected a string | {"choices": [{"index": 0, "message": {"content": 5}}]}
chat      usage is a list, expected an object | {"choices": [], "usage": [1]}
chat      the data is a list, expected an object | [1]
responses response.output is a string, expected a list | {"type": "response.completed", "response": {"output": "x"}}
responses delta is an object, expected a string | {"type": "response.output_text.delta", "delta": {}}
anthropic index is null, expected the number of a content block | {"type": "content_block_delta", "delta": {}}
"""


@pytest.mark.parametrize("row", UNREAD.strip().split("\n"))
def test_what_is_not_understood_is_logged_once_and_passes(row: str) -> None:
    """The line names the field and not its content, and a second one does not follow."""
    told, _, data = row.partition(" | ")
    api, reason = told.split(maxsplit=1)
    block = f"data: {data}\n\n".encode()
    with capture_logs() as lines:
        result = run_chain([Recorder(), Recorder()], [block * 3], request=request(PATHS[api]))
    assert (result.failure, result.output) == (None, block * 3)
    assert [line["reason"] for line in lines if line["event"] == "unread_part"] == [reason]


UNKNOWN = r"""
chat : keep-alive
chat id: 7
chat data:[DONE]
chat event: heartbeat\ndata: now
chat data: []
chat data: {"object":"chat.completion.chunk","choices":null,"x":"\u0061"}
chat data: {"choices":[{"index":0,"delta":{"content":"a","audio":{"id":"x"}},"content_filter_results":{}}]}
anthropic event: ping\ndata: pong
anthropic event: new\ndata: {"type":"new_kind","index":"a"}
anthropic data: {"type":"content_block_delta","index":0,"delta":{"type":"new_delta","text":1}}
responses event: response.new.delta\ndata: {"type":"response.new.delta","delta":1}
responses data: [DONE]
"""


@pytest.mark.parametrize("row", UNKNOWN.strip().split("\n"))
def test_what_is_unknown_passes(row: str) -> None:
    """Events, fields and kinds of content that a dialect does not have yet, and what is no message."""
    api, _, lines = row.partition(" ")
    block = lines.replace(r"\n", "\n").encode() + b"\n\n"
    result = run_chain([Recorder()], [block], request=request(PATHS[api]))
    assert (result.output, result.failure) == (block, None)


def test_arguments_that_never_end_are_refused() -> None:
    """They are joined in memory, up to a million characters."""
    pieces = tool_delta(0, "x" * 900_000, "call_a", "f"), tool_delta(0, "x" * 200_000)
    deltas = [delta(**piece) for piece in pieces]
    with capture_logs():
        result = run_chain([Recorder()], [stream_of(deltas, named=False)], request=request(CHAT))
    assert "the arguments of a tool call are longer than 1048576 characters" in str(result.failure)
    assert result.output == stream_of(deltas[:1], named=False)
