"""What the official SDKs make of the bytes of an answer: the texts, calls and reasons that their
caller gets.

The bytes come from a transport without a network. Calls are kept apart by their ids, as clients do
that have several at one index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import anthropic
import httpx2
import openai

__all__ = ["Result", "read"]

_answer: httpx2.Response


def _respond(request: httpx2.Request) -> httpx2.Response:
    return _answer


_OPENAI = openai.OpenAI(
    api_key="k",
    base_url="http://up/v1",
    max_retries=0,
    http_client=httpx2.Client(transport=httpx2.MockTransport(_respond)),
)
_ANTHROPIC = anthropic.Anthropic(
    api_key="k",
    base_url="http://up",
    max_retries=0,
    http_client=httpx2.Client(transport=httpx2.MockTransport(_respond)),
)


@dataclass
class Call:
    id: Any
    name: str | None
    arguments: str

    def plain(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "arguments": _decoded(self.arguments)}


def _decoded(text: Any) -> Any:
    """Arguments as JSON, or as they are."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text


@dataclass
class Result:
    """What the SDK's caller gets."""

    texts: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """By kind, block and field."""
    calls: dict[tuple[Any, ...], Call] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    model: str | None = None
    usage: list[Any] = field(default_factory=list)
    """Every `usage` that is not null, as it is written."""
    error: str | None = None
    """The class that the SDK raises, and its message."""
    error_text: str = ""
    final: Any = None
    """What the SDK's own helper for streams assembles, or the class that it raises."""

    def add_text(self, key: tuple[Any, ...], text: Any) -> None:
        if isinstance(text, str) and text:
            self.texts[key] = self.texts.get(key, "") + text

    def add_reason(self, reason: Any) -> None:
        if isinstance(reason, str) and reason and reason not in self.reasons:
            self.reasons.append(reason)

    def joined(self, kind: str) -> str:
        return "".join(text for key, text in self.texts.items() if key[0] == kind)

    def tool_calls(self) -> list[dict[str, Any]]:
        return [call.plain() for call in self.calls.values()]

    def comparable(self) -> dict[str, Any]:
        """What must be equal, however the texts were cut.

        That is not: log probabilities, which a changed text has not, and a `text` beside `delta`,
        of which the SDK's helper keeps the first piece.
        """
        return {
            "texts": self.texts,
            "calls": self.tool_calls(),
            "reasons": self.reasons,
            "model": self.model,
            "usage": self.usage,
            "error": (self.error, self.error_text),
            "final": _comparable(self.final),
        }


def _comparable(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_comparable(item) for item in tree]
    if isinstance(tree, dict):
        dropped = ("logprobs", "text") if "message" in tree else ("logprobs",)
        return {name: _comparable(value) for name, value in tree.items() if name not in dropped}
    return tree


@lru_cache(maxsize=2000)
def read(api: str, streamed: bool, status: int, content_type: str, body: bytes) -> Result:
    """Read an answer as the SDK does. The result is shared: do not change it."""
    result = Result()
    try:
        _prepare(status, content_type, body)
        made = _create(api, stream=streamed)
        if streamed:
            assembler = {"chat": _Chat, "responses": _Responses, "messages": _Messages}[api](result)
            for item in made:
                assembler.add(item.to_dict(warnings=False))
        else:
            {"chat": _read_completion, "responses": _read_response, "messages": _read_message}[api](
                result, made.to_dict(warnings=False)
            )
    except Exception as error:
        result.error = type(error).__name__
        if not isinstance(error, ValueError):  # which names the character where it is not JSON
            result.error_text = str(error)
    if streamed and status < 400:
        _prepare(status, content_type, body)
        try:
            result.final = _final(api)
        except Exception as error:
            result.final = type(error).__name__
    return result


def _prepare(status: int, content_type: str, body: bytes) -> None:
    global _answer
    headers = {"content-type": content_type} if content_type else {}
    _answer = httpx2.Response(
        status, headers=headers, content=body, request=httpx2.Request("POST", "http://up")
    )


_MESSAGES: Any = [{"role": "user", "content": "What is a weir?"}]


def _create(api: str, *, stream: bool) -> Any:
    if api == "chat":
        return _OPENAI.chat.completions.create(model="m", messages=_MESSAGES, stream=stream)
    if api == "responses":
        return _OPENAI.responses.create(model="m", input="What is a weir?", stream=stream)
    return _ANTHROPIC.messages.create(model="m", messages=_MESSAGES, max_tokens=9, stream=stream)


def _final(api: str) -> Any:
    if api == "chat":
        with _OPENAI.chat.completions.stream(model="m", messages=_MESSAGES) as chat:
            return chat.get_final_completion().to_dict(warnings=False)
    if api == "responses":
        with _OPENAI.responses.stream(model="m", input="What is a weir?") as responses:
            return responses.get_final_response().to_dict(warnings=False)
    with _ANTHROPIC.messages.stream(model="m", messages=_MESSAGES, max_tokens=9) as messages:
        return messages.get_final_message().to_dict(warnings=False)


def _dicts(value: Any) -> Iterable[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _text_of(arguments: Any) -> str:
    return (
        arguments
        if isinstance(arguments, str)
        else ""
        if arguments is None
        else json.dumps(arguments)
    )


# --- OpenAI, chat completions
# ----------------------------------------------------------------------------------------------


class _Chat:
    def __init__(self, result: Result) -> None:
        self._result = result
        self._last: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        _read_chat_head(self._result, chunk)
        for choice in _dicts(chunk.get("choices")):
            index = choice.get("index")
            self._result.add_reason(choice.get("finish_reason"))
            delta = choice.get("delta")
            if isinstance(delta, dict):
                _read_chat_texts(self._result, index, delta)
                for item in _dicts(delta.get("tool_calls")):
                    self._add_call(index, item)

    def _add_call(self, choice: Any, item: dict[str, Any]) -> None:
        """A new id begins a new call; an item without one continues the last call at its index."""
        place, calls = (choice, item.get("index")), self._result.calls
        key = self._last.get(place)
        if key is None or (item.get("id") not in (None, "", calls[key].id)):
            key = self._last[place] = (choice, len(calls))
            calls[key] = Call(item.get("id"), None, "")
        call = calls[key]
        function = item.get("function") or item.get("custom") or {}
        name = function.get("name")
        if name and name != call.name:
            call.name = (call.name or "") + name
        call.arguments += _text_of(function.get("arguments", function.get("input")))


def _read_chat_head(result: Result, message: dict[str, Any]) -> None:
    result.model = message.get("model") or result.model
    if message.get("usage") is not None:
        result.usage.append(message["usage"])


def _read_chat_texts(result: Result, choice: Any, message: dict[str, Any]) -> None:
    for name in ("reasoning_content", "reasoning"):
        result.add_text(("thinking", choice, name), message.get(name))
    result.add_text(("refusal", choice, ""), message.get("refusal"))
    content = message.get("content")
    result.add_text(("text", choice, ""), content)
    for part in _dicts(content):
        result.add_text(("text", choice, "list"), part.get("text"))
        result.add_text(("refusal", choice, "list"), part.get("refusal"))
        thinking = part.get("thinking")
        result.add_text(("thinking", choice, "list"), thinking)
        for thought in _dicts(thinking):
            result.add_text(("thinking", choice, "list"), thought.get("text"))


def _read_completion(result: Result, completion: dict[str, Any]) -> None:
    _read_chat_head(result, completion)
    for choice in _dicts(completion.get("choices")):
        index = choice.get("index")
        result.add_reason(choice.get("finish_reason"))
        message = choice.get("message") or {}
        _read_chat_texts(result, index, message)
        for item in _dicts(message.get("tool_calls")):
            function = item.get("function") or item.get("custom") or {}
            result.calls[index, len(result.calls)] = Call(
                item.get("id"),
                function.get("name"),
                _text_of(function.get("arguments", function.get("input"))),
            )


# --- OpenAI, responses
# -----------------------------------------------------------------------------------------------------

_RESPONSE_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "thinking",
    "response.reasoning_summary_text.delta": "thinking",
}


class _Responses:
    def __init__(self, result: Result) -> None:
        self._result = result

    def add(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind in _RESPONSE_DELTAS:
            part = event.get("content_index", event.get("summary_index"))
            self._result.add_text(
                (_RESPONSE_DELTAS[kind], event.get("output_index"), part, kind), event.get("delta")
            )
        elif kind == "response.output_item.done":
            _read_item_call(self._result, event.get("item"))
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            response = event.get("response") or {}
            _read_response_head(self._result, response)
            for item in _dicts(response.get("output")):
                _read_item_call(self._result, item)


def _read_item_call(result: Result, item: Any) -> None:
    if isinstance(item, dict) and item.get("type") in ("function_call", "custom_tool_call"):
        key = (item.get("call_id"), item.get("id"))
        result.calls[key] = Call(
            item.get("call_id"),
            item.get("name"),
            _text_of(item.get("arguments", item.get("input"))),
        )


def _read_response_head(result: Result, response: dict[str, Any]) -> None:
    result.model = response.get("model")
    if response.get("usage") is not None:
        result.usage.append(response["usage"])
    details = response.get("incomplete_details") or {}
    result.add_reason(details.get("reason") or response.get("status"))


def _read_response(result: Result, response: dict[str, Any]) -> None:
    _read_response_head(result, response)
    for output, item in enumerate(_dicts(response.get("output"))):
        _read_item_call(result, item)
        for field_ in ("content", "summary"):
            for part, content in enumerate(_dicts(item.get(field_))):
                kind = "thinking" if item.get("type") == "reasoning" else "text"
                result.add_text((kind, output, part, field_), content.get("text"))
                result.add_text(("refusal", output, part, field_), content.get("refusal"))


# --- Anthropic
# -------------------------------------------------------------------------------------------------------------


class _Messages:
    def __init__(self, result: Result) -> None:
        self._result = result
        self._blocks = 0
        self._current: dict[Any, int] = {}
        self._given: set[int] = set()
        """The blocks whose start has an input."""

    def add(self, event: dict[str, Any]) -> None:
        kind, result = event.get("type"), self._result
        if kind == "message_start":
            _read_message(result, event.get("message") or {})
        elif kind == "content_block_start":
            self._current[event.get("index")] = self._blocks
            content = event.get("content_block") or {}
            if content.get("input"):
                self._given.add(self._blocks)
            _read_block(result, self._blocks, content, streamed=True)
            self._blocks += 1
        elif kind == "content_block_delta":
            block, delta = self._current.get(event.get("index"), -1), event.get("delta") or {}
            result.add_text(("text", block), delta.get("text"))
            result.add_text(("thinking", block), delta.get("thinking"))
            if delta.get("type") == "input_json_delta" and (block,) in result.calls:
                call = result.calls[(block,)]
                if block in self._given:  # as the SDK: what comes in deltas counts
                    self._given.discard(block)
                    call.arguments = ""
                call.arguments += _text_of(delta.get("partial_json"))
        elif kind == "message_delta":
            result.add_reason((event.get("delta") or {}).get("stop_reason"))
            if event.get("usage") is not None:
                result.usage.append(event["usage"])


def _read_block(result: Result, index: int, block: dict[str, Any], *, streamed: bool) -> None:
    if block.get("type") == "tool_use":
        given = block.get("input")
        result.calls[(index,)] = Call(
            block.get("id"), block.get("name"), "" if streamed and not given else _text_of(given)
        )
    if block.get("type") in ("text", "thinking"):
        result.add_text((block["type"], index), block.get(block["type"]))


def _read_message(result: Result, message: dict[str, Any]) -> None:
    result.model = message.get("model")
    result.add_reason(message.get("stop_reason"))
    if message.get("usage") is not None:
        result.usage.append(message["usage"])
    for index, block in enumerate(_dicts(message.get("content"))):
        _read_block(result, index, block, streamed=False)
