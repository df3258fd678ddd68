"""What hooks change is written back in the dialect's own framing: one class, every dialect,
streamed and not.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from structlog.testing import capture_logs
from unit.interceptors.dialects.recorder import Made, Recorder
from unit.interceptors.dialects.test_contradictions import CHANGES
from unit.interceptors.dialects.test_transcripts import BODIES, STREAMS
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    CHAT_USAGE,
    PATHS,
    RESPONSES,
    anthropic_body,
    block,
    call_events,
    call_item,
    chat_body,
    choice,
    chunk,
    chunkings,
    message_end,
    message_item,
    message_start,
    messages_of,
    request,
    response,
    responses_stream,
    stream_of,
    text_block,
    text_events,
    text_part,
    tool_block,
    tool_delta,
)

from interceptors import Abort, HookError, Interceptor, LoadError, StreamContext
from interceptors.dialects import MessageInterceptor, MessageStream, ToolCall
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json

UPPER = CHANGES["upper"]
LATE = CHANGES["late"]


def streamed(path: str, texts: list[str]) -> list[Any]:
    if path == CHAT:
        return [
            *(chunk(choice({"content": text})) for text in texts),
            chunk(choice({}, "stop")),
            "[DONE]",
        ]
    if path == RESPONSES:
        return responses_stream(text_events(texts))
    return [message_start(), *text_block(0, *texts), *message_end()]


def run(path: str, messages: list[Any], *interceptors: Interceptor) -> list[Any]:
    """What leaves, decoded. Each event has the type that its data says, where the dialect has such."""
    result = run_chain(
        list(interceptors), [stream_of(messages, named=path != CHAT)], request=request(path)
    )
    assert result.failure is None
    for item in result.output.decode().split("\n\n")[:-1]:
        name, _, data = item.rpartition("data: ")
        assert name == ("" if path == CHAT else f"event: {json.loads(data)['type']}\n")
    return messages_of(result.output)


def without_numbers(messages: list[Any]) -> list[Any]:
    for message in messages:
        if isinstance(message, dict):
            message.pop("sequence_number", None)
    return messages


# --- texts
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values())
def test_changed_text_is_written_back_and_nothing_else_is_another(path: str) -> None:
    """Ids, types, order and the rest of each message are upstream's; repetitions are changed like
    the deltas.
    """
    assert run(path, streamed(path, ["One", " two"]), UPPER()) == streamed(path, ["ONE", " TWO"])


def test_every_text_of_a_body_is_changed() -> None:
    """The same class, for what is not streamed."""

    def changed(path: str, body: Any) -> Any:
        return json.loads(run_json([UPPER()], json.dumps(body).encode(), request=request(path)))

    chat = {"content": "a", "refusal": "b", "reasoning_content": "c"}
    assert changed(CHAT, chat_body(chat, {"content": "d"})) == chat_body(
        {name: text.upper() for name, text in chat.items()}, {"content": "D"}
    )
    assert changed(RESPONSES, response("completed", [message_item(text_part("a"))])) == response(
        "completed", [message_item(text_part("A"))]
    )
    assert changed(ANTHROPIC, anthropic_body({"type": "text", "text": "a"})) == anthropic_body(
        {"type": "text", "text": "A"}
    )


def test_a_content_that_is_a_list_stays_one() -> None:
    """Each of its texts is changed in its place, and what is no text is as it was."""

    def content(*texts: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": text, "annotations": []} for text in texts]
        return chat_body({"content": [parts[0], {"type": "image_url", "text": "x"}, *parts[1:]]})

    sent = json.dumps(content("one", "two")).encode()
    assert json.loads(run_json([UPPER()], sent, request=request(CHAT))) == content("ONE", "TWO")


def test_an_answer_can_be_ended_in_a_content_that_is_a_list() -> None:
    """What is behind the part in which it ends is gone: parts, calls, other choices' texts. What is
    before it stays.
    """
    parts = [{"type": "text", "text": text} for text in ("one", "two", "three")]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    sent = chat_body(
        {"reasoning": "r", "content": parts, "tool_calls": [call]}, {"content": [parts[2]]}
    )

    def stop(stream: MessageStream, delta: Any) -> None:
        if delta.text == "two":
            stream.finish("stop", "tw")

    left = json.loads(
        run_json([Made(on_text_delta=stop)], json.dumps(sent).encode(), request=request(CHAT))
    )
    first, second = (item["message"] for item in left["choices"])
    assert (first["reasoning"], first["content"]) == (
        "r",
        [parts[0], {"type": "text", "text": "tw"}],
    )
    assert "tool_calls" not in first
    assert second["content"] is None


@pytest.mark.parametrize("path", PATHS.values())
def test_text_that_was_held_back_leaves_before_the_block_ends(path: str) -> None:
    """Its deltas do not leave at all; one more delta, made like the last one, has all of it."""
    late = without_numbers(run(path, streamed(path, ["One", " two"]), LATE()))
    whole = without_numbers(streamed(path, ["One two"]))
    if path == CHAT:
        del whole[0]["choices"][0]["logprobs"]
    assert late == whole


@pytest.mark.parametrize("ending", [["[DONE]"], []])
def test_text_that_was_held_back_leaves_when_upstream_ends_without_a_word(
    ending: list[str],
) -> None:
    """No `finish_reason`: with `[DONE]`, or when the stream is over."""
    messages = run(
        CHAT, [chunk(choice({"content": text})) for text in ("One", " two")] + ending, LATE()
    )
    assert [message["choices"][0]["delta"] for message in messages[:1]] == [{"content": "One two"}]
    assert messages[1:] == ending


def test_text_that_was_held_back_stays_behind_what_came_last() -> None:
    """Where the last text and the end of the block are one event, there is one place for both."""
    (message, done) = run(CHAT, [chunk(choice({"content": "One"}, "stop")), "[DONE]"], LATE())
    assert (message, done) == (chunk(choice({"content": "One"}, "stop")), "[DONE]")


def test_text_that_was_held_back_stays_behind_the_last_of_several_deltas_in_one_event() -> None:
    """Two entries of one choice in the chunk that ends it, however it arrives: what is added is the
    text's end, not its middle.
    """

    def keep(stream: Any, delta: Any) -> None:
        stream.kept = getattr(stream, "kept", {})
        stream.kept[delta.block] = stream.kept.get(delta.block, "") + delta.text[-1]
        delta.text = delta.text[:-1].upper()

    def add(stream: Any, end: Any) -> None:
        end.add(f"({stream.kept.pop(end.block)})")

    made = [
        choice({"content": "abc"}),
        choice({"content": "de"}, index=1),
        choice({"content": "fg"}),
    ]
    stream = stream_of(
        [chunk(*made, choice({}, "stop"), choice({}, "stop", index=1)), "[DONE]"], named=False
    )
    for chunks in chunkings(stream):
        result = run_chain(
            [Made(on_text_delta=keep, on_text_end=add)], chunks, request=request(CHAT)
        )
        assert result.failure is None
        (message, done) = messages_of(result.output)
        texts = [(item["index"], item["delta"].get("content")) for item in message["choices"]]
        assert (texts, done) == (
            [(0, "AB"), (1, "D(e)"), (0, "F(cg)"), (0, None), (1, None)],
            "[DONE]",
        )


def test_a_text_that_only_upstreams_end_ends_is_repeated_whole() -> None:
    """The last delta has left by then: it is in the text that the ending repeats, and what is added
    does not stand in it.
    """
    finish = Made(on_text_end=lambda stream, _: stream.finish("completed", "!"))
    messages = run(RESPONSES, responses_stream(text_events(["Hel", "lo"]))[:-4], finish)
    assert messages[-1]["response"]["output"][0]["content"][0]["text"] == "Hello!"
    add = Made(on_text_end=lambda _, end: end.add("!"))
    for path in PATHS.values():
        deltas = [
            item
            for item in streamed(path, ["Hel", "lo"])
            if "delta" in str(item) and "stop" not in str(item)
        ]
        added = run(path, deltas, add)
        assert added[:-1] == deltas
        assert "!" in str(added[-1])


def test_a_dropped_delta_leaves_what_else_its_event_carries() -> None:
    """A role, a finish reason, usage, another choice's text."""
    messages = [
        chunk(choice({"role": "assistant", "content": "a"})),
        chunk(choice({"content": "b"})),
        chunk(choice({"content": "c"}), usage=CHAT_USAGE),
        chunk(choice({"content": "d"}, "stop")),
    ]
    assert run(CHAT, messages, CHANGES["drop"]()) == [
        chunk(choice({"role": "assistant", "content": ""})),
        chunk(choice({"content": ""}), usage=CHAT_USAGE),
        chunk(choice({"content": ""}, "stop")),
    ]


def test_logprobs_do_not_show_the_text_that_was_changed() -> None:
    """They list its tokens; those of a text that stays, stay."""
    logprobs = {
        "content": [{"token": "secret", "logprob": -0.1, "bytes": [], "top_logprobs": []}],
        "refusal": None,
    }
    messages = [
        chunk({**choice({"content": text}), "logprobs": logprobs}) for text in ("secret", "FINE")
    ]
    changed = run(CHAT, messages, UPPER())
    assert [message["choices"][0]["logprobs"] for message in changed] == [None, logprobs]
    events = responses_stream(text_events(["secret"]))
    for event in events:
        if "logprobs" in event:
            event["logprobs"] = logprobs["content"]
    assert "'secret'" not in str(run(RESPONSES, events, UPPER()))


def test_the_next_interceptor_sees_what_the_one_before_has_made() -> None:
    """Changed deltas, and those that were added."""
    recorder = Recorder()
    run(ANTHROPIC, streamed(ANTHROPIC, ["One", " two"]), LATE(), UPPER(), recorder)
    assert ("text", 0, "ONE TWO", "") in recorder.seen
    assert [item[0] for item in recorder.seen] == ["usage", "text", "text ends", "finish", "usage"]


def test_a_body_passes_one_interceptor_after_the_other() -> None:
    """The second sees what the first has made of it, which is no longer what came."""
    recorder = Recorder()
    body = json.dumps(anthropic_body({"type": "text", "text": "a"})).encode()
    changed = run_json([UPPER(), LATE(), recorder], body, request=request(ANTHROPIC))
    assert json.loads(changed) == anthropic_body({"type": "text", "text": "A"})
    assert recorder.seen[:2] == [("text", 0, "A", "whole"), ("text ends", 0, "whole")]


# --- tool calls
# ---------------------------------------------------------------------------------------------------------

CALLS: dict[str, Any] = {
    CHAT: lambda first, second: [
        chunk(choice(tool_delta(0, "", "call_a", "get_weather"))),
        *(chunk(choice(tool_delta(0, piece))) for piece in first),
        chunk(choice(tool_delta(1, "", "call_b", "get_time"))),
        *(chunk(choice(tool_delta(1, piece))) for piece in second),
        chunk(choice({}, "tool_calls")),
        "[DONE]",
    ],
    RESPONSES: lambda first, second: responses_stream(
        call_events(first, 0), call_events(second, 1, "get_time")
    ),
    ANTHROPIC: lambda first, second: [
        message_start(),
        *tool_block(0, *first),
        *tool_block(1, *second, id="toolu_2", name="get_time"),
        *message_end("tool_use"),
    ],
}
PIECES = (['{"key":', ' "sec', 'ret"}'], ["{", "}"])


def hide(_: MessageStream, call: ToolCall) -> None:
    if "secret" in call.arguments:
        call.arguments = call.arguments.replace("secret", "***")


@pytest.mark.parametrize("path", PATHS.values())
def test_a_held_tool_call_can_be_changed(path: str) -> None:
    """Its arguments leave in its first delta; repetitions have the changed ones, too. The other
    call leaves as it came.
    """
    changed = run(path, CALLS[path](*PIECES), Made(on_tool_call=hide, holds_tool_calls=True))
    expected = CALLS[path](['{"key": "***"}'], PIECES[1])
    assert "secret" not in json.dumps(changed)
    assert without_numbers(changed) == without_numbers(expected)


@pytest.mark.parametrize("path", PATHS.values())
def test_a_hook_is_called_once_for_each_call(path: str) -> None:
    """Whether it is held or not, and however often the dialect repeats it."""
    for holds in (False, True):
        calls: list[tuple[str | None, Any]] = []

        def note(_: MessageStream, call: ToolCall, calls: Any = calls) -> None:
            calls.append((call.name, call.json()))

        made = Made(on_tool_call=note, holds_tool_calls=holds)
        run(path, CALLS[path](*PIECES), made)
        assert calls == [("get_weather", {"key": "secret"}), ("get_time", {})]


def _spoken(first: str, again: str, key: str = "arguments") -> list[Any]:
    """A call of OpenAI responses that is repeated with other arguments, where it is done and where
    the response is.
    """
    events = call_events([first], 0)
    if key == "input":
        for event in events:
            event["type"] = event["type"].replace(
                "function_call_arguments", "custom_tool_call_input"
            )
            if "arguments" in event:
                event["input"] = event.pop("arguments")
            if "item" in event:
                event["item"]["type"] = "custom_tool_call"
                event["item"]["input"] = event["item"].pop("arguments")
    events[-1]["item"][key] = again
    return responses_stream(events)


@pytest.mark.parametrize("key", ["arguments", "input"])
@pytest.mark.parametrize("holds", [False, True])
def test_a_repetition_that_says_another_call_is_shown_to_the_hook(holds: bool, key: str) -> None:
    """A client may take either: other arguments, or another name. One that says the same, or
    nothing, is not shown again.
    """
    seen: list[Any] = []
    made = Made(
        on_tool_call=lambda _, call: seen.append((call.name, call.arguments)),
        holds_tool_calls=holds,
    )
    spoken = _spoken("{}", '{"a":1}', key)
    messages = run(RESPONSES, spoken, made)
    assert seen == [("get_weather", "{}"), ("get_weather", '{"a":1}'), ("get_weather", '{"a":1}')]
    assert without_numbers(messages) == without_numbers(spoken)
    seen.clear()
    spoken = _spoken("{}", "", key)
    spoken[-2]["item"]["name"] = "delete_file"
    run(RESPONSES, spoken, made)
    assert seen == [("get_weather", "{}"), ("delete_file", "")]


def test_a_repetition_that_says_another_call_is_changed_by_itself() -> None:
    """What the hook made of the first is not put in its place."""
    changed = run(
        RESPONSES, _spoken("secret 1", "secret 2"), Made(on_tool_call=hide, holds_tool_calls=True)
    )
    assert "secret" not in json.dumps(changed)
    assert (
        changed[-2]["item"]["arguments"]
        == changed[-1]["response"]["output"][0]["arguments"]
        == "*** 2"
    )
    assert [item["arguments"] for item in changed if "arguments" in item] == ["*** 1"]


def test_held_calls_of_several_choices_keep_their_kinds() -> None:
    """A function of one choice and a custom tool of the other, at the same place in the same chunk."""
    custom = {
        "tool_calls": [
            {
                "index": 0,
                "id": "b",
                "type": "custom",
                "custom": {"name": "shell", "input": "secret"},
            }
        ]
    }
    messages = [
        chunk(choice(tool_delta(0, "secret", "a", "f")), choice(custom, index=1)),
        chunk(choice({}, "tool_calls"), choice({}, "tool_calls", index=1)),
        "[DONE]",
    ]
    changed = run(CHAT, messages, Made(on_tool_call=hide, holds_tool_calls=True))
    assert changed == json.loads(json.dumps(messages).replace("secret", "***"))


def test_a_tool_call_in_one_chunk_is_changed_in_its_place() -> None:
    """As some servers send it: the call, its arguments and the finish reason at once."""
    one = chunk(choice(tool_delta(0, '{"key": "secret"}', "call_a", "get_weather"), "tool_calls"))
    changed = run(CHAT, [one, "[DONE]"], Made(on_tool_call=hide, holds_tool_calls=True))
    assert changed == [
        chunk(choice(tool_delta(0, '{"key": "***"}', "call_a", "get_weather"), "tool_calls")),
        "[DONE]",
    ]


def test_a_tool_call_of_a_body_is_changed() -> None:
    """In the form that its dialect has: text, or Anthropic's decoded input."""
    made = Made(on_tool_call=hide, holds_tool_calls=True)
    function = {"name": "f", "arguments": '{"key": "secret"}'}
    for path, body in {
        CHAT: chat_body(
            {"tool_calls": [{"id": "call_a", "type": "function", "function": function}]}
        ),
        RESPONSES: response("completed", [call_item('{"key": "secret"}')]),
        ANTHROPIC: anthropic_body(
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"key": "secret"}}
        ),
    }.items():
        sent = json.dumps(body)
        changed = json.loads(run_json([made], sent.encode(), request=request(path)))
        assert changed == json.loads(sent.replace("secret", "***"))


def test_a_tool_call_whose_deltas_have_left_cannot_be_changed() -> None:
    """The error says what to do, in a stream and, so that nobody is surprised later, for a body."""
    made = Made(on_tool_call=hide)
    with capture_logs():
        result = run_chain(
            [made], [stream_of(CALLS[CHAT](*PIECES), named=False)], request=request(CHAT)
        )
        assert "set holds_tool_calls = True" in str(result.failure)
        body = json.dumps(response("completed", [call_item("secret")])).encode()
        with pytest.raises(HookError, match="holds_tool_calls"):
            run_json([made], body, request=request(RESPONSES))


@pytest.mark.parametrize("path", PATHS.values())
def test_a_held_call_that_ends_the_answer_never_leaves(path: str) -> None:
    """None of its arguments, and not the call behind it; the answer is whole."""
    stop = Made(on_tool_call=lambda stream, _: stream.finish(), holds_tool_calls=True)
    result = run_chain(
        [stop], [stream_of(CALLS[path](*PIECES), named=path != CHAT)], request=request(path)
    )
    assert result.ended
    assert b"secret" not in result.output
    recorder = Recorder()
    run_chain([recorder], [result.output], request=request(path))
    assert [item[2] for item in recorder.seen if item[0] == "finish"] == [
        {CHAT: "content_filter", RESPONSES: "content_filter", ANTHROPIC: "refusal"}[path]
    ]


# --- the other parts, and what costs nothing
# ----------------------------------------------------------------------------


def test_an_errors_message_can_be_changed() -> None:
    """Providers repeat keys and prompts in them."""
    made = Made(on_provider_error=lambda _, error: setattr(error, "message", "[redacted]"))
    for name in (
        "chat: an error inside the stream",
        "responses: an error",
        "responses: failed",
        "anthropic: an error inside the stream",
    ):
        transcript = STREAMS[name]
        assert "[redacted]" in str(run(transcript.path, transcript.messages, made))
    assert (
        run_json([made], b'{"error": "no sk-123"}', request=request(CHAT))
        == b'{"error":"[redacted]"}'
    )


@pytest.mark.parametrize("name", STREAMS)
def test_a_hook_on_usage_reads_only_the_events_that_have_it(name: str) -> None:
    """It is told the same as one among others, and deltas are not even decoded."""
    transcript = STREAMS[name]
    seen: list[Any] = []
    made = Made(
        on_usage=lambda _, usage: seen.append(
            ("usage", usage.model, usage.input, usage.output, usage.cached, usage.reasoning)
        )
    )
    stream = made.open_stream(StreamContext(request(transcript.path)))
    assert stream is not None
    for message in transcript.messages:
        raw = stream_of([message], named=transcript.path != CHAT)
        if b"delta" in raw and b'"usage"' not in raw:
            assert stream.needs.search(raw) is None  # type: ignore[union-attr]
    run(transcript.path, transcript.messages, made)
    assert seen == [item for item in transcript.seen if item[0] == "usage"]


def test_a_class_without_hooks_sees_no_event() -> None:
    """Not one is decoded."""
    stream = Made().open_stream(StreamContext(request(CHAT)))
    assert stream is not None
    assert stream.needs == ()


def test_zero_tokens_are_told_and_absent_ones_are_not() -> None:
    """None is not told, 0 is none."""
    told: list[Any] = []
    made = Made(
        on_usage=lambda _, usage: told.append(
            (usage.input, usage.output, usage.cached, usage.cache_written, usage.json)
        )
    )
    usage = {
        "prompt_tokens": 0,
        "completion_tokens": None,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    run(CHAT, [chunk(usage=usage)], made)
    assert told == [(0, None, 0, None, usage)]


# --- whose response it is
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "dialect", "name", "understood"),
    [
        ("/v1/chat/completions", "generic", "chat: text", True),
        ("/openai/deployments/x/chat/completions/", "generic", "chat: text", True),
        ("/v1/responses", "generic", "responses: text", True),
        ("/v1/messages", "generic", "anthropic: text, with a ping", True),
        ("/v1/messages", "abort", "anthropic: text, with a ping", True),
        ("/anything", "anthropic", "anthropic: text, with a ping", True),
        ("/anything", "openai", "chat: text", True),
        ("/anything", "openai", "responses: text", True),
        ("/anything", "openai", "responses: failed", True),
        ("/v1/responses/resp_1", "openai", "responses: text", True),
        ("/anything", "generic", "chat: text", False),
        ("/v1/completions", "generic", "chat: text", False),
        ("/messages", "mcp", "anthropic: text, with a ping", False),
        ("/v1/chat/completions", "mcp", "chat: text", False),
    ],
)
def test_the_routes_dialect_or_the_path_tells(
    path: str, dialect: str, name: str, understood: bool
) -> None:
    """Of OpenAI's two formats the first message tells where the path does not; of others the
    interceptor stays out.
    """
    transcript = STREAMS[name]
    recorder = Recorder()
    result = run_chain([recorder], [transcript.stream()], request=request(path, dialect))
    assert result.output == transcript.stream()
    assert recorder.seen == (transcript.seen if understood else [])


@pytest.mark.parametrize("name", [name for name in BODIES if not name.startswith("anthropic")])
def test_a_body_tells_by_itself_which_of_openais_it_is(name: str) -> None:
    """Where the path does not; an error is one in both."""
    _, body, seen = BODIES[name]
    recorder = Recorder()
    run_json([recorder], json.dumps(body).encode(), request=request("/anything", "openai"))
    assert recorder.seen == seen


# --- what an author gets wrong
# ------------------------------------------------------------------------------------------


def test_finish_is_for_hooks_of_texts_and_tool_calls() -> None:
    """Elsewhere it is not known what has left: the error says so."""
    outside = Made(on_usage=lambda stream, _: stream.finish())
    with capture_logs():
        result = run_chain(
            [outside], [stream_of([chunk(usage=CHAT_USAGE)], named=False)], request=request(CHAT)
        )
    assert "outside of the hooks of texts and tool calls" in str(result.failure)
    with pytest.raises(TypeError, match="outside of a hook"):
        MessageStream().finish()


def test_abort_ends_the_exchange_as_in_any_hook() -> None:
    """The client is told, and sees that the stream is not whole."""

    def abort(_: MessageStream, part: Any) -> None:
        raise Abort("no")

    result = run_chain(
        [Made(on_text_delta=abort)], [STREAMS["chat: text"].stream()], request=request(CHAT)
    )
    assert str(result.failure) == "no"


def test_a_message_stream_has_no_on_event_of_its_own() -> None:
    """It would silence the other hooks."""
    with pytest.raises(TypeError, match=r"Wrong\.on_event: a MessageStream has none"):
        type("Wrong", (MessageStream,), {"on_event": lambda self, event: event})


def test_open_messages_returns_a_message_stream() -> None:
    """Anything else is refused, with its type."""

    class Wrong(MessageInterceptor):
        def open_messages(self, context: StreamContext) -> Any:
            return "stream"

    with capture_logs(), pytest.raises(HookError, match="open_messages returned str"):
        run_chain([Wrong()], [b"data: {}\n\n"], request=request(CHAT))


def test_a_misspelt_hook_is_refused_at_load(tmp_path: Any) -> None:
    """And those that there are, are not."""
    source = """
from interceptors.dialects import MessageInterceptor, MessageStream

class Good(MessageInterceptor):
    def open_messages(self, context):
        return GoodStream()

class GoodStream(MessageStream):
    def on_start(self, head): ...
    def on_text_delta(self, delta): ...
    def on_text_end(self, end): ...
    def on_tool_call_delta(self, delta): ...
    def on_tool_call(self, call): ...
    def on_finish(self, finish): ...
    def on_usage(self, usage): ...
    def on_provider_error(self, error): ...
"""
    (tmp_path / "good.py").write_text(source)
    load_interceptor(f"{tmp_path}/good.py:Good", {})
    (tmp_path / "bad.py").write_text(source.replace("on_text_delta", "on_text"))
    with pytest.raises(
        LoadError, match=r"GoodStream has an unknown hook 'on_text'; known are: .*on_text_delta"
    ):
        load_interceptor(f"{tmp_path}/bad.py:Good", {})
    (tmp_path / "waits.py").write_text(source.replace("def on_usage", "async def on_usage"))
    with pytest.raises(LoadError, match="on_usage is async"):
        load_interceptor(f"{tmp_path}/waits.py:Good", {})


def test_thinking_with_a_signature_passes_its_signature() -> None:
    """A changed thinking has the signature that came: the provider will refuse it, and nobody
    invents another.
    """
    deltas = (
        {"type": "thinking_delta", "thinking": "hm"},
        {"type": "signature_delta", "signature": "Eq"},
    )
    start = {"type": "thinking", "thinking": "", "signature": ""}
    messages = [message_start(), *block(0, start, *deltas), *message_end()]
    changed = run(ANTHROPIC, messages, UPPER())
    assert changed == json.loads(json.dumps(messages).replace('"hm"', '"HM"'))


def test_items_behind_a_removed_call_move_up() -> None:
    """SDKs take `output_index` for a position in the output."""

    def drop(_: MessageStream, call: ToolCall) -> None:
        if call.name == "get_weather":
            call.drop()

    left = run(RESPONSES, CALLS[RESPONSES](*PIECES), Made(on_tool_call=drop, holds_tool_calls=True))
    assert {message["output_index"] for message in left if "output_index" in message} == {0}
    assert [item["name"] for item in left[-1]["response"]["output"]] == ["get_time"]
