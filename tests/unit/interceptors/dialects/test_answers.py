"""Which responses are answers of an LLM, and where the first bytes of a body decide what it is."""

from __future__ import annotations

import pytest

from interceptors.dialects import AnthropicReader, OpenAIChatReader, OpenAIResponsesReader
from interceptors.dialects.answers import (
    is_call,
    is_chat,
    is_responses,
    may_be_mislabelled,
    readers_for,
)

READERS = {
    "chat": (OpenAIChatReader,),
    "responses": (OpenAIResponsesReader,),
    "messages": (AnthropicReader,),
    "either": (OpenAIChatReader, OpenAIResponsesReader),
    "none": (),
}
PATHS = """
openai generic abort | chat      | /chat/completions /v1/chat/completions/ /openai/deployments/images/chat/completions /models/x/v1/chat/completions /batches/chat/completions
openai generic abort | chat      | /v1/Chat/Completions /v1/chat/completion%C5%BF
openai generic abort | responses | /responses/ /v1/responses /openai/deployments/images/responses /batches/responses /V1/RESPONSES
generic abort        | messages  | /v1/messages /V1/MESSAGES
generic              | none      | /v1/embeddings
anthropic            | messages  | /v1/models
mcp                  | none      | /messages
openai               | none      | /embeddings /V1/Embeddings /v1/embeddings/ /images/generations /v1/images/edits /audio/speech /v1/audio/transcriptions
openai               | none      | /models /v1/models/gpt-x /a/b/c/models/org/name /files /v1/files/abc/content /vector_stores/vs/files/abc
openai               | none      | /batches/abc/cancel /v1/moderations /openai/deployments/x/embeddings
openai               | either    | / /v1/completions /models/org/name/completions /v1beta/models/gemini:generateContent /v1/threads/t/messages
openai               | either    | /models/name/v1/conversations/abc/items /v1/filesystem /v1/my-embeddings /v1/responses/resp_1
"""
"""Dialects of a route, who reads the answers there, and paths."""


@pytest.mark.parametrize("row", PATHS.strip().split("\n"))
def test_dialect_and_path_decide_who_reads_an_answer(row: str) -> None:
    """After any prefix and in any case; whatever may be an answer is read as one."""
    dialects, readers, paths = row.split("|")
    for dialect in dialects.split():
        for path in paths.split():
            assert readers_for(dialect, path) == READERS[readers.strip()], (dialect, path)
            if dialect == "generic":
                assert may_be_mislabelled(dialect, path) == (readers.strip() != "none")


def test_the_case_of_a_path_does_not_count() -> None:
    assert is_chat("/CHAT/completions/")
    assert is_responses("/v1/Responses/")
    for path in ("/v1/Messages", "/v1/Chat/Completions", "/V1/RESPONSES"):
        assert is_call(path)
        assert may_be_mislabelled("openai", path)


def test_where_the_first_bytes_decide() -> None:
    """On every path of a dialect's route, and elsewhere on the paths of answers."""
    for dialect in ("openai", "anthropic", "mcp"):
        assert may_be_mislabelled(dialect, "/v1/files")
    assert not may_be_mislabelled("generic", "/v1/files")
