"""Traces of `weirpool serve`: the span that a collector gets, the context that the upstream gets, the
ids in the log. The collector speaks OTLP over HTTP, in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support.client import fetch, open_client
from support.collector import Collector, open_collector
from support.process import ROOT, WEIRPOOL, Process, port_of, running, serve
from support.upstream import Peer, Upstream, open_upstream

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SECRET = "opal-7731"
KEY = sha256(SECRET.encode()).hexdigest()

INTERCEPTORS = """
from interceptors import End, Interceptor, Response, StreamInterceptor

class Answers(Interceptor):
    async def on_request(self, request):
        request.log.info("asked")
        return Response(json={"trace_id": request.trace_id}, status=403)

class _Ending(StreamInterceptor):
    def on_event(self, event):
        return End(event)

class Ends(Interceptor):
    def open_stream(self, context):
        return _Ending()

class Fails(Interceptor):
    async def on_request(self, request):
        int(request.headers["authorization"])
"""

CONFIG = """
reverse_proxy:
  upstreams:
    - {{name: up, endpoints: ["{up}"]}}
    - {{name: dead, endpoints: ["http://127.0.0.1:9"]}}
    - {{name: flaky, endpoints: ["http://127.0.0.1:9", "{up}"]}}
    - name: set
      endpoints: ["{up}"]
      headers: {{remove: [traceparent], set: {{tracestate: "b=2"}}}}
  health: {{consecutive_failures: 1000}}
  routes:
    - {{path: /dead, upstream: dead, retry: {{max_attempts: 1}}}}
    - {{path: /flaky, upstream: flaky, retry: {{max_attempts: 2}}}}
    - {{path: /answers, upstream: up, interceptors: [answers]}}
    - {{path: /ends, upstream: up, interceptors: [ends]}}
    - {{path: /fails, upstream: up, interceptors: [fails]}}
    - {{path: /late, upstream: up, retry: {{max_attempts: 1}}, timeouts: {{first_byte: 0.05}}}}
    - {{path: /resumes, upstream: up, reconnect: {{enabled: true, initial_backoff: 0.01}}}}
    - {{path: /set, upstream: set}}
    - {{path: /tools, upstream: up, dialect: mcp}}
    - {{path: /quiet, upstream: set, dialect: mcp}}
    - {{path: /keyed, upstream: up, interceptors: [keys]}}
    - {{path: /up, upstream: up}}
interceptors:
  - {{name: answers, use: "{file}:Answers"}}
  - {{name: ends, use: "{file}:Ends"}}
  - {{name: keys, use: api_keys, options: {{keys: {{ann: "sha256:{key}"}}}}}}
  - {{name: fails, use: "{file}:Fails"}}
"""


async def _answer(peer: Peer) -> None:
    """By the last segment of the path."""
    while True:
        request = await peer.request()
        name = request.target.partition(b"?")[0].rpartition(b"/")[2]
        if name == b"json":
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        elif name == b"busy":
            await peer.send(b"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n")
        elif name == b"silent":
            await peer.wait_closed()
            return
        elif name == b"resumed" and not request.all("last-event-id"):
            await peer.start_stream()
            await peer.chunk(b"id: 1\ndata: 1\n\n")
            return
        else:
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
            await peer.chunk(b"data: [DONE]\n\n")
            if name == b"open":
                await peer.wait_closed()
                return
            await peer.end()


@dataclass
class Rig:
    process: Process
    port: int
    upstream: Upstream
    collector: Collector
    directory: Path

    async def line(self, **fields: Any) -> dict[str, Any]:
        """The first `exchange` line with these fields, when it is there."""
        count = 1
        while True:
            lines = await self.process.event("exchange", count)
            for line in lines:
                if fields.items() <= line.items():
                    return line
            count = len(lines) + 1

    def sent(self, target: str) -> dict[str, str]:
        """The fields of the last request for this target that the upstream got."""
        found = [item for item in self.upstream.requests if item.target.decode() == target]
        return {name.decode().lower(): value.decode() for name, value in found[-1].headers}


@asynccontextmanager
async def open_rig(
    directory: Path, *options: str, fresh: bool = False, **env: str
) -> AsyncIterator[Rig]:
    """`weirpool serve` with `CONFIG`, exporting to a collector. `fresh`: a new interpreter."""
    file = directory / "given.py"
    file.write_text(INTERCEPTORS)
    async with open_upstream(_answer) as upstream, open_collector() as collector:
        config = directory / "weirpool.yaml"
        config.write_text(CONFIG.format(up=upstream.url, file=file, key=KEY))
        env = collector.environment | env
        more = {"stdout": subprocess.DEVNULL} if fresh else {}
        command = serve("--config", str(config), *options)
        async with running(command, env=env, **more) as process:
            yield Rig(process, await port_of(process), upstream, collector, directory)


@dataclass
class Case:
    """One exchange and its span. An attribute that is not listed must not be there."""

    target: str
    name: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    error: str | None = None
    method: str = "GET"
    leaves: bool = False

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


UP = {"server.address": "127.0.0.1", "server.port": "UP", "weirpool.endpoint": "UP"}
DEAD = {"server.port": 9, "weirpool.endpoint": "http://127.0.0.1:9"}
FIRST = ("first_byte", {})
BY_UP = {**UP, "weirpool.upstream": "up"}
CASES = [
    Case(
        f"/up/events?key={SECRET}",
        "GET /up",
        {**BY_UP, "http.route": "/up", "http.response.status_code": 200, "weirpool.outcome": "completed"},
        [FIRST],
    ),
    Case(
        "/up/json",
        "POST /up",
        {**BY_UP, "http.route": "/up", "http.response.status_code": 200, "weirpool.outcome": "completed"},
        [FIRST],
        method="POST",
    ),
    Case(
        "/up/busy",
        "GET /up",
        {**BY_UP, "http.route": "/up", "http.response.status_code": 429, "weirpool.outcome": "completed", "error.type": "429"},
        error="",
    ),
    Case(
        "/up/open",
        "GET /up",
        {**BY_UP, "http.route": "/up", "http.response.status_code": 200, "weirpool.outcome": "client_disconnected"},
        [FIRST],
        leaves=True,
    ),
    Case(
        "/late/silent",
        "GET /late",
        {**BY_UP, "http.route": "/late", "http.response.status_code": 504, "weirpool.outcome": "upstream_timeout", "error.type": "upstream_read_timeout"},
        error="UP: no response within 0.05 s",
    ),
    Case(
        "/dead/json",
        "GET /dead",
        {**UP, **DEAD, "http.route": "/dead", "weirpool.upstream": "dead", "http.response.status_code": 502, "weirpool.outcome": "upstream_error", "error.type": "upstream_connect_failed"},
        error="http://127.0.0.1:9: Connection refused",
    ),
    Case(
        "/flaky/json",
        "GET /flaky",
        {**UP, "http.route": "/flaky", "weirpool.upstream": "flaky", "http.response.status_code": 200, "weirpool.outcome": "completed"},
        [
            ("retry", {"weirpool.endpoint": "http://127.0.0.1:9", "error.type": "upstream_connect_failed"}),
            FIRST,
        ],
    ),
    Case(
        "/resumes/resumed",
        "GET /resumes",
        {**BY_UP, "http.route": "/resumes", "http.response.status_code": 200, "weirpool.outcome": "completed"},
        [FIRST, ("reconnect", {"error.type": "upstream_truncated"})],
    ),
    Case(
        "/answers/json",
        "GET /answers",
        {"http.route": "/answers", "weirpool.upstream": "up", "http.response.status_code": 403, "weirpool.outcome": "intercepted", "weirpool.interceptor": "answers", "error.type": "intercepted"},
        [("answer", {"weirpool.interceptor": "answers"})],
        error="",
    ),
    Case(
        "/keyed/json",
        "GET /keyed",
        {**BY_UP, "http.route": "/keyed", "http.response.status_code": 200, "weirpool.outcome": "completed", "weirpool.client": "ann"},
        [FIRST],
    ),
    Case(
        "/ends/events",
        "GET /ends",
        {**BY_UP, "http.route": "/ends", "http.response.status_code": 200, "weirpool.outcome": "intercepted", "weirpool.interceptor": "ends", "weirpool.events": 1, "error.type": "intercepted"},
        [FIRST, ("intercepted", {"weirpool.interceptor": "ends"})],
        error="",
    ),
    Case(
        "/fails/json",
        "GET /fails",
        {"http.route": "/fails", "weirpool.upstream": "up", "http.response.status_code": 502, "weirpool.outcome": "intercepted", "weirpool.interceptor": "fails", "error.type": "interceptor_failed"},
        [("intercepted", {"weirpool.interceptor": "fails"})],
        error="fails.on_request: ValueError at DIR/given.py:19, on_request",
    ),
    Case(
        "/nowhere",
        "HTTP",
        {"http.request.method": "_OTHER", "http.request.method_original": "BREW", "http.response.status_code": 404, "weirpool.outcome": "refused", "error.type": "no_route"},
        error="no route matches this path",
        method="BREW",
    ),
]  # fmt: skip


async def test_the_span_of_an_exchange(tmp_path: Path) -> None:
    """Each way an exchange goes, with the client's context; nothing secret reaches the collector."""
    async with open_rig(
        tmp_path, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test"
    ) as rig:
        for case in CASES:
            await check(rig, case)
        exported = b"".join(request.body for request in rig.collector.requests)
        assert SECRET.encode() not in exported


async def check(rig: Rig, case: Case) -> None:
    headers = [("traceparent", PARENT), ("tracestate", "a=1"), ("authorization", f"Bearer {SECRET}"), ("user-agent", "probe/1")]  # fmt: skip
    client = await open_client(rig.port)
    async with client.stream:
        body = b"{}" if case.method == "POST" else None
        await client.send(case.method, case.target, headers, body)
        answer = await client.head()
        if case.leaves:
            await client.read_until(answer, b"\n\n")
        else:
            await client.rest(answer)
    if case.target == "/answers/json":
        assert json.loads(answer.body) == {"trace_id": TRACE}
        (asked,) = await rig.process.event("asked")
        assert asked["trace_id"] == TRACE
    line = await rig.line(path=case.path)
    span = await rig.collector.find(lambda span: span.span_id == line["span_id"])
    up = rig.upstream.url
    expected = {
        "http.request.method": case.method,
        "url.path": case.path,
        "user_agent.original": "probe/1",
        "client.address": "127.0.0.1",
        "weirpool.request_id": line["request_id"],
        **case.attributes,
    }
    if expected.get("weirpool.endpoint") == "UP":
        expected |= {"weirpool.endpoint": up, "server.port": rig.upstream.port}
    assert (span.name, span.attributes) == (case.name, expected)
    assert [(name, attributes) for name, _, attributes in span.events] == case.events
    assert span.error == (
        case.error and case.error.replace("UP", up).replace("DIR", str(rig.directory))
    )
    assert (span.kind, span.trace_id, span.parent) == ("SPAN_KIND_CLIENT", TRACE, SPAN)
    assert span.state == "a=1"
    assert all(span.start <= at <= span.end for _, at, _ in span.events)
    assert line["trace_id"] == TRACE
    assert span.resource["service.name"] == "weirpool"
    assert span.resource["deployment.environment.name"] == "test"
    if "server.port" in case.attributes and case.attributes["server.port"] == "UP":
        sent = rig.sent(case.target)
        assert sent["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
        assert sent["tracestate"] == "a=1"


@pytest.mark.parametrize(
    ("given", "set_by", "sent", "joins"),
    [
        ([], {}, {}, False),
        ([("traceparent", PARENT.upper())], {}, {}, False),
        ([("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")], {}, {}, False),
        ([("Traceparent", PARENT), ("tracestate", "a=1"), ("TRACESTATE", "b=2")], {}, {"tracestate": "a=1,b=2"}, True),
        # As it came: only `tracecontext` reads and writes the fields.
        ([("traceparent", PARENT), ("tracestate", "a=1")], {"OTEL_PROPAGATORS": "none"}, {"traceparent": PARENT, "tracestate": "a=1"}, False),
        ([("traceparent", PARENT), ("baggage", "k=v")], {"OTEL_PROPAGATORS": "baggage"}, {"traceparent": PARENT, "baggage": "k=v"}, False),
        ([("traceparent", PARENT), ("baggage", "k=v")], {"OTEL_PROPAGATORS": "tracecontext"}, {"baggage": "k=v"}, True),
        # The client's decision counts, then the ratio.
        ([("traceparent", PARENT)], {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, {}, True),
    ],
)  # fmt: skip
async def test_the_context(
    given: list[tuple[str, str]],
    set_by: dict[str, str],
    sent: dict[str, str],
    joins: bool,
    tmp_path: Path,
) -> None:
    """Taken over from the client, or made; and what goes upstream, also where the upstream's
    `headers` say otherwise.
    """
    async with open_rig(tmp_path, **set_by) as rig:
        await fetch(rig.port, "/up/json", headers=given)
        await fetch(rig.port, "/set/json", headers=given)
        span = await rig.collector.find(lambda span: span.name == "GET /up")
    upstream_got = {
        name: value
        for name, value in rig.sent("/up/json").items()
        if name in ("traceparent", "tracestate", "baggage")
    }
    assert (span.trace_id == TRACE, span.parent == SPAN) == (joins, joins)
    flags = "01" if joins else "03"
    ours = {"traceparent": f"00-{span.trace_id}-{span.span_id}-{flags}"}
    assert upstream_got == ours | sent
    other = rig.sent("/set/json")
    assert "traceparent" not in other
    assert other["tracestate"] == "b=2"


async def test_the_context_in_a_message(tmp_path: Path) -> None:
    """On MCP routes, with a digest that no longer fits removed; not where the upstream's `headers`
    remove the context.
    """
    ping = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
    headers = [("content-type", "application/json"), ("content-digest", "sha-256=:eA==:")]
    async with open_rig(tmp_path) as rig:
        for target in ("/tools/json", "/quiet/json"):
            answer = await fetch(rig.port, target, method="POST", headers=headers, body=ping)
            assert answer.status == 200
    sent = rig.sent("/tools/json")
    traced, quiet = rig.upstream.requests
    meta = {"traceparent": sent["traceparent"]}
    assert json.loads(traced.body) == json.loads(ping) | {"params": {"_meta": meta}}
    assert sent["content-length"] == str(len(traced.body))
    assert "content-digest" not in sent
    assert quiet.body == ping
    assert "content-digest" in rig.sent("/quiet/json")


async def test_a_trace_that_is_not_sampled(tmp_path: Path) -> None:
    """It has ids, which go upstream and into the log, and no span."""
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    async with open_rig(tmp_path, **sampler) as rig:
        await fetch(rig.port, "/up/json")
        (line,) = await rig.process.event("exchange")
        await fetch(rig.port, "/up/json", headers=[("traceparent", PARENT[:-1] + "0")])
        _, second = await rig.process.event("exchange", 2)
        await fetch(rig.port, "/up/events", headers=[("traceparent", PARENT)])
        await rig.collector.find(lambda span: True)
    sent = [dict(request.headers)[b"traceparent"].decode() for request in rig.upstream.requests]
    assert sent[0] == f"00-{line['trace_id']}-{line['span_id']}-02"
    assert sent[1] == f"00-{TRACE}-{second['span_id']}-00"
    assert [span.attributes["url.path"] for span in rig.collector.spans] == ["/up/events"]


async def test_the_last_spans_of_each_worker(tmp_path: Path) -> None:
    """A process that ends exports what is queued, before it is gone."""
    waits = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_SERVICE_NAME": "edge"}
    waits |= {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b"}
    waits |= {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    async with open_rig(tmp_path, "--workers", "2", **waits) as rig:
        for _ in range(6):
            await fetch(rig.port, "/up/json")
        await rig.process.event("exchange", 6)
        assert rig.collector.spans == []
        await rig.process.stop()
    assert len({span.span_id for span in rig.collector.spans}) == 6
    assert {
        (*request.all("x-tenant"), *request.all("content-encoding"))
        for request in rig.collector.requests
    } == {(b"a b", b"gzip")}
    assert {span.resource["service.name"] for span in rig.collector.spans} == {"edge"}


async def test_a_collector_that_is_away(tmp_path: Path) -> None:
    """Exchanges go on, and the process ends in time; one line in ten seconds reports it."""
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    async with open_rig(tmp_path, **away) as rig:
        assert (await fetch(rig.port, "/up/json")).status == 200
        (failed, *_) = await rig.process.event("tracing_failed")
        await rig.process.stop()
    assert failed["level"] == "warning"
    assert failed["count"] == 1
    lines = [line for line in rig.process.lines if "opentelemetry" in line]
    assert lines == []


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "the exporter zipkin is not installed: set OTEL_TRACES_EXPORTER to otlp, console or none, or install its package"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "the exporter otlp_proto_grpc is not installed: install opentelemetry-exporter-otlp-proto-grpc, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json': set it to http/protobuf or grpc"),
        ({"OTEL_PROPAGATORS": "b3"}, "OTEL_PROPAGATORS has b3: set it to tracecontext, baggage, none or a list of them"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "an OTEL_* variable is not accepted: max_queue_size must be a positive integer."),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, "an OTEL_* variable is not accepted: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer but got many"),
    ],
)  # fmt: skip
async def test_traces_that_cannot_be_made(env: dict[str, str], error: str, tmp_path: Path) -> None:
    """The proxy serves, and the log says what to set or to install."""
    async with open_rig(tmp_path, **env) as rig:
        (line,) = await rig.process.event("tracing_unavailable")
        await fetch(rig.port, "/up/json", headers=[("traceparent", PARENT)])
        (exchange,) = await rig.process.event("exchange")
    assert (line["error"], line["level"]) == (error, "warning")
    assert rig.sent("/up/json")["traceparent"] == PARENT
    assert "trace_id" not in exchange


async def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("")  # hides the installed package
    async with open_rig(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}", fresh=True) as rig:
        (line,) = await rig.process.event("tracing_unavailable")
        assert (await fetch(rig.port, "/up/json")).status == 200
    assert str(line["error"]).endswith("install weirpool[otel], or set OTEL_SDK_DISABLED=true")


async def test_credentials_of_the_collector_stay_out_of_the_log(tmp_path: Path) -> None:
    """The SDK's own warning quotes them."""
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization: Bearer {SECRET}"}
    async with open_rig(tmp_path, **headers) as rig:
        (line,) = await rig.process.event("tracing_failed")
    assert str(line["error"]).startswith("OTEL_EXPORTER_OTLP_HEADERS must be name=value pairs")
    assert SECRET not in "".join(rig.process.lines)


def test_nothing_is_imported_while_traces_are_off() -> None:
    code = (
        "import sys, proxy.commands.cli\n"
        "from proxy.telemetry import open_tracing\n"
        "assert open_tracing({'OTEL_SDK_DISABLED': 'true', 'OTEL_TRACES_EXPORTER': 'otlp'}) is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'google'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert "proxy.telemetry.otel" not in done.stdout


async def test_spans_on_standard_output(tmp_path: Path) -> None:
    """`OTEL_TRACES_EXPORTER=console`, to see them without a collector."""
    async with open_upstream(_answer) as upstream:
        command = [*WEIRPOOL, "serve", "--bind", "127.0.0.1:0", "--upstream", upstream.url]
        env = {"OTEL_TRACES_EXPORTER": "console"}
        async with running(command, env=env, stdout=subprocess.PIPE) as process:
            await fetch(await port_of(process), "/json")
            await process.event("exchange")
            await process.stop()
            output = b""
            async for data in process.process.stdout:  # type: ignore[union-attr]
                output += data
    assert json.loads(output)["name"] == "GET /"
