"""Every public base class of `interceptors`, subclassed in a file that a configuration names: with
all of its hooks, and with each alone, it passes `weirpool check` and is called in a running proxy.
Which hooks there are is read from the classes.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import trio
from support.client import fetch
from support.process import ROOT, WEIRPOOL
from support.proxy import open_proxy
from support.upstream import Peer, open_upstream

import interceptors
import interceptors.dialects
from interceptors import AsyncStreamInterceptor, Interceptor, StreamInterceptor
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.dialects.mcp_hooks import McpInterceptor
from proxy.config import parse_config

# A stream's class and what opens it.
BASES: dict[type, str] = {
    Interceptor: "",
    StreamInterceptor: "open_stream",
    AsyncStreamInterceptor: "open_stream",
    MessageInterceptor: "",
    MessageStream: "open_messages",
    McpInterceptor: "",
}
CALLED_BY_OTHERS = {MessageStream: {"on_event", "on_complete"}}  # a subclass has none of its own
IMPORTS = """
from contextlib import asynccontextmanager
from interceptors import AsyncStreamInterceptor, Interceptor, StreamInterceptor
from interceptors.dialects import MessageInterceptor, MessageStream
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_notification, on_mcp_request, on_mcp_response
CALLED = []
"""
CHAT = [
    {"model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]},
    {"model": "m", "choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]},
    {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    {"error": {"message": "over", "type": "server_error"}},
]  # fmt: skip
STREAM = b"".join(b"data: %s\n\n" % json.dumps(item).encode() for item in CHAT)
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
ANSWER = b'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\ndata: {"jsonrpc":"2.0","id":1,"result":{"tools":[]}}\n\n'


def hooks_of(base: type) -> list[str]:
    """The methods that an author may override."""
    names = [
        name
        for name in dir(base)
        if name.startswith(("on_", "open_")) or name in ("lifespan", "collectors")
    ]
    methods = [name for name in names if callable(getattr(base, name))]
    return [name for name in methods if name not in CALLED_BY_OTHERS.get(base, ())]


def method(base: type, name: str) -> str:
    """An override that notes the call and does what the base class does."""
    function = getattr(base, name)
    parameters = ", ".join(inspect.signature(function).parameters)
    arguments = ", ".join(item for item in inspect.signature(function).parameters if item != "self")
    if name == "lifespan":
        return "    @asynccontextmanager\n    async def lifespan(self):\n        CALLED.append('lifespan')\n        yield\n"
    is_async = inspect.iscoroutinefunction(function)
    return (
        f"    {'async ' if is_async else ''}def {name}({parameters}):\n        CALLED.append({name!r})\n"
        f"        return {'await ' if is_async else ''}super().{name}({arguments})\n"
    )


MARKS = "".join(
    f"    @{mark}()\n    def {mark[3:]}(self, message):\n        CALLED.append({mark!r})\n"
    for mark in ("on_mcp_request", "on_mcp_response", "on_mcp_notification")
)


def source_of(base: type, hooks: list[str]) -> str:
    """A file with a class `Tried`, whose subclass of `base` has these hooks."""
    body = "".join(method(base, name) for name in hooks) or "    pass\n"
    if base is McpInterceptor:
        body += MARKS
    if not (opens := BASES[base]):
        return f"{IMPORTS}\nclass Tried({base.__name__}):\n{body}"
    opener = "MessageInterceptor" if base is MessageStream else "Interceptor"
    return (
        f"{IMPORTS}\nclass Stream({base.__name__}):\n{body}\n"
        f"class Tried({opener}):\n    def {opens}(self, context):\n        return Stream()\n"
    )


CASES = [
    (base, hooks)
    for base in BASES
    for hooks in [[], *([name] for name in hooks_of(base)), hooks_of(base)]
]
CONFIG = """
reverse_proxy:
  upstreams: [{name: up, endpoints: ["%s"]}]
  routes: [%s]
interceptors: [%s]
"""


def test_these_are_all_of_them() -> None:
    """A class that an author may subclass is one that has hooks; a new one must be tried here."""
    public = {
        vars(package)[name]
        for package in (interceptors, interceptors.dialects)
        for name in package.__all__
    }
    assert {item for item in public if isinstance(item, type) and hooks_of(item)} == set(BASES) - {
        McpInterceptor
    }


def test_weirpool_check_accepts_them(tmp_path: Path) -> None:
    """Every class with every choice of hooks, in one configuration."""
    entries = []
    for number, (base, hooks) in enumerate(CASES):
        (tmp_path / f"tried{number}.py").write_text(source_of(base, hooks))
        entries.append(f'{{name: i{number}, use: "./tried{number}.py:Tried"}}')
    names = ", ".join(f"i{number}" for number in range(len(CASES)))
    route = f"{{path: /, upstream: up, dialect: openai, interceptors: [{names}]}}"
    (tmp_path / "weirpool.yaml").write_text(
        CONFIG % ("http://127.0.0.1:9", route, ", ".join(entries))
    )
    checked = subprocess.run(
        [*WEIRPOOL, "check", str(tmp_path / "weirpool.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


async def upstream(peer: Peer) -> None:
    request = await peer.request()
    await peer.start_stream()
    await peer.chunk(ANSWER if request.body else STREAM)
    await peer.end()


async def test_they_work_in_a_proxy(tmp_path: Path) -> None:
    """What is overridden is called, nothing else, and the bytes pass as they came: each on a route
    of its own.
    """
    files, entries, routes = [], [], []
    for number, (base, hooks) in enumerate(CASES):
        files.append(tmp_path / f"tried{number}.py")
        files[-1].write_text(source_of(base, hooks))
        entries.append(f'{{name: i{number}, use: "{files[-1]}:Tried"}}')
        dialect = "mcp" if base is McpInterceptor else "openai"
        routes.append(
            f"{{path: /r{number}, upstream: up, dialect: {dialect}, interceptors: [i{number}]}}"
        )
    mcp = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]
    async with open_upstream(upstream) as up:
        config = parse_config(
            CONFIG % (up.url, ", ".join(routes), ", ".join(entries)) + "log: {level: error}\n"
        )
        async with open_proxy(config) as proxy:
            for number, (base, hooks) in enumerate(CASES):
                is_mcp = base is McpInterceptor
                with trio.fail_after(10):
                    if is_mcp:
                        answer = await fetch(
                            proxy.port, f"/r{number}", method="POST", headers=mcp, body=CALL
                        )
                    else:
                        answer = await fetch(proxy.port, f"/r{number}/v1/chat/completions")
                    while proxy.worker.live:
                        await trio.sleep(0.002)
                assert (answer.status, answer.body) == (200, ANSWER if is_mcp else STREAM), (
                    base,
                    hooks,
                )
                marks = (
                    {"on_mcp_request", "on_mcp_response", "on_mcp_notification"}
                    if is_mcp
                    else set()
                )
                assert set(module_of(files[number]).CALLED) == {*hooks, *marks}, base


def module_of(path: Path) -> ModuleType:
    return next(
        module
        for module in list(sys.modules.values())
        if getattr(module, "__file__", None) == str(path)
    )
