"""What is read of calls does not depend on how their bytes arrive, nor on which reader takes them."""

from __future__ import annotations

import json

import msgspec
import pytest
from providers.transcripts import Case, load_cases, pieces_of
from trio.testing import MockClock

from interceptors.observing import Observer, owner_of
from interceptors.operation import Operation, operation_name
from interceptors.operation_bodies import read_answer

CASES = [case for case in load_cases() if case.is_sse or case.is_json]
PLAIN = json.dumps(
    {
        "id": "c1",
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "a"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 0, "input_tokens": 4},
    }
)
CHAT = "/v1/chat/completions"


def dialect_of(case: Case) -> str:
    return "anthropic" if case.api == "messages" else "openai"


def observed(
    dialect: str, path: str, pieces: list[bytes], end: bool = True
) -> tuple[dict[str, object], int, int]:
    """The operation, the number of events, and the number of parts that could not be read."""
    operation, owner = Operation(dialect, name=operation_name(path)), owner_of(dialect)
    counts: list[int] = []
    observer = Observer(
        operation,
        owner,
        path,
        max_bytes=1 << 20,
        note_events=lambda count, now: counts.append(count),
    )
    for piece in pieces:
        observer.feed(piece, 0, len(piece), 0.0)
    observer.end(complete=end)
    return msgspec.structs.asdict(operation), sum(counts), owner.unread_parts


@pytest.mark.parametrize("largest", [1, 7, 300])
async def test_an_answer_is_read_alike_however_it_is_cut(
    largest: int, autojump_clock: MockClock
) -> None:
    for case in CASES:
        dialect = dialect_of(case)
        whole = observed(dialect, case.path, [case.data])
        assert whole == observed(dialect, case.path, pieces_of(case.data, largest)), case.id
        assert bool(whole[1]) == case.is_sse, case.id


def read_at_once(dialect: str, path: str, body: bytes) -> tuple[dict[str, object], bool]:
    operation = Operation(dialect, name=operation_name(path))
    is_read = read_answer(operation, owner_of(dialect), path, body)
    return msgspec.structs.asdict(operation), is_read


async def test_usual_answers_are_read_alike_by_both_readers(autojump_clock: MockClock) -> None:
    taken = set()
    for case in CASES:
        found, is_read = read_at_once(dialect_of(case), case.path, case.data)
        operation, _, unread = observed(dialect_of(case), case.path, [case.data])
        if is_read:
            assert found == operation, case.id
            assert not unread, case.id
            taken.add(case.api)
        else:
            assert found == msgspec.structs.asdict(
                Operation(dialect_of(case), name=operation_name(case.path))
            )
    assert taken == {"chat", "responses", "messages"}


@pytest.mark.parametrize(
    ("path", "changed", "is_usual"),
    [
        (CHAT, {}, True),
        (CHAT, {"usage": None, "model": None}, True),
        (CHAT, {"choices": [{"finish_reason": None}]}, True),
        ("/v1/other", {}, False),
        (CHAT, {"choices": []}, False),
        (CHAT, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, False),
        (CHAT, {"choices": [{"finish_reason": 1}]}, False),
        (CHAT, {"choices": [{"finish_reason": "stop", "usage": {"prompt_tokens": 1}}]}, False),
        (CHAT, {"choices": [{"error": {"code": 502}, "finish_reason": "error"}]}, False),
        (CHAT, {"error": {"type": "overloaded"}}, False),
        (CHAT, {"object": "error", "type": "overloaded"}, False),
        (CHAT, {"type": "error"}, False),
        (CHAT, {"x_groq": {"usage": {"prompt_tokens": 1}}}, False),
        (CHAT, {"id": ""}, False),
        (CHAT, {"id": 7}, False),
        (CHAT, {"model": "m" * 201}, False),
        (CHAT, {"usage": [1]}, False),
        ("/v1/responses", {"object": "response", "status": "completed"}, True),
        ("/v1/responses", {"object": "response", "status": "incomplete"}, False),
    ],
)
async def test_an_answer_with_more_than_usual_is_not_read_at_once(
    path: str, changed: dict[str, object], is_usual: bool, autojump_clock: MockClock
) -> None:
    body = json.dumps(json.loads(PLAIN) | changed).encode()
    found, is_read = read_at_once("openai", path, body)
    assert is_read is is_usual
    assert not is_read or found == observed("openai", path, [body])[0]
