"""What observation costs: CPU time of the proxy without it, with `telemetry.genai`, and with `genai` and
a span for each exchange of which 10 % are exported, in alternation.

PYTHONPATH=.:tests .venv/bin/python tests/bench/genai.py [--rounds 5] [paced busy short]

The upstream answers as OpenAI's chat completions do. `paced`, `busy`: streams; `short`: JSON. Prints
the median CPU time of an event (`short`: of a request), and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from traces import collector

from proxy.commands.bench import load
from proxy.commands.bench.figures import Result, Settings
from proxy.commands.bench.run import LOAD_CORE, free_port, pinned, running

SCENARIOS = {
    "paced": {"streams": 100, "events": 100, "rate": 40},
    "busy": {"streams": 300, "events": 60, "rate": 40},
    "short": {"streams": 20, "events": 150, "kind": "json"},
}
_CHUNK = (
    b'"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-2024-08-06",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]'
)
_ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-2024-08-06",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"A weir is a low dam."},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":8,"total_tokens":17}}'
)
_QUESTION = (
    b'{"messages":[{"role":"user","content":"What is a weir?"}],"model":"gpt-4o","stream":%s}'
)


class _Load(load._Load):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.event = b'data: {"t":%d,' + _CHUNK + b"}\n\n"
        self.json_body = _QUESTION % (b"false" if settings.kind == "json" else b"true")
        self.json_end = _ANSWER[-20:]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.whole["json"] = head % len(_ANSWER) + _ANSWER
        self.request = (
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer sk-1\r\nUser-Agent: OpenAI/Python 3.50\r\nAccept: */*\r\n"
            b"Content-Length: %d\r\n\r\n%s"
            % (
                settings.path.encode(),
                settings.proxy_port,
                len(self.json_body),
                self.json_body,
            )
        )


@contextmanager
def proxy(
    upstream_port: int, directory: str, telemetry: dict[str, object], variables: dict[str, str]
) -> Iterator[list[int]]:
    """The port and the process of a proxy with one route."""
    port = free_port()
    config = {
        "reverse_proxy": {
            "upstreams": [{"name": "up", "endpoints": [f"http://127.0.0.1:{upstream_port}"]}],
            "routes": [{"path": "/", "upstream": "up", "dialect": "openai"}],
        },
        "telemetry": telemetry,
        "log": {"level": "error"},
        "drain": {"timeout": 0},
    }
    file = Path(directory) / f"{port}.yaml"
    file.write_text(json.dumps(config))
    serve = [sys.executable, "-m", "proxy", "serve", "--config", str(file)]
    environment = {**os.environ, **variables}
    with running([*serve, "--bind", f"127.0.0.1:{port}"], port, env=environment) as process:
        yield [port, process.pid]


def measure(scenario: str, port: int, pid: int, upstream_port: int) -> Result:
    settings = {
        "proxy_port": port,
        "upstream_port": upstream_port,
        "pids": [pid],
        "path": "/v1/chat/completions",
        **SCENARIOS[scenario],
    }
    command = pinned(LOAD_CORE, [sys.executable, __file__, "--load", json.dumps(settings)])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Result(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    if given.load is not None:
        print(json.dumps(vars(_Load(Settings(**json.loads(given.load))).run())))
        return
    upstream_port = free_port()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        if (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {int(LOAD_CORE)})  # the collector takes no time of the proxy
        traces = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.1",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }
        proxies = {
            name: stack.enter_context(
                proxy(
                    upstream_port,
                    directory,
                    {"genai": name != "off"},
                    traces if name == "all" else {},
                )
            )
            for name in ("off", "genai", "all")
        }
        for scenario in given.names or SCENARIOS:
            taken: dict[str, list[float]] = {name: [] for name in proxies}
            for number in range(given.rounds + 1):
                for name, (port, pid) in proxies.items():
                    result = measure(scenario, port, pid, upstream_port)
                    if result.failed:
                        print(f"{scenario} {name}: {result.failed} streams failed")
                    if number:  # the first round warms up
                        taken[name].append(result.cpu_us_per_event)
            medians = {name: statistics.median(taken[name]) for name in taken}
            shown = [
                f"{name} {us:6.1f} us ({us / medians['off']:.2f})" for name, us in medians.items()
            ]
            print(f"{scenario:8}", *shown, sep="  ", flush=True)


if __name__ == "__main__":
    main()
