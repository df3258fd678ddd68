"""Interceptors: see, change, drop and add what flows through, in a few lines of Python.

Public: `Interceptor`, `StreamInterceptor`, `AsyncStreamInterceptor`, `Event`, `Request`,
`Response`, and what they mention. `interceptors.testing` runs a chain without a network. Imports
only `pools`.
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

__all__ = [
    "Abort",
    "AsyncStreamInterceptor",
    "End",
    "Event",
    "EventResult",
    "EventTooLarge",
    "Headers",
    "HookError",
    "Interceptor",
    "InterceptorError",
    "LoadError",
    "Needs",
    "NotJson",
    "OnError",
    "Outcome",
    "Request",
    "Response",
    "ResponseHead",
    "StaleEvent",
    "StreamAborted",
    "StreamContext",
    "StreamInterceptor",
    "StreamOver",
]
