"""`Operation`: what is known of the LLM or MCP call of one exchange, for metrics, spans and logs.

It holds names, counts and times, never content. It is filled in with `telemetry: {genai: true}`,
by `observing`; its users read it at the exchange's end. Sources: OpenTelemetry's semantic
conventions for generative AI and for MCP.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import msgspec

from .paths import fold_path

__all__ = ["Operation", "operation_name", "provider_of"]

# The end of a path, or a part of it where an action follows the model's name.
_NAMES = (
    ("/chat/completions", "chat"),
    ("/completions", "text_completion"),
    ("/responses", "chat"),
    ("/messages", "chat"),
    ("/embeddings", "embeddings"),
    (":embedcontent", "embeddings"),
    (":generatecontent", "generate_content"),
    (":streamgeneratecontent", "generate_content"),
    ("/converse", "chat"),
    ("/converse-stream", "chat"),
    ("/invoke", "chat"),
    ("/invoke-with-response-stream", "chat"),
    (":rawpredict", "chat"),
    (":streamrawpredict", "chat"),
)
# By the end of an endpoint's host; the first that fits counts.
_PROVIDERS = (
    ("openai.azure.com", "azure.ai.openai"),
    ("cognitiveservices.azure.com", "azure.ai.openai"),
    ("models.ai.azure.com", "azure.ai.inference"),
    ("services.ai.azure.com", "azure.ai.inference"),
    ("openai.com", "openai"),
    ("anthropic.com", "anthropic"),
    ("amazonaws.com", "aws.bedrock"),
    ("generativelanguage.googleapis.com", "gcp.gemini"),
    ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("groq.com", "groq"),
    ("deepseek.com", "deepseek"),
    ("mistral.ai", "mistral_ai"),
    ("cohere.com", "cohere"),
    ("cohere.ai", "cohere"),
    ("x.ai", "x_ai"),
    ("perplexity.ai", "perplexity"),
    ("ml.cloud.ibm.com", "ibm.watsonx.ai"),
)


class Operation(msgspec.Struct, eq=False):
    """The call of one exchange. None and empty: not known, or not of this kind of call.

    Times are Trio's, in seconds.
    """

    dialect: str
    """The route's `dialect`: openai, anthropic or mcp."""
    name: str | None = None
    """`gen_ai.operation.name`: chat, text_completion, embeddings, generate_content, execute_tool."""
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: tuple[str, ...] = ()
    input_tokens: int | float | None = None
    """As the conventions count them: with those of caches."""
    output_tokens: int | float | None = None
    cache_read_tokens: int | float | None = None
    cache_write_tokens: int | float | None = None
    reasoning_tokens: int | float | None = None
    streams: bool | None = None
    """Whether the answer is an event stream."""
    status: int | None = None
    """The upstream's status."""
    asked_at: float | None = None
    """When the request was handed to the upstream's side."""
    first_token_at: float | None = None
    """The first event with output: text, or a part of a tool call."""
    last_token_at: float | None = None
    """The event that ended the output; None without a stream."""
    mcp_method: str | None = None
    tool: str | None = None
    """The tool of a `tools/call`."""
    prompt: str | None = None
    """The prompt of a `prompts/get`."""
    mcp_session: str | None = None
    protocol_version: str | None = None
    jsonrpc_id: str | None = None
    provider: str | None = None
    """`gen_ai.provider.name`, known at the exchange's end."""
    server_address: str | None = None
    """The endpoint's host, known at the exchange's end; None if no endpoint was asked."""
    server_port: int | None = None
    is_answered: bool = False
    """An MCP server has answered the call. SDKs leave its stream then."""
    error_type: str | None = None
    """`error.type`: the provider's error, a status of 400 or above, `tool_error`, or the code of a
    JSON-RPC error; at the exchange's end also the error type or the outcome of a failure.
    """

    def set_counts(self, counts: Mapping[str, int | float], *, cached_is_apart: bool) -> None:
        """Set the tokens, from counts as `read_counts` names them. `cached_is_apart`: its `input`
        is without those of caches.
        """
        find = counts.get
        given, cached, written = find("input"), find("cached"), find("cache_written")
        if given is not None and cached_is_apart:
            given += (cached or 0) + (written or 0)
        self.input_tokens, self.output_tokens = given, find("output")
        self.cache_read_tokens, self.cache_write_tokens = cached, written
        self.reasoning_tokens = find("reasoning")


@lru_cache(maxsize=256)
def operation_name(path: str) -> str | None:
    """`gen_ai.operation.name` of a path in normal form; None for other resources."""
    folded = fold_path(path).rstrip("/")
    return next((name for end, name in _NAMES if folded.endswith(end)), None)


@lru_cache(maxsize=256)
def provider_of(host: str, dialect: str) -> str:
    """`gen_ai.provider.name` of an endpoint's host; of an unknown one, the dialect."""
    host = host.lower()
    for end, name in _PROVIDERS:
        if host.endswith(end) and host[-len(end) - 1 : -len(end)] in ("", "."):
            return name
    return dialect
