"""Every built-in and every option of one, from YAML, in a running proxy: what a client, a file or
the page of metrics shows of it.

One proxy has a route for each case. A new option needs a case here, and a line in
`tests/reach.txt`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import trio
import yaml
from support.client import Answer, fetch
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

from interceptors.api_keys import hash_key
from proxy.config import parse_config


def chat(*texts: str, model: str = "m-1", usage: bool = True) -> bytes:
    messages: list[dict[str, Any]] = [
        {"model": model, "choices": [{"index": 0, "delta": {"content": text}}]} for text in texts
    ]
    messages.append(
        {"model": model, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    )
    if usage:
        messages.append(
            {"model": model, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        )
    return (
        b"".join(b"data: %s\n\n" % json.dumps(item).encode() for item in messages)
        + b"data: [DONE]\n\n"
    )


ANSWERS = {
    b"": chat("the key is sk-1234567", "890 and on"), b"other": chat("hello", model="m-2"),
    b"long": chat("begin" + 60 * "-", "end"), b"untold": chat("hello", usage=False),
}  # fmt: skip
KEY, SECOND, THIRD = "wk-ann-Zq3xV8", "wk-bob-Kd93mW", "wk-cat-7sQ0bN"
KEYS = {"ann": hash_key(KEY), "bob": hash_key(SECOND), "cat": hash_key(THIRD)}
ANN, BOB, CAT = ([("x-api-key", key)] for key in (KEY, SECOND, THIRD))
JSON = ("content-type", "application/json")
MCP = [JSON, ("accept", "application/json, text/event-stream")]
TAPE = (
    b'{"weirpool_tape":1,"method":"GET","path":"/","status":200,"headers":{"content-type":"text/event-stream"}}\n'
    b'{"at":%d,"data":"played"}\n{"at":%d,"end":"completed"}\n'
)


async def upstream(peer: Peer) -> None:
    """An answer of a model, by the query; its head repeats the request's fields and body."""
    while True:
        request = await peer.request()
        got = [b"X-Got-%s: %s" % field for field in request.headers]
        await peer.start_stream(*got, b"X-Got-Body: " + request.body)
        await peer.chunk(ANSWERS[request.target.partition(b"?")[2]])
        await peer.end()


class Ask(NamedTuple):
    query: str = ""
    headers: list[tuple[str, str]] = []  # noqa: RUF012
    body: bytes | None = None


class Case(NamedTuple):
    items: str
    """Of `tests/reach.txt`."""
    chain: dict[str, dict[str, Any]]
    asks: list[Ask]
    seen: str
    """In what the last of the requests gets: a pattern. With `file`: in that file."""
    file: str = ""
    dialect: str = "openai"


def rpc(method: str, **params: str) -> Ask:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    return Ask(headers=MCP, body=body)


BODY = b'{"model":"m-1","stream":true}'
OFTEN = {"requests_per_minute": 0.001}
EACH = {"keys": KEYS}
CASES = [
    Case("redact.patterns", {"redact": {"patterns": ["sk-[0-9]+"]}}, [Ask()], r'is ".*"\[redacted\]'),
    Case("redact.replacement", {"redact": {"patterns": ["sk-[0-9]+"], "replacement": "<gone>"}}, [Ask()], '"<gone>'),
    Case("redact.window", {"redact": {"patterns": ["sk-[0-9]{10}"], "window": 5}}, [Ask()], "sk-12"),
    Case("guard.patterns", {"guard": {"patterns": ["sk-"]}}, [Ask()], "the key is .*content_filter"),
    Case("guard.message", {"guard": {"patterns": ["sk-"], "message": "(stopped)"}}, [Ask()], r"\(stopped\)"),
    Case("guard.reason", {"guard": {"patterns": ["sk-"], "reason": "length"}}, [Ask()], '"finish_reason": ?"length"'),
    Case("guard.kinds", {"guard": {"patterns": ["sk-"], "kinds": ["tool_call"]}}, [Ask()], "sk-1234567.*890"),
    Case("guard.window", {"guard": {"patterns": ["begin-+end"], "window": 3}}, [Ask("long")], '"end"'),
    Case("usage.ask", {"usage": {"ask": True}}, [Ask(headers=[JSON], body=BODY)], 'x-got-body: .*"include_usage": ?true'),
    Case("usage.max_models", {"usage": {"max_models": 1}}, [Ask(body=BODY), Ask("other", body=BODY)],
         'weirpool_llm_requests_total{client="-",interceptor="usage-models",model="other",route="[^"]*"} 1.0', "metrics"),
    Case("usage.max_clients", {"api_keys": EACH, "usage": {"max_clients": 1}}, [Ask("", ANN, BODY), Ask("", BOB, BODY)],
         'weirpool_llm_requests_total{client="other",interceptor="[^"]*",model="m-1",route="[^"]*"} 1.0', "metrics"),
    Case("api_keys.keys", {"api_keys": EACH}, [Ask(headers=[("x-api-key", "wk-nobody")])], "^401.*invalid_api_key"),
    Case("api_keys.upstream", {"api_keys": {**EACH, "upstream": "Bearer u-1"}}, [Ask(headers=ANN)],
         "x-got-authorization: Bearer u-1\n"),
    Case("api_keys.upstream_header", {"api_keys": {**EACH, "upstream": "u-1", "upstream_header": "x-goog-api-key"}},
         [Ask(headers=ANN)], "x-got-x-goog-api-key: u-1\n"),
    Case("api_keys.header", {"api_keys": {**EACH, "header": "x-gateway-key"}}, [Ask(headers=[("x-gateway-key", KEY), *BOB])],
         f"^200.*x-got-x-api-key: {SECOND}\n"),
    Case("rate_limit.requests_per_minute", {"rate_limit": OFTEN}, [Ask(), Ask()], "^429.*retry-after: 60000\n"),
    Case("rate_limit.burst", {"rate_limit": {**OFTEN, "burst": 2}}, [Ask(), Ask()], "^200"),
    Case("rate_limit.by", {"api_keys": EACH, "rate_limit": {**OFTEN, "by": "address"}}, [Ask(headers=ANN), Ask(headers=BOB)],
         "^429.*rate_limited"),
    Case("rate_limit.max_clients", {"api_keys": EACH, "rate_limit": {**OFTEN, "max_clients": 1}},
         [Ask(headers=ANN), Ask(headers=BOB), Ask(headers=CAT)], "^429"),
    Case("audit.path", {"audit": {"path": "{dir}/path.jsonl"}}, [Ask()], '"event":"request".*"event":"end"', "path.jsonl"),
    Case("audit.requests", {"audit": {"path": "{dir}/no.jsonl", "requests": False}}, [Ask()],
         '^(?!.*"event":"request").*"event":"end"', "no.jsonl"),
    Case("audit.events", {"audit": {"path": "{dir}/events.jsonl", "events": "data"}}, [Ask()], "the key is sk-", "events.jsonl"),
    Case("audit.headers", {"audit": {"path": "{dir}/head.jsonl", "headers": ["x-team"]}}, [Ask(headers=[("x-team", "red")])],
         '"x-team":"red"', "head.jsonl"),
    Case("audit.body", {"audit": {"path": "{dir}/body.jsonl", "body": True}}, [Ask(headers=[JSON], body=BODY)],
         r'"body":"{\\"model', "body.jsonl"),
    Case("audit.query", {"audit": {"path": "{dir}/query.jsonl", "query": True}}, [Ask("other")], "other", "query.jsonl"),
    Case("audit.max_bytes", {"audit": {"path": "{dir}/max.jsonl", "max_bytes": 1024}}, [Ask()] * 4, '"event"', "max.jsonl.1"),
    Case("audit.keep", {"audit": {"path": "{dir}/keep.jsonl", "max_bytes": 1024, "keep": 1}}, [Ask()] * 9, "^missing$",
         "keep.jsonl.2"),
    Case("record.directory", {"record": {"directory": "{dir}/tapes"}}, [Ask()], "the key is sk-.*completed", "tapes"),
    Case("replay.path", {"replay": {"path": "{dir}/now.jsonl"}}, [Ask()], "data: played\n\n"),
    Case("replay.speed", {"replay": {"path": "{dir}/later.jsonl", "speed": "instant"}}, [Ask()], "data: played\n\n"),
    Case("mcp_policy.tools", {"mcp_policy": {"tools": {"deny": ["rm"]}}}, [rpc("tools/call", name="rm")], '"code":-32602',
         dialect="mcp"),
    Case("mcp_policy.resources", {"mcp_policy": {"resources": {"deny": ["file:///etc/*"]}}},
         [rpc("resources/read", uri="file:///etc/passwd")], '"code":-32002', dialect="mcp"),
    Case("mcp_policy.prompts", {"mcp_policy": {"prompts": {"allow": []}}}, [rpc("prompts/get", name="p")], '"code":-32602',
         dialect="mcp"),
    Case("mcp_policy.methods", {"mcp_policy": {"methods": {"deny": ["logging/*"]}}}, [rpc("logging/setLevel", level="debug")],
         '"code":-32601', dialect="mcp"),
]  # fmt: skip


def configured(url: str, directory: Path) -> str:
    """One route for each case, with its own interceptors."""
    entries: list[dict[str, Any]] = []
    routes: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        names = [
            f"{use}-{case.items.partition('_')[2] if use == 'usage' else number}"
            for use in case.chain
        ]
        for name, (use, options) in zip(names, case.chain.items(), strict=True):
            text = json.dumps(options).replace("{dir}", str(directory))
            entries.append({"name": name, "use": use, "options": json.loads(text)})
        routes.append(
            {
                "path": f"/c{number}",
                "upstream": "up",
                "interceptors": names,
                "dialect": case.dialect,
            }
        )
    proxy = {
        "upstreams": [{"name": "up", "endpoints": [url]}],
        "routes": routes,
        "leak_detection": "paranoid",
    }
    return yaml.safe_dump(
        {"reverse_proxy": proxy, "interceptors": entries, "log": {"level": "error"}}
    )


def shown(answer: Answer) -> str:
    head = b"".join(b"%s: %s\n" % field for field in answer.headers)
    return f"{answer.status}\n" + (head + b"\n" + answer.body).decode()


def read(directory: Path, name: str) -> str:
    path = directory / name
    if path.is_dir():
        return "".join(item.read_text() for item in path.iterdir())
    return path.read_text() if path.exists() else "missing"


async def test_every_option_has_its_effect(tmp_path: Path) -> None:
    """The effect of its case."""
    (tmp_path / "now.jsonl").write_bytes(TAPE % (0, 0))
    (tmp_path / "later.jsonl").write_bytes(TAPE % (1000, 1000))
    got: dict[str, str] = {}
    async with open_upstream(upstream) as up:
        async with open_proxy(parse_config(configured(up.url, tmp_path))) as proxy:
            for number, case in enumerate(CASES):
                with trio.fail_after(10):
                    for query, headers, body in case.asks:
                        path = f"/c{number}/chat/completions{'?' * bool(query)}{query}"
                        method = "GET" if body is None else "POST"
                        got[case.items] = shown(
                            await fetch(proxy.port, path, method=method, headers=headers, body=body)
                        )
            metrics = (await fetch(proxy.port, "/metrics")).body.decode()
    for case in CASES:
        if case.file:
            got[case.items] = metrics if case.file == "metrics" else read(tmp_path, case.file)
    assert {
        case.items: got[case.items]
        for case in CASES
        if not re.search(case.seen, got[case.items], re.DOTALL)
    } == {}
