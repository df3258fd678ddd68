"""Interceptors: see, change, drop and add the events of a stream, in a few lines of Python.

Public: `Interceptor`, `StreamInterceptor`, `Event` and what they mention. `interceptors.testing` runs a chain without a
network. Imports only `pools`.
"""

from .api import EventResult, Interceptor, Outcome, ResponseHead, StreamContext, StreamInterceptor
from .errors import EventTooLarge, HookError, InterceptorError, LoadError, NotJson, StaleEvent
from .event import Event

__all__ = [
    "Event",
    "EventResult",
    "EventTooLarge",
    "HookError",
    "Interceptor",
    "InterceptorError",
    "LoadError",
    "NotJson",
    "Outcome",
    "ResponseHead",
    "StaleEvent",
    "StreamContext",
    "StreamInterceptor",
]
