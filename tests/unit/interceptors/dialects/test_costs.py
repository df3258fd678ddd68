"""What a reader does for an event grows with the event, and not with its square: counted, not
timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from unit.interceptors.dialects.transcripts import (
    choice,
    chunk,
    message_item,
    response,
    text_part,
    tool_delta,
)

from interceptors.dialects import (
    Block,
    OpenAIChatReader,
    OpenAIResponsesReader,
    Reader,
    ToolCall,
    openai_chat,
    openai_responses,
)

FEW, MANY = 300, 2_400
looks = 0


def look() -> None:
    global looks
    looks += 1


class CountedBlock(Block):
    """Counts how often a block is compared, looked up, or asked where it belongs."""

    def __eq__(self, other: object) -> bool:
        look()
        return tuple.__eq__(self, other)  # type: ignore[arg-type]

    def __hash__(self) -> int:
        look()
        return tuple.__hash__(self)

    @property
    def output(self) -> int:  # type: ignore[override]
        look()
        return int(self[1])


class CountedDict(dict[str, Any]):
    """Counts how often a field of a message is read."""

    def get(self, key: str, default: Any = None) -> Any:
        look()
        return super().get(key, default)


def counted(value: Any) -> Any:
    if isinstance(value, dict):
        return CountedDict({name: counted(inner) for name, inner in value.items()})
    return [counted(inner) for inner in value] if isinstance(value, list) else value


def looks_of(reader: Reader, events: list[Any]) -> int:
    """How much is looked at while these events are read, leave, and tool calls that were held back
    are made anew.
    """
    global looks
    messages = [counted(event) for event in events]
    looks = 0
    for message in messages:
        for part in reader.read(message):
            if isinstance(part, ToolCall) and part.held:
                reader.decide(part.call)
    reader.commit()
    return looks


def each(size: int, make: Callable[[int], Any]) -> dict[str, Any]:
    return chunk(*(make(index) for index in range(size)))


def items(size: int) -> list[Any]:
    delta = {"type": "response.output_text.delta", "item_id": "m", "content_index": 0, "delta": "a"}
    whole = response("completed", [message_item(text_part("a")) for _ in range(size)])
    end = {"type": "response.completed", "response": whole}
    return [*({**delta, "output_index": index} for index in range(size)), end]


COSTS: dict[str, tuple[Callable[[int], list[Any]], Callable[[], Reader]]] = {
    "choices that end in one event": (
        lambda size: [each(size, lambda at: choice({"content": "a"}, "stop", at))],
        OpenAIChatReader,
    ),
    "choices that end in a later event": (
        lambda size: [
            each(size, lambda at: choice({"content": "a"}, None, at)),
            each(size, lambda at: choice({}, "stop", at)),
        ],
        OpenAIChatReader,
    ),
    "calls that were held": (
        lambda size: [
            each(size, lambda at: choice(tool_delta(0, "{}", f"call_{at}", "f"), None, at)),
            each(size, lambda at: choice({}, "tool_calls", at)),
        ],
        lambda: OpenAIChatReader(hold_tool_calls=True),
    ),
    "calls of one choice": (
        lambda size: [
            each(size, lambda at: choice(tool_delta(at, "{}", f"call_{at}", "f"))),
            each(size, lambda _: choice({}, "tool_calls")),
        ],
        OpenAIChatReader,
    ),
    "items of a response": (items, OpenAIResponsesReader),
}


@pytest.mark.parametrize(("events", "make"), COSTS.values(), ids=COSTS)
def test_eight_times_as_much_costs_eight_times_as_much(
    events: Callable[[int], list[Any]], make: Callable[[], Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_chat, "Block", CountedBlock)
    monkeypatch.setattr(openai_responses, "Block", CountedBlock)
    few, many = looks_of(make(), events(FEW)), looks_of(make(), events(MANY))
    assert few > FEW
    assert many < 10 * few
