"""Every line of a run with failures of all kinds is valid by docs/log-schema.json, and names its
exchange, if it belongs to one.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jsonschema
import trio
from support.client import fetch, open_client
from support.process import ROOT, port_of, running, serve
from support.upstream import Peer, open_upstream

from interceptors.api_keys import hash_key

OWN = """
import logging, sys, threading, time, trio, warnings
from interceptors import Interceptor, StreamInterceptor

def fail():
    raise ValueError("in a thread")

class Unraisable:
    def __del__(self):
        raise ValueError("in a finaliser")

class Own(Interceptor):
    async def on_request(self, request):
        path = request.path
        request.log.info("own_event", numbers={1, 2}, nested={"a": [1]})
        if path == "/raises":
            raise ValueError("x")
        if path == "/slow":
            time.sleep(0.06)
        if path == "/waits":
            await trio.sleep(1.01)
        if path == "/noise":
            logging.getLogger("a.library").error("from a library", stack_info=True)
            warnings.warn("a warning", UserWarning)
            print("printed", file=sys.stderr)
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            Unraisable()

    def open_stream(self, context):
        context.note_unread("a field")
        return Stream()

class Stream(StreamInterceptor):
    def on_event(self, event):
        return event
"""
CONFIG = """
reverse_proxy:
  upstreams:
    - {name: up, endpoints: ["%(up)s"]}
    - {name: dead, endpoints: ["http://127.0.0.1:9"]}
  routes:
    - {path: /, upstream: up, interceptors: [keys, own], allowed_hosts: [proxy.test]}
    - {path: /v1, upstream: up, dialect: openai, interceptors: [guard, usage]}
    - {path: /dead, upstream: dead}
    - {path: /resumed, upstream: up, reconnect: {enabled: true, initial_backoff: 0.01, max_attempts: 2}}
  health: {consecutive_failures: 1, eject: 0.2}
  timeouts: {idle: 0.5}
interceptors:
  - {name: keys, use: api_keys, options: {keys: {ann: "%(hash)s"}}}
  - {name: own, use: "./own.py:Own"}
  - {name: guard, use: guard, options: {patterns: [secret]}}
  - {name: usage, use: usage}
  - {name: unused, use: usage}
reporting: {interval: 0.2}
drain: {timeout: 0.1}
%(more)s
"""
VALIDATOR = jsonschema.Draft202012Validator(
    json.loads((ROOT / "docs/log-schema.json").read_text(encoding="utf-8"))
)
KEY = ("Authorization", "Bearer wk-ann-1")
ANSWER = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
SEEN = {
    *("buffer_pool_report", "config_warning", "drain", "endpoint_ejected", "exchange"),
    *("guard_stopped", "interceptor_failed", "interceptor_slow", "interceptor_waited"),
    *("log_level_changed", "reconnect", "reload", "started", "thread_failed"),
    *("unraisable_exception", "unread_part", "usage", "worker_died"),
    *("own_event", "from a library", "printed", "a warning"),
}
"""An author's event, a library's, what was printed, and a warning, besides ours."""


OF_EXCHANGES = {
    *("guard_stopped", "interceptor_failed", "interceptor_slow", "interceptor_waited"),
    *("reconnect", "unread_part", "usage", "own_event", "from a library", "printed", "a warning"),
}
NAMES = ("client", "path", "pid")
"""What joins the lines of an exchange, besides its id."""


async def upstream(peer: Peer) -> None:
    while True:
        target = (await peer.request()).target
        await peer.start_stream()
        if target.startswith(b"/resumed"):
            await peer.chunk(b"id: 1\ndata: 1\n\n")
            peer.reset()
            return
        if target.startswith(b"/stalls"):
            await peer.wait_closed()
            return
        await peer.chunk(ANSWER % (b"a secret" if b"guard" in target else b"text"))
        await peer.end()


async def test_every_line_of_a_run_with_failures_is_valid(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    file = tmp_path / "weirpool.yaml"
    async with open_upstream(upstream) as up:

        def write(**texts: str) -> None:
            values = {"up": up.url, "hash": hash_key("wk-ann-1"), "more": "", **texts}
            file.write_text(CONFIG % values)

        write()
        command = serve("--config", str(file), "--workers", "2")
        async with running(command) as process:
            (one, _) = await process.event("started", 2)
            port = await port_of(process)
            with trio.fail_after(60):
                for target in ("/raises", "/slow", "/waits", "/noise", "/stalls", "/resumed"):
                    await fetch(port, target, headers=[KEY])
                for target in ("/", "/dead", "/dead", "/v1/chat/completions", "/v1?guard", "/v1"):
                    await fetch(port, target, method="POST", body=b"{}")
                await fetch(port, "/", headers=[("Host", "elsewhere.test")])
                client = await open_client(port)
                await client.stream.send_all(b"NOT HTTP\r\n\r\n")
                await client.aclose()
                client = await open_client(port)
                await client.send("GET", "/stalls", [KEY])
                await client.head()
                client.reset()
                write(more="log: {level: info}\nnope: 1")
                process.signal(signal.SIGHUP)
                await process.event("reload", 1)
                write(hash=hash_key("wk-ann-2"))
                process.signal(signal.SIGHUP)
                await process.event("reload", 3)
                process.signal(signal.SIGUSR1)
                await process.event("log_level_changed", 3)
                killed = int(str(one["pid"]))
                os.kill(killed, signal.SIGKILL)
                await process.event("worker_died")
                await process.event("started", 3)
            process.signal(signal.SIGTERM)
            await process.exit_status()
    lines: list[dict[str, Any]] = [json.loads(line) for line in process.lines]
    problems = [(error.message, line) for line in lines for error in VALIDATOR.iter_errors(line)]
    assert not problems
    assert SEEN - {line["event"] for line in lines} == set()
    exchanges = {line["request_id"]: line for line in lines if line["event"] == "exchange"}
    for line in lines:
        if line["event"] in OF_EXCHANGES:
            its = exchanges[line["request_id"]]
            assert [line[name] for name in NAMES] == [its[name] for name in NAMES], line
    (died,) = [line for line in lines if line["event"] == "worker_died"]
    assert died["pid"] == killed
