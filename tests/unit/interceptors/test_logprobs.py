"""`logprobs` leave only beside the text that they spell: otherwise they would show what `redact`
has taken out or holds.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from unit.interceptors.dialects.transcripts import (
    CHAT,
    RESPONSES,
    chat_body,
    choice,
    chunk,
    messages_of,
    request,
    responses_stream,
    stream_of,
    text_events,
)

from interceptors.redact import Redact
from interceptors.testing import run_chain, run_json

SECRET = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"
PATTERNS = ["sk-[A-Za-z0-9]{20,}"]


def tokens(*texts: str | bytes) -> list[dict[str, Any]]:
    return [
        {
            "token": text if isinstance(text, str) else str(text)[2:-1],
            "logprob": 0,
            "bytes": list(text.encode() if isinstance(text, str) else text),
            "top_logprobs": [],
        }
        for text in texts
    ]


OF_SECRET = tokens(SECRET[:7], SECRET[7:])


def logprobs(content: Any = None, refusal: Any = None) -> dict[str, Any]:
    return {"content": content, "refusal": refusal}


def chat(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks that leave for these."""
    data = stream_of([*chunks, "[DONE]"], named=False)
    result = run_chain([Redact(PATTERNS)], [data], request=request(CHAT))
    assert result.failure is None
    assert b"sk-" not in result.output
    assert not any(str(list(token["bytes"]))[1:-1] in result.output.decode() for token in OF_SECRET)
    return [message for message in messages_of(result.output) if isinstance(message, dict)]


CALL = {
    "id": "c",
    "type": "function",
    "function": {"name": "f", "arguments": json.dumps({"k": SECRET})},
}


@pytest.mark.parametrize(
    "chunks",
    [
        [({"tool_calls": [{"index": 0, **CALL}]}, logprobs(OF_SECRET))],
        [
            ({"content": ""}, logprobs(OF_SECRET[:1])),
            ({"content": ""}, logprobs(OF_SECRET[1:])),
            ({"content": SECRET}, None),
        ],
        [({}, logprobs(OF_SECRET))],
        [
            ({"content": SECRET[:9]}, logprobs(tokens(SECRET[:9]))),
            ({"content": SECRET[9:]}, logprobs(tokens(SECRET[9:]))),
        ],
        [({"content": "fine"}, logprobs(None, OF_SECRET))],
        [({"content": "fine"}, logprobs(tokens("fine"), OF_SECRET))],
        [
            (
                {"content": "fine"},
                logprobs([{"token": "fine", "logprob": 0, "bytes": OF_SECRET[0]["bytes"]}]),
            )
        ],
        [
            (
                {"content": "fine"},
                logprobs([{"token": SECRET[:7], "logprob": 0, "bytes": list(b"fine")}]),
            )
        ],
        [({"refusal": "no"}, logprobs(OF_SECRET))],
        [({"content": "fine"}, {"tokens": [SECRET[:7], SECRET[7:]]})],
        [({"content": "fine"}, OF_SECRET)],
    ],
)
def test_no_token_of_a_secret_leaves(chunks: list[tuple[dict[str, Any], Any]]) -> None:
    """Of arguments, of a text that is held, that was changed, that comes later, of another field,
    or of nothing.
    """
    left = chat(
        *(chunk({**choice(delta), "logprobs": given}) for delta, given in chunks),
        chunk(choice({}, "stop")),
    )
    assert all(not message["choices"][0].get("logprobs") for message in left)


@pytest.mark.parametrize(
    ("delta", "given"),
    [
        ({"content": "Well, fine."}, logprobs(tokens("Well", ", fine", "."))),
        (
            {"content": "Well", "refusal": None},
            logprobs([{"token": "Well", "logprob": 0, "bytes": None}]),
        ),
        ({"refusal": "No."}, logprobs(None, tokens("No", "."))),
        ({"content": "é😀."}, logprobs(tokens("é", b"\xf0\x9f", b"\x98\x80", "."))),
        ({"content": ""}, logprobs([], None)),
        ({"content": "a"}, None),
    ],
)
def test_tokens_of_a_text_that_leaves_unchanged_leave_unchanged(
    delta: dict[str, Any], given: Any
) -> None:
    """The event keeps its bytes, also where a character is cut over tokens."""
    data = stream_of(
        [chunk({**choice(delta), "logprobs": given}), chunk(choice({}, "stop")), "[DONE]"],
        named=False,
    )
    assert run_chain([Redact(PATTERNS)], [data], request=request(CHAT)).output == data


def test_each_choice_is_judged_by_itself() -> None:
    """One choice is changed and loses its tokens; the other keeps them."""
    body = chat_body({"role": "assistant", "content": "fine"})
    messages = [{"content": "fine"}, {"content": SECRET}, {"content": None, "tool_calls": [CALL]}]
    body["choices"] = [
        {
            "index": index,
            "message": {"role": "assistant", **message},
            "logprobs": logprobs(OF_SECRET if index else tokens("fine")),
            "finish_reason": "stop",
        }
        for index, message in enumerate(messages)
    ]
    left = json.loads(
        run_json([Redact(PATTERNS)], json.dumps(body).encode(), request=request(CHAT))
    )
    assert [bool(each["logprobs"]) for each in left["choices"]] == [True, False, False]


@pytest.mark.parametrize("text", ["Well, fine.", f"it is {SECRET}"])
def test_responses_have_tokens_in_events_and_parts(text: str) -> None:
    """Deltas, what is done, and the whole response, streamed and not."""
    events = responses_stream(text_events([text]))
    with_tokens = json.loads(json.dumps(events), object_hook=lambda value: _filled(value, text))
    data = stream_of(with_tokens, named=True)
    result = run_chain([Redact(PATTERNS)], [data], request=request(RESPONSES))
    if SECRET not in text:
        assert result.output == data
    assert all(found in (tokens(text), []) for found in _all_logprobs(messages_of(result.output)))
    assert any(_all_logprobs(messages_of(result.output))) == (SECRET not in text)
    final = next(
        message["response"] for message in with_tokens if message["type"] == "response.completed"
    )
    body = json.loads(
        run_json([Redact(PATTERNS)], json.dumps(final).encode(), request=request(RESPONSES))
    )
    assert _all_logprobs(body) == ([tokens(text)] if SECRET not in text else [[]])


@pytest.mark.parametrize(
    "empty", [None, [], [None], {"content": None}, {"content": [None], "refusal": []}]
)
def test_logprobs_without_a_token_pass_byte_for_byte(empty: Any) -> None:
    """There is nothing in them that could be a part of a text."""
    chunk = {
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "reasoning_content": "Hm"},
                "logprobs": empty,
            }
        ]
    }
    data = b"data: " + json.dumps(chunk, indent=None).encode() + b"\n\n"
    assert run_chain([Redact(PATTERNS)], [data], request=request(CHAT)).output == data


def test_tokens_beside_an_unknown_text_are_compared_with_what_leaves() -> None:
    """A text that no reader knows is redacted with its event, and its tokens go with it."""
    event = {
        "type": "response.whisper.done",
        "item_id": "i",
        "output_index": 0,
        "text": SECRET,
        "logprobs": OF_SECRET,
    }
    data = stream_of([event], named=True)
    result = run_chain(
        [Redact(PATTERNS)],
        [data.replace(b'"logprobs"', b'"logpr\\u006fbs"')],
        request=request(RESPONSES),
    )
    assert _all_logprobs(messages_of(result.output)) == [[]]


def _filled(value: dict[str, Any], text: str) -> dict[str, Any]:
    if text in (value.get("delta"), value.get("text")):
        value["logprobs"] = tokens(text)
    return value


def _all_logprobs(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [found for inner in value for found in _all_logprobs(inner)]
    if not isinstance(value, dict):
        return []
    return [
        *([value["logprobs"]] if "logprobs" in value else []),
        *(_all_logprobs([v for k, v in value.items() if k != "logprobs"])),
    ]
