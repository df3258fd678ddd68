"""The configuration: YAML -> frozen typed settings (`schema`), read (`load`) and checked (`checks`).

Every error names its path, and nothing is silently ignored.
"""

from .load import load_config, parse_config, single_upstream
from .schema import (
    Admin,
    BufferPools,
    BufferPoolSize,
    Config,
    Drain,
    HeaderRules,
    Health,
    Heartbeat,
    InterceptorEntry,
    Limits,
    Log,
    Reconnect,
    Reporting,
    Retry,
    ReverseProxy,
    Route,
    Timeouts,
    Upstream,
)

__all__ = [
    "Admin",
    "BufferPoolSize",
    "BufferPools",
    "Config",
    "Drain",
    "HeaderRules",
    "Health",
    "Heartbeat",
    "InterceptorEntry",
    "Limits",
    "Log",
    "Reconnect",
    "Reporting",
    "Retry",
    "ReverseProxy",
    "Route",
    "Timeouts",
    "Upstream",
    "load_config",
    "parse_config",
    "single_upstream",
]
