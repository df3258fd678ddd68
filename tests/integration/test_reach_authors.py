"""Every class, hook and attribute of the plug-in API, from a file named in a configuration.

A case: a class of `surface/authors.py`, the items of `tests/reach.txt` that it covers, and what a
client sees.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import yaml
from support.client import fetch
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from interceptors import (
    EventTooLarge,
    HookError,
    InterceptorError,
    Request,
    ResponseHead,
    StreamAborted,
)
from interceptors.loader import load_interceptor
from interceptors.testing import ChainResult, run_chain, run_json, run_request, run_response
from proxy.commands.cli import main
from proxy.config import check_config

AUTHORS = (Path(__file__).parents[1] / "surface" / "authors.py").read_text()
STREAM = b"data: one\n\ndata: two\n\n"
LARGE = b"data: %s\n\n" % (b"x" * 400)


def chat(*deltas: Any) -> bytes:
    """A stream with these deltas, or whole messages if they have no index."""
    messages = [item if "index" not in item else {"choices": [item]} for item in deltas]
    messages[0]["model"] = "m-1"
    return b"".join(b"data: %s\n\n" % json.dumps(item).encode() for item in messages)


def call(name: str, **more: Any) -> Any:
    function = {"index": 0, "function": {"name": name, "arguments": "{}"}, **more}
    return {"index": 0, "delta": {"tool_calls": [function]}}


CALLED = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
CONTINUED = {"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}
CHAT = chat(
    {"index": 0, "delta": {"content": "a"}},
    call("f", id="c", type="function"),
    CALLED,
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    {"error": {"message": "over", "type": "server_error"}},
)
NOTICE, RESULT = (
    '{"jsonrpc":"2.0","method":"notifications/x"}',
    '{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}',
)
ANSWERS = {
    "stream": STREAM,
    "large": LARGE,
    "chat/completions": CHAT,
    "twice/chat/completions": chat(
        call("g", id="c"), CALLED, {"index": 0, "delta": CONTINUED}, CALLED
    ),
    "mcp": f"data: {NOTICE}\n\ndata: {RESULT}\n\n".encode(),
}
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"rm"}}'
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
MCP = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]


async def upstream(peer: Peer) -> None:
    """An event stream by the target; for `/json`, a JSON body with the header `x-word`."""
    while True:
        request = await peer.request()
        target = request.target.partition(b"?")[0].split(b"/", 2)[2].decode()
        if target == "json":
            word = b"".join(request.all("x-word")).decode()
            body = json.dumps({"word": word}).encode()
            lines = (
                b"HTTP/1.1 200 OK",
                b"Content-Type: application/json",
                b"Content-Length: %d" % len(body),
            )
            await peer.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        else:
            await peer.start_stream()
            await peer.chunk(ANSWERS[target])
            await peer.end()


class Case(NamedTuple):
    use: str
    items: str
    """Of `tests/reach.txt`."""
    path: str
    seen: bytes
    """In the answer: a pattern."""
    logged: list[dict[str, Any]] = []  # noqa: RUF012
    """Of lines of the log: some of their fields."""
    headers: list[tuple[str, str]] = []  # noqa: RUF012
    body: bytes | None = None
    dialect: str = "generic"
    status: int = 200


CASES = [
    Case("Answers", "Interceptor.on_request Interceptor.wants_body Interceptor Request Response Headers", "/json",
         rb"x-answered: word\n.*HELLO", headers=[("x-word", "word")], body=b"hello"),
    Case("Replaces", "Interceptor.on_response ResponseHead", "/stream", rb'{"was":"text/event-stream","for":"/.*/stream"}'),
    Case("Refuses", "Response", "/stream", b'retry-after: 1\n.*"type":"not_here","message":"not GET"', status=403),
    Case("Later", "Response", "/stream", b"\n\ndata: a\n\n$"),
    Case("Lives", "Interceptor.lifespan", "/stream", rb"x-word: alive\n"),
    Case("Counts", "Interceptor.collectors", "/stream", STREAM),
    Case("TooSlow", "Interceptor.hook_timeout_s", "/stream", b"interceptor_failed", status=502),
    Case("Changes", "Interceptor.on_error OnError", "/json", b'x-seen: yes\n.*"word": "set before"',
         [{"event": "interceptor_failed"}, {"event": "seen"}], status=201),
    Case("SeesJson", "Interceptor.wants_json Interceptor.open_stream", "/json", rb'{"is_body":true,"was":{"word":""}}'),
    Case("Needles", "StreamInterceptor.needs Needs Event EventResult", "/stream", b"data: one\n\ndata: found two\n\n"),
    Case("Whole", "StreamInterceptor.on_start StreamInterceptor.on_event StreamInterceptor.on_complete StreamInterceptor.on_end "
         "StreamInterceptor StreamContext Outcome", "/stream", rb'\n\ndata: \["start 200","one","two"\]\n\n$',
         [{"event": "reached_end", "completed": True, "name": "completed"}]),
    Case("AsyncWhole", "AsyncStreamInterceptor.on_start AsyncStreamInterceptor.on_event AsyncStreamInterceptor.on_complete "
         "AsyncStreamInterceptor.on_end AsyncStreamInterceptor.needs AsyncStreamInterceptor StreamOver", "/stream",
         rb'data: two\n\ndata: \["start 200","two"\]\n\n$', [{"event": "reached_end", "completed": True, "over": True}]),
    Case("LetsPass", "StreamInterceptor.passes_unseen", "/large", LARGE),
    Case("MustSee", "EventTooLarge StreamInterceptor.passes_unseen", "/large", b"event_too_large"),
    Case("AsyncLetsPass", "AsyncStreamInterceptor.passes_unseen", "/large", LARGE),
    Case("Returns", "End", "/stream", rb"\n\ndata: one\n\ndata: changed\n\ndata: \[1\]\n\ndata: two\n\ndata: the last\n\n$"),
    Case("Aborts", "Abort StreamAborted", "/stream", b"enough of this"),
    Case("Fails", "HookError", "/stream", b"the interceptor 'Fails' failed"),
    Case("ReadsJson", "NotJson InterceptorError", "/stream", b"data: NotJson NotJson\n\n"),
    Case("Keeps", "StaleEvent", "/stream", b"data: one\n\ndata: stale\n\n"),
    Case("Says", "MessageInterceptor.open_messages MessageInterceptor MessageStream MessageStream.on_text_delta "
         "MessageStream.sees_other_texts MessageStream.model TextDelta Kind Block Part MessageStream.on_text_end TextEnd "
         "MessageStream.on_tool_call_delta ToolCallDelta MessageStream.on_tool_call ToolCall MessageStream.has_waiting "
         "MessageStream.on_finish Finish MessageStream.on_usage Usage MessageStream.on_provider_error ProviderError "
         "MessageStream.on_unread Unread MessageInterceptor.open_stream MessageInterceptor.wants_json "
         "MessageInterceptor.wants_dialect MessageStream.on_event MessageStream.on_complete", "/chat/completions", re.escape(CHAT),
         [{"part": "TextDelta", "said": ["text", "a", "m-1"]}, {"part": "TextEnd", "said": "text"},
          {"part": "ToolCallDelta", "said": "{}"}, {"part": "ToolCall", "said": ["f", False]},
          {"part": "Finish", "said": "tool_calls"}, {"part": "Usage", "said": [1, 2]},
          {"part": "ProviderError", "said": "over"}, {"part": "Unread"}, {"event": "reached", "opened": "/NUMBER/chat/completions"}]),
    Case("Holds", "MessageStream.holds_tool_calls", "/chat/completions", b"no such tool for you"),
    Case("Holds", "DialectError", "/twice/chat/completions", b"interceptor_failed", [{"event": "exchange"}]),
    Case("Finishes", "MessageStream.finish", "/chat/completions", rb'cut at a.*"finish_reason":"length".*\[DONE\]\n\n$'),
    Case("Reads", "OpenAIChatReader AnthropicReader OpenAIResponsesReader Reader Made", "/stream",
         rb'data: \[\["Hi","Made"\],\["Hi","Made"\],\["Hi","Made"\]\]'),
    Case("Mcp", "on_mcp_request McpError McpMessage", "/mcp", b'"code":-32602,"message":"not rm"', headers=MCP, body=CALL,
         dialect="mcp"),
    Case("Mcp", "on_mcp_response", "/mcp", rb'"tools":\[{"name":"renamed"}\]', headers=MCP, body=LIST, dialect="mcp"),
    Case("Mcp", "on_mcp_notification", "/mcp", rb'\n\ndata: {"jsonrpc":"2.0","id":1', headers=MCP, body=LIST, dialect="mcp"),
    Case("Mcp", "McpInterceptor.strict", "/mcp", b"-32700", headers=MCP, body=b"no JSON", status=400),
    Case("LaxMcp", "McpInterceptor.on_request McpInterceptor.wants_body", "/json",
         b'"word": "asked"', headers=MCP, body=b"no JSON"),
    Case("LaxMcp", "McpInterceptor.on_response McpInterceptor.open_stream McpInterceptor.wants_json", "/mcp",
         rb"x-answered: answered\n", [{"event": "reached", "opened": "POST"}], headers=MCP, body=LIST),
]  # fmt: skip


def written(
    directory: Path,
    url: str,
    routes: list[dict[str, Any]],
    *,
    options: Any = None,
    **of_upstream: Any,
) -> str:
    """A configuration with these routes, beside the file of `AUTHORS`."""
    (directory / "authors.py").write_text(AUTHORS)
    used = dict.fromkeys(name for route in routes for name in route["interceptors"])
    config = {
        "reverse_proxy": {
            "upstreams": [{"name": "up", "endpoints": [url], **of_upstream}],
            "routes": [{"upstream": "up", **route} for route in routes],
            "limits": {"max_event_bytes": 256},
            "leak_detection": "paranoid",
        },
        "interceptors": [
            {
                "name": name,
                "use": f"./authors.py:{name}",
                **({"options": options} if options else {}),
            }
            for name in used
        ],
        "log": {"level": "error"},
    }
    (directory / "weirpool.yaml").write_text(yaml.safe_dump(config))
    return str(directory / "weirpool.yaml")


async def test_what_an_author_writes(tmp_path: Path, log: list[dict[str, object]]) -> None:
    """The class is named in YAML; the client and the log show what it does."""
    routes = [
        {"path": f"/{number}", "interceptors": [case.use], "dialect": case.dialect}
        for number, case in enumerate(CASES)
    ]
    async with open_upstream(upstream) as up:
        config = check_config(written(tmp_path, up.url, routes)).require()
        async with open_proxy(config) as proxy:
            for number, case in enumerate(CASES):
                log.clear()
                with trio.fail_after(10):
                    answer = await fetch(
                        proxy.port,
                        f"/{number}{case.path}",
                        method="GET" if case.body is None else "POST",
                        headers=case.headers,
                        body=case.body,
                    )
                    while proxy.worker.live:
                        await trio.sleep(0.001)
                shown = (
                    b"".join(b"%s: %s\n" % field for field in answer.headers) + b"\n" + answer.body
                )
                assert answer.status == case.status, (case, shown)
                assert re.search(case.seen, shown, re.DOTALL), (case, shown)
                lines = [
                    {key: _without(number, value) for key, value in line.items()} for line in log
                ]
                for fields in case.logged:
                    assert any(fields.items() <= line.items() for line in lines), (fields, lines)
            page = (await fetch(proxy.port, "/metrics")).body
    assert b'\nreached_total{interceptor="Counts"} 1.0\n' in page


def _without(number: int, value: object) -> object:
    return value.replace(f"/{number}/", "/NUMBER/") if isinstance(value, str) else value


DECLARED: dict[str, tuple[list[str], dict[str, Any], int, str]] = {
    "Interceptor.needs_state Interceptor.sets_state": (
        ["NeedsName", "SetsName"], {}, 2, 'error: .*"NeedsName" needs request.state["name"]'
    ),
    "Interceptor.uses_state": (
        ["UsesName", "SetsName"], {}, 0, 'warning: .*"UsesName" uses request.state["name"], which "SetsName" sets only after it'
    ),
    "Interceptor.sets_headers": (
        ["SetsHeader"], {"headers": {"remove": ["x-word"]}}, 2, 'error: .*"SetsHeader" sets x-word, which headers.remove'
    ),
    "Interceptor.wants_dialect": (["WantsDialect"], {}, 0, "warning: .*without a dialect"),
    "LoadError": (
        ["WrongOption"], {"options": {"colour": "red"}}, 2, "error: .*interceptors[0].options.colour: must be a colour"
    ),
}  # fmt: skip


@pytest.mark.parametrize("items", DECLARED)
def test_what_an_author_declares(
    items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`weirpool check` compares it with the configuration."""
    used, more, status, printed = DECLARED[items]
    routes = [{"path": "/", "interceptors": used}]
    assert main(["check", written(tmp_path, "http://127.0.0.1:9", routes, **more)]) == status
    error = capsys.readouterr().err
    assert re.search(re.escape(printed).replace(r"\.\*", ".*"), error), error


def test_what_the_test_of_an_author_gets(tmp_path: Path) -> None:
    """`interceptors.testing` with classes of a file: output and failures."""
    (tmp_path / "authors.py").write_text(AUTHORS)

    def loaded(use: str) -> Any:
        return load_interceptor(f"{tmp_path / 'authors.py'}:{use}", {})

    result = run_chain([loaded("Needles")], [STREAM])
    assert isinstance(result, ChainResult)
    assert result.output == b"data: one\n\ndata: found two\n\n"
    failures: dict[str, type[InterceptorError]] = {
        "Fails": HookError,
        "Aborts": StreamAborted,
        "MustSee": EventTooLarge,
    }
    for use, failure in failures.items():
        limit = 256 if use == "MustSee" else 1024
        assert type(run_chain([loaded(use)], [LARGE], max_event_bytes=limit).failure) is failure
    head = ResponseHead(200, [(b"content-type", b"text/event-stream")])
    body = run_json([loaded("SeesJson")], b'{"a":1}')
    assert body == b'{"is_body":true,"was":{"a":1}}'
    request = Request(method="POST", headers={"x-word": "word"}, body=b"hello")
    answered = run_request([loaded("Answers")], request)
    assert answered is not None
    assert (answered.body, answered.headers["x-answered"]) == (b"HELLO", "word")
    replaced = run_response([loaded("Replaces")], head)
    assert replaced is not None
    assert replaced.body == b'{"was":"text/event-stream","for":"/"}'
