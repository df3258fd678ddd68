"""Changes by hooks are written back in the dialect's own framing: one class, every dialect, streamed
and not.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
from providers.transcripts import events_of
from structlog.testing import capture_logs
from support.tables import words
from unit.interceptors.dialects.recorder import CHANGES, Made, Recorder, usage_fields
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
    delta,
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
from interceptors.testing import ChainResult, run_chain, run_json

UPPER, LATE, DROP = CHANGES["upper"], CHANGES["late"], CHANGES["drop"]
DONE = "[DONE]"

each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def streamed(path: str, texts: list[str]) -> list[Any]:
    if path == CHAT:
        return [*(delta(content=text) for text in texts), delta("stop"), DONE]
    if path == RESPONSES:
        return responses_stream(text_events(texts))
    return [message_start(), *text_block(0, *texts), *message_end()]


def run_stream(path: str, messages: list[Any], *interceptors: Interceptor) -> ChainResult:
    stream = stream_of(messages, named=path != CHAT)
    with capture_logs():
        return run_chain(list(interceptors), [stream], request=request(path))


def run(path: str, messages: list[Any], *interceptors: Interceptor) -> list[Any]:
    """The decoded messages that leave. If the dialect names events, each has its data's type."""
    result = run_stream(path, messages, *interceptors)
    assert result.failure is None
    for item in result.output.decode().split("\n\n")[:-1]:
        name, _, data = item.rpartition("data: ")
        assert name == ("" if path == CHAT else f"event: {json.loads(data)['type']}\n")
    return messages_of(result.output)


def run_body(path: str, body: Any, *interceptors: Interceptor) -> Any:
    sent = json.dumps(body).encode()
    return json.loads(run_json(list(interceptors), sent, request=request(path)))


def without_numbers(messages: list[Any]) -> list[Any]:
    for message in messages:
        if isinstance(message, dict):
            message.pop("sequence_number", None)
    return messages


# --- Texts


@each_path
def test_changed_text_is_written_back_and_nothing_else_changes(path: str) -> None:
    """Repetitions are changed like the deltas."""
    assert run(path, streamed(path, ["One", " two"]), UPPER()) == streamed(path, ["ONE", " TWO"])


def list_content(*texts: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": text, "annotations": []} for text in texts]
    return chat_body({"content": [parts[0], {"type": "image_url", "text": "x"}, *parts[1:]]})


@pytest.mark.parametrize(
    ("path", "make"),
    [
        (CHAT, lambda a, b, c: chat_body({"content": a, "refusal": b, "reasoning": c}, {"content": b})),
        (CHAT, lambda a, b, _: list_content(a, b)),
        (RESPONSES, lambda a, b, _: response("completed", [message_item(text_part(a), text_part(b))])),
        (ANTHROPIC, lambda a, b, _: anthropic_body(*({"type": "text", "text": text} for text in (a, b)))),
    ],
)  # fmt: skip
def test_every_text_of_a_body_is_changed(path: str, make: Any) -> None:
    """In its place, also in a content that is a list."""
    assert run_body(path, make("a", "b", "c"), UPPER()) == make("A", "B", "C")


def test_an_answer_can_be_ended_in_a_content_that_is_a_list() -> None:
    """Everything after that part is gone: parts, calls, other choices' texts."""
    parts = [{"type": "text", "text": text} for text in ("one", "two", "three")]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"reasoning": "r", "content": parts, "tool_calls": [call]}

    def stop(stream: MessageStream, delta: Any) -> None:
        if delta.text == "two":
            stream.finish("stop", "tw")

    left = run_body(CHAT, chat_body(message, {"content": [parts[2]]}), Made(on_text_delta=stop))
    first, second = (item["message"] for item in left["choices"])
    assert first["reasoning"] == "r"
    assert first["content"] == [parts[0], {"type": "text", "text": "tw"}]
    assert "tool_calls" not in first
    assert second["content"] is None


@each_path
def test_text_that_was_held_back_leaves_before_the_block_ends(path: str) -> None:
    """One delta, made like the last one, has all of it."""
    late = without_numbers(run(path, streamed(path, ["One", " two"]), LATE()))
    whole = without_numbers(streamed(path, ["One two"]))
    if path == CHAT:
        del whole[0]["choices"][0]["logprobs"]
    assert late == whole


@pytest.mark.parametrize("ending", [[DONE], []])
def test_held_text_leaves_when_upstream_ends_without_a_finish_reason(ending: list[str]) -> None:
    """With `[DONE]`, or when the stream is over."""
    first, *rest = run(CHAT, [delta(content="One"), delta(content=" two"), *ending], LATE())
    assert first["choices"][0]["delta"] == {"content": "One two"}
    assert rest == ending


def test_held_text_stays_after_the_last_delta_of_its_event() -> None:
    """If the last text and the block's end are one event, both have one place. With two entries of a
    choice in that event, added text is at the text's end, not in its middle.
    """
    one = [delta("stop", content="One"), DONE]
    assert run(CHAT, one, LATE()) == one

    def keep(stream: Any, delta: Any) -> None:
        stream.kept = getattr(stream, "kept", {})
        stream.kept[delta.block] = stream.kept.get(delta.block, "") + delta.text[-1]
        delta.text = delta.text[:-1].upper()

    def add(stream: Any, end: Any) -> None:
        end.add(f"({stream.kept.pop(end.block)})")

    texts = [choice({"content": text}, index=at) for text, at in (("abc", 0), ("de", 1), ("fg", 0))]
    ends = [choice({}, "stop"), choice({}, "stop", index=1)]
    for chunks in chunkings(stream_of([chunk(*texts, *ends), DONE], named=False)):
        made = Made(on_text_delta=keep, on_text_end=add)
        result = run_chain([made], chunks, request=request(CHAT))
        (message, done) = messages_of(result.output)
        left = [(item["index"], item["delta"].get("content")) for item in message["choices"]]
        assert left == [(0, "AB"), (1, "D(e)"), (0, "F(cg)"), (0, None), (1, None)]
        assert (result.failure, done) == (None, DONE)


def test_a_text_that_only_upstreams_end_ends_is_repeated_whole() -> None:
    """The last delta has left: the ending repeats it, and added text leaves in its own delta."""
    finish = Made(on_text_end=lambda stream, _: stream.finish("completed", "!"))
    messages = run(RESPONSES, responses_stream(text_events(["Hel", "lo"]))[:-4], finish)
    assert messages[-1]["response"]["output"][0]["content"][0]["text"] == "Hello!"
    add = Made(on_text_end=lambda _, end: end.add("!"))
    for path in PATHS.values():
        sent = streamed(path, ["Hel", "lo"])
        deltas = [item for item in sent if "delta" in str(item) and "stop" not in str(item)]
        *first, last = run(path, deltas, add)
        assert first == deltas
        assert "!" in str(last)


def test_a_dropped_delta_leaves_the_rest_of_its_event() -> None:
    """A role, a finish reason, usage, another choice's text."""
    messages = [
        *(delta(role="assistant", content="a"), delta(content="b")),
        chunk(choice({"content": "c"}), usage=CHAT_USAGE),
        delta("stop", content="d"),
    ]
    assert run(CHAT, messages, DROP()) == [
        delta(role="assistant", content=""),
        chunk(choice({"content": ""}), usage=CHAT_USAGE),
        delta("stop", content=""),
    ]


def test_logprobs_do_not_contain_the_text_that_was_changed() -> None:
    """They list its tokens; those of an unchanged text stay."""
    tokens = [{"token": "secret", "logprob": -0.1, "bytes": [], "top_logprobs": []}]
    logprobs = {"content": tokens, "refusal": None}
    messages = [
        chunk({**choice({"content": text}), "logprobs": logprobs}) for text in ("secret", "FINE")
    ]
    changed = run(CHAT, messages, UPPER())
    assert [message["choices"][0]["logprobs"] for message in changed] == [None, logprobs]
    events = responses_stream(text_events(["secret"]))
    for event in events:
        if "logprobs" in event:
            event["logprobs"] = tokens
    assert "'secret'" not in str(run(RESPONSES, events, UPPER()))


def test_the_next_interceptor_sees_the_changes_of_the_one_before() -> None:
    """Changed deltas, and added ones; in a body, too."""
    recorder = Recorder()
    run(ANTHROPIC, streamed(ANTHROPIC, ["One", " two"]), LATE(), UPPER(), recorder)
    _, *texts, _, _ = recorder.seen
    assert texts == ["text 0 ONE TWO", "text ends 0"]
    body = anthropic_body({"type": "text", "text": "a"})
    changed = run_body(ANTHROPIC, body, UPPER(), LATE(), recorder)
    assert changed == anthropic_body({"type": "text", "text": "A"})
    assert recorder.seen[:2] == ["text 0 A (whole)", "text ends 0 (whole)"]


def test_thinking_with_a_signature_keeps_its_signature() -> None:
    """It no longer fits a changed text: the provider will refuse it."""
    thinking, signature = {"thinking": "hm"}, {"signature": "Eq"}
    deltas = {"type": "thinking_delta", **thinking}, {"type": "signature_delta", **signature}
    start = {"type": "thinking", "thinking": "", "signature": ""}
    messages = [message_start(), *block(0, start, *deltas), *message_end()]
    changed = run(ANTHROPIC, messages, UPPER())
    assert changed == json.loads(json.dumps(messages).replace('"hm"', '"HM"'))


# --- Tool calls


def calls(path: str, first: list[str], second: list[str]) -> list[Any]:
    """The events of two calls, with these pieces of arguments."""
    if path == RESPONSES:
        return responses_stream(call_events(first, 0), call_events(second, 1, "get_time"))
    if path == ANTHROPIC:
        other = tool_block(1, *second, id="toolu_2", name="get_time")
        return [message_start(), *tool_block(0, *first), *other, *message_end("tool_use")]
    deltas = [
        tool_delta(0, "", "call_a", "get_weather"),
        *(tool_delta(0, piece) for piece in first),
        tool_delta(1, "", "call_b", "get_time"),
        *(tool_delta(1, piece) for piece in second),
    ]
    return [*(delta(**item) for item in deltas), delta("tool_calls"), DONE]


PIECES = (['{"key":', ' "sec', 'ret"}'], ["{", "}"])


def hide(_: MessageStream, call: ToolCall) -> None:
    if "secret" in call.arguments:
        call.arguments = call.arguments.replace("secret", "***")


def hiding() -> Made:
    return Made(on_tool_call=hide, holds_tool_calls=True)


def hidden(sent: Any) -> Any:
    return json.loads(json.dumps(sent).replace("secret", "***"))


def repeated(first: str, again: str) -> list[Any]:
    """A call of OpenAI responses, repeated with other arguments where it and the response are done."""
    events = call_events([first], 0)
    events[-1]["item"]["arguments"] = again
    return responses_stream(events)


def test_a_repetition_that_is_another_call_is_changed_by_itself() -> None:
    """The changed first call does not replace it."""
    changed = run(RESPONSES, repeated("secret 1", "secret 2"), hiding())
    assert "secret" not in json.dumps(changed)
    assert changed[-2]["item"]["arguments"] == "*** 2"
    assert changed[-1]["response"]["output"][0]["arguments"] == "*** 2"
    assert [item["arguments"] for item in changed if "arguments" in item] == ["*** 1"]


CUSTOM = {"index": 0, "id": "b", "type": "custom", "custom": {"name": "sh", "input": "secret"}}


@pytest.mark.parametrize(
    "messages",
    [
        [
            chunk(
                choice(tool_delta(0, "secret", "a", "f")), choice({"tool_calls": [CUSTOM]}, index=1)
            ),
            chunk(choice({}, "tool_calls"), choice({}, "tool_calls", index=1)),
            DONE,
        ],
        [delta("tool_calls", **tool_delta(0, '{"key": "secret"}', "call_a", "get_weather")), DONE],
    ],
    ids=["a function and a custom tool of two choices", "the call and the finish reason at once"],
)
def test_held_calls_are_changed_in_their_place(messages: list[Any]) -> None:
    assert run(CHAT, messages, hiding()) == hidden(messages)


def test_a_tool_call_whose_deltas_have_left_cannot_be_changed() -> None:
    """The error states what to set, for a body, too."""
    made = Made(on_tool_call=hide)
    failure = run_stream(CHAT, calls(CHAT, *PIECES), made).failure
    assert "set holds_tool_calls = True" in str(failure)
    with capture_logs(), pytest.raises(HookError, match="holds_tool_calls"):
        run_body(RESPONSES, response("completed", [call_item("secret")]), made)


# --- The other parts, and what a hook does not need


ERRORS = [name for name, transcript in STREAMS.items() if "| error " in transcript.seen]


@pytest.mark.parametrize("name", ERRORS)
def test_an_errors_message_can_be_changed(name: str) -> None:
    """Providers repeat keys and prompts in them."""
    made = Made(on_provider_error=lambda _, error: setattr(error, "message", "[redacted]"))
    left = str(run_stream(STREAMS[name].path, STREAMS[name].messages, made).output)
    assert "[redacted]" in left
    assert "opal-7731" not in left
    assert run_body(CHAT, {"error": "no sk-123"}, made) == {"error": "[redacted]"}


@pytest.mark.parametrize("name", STREAMS)
def test_a_hook_on_usage_reads_only_the_events_that_have_it(name: str) -> None:
    """Deltas are not decoded."""
    transcript, seen = STREAMS[name], []

    def note(_: MessageStream, usage: Any) -> None:
        seen.append(" ".join(map(str, ("usage", *usage_fields(usage)))))

    made = Made(on_usage=note)
    stream: Any = made.open_stream(StreamContext(request(transcript.path)))
    for event in events_of(transcript.data):
        if b"delta" in event and b'"usage"' not in event:
            assert stream.needs.search(event) is None
    run_chain([made], [transcript.data], request=request(transcript.path))
    assert seen == [item for item in transcript.seen.split(" | ") if item.startswith("usage")]


# --- Which dialect a response has

WHICH = """
/v1/chat/completions                    generic    openai-chat.text-streamed        yes
/openai/deployments/x/chat/completions/ generic    openai-chat.text-streamed        yes
/v1/responses                           generic    openai-responses.text-streamed   yes
/v1/messages                            generic    anthropic.text-streamed          yes
/v1/messages                            abort      anthropic.text-streamed          yes
/anything                               anthropic  anthropic.text-streamed          yes
/anything                               openai     openai-chat.text-streamed        yes
/anything                               openai     openai-responses.text-streamed   yes
/anything                               openai     openai-responses.failed-streamed yes
/v1/responses/resp_1                    openai     openai-responses.text-streamed   yes
/anything                               generic    openai-chat.text-streamed        no
/v1/completions                         generic    openai-chat.text-streamed        no
/messages                               mcp        anthropic.text-streamed          no
/v1/chat/completions                    mcp        openai-chat.text-streamed        no
"""
"""A path, the route's dialect, an answer, and whether it is read."""


@pytest.mark.parametrize("row", WHICH.strip().split("\n"))
def test_the_routes_dialect_or_the_path_tells(row: str) -> None:
    """The first message distinguishes OpenAI's two formats if the path does not."""
    path, dialect, name, read = row.split()
    transcript, recorder = STREAMS[name], Recorder()
    result = run_chain([recorder], [transcript.data], request=request(path, dialect))
    assert result.output == transcript.data
    assert " | ".join(recorder.seen) == (transcript.seen if read == "yes" else "")


@pytest.mark.parametrize("name", [name for name in BODIES if name.startswith("openai")])
def test_a_body_tells_by_itself_which_of_openais_it_is(name: str) -> None:
    """If the path does not; an error is one in both."""
    recorder = Recorder()
    run_json([recorder], BODIES[name].data, request=request("/anything", "openai"))
    assert " | ".join(recorder.seen) == BODIES[name].seen


# --- Mistakes of authors


def test_finish_is_for_hooks_of_texts_and_tool_calls() -> None:
    """Elsewhere it is unknown what has left."""
    outside = Made(on_usage=lambda stream, _: stream.finish())
    failure = run_stream(CHAT, [chunk(usage=CHAT_USAGE)], outside).failure
    assert "outside of the hooks of texts and tool calls" in str(failure)
    with pytest.raises(TypeError, match="outside of a hook"):
        MessageStream().finish()


def test_abort_ends_the_exchange_as_in_any_hook() -> None:
    def abort(_: MessageStream, part: Any) -> None:
        raise Abort("no")

    failure = run_stream(
        CHAT, STREAMS["openai-chat.text-streamed"].messages, Made(on_text_delta=abort)
    ).failure
    assert str(failure) == "no"


def test_open_messages_returns_a_message_stream() -> None:
    wrong = type("Wrong", (MessageInterceptor,), {"open_messages": lambda self, _: "stream"})()
    with capture_logs(), pytest.raises(HookError, match="open_messages returned str"):
        run_chain([wrong], [b"data: {}\n\n"], request=request(CHAT))


SOURCE = """
from interceptors.dialects import MessageInterceptor, MessageStream

class Given(MessageInterceptor):
    def open_messages(self, context):
        return GivenStream()

class GivenStream(MessageStream):
    def on_start(self, head): ...
    {}(self, part): ...
"""


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        *((f"def on_{name}", None) for name in words("text_delta tool_call usage provider_error")),
        ("def on_text", r"GivenStream has an unknown hook 'on_text'; known are: .*on_text_delta"),
        ("async def on_usage", "on_usage is async"),
        ("def on_event", r"GivenStream\.on_event: a MessageStream must not define it"),
    ],
)
def test_a_wrong_hook_is_refused_at_load(hook: str, error: str | None, tmp_path: Any) -> None:
    """Misspelt, async, or one that would silence the others."""
    (tmp_path / "given.py").write_text(SOURCE.format(hook))
    with nullcontext() if error is None else pytest.raises((LoadError, TypeError), match=error):
        load_interceptor(f"{tmp_path}/given.py:Given", {})
