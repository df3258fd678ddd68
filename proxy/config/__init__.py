"""The configuration: YAML to frozen typed settings, with every mistake reported at once.

`schema` defines the settings, `source` reads YAML and remembers where each value stands, `expand`
replaces references, `checks` checks names and values, `wiring` checks the interceptors, `load` runs
them in order, `reference` generates the documentation. Every mistake has a path, and no key is
silently ignored.
"""

from .expand import mask_references
from .fields import ExchangeField, LogLevel
from .load import Checked, check_config, load_config, log_warnings, parse_config, single_upstream
from .process import PAGES
from .schema import (
    LEAST_SECRET,
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
    Store,
    Timeouts,
    Upstream,
)
from .shown import FIXED, in_force, shown
from .wiring import load_interceptors

__all__ = [
    "FIXED",
    "LEAST_SECRET",
    "PAGES",
    "Admin",
    "BufferPoolSize",
    "BufferPools",
    "Checked",
    "Config",
    "Drain",
    "ExchangeField",
    "HeaderRules",
    "Health",
    "Heartbeat",
    "InterceptorEntry",
    "Limits",
    "Log",
    "LogLevel",
    "Reconnect",
    "Reporting",
    "Retry",
    "ReverseProxy",
    "Route",
    "Store",
    "Timeouts",
    "Upstream",
    "check_config",
    "in_force",
    "load_config",
    "load_interceptors",
    "log_warnings",
    "mask_references",
    "parse_config",
    "shown",
    "single_upstream",
]
