"""The built-in interceptors use only what a user's interceptor can use."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import interceptors
from interceptors import dialects

FOLDER = Path(interceptors.__file__).parent
BUILT_INS = (
    "api_keys", "audit", "guard", "mcp_lists", "mcp_policy", "rate_limit", "record", "redact", "replay",
)  # fmt: skip
MODULES = [
    *(f"interceptors.{name}" for name in BUILT_INS),
    *(
        f"interceptors.toolkit.{path.stem}"
        for path in sorted((FOLDER / "toolkit").glob("[!_]*.py"))
    ),
]
DOCUMENTED = {
    *interceptors.__all__,
    *dialects.__all__,
    *("INVALID_PARAMS", "METHOD_NOT_FOUND", "RESOURCE_NOT_FOUND", "McpError", "McpMessage"),
    *("McpInterceptor", "on_mcp_notification", "on_mcp_request"),
}
EXCEPTIONS = {
    "refuse_options": "several ValueErrors at once, as documented for any interceptor",
    "is_token": "the one token grammar (RFC 9110, section 5.6.2)",
    "unescape": "text without knowledge of events; the readers of dialects share it",
    "error_format": "the one place that knows which dialects are JSON-RPC",
    "has_mirrors": "the one place that knows the revisions of MCP",
    "StreamTail": "framing has one owner",
    "BodyEvent": "a filtered list that is a body must stay one before the hooks see it",
}


def imported(module: str) -> set[tuple[str, str]]:
    """Each module of `interceptors` that a module imports from, with the name."""
    found = set()
    made = import_module(module)
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(Path(str(made.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {(source, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    return {
        (source, name)
        for source, name in found
        if source.split(".")[0] in ("interceptors", "proxy")
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_built_in_uses_only_the_documented_api(module: str) -> None:
    """Names of the documented API, of other built-ins and of the toolkit, and what is listed."""
    wrong = {
        (source, name)
        for source, name in imported(module)
        if source not in MODULES and name not in DOCUMENTED and name not in EXCEPTIONS
    }
    assert wrong == set()


def test_every_exception_is_in_use() -> None:
    used = {name for module in MODULES for _, name in imported(module)}
    assert set(EXCEPTIONS) <= used
