"""Interceptors inspect, change, drop and add what passes through the proxy.

Start with `Interceptor`, `StreamInterceptor` or `AsyncStreamInterceptor`; `interceptors.testing`
runs them without a network. `interceptors.dialects` has base classes for LLM answers and MCP
messages. This package imports only `pools`.
"""

from .api import (
    AsyncStreamInterceptor,
    End,
    EventResult,
    Interceptor,
    OnError,
    Outcome,
    StreamContext,
    StreamInterceptor,
)
from .errors import (
    Abort,
    EventTooLarge,
    HookError,
    InterceptorError,
    LoadError,
    NotJson,
    StaleEvent,
    StreamAborted,
    StreamOver,
)
from .event import Event
from .message import Headers, Request, Response, ResponseHead
from .needs import Needs
from .store import (
    Bucket,
    LogEntry,
    OnStoreError,
    Reservation,
    Store,
    StoreUnavailable,
    Window,
    WindowState,
)

__all__ = [
    "Abort",
    "AsyncStreamInterceptor",
    "Bucket",
    "End",
    "Event",
    "EventResult",
    "EventTooLarge",
    "Headers",
    "HookError",
    "Interceptor",
    "InterceptorError",
    "LoadError",
    "LogEntry",
    "Needs",
    "NotJson",
    "OnError",
    "OnStoreError",
    "Outcome",
    "Request",
    "Reservation",
    "Response",
    "ResponseHead",
    "StaleEvent",
    "Store",
    "StoreUnavailable",
    "StreamAborted",
    "StreamContext",
    "StreamInterceptor",
    "StreamOver",
    "Window",
    "WindowState",
]
