"""`logprobs` leave only beside the text that they spell: otherwise they would show what `redact`
has taken out or holds.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.interceptors.dialects import transcripts as llm
from unit.interceptors.dialects.transcripts import CHAT, RESPONSES, request

from interceptors.redact import Redact
from interceptors.testing import run_chain, run_json

SECRET = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"
REDACT = Redact(["sk-[A-Za-z0-9]{20,}"])


def token(text: Any, given: Any) -> dict[str, Any]:
    return {"token": text, "logprob": 0, "bytes": given, "top_logprobs": []}


def tokens(*texts: str | bytes) -> list[dict[str, Any]]:
    return [
        token(text, [*text.encode()]) if isinstance(text, str) else token(str(text)[2:-1], [*text])
        for text in texts
    ]


HALVES = SECRET[:7], SECRET[7:]
OF_SECRET = tokens(*HALVES)
CALL = {
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": json.dumps({"k": SECRET})},
}


def logprobs(content: Any = None, refusal: Any = None) -> dict[str, Any]:
    return {"content": content, "refusal": refusal}


def answer(*deltas: tuple[dict[str, Any], Any]) -> bytes:
    """A chat with these deltas, each with its `logprobs`."""
    chunks = [llm.chunk({**llm.choice(fields), "logprobs": given}) for fields, given in deltas]
    return llm.stream_of([*chunks, llm.delta("stop"), "[DONE]"], named=False)


HIDDEN: dict[str, list[tuple[dict[str, Any], Any]]] = {
    "of arguments": [({"tool_calls": [{"index": 0, **CALL}]}, logprobs(OF_SECRET))],
    "of a text that comes later": [({"content": ""}, logprobs(OF_SECRET[:1])), ({"content": ""}, logprobs(OF_SECRET[1:])),
        ({"content": SECRET}, None)],
    "of nothing": [({}, logprobs(OF_SECRET))],
    "of a text that is held": [({"content": half}, logprobs(tokens(half))) for half in HALVES],
    "of another field": [({"content": "fine"}, logprobs(None, OF_SECRET))],
    "of another field, too": [({"content": "fine"}, logprobs(tokens("fine"), OF_SECRET))],
    "in the bytes": [({"content": "fine"}, logprobs([token("fine", OF_SECRET[0]["bytes"])]))],
    "in the text": [({"content": "fine"}, logprobs([token(SECRET[:7], [*b"fine"])]))],
    "beside a refusal": [({"refusal": "no"}, logprobs(OF_SECRET))],
    "of legacy completions": [({"content": "fine"}, {"tokens": [*HALVES]})],
    "as a list": [({"content": "fine"}, OF_SECRET)],
}  # fmt: skip


@pytest.mark.parametrize("deltas", HIDDEN.values(), ids=HIDDEN)
def test_no_token_of_a_secret_leaves(deltas: list[tuple[dict[str, Any], Any]]) -> None:
    result = run_chain([REDACT], [answer(*deltas)], request=request(CHAT))
    assert result.failure is None
    assert b"sk-" not in result.output
    assert not any(str(each["bytes"])[1:-1] in result.output.decode() for each in OF_SECRET)
    *left, _ = llm.messages_of(result.output)
    assert not any(message["choices"][0].get("logprobs") for message in left)


def test_no_token_of_a_secret_leaves_in_what_only_a_lax_reader_takes() -> None:
    data = answer(({"content": "fine"}, logprobs(None, OF_SECRET)))
    data = data.replace(b'"id": "', b'"id": "\t', 1)
    assert HALVES[0].encode() not in run_chain([REDACT], [data], request=request(CHAT)).output


@pytest.mark.parametrize(("fields", "given"), [
    ({"content": "Well, fine."}, logprobs(tokens("Well", ", fine", "."))),
    ({"content": "Well", "refusal": None}, logprobs([token("Well", None)])),
    ({"refusal": "No."}, logprobs(None, tokens("No", "."))),
    ({"content": "é😀."}, logprobs(tokens("é", b"\xf0\x9f", b"\x98\x80", "."))),  # a character cut over tokens
    ({"content": ""}, logprobs([], None)), ({"content": "a"}, None),
    # Nothing in these could be a part of a text.
    *(({"role": "assistant", "reasoning_content": "Hm"}, empty) for empty in (
        None, [], [None], {"content": None}, {"content": [None], "refusal": []},
    )),
])  # fmt: skip
def test_tokens_of_an_unchanged_text_stay(fields: dict[str, Any], given: Any) -> None:
    """The event keeps its bytes."""
    data = answer((fields, given))
    assert run_chain([REDACT], [data], request=request(CHAT)).output == data


@pytest.mark.parametrize("item", [{}, {"function": None}, {"function": {}}, {"function": [None]}])
def test_a_call_keeps_its_form_in_an_event_that_is_written_anew(item: dict[str, Any]) -> None:
    """Without its tokens, or with a text redacted."""
    tool_calls = [{"index": 0, "id": "c", **item}]
    for text, given, left in (("", logprobs(OF_SECRET), ""), (f"a {SECRET}", None, "a [redacted]")):
        choice = llm.choice({"content": text, "tool_calls": tool_calls}, "tool_calls")
        data = llm.stream_of([llm.chunk({**choice, "logprobs": given}), "[DONE]"], named=False)
        output = run_chain([REDACT], [data], request=request(CHAT)).output
        sent = llm.messages_of(output)[0]["choices"][0]
        assert sent == {
            **choice,
            "delta": {"content": left, "tool_calls": tool_calls},
            "logprobs": None,
        }


def test_each_choice_is_judged_by_itself() -> None:
    """One choice is changed and loses its tokens; the other keeps them."""
    body = llm.chat_body({"content": "fine"}, {"content": SECRET}, {"tool_calls": [CALL]})
    for each, given in zip(body["choices"], (tokens("fine"), OF_SECRET, OF_SECRET), strict=True):
        each["logprobs"] = logprobs(given)
    left = json.loads(run_json([REDACT], json.dumps(body).encode(), request=request(CHAT)))
    assert [bool(each["logprobs"]) for each in left["choices"]] == [True, False, False]


@pytest.mark.parametrize("text", ["Well, fine.", f"it is {SECRET}"])
def test_responses_have_tokens_in_events_and_parts(text: str) -> None:
    """Deltas, what is done, and the whole response, streamed and not."""

    def filled(value: dict[str, Any]) -> dict[str, Any]:
        if text in (value.get("delta"), value.get("text")):
            value["logprobs"] = tokens(text)
        return value

    clean = SECRET not in text
    messages = json.loads(
        json.dumps(llm.responses_stream(llm.text_events([text]))), object_hook=filled
    )
    data = llm.stream_of(messages, named=True)
    output = run_chain([REDACT], [data], request=request(RESPONSES)).output
    assert (output == data) is clean
    found = all_logprobs(llm.messages_of(output))
    assert all(each in (tokens(text), []) for each in found)
    assert any(found) is clean
    body = json.dumps(messages[-1]["response"]).encode()
    left = all_logprobs(json.loads(run_json([REDACT], body, request=request(RESPONSES))))
    assert left == [tokens(text) if clean else []]


def test_tokens_beside_an_unknown_text_are_compared_with_what_leaves() -> None:
    """A text that no reader knows is redacted with its event, and its tokens go with it."""
    where = {"item_id": "i", "output_index": 0}
    event = {"type": "response.whisper.done", **where, "text": SECRET, "logprobs": OF_SECRET}
    data = llm.stream_of([event], named=True).replace(b'"logprobs"', b'"logpr\\u006fbs"')
    result = run_chain([REDACT], [data], request=request(RESPONSES))
    assert all_logprobs(llm.messages_of(result.output)) == [[]]


def all_logprobs(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [found for inner in value for found in all_logprobs(inner)]
    if not isinstance(value, dict):
        return []
    own = [value["logprobs"]] if "logprobs" in value else []
    return [*own, *all_logprobs([inner for name, inner in value.items() if name != "logprobs"])]
