"""Answers of LLMs in every dialect, for tests of what built-ins do to their texts and calls."""

from __future__ import annotations

from typing import Any

from unit.interceptors.dialects import transcripts as llm

Blocks = list[tuple[str, list[str]]]
"""An answer: of each text or call its kind and its deltas."""

_FIELDS = {"text": "content", "thinking": "reasoning_content", "tool": "tool_calls"}
_EVENTS = {
    "text": "response.output_text.delta",
    "thinking": "response.reasoning_summary_text.delta",
    "tool": "response.function_call_arguments.delta",
}


def streamed(dialect: str, blocks: Blocks) -> bytes:
    """As a provider would stream it, each in a block of its own."""
    made: list[Any] = []
    if dialect == "chat":
        for index, (kind, pieces) in enumerate(blocks):
            if kind == "tool":
                begin = llm.tool_delta(index, "", f"call_{index}", "send")
                made += [
                    llm.delta(**begin),
                    *(llm.delta(**llm.tool_delta(index, piece)) for piece in pieces),
                ]
            else:
                made += [llm.delta(**{_FIELDS[kind]: piece}) for piece in pieces]
        return llm.stream_of([*made, llm.delta("stop"), "[DONE]"], named=False)
    if dialect == "responses":
        for index, (kind, pieces) in enumerate(blocks):
            if kind == "text":
                made.append(llm.text_events(pieces, index, id=f"msg_{index}"))
            elif kind == "thinking":
                made.append(llm.summary_events(pieces, index))
            else:
                made.append(llm.call_events(pieces, index))
        return llm.stream_of(llm.responses_stream(*made), named=True)
    for index, (kind, pieces) in enumerate(blocks):
        if kind == "tool":
            made += llm.tool_block(index, *pieces)
        elif kind == "text":
            made += llm.text_block(index, *pieces)
        else:
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
            made += llm.block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas)
    return llm.stream_of([llm.message_start(), *made, *llm.message_end()], named=True)


def said(stream: bytes, kind: str = "text") -> str:
    """The text of one kind that a client puts together."""
    text = ""
    for message in llm.messages_of(stream):
        if not isinstance(message, dict):
            continue
        for item in message.get("choices", ()):
            value = item["delta"].get(_FIELDS[kind]) or ""
            if kind == "tool":
                value = "".join(call["function"]["arguments"] for call in value)
            text += value
        delta = message.get("delta")
        if isinstance(delta, str):
            text += delta if message["type"] == _EVENTS[kind] else ""
        elif isinstance(delta, dict):
            text += delta.get("partial_json" if kind == "tool" else kind, "")
    return text
