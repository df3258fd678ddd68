"""No pattern of a user stops a worker: `redact` and `guard`, loaded as from a configuration, over
every text that they search.
"""

from __future__ import annotations

import json
from time import thread_time
from typing import Any

import pytest
from structlog.testing import capture_logs
from unit.interceptors.dialects.transcripts import (
    CHAT,
    RESPONSES,
    chat_body,
    choice,
    chunk,
    messages_of,
    request,
    stream_of,
    tool_delta,
)

from interceptors import HookError, Interceptor, LoadError, Request
from interceptors.loader import load_interceptor
from interceptors.testing import run_chain, run_json

SECRET = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"
PAGE = ["sk-[A-Za-z0-9]{20,}", r"\b[a-z.]{1,64}@example\.com"]
ENDLESS = ["fine", "(?:a|a)*b"]
HOSTILE = "a" * 3000 + "cb"
MOST_S = 2.0  # ten times what patterns may take: a slow machine must not fail this


def load(use: str, patterns: list[str]) -> Interceptor:
    return load_interceptor(use, {"patterns": patterns})


def chat_chunk(**delta: Any) -> bytes:
    return stream_of([chunk(choice(delta)), "[DONE]"], named=False)


DONE_EVENT = {
    "type": "response.output_text.done",
    "item_id": "i",
    "output_index": 0,
    "content_index": 0,
}
STREAMS = {
    "delta": (CHAT, chat_chunk(content=HOSTILE)),
    "whole text": (RESPONSES, stream_of([{**DONE_EVENT, "text": HOSTILE}], named=True)),
    "arguments": (
        CHAT,
        stream_of(
            [
                chunk(choice(tool_delta(0, json.dumps({"k": HOSTILE}), "c", "f"))),
                chunk(choice({}, "tool_calls")),
                "[DONE]",
            ],
            named=False,
        ),
    ),
    "unknown field": (CHAT, chat_chunk(content="fine", whisper=HOSTILE)),
    "no JSON": (CHAT, f"data: {HOSTILE}\n\n".encode()),
}


@pytest.mark.parametrize("use", ["redact", "guard"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_ends_when_a_pattern_takes_too_long(use: str, name: str) -> None:
    """It fails closed, in time; the log names the pattern by its place, and shows nothing of the
    text.
    """
    path, data = STREAMS[name]
    patterns = ENDLESS if use == "redact" else ["not there", "(?:a|a)*b"]
    began_s = thread_time()
    with capture_logs() as logs:
        result = run_chain([load(use, patterns)], [data], request=request(path))
    assert thread_time() - began_s < MOST_S
    assert isinstance(result.failure, HookError)
    assert "patterns[1]" in str(result.failure)
    assert b"aaa" not in result.output
    (line,) = [line for line in logs if line["event"] == "interceptor_failed"]
    assert "patterns[1]" in str(line["exc_info"])
    assert "aaa" not in str(line)


@pytest.mark.parametrize("use", ["redact", "guard"])
def test_a_body_ends_when_a_pattern_takes_too_long(use: str) -> None:
    """An answer that is not streamed."""
    body = json.dumps(chat_body({"role": "assistant", "content": HOSTILE})).encode()
    with pytest.raises(HookError, match=r"patterns\[1\]"), capture_logs():
        run_json([load(use, ["not there", "(?:a|a)*b"])], body, request=request(CHAT))


@pytest.mark.parametrize("dialect", ["mcp", "generic"])
def test_any_event_ends_when_a_pattern_takes_too_long(dialect: str) -> None:
    """Results of MCP, and events that are no answer of an LLM."""
    message = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": HOSTILE}]}}
    )
    with capture_logs():
        result = run_chain(
            [load("redact", ENDLESS)],
            [f"data: {message}\n\n".encode()],
            request=Request(path="/x", dialect=dialect),
        )
    assert isinstance(result.failure, HookError)
    assert result.output == b""


@pytest.mark.parametrize(
    "patterns", [PAGE, ["sk-[A-Za-z0-9]{20,}", r"(?P<user>[a-z.]+)@example\.com"]]
)
@pytest.mark.parametrize("letters", [32_000, 64_000])
def test_a_long_word_passes(patterns: list[str], letters: int) -> None:
    """What took 6 and 23 seconds."""
    data = stream_of([{**DONE_EVENT, "text": "a" * letters + " mail a.b@example.com"}], named=True)
    began_s = thread_time()
    result = run_chain([load("redact", patterns)], [data], request=request(RESPONSES))
    assert thread_time() - began_s < MOST_S
    (left,) = messages_of(result.output)
    assert left == {**DONE_EVENT, "text": "a" * letters + " mail [redacted]"}


LARGE = {
    "ones": f'["{SECRET}",' + ",".join("1" * 450_000) + "]",
    "text": json.dumps({"text": 'lorem "ipsum" dolor\n' * 40_000 + f" a.b@example.com {SECRET}"}),
    "items": json.dumps(
        [*({"id": number, "name": f"n{number}"} for number in range(20_000)), SECRET]
    ),
    "word": json.dumps({"text": "a" * 900_000 + f" {SECRET}"}),
}


@pytest.mark.parametrize("dialect", ["mcp", "generic"])
@pytest.mark.parametrize("name", LARGE)
def test_large_events_pass_with_the_patterns_of_the_page(name: str, dialect: str) -> None:
    """A megabyte of JSON of any shape; a match at its end, or its beginning, is replaced, and
    nothing else.
    """
    data = f"data: {LARGE[name]}\n\n"
    result = run_chain(
        [load("redact", PAGE)], [data.encode()], request=Request(path="/x", dialect=dialect)
    )
    assert result.failure is None
    assert result.output.decode() == data.replace(SECRET, "[redacted]").replace(
        "a.b@example.com", "[redacted]"
    )


def test_what_cannot_be_searched_in_time_is_refused_at_start() -> None:
    """`guard` takes whatever `re` takes, but a pattern that only `regex` could stop, and cannot
    read, is refused with its path.
    """
    assert load("guard", ["(?x:a b)c"]) is not None
    with pytest.raises(LoadError, match=r"write \(\?x\)") as refused:
        load("guard", ["fine", "(?x:a b+)+c"])
    assert refused.value.option == "patterns[1]"
