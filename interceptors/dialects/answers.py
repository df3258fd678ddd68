"""Which responses are answers of an LLM, by the dialect of their route and the path of their
request. It knows no bodies.

Upstreams differ in whether the letters of a path count, so here they do not.
"""

from __future__ import annotations

import re

from ..paths import fold_path
from .anthropic import AnthropicReader
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .reader import Reader

__all__ = [
    "has_one_answer",
    "is_call",
    "is_chat",
    "is_responses",
    "may_be_mislabelled",
    "readers_for",
]

_CHAT = "/chat/completions"
_RESPONSES = "/responses"
_CALLS = (_CHAT, _RESPONSES, "/messages")

_DIALECTS = frozenset(("openai", "anthropic", "mcp"))
# The resources of OpenAI's API that are no answers of a model, each with at most two segments after
# it (`/files/ID/content`). With more, the name may belong to a prefix
# (`/models/NAME/v1/conversations/ID`). A colon begins a method of Google's API
# (`/models/NAME:generateContent`), and legacy completions are answers whatever comes before them.
_NO_ANSWER = re.compile(
    r"/(?:embeddings|images|audio|files|batches|moderations)(?:/[^/]+){0,2}|/models(?:/[^/:]+){0,2}",
    re.ASCII,
)


def readers_for(dialect: str, path: str) -> tuple[type[Reader], ...]:
    """Which reader a response needs, by its route's dialect and its request's path; two: the first
    message decides. Or none.
    """
    path = _folded(path)
    if dialect == "anthropic":
        return (AnthropicReader,)
    if dialect == "mcp":
        return ()  # its paths may end with /messages, too
    if path.endswith(_CHAT):
        return (OpenAIChatReader,)
    if path.endswith(_RESPONSES):
        return (OpenAIResponsesReader,)
    if dialect == "openai":
        return () if _is_no_answer(path) else (OpenAIChatReader, OpenAIResponsesReader)
    return (AnthropicReader,) if path.endswith("/messages") else ()


def may_be_mislabelled(dialect: str, path: str) -> bool:
    """Whether the first bytes of a response's body, and not its content type alone, decide if it is
    an event stream.
    """
    return dialect in _DIALECTS or bool(readers_for(dialect, path))


def is_call(path: str) -> bool:
    """Whether a POST to this path calls a model, whatever comes of it."""
    return _folded(path).endswith(_CALLS)


def is_chat(path: str) -> bool:
    """Whether this is the path of OpenAI's chat completions."""
    return _folded(path).endswith(_CHAT)


def is_responses(path: str) -> bool:
    """Whether this is the path of OpenAI's Responses API."""
    return _folded(path).endswith(_RESPONSES)


def has_one_answer(dialect: str, path: str) -> bool:
    """Whether clients read JSON in a response as one text, also under a type of JSON lines.

    The official SDKs for LLMs read every type that ends with `json` so (`application/x-ndjson`),
    and those for MCP every type that begins with `application/json` (`application/jsonl`).
    """
    return dialect == "mcp" or is_call(path)


def _folded(path: str) -> str:
    return fold_path(path).rstrip("/")


def _is_no_answer(path: str) -> bool:
    if path.endswith(("/completions", "/messages")):
        return False
    return any(_NO_ANSWER.fullmatch(path, match.start()) for match in re.finditer("/", path))
