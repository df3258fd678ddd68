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
    CHAT_USAGE,
    PATHS,
    RESPONSES,
    Transcript,
    anthropic_body,
    block,
    call_events,
    call_item,
    chat_body,
    choice,
    chunk,
    chunkings,
    delta,
    message_end,
    message_item,
    message_start,
    request,
    response,
    responses_stream,
    stream_of,
    summary_events,
    text_block,
    text_events,
    text_part,
    tool_block,
    tool_delta,
)

from interceptors.testing import run_chain, run_json

DONE = "[DONE]"
GPT_USAGE = "usage gpt-4o-2024-08-06 1117 46 1024 0"
STARTED = "usage claude-sonnet-4-20250514 472 2 0 None | "
ENDED = " | usage claude-sonnet-4-20250514 None 89 None None"
COMPLETED = " | finish 0 completed | usage gpt-4.1-2025-04-14 37 11 0 3"


def again(text: str, times: int, kind: str = "text") -> str:
    return f" | {kind} 0 {text} (again) | {kind} ends 0 (again)" * times


def tool(*given: Any) -> dict[str, Any]:
    return chunk(choice(tool_delta(*given)))


STREAMS: dict[str, Transcript] = {
    "chat: text": Transcript(
        CHAT,
        [
            delta(role="assistant", content="", refusal=None),
            *(delta(content="Hello"), delta(content=" there ✨"), delta("stop"), DONE),
        ],
        "text 0 Hello | text 0  there ✨ | text ends 0 | finish 0 stop",
    ),
    "chat: usage in a chunk without choices": Transcript(
        CHAT,
        [
            chunk(choice({"role": "assistant", "content": "Hi"}), usage=None),
            *(chunk(choice({}, "stop"), usage=None), chunk(usage=CHAT_USAGE), DONE),
        ],
        f"text 0 Hi | text ends 0 | finish 0 stop | {GPT_USAGE}",
    ),
    "chat: two choices, one after the other and both at once": Transcript(
        CHAT,
        [
            *(delta(role="assistant", content="", index=index) for index in (0, 1)),
            delta(content="a", index=1),
            chunk(choice({"content": "b"}, index=0), choice({"content": "c"}, index=1)),
            *(delta("length", index=1), delta("stop", content="d"), DONE),
        ],
        "text 1 a | text 0 b | text 1 c | text ends 1 | finish 1 length"
        " | text 0 d | text ends 0 | finish 0 stop",
    ),
    "chat: two entries of one choice in one chunk": Transcript(
        CHAT,
        [
            chunk(
                *(
                    choice({"content": text}, index=at)
                    for text, at in (("a", 0), ("b", 1), ("c", 0))
                )
            ),
            chunk(
                choice({"content": "d"}),
                *(choice({"reasoning_content": "e"}), choice({"content": "f"}, "stop")),
            ),
            chunk(choice({"content": "g"}, index=1), choice({}, "stop", index=1)),
            DONE,
        ],
        "text 0 a | text 1 b | text 0 c | text 0 d | thinking 0 e | text 0 f | text ends 0"
        " | thinking ends 0 | finish 0 stop | text 1 g | text ends 1 | finish 1 stop",
    ),
    "chat: parallel tool calls": Transcript(
        CHAT,
        [
            delta(role="assistant", content=None),
            *(tool(0, "", "call_a", "get_weather"), tool(0, '{"location": "Pa'), tool(0, 'ris"}')),
            *(tool(1, "", "call_b", "get_time"), tool(1, "{}"), delta("tool_calls"), DONE),
        ],
        'arguments 0 0 | arguments 0 0 {"location": "Pa | arguments 0 0 ris"} | arguments 0 1'
        ' | arguments 0 1 {} | call 0 0 call_a get_weather {"location": "Paris"}'
        " | call 0 1 call_b get_time {} | finish 0 tool_calls",
    ),
    "chat: a refusal": Transcript(
        CHAT,
        [delta(refusal="I can"), delta(refusal="not."), delta("stop"), DONE],
        "refusal 0 I can | refusal 0 not. | refusal ends 0 | finish 0 stop",
    ),
    "chat: the reasoning of compatible servers": Transcript(
        CHAT,
        [
            delta(role="assistant", content=None, reasoning_content="Hm"),
            *(delta(content="Yes", reasoning_content=None), delta("stop"), DONE),
        ],
        "thinking 0 Hm | text 0 Yes | thinking ends 0 | text ends 0 | finish 0 stop",
    ),
    "chat: an error inside the stream": Transcript(
        CHAT,
        [
            delta(content="Hel"),
            {"error": {"message": "busy", "type": "server_error", "param": None, "code": 503}},
        ],
        "text 0 Hel | error server_error 503 busy | text ends 0",
    ),
    "chat: no finish reason at all": Transcript(
        CHAT, [delta(content="Hel"), DONE], "text 0 Hel | text ends 0"
    ),
    "responses: text": Transcript(
        RESPONSES,
        responses_stream(text_events(["Hi", " there!"])),
        "text 0 Hi | text 0  there! | text ends 0" + again("Hi there!", 4) + COMPLETED,
    ),
    "responses: a reasoning's summary, then two calls": Transcript(
        RESPONSES,
        responses_stream(
            summary_events(["**Looking", "**"]),
            *(call_events(['{"a"', ":1}"], 1), call_events(["{}"], 2, "get_time")),
        ),
        "thinking 0 **Looking | thinking 0 ** | thinking ends 0"
        + again("**Looking**", 3, "thinking")
        + ' | arguments 1 0 | arguments 1 0 {"a" | arguments 1 0 :1}'
        ' | call 1 0 call_get_weather get_weather {"a":1}'
        " | arguments 2 0 | arguments 2 0 {} | call 2 0 call_get_time get_time {}"
        + again("**Looking**", 1, "thinking")
        + COMPLETED,
    ),
    "responses: a refusal": Transcript(
        RESPONSES,
        responses_stream(text_events(["I can", "not."], kind="refusal")),
        "refusal 0 I can | refusal 0 not. | refusal ends 0"
        + again("I cannot.", 4, "refusal")
        + COMPLETED,
    ),
    "responses: incomplete": Transcript(
        RESPONSES,
        responses_stream(
            text_events(["Hi"])[:3],
            end={
                "type": "response.incomplete",
                "response": response(
                    "incomplete",
                    [message_item(text_part("Hi"), status="incomplete")],
                    incomplete_details={"reason": "max_output_tokens"},
                ),
            },
        ),
        "text 0 Hi | text ends 0" + again("Hi", 1) + " | finish 0 max_output_tokens",
    ),
    "responses: failed": Transcript(
        RESPONSES,
        responses_stream(
            end={
                "type": "response.failed",
                "response": response("failed", [], error={"code": "server", "message": "sorry"}),
            }
        ),
        "finish 0 failed | error None server sorry",
    ),
    "responses: an error": Transcript(
        RESPONSES,
        responses_stream(
            end={"type": "error", "code": "rate_limit", "message": "slow down", "param": None}
        ),
        "error None rate_limit slow down",
    ),
    "anthropic: text, with a ping": Transcript(
        ANTHROPIC,
        [message_start(), {"type": "ping"}, *text_block(0, "Hello", "!"), *message_end()],
        STARTED + "text 0 Hello | text 0 ! | text ends 0 | finish 0 end_turn" + ENDED,
    ),
    "anthropic: thinking with its signature, then text": Transcript(
        ANTHROPIC,
        [
            message_start(),
            *block(
                0,
                {"type": "thinking", "thinking": "", "signature": ""},
                {"type": "thinking_delta", "thinking": "Let me"},
                {"type": "thinking_delta", "thinking": " see"},
                {"type": "signature_delta", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"},
            ),
            *(*text_block(1, "27"), *message_end()),
        ],
        STARTED + "thinking 0 Let me | thinking 0  see | thinking ends 0"
        " | text 1 27 | text ends 1 | finish 0 end_turn" + ENDED,
    ),
    "anthropic: parallel tool calls, and a tool of the provider's": Transcript(
        ANTHROPIC,
        [
            *(message_start(), *text_block(0, "Okay")),
            *block(
                1,
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
                {"type": "input_json_delta", "partial_json": '{"query": "weather"}'},
            ),
            *tool_block(2, "", '{"location":', ' "Paris"}'),
            *(*tool_block(3, id="toolu_2", name="get_time"), *message_end("tool_use")),
        ],
        STARTED + "text 0 Okay | text ends 0 | arguments 2 0 | arguments 2 0"
        ' | arguments 2 0 {"location": | arguments 2 0  "Paris"}'
        ' | call 2 0 toolu_1 get_weather {"location": "Paris"}'
        " | arguments 3 0 | call 3 0 toolu_2 get_time | finish 0 tool_use" + ENDED,
    ),
    "anthropic: an error inside the stream": Transcript(
        ANTHROPIC,
        [
            *(message_start(), *text_block(0, "Hel")[:2]),
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        ],
        STARTED + "text 0 Hel | error overloaded_error None Overloaded | text ends 0",
    ),
    "anthropic: a refusal": Transcript(
        ANTHROPIC,
        [message_start(), *text_block(0, "Hm"), *message_end("refusal")],
        STARTED + "text 0 Hm | text ends 0 | finish 0 refusal" + ENDED,
    ),
}


@pytest.mark.parametrize("transcript", STREAMS.values(), ids=STREAMS)
def test_a_stream_is_understood_however_it_arrives_and_leaves_unchanged(
    transcript: Transcript,
) -> None:
    """With any line ends; whole, byte by byte and re-chunked."""
    for line_end in (b"\n", b"\r\n", b"\r"):
        stream = transcript.stream(line_end)
        for chunks in chunkings(stream):
            recorder = Recorder()
            result = run_chain([recorder], chunks, request=request(transcript.path))
            assert (result.failure, result.output) == (None, stream)
            assert " | ".join(recorder.seen) == transcript.seen
            assert result.counts.changed == result.counts.dropped == result.counts.added == 0


FUNCTION = {"name": "get_weather", "arguments": '{"a": 1}'}
TOOL = {"id": "call_a", "type": "function", "function": FUNCTION}
CUSTOM = {"id": "call_b", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
PARTS = [{"type": "text", "text": "a"}, {"type": "new"}, {"type": "refusal", "refusal": "b"}]
BAD_KEY = {"message": "bad key", "type": "invalid_request", "param": None, "code": "invalid"}

BODIES: dict[str, tuple[str, Any, str]] = {
    "chat: two choices": (
        CHAT,
        chat_body({"content": "a"}, {"content": "b"}),
        "text 0 a (whole) | text ends 0 (whole) | finish 0 stop | text 1 b (whole)"
        " | text ends 1 (whole) | finish 1 stop | usage gpt-4o 1117 46 1024 0",
    ),
    "chat: tool calls": (
        CHAT,
        chat_body(
            {"tool_calls": [TOOL, CUSTOM]},
            finish_reason="tool_calls",
            usage={"completion_tokens": 0},
        ),
        'call 0 0 call_a get_weather {"a": 1} | call 0 1 call_b shell ls | finish 0 tool_calls'
        " | usage gpt-4o None 0 None None",
    ),
    "chat: a content that is a list": (
        CHAT,
        chat_body({"content": PARTS}, {"content": []}, usage=None),
        "text 0 a (whole) | text ends 0 (whole) | refusal 0 b (whole) | refusal ends 0 (whole)"
        " | finish 0 stop | finish 1 stop",
    ),
    "chat: an error": (CHAT, {"error": BAD_KEY}, "error invalid_request invalid bad key"),
    "chat: an error that is text": (
        CHAT,
        {"error": "model not found"},
        "error None None model not found",
    ),
    "responses: text and a call": (
        RESPONSES,
        response("completed", [message_item(text_part("Hi")), call_item('{"a":1}')]),
        "text 0 Hi (whole) | text ends 0 (whole)"
        ' | call 1 0 call_get_weather get_weather {"a":1} | finish 0 completed',
    ),
    "anthropic: thinking, text and a call": (
        ANTHROPIC,
        anthropic_body(
            {"type": "thinking", "thinking": "Hm", "signature": "Eq"},
            {"type": "text", "text": "Hi", "citations": None},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"a": 1}},
            stop_reason="tool_use",
        ),
        "thinking 0 Hm (whole) | thinking ends 0 (whole) | text 1 Hi (whole) | text ends 1 (whole)"
        ' | call 2 0 toolu_1 get_weather {"a":1} | finish 0 tool_use'
        " | usage claude-opus-4-1 472 2 0 None",
    ),
    "anthropic: an error": (
        ANTHROPIC,
        {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}},
        "error rate_limit_error None slow down",
    ),
    "JSON that is not an object": (CHAT, [{"choices": 1}], ""),
    "a list of errors": (CHAT, [{"error": {"message": "no", "code": 400}}], "error None 400 no"),
    "an object of another kind": (ANTHROPIC, {"input_tokens": 14}, ""),
}


@pytest.mark.parametrize(("path", "body", "seen"), BODIES.values(), ids=BODIES)
def test_a_body_is_shown_to_the_same_hooks_and_leaves_unchanged(
    path: str, body: Any, seen: str
) -> None:
    """As whole texts and whole calls."""
    recorder = Recorder()
    written = json.dumps(body, indent=2).encode()
    assert run_json([recorder], written, request=request(path)) == written
    assert " | ".join(recorder.seen) == seen


UNREAD = """
chat      choices is a string, expected a list | {"choices": "none"}
chat      choices[] is a number, expected an object | {"choices": [1]}
chat      choices[].delta.content is an object, expected a string | {"choices": [{"index": 0, "delta": {"content": {"x": 1}}}]}
chat      choices[].delta.content[] is a string, expected an object | {"choices": [{"index": 0, "delta": {"content": ["x"]}}]}
chat      choices[].finish_reason is a number, expected a string | {"choices": [{"index": 0, "finish_reason": 1}]}
chat      usage is a list, expected an object | {"choices": [], "usage": [1]}
chat      the data is a list, expected an object | [1]
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
    deltas = [tool(0, "x" * 900_000, "call_a", "f"), tool(0, "x" * 200_000)]
    with capture_logs():
        result = run_chain([Recorder()], [stream_of(deltas, named=False)], request=request(CHAT))
    assert "the arguments of a tool call are longer than 1048576 characters" in str(result.failure)
    assert result.output == stream_of(deltas[:1], named=False)
