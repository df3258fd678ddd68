"""Redact in LLM answers: a secret never reaches the client, however it is cut, and other text is
hardly ever late.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    PATHS,
    RESPONSES,
    anthropic_body,
    block,
    call_events,
    call_item,
    chat_body,
    choice,
    chunk,
    message_end,
    message_item,
    message_start,
    messages_of,
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

from interceptors import (
    Event,
    Interceptor,
    Outcome,
    Request,
    StreamContext,
    StreamInterceptor,
)
from interceptors.redact import Redact
from interceptors.testing import run_chain, run_json

SECRET = "sk-Zq3xV81L"
KEY = "sk-[A-Za-z0-9]{8}"
Blocks = list[tuple[str, list[str]]]
"""An answer: of each text or call its kind and its deltas."""


def streamed(dialect: str, blocks: Blocks) -> bytes:
    """As a provider would stream it, each in its own block."""
    made: list[Any] = []
    if dialect == "chat":
        for index, (kind, pieces) in enumerate(blocks):
            if kind == "tool":
                made.append(chunk(choice(tool_delta(index, "", f"call_{index}", "send"))))
                made += [chunk(choice(tool_delta(index, piece))) for piece in pieces]
            else:
                field = {"text": "content", "thinking": "reasoning_content"}[kind]
                made += [chunk(choice({field: piece})) for piece in pieces]
        return stream_of([*made, chunk(choice({}, "stop")), "[DONE]"], named=False)
    if dialect == "responses":
        for index, (kind, pieces) in enumerate(blocks):
            made.append(
                {
                    "text": lambda pieces, index: text_events(pieces, index, id=f"msg_{index}"),
                    "thinking": summary_events,
                    "tool": call_events,
                }[kind](pieces, index)
            )
        return stream_of(responses_stream(*made), named=True)
    made.append(message_start())
    for index, (kind, pieces) in enumerate(blocks):
        if kind == "tool":
            made += tool_block(index, *pieces)
        elif kind == "text":
            made += text_block(index, *pieces)
        else:
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
            made += block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas)
    return stream_of([*made, *message_end()], named=True)


def said(stream: bytes, kind: str) -> str:
    """What a client has put together of one kind."""
    text = ""
    for message in messages_of(stream):
        if not isinstance(message, dict):
            continue
        for item in message.get("choices", ()):
            delta = item["delta"]
            text += (
                delta.get({"text": "content", "thinking": "reasoning_content"}.get(kind, ""), None)
                or ""
            )
            if kind == "tool":
                text += "".join(
                    call["function"]["arguments"] for call in delta.get("tool_calls", ())
                )
        delta = message.get("delta")
        if isinstance(delta, str):
            names = {
                "text": "output_text",
                "thinking": "reasoning_summary_text",
                "tool": "function_call_arguments",
            }
            text += delta if message["type"] == f"response.{names[kind]}.delta" else ""
        elif isinstance(delta, dict):
            text += delta.get(
                {"text": "text", "thinking": "thinking", "tool": "partial_json"}[kind], ""
            )
    return text


def pieces_of(text: str, cuts: tuple[int, ...]) -> list[str]:
    return [text[first:last] for first, last in zip((0, *cuts), (*cuts, len(text)), strict=True)]


def everywhere(text: str, deltas: int) -> Iterator[list[str]]:
    """A text cut at every possible place into so many deltas."""
    for cuts in combinations(range(1, len(text)), deltas - 1):
        yield pieces_of(text, cuts)


@pytest.mark.parametrize("kind", ["text", "thinking", "tool"])
@pytest.mark.parametrize("dialect", PATHS)
def test_a_secret_cut_anywhere_never_reaches_the_client(dialect: str, kind: str) -> None:
    """Over two and over three deltas, in texts, in thoughts and in arguments of tools, and in all
    that repeats them.
    """
    before, after = ('{"k":"', '"}') if kind == "tool" else ("a ", " b")
    whole = before + SECRET + after
    for deltas in (2, 3):
        for pieces in everywhere(whole, deltas):
            result = run_chain(
                [Redact([KEY])],
                [streamed(dialect, [(kind, pieces)])],
                request=request(PATHS[dialect]),
            )
            assert result.failure is None
            assert said(result.output, kind) == f"{before}[redacted]{after}"
            assert SECRET.encode() not in result.output
            assert SECRET[-5:].encode() not in result.output


INTERLEAVED: dict[str, tuple[str, list[Any]]] = {
    "chat": (
        CHAT,
        [
            chunk(
                choice({"content": "a sk-Zq"}, index=0), choice({"content": "b sk-Zq3x"}, index=1)
            ),
            chunk(choice({"content": "3xV8"}, index=0)),
            chunk(choice({"reasoning_content": "c sk-Zq3"}, index=0)),
            chunk(choice({"content": "V81L!"}, index=1)),
            chunk(choice({"content": "1L", "reasoning_content": "xV81L"}, index=0)),
            chunk(choice({}, "stop", index=1)),
            chunk(choice({"content": " d sk-"}, "stop", index=0)),
            "[DONE]",
        ],
    ),
    "anthropic": (
        ANTHROPIC,
        [
            message_start(),
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": "a sk-Zq"},
            },
            {
                "type": "content_block_start",
                "index": 1,
                "content_block": {"type": "text", "text": ""},
            },
            {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "text_delta", "text": "b sk-Zq3x"},
            },
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "3xV81L"},
            },
            {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "text_delta", "text": "V81L! d sk-"},
            },
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_stop", "index": 1},
            *message_end(),
        ],
    ),
    "responses": (
        RESPONSES,
        [
            event
            for pair in zip(
                text_events(["a sk-Zq", "3xV8", "1L"], 0, id="msg_0"),
                text_events(["b sk-Zq3x", "V81L!", " d sk-"], 1, id="msg_1"),
                strict=True,
            )
            for event in pair
        ],
    ),
}


@pytest.mark.parametrize(("path", "messages"), INTERLEAVED.values(), ids=INTERLEAVED)
def test_texts_at_once_do_not_mix(path: str, messages: list[Any]) -> None:
    """Several choices, blocks and items: each is its own text."""
    output = run_chain(
        [Redact([KEY], "#")], [stream_of(messages, named=path != CHAT)], request=request(path)
    ).output
    texts: dict[Any, str] = {}
    for message in messages_of(output):
        for item in message.get("choices", ()) if isinstance(message, dict) else ():
            for name, value in item["delta"].items():
                texts[name, item["index"]] = texts.get((name, item["index"]), "") + value
        if isinstance(message, dict) and "delta" in message and "choices" not in message:
            delta, index = message["delta"], message.get("index", message.get("output_index"))
            if isinstance(delta, str) or "text" in delta:
                texts[index] = texts.get(index, "") + (
                    delta if isinstance(delta, str) else delta["text"]
                )
        if isinstance(message, dict) and message.get("type") == "content_block_start":
            texts[message["index"]] = (
                texts.get(message["index"], "") + message["content_block"]["text"]
            )
    assert list(texts.values()) == (
        ["a # d sk-", "b #!", "c #"] if path == CHAT else ["a #", "b #! d sk-"]
    )


def opened(redact: Redact, path: str) -> StreamInterceptor:
    stream = redact.open_stream(StreamContext(request(path)))
    assert stream is not None
    return stream


def leaving(stream: StreamInterceptor, message: Any, kind: str = "text") -> str:
    """The text that leaves with one event."""
    event = Event(message) if isinstance(message, str) else Event(json=message)
    result: Any = stream.on_event(event)
    events = [] if result is None else result if isinstance(result, list) else [result]
    return said(b"".join(item.raw for item in events), kind)


DELTAS = {
    CHAT: lambda text: chunk(choice({"content": text})),
    ANTHROPIC: lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
    RESPONSES: lambda text: {
        "type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": text,
    },
}  # fmt: skip
ENDS = {
    CHAT: chunk(choice({}, "stop")),
    ANTHROPIC: {"type": "content_block_stop", "index": 0},
    RESPONSES: {
        "type": "response.output_text.done",
        "item_id": "m",
        "output_index": 0,
        "content_index": 0,
        "text": "is sk",
    },
}


@pytest.mark.parametrize("path", PATHS.values())
def test_text_waits_only_while_it_could_become_a_secret(path: str) -> None:
    """After each delta all has left but the longest end that a secret could begin with."""
    stream = opened(Redact([KEY, "password: [a-z]+;"]), path)
    given_and_left = [
        ("Hello", "Hello"),
        (" pass", " "),
        ("age s", "passage "),
        ("k", ""),
        ("-", ""),
        ("12", ""),
        ("!", "sk-12!"),
        (" password", " "),
        (": abc", ""),
        (" is s", "password: abc is "),
        ("k", ""),
    ]
    for text, left in given_and_left:
        assert leaving(stream, DELTAS[path](text)) == left
    assert leaving(stream, ENDS[path]) == "sk"


def test_what_waits_leaves_at_done_and_when_upstream_ends_without_it() -> None:
    """No finish reason, no [DONE]."""
    for end in ([], ["[DONE]"]):
        stream = stream_of([chunk(choice({"content": "is sk-1"})), *end], named=False)
        output = run_chain([Redact([KEY])], [stream], request=request(CHAT)).output
        assert said(output, "text") == "is sk-1"
        assert messages_of(output)[len(messages_of(output)) - len(end) :] == end


def test_of_a_stream_that_breaks_off_nothing_that_waits_leaves() -> None:
    """Half a secret is never sent, whatever breaks the stream off."""

    class Breaking(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return BreakingStream()

    class BreakingStream(StreamInterceptor):
        def on_event(self, event: Event) -> Event:
            if event.data == "broken":
                raise RuntimeError
            return event

    message = chunk(choice({"content": "is sk-Zq3xV"}))
    stream_bytes = stream_of([message], named=False) + b"event: x\ndata: broken\n\n"
    result = run_chain([Redact([KEY]), Breaking()], [stream_bytes], request=request(CHAT))
    assert result.failure is not None
    assert said(result.output, "text") == "is "
    stream = opened(Redact([KEY]), CHAT)
    assert leaving(stream, message) == "is "
    stream.on_end(Outcome.CLIENT_DISCONNECTED)


@pytest.mark.parametrize("dialect", PATHS)
def test_an_answer_without_secrets_leaves_as_the_very_bytes(dialect: str) -> None:
    """Nothing matched and nothing waited: every event passes unchanged."""
    blocks: Blocks = [("thinking", ["Hm ", "✨"]), ("text", ["Hello", " there"])]
    stream = streamed(dialect, blocks)
    result = run_chain([Redact([KEY])], [stream], request=request(PATHS[dialect]))
    assert (result.output, result.counts.changed, result.counts.added) == (stream, 0, 0)


def test_only_events_whose_text_waited_change() -> None:
    """The two that share what waited; the others keep their bytes."""
    stream = streamed("anthropic", [("text", ["One", " s", "o", " two"])])
    result = run_chain([Redact([KEY])], [stream], request=request(ANTHROPIC))
    assert said(result.output, "text") == "One so two"
    assert result.counts.changed == 2
    blocks = stream.split(b"\n\n")
    assert [item for item in result.output.split(b"\n\n") if item in blocks] == [
        item for item in blocks if b'" s"' not in item and b'"o"' not in item
    ]


def test_what_matches_only_in_a_piece_is_not_redacted() -> None:
    """A delta is not a separate text."""
    stream = streamed("chat", [("text", ["cl", "ass", "ical", " ass"])])
    output = run_chain([Redact([r"\bass\b", "^ass"], "#")], [stream], request=request(CHAT)).output
    assert said(output, "text") == "classical #"


def test_all_other_strings_of_an_event_are_redacted_as_in_any() -> None:
    """Names, ids and unknown fields, in events with text and without."""
    secret = {"user": SECRET, SECRET: r"sk-Zq3x\V81L", "ass": "ass"}
    messages = [
        chunk(choice({"content": "cl"}), **secret),
        chunk(choice({"content": "ass"}), other=[SECRET]),
        {"type": "unknown", "x": SECRET},
        chunk(choice({"content": "ical"}, "stop")),
    ]
    stream = stream_of(messages, named=False) + b"event: x\ndata: " + SECRET.encode() + b"\n\n"
    output = run_chain([Redact([KEY, r"\bass\b"], "#")], [stream], request=request(CHAT)).output
    assert said(output, "text") == "classical"
    assert SECRET.encode() not in output
    assert messages_of(output)[0]["user"] == "#"
    assert messages_of(output)[-1] == "#"


def test_an_event_of_an_answer_stays_json() -> None:
    """A pattern that continues to the end of what it is given ends with the string."""
    message = chunk(choice({"content": "my sk-Zq"}), user="sk-Zq", login="ann", password="hunter2")
    patterns = ["sk-.*", r'"login": ?"ann", ?"password": ?"\w+"']
    stream = stream_of([message, chunk(choice({}, "stop"))], named=False)
    result = run_chain([Redact(patterns, "sk-#")], [stream], request=request(CHAT))
    assert result.failure is None
    assert said(result.output, "text") == "my sk-#"
    assert messages_of(result.output)[0]["user"] == "sk-#"
    assert b"hunter2" not in result.output
    body = json.dumps({**chat_body({"content": "my sk-Zq"}), "user": "sk-Zq", "n": 1})
    output = json.loads(run_json([Redact(["sk-.*"], "#")], body.encode(), request=request(CHAT)))
    assert output == json.loads(body.replace("sk-Zq", "#"))


def test_logprobs_do_not_show_what_was_redacted() -> None:
    """Tokens of a text that is not what came are gone with it."""
    made = [
        chunk({**choice({"content": piece}), "logprobs": {"content": [{"token": piece}]}})
        for piece in ("sk-Zq3x", "V81L")
    ]
    output = run_chain(
        [Redact([KEY])], [stream_of([*made, "[DONE]"], named=False)], request=request(CHAT)
    ).output
    assert b"Zq3x" not in output
    assert b"V81L" not in output


def test_an_error_of_the_provider_is_redacted() -> None:
    """Providers put keys into their messages."""
    for path, body in (
        (CHAT, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
        (ANTHROPIC, {"type": "error", "error": {"type": "x", "message": SECRET}}),
    ):
        assert SECRET.encode() not in run_json(
            [Redact([KEY])], json.dumps(body).encode(), request=request(path)
        )


def test_repetitions_show_what_the_deltas_showed() -> None:
    """OpenAI responses repeat each text up to five times."""
    blocks: Blocks = [
        ("thinking", ["t sk-Zq3x", "V81L"]),
        ("text", ["a sk-", "Zq3xV81L b"]),
        ("tool", ['{"k":"sk-Zq', '3xV81L"}']),
    ]
    output = run_chain(
        [Redact([KEY], "<x>")], [streamed("responses", blocks)], request=request(RESPONSES)
    ).output
    shown = json.dumps(messages_of(output))
    assert SECRET not in shown
    final = messages_of(output)[-1]["response"]["output"]
    assert final[0]["summary"][0]["text"] == said(output, "thinking") == "t <x>"
    assert final[1]["content"][0]["text"] == said(output, "text") == "a <x> b"
    assert final[2]["arguments"] == said(output, "tool") == '{"k":"<x>"}'


BODIES: dict[str, Any] = {
    CHAT: chat_body(
        {"content": f"a {SECRET}", "reasoning_content": SECRET},
        {
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "send", "arguments": f'{{"k":"{SECRET}"}}'},
                }
            ]
        },
    ),
    RESPONSES: response(
        "completed", [message_item(text_part(f"a {SECRET}")), call_item(f'{{"k":"{SECRET}"}}')]
    ),
    ANTHROPIC: anthropic_body(
        {"type": "thinking", "thinking": SECRET, "signature": "s"},
        {"type": "text", "text": f"a {SECRET}"},
        {"type": "tool_use", "id": "t", "name": "send", "input": {"k": SECRET}},
    ),
}


@pytest.mark.parametrize("path", PATHS.values())
def test_an_answer_that_is_not_streamed_is_redacted(path: str) -> None:
    """Texts, thoughts and arguments; one without secrets keeps its bytes."""
    body = json.dumps(BODIES[path])
    output = run_json([Redact([KEY], "#")], body.encode(), request=request(path))
    assert json.loads(output) == json.loads(body.replace(SECRET, "#"))
    clean = body.replace(SECRET, "fine").encode()
    assert run_json([Redact([KEY])], clean, request=request(path)) == clean


def test_arguments_are_redacted_as_json() -> None:
    """An escape hides nothing, and a replacement is written so that the arguments stay JSON."""
    for dialect in PATHS:
        stream = streamed(dialect, [("tool", ['{"k":"s\\u006', 'b-Zq3xV81L","n":1}'])])
        output = run_chain(
            [Redact([KEY], 'say "no"')], [stream], request=request(PATHS[dialect])
        ).output
        assert json.loads(said(output, "tool")) == {"k": 'say "no"', "n": 1}


HIDDEN = r"\u0073k-Zq3xV81L"  # the secret, as JSON may spell it


def repeating(shown: str, again: str, last: str, kind: str = "function_call") -> bytes:
    """A call of OpenAI responses whose two repetitions differ."""
    key, name = {
        "function_call": ("arguments", "function_call_arguments"),
        "custom_tool_call": ("input", "custom_tool_call_input"),
    }[kind]

    def item(value: str) -> dict[str, Any]:
        return {
            "id": "c",
            "type": kind,
            "call_id": "call",
            "name": "send",
            "status": "completed",
            key: value,
        }

    where = {"item_id": "c", "output_index": 0}
    messages = [
        {"type": "response.output_item.added", "output_index": 0, "item": item("")},
        {"type": f"response.{name}.delta", **where, "delta": shown},
        {"type": f"response.{name}.done", **where, key: shown},
        {"type": "response.output_item.done", "output_index": 0, "item": item(again)},
    ]
    return stream_of(responses_stream(messages, end={
        "type": "response.completed", "response": response("completed", [item(last)]),
    }), named=True)  # fmt: skip


@pytest.mark.parametrize("kind", ["function_call", "custom_tool_call"])
def test_a_repetition_that_says_other_arguments_is_redacted_by_itself(kind: str) -> None:
    """After an escape, in either repetition, whatever the call contained before."""
    key = "arguments" if kind == "function_call" else "input"
    hidden, other = f'{{"k":"{HIDDEN}"}}', f'{{"k":"{HIDDEN}","n":[2]}}'
    for shown, again, last in (
        ('{"k":1}', hidden, other),
        (hidden, other, hidden),
        (hidden, '{"k":1}', other),
        ('{"k":1}', '{"k":1}', hidden),
    ):
        stream = repeating(shown, again, last, kind)
        result = run_chain([Redact([KEY])], [stream], request=request(RESPONSES))
        assert result.failure is None
        messages = messages_of(result.output)
        left = [messages[-2]["item"][key], messages[-1]["response"]["output"][0][key]]
        assert [json.loads(item) for item in left] == [
            json.loads(item.replace(HIDDEN, "[redacted]")) for item in (again, last)
        ]
        assert b"Zq3xV81L" not in result.output


def test_a_text_that_is_repeated_as_another_is_redacted_by_itself() -> None:
    """Texts and thoughts: the repetition has a secret that no delta had."""
    messages = responses_stream(summary_events(["fine"]), text_events(["fine"], 1))
    last = len(messages) - 1
    stream = stream_of(messages[:3], named=True) + stream_of(messages[3:], named=True).replace(
        b"fine", SECRET.encode()
    )
    result = run_chain([Redact([KEY])], [stream], request=request(RESPONSES))
    assert result.failure is None
    assert SECRET.encode() not in result.output
    output = messages_of(result.output)[last]["response"]["output"]
    assert [output[0]["summary"][0]["text"], output[1]["content"][0]["text"]] == ["[redacted]"] * 2


def repeated(stream: bytes, kind: str) -> set[str]:
    """The repetitions of one kind in a Responses stream."""
    found = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            is_text = value.get("type") in ("output_text", "response.output_text.done")
            is_thought = value.get("type") in (
                "summary_text",
                "response.reasoning_summary_text.done",
            )
            if value.get("status") != "in_progress" and kind == "tool" and "arguments" in value:
                found.add(value["arguments"])
            elif value.get("text") and {"text": is_text, "thinking": is_thought}.get(kind):
                found.add(value["text"])
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    for message in messages_of(stream):
        look(message)
    return found


@pytest.mark.parametrize(("pattern", "replacement", "redacted"), [
    ("sk-[A-Za-z0-9]+", r"sk-x\g<0>", "sk-xsk-Zq3xV81L"), ("sk-.*", "sk-x", "sk-x"),
    (r"\w*Zq\w*", "Zq", "sk-Zq"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["text", "thinking", "tool"])
def test_a_replacement_that_matches_its_own_pattern_is_put_in_once(
    kind: str, pattern: str, replacement: str, redacted: str
) -> None:
    """In the deltas, in all that repeats them, and in an event whose other strings stand after it."""
    before, after = ('{"k":"', '"}') if kind == "tool" else ("a ", "")
    stream = streamed("responses", [(kind, [f"{before}sk-", f"Zq3xV81L{after}"])])
    result = run_chain([Redact([pattern], replacement)], [stream], request=request(RESPONSES))
    assert result.failure is None
    assert said(result.output, kind) == before + redacted + after
    assert repeated(result.output, kind) == {before + redacted + after}
    assert [message["type"] for message in messages_of(result.output)].count(
        "response.completed"
    ) == 1


@pytest.mark.parametrize("path", PATHS.values())
def test_in_an_answer_that_is_not_streamed_it_is_put_in_once(path: str) -> None:
    """Anthropic's decoded input among them."""
    body = json.dumps(BODIES[path])
    output = run_json([Redact([KEY], r"<\g<0>>")], body.encode(), request=request(path))
    assert json.loads(output) == json.loads(body.replace(SECRET, f"<{SECRET}>"))


# Of the arguments of a call: the pattern, what upstream says and what leaves.
ARGUMENTS: dict[str, tuple[str, str, str]] = {
    "to the end of a string": ("sk-.*", '{"k":"sk-Zq","n":1}', '{"k":"#","n":1}'),
    "to the end of a string, escaped": ("sk-.*", r'{"k":"\u0073k-Zq","n":1}', '{"k":"#","n":1}'),
    "a name": ("sk-.*", '{"sk-Zq":1}', '{"#":1}'),
    "a number": ("4111[0-9]+", '[41110000,"x"]', '["#","x"]'),
    "arguments that are one number": ("4111[0-9]+", "41110000", '"#"'),
    "arguments that are one string": ("sk-.*", '"sk-Zq"', '"#"'),
    "a name and its value": ('"password":"[^"]*"', '{"password":"hunter2","n":1}', '{"#":"#","n":1}'),
    "from inside one string into the next": ("ter2.*hun", '["hunter2", true, "hunter3"]', '["#", true, "#"]'),
    "syntax alone": (r"\},\{", '[{},{}]', '[{},{}]'),
    "syntax and a number": (r":[0-9]+\}", '{"a":1}', '{"a":"#"}'),
    "spaces stay": ("sk-.*", '{ "k" : "sk-Zq" ,"a":[ ] }', '{ "k" : "#" ,"a":[ ] }'),
    "no JSON": ("sk-.*", "send sk-Zq now", "send #"),
    "JSON that is cut off": ("sk-[A-Za-z]+", r'{"k":"\u0073k-Zq', '{"k":"#'),
}  # fmt: skip


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(("pattern", "arguments", "expected"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_are_json_stay_json(
    dialect: str, pattern: str, arguments: str, expected: str
) -> None:
    """A pattern applies to the content of strings; a match over several takes each."""
    stream = streamed(dialect, [("tool", [arguments[:4], arguments[4:]])])
    result = run_chain([Redact([pattern], "#")], [stream], request=request(PATHS[dialect]))
    assert result.failure is None
    assert said(result.output, "tool") == expected
    if dialect == "responses":
        assert repeated(result.output, "tool") == {expected}


def test_what_was_too_long_to_wait_is_redacted_where_it_is_repeated() -> None:
    """It has left in deltas, for the window was full."""
    secret = "BEGIN" + "x" * 30 + "END"
    stream = streamed("responses", [("text", ["a ", *secret, " b"])])
    result = run_chain([Redact(["BEGINx+END"], window=10)], [stream], request=request(RESPONSES))
    assert said(result.output, "text") == f"a {secret} b"
    assert repeated(result.output, "text") == {"a [redacted] b"}


def test_patterns_apply_to_arguments_in_their_order() -> None:
    """Also where one reaches over several strings."""
    over = '"user":"ann","password":"[^"]*"'
    arguments = '{"user":"ann","password":"hunter2"}'
    for patterns, expected in (
        (["ann", over], '{"user":"#","password":"hunter2"}'),
        ([over, "ann"], '{"#":"#","#":"#"}'),
    ):
        stream = streamed("chat", [("tool", [arguments])])
        assert (
            said(run_chain([Redact(patterns, "#")], [stream], request=request(CHAT)).output, "tool")
            == expected
        )


def test_many_replacements_that_match_again_cost_no_square() -> None:
    """What would be looked at again for each of them is bounded."""
    arguments = json.dumps(["sk-Zq"] * 4_000)
    redacted = Redact(["sk-.*"], "sk-x").json.redact_json(arguments)
    assert set(json.loads(redacted)) == {"sk-x"}


# Of letters that stand nowhere else in these events, and of what JSON itself is made of.
OVER_STRINGS = ["Я.*", "Ж[^,]*", '"Ж":.', r"\W+Я", "(?s)Ж.*Я", r'Я"\}', "Ж+"]
OVER_JSON = [*OVER_STRINGS, '".*', r'[{\[]."', "[0-9]..", r"\W+", "[a-zЯ]+.?"]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 999)
    | st.floats(0, 9)
    | st.text('ЖЯaд "\\{}[]:,\n1', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('ЖЯ"', max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
arguments = st.builds(
    lambda value, spaced, escaped: json.dumps(
        value, separators=(", ", ": ") if spaced else (",", ":"), ensure_ascii=escaped
    ),
    json_values, st.booleans(), st.booleans(),
)  # fmt: skip
replacements = st.sampled_from(["#", "", r"<\g<0>>", "ЖЯ"])


def shape(text: str) -> str:
    """Of JSON how its lists and objects lie in each other, and its literals."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(inner) for inner in value]
        return value if value is None or isinstance(value, bool) else 0

    # Names may become the same.
    return str(
        bare(json.loads(text, object_pairs_hook=lambda pairs: [inner for _, inner in pairs]))
    )


@settings(max_examples=500, deadline=None)
@given(
    patterns=st.lists(st.sampled_from(OVER_JSON), min_size=1, max_size=3, unique=True),
    arguments=arguments,
    replacement=replacements,
)
def test_json_stays_json_of_its_shape_whatever_the_patterns(
    patterns: list[str], arguments: str, replacement: str
) -> None:
    """Lists and objects as long as they were, literals where they were."""
    redacted = Redact(patterns, replacement).json.redact_json(arguments)
    assert shape(redacted) == shape(arguments)


@settings(max_examples=300, deadline=None)
@given(
    dialect=st.sampled_from(list(PATHS)),
    patterns=st.lists(st.sampled_from(OVER_STRINGS), min_size=1, max_size=3, unique=True),
    arguments=arguments,
    cut=st.integers(0, 30),
    replacement=replacements,
)
def test_arguments_that_are_json_are_repeated_as_they_were_shown(
    dialect: str, patterns: list[str], arguments: str, cut: int, replacement: str
) -> None:
    """JSON of the same shape in every dialect, and the same in all repetitions."""
    stream = streamed(dialect, [("tool", [arguments[:cut], arguments[cut:]])])
    result = run_chain([Redact(patterns, replacement)], [stream], request=request(PATHS[dialect]))
    assert result.failure is None
    left = said(result.output, "tool")
    assert shape(left) == shape(arguments)
    if dialect == "responses":
        assert repeated(result.output, "tool") == {left}


# Of letters that stand nowhere else in these answers.
PATTERNS = [
    "ЖЯ-[А-Яа-я]{3,}", "ЖЯ-[а-я]{2}", r"\bЖЯ\b", "(?i)жя", "Ж.*?Я", "(?:ЖЯ)+", "(?<=Ж)Я+", "Ж(?!Я)", "Ж$", "^Ж",
    r"(Ж+)-\1", "ЖЖ|ЖЖЯ",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    dialect=st.sampled_from(list(PATHS)),
    patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
    pieces=st.lists(
        st.lists(st.sampled_from([*'ЖЖЯЯжяд- \n"\\', "ЖЯ-", "ЖЯ-абв"]), min_size=1, max_size=5).map("".join),
        min_size=1, max_size=6,
    ),
    replacement=st.sampled_from(["#", "", r"<\g<0>>", "ЖЯ"]),
)  # fmt: skip
def test_what_leaves_is_what_re_makes_of_the_whole_text(
    dialect: str, patterns: list[str], pieces: list[str], replacement: str
) -> None:
    """Pattern by pattern, for any text and any cuts, and so do the repetitions."""
    expected = "".join(pieces)
    for pattern in patterns:
        expected = re.sub(pattern, replacement, expected)
    stream = streamed(dialect, [("text", pieces)])
    result = run_chain([Redact(patterns, replacement)], [stream], request=request(PATHS[dialect]))
    assert result.failure is None
    assert said(result.output, "text") == expected
    if dialect == "responses" and expected:
        assert (
            messages_of(result.output)[-1]["response"]["output"][0]["content"][0]["text"]
            == expected
        )


@pytest.mark.parametrize(
    ("path", "dialect"),
    [("/events", "generic"), ("/messages", "mcp"), ("/v1/chat/completions", "mcp")],
)
def test_other_streams_are_redacted_event_by_event(path: str, dialect: str) -> None:
    """Also of a route that says `dialect: mcp`: what looks like a chat there is none."""
    made = Request(method="POST", path=path, dialect=dialect)
    messages = [
        chunk(choice({"content": SECRET})),
        chunk(choice({"content": SECRET[:5]})),
        "[DONE]",
    ]
    output = run_chain(
        [Redact([KEY], "#")], [stream_of(messages, named=False)], request=made
    ).output
    assert [item["choices"][0]["delta"]["content"] for item in messages_of(output)[:2]] == [
        "#",
        SECRET[:5],
    ]


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
def test_a_secret_in_the_input_of_a_custom_tool_never_passes(cut: int) -> None:
    """OpenAI chat's custom tools take text, not JSON, and stream it as `custom.input`."""

    def piece(text: str, **item: Any) -> dict[str, Any]:
        custom = {"input": text, **({"name": "shell"} if item else {})}
        return chunk(choice({"tool_calls": [{"index": 0, **item, "custom": custom}]}))

    messages = [piece("", id="c", type="custom"), piece(SECRET[:cut]), piece(SECRET[cut:])]
    stream = stream_of([*messages, chunk(choice({}, "tool_calls")), "[DONE]"], named=False)
    result = run_chain([Redact([KEY])], [stream], request=request(CHAT))
    assert result.failure is None
    calls = [
        call["custom"]
        for message in messages_of(result.output)[:-1]
        for call in message["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert "".join(call.get("input", "") for call in calls) == "[redacted]"
    assert calls[0]["name"] == "shell"


def test_a_match_in_a_tools_name_that_comes_in_pieces_ends_the_stream() -> None:
    """The pieces cannot be changed any more without changing which tool is called."""
    deltas = [
        tool_delta(0, "", "call_0", SECRET[:9]),
        {"tool_calls": [{"index": 0, "function": {"name": SECRET[9:]}}]},
        tool_delta(0, "{}"),
    ]
    chunks = [
        *(chunk(choice(delta)) for delta in deltas),
        chunk(choice({}, "tool_calls")),
        "[DONE]",
    ]
    stream = stream_of(chunks, named=False)
    result = run_chain([Redact([KEY])], [stream], request=request(CHAT))
    assert result.failure is not None
    assert SECRET[9:].encode() not in result.output
