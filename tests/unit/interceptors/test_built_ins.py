"""The built-in interceptors use only what a user's interceptor can use, and refuse wrong options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import interceptors
from interceptors import LoadError, dialects
from interceptors.api_keys import hash_key
from interceptors.loader import load_interceptor

FOLDER = Path(interceptors.__file__).parent
BUILT_INS = (
    "api_keys", "audit", "budget", "budget_charge", "budget_limits", "guard", "mcp_lists", "mcp_policy", "rate_limit", "record", "redact", "replay",
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
    **dict.fromkeys(
        ("CallStream", "Metering", "ask_for_usage", "cut_name", "output_of", "read_call"),
        "the one reading of a call's tokens, shared with `usage`",
    ),
    "StreamTail": "framing has one owner",
    "BodyEvent": "a filtered list that is a body must stay one before the hooks see it",
}


def imported(module: str) -> Iterator[tuple[str, str]]:
    """Each module of the project that a module imports from, with the name."""
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(Path(str(import_module(module).__file__)).read_text())):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found = [(source, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        yield from (item for item in found if item[0].startswith(("interceptors", "proxy")))


@pytest.mark.parametrize("module", MODULES)
def test_a_built_in_uses_only_the_documented_api(module: str) -> None:
    """Names of the documented API, of other built-ins and of the toolkit, and what is listed."""
    allowed = {*DOCUMENTED, *EXCEPTIONS}
    assert [
        (source, name)
        for source, name in imported(module)
        if source not in MODULES and name not in allowed
    ] == []


def test_every_exception_is_in_use() -> None:
    used = {name for module in MODULES for _, name in imported(module)}
    assert set(EXCEPTIONS) <= used


KEY = "wk-ann-Zq3xV8"
HASH = hash_key(KEY)
KEYS = {"ann": HASH}
LIMITS = [{"per": "day", "tokens": 1}]
BAD_OPTIONS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "api_keys": [
        ({"keys": {}}, "keys: must have at least one client"),
        ({"keys": {"": HASH}}, "keys: a client's name is empty"),
        ({"keys": {"ann": []}}, r"keys\.ann: the list of hashes is empty"),
        ({"keys": {"ann": ""}}, r"keys\.ann: the list of hashes is empty"),
        ({"keys": {"ann": KEY}}, r"keys\.ann: expected \"sha256:\" and 64 hexadecimal digits.*weirpool new-key"),
        ({"keys": {"ann": HASH[7:]}}, r"keys\.ann: expected"),
        ({"keys": {"bob": [HASH, HASH[:-1]]}}, r"keys\.bob\[1\]: expected"),
        ({"keys": {"ann": HASH + "\n"}}, r"keys\.ann: expected"),
        ({"keys": {"ann": "md5:" + "0" * 64}}, r"keys\.ann: expected"),
        ({"keys": {"ann": HASH, "bob": "sha256:" + HASH[7:].upper()}}, r"keys\.bob: duplicate key: already assigned to 'ann'"),
        ({"keys": {"ann": [HASH, HASH]}}, r"keys\.ann\[1\]: duplicate key: already assigned to 'ann'"),
        ({"keys": KEYS, "upstream": "Bearer "}, "upstream: expected a header value"),
        ({"keys": KEYS, "upstream": ""}, "upstream: expected a header value"),
        ({"keys": KEYS, "upstream": "a\r\nx: y"}, "upstream: expected a header value"),
        ({"keys": KEYS, "upstream_header": f"x-api-key: {KEY}"}, "upstream_header: expected"),
        ({"keys": KEYS, "header": ""}, "header: expected a header name"),
        ({"keys": KEYS, "upstream_header": "Proxy-Authorization"}, "upstream_header: .* does not go upstream"),
        ({"keys": KEYS, "upstream_header": "Keep-Alive"}, "upstream_header: .* does not go upstream"),
        ({"keys": KEYS, "header": "Proxy-Authorization"}, "header: .* interceptors do not see it"),
        ({"keys": KEYS, "teams": {"": ["ann"]}}, "teams: a team's name is empty"),
        ({"keys": KEYS, "teams": {"red": ["bob"]}}, r"teams\.red\[0\]: 'bob' is not a client of `keys`"),
        ({"keys": KEYS, "teams": {"red": ["ann"], "blue": ["ann"]}}, r"teams\.blue\[0\]: 'ann' is in the team 'red' already"),
        ({"keys": KEYS, "on_error": "skip"}, "on_error: unknown option `on_error`"),
    ],
    "audit": [
        ({}, "path: missing"), ({"path": ""}, "path: must not be empty"), ({"path": "a", "keep": 0}, "keep: .* at least 1"),
        ({"path": "a", "max_bytes": 0}, "max_bytes: .* at least 1"), ({"path": "a", "events": "all"}, "events: must be one of"),
        ({"path": "a", "header": []}, "header: .* did you mean `headers`"),
        *(({"path": "a", "headers": ["accept", name]}, rf"headers\[1\]: '{name}' holds credentials") for name in (
            "Api-Key", "AUTHORIZATION", "cookie", "Proxy-Authorization", "Set-Cookie", "x-amz-security-token", "X-Api-Key",
            "X-Auth-Token", "X-Goog-Api-Key",
        )),
    ],
    "budget": [
        ({}, "limits: missing"), ({"limits": []}, "limits: must have at least one"),
        ({"limits": [{"tokens": 1}]}, r"limits\[0\]\.per: missing"),
        ({"limits": [{"per": "day"}]}, r"limits\[0\]: expected exactly one of tokens, requests and cost"),
        ({"limits": [{"per": "day", "tokens": 1, "requests": 1}]}, r"limits\[0\]: expected exactly one"),
        ({"limits": [{"per": "day", "tokens": -1}]}, r"limits\[0\]\.tokens: expected a number from 0"),
        ({"limits": [{"per": "day", "tokens": {}}]}, r"limits\[0\]\.tokens: the mapping is empty"),
        ({"limits": [{"per": "day", "tokens": {"a": 1, "b": -1}}]}, r"limits\[0\]\.tokens\.b: expected a number"),
        ({"limits": [{"per": "week", "tokens": 1}]}, r"limits\[0\]\.per: must be"),
        ({"limits": [{"per": "day", "tokens": 1}, {"per": "day", "tokens": 2}]}, r"limits\[1\]: the same budget as limits\[0\]"),
        ({"limits": [{"per": "day", "cost": 1}]}, r"limits\[0\]\.cost: requires `prices`"),
        ({"limits": LIMITS, "prices": {"m": {"input": -1, "output": 1}}}, r"prices\.m\.input: expected a number"),
        ({"limits": LIMITS, "prices": {"m": {"input": 1}}}, r"prices\.m\.output: missing"),
        ({"limits": LIMITS, "time_zone": "Mars/Base"}, "time_zone: 'Mars/Base' is not in this machine's"),
        ({"limits": LIMITS, "reserve_tokens": 0}, "reserve_tokens: expected a whole number"),
        ({"limits": LIMITS, "on_store_error": "shut"}, "on_store_error: must be"),
    ],
    "guard": [
        ({"patterns": []}, "patterns: the list is empty"), ({"patterns": ["a", "("]}, r"patterns\[1\]: missing \)"),
        ({"patterns": ["a*"]}, r"patterns\[0\]: the pattern matches the empty string"),
        ({"patterns": ["a"], "window": 0}, "window: expected"), ({"patterns": ["a"], "kinds": ["texts"]}, r"kinds\[0\]: must be"),
    ],
    "mcp_policy": [
        ({}, ": .*no rule"), ({"tools": {}}, ": .*no rule"), ({"tools": ["a"]}, "tools: must be a mapping"),
        ({"tools": {"alow": ["a"]}}, r"tools\.alow: unknown key `alow`: did you mean `allow`"),
        ({"tool": {"deny": ["a"]}}, "tool: unknown option `tool`: did you mean `tools`"),
        ({"prompts": {"deny": ["a", ""]}}, r"prompts\.deny\[1\]: the glob is empty"),
        ({"methods": {"allow": "ping"}}, r"methods\.allow: must be a list"),
    ],
    "rate_limit": [
        *(({"requests_per_minute": number}, "requests_per_minute: expected a number from 0.001 to 1000000")
          for number in (0, -1, float("nan"), float("inf"))),
        *(({"requests_per_minute": 1, "burst": burst}, "burst: expected a whole number from 1 to 1000000")
          for burst in (0, 10**7)),
        ({"requests_per_minute": 1, "max_clients": 0}, "max_clients: expected a whole number from 1 to"),
    ],
    "record": [
        ({}, "directory: missing"), ({"directory": ""}, "directory: must not be empty"),
        ({"directory": "t", "path": "t"}, "path: unknown option"),
    ],
    "redact": [
        ({"patterns": []}, "patterns: the list is empty"), ({"patterns": ["ok", "("]}, r"patterns\[1\]: missing \)"),
        ({"patterns": ["*"]}, r"patterns\[0\]: nothing to repeat"), ({"patterns": ["a"], "window": 0}, "window: expected"),
        ({"patterns": ["(a)", "b"], "replacement": r"\1"}, r"patterns\[1\]: invalid group reference"),
        ({"patterns": ["a"], "replacement": r"\q"}, r"patterns\[0\]: bad escape"),
        ({"patterns": ["a"], "replacement": r"\g<"}, r"patterns\[0\]: missing"),
        ({"patterns": ["a", "b*"]}, r"patterns\[1\]: the pattern can"),
    ],
    "replay": [({}, "path: missing"), *(({"path": "t", "speed": speed}, "speed: must be") for speed in (0, -1.5, "fast"))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [(use, *row) for use, rows in BAD_OPTIONS.items() for row in rows],
)
def test_wrong_options_have_their_path(use: str, options: dict[str, Any], message: str) -> None:
    """With what is expected there, when the configuration is loaded, and without a key."""
    with pytest.raises(LoadError) as caught:
        load_interceptor(use, options)
    shown = f"{caught.value.option}: {caught.value}"
    assert re.match(message, shown)
    assert KEY not in shown
