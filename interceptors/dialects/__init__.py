"""Dialects: what flows, as messages instead of events; sans I/O, and the hooks on top.

Here: what LLM APIs say. An author of interceptors needs `MessageInterceptor`, `MessageStream` and
the parts that its hooks are given; the readers can be used alone:
`OpenAIChatReader().read(message)`. What is MCP's is in modules of its own beside them.
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
