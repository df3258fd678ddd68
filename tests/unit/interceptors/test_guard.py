"""Guard: an answer ends, whole for the client, where a pattern is found in its text, wherever the
match is cut.
"""

from __future__ import annotations

import json
from itertools import combinations, pairwise

import pytest
from structlog.testing import capture_logs
from unit.interceptors.answers import said, streamed
from unit.interceptors.dialects import transcripts as llm
from unit.interceptors.dialects.transcripts import ANTHROPIC, CHAT, PATHS, RESPONSES, request

from interceptors.guard import Guard
from interceptors.testing import ChainResult, run_chain, run_json


def guarded(guard: Guard | str, texts: list[str], dialect: str = "chat") -> ChainResult:
    """What becomes of an answer with these deltas."""
    guard = Guard([guard]) if isinstance(guard, str) else guard
    stream = streamed(dialect, [("text", texts)])
    return run_chain([guard], [stream], request=request(PATHS[dialect]))


def reason_of(dialect: str, stream: bytes) -> str | None:
    """Why the answer ended. Its last message must be the dialect's."""
    *messages, last = llm.messages_of(stream)
    if dialect == "chat":
        assert last == "[DONE]"
        return messages[-1]["choices"][0]["finish_reason"]
    if dialect == "anthropic":
        assert last == {"type": "message_stop"}
        return messages[-1]["delta"]["stop_reason"]
    assert last["type"] == "response.incomplete"
    parts = [part["text"] for item in last["response"]["output"] for part in item["content"]]
    assert "".join(parts) == said(stream)
    return last["response"]["incomplete_details"]["reason"]


FILTERED = {"chat": "content_filter", "responses": "content_filter", "anthropic": "refusal"}


@pytest.mark.parametrize("dialect", PATHS)
def test_a_match_is_found_wherever_it_is_cut(dialect: str) -> None:
    """Nothing after the match is sent, nor the delta that completes it."""
    text = "An evil plan, and more"
    for deltas in (0, 1, 2) if dialect == "chat" else (0, 1):
        for cuts in combinations(range(1, len(text)), deltas):
            pieces = [text[a:b] for a, b in pairwise((0, *cuts, len(text)))]
            result = guarded("evil plan", pieces, dialect)
            assert result.ended
            assert reason_of(dialect, result.output) == FILTERED[dialect]
            left = said(result.output)
            assert left.startswith("An ")
            assert left in "An evil plan"


@pytest.mark.parametrize(("dialect", "reason"), [
    ("chat", "stop"), ("responses", "max_output_tokens"), ("anthropic", "end_turn"),
])  # fmt: skip
def test_the_text_before_a_match_and_the_message_leave(dialect: str, reason: str) -> None:
    """The delta with the match is cut before the first match of all patterns."""
    guard = Guard(["plan", "evil"], reason=reason, message=" [stopped]")
    output = guarded(guard, ["An ", "x evil plan"], dialect).output
    assert said(output) == "An x  [stopped]"
    assert reason_of(dialect, output) == reason


@pytest.mark.parametrize("dialect", PATHS)
def test_an_answer_without_a_match_leaves_unchanged(dialect: str) -> None:
    """And is not delayed: each event leaves when it has come."""
    stream = streamed(dialect, [("text", ["An ", "ev", "il-minded plan"])])
    for chunks in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        result = run_chain([Guard(["evil plan"])], chunks, request=request(PATHS[dialect]))
        assert (result.output, result.counts.changed, result.counts.added) == (stream, 0, 0)


BODIES = {
    CHAT: llm.chat_body(
        {"content": "fine"}, {"content": "An evil plan", "tool_calls": []}, {"content": "more evil"}
    ),
    RESPONSES: llm.response(
        "completed",
        [
            llm.message_item(llm.text_part("fine")),
            llm.message_item(llm.text_part("An evil plan"), llm.text_part("more")),
            llm.message_item(llm.text_part("more")),
        ],
    ),
    ANTHROPIC: llm.anthropic_body(
        *({"type": "text", "text": text} for text in ("fine", "An evil plan", "more"))
    ),
}


@pytest.mark.parametrize("path", BODIES)
def test_an_unstreamed_answer_is_cut_at_the_match(path: str) -> None:
    """What was found good stays, the text ends before the match with the message, and nothing
    after it is left.
    """
    body = json.dumps(BODIES[path]).encode()
    guard = Guard(["evil"], message="[stopped]")
    cut = json.loads(run_json([guard], body, request=request(path)))
    if path == CHAT:
        texts = [item["message"]["content"] for item in cut["choices"]]
        reasons = [item["finish_reason"] for item in cut["choices"]]
        assert (texts.pop(), reasons) == (None, ["stop", "content_filter", "content_filter"])
    elif path == RESPONSES:
        texts = [part["text"] for item in cut["output"] for part in item["content"]]
        assert cut["status"] == "incomplete"
        assert cut["incomplete_details"] == {"reason": "content_filter"}
    else:
        texts = [item["text"] for item in cut["content"]]
        assert cut["stop_reason"] == "refusal"
    assert texts == ["fine", "An [stopped]"]
    assert "plan" not in str(cut)
    assert "more" not in str(cut)
    assert run_json([Guard(["good"])], body, request=request(path)) == body


LONG = "x" * 2000
AROUND: list[tuple[str, int, list[str], bool]] = [  # pattern, window, texts, whether it stops
    (r"\bass\b", 1000, ["cl", "ass", "ical"], False), (r"\bass\b", 1000, ["an ", "ass", "!"], True),
    (r"\bass\b", 1000, ["an ", "ass"], True), (r"^evil", 1000, [LONG, "evil"], False),
    (r"(?<!d)evil", 1000, [LONG + "d", "evil"], False), (r"end$", 1000, ["an end", " and more"], False),
    (r"end$", 1000, ["an e", "nd"], True), (r"(?i)EVIL", 1000, ["ev", "iL"], True),
    # The text before the window begins neither a text nor a word; it is searched from the window on.
    ("^evil", 8, ["x" * 40 + "evil1234", "z"], False), ("(?<!x)evil", 8, ["x" * 40 + "evil1234", "z"], False),
    ("evil", 8, ["x" * 40, "evil1234"], True), ("(?<=xe)vil1", 8, ["x" * 39 + "evil", "1234"], True),
    (r"\bevil", 8, ["x" * 31 + "evil1234", "z"], False), ("^.{8}x{24}evil", 8, ["x" * 40 + "evil123", "4"], False),
    # A match as long as the window is found over any number of deltas.
    ("ab+c", 12, ["a", *"b" * 10, "c"], True), ("ab+c", 12, ["a", *"b" * 60, "c"], False),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "window", "texts", "stopped"), AROUND)
def test_what_stands_around_a_match_counts_however_it_is_cut(
    pattern: str, window: int, texts: list[str], stopped: bool
) -> None:
    """Where a pattern looks around, a match at the end of a delta waits for what comes next, or for
    the text's end.
    """
    assert guarded(Guard([pattern], window=window), texts).ended is stopped


def calling(*pieces: str, name: str = "read", rest: str | None = None) -> bytes:
    """A tool call whose arguments come in pieces, as may its name, and the end of the answer."""
    deltas = [
        llm.tool_delta(0, "", "call_0", name),
        *(llm.tool_delta(0, piece) for piece in pieces),
    ]
    if rest is not None:
        deltas.insert(1, {"tool_calls": [{"index": 0, "function": {"name": rest}}]})
    chunks = [*(llm.delta(**fields) for fields in deltas), llm.delta("tool_calls"), "[DONE]"]
    return llm.stream_of(chunks, named=False)


@pytest.mark.parametrize("plan", ["an evil plan", "an e\\u0076il plan"])
def test_a_match_in_arguments_stops_the_piece_that_completes_it(plan: str) -> None:
    """However short the pieces are, also where the argument is escaped."""
    stream = calling('{"a":"', *plan, '"}', "late")
    result = run_chain([Guard(["an evil plan"])], [stream], request=request(CHAT))
    assert result.ended
    assert result.output.count(b'"arguments"') == 2 + len(plan) - 1
    assert b"late" not in result.output


def test_the_name_of_a_tool_is_searched() -> None:
    """Streamed, in pieces, or not streamed."""
    function = {"name": "evil", "arguments": "{}"}
    called = {"id": "call_0", "type": "function", "function": function}
    body = json.dumps(llm.chat_body({"tool_calls": [called]}, finish_reason="tool_calls")).encode()
    assert b"evil" not in run_json([Guard(["evil"])], body, request=request(CHAT))
    for stream in (calling("{}", name="evil"), calling("{}", name="ev", rest="il")):
        assert run_chain([Guard(["evil"])], [stream], request=request(CHAT)).ended


def test_kinds_say_which_texts_are_searched() -> None:
    """Thinking is searched unless the option excludes it, and does not get the message."""
    stream = streamed("chat", [("thinking", ["evil"]), ("text", ["fine"])])
    passing = run_chain([Guard(["evil"], kinds=["text"])], [stream], request=request(CHAT))
    assert passing.output == stream
    ended = run_chain([Guard(["evil"], message="[stopped]")], [stream], request=request(CHAT))
    assert ended.ended
    assert b"stopped" not in ended.output


@pytest.mark.parametrize(("path", "stream"), [
    (CHAT, llm.stream_of([llm.delta(content="ev"), llm.delta(content="il", index=1), "[DONE]"], named=False)),
    (ANTHROPIC, streamed("anthropic", [("text", ["ev"]), ("text", ["il"])])),
    ("/events", streamed("chat", [("text", ["evil"])])),  # no answer of a dialect
])  # fmt: skip
def test_only_one_text_of_an_answer_is_searched_as_one(path: str, stream: bytes) -> None:
    """Two choices at once are two texts, and so are two content blocks."""
    assert run_chain([Guard(["evil"])], [stream], request=request(path)).output == stream


def test_the_log_tells_which_pattern_and_not_what_it_found() -> None:
    """So that an operator knows why an answer ended, and the log holds no content."""
    with capture_logs() as logs:
        guarded(Guard(["x", "evil"]), ["evil"])
    (line,) = [log for log in logs if log["event"] == "guard_stopped"]
    assert (line["pattern"], line["kind"]) == (1, "text")
    assert "evil" not in str(line)
