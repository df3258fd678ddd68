"""Which responses are answers of an LLM, by the dialect of the route and the path of the request.

It knows no bodies. Upstreams differ in whether a path is case-sensitive, so here it is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from ..paths import fold_path
from .anthropic import AnthropicReader
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .reader import Reader

__all__ = [
    "ANSWER_RULES",
    "AnswerRules",
    "Readers",
    "has_messages",
    "has_one_answer",
    "is_call",
    "is_chat",
    "is_decided_by_path",
    "is_responses",
    "may_be_mislabelled",
    "readers_for",
]

_CHAT = "/chat/completions"
_RESPONSES = "/responses"
_CALLS = (_CHAT, _RESPONSES, "/messages")

# Resources of OpenAI's API that are not answers of a model, each with at most two segments after it
# (`/files/ID/content`). With more, the name may belong to a prefix
# (`/models/NAME/v1/conversations/ID`). A colon begins a method of Google's API
# (`/models/NAME:generateContent`). Legacy completions are answers after any prefix.
_NO_ANSWER = re.compile(
    r"/(?:embeddings|images|audio|files|batches|moderations)(?:/[^/]+){0,2}"
    r"|/models(?:/[^/:]+){0,2}",
    re.ASCII,
)

Readers: TypeAlias = tuple[type[Reader], ...]


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """What a dialect knows of the responses on its routes."""

    readers: Callable[[str], Readers]
    """The readers that may fit, by a folded path; with two, the first message decides."""
    is_decided_by_path: bool = False
    """The dialect names no API, so only the path does."""
    has_messages: bool = False
    """Bodies are JSON-RPC messages (MCP)."""
    reads_one_json: bool = False
    """Its clients read JSON in any response as one text."""


def _of_any_api(path: str) -> Readers:
    return _of_openai_path(path) or ((AnthropicReader,) if path.endswith("/messages") else ())


def _of_openai(path: str) -> Readers:
    if readers := _of_openai_path(path):
        return readers
    return () if _is_no_answer(path) else (OpenAIChatReader, OpenAIResponsesReader)


def _of_openai_path(path: str) -> Readers:
    if path.endswith(_CHAT):
        return (OpenAIChatReader,)
    return (OpenAIResponsesReader,) if path.endswith(_RESPONSES) else ()


def _of_anthropic(path: str) -> Readers:
    return (AnthropicReader,)


def _of_mcp(path: str) -> Readers:
    return ()  # MCP paths may end with /messages too


_GENERIC = AnswerRules(_of_any_api, is_decided_by_path=True)
ANSWER_RULES: Mapping[str, AnswerRules] = {
    "openai": AnswerRules(_of_openai),
    "anthropic": AnswerRules(_of_anthropic),
    "mcp": AnswerRules(_of_mcp, has_messages=True, reads_one_json=True),
    "generic": _GENERIC,
    "abort": _GENERIC,
}
"""By the names of `Request.dialect`; any other name is generic."""


@lru_cache(maxsize=256)
def readers_for(dialect: str, path: str) -> Readers:
    """The readers that may fit a response; with two, its first message decides. May be empty."""
    return ANSWER_RULES.get(dialect, _GENERIC).readers(_folded(path))


def is_decided_by_path(dialect: str) -> bool:
    """Whether the dialect names no API, so that only the path decides which responses are answers."""
    return ANSWER_RULES.get(dialect, _GENERIC).is_decided_by_path


def has_messages(dialect: str) -> bool:
    """Whether bodies are JSON-RPC messages (MCP)."""
    return ANSWER_RULES.get(dialect, _GENERIC).has_messages


def may_be_mislabelled(dialect: str, path: str) -> bool:
    """Whether the first bytes of a body, not only its content type, decide that it is a stream."""
    return not is_decided_by_path(dialect) or bool(readers_for(dialect, path))


@lru_cache(maxsize=256)
def is_call(path: str) -> bool:
    """Whether a POST to this path calls a model."""
    return _folded(path).endswith(_CALLS)


def is_chat(path: str) -> bool:
    """Whether this is the path of OpenAI's chat completions."""
    return _folded(path).endswith(_CHAT)


def is_responses(path: str) -> bool:
    """Whether this is the path of OpenAI's Responses API."""
    return _folded(path).endswith(_RESPONSES)


def has_one_answer(dialect: str, path: str) -> bool:
    """Whether clients read JSON in a response as one text, also under a type of JSON lines.

    The official SDKs for LLMs do so for every type that ends with `json` (`application/x-ndjson`),
    those for MCP for every type that begins with `application/json` (`application/jsonl`).
    """
    return ANSWER_RULES.get(dialect, _GENERIC).reads_one_json or is_call(path)


def _folded(path: str) -> str:
    return fold_path(path).rstrip("/")


def _is_no_answer(path: str) -> bool:
    if path.endswith(("/completions", "/messages")):
        return False
    return any(_NO_ANSWER.fullmatch(path, match.start()) for match in re.finditer("/", path))
