"""All public items, found in the code: classes, hooks, options, keys, headers, metrics, log events,
error types, commands. Each is a line `kind name` of `tests/reach.txt`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from msgspec import inspect as mi

from interceptors.loader import ENTRY_POINT_GROUP
from interceptors.options import option_names
from pools import Pools
from proxy.commands import cli as command_line
from proxy.config import Config
from proxy.worker.metrics import Metrics

__all__ = ["ROOT", "items"]

ROOT = Path(__file__).parents[2]
_MODULES = [
    path
    for package in ("pools", "interceptors", "proxy")
    for path in sorted((ROOT / package).rglob("*.py"))
]
_AUTHORS = ("interceptors", "interceptors.dialects", "interceptors.testing")
_BASES = {
    "interceptors": ("Interceptor", "StreamInterceptor", "AsyncStreamInterceptor"),
    "interceptors.dialects": ("MessageInterceptor", "MessageStream"),
    "interceptors.dialects.mcp_hooks": ("McpInterceptor",),
}
_LEVELS = frozenset(("debug", "info", "warning", "error", "critical", "exception"))
_FIELD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
# Field names of one word, which other text may be, too (IANA's registry of HTTP fields).
_WORDS = frozenset(
    (
        "accept", "age", "allow", "authorization", "connection", "cookie", "date", "digest", "etag", "expect", "forwarded",
        "host", "link", "location", "origin", "range", "refresh", "server", "te", "traceparent", "tracestate", "trailer",
        "upgrade", "vary", "via",
    )
)  # fmt: skip
_NO_HEADERS = frozenset(
    (
        "latin-1",
        "log-writer",
        "new-interceptor",
        "new-key",
        "no-cache",
        "no-referrer",
        "no-store",
        "same-origin",
        "utf-8",
        "path",
    )
)
"""Text in the code that only looks like a header's name."""


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def items() -> frozenset[str]:
    """All items."""
    found = [_classes, _hooks, _options, _keys, _headers, _metrics, _log_events, _error_types]
    return frozenset(item for kind in [*found, _commands] for item in kind())


def _classes() -> Iterator[str]:
    for module in _AUTHORS:
        yield from (f"class {module}.{name}" for name in importlib.import_module(module).__all__)
    yield from (f"class interceptors.dialects.mcp.{name}" for name in ("McpError", "McpMessage"))


def _hooks() -> Iterator[str]:
    """Attributes that an author overrides, sets or calls."""
    for module, names in _BASES.items():
        for name in names:
            cls = getattr(importlib.import_module(module), name)
            own = {*vars(cls), *vars(cls).get("__annotations__", {})}
            yield from (
                f"hook {name}.{attribute}" for attribute in own if not attribute.startswith("_")
            )
    for name in importlib.import_module("interceptors.dialects.mcp_hooks").__all__:
        if name.startswith("on_"):
            yield f"hook {name}"


def _options() -> Iterator[str]:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        yield f"use {point.name}"
        yield from (f"option {point.name}.{name}" for name in option_names(point.load()))


def _keys() -> Iterator[str]:
    return _walk(mi.type_info(Config), "", {})


def _walk(kind: mi.Type, path: str, extra: dict[str, Any]) -> Iterator[str]:
    while isinstance(kind, mi.Metadata):
        extra, kind = {**extra, **(kind.extra or {})}, kind.type
    if "record" in extra:
        kind = mi.type_info(extra["record"])
    match kind:
        case mi.UnionType():
            for one in kind.types:
                yield from _walk(one, path, extra)
        case mi.CollectionType():
            yield from _walk(kind.item_type, path, {})
        case mi.StructType():
            for field in kind.fields:
                name = f"{path}.{field.encode_name}".lstrip(".")
                yield f"key {name}"
                yield from _walk(field.type, name, {})


def _headers() -> Iterator[str]:
    """Names in the code as text, and those of docs/forwarding.md."""
    for path in _MODULES:
        if "bench" in path.parts or path.name in ("local_store.py", "demo.py"):
            continue
        other_text = {id(node.value) for node in _nodes(path) if isinstance(node, ast.Expr)}
        for node in _nodes(path):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "final_events":
                other_text.update(map(id, ast.walk(node.value)))  # names of events
        for node in _nodes(path):
            if isinstance(node, ast.Constant) and id(node) not in other_text:
                yield from (f"header {name}" for name in _names_in(node.value))
    page = (ROOT / "docs/forwarding.md").read_text(encoding="utf-8")
    for row in page.splitlines():
        if row.startswith("|"):
            yield from (
                f"header {name.lower()}"
                for name in re.findall(r"`([A-Z][a-z0-9]*(?:-[A-Z][A-Za-z0-9]*)*)`", row)
            )


def _names_in(value: object) -> Iterator[str]:
    words = (
        value.decode("latin-1").split()
        if isinstance(value, bytes)
        else value.split()
        if isinstance(value, str)
        else []
    )
    if all(_FIELD.fullmatch(word) or word in _WORDS for word in words):
        is_text = isinstance(value, str)
        yield from (
            word for word in words if word not in _NO_HEADERS and not (is_text and word in _WORDS)
        )


def _metrics() -> Iterator[str]:
    """The proxy's, which are on `/metrics` from the start, and the built-ins'."""
    metrics = Metrics(Pools(), ["/"])
    yield from (f"metric {metric.name}" for metric in metrics.registry.collect())
    for path in sorted((ROOT / "interceptors").rglob("*.py")):
        for node in _nodes(path):
            if (
                isinstance(node, ast.Call)
                and _called(node) in ("Counter", "Gauge", "Histogram", "Summary")
                and node.args
            ):
                yield f"metric {_text(node.args[0])}"


def _log_events() -> Iterator[str]:
    for path in _MODULES:
        for node in _nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                at = (
                    1
                    if node.func.attr == "write" and ast.unparse(node.func.value) == "_output"
                    else 0
                )
                is_log = node.func.attr in (*_LEVELS, "_log") or at == 1
                if is_log and (event := _text(node.args[at])) and re.fullmatch("[a-z_]+", event):
                    yield f"log {event}"
            if isinstance(node, ast.Dict) and path.name in (
                "logs.py",
                "exchange_log.py",
                "jsonl.py",
            ):
                fields = {
                    _text(key): value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if key is not None
                }
                if "event" in fields and (event := _text(fields["event"])):
                    yield f"log {event}"


def _error_types() -> Iterator[str]:
    """`type` in error bodies, of classes and of refusals."""
    for path in _MODULES:
        for node in _nodes(path):
            if isinstance(node, ast.ClassDef) and node.name != "UpstreamFailure":
                values = {
                    ast.unparse(item.targets[0]): _text(item.value)
                    for item in node.body
                    if isinstance(item, ast.Assign)
                }
                if values.get("kind"):
                    yield f"error {values['kind']}"
            is_refusal = isinstance(node, ast.Call) and _called(node) in (
                "RequestRefused",
                "refuse",
                "_refuse",
            )
            if is_refusal and len(node.args) > 1 and (kind := _text(node.args[1])):
                yield f"error {kind}"


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rsplit(".", 1)[-1]


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _commands() -> Iterator[str]:
    yield from _parser_items(command_line._parser(), "weirpool")


def _parser_items(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, sub in action.choices.items():
                yield f"command {command}"
                yield from _parser_items(sub, command)
        elif action.dest != "help":
            yield f"command {name} {max(action.option_strings, key=len, default=action.dest.upper())}"
