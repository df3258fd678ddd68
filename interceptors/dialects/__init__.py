"""Dialects: what flows, as messages instead of events. Sans I/O, and the hooks on top.

Of MCP: `mcp_headers`, and what is beside it. Of LLM APIs, here: an author of interceptors needs `MessageInterceptor`, `MessageStream` and the parts that its hooks are given. The readers can be
used alone: `OpenAIChatReader().read(message)`.
"""

from .anthropic import AnthropicReader
from .errors import DialectError
from .messages import MessageInterceptor, MessageStream
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .parts import Block, Finish, Kind, Part, ProviderError, TextDelta, TextEnd, ToolCall, ToolCallDelta, Usage
from .reader import Made, Reader

__all__ = [
    "AnthropicReader",
    "Block",
    "DialectError",
    "Finish",
    "Kind",
    "Made",
    "MessageInterceptor",
    "MessageStream",
    "OpenAIChatReader",
    "OpenAIResponsesReader",
    "Part",
    "ProviderError",
    "Reader",
    "TextDelta",
    "TextEnd",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]
