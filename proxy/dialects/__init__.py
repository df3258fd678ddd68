"""What each dialect says of itself, one file each: error bodies and events, the end of a stream,
the interceptors around a route's own, its sessions.

Imports `upstream`, `http` and the interceptors' readers. `relay`, `worker` and `exchange` ask the
`Dialect` of their route; none compares its name. To add one: a file here with a subclass, its name
in `config/schema.py`, its error format in `interceptors/refusals.py` and its rules of answers in
`interceptors/dialects/answers.py`.
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
