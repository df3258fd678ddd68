"""A dialect is a file: every table has every dialect, and nothing else compares a dialect's name."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import get_args

import pytest

from interceptors import Request
from interceptors.dialects.answers import ANSWER_RULES
from interceptors.refusals import ERROR_FORMATS
from proxy.config import fields
from proxy.dialects import DIALECTS
from proxy.errors import RequestRefused

ROOT = Path(__file__).parents[4]
NAMES = set(get_args(fields.Dialect))
OWNERS = {
    *(ROOT / "proxy/dialects").glob("*.py"),
    ROOT / "proxy/config/fields.py",
    ROOT / "interceptors/refusals.py",
    ROOT / "interceptors/dialects/answers.py",
}
MODULES = [path for name in ("proxy", "interceptors") for path in (ROOT / name).rglob("*.py")]


def test_every_table_has_every_dialect() -> None:
    assert set(DIALECTS) == set(ANSWER_RULES) == set(ERROR_FORMATS) == NAMES
    assert all(dialect.name == name for name, dialect in DIALECTS.items())


def is_name(node: ast.AST) -> bool:
    """A dialect's name, a collection that has one, or an attribute or a variable `dialect`."""
    named = getattr(node, "attr", getattr(node, "id", "")) == "dialect"
    constants = [item.value for item in ast.walk(node) if isinstance(item, ast.Constant)]
    return named or any(isinstance(value, str) and value in NAMES for value in constants)


def choices(tree: ast.AST) -> list[int]:
    """The lines that choose by a dialect's name."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left, _, comparators):
                chosen = any(map(is_name, (left, *comparators)))
            case ast.Dict(keys):
                chosen = any(isinstance(key, ast.Constant) and key.value in NAMES for key in keys)
            case ast.MatchValue(value):
                chosen = is_name(value)
            case _:
                chosen = False
        if chosen:
            found.append(node.lineno)
    return found


def test_nothing_else_compares_a_dialects_name() -> None:
    code = ['x == "mcp"', 'x in ("generic", "abort")', "route.dialect == x", '{"openai": 1}[x]']
    for found in (*code, 'match x:\n case "mcp": pass'):
        assert choices(ast.parse(found))
    for path in MODULES:
        assert path in OWNERS or not choices(ast.parse(path.read_text())), path


REFUSAL = RequestRefused(504, "too_late", "it took too long")
PLAIN = {"type": "too_late", "message": "it took too long"}
OPENAI = {"message": "it took too long", "type": "server_error", "param": None, "code": "too_late"}
ANTHROPIC = {"type": "error", "error": {"type": "timeout_error", "message": "it took too long"}}
NUMBERED = {"type": "error", "code": "too_late", "message": "it took too long", "param": None}
NUMBERED |= {"sequence_number": 0, "error": OPENAI}


MCP = {"code": -32001, "message": "it took too long", "data": {"type": "too_late"}}
RPC = {"jsonrpc": "2.0", "id": None, "error": MCP}


@pytest.mark.parametrize(
    ("dialect", "path", "body", "event", "data"),
    [
        ("generic", "/", {"error": PLAIN}, "event: error\n", {"error": PLAIN}),
        ("abort", "/", {"error": PLAIN}, "event: error\n", {"error": PLAIN}),
        ("openai", "/v1/chat/completions", {"error": OPENAI}, "", {"error": OPENAI}),
        ("openai", "/v1/Responses", {"error": OPENAI}, "event: error\n", NUMBERED),
        ("anthropic", "/v1/messages", ANTHROPIC, "event: error\n", ANTHROPIC),
        ("mcp", "/mcp", RPC, None, None),
    ],
)
def test_errors(dialect: str, path: str, body: object, event: str | None, data: object) -> None:
    """The shapes, where no request is open."""
    chosen = DIALECTS[dialect]
    assert json.loads(chosen.error_body(REFUSAL, None)) == body
    text = f"{event}data: {json.dumps(data, separators=(',', ':'))}\n\n"
    expected = () if event is None else (text.encode(),)
    assert chosen.error_events(REFUSAL, Request(), path) == expected


FAMILIES: dict[int, tuple[str, str, int]] = {
    400: ("invalid_request_error", "invalid_request_error", -32600),
    401: ("invalid_request_error", "authentication_error", -32000),
    403: ("invalid_request_error", "permission_error", -32600),
    404: ("invalid_request_error", "not_found_error", -32600),
    408: ("invalid_request_error", "timeout_error", -32001),
    413: ("invalid_request_error", "request_too_large", -32600),
    429: ("rate_limit_error", "rate_limit_error", -32000),
    500: ("server_error", "api_error", -32603),
    502: ("server_error", "api_error", -32000),
    503: ("server_error", "overloaded_error", -32000),
    504: ("server_error", "timeout_error", -32001),
}


@pytest.mark.parametrize("status", FAMILIES)
def test_each_status_has_the_families_of_the_sdks(status: int) -> None:
    """OpenAI's type, Anthropic's type, JSON-RPC's code."""
    bodies = [
        json.loads(DIALECTS[name].error_body(RequestRefused(status, "k", "m"), None))["error"]
        for name in ("openai", "anthropic", "mcp")
    ]
    assert (bodies[0]["type"], bodies[1]["type"], bodies[2]["code"]) == FAMILIES[status]
