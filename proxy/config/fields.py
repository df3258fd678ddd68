"""The types that settings share: durations, counts, names, and their base class.

An annotation has what an error message needs: the unit, the accepted form, the choices in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct

__all__ = [
    "BYTES",
    "LEAST_SECRET",
    "AffinityMode",
    "Count",
    "Dialect",
    "Duration",
    "ExchangeField",
    "Header",
    "LeakDetection",
    "LocalStore",
    "LogFormat",
    "LogLevel",
    "Method",
    "Name",
    "Seconds",
    "Settings",
    "form",
    "in_order",
]


def form(form: str, fix: Callable[[str], str] | None = None) -> dict[str, Any]:
    """For `Meta(pattern=...)`: the text after "must" in an error, and a function that corrects a
    value.
    """
    return {"form": form, "fix": fix}


def in_order(choices: Any) -> Meta:
    """The choices in source order for error messages; msgspec sorts them."""
    return Meta(extra={"choices": get_args(choices)})


Dialect = Literal["openai", "anthropic", "mcp", "generic", "abort"]
AffinityMode = Literal["auto", "table", "id"]
LocalStore = Literal["auto", "off"]
LeakDetection = Literal["none", "sampled", "paranoid"]
LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
ExchangeField = Literal[
    "request_id",
    "trace_id",
    "span_id",
    "route",
    "upstream",
    "endpoint",
    "client",
    "method",
    "path",
    "user_agent",
    "status",
    "outcome",
    "error_type",
    "error",
    "interceptor",
    "events",
    "bytes",
    "duration",
    "time_to_first_byte",
    "upstream_request_id",
]
"""The fields of the `exchange` line that `log.fields` can list."""
BYTES = {"unit": "bytes"}
LEAST_SECRET = 32
"""Characters of `secret`."""
Name = Annotated[str, Meta(min_length=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000, extra={"unit": "seconds"})]
Duration = Annotated[float, Meta(ge=0, le=31_536_000, extra={"unit": "seconds"})]
Count = Annotated[int, Meta(ge=1)]
Header = dict[str, str]
Method = Annotated[
    str, Meta(pattern=r"^[A-Z]+\Z", extra=form("be a method in capitals, such as GET", str.upper))
]


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all settings: immutable, without unknown keys."""
