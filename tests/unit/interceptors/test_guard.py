"""Guard: an answer ends, whole for the client, where a pattern is found in its text, wherever the
match is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from unit.interceptors.dialects.transcripts import (
    ANTHROPIC,
    CHAT,
    PATHS,
    RESPONSES,
    anthropic_body,
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
    text_block,
    text_events,
    text_part,
    tool_delta,
)

from interceptors import LoadError
from interceptors.guard import Guard
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json


def streamed(dialect: str, texts: list[str]) -> bytes:
    """An answer with these deltas, in a dialect."""
    if dialect == "chat":
        chunks = [
            chunk(choice({"role": "assistant", "content": ""})),
            *(chunk(choice({"content": text})) for text in texts),
        ]
        return stream_of([*chunks, chunk(choice({}, "stop")), "[DONE]"], named=False)
    if dialect == "responses":
        return stream_of(responses_stream(text_events(texts)), named=True)
    return stream_of([message_start(), *text_block(0, *texts), *message_end()], named=True)


def said(dialect: str, stream: bytes) -> tuple[str, str | None, Any]:
    """The text that a client has, why the answer ended, and the last message."""
    text, reason, message = "", None, None
    for message in messages_of(stream):
        if dialect == "chat" and isinstance(message, dict):
            text += message["choices"][0]["delta"].get("content") or ""
            reason = message["choices"][0]["finish_reason"] or reason
        elif dialect == "responses":
            text += message["delta"] if message["type"] == "response.output_text.delta" else ""
            if message["type"] in ("response.incomplete", "response.completed"):
                shown = [
                    part["text"]
                    for item in message["response"]["output"]
                    for part in item["content"]
                ]
                assert "".join(shown) == text
                reason = (message["response"]["incomplete_details"] or {"reason": "completed"})[
                    "reason"
                ]
        elif dialect == "anthropic":
            text += message.get("delta", {}).get("text", "")
            reason = message.get("delta", {}).get("stop_reason", reason)
    return text, reason, message


def cuts(text: str, at_most: int) -> Iterator[list[str]]:
    """A text in one, two and three deltas, cut everywhere."""
    yield [text]
    for first in range(1, len(text)):
        yield [text[:first], text[first:]]
        if at_most > 2:
            for second in range(first + 1, len(text)):
                yield [text[:first], text[first:second], text[second:]]


FILTERED = {"chat": "content_filter", "responses": "content_filter", "anthropic": "refusal"}
ENDED = {"chat": "stop", "responses": "completed", "anthropic": "end_turn"}


@pytest.mark.parametrize("dialect", PATHS)
def test_a_match_is_found_wherever_it_is_cut(dialect: str) -> None:
    """Nothing after the match is sent, nor the delta that completes it."""
    for texts in cuts("An evil plan, and more", 3 if dialect == "chat" else 2):
        result = run_chain(
            [Guard(["evil plan"])], [streamed(dialect, texts)], request=request(PATHS[dialect])
        )
        assert result.ended
        text, reason, last = said(dialect, result.output)
        assert reason == FILTERED[dialect]
        assert text in "An evil plan", texts
        assert text.startswith("An ")
        assert last in ("[DONE]", {"type": "message_stop"}) or last["type"] == "response.incomplete"


@pytest.mark.parametrize("dialect", PATHS)
def test_the_text_before_a_match_and_the_message_leave(dialect: str) -> None:
    """The delta with the match is cut before the first match of all patterns."""
    reason = {"chat": "stop", "responses": "max_output_tokens", "anthropic": "end_turn"}[dialect]
    guard = Guard(["plan", "evil"], reason=reason, message=" [stopped]")
    result = run_chain(
        [guard], [streamed(dialect, ["An ", "x evil plan"])], request=request(PATHS[dialect])
    )
    assert said(dialect, result.output)[:2] == ("An x  [stopped]", reason)


@pytest.mark.parametrize("dialect", PATHS)
def test_an_answer_without_a_match_leaves_unchanged(dialect: str) -> None:
    """And is not delayed: each event leaves when it has come."""
    stream = streamed(dialect, ["An ", "ev", "il-minded plan"])
    for chunks in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        result = run_chain([Guard(["evil plan"])], chunks, request=request(PATHS[dialect]))
        assert (result.output, result.counts.changed, result.counts.added) == (stream, 0, 0)


BODIES = {
    "chat": chat_body(
        {"content": "fine"}, {"content": "An evil plan", "tool_calls": []}, {"content": "more evil"}
    ),
    "responses": response(
        "completed",
        [
            message_item(text_part("fine")),
            message_item(text_part("An evil plan"), text_part("x")),
            message_item(text_part("y")),
        ],
    ),
    "anthropic": anthropic_body(
        {"type": "text", "text": "fine"},
        {"type": "text", "text": "An evil plan"},
        {"type": "text", "text": "more"},
    ),
}


@pytest.mark.parametrize("dialect", PATHS)
def test_an_unstreamed_answer_is_cut_at_the_match(dialect: str) -> None:
    """What was found good stays, the text ends before the match with the message, and nothing
    after it is left.
    """
    body = json.dumps(BODIES[dialect]).encode()
    cut = json.loads(
        run_json([Guard(["evil"], message="[stopped]")], body, request=request(PATHS[dialect]))
    )
    assert "plan" not in str(cut)
    assert "more" not in str(cut)
    if dialect == "chat":
        assert [item["message"]["content"] for item in cut["choices"]] == [
            "fine",
            "An [stopped]",
            None,
        ]
        assert [item["finish_reason"] for item in cut["choices"]] == [
            "stop",
            "content_filter",
            "content_filter",
        ]
    elif dialect == "responses":
        assert [[part["text"] for part in item["content"]] for item in cut["output"]] == [
            ["fine"],
            ["An [stopped]"],
        ]
        assert (cut["status"], cut["incomplete_details"]) == (
            "incomplete",
            {"reason": "content_filter"},
        )
    else:
        assert [item["text"] for item in cut["content"]] == ["fine", "An [stopped]"]
        assert cut["stop_reason"] == "refusal"
    assert run_json([Guard(["good"])], body, request=request(PATHS[dialect])) == body


@pytest.mark.parametrize(
    ("pattern", "texts", "stopped"),
    [
        (r"\bass\b", ["cl", "ass", "ical"], False),
        (r"\bass\b", ["an ", "ass", "!"], True),
        (r"\bass\b", ["an ", "ass"], True),
        (r"^evil", ["x" * 2000, "evil"], False),
        (r"(?<!d)evil", ["x" * 2000 + "d", "evil"], False),
        (r"end$", ["an end", " and more"], False),
        (r"end$", ["an e", "nd"], True),
        (r"(?i)EVIL", ["ev", "iL"], True),
    ],
)
def test_what_stands_around_a_match_counts_however_it_is_cut(
    pattern: str, texts: list[str], stopped: bool
) -> None:
    """Where a pattern looks around, a match at the end of a delta waits for what comes next, or for
    the text's end.
    """
    result = run_chain([Guard([pattern])], [streamed("chat", texts)], request=request(CHAT))
    assert result.ended is stopped


@pytest.mark.parametrize(("pattern", "texts", "stopped"), [
    ("^evil", ["x" * 40 + "evil1234", "z"], False), ("(?<!x)evil", ["x" * 40 + "evil1234", "z"], False),
    ("evil", ["x" * 40, "evil1234"], True), ("(?<=xe)vil1", ["x" * 39 + "evil", "1234"], True),
    (r"\bevil", ["x" * 31 + "evil1234", "z"], False),
    ("^.{8}x{24}evil", ["x" * 40 + "evil123", "4"], False),
])  # fmt: skip
def test_the_text_before_the_window_counts_for_what_looks_behind(
    pattern: str, texts: list[str], stopped: bool
) -> None:
    """The kept text begins neither a text nor a word, and is searched from the window on."""
    result = run_chain(
        [Guard([pattern], window=8)], [streamed("chat", texts)], request=request(CHAT)
    )
    assert result.ended is stopped


def calling(*pieces: str, name: str = "read", rest: str | None = None) -> bytes:
    """A tool call whose arguments come in pieces, as may its name, and the end of the answer."""
    deltas = [tool_delta(0, "", "call_0", name), *(tool_delta(0, piece) for piece in pieces)]
    if rest is not None:
        deltas.insert(1, {"tool_calls": [{"index": 0, "function": {"name": rest}}]})
    chunks = [chunk(choice(delta)) for delta in deltas]
    return stream_of([*chunks, chunk(choice({}, "tool_calls")), "[DONE]"], named=False)


@pytest.mark.parametrize("plan", ["an evil plan", "an e\\u0076il plan"])
def test_a_match_in_arguments_stops_the_piece_that_completes_it(plan: str) -> None:
    """However short the pieces are, also where the argument is escaped."""
    result = run_chain(
        [Guard(["an evil plan"])], [calling('{"a":"', *plan, '"}', "late")], request=request(CHAT)
    )
    assert result.ended
    assert result.output.count(b'"arguments"') == 2 + len(plan) - 1
    assert b"late" not in result.output


def test_the_name_of_a_tool_is_searched() -> None:
    """Streamed, in pieces, or not streamed."""
    function = {"name": "evil", "arguments": "{}"}
    called = {"id": "call_0", "type": "function", "function": function}
    body = json.dumps(chat_body({"tool_calls": [called]}, finish_reason="tool_calls")).encode()
    assert b"evil" not in run_json([Guard(["evil"])], body, request=request(CHAT))
    for stream in (calling("{}", name="evil"), calling("{}", name="ev", rest="il")):
        assert run_chain([Guard(["evil"])], [stream], request=request(CHAT)).ended


def test_only_a_window_of_the_text_is_kept() -> None:
    """A match as long as the window is found over any number of deltas."""
    for length, stopped in ((10, True), (60, False)):
        texts = ["a", *("b" * length), "c"]
        result = run_chain(
            [Guard(["ab+c"], window=12)], [streamed("chat", texts)], request=request(CHAT)
        )
        assert result.ended is stopped


def test_kinds_say_which_texts_are_searched() -> None:
    """Thinking is searched unless the option excludes it, and does not get the message."""
    stream = stream_of(
        [
            chunk(choice({"reasoning_content": "evil"})),
            chunk(choice({"content": "fine"})),
            chunk(choice({}, "stop")),
            "[DONE]",
        ],
        named=False,
    )
    assert (
        run_chain([Guard(["evil"], kinds=["text"])], [stream], request=request(CHAT)).output
        == stream
    )
    ended = run_chain([Guard(["evil"], message="[stopped]")], [stream], request=request(CHAT))
    assert ended.ended
    assert b"stopped" not in ended.output


def test_blocks_do_not_flow_into_each_other() -> None:
    """Two choices at once are two texts, and so are two content blocks."""
    stream = stream_of(
        [
            chunk(choice({"content": "ev"}, index=0)),
            chunk(choice({"content": "il"}, index=1)),
            "[DONE]",
        ],
        named=False,
    )
    assert run_chain([Guard(["evil"])], [stream], request=request(CHAT)).output == stream
    blocks = stream_of(
        [message_start(), *text_block(0, "ev"), *text_block(1, "il"), *message_end()], named=True
    )
    assert run_chain([Guard(["evil"])], [blocks], request=request(ANTHROPIC)).output == blocks


def test_the_log_tells_which_pattern_and_not_what_it_found() -> None:
    """So that an operator knows why an answer ended, and the log holds no content."""
    with capture_logs() as logs:
        run_chain(
            [Guard(["x", "evil"])], [streamed("responses", ["evil"])], request=request(RESPONSES)
        )
    (line,) = [log for log in logs if log["event"] == "guard_stopped"]
    assert (line["pattern"], line["kind"]) == (1, "text")
    assert "evil" not in str(line)


def test_other_streams_pass() -> None:
    """A path that is not a dialect's is not looked at."""
    stream = streamed("chat", ["evil"])
    assert run_chain([Guard(["evil"])], [stream], request=request("/events")).output == stream


@pytest.mark.parametrize(("options", "path"), [
    ({"patterns": []}, "patterns"), ({"patterns": ["a", "("]}, "patterns[1]"),
    ({"patterns": ["a*"]}, "patterns[0]"), ({"patterns": ["a"], "window": 0}, "window"),
    ({"patterns": ["a"], "kinds": ["texts"]}, "kinds[0]"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused_at_their_path(
    options: dict[str, Any], path: str
) -> None:
    """At start, by the name of the entry point."""
    with pytest.raises(LoadError) as caught:
        load_interceptor("guard", options)
    assert caught.value.option == path
