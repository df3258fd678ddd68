"""Redact in answers of LLMs: a secret never reaches the client, however it is cut, and other text is
hardly ever late.
"""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.interceptors import on_event
from support.llm_events import event
from unit.interceptors.answers import said, streamed
from unit.interceptors.dialects import transcripts as llm
from unit.interceptors.dialects.transcripts import ANTHROPIC, CHAT, PATHS, RESPONSES, request

from interceptors import Event, Outcome, StreamContext
from interceptors.redact import Redact
from interceptors.testing import run_chain, run_json

SECRET = "sk-Zq3xV81L"
KEY = "sk-[A-Za-z0-9]{8}"


def run(patterns: str | list[str], sent: Any, path: str, replacement: str = "[redacted]") -> Any:
    """The output of `redact`, for a stream as bytes or as messages."""
    redact = Redact([patterns] if isinstance(patterns, str) else patterns, replacement)
    stream = sent if isinstance(sent, bytes) else llm.stream_of(sent, named=path != CHAT)
    result = run_chain([redact], [stream], request=request(path))
    assert result.failure is None
    return result.output


@pytest.mark.parametrize("kind", ["text", "thinking", "tool"])
@pytest.mark.parametrize("dialect", PATHS)
def test_a_secret_cut_anywhere_never_reaches_the_client(dialect: str, kind: str) -> None:
    """Over two deltas, in chat over three, and in all that repeats them."""
    before, after = ('{"k":"', '"}') if kind == "tool" else ("a ", " b")
    text = before + SECRET + after
    for deltas in (2, 3) if (dialect, kind) == ("chat", "text") else (2,):
        for cuts in combinations(range(1, len(text)), deltas - 1):
            pieces = [text[a:b] for a, b in pairwise((0, *cuts, len(text)))]
            output = run(KEY, streamed(dialect, [(kind, pieces)]), PATHS[dialect])
            assert said(output, kind) == f"{before}[redacted]{after}"
            assert SECRET[-5:].encode() not in output


def test_texts_at_once_do_not_mix() -> None:
    """Each choice, and each kind of text in it, is a text by itself."""
    both = (
        llm.choice({"content": "a sk-Zq"}, index=0),
        llm.choice({"content": "b sk-Zq3x"}, index=1),
    )
    messages = [
        *(llm.chunk(*both), llm.delta(content="3xV8"), llm.delta(reasoning_content="c sk-Zq3")),
        llm.delta(content="V81L!", index=1),
        llm.delta(content="1L", reasoning_content="xV81L"),
        *(llm.delta("stop", index=1), llm.delta("stop", content=" d sk-"), "[DONE]"),
    ]
    texts: dict[Any, str] = {}
    for message in llm.messages_of(run(KEY, messages, CHAT, "#"))[:-1]:
        for item in message["choices"]:
            for name, value in item["delta"].items():
                key = name, item["index"]
                texts[key] = texts.get(key, "") + value
    assert [*texts.values()] == ["a # d sk-", "b #!", "c #"]


def test_text_waits_only_while_it_could_become_a_secret() -> None:
    """After each delta all has left but the longest end that a secret could begin with."""
    stream = Redact([KEY, "password: [a-z]+;"]).open_stream(StreamContext(request(CHAT)))
    assert stream is not None
    for text, left in [
        *(("Hello", "Hello"), (" pass", " "), ("age s", "passage "), ("k", ""), ("-", ""), ("12", "")),
        *(("!", "sk-12!"), (" password", " "), (": abc", ""), (" is s", "password: abc is "), ("k", "")),
    ]:  # fmt: skip
        result: Any = stream.on_event(Event(json=llm.delta(content=text)))
        assert said(b"" if result is None else result.raw) == left
    ended: Any = stream.on_event(Event(json=llm.delta("stop")))
    assert said(b"".join(item.raw for item in ended)) == "sk"
    stream.on_event(Event(json=llm.delta(content="sk-")))
    stream.on_end(Outcome.CLIENT_DISCONNECTED)  # nothing that is held leaves


@pytest.mark.parametrize("end", [[], ["[DONE]"]])
def test_held_text_leaves_at_done_and_at_the_streams_end(end: list[str]) -> None:
    """Without a finish reason."""
    output = run(KEY, [llm.delta(content="is sk-1"), *end], CHAT)
    assert said(output) == "is sk-1"
    assert llm.messages_of(output)[len(llm.messages_of(output)) - len(end) :] == end


def test_of_a_stream_that_breaks_off_no_held_text_leaves() -> None:
    def fail(event: Event) -> Event:
        if event.data == "broken":
            raise RuntimeError
        return event

    sent = llm.stream_of([llm.delta(content="is sk-Zq3xV"), "broken"], named=False)
    result = run_chain([Redact([KEY]), on_event(fail)()], [sent], request=request(CHAT))
    assert result.failure is not None
    assert said(result.output) == "is "


@pytest.mark.parametrize("dialect", PATHS)
def test_an_answer_without_secrets_leaves_as_the_very_bytes(dialect: str) -> None:
    """Nothing matched and nothing waited: every event passes as it came."""
    stream = streamed(dialect, [("thinking", ["Hm ", "✨"]), ("text", ["Hello", " there"])])
    result = run_chain([Redact([KEY])], [stream], request=request(PATHS[dialect]))
    assert (result.output, result.counts.changed, result.counts.added) == (stream, 0, 0)


def test_only_events_whose_text_waited_change() -> None:
    """The two that share what waited; the others keep their bytes."""
    stream = streamed("anthropic", [("text", ["One", " s", "o", " two"])])
    result = run_chain([Redact([KEY])], [stream], request=request(ANTHROPIC))
    assert said(result.output) == "One so two"
    assert result.counts.changed == 2
    blocks = stream.split(b"\n\n")
    kept = [item for item in blocks if b'" s"' not in item and b'"o"' not in item]
    assert [item for item in result.output.split(b"\n\n") if item in blocks] == kept


def test_a_match_in_one_delta_only_is_not_redacted() -> None:
    stream = streamed("chat", [("text", ["cl", "ass", "ical", " ass"])])
    assert said(run([r"\bass\b", "^ass"], stream, CHAT, "#")) == "classical #"


def test_all_other_strings_of_an_event_are_redacted_as_in_any() -> None:
    """Names, ids and unknown fields, in events with text and without."""
    messages = [
        llm.chunk(
            llm.choice({"content": "cl"}), **{"user": SECRET, SECRET: r"sk-Zq3x\V81L", "ass": "ass"}
        ),
        llm.chunk(llm.choice({"content": "ass"}), other=[SECRET]),
        *({"type": "unknown", "x": SECRET}, llm.delta("stop", content="ical"), SECRET),
    ]
    output = run([KEY, r"\bass\b"], messages, CHAT, "#")
    assert said(output) == "classical"
    assert SECRET.encode() not in output
    assert (llm.messages_of(output)[0]["user"], llm.messages_of(output)[-1]) == ("#", "#")


def test_an_event_of_an_answer_stays_json() -> None:
    """A pattern that continues to the end of its text ends with the string."""
    message = llm.chunk(
        llm.choice({"content": "my sk-Zq"}), user="sk-Zq", login="ann", password="hunter2"
    )
    patterns = ["sk-.*", r'"login": ?"ann", ?"password": ?"\w+"']
    output = run(patterns, [message, llm.delta("stop")], CHAT, "sk-#")
    assert said(output) == "my sk-#"
    assert llm.messages_of(output)[0]["user"] == "sk-#"
    assert b"hunter2" not in output
    body = json.dumps({**llm.chat_body({"content": "my sk-Zq"}), "user": "sk-Zq", "n": 1})
    output = json.loads(run_json([Redact(["sk-.*"], "#")], body.encode(), request=request(CHAT)))
    assert output == json.loads(body.replace("sk-Zq", "#"))


SEND = {"name": "send", "arguments": f'{{"k":"{SECRET}"}}'}
BODIES: dict[str, Any] = {
    CHAT: llm.chat_body(
        {"content": f"a {SECRET}", "reasoning_content": SECRET},
        {"tool_calls": [{"id": "c", "type": "function", "function": SEND}]},
    ),
    RESPONSES: llm.response(
        "completed",
        [llm.message_item(llm.text_part(f"a {SECRET}")), llm.call_item(f'{{"k":"{SECRET}"}}')],
    ),
    ANTHROPIC: llm.anthropic_body(
        {"type": "thinking", "thinking": SECRET, "signature": "s"},
        {"type": "text", "text": f"a {SECRET}"},
        {"type": "tool_use", "id": "t", "name": "send", "input": {"k": SECRET}},
    ),
}


@pytest.mark.parametrize("path", PATHS.values())
def test_an_answer_that_is_not_streamed_is_redacted(path: str) -> None:
    """Once, even if the replacement matches again. One without secrets keeps its bytes."""
    body = json.dumps(BODIES[path])
    for replacement, left in (("#", "#"), (r"<\g<0>>", f"<{SECRET}>")):
        output = run_json([Redact([KEY], replacement)], body.encode(), request=request(path))
        assert json.loads(output) == json.loads(body.replace(SECRET, left))
    clean = body.replace(SECRET, "fine").encode()
    assert run_json([Redact([KEY])], clean, request=request(path)) == clean


HIDDEN = r"\u0073k-Zq3xV81L"  # the secret, as JSON may spell it


def repeating(shown: str, again: str, last: str, kind: str, key: str) -> list[Any]:
    """A call of OpenAI responses with two different repetitions."""
    name = "function_call_arguments" if key == "arguments" else "custom_tool_call_input"
    where = {"item_id": "c", "output_index": 0}

    def item(value: str) -> dict[str, Any]:
        return {"id": "c", "type": kind, "call_id": "call", "name": "send", key: value}

    messages = [
        event("output_item.added", output_index=0, item=item("")),
        event(f"{name}.delta", **where, delta=shown),
        event(f"{name}.done", **where, **{key: shown}),
        event("output_item.done", output_index=0, item=item(again)),
    ]
    end = event("completed", response=llm.response("completed", [item(last)]))
    return llm.responses_stream(messages, end=end)


@pytest.mark.parametrize(
    ("kind", "key"), [("function_call", "arguments"), ("custom_tool_call", "input")]
)
def test_a_repetition_with_other_arguments_is_redacted_by_itself(kind: str, key: str) -> None:
    """Its secret is escaped, in either repetition, whatever the call said before."""
    clean, hidden, other = '{"k":1}', f'{{"k":"{HIDDEN}"}}', f'{{"k":"{HIDDEN}","n":[2]}}'
    for shown, again, last in (
        *((clean, hidden, other), (hidden, other, hidden)),
        *((hidden, clean, other), (clean, clean, hidden)),
    ):
        output = run(KEY, repeating(shown, again, last, kind, key), RESPONSES)
        *_, done, end = llm.messages_of(output)
        left = [done["item"][key], end["response"]["output"][0][key]]
        expected = [item.replace(HIDDEN, "[redacted]") for item in (again, last)]
        assert [*map(json.loads, left)] == [*map(json.loads, expected)]
        assert b"Zq3xV81L" not in output


def test_a_text_that_is_repeated_as_another_is_redacted_by_itself() -> None:
    """The repetition has a secret that no delta had."""
    messages = llm.responses_stream(llm.summary_events(["fine"]), llm.text_events(["fine"], 1))
    rest = json.loads(json.dumps(messages[3:]).replace("fine", SECRET))
    output = run(KEY, messages[:3] + rest, RESPONSES)
    assert SECRET.encode() not in output
    final = llm.messages_of(output)[len(messages) - 1]["response"]["output"]
    assert [final[0]["summary"][0]["text"], final[1]["content"][0]["text"]] == ["[redacted]"] * 2


REPEATED = {
    "text": ("output_text", "response.output_text.done"),
    "thinking": ("summary_text", "response.reasoning_summary_text.done"),
    "tool": (),
}


def repeated(stream: bytes, kind: str) -> set[str]:
    """The texts of one kind in the repetitions of a Responses stream."""
    found = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("status") != "in_progress" and kind == "tool" and "arguments" in value:
                found.add(value["arguments"])
            elif value.get("text") and value.get("type") in REPEATED[kind]:
                found.add(value["text"])
        for inner in value.values() if isinstance(value, dict) else value:
            if isinstance(inner, (dict, list)):
                look(inner)

    look(llm.messages_of(stream))
    return found


@pytest.mark.parametrize(("pattern", "replacement", "redacted"), [
    ("sk-[A-Za-z0-9]+", r"sk-x\g<0>", "sk-xsk-Zq3xV81L"), ("sk-.*", "sk-x", "sk-x"), (r"\w*Zq\w*", "Zq", "sk-Zq"),
])  # fmt: skip
@pytest.mark.parametrize("kind", REPEATED)
def test_a_replacement_that_matches_its_own_pattern_is_put_in_once(
    kind: str, pattern: str, replacement: str, redacted: str
) -> None:
    """In the deltas and in all that repeats them."""
    before, after = ('{"k":"', '"}') if kind == "tool" else ("a ", "")
    stream = streamed("responses", [(kind, [f"{before}sk-", f"Zq3xV81L{after}"])])
    output = run(pattern, stream, RESPONSES, replacement)
    assert said(output, kind) == before + redacted + after
    assert repeated(output, kind) == {before + redacted + after}
    assert output.count(b"event: response.completed\n") == 1


# Of the arguments of a call: the patterns, what upstream says and what leaves.
OVER = '"user":"ann","password":"[^"]*"'
ARGUMENTS: dict[str, tuple[list[str], str, str]] = {
    "to the end of a string": (["sk-.*"], '{"k":"sk-Zq","n":1}', '{"k":"#","n":1}'),
    "to the end of a string, escaped": (["sk-.*"], r'{"k":"\u0073k-Zq","n":1}', '{"k":"#","n":1}'),
    "a name": (["sk-.*"], '{"sk-Zq":1}', '{"#":1}'),
    "a number": (["4111[0-9]+"], '[41110000,"x"]', '["#","x"]'),
    "arguments that are one number": (["4111[0-9]+"], "41110000", '"#"'),
    "arguments that are one string": (["sk-.*"], '"sk-Zq"', '"#"'),
    "a name and its value": (['"password":"[^"]*"'], '{"password":"hunter2","n":1}', '{"#":"#","n":1}'),
    "from inside one string into the next": (["ter2.*hun"], '["hunter2", true, "hunter3"]', '["#", true, "#"]'),
    "syntax alone": ([r"\},\{"], '[{},{}]', '[{},{}]'),
    "syntax and a number": ([r":[0-9]+\}"], '{"a":1}', '{"a":"#"}'),
    "spaces stay": (["sk-.*"], '{ "k" : "sk-Zq" ,"a":[ ] }', '{ "k" : "#" ,"a":[ ] }'),
    "a line end in a string": (["sk-.*"], '{"k":"a\nsk-Zq","n":1}', '{"k":"a\\n#","n":1}'),
    "no JSON": (["sk-.*"], "send sk-Zq now", "send #"),
    "JSON that is cut off": (["sk-[A-Za-z]+"], r'{"k":"\u0073k-Zq', '{"k":"#'),
    "a string, then over several": (["ann", OVER], '{"user":"ann","password":"hunter2"}', '{"user":"#","password":"hunter2"}'),
    "over several, then a string": ([OVER, "ann"], '{"user":"ann","password":"hunter2"}', '{"#":"#","#":"#"}'),
}  # fmt: skip


@pytest.mark.parametrize(("patterns", "arguments", "expected"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_are_json_stay_json(
    patterns: list[str], arguments: str, expected: str
) -> None:
    """A pattern is about decoded strings; a match over several replaces each."""
    stream = streamed("responses", [("tool", [arguments[:4], arguments[4:]])])
    output = run(patterns, stream, RESPONSES, "#")
    assert said(output, "tool") == expected
    assert repeated(output, "tool") == {expected}


def test_what_was_too_long_to_wait_is_redacted_where_it_is_repeated() -> None:
    """It has left in deltas, for the window was full."""
    secret = "BEGIN" + "x" * 30 + "END"
    stream = streamed("responses", [("text", ["a ", *secret, " b"])])
    result = run_chain([Redact(["BEGINx+END"], window=10)], [stream], request=request(RESPONSES))
    assert said(result.output) == f"a {secret} b"
    assert repeated(result.output, "text") == {"a [redacted] b"}


def test_many_replacements_that_match_again_cost_no_square() -> None:
    """What would be looked at again for each of them is bounded."""
    arguments = json.dumps(["sk-Zq"] * 1_000)
    redacted = Redact(["sk-.*"], "sk-x").json.redact_json(arguments)
    assert set(json.loads(redacted)) == {"sk-x"}


# Of letters that stand nowhere else in these events, and of what JSON itself is made of.
OVER_STRINGS = ["Я.*", "Ж[^,]*", '"Ж":.', r"\W+Я", "(?s)Ж.*Я", r'Я"\}', "Ж+"]
OVER_JSON = [*OVER_STRINGS, '".*', r'[{\[]."', "[0-9]..", r"\W+", "[a-zЯ]+.?"]
plain = (
    st.none() | st.booleans() | st.integers(-99, 999) | st.floats(0, 9) | st.text('ЖЯaд "\\{}[]:,\n1', max_size=5)
)  # fmt: skip
json_values = st.recursive(
    plain,
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


def shape(text: str) -> str:
    """Of JSON how its lists and objects lie in each other, and its literals."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(inner) for inner in value]
        return value if value is None or isinstance(value, bool) else 0

    # Names may become the same.
    pairs = json.loads(text, object_pairs_hook=lambda pairs: [inner for _, inner in pairs])
    return str(bare(pairs))


@settings(max_examples=200, deadline=None)
@given(
    dialect=st.sampled_from(list(PATHS)),
    patterns=st.lists(st.sampled_from(OVER_JSON), min_size=1, max_size=3, unique=True),
    arguments=arguments,
    cut=st.integers(0, 30),
    replacement=st.sampled_from(["#", "", r"<\g<0>>", "ЖЯ"]),
)
def test_json_stays_json_of_its_shape_whatever_the_patterns(
    dialect: str, patterns: list[str], arguments: str, cut: int, replacement: str
) -> None:
    """Lists and objects as long as they were, literals where they were: in every dialect, and the
    same in all repetitions.
    """
    redacted = Redact(patterns, replacement).json.redact_json(arguments)
    assert shape(redacted) == shape(arguments)
    if replacement not in ("#", "") or not {*patterns} <= {*OVER_STRINGS}:
        return  # a pattern that matches a replacement may take the rest of the event along
    stream = streamed(dialect, [("tool", [arguments[:cut], arguments[cut:]])])
    output = run(patterns, stream, PATHS[dialect], replacement)
    left = said(output, "tool")
    assert shape(left) == shape(arguments)
    assert dialect != "responses" or repeated(output, "tool") == {left}


# Of letters that stand nowhere else in these answers.
PATTERNS = [
    "ЖЯ-[А-Яа-я]{3,}", "ЖЯ-[а-я]{2}", r"\bЖЯ\b", "(?i)жя", "Ж.*?Я", "(?:ЖЯ)+", "(?<=Ж)Я+", "Ж(?!Я)", "Ж$", "^Ж",
    r"(Ж+)-\1", "ЖЖ|ЖЖЯ",
]  # fmt: skip
WORDS = st.lists(st.sampled_from([*'ЖЖЯЯжяд- \n"\\', "ЖЯ-", "ЖЯ-абв"]), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(
    dialect=st.sampled_from(list(PATHS)),
    patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
    pieces=st.lists(WORDS.map("".join), min_size=1, max_size=6),
    replacement=st.sampled_from(["#", "", r"<\g<0>>", "ЖЯ"]),
)
def test_what_leaves_is_what_re_makes_of_the_whole_text(
    dialect: str, patterns: list[str], pieces: list[str], replacement: str
) -> None:
    """Pattern by pattern, for any text and any cuts, and so do the repetitions."""
    expected = "".join(pieces)
    for pattern in patterns:
        expected = re.sub(pattern, replacement, expected)
    output = run(patterns, streamed(dialect, [("text", pieces)]), PATHS[dialect], replacement)
    assert said(output) == expected
    if dialect == "responses" and expected:
        (item,) = llm.messages_of(output)[-1]["response"]["output"]
        assert item["content"][0]["text"] == expected


@pytest.mark.parametrize(("path", "dialect"), [
    ("/events", "generic"), ("/messages", "mcp"), ("/v1/chat/completions", "mcp"),
])  # fmt: skip
def test_other_streams_are_redacted_event_by_event(path: str, dialect: str) -> None:
    """Also with `dialect: mcp`: a chat there is no answer."""
    stream = llm.stream_of(
        [llm.delta(content=SECRET), llm.delta(content=SECRET[:5]), "[DONE]"], named=False
    )
    output = run_chain([Redact([KEY], "#")], [stream], request=request(path, dialect)).output
    left = [item["choices"][0]["delta"]["content"] for item in llm.messages_of(output)[:2]]
    assert left == ["#", SECRET[:5]]


def test_a_secret_in_the_input_of_a_custom_tool_never_passes() -> None:
    """OpenAI chat's custom tools take text, not JSON, and stream it as `custom.input`."""

    def piece(text: str, **item: Any) -> dict[str, Any]:
        custom = {"input": text, **({"name": "shell"} if item else {})}
        return llm.delta(tool_calls=[{"index": 0, **item, "custom": custom}])

    for cut in range(1, len(SECRET)):
        messages = [piece("", id="c", type="custom"), piece(SECRET[:cut]), piece(SECRET[cut:])]
        *left, _ = llm.messages_of(run(KEY, [*messages, llm.delta("tool_calls"), "[DONE]"], CHAT))
        items = [call for m in left for call in m["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join(call["custom"].get("input", "") for call in items) == "[redacted]"
        assert items[0]["custom"]["name"] == "shell"


def test_a_match_in_a_tools_name_that_comes_in_pieces_ends_the_stream() -> None:
    """The pieces can no longer be changed without changing which tool is called."""
    deltas = [
        llm.tool_delta(0, "", "call_0", SECRET[:9]),
        {"tool_calls": [{"index": 0, "function": {"name": SECRET[9:]}}]},
        llm.tool_delta(0, "{}"),
    ]
    messages = [*(llm.delta(**fields) for fields in deltas), llm.delta("tool_calls"), "[DONE]"]
    stream = llm.stream_of(messages, named=False)
    result = run_chain([Redact([KEY])], [stream], request=request(CHAT))
    assert result.failure is not None
    assert SECRET[9:].encode() not in result.output
