"""The configuration: YAML -> frozen typed settings, with every mistake at once.

`schema` has the settings and their types, `source` the text and its places, `expand` the references
in it, `checks` what belongs together, `wiring` the interceptors, and `load` calls them in order.
Every mistake has a path, and nothing is silently ignored.
"""

from .expand import mask_references
from .load import Checked, check_config, load_config, log_warnings, parse_config, single_upstream
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
from .wiring import load_interceptors

__all__ = [
    "Admin",
    "BufferPoolSize",
    "BufferPools",
    "Checked",
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
    "check_config",
    "load_config",
    "load_interceptors",
    "log_warnings",
    "mask_references",
    "parse_config",
    "single_upstream",
]
