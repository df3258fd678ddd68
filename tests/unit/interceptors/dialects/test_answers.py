"""Which responses are answers of an LLM, and where the first bytes of a body decide what it is."""

from __future__ import annotations

import pytest
from support.tables import words

from interceptors.dialects import AnthropicReader, OpenAIChatReader, OpenAIResponsesReader
from interceptors.dialects.answers import (
    is_call,
    is_chat,
    is_responses,
    may_be_mislabelled,
    readers_for,
)

CHAT, RESPONSES, MESSAGES = (OpenAIChatReader,), (OpenAIResponsesReader,), (AnthropicReader,)
EITHER = (OpenAIChatReader, OpenAIResponsesReader)


@pytest.mark.parametrize("dialect", ["openai", "generic", "abort"])
@pytest.mark.parametrize(
    "prefix", ["", "/v1", "/openai/deployments/images", "/models/x/v1", "/batches"]
)
def test_an_answer_is_recognised_after_any_prefix(prefix: str, dialect: str) -> None:
    """Also after a prefix that is the name of something else."""
    assert readers_for(dialect, prefix + "/chat/completions") == CHAT
    assert readers_for(dialect, prefix + "/responses/") == RESPONSES


@pytest.mark.parametrize("dialect", ["generic", "abort", "openai"])
def test_the_case_of_a_path_does_not_count(dialect: str) -> None:
    for path, readers in (
        ("/v1/Chat/Completions", CHAT),
        ("/V1/RESPONSES", RESPONSES),
        ("/v1/chat/completion%C5%BF", CHAT),
    ):
        assert readers_for(dialect, path) == readers
        assert may_be_mislabelled(dialect, path)
        assert is_call(path)
    assert is_chat("/CHAT/completions/")
    assert is_responses("/v1/Responses/")
    assert is_call("/v1/Messages")
    assert readers_for("generic", "/V1/MESSAGES") == MESSAGES
    assert readers_for("openai", "/V1/Embeddings") == ()


@pytest.mark.parametrize("prefix", ["", "/v1", "/openai/deployments/x", "/a/b/c"])
@pytest.mark.parametrize(
    "path",
    words(
        "/embeddings /embeddings/ /images/generations /images/edits /audio/speech"
        " /audio/transcriptions /models /models/gpt-x /models/org/name /files /files/abc/content"
        " /vector_stores/vs/files/abc /batches/abc/cancel /moderations"
    ),
)
def test_openai_paths_that_are_no_answers(path: str, prefix: str) -> None:
    """Behind any prefix, with what comes after."""
    assert readers_for("openai", prefix + path) == ()


@pytest.mark.parametrize(
    "path",
    words(
        "/ /v1/completions /models/org/name/completions /v1beta/models/gemini:generateContent"
        " /models/name/v1/conversations/abc/items /v1/filesystem /v1/my-embeddings"
        " /v1/responses/resp_1 /v1/threads/t/messages"
    ),
)
def test_other_openai_paths_may_be_answers(path: str) -> None:
    """What is not known to be no answer is read as one."""
    assert readers_for("openai", path) == EITHER


def test_other_dialects() -> None:
    """All of Anthropic's may be answers, nothing of MCP's is."""
    assert readers_for("anthropic", "/v1/models") == MESSAGES
    assert readers_for("generic", "/v1/messages") == MESSAGES
    assert readers_for("generic", "/v1/embeddings") == ()
    assert readers_for("mcp", "/messages") == ()


def test_where_the_first_bytes_decide() -> None:
    """On every path of a dialect's route, and elsewhere on the paths of answers."""
    assert all(
        may_be_mislabelled(dialect, "/v1/files") for dialect in ("openai", "anthropic", "mcp")
    )
    assert [may_be_mislabelled("generic", path) for path in ("/v1/responses", "/v1/files")] == [
        True,
        False,
    ]
