"""`telemetry.genai`: what it reads of calls of models and of MCP servers, and that it changes
nothing and stops nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from providers.transcripts import load_cases
from structlog.testing import capture_logs
from support.client import fetch
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, Script, answering, open_upstream

from proxy.config import check_config

OWN = """
import msgspec
from interceptors import Interceptor, StreamInterceptor

class Own(Interceptor):
    wants_json = True

    def open_stream(self, context):
        return Stream(context)

class Stream(StreamInterceptor):
    needs = ()

    def __init__(self, context):
        self.context = context

    def on_end(self, outcome):
        operation = self.context.request.operation
        self.context.log.info("operation", **msgspec.structs.asdict(operation))
"""
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes:
    - {path: /openai, dialect: openai, upstream: up, strip_prefix: true, interceptors: [own]}
    - {path: /anthropic, dialect: anthropic, upstream: up, strip_prefix: true, interceptors: [own]}
    - {path: /mcp, dialect: mcp, upstream: up, interceptors: [own]}
    - {path: /plain, dialect: openai, upstream: up}
interceptors: [{name: own, use: "./own.py:Own"}]
telemetry: {genai: true, max_label_values: 2}
log: {level: info}
"""
CASES = {case.id: case for case in load_cases() if case.is_sse or case.is_json}
ASKED = b'{"model":"asked","messages":[]}'
KINDS = {
    "output_tokens": "output",
    "cache_read_tokens": "cached",
    "cache_write_tokens": "cache_written",
    "reasoning_tokens": "reasoning",
}


@asynccontextmanager
async def proxy_of(script: Script, tmp_path: Path, config: str = CONFIG) -> AsyncIterator[Proxy]:
    (tmp_path / "own.py").write_text(OWN)
    async with open_upstream(script) as up:
        (tmp_path / "weirpool.yaml").write_text(config % up.url)
        async with open_proxy(check_config(str(tmp_path / "weirpool.yaml")).require()) as proxy:
            yield proxy


async def from_the_zoo(peer: Peer) -> None:
    while True:
        case = CASES[(await peer.request()).all("x-case")[0].decode()]
        head = f"HTTP/1.1 {case.status} X\r\nContent-Length: {len(case.data)}\r\n"
        kind = f"Content-Type: {case.type}\r\n" if case.type else ""
        await peer.send(f"{head}{kind}\r\n".encode() + case.data)


async def test_a_call_is_recorded_as_the_provider_reports_it(tmp_path: Path) -> None:
    """Every transcript passes unchanged, and its record agrees with what `usage` and SDKs make of it."""
    wrong = []
    async with proxy_of(from_the_zoo, tmp_path) as proxy:
        for case in CASES.values():
            dialect = "anthropic" if case.api == "messages" else "openai"
            with capture_logs() as logs:
                answer = await fetch(
                    proxy.port,
                    f"/{dialect}{case.path}",
                    method="POST",
                    headers=[("X-Case", case.id), ("Content-Type", "application/json")],
                    body=ASKED,
                )
            assert answer.body == case.data, case.id
            (line,) = [line for line in logs if line["event"] == "operation"]
            expect, usage = case.expect, case.expect.usage or {}
            given = usage.get("input")
            if given is not None and case.api == "messages":
                given += usage.get("cached", 0) + usage.get("cache_written", 0)
            has_output = bool(expect.text or expect.thinking or expect.refusal or expect.tool_calls)
            found = {
                "model": expect.model in (None, line["response_model"]),
                "asked": line["request_model"] == "asked",
                "name": line["name"] in ("chat", "text_completion"),
                "finish": ",".join(line["finish_reasons"]) == (expect.finish or ""),
                "error": expect.failed or line["error_type"] == expect.error,
                "streams": line["streams"] == case.is_sse,
                "input": line["input_tokens"] == given,
                "first": (line["first_token_at"] is not None) or not (has_output and case.is_sse),
            } | {
                name: abs((line[name] or 0) - usage.get(kind, 0)) < 1
                for name, kind in KINDS.items()
            }
            wrong += [(case.id, name) for name, right in found.items() if not right]
    assert not wrong


def mcp_answer(**message: Any) -> bytes:
    body = json.dumps({"jsonrpc": "2.0", "id": 7, **message}).encode()
    head = b"HTTP/1.1 200 OK\r\nMcp-Session-Id: s1\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


MCP: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (
        {"id": 7, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1}}},
        {"result": {"content": [], "isError": False}},
        {"mcp_method": "tools/call", "tool": "add", "name": "execute_tool", "jsonrpc_id": "7"},
    ),
    (
        {"id": 7, "method": "tools/call", "params": {"name": "add"}},
        {"result": {"content": [], "isError": True}},
        {"tool": "add", "error_type": "tool_error"},
    ),
    (
        {"id": 7, "method": "prompts/get", "params": {"name": "explain"}},
        {"error": {"code": -32602, "message": "no"}},
        {"mcp_method": "prompts/get", "prompt": "explain", "error_type": "-32602"},
    ),
    (
        {"id": 7, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}},
        {"result": {}},
        {"mcp_method": "initialize", "protocol_version": "2025-06-18", "mcp_session": "s1"},
    ),
    ({"id": 7, "method": "tools/list"}, {"result": {"tools": []}}, {"mcp_method": "tools/list"}),
]


@pytest.mark.parametrize(("asked", "answer", "expected"), MCP)
async def test_a_call_of_a_tool_is_recorded(
    asked: dict[str, Any], answer: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
    body = json.dumps({"jsonrpc": "2.0", **asked}).encode()
    async with proxy_of(answering(mcp_answer(**answer)), tmp_path) as proxy:
        with capture_logs() as logs:
            await fetch(proxy.port, "/mcp", method="POST", headers=headers, body=body)
    (line,) = [line for line in logs if line["event"] == "operation"]
    assert {name: line[name] for name in expected} == expected
    assert "error_type" in expected or line["error_type"] is None
