"""`telemetry.genai`: what it reads of calls of models and of MCP servers, and that it changes
nothing and stops nothing.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from providers.transcripts import load_cases
from structlog.testing import capture_logs
from support.client import fetch, open_client
from support.interceptors import Log
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


SECONDS = [0.01 * 2**power for power in range(14)]
MCP_SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
SERVER = {"server.address", "server.port"}
CALL = SERVER | {
    *("gen_ai.operation.name", "gen_ai.provider.name"),
    *("gen_ai.request.model", "gen_ai.response.model"),
}
MCP_CALL = SERVER | {"mcp.method.name", "gen_ai.operation.name", "gen_ai.tool.name", "error.type"}
CONVENTIONS = {
    "gen_ai.client.operation.duration": ("s", CALL | {"error.type"}, SECONDS),
    "gen_ai.client.token.usage": (
        "{token}",
        CALL | {"gen_ai.token.type"},
        [4**power for power in range(14)],
    ),
    "gen_ai.client.operation.time_to_first_chunk": ("s", CALL, SECONDS),
    "gen_ai.client.operation.time_per_output_chunk": ("s", CALL, SECONDS),
    "gen_ai.server.request.duration": ("s", CALL | {"error.type"}, SECONDS),
    "gen_ai.server.time_to_first_token": (
        "s",
        CALL,
        [
            *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
            *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        ],
    ),
    "gen_ai.server.time_per_output_token": (
        "s",
        CALL,
        [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5],
    ),
    "mcp.client.operation.duration": ("s", MCP_CALL, MCP_SECONDS),
    "mcp.server.operation.duration": ("s", MCP_CALL, MCP_SECONDS),
}
"""Units, attributes and buckets, as OpenTelemetry's conventions give them in Markdown."""


def prometheus_name(name: str, unit: str) -> str:
    """A metric's name by OpenTelemetry's rules for Prometheus: no unit in braces."""
    return name.replace(".", "_") + ("_seconds" if unit == "s" else "")


STREAM = b"".join(
    b"data: " + json.dumps({"id": "c1", "model": "m-1", **fields}).encode() + b"\n\n"
    for fields in (
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
    )
)


async def models(peer: Peer) -> None:
    """Answers with a stream; a model called `no...` does not exist."""
    while True:
        request = await peer.request()
        if json.loads(request.body).get("jsonrpc"):
            await peer.send(mcp_answer(result={"isError": False}))
        elif json.loads(request.body)["model"].startswith("no"):
            body = b'{"error":{"type":"not_found","message":"no"}}'
            head = b"HTTP/1.1 404 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            await peer.send(head % len(body) + body)
        else:
            await peer.start_stream()
            for event in STREAM.split(b"\n\n")[:-1]:
                await peer.chunk(event + b"\n\n")
            await peer.end()


async def page_of(proxy: Proxy) -> dict[str, Metric]:
    page = (await fetch(proxy.port, "/metrics")).body.decode()
    return {family.name: family for family in text_string_to_metric_families(page)}


def counts(family: Metric, label: str) -> Counter[str]:
    """The number of values, by one label."""
    found: Counter[str] = Counter()
    for sample in family.samples:
        if sample.name.endswith("_count"):
            found[sample.labels[label]] += int(sample.value)
    return found


async def test_metrics_have_the_names_of_the_conventions(tmp_path: Path) -> None:
    """With their labels and buckets. A failed call takes no label, and later models are `other`."""
    published = {
        value
        for name in ("gen_ai_metrics", "mcp_metrics")
        for value in vars(
            importlib.import_module(f"opentelemetry.semconv._incubating.metrics.{name}")
        ).values()
        if isinstance(value, str)
    }
    assert published >= set(CONVENTIONS)
    asked = ["no-1", "no-2", "m-1", "m-2", "m-3", "m-2", "no-3"]
    async with proxy_of(models, tmp_path) as proxy:
        headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
        for model in asked:
            body = json.dumps({"model": model, "stream": True}).encode()
            path = "/openai/v1/chat/completions"
            await fetch(proxy.port, path, method="POST", headers=headers, body=body)
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "add"}}
        body = json.dumps(call).encode()
        await fetch(proxy.port, "/mcp", method="POST", headers=headers, body=body)
        page = await page_of(proxy)
    for name, (unit, attributes, bounds) in CONVENTIONS.items():
        family = page[prometheus_name(name, unit)]
        samples = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        labels = {attribute.replace(".", "_") for attribute in attributes}
        assert {frozenset(sample.labels) for sample in samples} == {frozenset({*labels, "le"})}
        assert {float(sample.labels["le"]) for sample in samples} == {*bounds, float("inf")}
    duration = page["gen_ai_client_operation_duration_seconds"]
    assert counts(duration, "gen_ai_request_model") == {"m-1": 1, "m-2": 2, "other": 4}
    assert counts(duration, "gen_ai_response_model") == {"m-1": 4, "": 3}
    assert counts(duration, "error_type") == {"": 4, "not_found": 3}
    assert counts(duration, "server_address") == {"127.0.0.1": 7}
    tokens = page["gen_ai_client_token_usage"]
    assert counts(tokens, "gen_ai_token_type") == {"input": 4, "output": 4}
    total = sum(sample.value for sample in tokens.samples if sample.name.endswith("_sum"))
    assert total == 4 * (5 + 2)
    for name, each in {
        "gen_ai_client_operation_time_to_first_chunk_seconds": 1,
        "gen_ai_client_operation_time_per_output_chunk_seconds": 4,
        "gen_ai_server_request_duration_seconds": 1,
        "gen_ai_server_time_to_first_token_seconds": 1,
        "gen_ai_server_time_per_output_token_seconds": 1,
    }.items():
        assert counts(page[name], "gen_ai_response_model")["m-1"] == 4 * each, name
    for name in ("mcp_client_operation_duration_seconds", "mcp_server_operation_duration_seconds"):
        assert counts(page[name], "gen_ai_tool_name") == {"add": 1}


RESULT = b'event: message\ndata: {"jsonrpc":"2.0","id":7,"result":{"content":[]}}\n\n'
OTHER = RESULT.replace(b'"id":7', b'"id":8')
PROGRESS = b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{"result":1}}\n\n'


@pytest.mark.parametrize(
    ("path", "sent", "error"),
    [
        ("/mcp", PROGRESS + RESULT, ""),
        ("/mcp", PROGRESS, "client_disconnected"),
        ("/mcp", OTHER, "client_disconnected"),
        ("/openai/v1/chat/completions", STREAM, ""),
        (
            "/openai/v1/chat/completions",
            STREAM[: STREAM.index(b"finish")].rpartition(b"data:")[0],
            "client_disconnected",
        ),
    ],
)
async def test_a_client_that_leaves_after_the_answer_is_no_failure(
    path: str, sent: bytes, error: str, tmp_path: Path
) -> None:
    """SDKs leave before the stream has ended: MCP's after the result, OpenAI's after `[DONE]`."""

    async def stays_open(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(sent)
        await peer.wait_closed()

    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "add"}}
    async with proxy_of(stays_open, tmp_path) as proxy:
        client = await open_client(proxy.port)
        headers = [("Content-Type", "application/json"), ("Accept", "text/event-stream")]
        await client.send("POST", path, headers, json.dumps({**call, "model": "m-1"}).encode())
        with trio.fail_after(10):
            await client.read_until(await client.head(), sent)
        await client.aclose()
        name = "mcp" if path == "/mcp" else "gen_ai"
        with trio.fail_after(10):
            while not (
                page := counts(
                    (await page_of(proxy))[f"{name}_client_operation_duration_seconds"],
                    "error_type",
                )
            ):
                await trio.sleep(0.01)
    assert page == {error: 1}


async def test_a_failed_call_has_the_error_type_of_its_log_line(log: Log, tmp_path: Path) -> None:
    """So that an operator finds in the log what a metric shows."""

    async def stays_open(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(STREAM[: STREAM.index(b"finish")].rpartition(b"data:")[0])
        await peer.wait_closed()

    config = CONFIG.replace("reverse_proxy:", "reverse_proxy:\n  timeouts: {total: 1}")
    async with proxy_of(stays_open, tmp_path, config) as proxy:
        path = "/openai/v1/chat/completions"
        headers = [("Content-Type", "application/json")]
        with suppress(ConnectionError, trio.BrokenResourceError):
            await fetch(proxy.port, path, method="POST", headers=headers, body=ASKED)
        page = await page_of(proxy)
    assert [line["error_type"] for line in log if line["event"] == "exchange"] == ["total_timeout"]
    errors = counts(page["gen_ai_client_operation_duration_seconds"], "error_type")
    assert errors == {"total_timeout": 1}


async def test_notifications_do_not_use_up_labels(tmp_path: Path) -> None:
    """Servers accept notifications of any name, and CONFIG has only two labels."""
    sent = [{"method": f"x{number}"} for number in range(3)]
    sent += [{"method": "tools/call", "params": {"name": f"t{number}"}} for number in range(3)]
    sent += [{"method": "notifications/initialized"}]
    sent += [{"method": "tools/call", "id": 7, "params": {"name": "add"}}]
    async with proxy_of(models, tmp_path) as proxy:
        headers = [("Content-Type", "application/json"), ("Accept", "application/json")]
        for message in sent:
            body = json.dumps({"jsonrpc": "2.0", **message}).encode()
            await fetch(proxy.port, "/mcp", method="POST", headers=headers, body=body)
        family = (await page_of(proxy))["mcp_client_operation_duration_seconds"]
    methods = {"other": 6, "notifications/initialized": 1, "tools/call": 1}
    assert counts(family, "mcp_method_name") == methods
    assert counts(family, "gen_ai_tool_name") == {"": 4, "other": 3, "add": 1}
