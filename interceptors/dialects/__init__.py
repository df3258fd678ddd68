"""Dialects: messages instead of events. Readers are sans I/O, with hooks on top.

Exported here: LLM APIs. An author of interceptors needs `MessageInterceptor`, `MessageStream` and
the parts that hooks get; readers also work alone: `OpenAIChatReader().read(message)`. Modules of
MCP begin with `mcp`.

A reader builds on `fields`, `calls` and `reader`; `chat_*`, `responses_*` and `anthropic_*` are
parts of one reader each. `answers` chooses a reader, `message_driver` runs hooks, `held` keeps the
order.
"""

from .anthropic import AnthropicReader
from .errors import DialectError
from .messages import MessageInterceptor, MessageStream
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .parts import (
    Block,
    Finish,
    Kind,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from .reader import Made, Reader
from .unread import Unread

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
    "Unread",
    "Usage",
]
