"""The marks of methods that are hooks for MCP messages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from fnmatch import translate
from typing import Any, NamedTuple, TypeVar

from .mcp import Kind

__all__ = [
    "MARKS",
    "MarkedHook",
    "marked_hooks",
    "on_mcp_notification",
    "on_mcp_request",
    "on_mcp_response",
]

F = TypeVar("F", bound=Callable[..., Any])

MARKS = "__mcp_hooks__"
"""The attribute of a marked method that has its marks."""


def on_mcp_request(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for requests whose method matches a glob, in either direction; None: for all.

    It may return a result (a dict) or an `McpError`: a client's request is then answered with that,
    and never goes upstream.
    """
    return _mark(Kind.REQUEST, pattern)


def on_mcp_response(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for responses, results and errors, to requests whose method matches a glob.

    None: for all, also for those whose request is not known (`message.request` is None), which no
    glob matches.
    """
    return _mark(Kind.RESPONSE, pattern)


def on_mcp_notification(pattern: str | None = None) -> Callable[[F], F]:
    """Mark a method for notifications whose method matches a glob, in either direction; None: for
    all.
    """
    return _mark(Kind.NOTIFICATION, pattern)


def _mark(kind: Kind, pattern: str | None) -> Callable[[F], F]:
    if pattern is not None and not isinstance(pattern, str):
        raise TypeError(f"write @on_mcp_{kind}() or @on_mcp_{kind}('a/glob*'), with parentheses")

    def mark(function: F) -> F:
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function.__qualname__} is async, but hooks for MCP messages are not")
        setattr(function, MARKS, [(kind, pattern), *getattr(function, MARKS, [])])
        return function

    return mark


class MarkedHook(NamedTuple):
    """A hook: the name of its method, and what matches the methods of messages; None: all do."""

    name: str
    matches: Callable[[str], Any] | None


def marked_hooks(cls: type) -> dict[Kind, tuple[MarkedHook, ...]]:
    """The hooks of a class and its bases, in the order of their definition."""
    marks: dict[str, list[tuple[Kind, str | None]]] = {}
    for base in reversed(cls.__mro__):
        for name, item in vars(base).items():
            if hasattr(item, MARKS):
                marks[name] = getattr(item, MARKS)
    found: dict[Kind, tuple[MarkedHook, ...]] = {}
    for name, items in marks.items():
        for kind, pattern in items:
            matches = None if pattern is None else re.compile(translate(pattern)).match
            found[kind] = (*found.get(kind, ()), MarkedHook(name, matches))
    return found
