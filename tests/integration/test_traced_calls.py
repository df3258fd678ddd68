"""Traces of real SDKs' calls through `weirpool serve`: the attributes of OpenTelemetry's conventions for
generative AI and MCP, and the context at the server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from opentelemetry.context import attach, detach
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)
from support.collector import Collector, Span, open_collector
from support.llm_sdks import Call, observe
from support.llm_upstream import open_llm_upstream
from support.mcp_client import open_mcp_client
from support.mcp_server import open_mcp_server
from support.process import Process, port_of, running, serve

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"

CONFIG = """
telemetry: {{genai: true}}
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{up}"]}}]
  routes:
    - {{path: /v1/messages, upstream: up, dialect: anthropic}}
    - {{path: /mcp, upstream: up, dialect: mcp}}
    - {{path: /, upstream: up, dialect: openai}}
"""

USAGE = "gen_ai.usage."
CHAT = "chat.completions.create"
CALLS: list[tuple[Call, dict[str, Any], list[str]]] = [
    (
        Call(CHAT, "text"),
        {
            "gen_ai.response.model": "gpt-5-2025-08-07",
            "gen_ai.response.id": "chatcmpl-CfA2",
            "gen_ai.response.finish_reasons": ["stop"],
            f"{USAGE}input_tokens": 19,
            f"{USAGE}output_tokens": 202,
            f"{USAGE}cache_read.input_tokens": 0,
            f"{USAGE}reasoning.output_tokens": 192,
        },
        ["first_byte"],
    ),
    (
        Call(CHAT, "text", stream=True),
        {
            "gen_ai.response.model": "gpt-4o-2024-08-06",
            "gen_ai.response.id": "chatcmpl-CfA1",
            "gen_ai.response.finish_reasons": ["stop"],
            f"{USAGE}input_tokens": 1117,
            f"{USAGE}output_tokens": 16,
            f"{USAGE}cache_read.input_tokens": 1024,
            f"{USAGE}reasoning.output_tokens": 0,
        },
        ["first_byte", "first_token"],
    ),
    (
        Call("responses.create", "text", stream=True),
        {
            "gen_ai.response.model": "gpt-4.1-2025-04-14",
            "gen_ai.response.id": "resp_68f1",
            "gen_ai.response.finish_reasons": ["completed"],
            f"{USAGE}input_tokens": 1117,
            f"{USAGE}output_tokens": 9,
            f"{USAGE}cache_read.input_tokens": 1024,
            f"{USAGE}reasoning.output_tokens": 0,
        },
        ["first_byte", "first_token"],
    ),
    (Call(CHAT, "error-429"), {"error.type": "error_429"}, ["first_byte"]),
    (
        Call(CHAT, "lost", stream=True),
        {
            "gen_ai.response.model": "gpt-4o-2024-08-06",
            "gen_ai.response.id": "chatcmpl-CfA1",
            "error.type": "upstream_truncated",
        },
        ["first_byte", "first_token"],
    ),
    (
        Call("messages.create", "text"),
        {
            "gen_ai.response.model": "claude-sonnet-4-5-20250929",
            "gen_ai.response.id": "msg_01B",
            "gen_ai.response.finish_reasons": ["end_turn"],
            f"{USAGE}input_tokens": 21,
            f"{USAGE}output_tokens": 12,
            f"{USAGE}cache_read.input_tokens": 0,
            f"{USAGE}cache_write.input_tokens": 0,
        },
        ["first_byte"],
    ),
    (
        Call("messages.create", "text", stream=True),
        {
            "gen_ai.response.model": "claude-sonnet-4-5-20250929",
            "gen_ai.response.id": "msg_01A",
            "gen_ai.response.finish_reasons": ["end_turn"],
            f"{USAGE}input_tokens": 2541,
            f"{USAGE}output_tokens": 14,
            f"{USAGE}cache_read.input_tokens": 2400,
            f"{USAGE}cache_write.input_tokens": 120,
        },
        ["first_byte", "first_token"],
    ),
    (Call("messages.create", "error-529"), {"error.type": "error_529"}, ["first_byte"]),
]
CONVENTIONS = ("gen_ai.", "mcp.", "jsonrpc.", "rpc.", "error.")


@asynccontextmanager
async def traced(directory: Path, url: str) -> AsyncIterator[tuple[Process, str, Collector]]:
    """`weirpool serve` in front of `url`, exporting to a collector."""
    config = directory / "weirpool.yaml"
    config.write_text(CONFIG.format(up=url))
    async with open_collector() as collector:
        command = serve("--config", str(config))
        async with running(command, env=collector.environment) as process:
            yield process, f"http://127.0.0.1:{await port_of(process)}", collector


def attributes_of(span: Span) -> dict[str, Any]:
    return {name: value for name, value in span.attributes.items() if name.startswith(CONVENTIONS)}


async def test_the_call_of_a_model(tmp_path: Path) -> None:
    """OpenAI's and Anthropic's SDKs, streamed and unstreamed, well and badly."""
    async with open_llm_upstream() as llm, traced(tmp_path, llm.url) as (process, url, collector):
        for number, (call, expected, events) in enumerate(CALLS, start=1):
            with_context = {"default_headers": {"traceparent": PARENT}, "max_retries": 0}
            await observe("sync", url, [call], **with_context)
            line = (await process.event("exchange", number))[-1]
            span = await collector.find(lambda span, line=line: span.span_id == line["span_id"])  # type: ignore[misc]
            found = attributes_of(span)
            first_chunk_s = found.pop("gen_ai.response.time_to_first_chunk", None)
            common = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": call.provider,
                "gen_ai.request.model": call.model,
            }
            if call.stream:
                common["gen_ai.request.stream"] = True
            assert (call, found) == (call, common | expected)
            assert (first_chunk_s is not None) == call.stream
            assert (span.name, span.event_names) == (f"chat {call.model}", events)
            assert (span.trace_id, span.parent, span.error is not None) == (
                TRACE,
                SPAN,
                "error.type" in expected,
            )
            headers = dict(llm.upstream.requests[-1].headers)
            assert headers[b"traceparent"].decode() == f"00-{TRACE}-{span.span_id}-01"
        content = b"".join(request.body for request in collector.requests)
        assert b"What is a weir?" not in content  # the question


@contextmanager
def inside_a_span() -> Iterator[None]:
    """What a client with OpenTelemetry does around a call; the SDK then puts it into `_meta`."""
    context = SpanContext(int(TRACE, 16), int(SPAN, 16), is_remote=False, trace_flags=TraceFlags(1))
    token = attach(set_span_in_context(NonRecordingSpan(context)))
    try:
        yield
    finally:
        detach(token)


@pytest.mark.filterwarnings("default", "ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_the_call_of_a_tool(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MCP's SDK: the context in a message is the parent, and our span is that of the server."""
    async with open_mcp_server() as server, traced(tmp_path, server.url) as (_, url, collector):
        async with open_mcp_client(url, revision, monkeypatch) as client:
            with inside_a_span():
                assert (await client.call_tool("add", {"a": 19, "b": 23})).content
                await client.call_tool("fail", {})
                await client.get_prompt("explain", {"word": "weir"})
                with pytest.raises(MCPError):
                    await client.get_prompt("nothing", {})
            assert (await client.call_tool("add", {"a": 1, "b": 2})).content
        found = {
            name: await collector.find(lambda span, name=name: span.name == name)  # type: ignore[misc]
            for name in (
                *(
                    "tools/call add",
                    "tools/call fail",
                    "prompts/get explain",
                    "prompts/get nothing",
                ),
            )
        }
        last = await collector.find(
            lambda span: span.name == "tools/call add" and span.trace_id != TRACE
        )
    code = "-32603" if revision == "2026-07-28" else "0"
    wanted = {
        "tools/call add": {"gen_ai.tool.name": "add", "gen_ai.operation.name": "execute_tool"},
        "tools/call fail": {
            "gen_ai.tool.name": "fail",
            "gen_ai.operation.name": "execute_tool",
            "error.type": "tool_error",
        },
        "prompts/get explain": {"gen_ai.prompt.name": "explain"},
        "prompts/get nothing": {
            "gen_ai.prompt.name": "nothing",
            "error.type": code,
            "rpc.response.status_code": code,
        },
    }
    sessions = set()
    for name, span in found.items():
        attributes = attributes_of(span)
        sessions.add(attributes.pop("mcp.session.id", None))
        assert attributes.pop("jsonrpc.request.id")
        common = {"mcp.method.name": name.split()[0], "mcp.protocol.version": revision}
        assert (name, attributes) == (name, common | wanted[name])
        assert (span.trace_id, span.parent) == (TRACE, SPAN)
        assert f"00-{TRACE}-{span.span_id}-01" in server.traceparents
    assert server.traced == [
        f"{TRACE}-{found['tools/call add'].span_id}",
        f"{last.trace_id}-{last.span_id}",
    ]
    assert last.parent == ""
    assert [len(str(item)) for item in sessions] == [16 if revision < "2026" else 4]
