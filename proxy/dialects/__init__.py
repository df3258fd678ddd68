"""The dialects of routes, one file each: error events, the events that end a stream, the
interceptors around a route's own, sessions.

Imports `upstream`, `http` and the interceptors' readers. `relay`, `worker` and `exchange` ask the
`Dialect` of their route and never compare its name. CONTRIBUTING.md, "Add a dialect", lists the
other places that know a dialect's name.
"""

from collections.abc import Mapping

from .anthropic import Anthropic
from .dialect import Dialect
from .generic import Abort, Generic
from .mcp import Mcp
from .openai import OpenAI

__all__ = ["DIALECTS", "GENERIC", "Dialect"]

GENERIC: Dialect = Generic()
"""The dialect of a request without a route."""
DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect for dialect in (OpenAI(), Anthropic(), Mcp(), GENERIC, Abort())
}
"""Every dialect by its name in the configuration."""
