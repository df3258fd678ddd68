"""What the official SDKs make of the bytes of an answer: the texts, calls and reasons that their
caller gets.

The bytes come from a transport without a network. Calls are kept apart by their ids, as clients do
that have several at one index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import httpx2
from support.llm_sdks import anthropic, openai

__all__ = ["Result", "read"]

_answer: httpx2.Response
_http = httpx2.Client(transport=httpx2.MockTransport(lambda _: _answer))
_settings: Any = {"api_key": "k", "base_url": "http://up/v1", "max_retries": 0}

_MESSAGES: Any = {"model": "m", "messages": [{"role": "user", "content": "What is a weir?"}]}
_INPUT: Any = {"model": "m", "input": "What is a weir?"}


@dataclass
class Call:
    id: Any
    name: str | None
    arguments: str

    def plain(self) -> dict[str, Any]:
        """Its arguments decoded, or as they are."""
        arguments: Any = self.arguments
        with suppress(ValueError):
            arguments = json.loads(arguments) if arguments else {}
        return {"id": self.id, "name": self.name, "arguments": arguments}


@dataclass
class Result:
    """What the SDK's caller gets."""

    streamed: bool
    texts: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """By kind, block and field."""
    calls: dict[Any, Call] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    model: str | None = None
    usage: list[Any] = field(default_factory=list)
    """Every `usage` that is not null, as it is written."""
    error: str | None = None
    """The class that the SDK raises, and its message."""
    error_text: str = ""
    final: Any = None
    """What the SDK's own helper for streams assembles, or the class that it raises."""

    def add_text(self, kind: str, block: Any, name: str, text: Any) -> None:
        if isinstance(text, str) and text:
            key = (kind, block, name)
            self.texts[key] = self.texts.get(key, "") + text

    def add_reason(self, reason: Any) -> None:
        if isinstance(reason, str) and reason and reason not in self.reasons:
            self.reasons.append(reason)

    def add_head(self, message: dict[str, Any]) -> None:
        self.model = message.get("model") or self.model
        if message.get("usage") is not None:
            self.usage.append(message["usage"])

    def joined(self, kind: str) -> str:
        return "".join(text for key, text in self.texts.items() if key[0] == kind)

    def tool_calls(self) -> list[dict[str, Any]]:
        return [call.plain() for call in self.calls.values()]

    def comparable(self) -> dict[str, Any]:
        """What must be equal, however the texts were cut."""
        same = ("texts", "reasons", "model", "usage", "error", "error_text")
        return {
            **{name: getattr(self, name) for name in same},
            "calls": self.tool_calls(),
            "final": _comparable(self.final),
        }


def _comparable(tree: Any) -> Any:
    """Without log probabilities, which a changed text has not, and without a `text` beside `delta`,
    of which the SDK's helper keeps the first piece.
    """
    if isinstance(tree, list):
        return [_comparable(item) for item in tree]
    if isinstance(tree, dict):
        dropped = ("logprobs", "text") if "message" in tree else ("logprobs",)
        return {name: _comparable(value) for name, value in tree.items() if name not in dropped}
    return tree


@lru_cache(maxsize=2000)
def read(api: str, streamed: bool, status: int, content_type: str, body: bytes) -> Result:
    """Read an answer as the SDK does. The result is shared: do not change it."""
    result = Result(streamed)
    try:
        _prepare(status, content_type, body)
        made = _create(api, stream=streamed)
        add = _READERS[api](result).add
        for item in made if streamed else [made]:
            add(item.to_dict(warnings=False))
    except Exception as error:
        result.error = type(error).__name__
        if not isinstance(error, ValueError):  # which names the character where it is not JSON
            result.error_text = str(error)
    if streamed and status < 400:
        _prepare(status, content_type, body)
        try:
            result.final = _final(api).to_dict(warnings=False)
        except Exception as error:
            result.final = type(error).__name__
    return result


def _prepare(status: int, content_type: str, body: bytes) -> None:
    global _answer
    headers = {"content-type": content_type} if content_type else {}
    request = httpx2.Request("POST", "http://up")
    _answer = httpx2.Response(status, headers=headers, content=body, request=request)


@lru_cache
def _client(api: str) -> Any:
    made = anthropic.Anthropic if api == "messages" else openai.OpenAI
    return made(**_settings, http_client=_http)


def _create(api: str, *, stream: bool) -> Any:
    if api == "chat":
        return _client(api).chat.completions.create(**_MESSAGES, stream=stream)
    if api == "responses":
        return _client(api).responses.create(**_INPUT, stream=stream)
    return _client(api).messages.create(**_MESSAGES, max_tokens=9, stream=stream)


def _final(api: str) -> Any:
    if api == "chat":
        with _client(api).chat.completions.stream(**_MESSAGES) as chat:
            return chat.get_final_completion()
    if api == "responses":
        with _client(api).responses.stream(**_INPUT) as responses:
            return responses.get_final_response()
    with _client(api).messages.stream(**_MESSAGES, max_tokens=9) as messages:
        return messages.get_final_message()


def _dicts(value: Any) -> Iterable[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _text_of(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else json.dumps(arguments)


class _Chat:
    """Chunks, or a completion."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self._last: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def add(self, message: dict[str, Any]) -> None:
        self._result.add_head(message)
        for choice in _dicts(message.get("choices")):
            index = choice.get("index")
            self._result.add_reason(choice.get("finish_reason"))
            said = choice.get("delta" if self._result.streamed else "message")
            if isinstance(said, dict):
                self._add_texts(index, said)
                for item in _dicts(said.get("tool_calls")):
                    self._add_call(index, item)

    def _add_texts(self, choice: Any, message: dict[str, Any]) -> None:
        add, content = self._result.add_text, message.get("content")
        for name in ("reasoning_content", "reasoning"):
            add("thinking", choice, name, message.get(name))
        add("refusal", choice, "", message.get("refusal"))
        add("text", choice, "", content)
        for part in _dicts(content):
            for kind in ("text", "refusal", "thinking"):
                add(kind, choice, "list", part.get(kind))
            for thought in _dicts(part.get("thinking")):
                add("thinking", choice, "list", thought.get("text"))

    def _add_call(self, choice: Any, item: dict[str, Any]) -> None:
        """A new id begins a new call; in a stream, an item without one continues the last call at
        its index.
        """
        place, calls = (choice, item.get("index")), self._result.calls
        key = self._last.get(place) if self._result.streamed else None
        if key is None or (item.get("id") not in (None, "", calls[key].id)):
            key = self._last[place] = (choice, len(calls))
            calls[key] = Call(item.get("id"), None, "")
        call = calls[key]
        function = item.get("function") or item.get("custom") or {}
        name = function.get("name")
        if name and name != call.name:
            call.name = (call.name or "") + name
        call.arguments += _text_of(function.get("arguments", function.get("input")))


_RESPONSE_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "thinking",
    "response.reasoning_summary_text.delta": "thinking",
}


class _Responses:
    """Events, or a response."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def add(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if event.get("object") == "response":
            self._add_response(event)
            for output, item in enumerate(_dicts(event.get("output"))):
                self._add_texts(output, item)
        elif kind in _RESPONSE_DELTAS:
            part = event.get("content_index", event.get("summary_index"))
            block = (event.get("output_index"), part)
            self._result.add_text(_RESPONSE_DELTAS[kind], block, kind, event.get("delta"))
        elif kind == "response.output_item.done":
            self._add_call(event.get("item") or {})
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            self._add_response(event.get("response") or {})

    def _add_response(self, response: dict[str, Any]) -> None:
        self._result.add_head(response)
        details = response.get("incomplete_details") or {}
        self._result.add_reason(details.get("reason") or response.get("status"))
        for item in _dicts(response.get("output")):
            self._add_call(item)

    def _add_call(self, item: dict[str, Any]) -> None:
        if item.get("type") in ("function_call", "custom_tool_call"):
            arguments = _text_of(item.get("arguments", item.get("input")))
            key = (item.get("call_id"), item.get("id"))
            self._result.calls[key] = Call(item.get("call_id"), item.get("name"), arguments)

    def _add_texts(self, output: int, item: dict[str, Any]) -> None:
        kind = "thinking" if item.get("type") == "reasoning" else "text"
        for name in ("content", "summary"):
            for part, content in enumerate(_dicts(item.get(name))):
                self._result.add_text(kind, (output, part), name, content.get("text"))
                self._result.add_text("refusal", (output, part), name, content.get("refusal"))


class _Messages:
    """Events, or a message."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self._blocks = 0
        self._current: dict[Any, int] = {}
        self._given: set[int] = set()
        """The blocks whose start has an input."""

    def add(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "message_start":
            self._add_message(event.get("message") or {})
        elif kind == "message":
            self._add_message(event)
        elif kind == "content_block_start":
            self._current[event.get("index")] = self._blocks
            self._add_block(event.get("content_block") or {}, streamed=True)
        elif kind == "content_block_delta":
            self._add_delta(self._current.get(event.get("index"), -1), event.get("delta") or {})
        elif kind == "message_delta":
            self._result.add_reason((event.get("delta") or {}).get("stop_reason"))
            if event.get("usage") is not None:
                self._result.usage.append(event["usage"])

    def _add_message(self, message: dict[str, Any]) -> None:
        self._result.add_head(message)
        self._result.add_reason(message.get("stop_reason"))
        for block in _dicts(message.get("content")):
            self._add_block(block, streamed=False)

    def _add_block(self, block: dict[str, Any], *, streamed: bool) -> None:
        kind, given = block.get("type"), block.get("input")
        if kind == "tool_use":
            arguments = "" if streamed and not given else _text_of(given)
            self._result.calls[self._blocks] = Call(block.get("id"), block.get("name"), arguments)
            if given:
                self._given.add(self._blocks)
        elif kind in ("text", "thinking"):
            self._result.add_text(kind, self._blocks, "", block.get(kind))
        self._blocks += 1

    def _add_delta(self, block: int, delta: dict[str, Any]) -> None:
        for kind in ("text", "thinking"):
            self._result.add_text(kind, block, "", delta.get(kind))
        call = self._result.calls.get(block)
        if delta.get("type") == "input_json_delta" and call is not None:
            if block in self._given:  # as the SDK: what comes in deltas counts
                self._given.discard(block)
                call.arguments = ""
            call.arguments += _text_of(delta.get("partial_json"))


_READERS: dict[str, Any] = {"chat": _Chat, "responses": _Responses, "messages": _Messages}
