"""Every class, hook and attribute of the plug-in API, from a file named in a configuration.

A case: a class of `AUTHORS`, the items of `tests/reach.txt` that it covers, and what a client sees.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
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

AUTHORS = '''
from __future__ import annotations

import re
from contextlib import asynccontextmanager

import trio
from prometheus_client import Counter

from interceptors import (
    Abort, AsyncStreamInterceptor, End, Event, EventResult, Headers, HookError, Interceptor, InterceptorError, LoadError, Needs,
    NotJson, OnError, Outcome, Request, Response, ResponseHead, StaleEvent, StreamContext, StreamInterceptor, StreamOver,
)
from interceptors.dialects import (
    AnthropicReader, Block, DialectError, Finish, Kind, Made, MessageInterceptor, MessageStream, OpenAIChatReader,
    OpenAIResponsesReader, Part, ProviderError, Reader, TextDelta, TextEnd, ToolCall, ToolCallDelta, Unread, Usage,
)
from interceptors.dialects.mcp import INVALID_PARAMS, McpError, McpMessage
from interceptors.dialects.mcp_hooks import McpInterceptor, on_mcp_notification, on_mcp_request, on_mcp_response


class Stream(StreamInterceptor):
    def __init__(self, context: StreamContext) -> None:
        self.context = context


class Streams(Interceptor):
    """What opens `Hooks` of a subclass."""

    def open_stream(self, context):
        return self.Hooks(context)


class Answers(Interceptor):
    wants_body = True

    async def on_request(self, request: Request) -> Response | None:
        headers: Headers = Headers({"x-answered": request.headers["x-word"]})
        return Response(request.body.upper(), headers=headers)


class Replaces(Interceptor):
    async def on_response(self, head: ResponseHead) -> Response | None:
        return Response(json={"was": head.media_type, "for": head.request.path})


class Lives(Interceptor):
    @asynccontextmanager
    async def lifespan(self):
        self.word = "alive"
        yield

    async def on_response(self, head):
        head.headers["x-word"] = self.word


class Counts(Interceptor):
    def __init__(self) -> None:
        self.counter = Counter("reached", "Requests that were seen.", registry=None)

    def collectors(self):
        return [self.counter]

    async def on_request(self, request):
        self.counter.inc()


class TooSlow(Interceptor):
    hook_timeout_s = 0.01

    async def on_request(self, request):
        await trio.sleep_forever()


class Skips(Interceptor):
    on_error: OnError = "skip"

    async def on_request(self, request):
        request.headers["x-word"] = "set before"
        raise ValueError("x")


class SeesJson(Interceptor):
    wants_json = True

    def open_stream(self, context):
        return SeesJson.Hooks(context)

    class Hooks(Stream):
        def on_event(self, event):
            return event.replace(json={"is_body": event.is_body, "was": event.json()})


class Needles(Streams):
    class Hooks(Stream):
        needs: Needs = (b"two",)

        def on_event(self, event: Event) -> EventResult:
            return event.replace("found " + event.data)


class Whole(Streams):
    class Hooks(Stream):
        def on_start(self, head):
            self.seen = [f"start {head.status}"]

        def on_event(self, event):
            self.seen.append(event.data)
            return None

        def on_complete(self):
            return Event(json=self.seen)

        def on_end(self, outcome: Outcome) -> None:
            self.context.log.info("reached_end", completed=outcome is Outcome.COMPLETED)


class AsyncWhole(Interceptor):
    def open_stream(self, context):
        return AsyncWhole.Hooks(context)

    class Hooks(AsyncStreamInterceptor):
        needs = re.compile(rb"two")

        def __init__(self, context):
            self.context = context

        async def on_start(self, head):
            await trio.lowlevel.checkpoint()
            self.seen = [f"start {head.status}"]

        async def on_event(self, event):
            await trio.lowlevel.checkpoint()
            self.seen.append(event.data)
            return event

        async def on_complete(self):
            await trio.lowlevel.checkpoint()
            return Event(json=self.seen)

        async def on_end(self, outcome):
            await trio.lowlevel.checkpoint()
            self.context.log.info("reached_end", completed=outcome is Outcome.COMPLETED)


class LetsPass(Streams):
    class Hooks(Stream):
        passes_unseen = True

        def on_event(self, event):
            return event.replace("seen")


class MustSee(Streams):
    class Hooks(Stream):
        def on_event(self, event):
            return event.replace("seen")


class AsyncLetsPass(Streams):
    class Hooks(AsyncStreamInterceptor):
        passes_unseen = True

        def __init__(self, context):
            pass

        async def on_event(self, event):
            return event.replace("seen")


class Ends(Streams):
    class Hooks(Stream):
        def on_event(self, event):
            return End(Event("the last"))


class Aborts(Streams):
    class Hooks(Stream):
        def on_event(self, event):
            raise Abort("enough of this")


class Fails(Streams):
    class Hooks(Stream):
        def on_event(self, event):
            raise ValueError("a secret")


class ReadsJson(Streams):
    class Hooks(Stream):
        def on_event(self, event):
            try:
                event.json()
            except NotJson as error:
                return event.replace(f"{isinstance(error, InterceptorError)} {isinstance(error, ValueError)}")
            return event


class Keeps(Streams):
    class Hooks(Stream):
        kept = None

        def on_event(self, event):
            kept, self.kept = self.kept, event
            try:
                return event if kept is None else event.replace(kept.data)
            except StaleEvent:
                return event.replace("stale")


class EmitsLate(Streams):
    class Hooks(AsyncStreamInterceptor):
        def __init__(self, context):
            self.context = context

        async def on_end(self, outcome):
            try:
                await self.context.emit(Event("late"))
            except StreamOver:
                self.context.log.info("reached_end", over=True)


class WrongOption(Interceptor):
    def __init__(self, colour: str) -> None:
        raise LoadError("must be a colour", "colour", "did you mean blue?")


class SetsName(Interceptor):
    sets_state = ("name",)

    async def on_request(self, request):
        request.state["name"] = "ann"


class NeedsName(Interceptor):
    needs_state = ("name",)

    async def on_request(self, request):
        request.headers["x-word"] = request.state["name"]


class UsesName(Interceptor):
    uses_state = ("name",)

    async def on_request(self, request):
        request.headers["x-word"] = request.state.get("name", "nobody")


class SetsHeader(Interceptor):
    sets_headers = ("x-word",)

    async def on_request(self, request):
        request.headers["x-word"] = "set"


class WantsDialect(Interceptor):
    wants_dialect = True


class Said(MessageStream):
    """Every part, as a line of the log."""

    sees_other_texts = True

    def __init__(self, context):
        self.context = context

    def say(self, part: Part, said) -> None:
        assert isinstance(part, Part) and isinstance(part.block, Block)
        self.context.log.info("reached", part=type(part).__name__, said=said)

    def on_text_delta(self, delta: TextDelta) -> None:
        kind: Kind = delta.kind
        self.say(delta, [kind, delta.text, self.model])

    def on_text_end(self, end: TextEnd) -> None:
        self.say(end, end.kind)

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        self.say(delta, delta.arguments)

    def on_tool_call(self, call: ToolCall) -> None:
        self.say(call, [call.name, self.has_waiting])

    def on_finish(self, finish: Finish) -> None:
        self.say(finish, finish.reason)

    def on_usage(self, usage: Usage) -> None:
        self.say(usage, [usage.input, usage.output])

    def on_provider_error(self, error: ProviderError) -> None:
        self.say(error, error.message)

    def on_unread(self, unread: Unread) -> None:
        if not self.has_waiting:
            self.say(unread, None)


class Says(MessageInterceptor):
    def open_messages(self, context):
        return Said(context)


class Holds(MessageInterceptor):
    def open_messages(self, context):
        return Holds.Hooks()

    class Hooks(MessageStream):
        holds_tool_calls = True

        def on_tool_call(self, call):
            call.refuse("no such tool for you")


class TakesBack(MessageInterceptor):
    def open_messages(self, context):
        return TakesBack.Hooks()

    class Hooks(MessageStream):
        holds_tool_calls = True

        def on_tool_call(self, call):
            call.arguments = f'{{"n": {len(call.arguments)}}}'


class Finishes(MessageInterceptor):
    def open_messages(self, context):
        return Finishes.Hooks()

    class Hooks(MessageStream):
        def on_text_delta(self, delta):
            self.finish("length", "cut here")


class OpensBoth(MessageInterceptor):
    wants_json = False
    wants_dialect = False

    def open_messages(self, context):
        return OpensBoth.Hooks()

    def open_stream(self, context):
        context.log.info("reached", opened=context.path)
        return super().open_stream(context)

    class Hooks(MessageStream):
        def on_text_delta(self, delta):
            delta.text = delta.text.upper()


class Reads(Streams):
    """A reader alone."""

    class Hooks(Stream):
        def on_event(self, event):
            found = []
            for cls, message in (
                (OpenAIChatReader, {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}),
                (AnthropicReader, {
                    "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"},
                }),
                (OpenAIResponsesReader, {
                    "type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": "Hi",
                }),
            ):
                reader: Reader = cls()
                parts = reader.read(message, message.get("type"))
                part = next(item for item in parts if isinstance(item, TextDelta))
                made: Made = reader.make_delta(part.block, "!")
                found.append([isinstance(reader, Reader), part.text, isinstance(made, Made)])
            return event.replace(json=found)


class Mcp(McpInterceptor):
    strict = True

    @on_mcp_request("tools/call")
    def denies(self, message: McpMessage):
        return McpError(INVALID_PARAMS, f"not {message.name}")

    @on_mcp_notification()
    def drops(self, message: McpMessage):
        message.drop()

    @on_mcp_response("tools/list")
    def renames(self, message: McpMessage):
        message.result["tools"] = [{"name": "renamed"}]


class LaxMcp(McpInterceptor):
    wants_json = True
    wants_body = True

    async def on_request(self, request):
        request.headers["x-word"] = "asked"
        return await super().on_request(request)

    async def on_response(self, head):
        head.headers["x-answered"] = "answered"
        return await super().on_response(head)

    def open_stream(self, context):
        context.log.info("reached", opened=context.method)
        return super().open_stream(context)
'''

STREAM = b"data: one\n\ndata: two\n\n"
LARGE = b"data: %s\n\n" % (b"x" * 400)
CHAT: list[Any] = [
    {"model": "m-1", "choices": [{"index": 0, "delta": {"content": "a"}}]},
    {"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
    {"error": {"message": "over", "type": "server_error"}},
]  # fmt: skip
TWICE = [  # a call that continues after its end
    *CHAT[:3],
    {
        "choices": [
            {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}}
        ]
    },
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
]


def stream_of(messages: list[Any]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(item).encode() for item in messages)


CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"rm"}}'
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
LISTED = b'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\ndata: {"jsonrpc":"2.0","id":1,"result":{"tools":[]}}\n\n'
JSON = ("content-type", "application/json")
MCP = [JSON, ("accept", "application/json, text/event-stream")]
ANSWERS = {
    b"/stream": STREAM,
    b"/large": LARGE,
    b"/chat/completions": stream_of(CHAT),
    b"/twice/chat/completions": stream_of(TWICE),
    b"/mcp": LISTED,
}


async def upstream(peer: Peer) -> None:
    """An event stream by the target; for `/json`, a JSON body with the header `x-word`."""
    while True:
        request = await peer.request()
        target = request.target.split(b"/", 2)[2]
        if target == b"json":
            word = b"".join(request.all("x-word")).decode()
            body = json.dumps({"word": word}).encode()
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(body), body)
            )
        else:
            await peer.start_stream()
            await peer.chunk(ANSWERS[b"/" + target])
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
    Case("Lives", "Interceptor.lifespan", "/stream", rb"x-word: alive\n"),
    Case("TooSlow", "Interceptor.hook_timeout_s", "/stream", b"interceptor_failed", status=502),
    Case("Skips", "Interceptor.on_error OnError", "/json", b'"word": "set before"', [{"event": "interceptor_failed"}]),
    Case("SeesJson", "Interceptor.wants_json Interceptor.open_stream", "/json", rb'{"is_body":true,"was":{"word":""}}'),
    Case("Needles", "StreamInterceptor.needs Needs Event EventResult", "/stream", b"data: one\n\ndata: found two\n\n"),
    Case("Whole", "StreamInterceptor.on_start StreamInterceptor.on_event StreamInterceptor.on_complete StreamInterceptor.on_end "
         "StreamInterceptor StreamContext Outcome", "/stream", rb'\n\ndata: \["start 200","one","two"\]\n\n$',
         [{"event": "reached_end", "completed": True}]),
    Case("AsyncWhole", "AsyncStreamInterceptor.on_start AsyncStreamInterceptor.on_event AsyncStreamInterceptor.on_complete "
         "AsyncStreamInterceptor.on_end AsyncStreamInterceptor.needs AsyncStreamInterceptor", "/stream",
         rb'data: two\n\ndata: \["start 200","two"\]\n\n$', [{"event": "reached_end", "completed": True}]),
    Case("LetsPass", "StreamInterceptor.passes_unseen", "/large", LARGE),
    Case("MustSee", "EventTooLarge StreamInterceptor.passes_unseen", "/large", b"event_too_large"),
    Case("AsyncLetsPass", "AsyncStreamInterceptor.passes_unseen", "/large", LARGE),
    Case("Ends", "End", "/stream", rb"\n\ndata: the last\n\n$"),
    Case("Aborts", "Abort StreamAborted", "/stream", b"enough of this"),
    Case("Fails", "HookError", "/stream", b"the interceptor 'i' failed"),
    Case("ReadsJson", "NotJson InterceptorError", "/stream", b"data: True True\n\n"),
    Case("Keeps", "StaleEvent", "/stream", b"data: one\n\ndata: stale\n\n"),
    Case("EmitsLate", "StreamOver", "/stream", STREAM, [{"event": "reached_end", "over": True}]),
    Case("Says", "MessageInterceptor.open_messages MessageInterceptor MessageStream MessageStream.on_text_delta "
         "MessageStream.sees_other_texts MessageStream.model TextDelta Kind Block Part MessageStream.on_text_end TextEnd "
         "MessageStream.on_tool_call_delta ToolCallDelta MessageStream.on_tool_call ToolCall MessageStream.has_waiting "
         "MessageStream.on_finish Finish MessageStream.on_usage Usage MessageStream.on_provider_error ProviderError "
         "MessageStream.on_unread Unread", "/chat/completions", stream_of(CHAT).replace(b"[", rb"\["),
         [{"part": "TextDelta", "said": ["text", "a", "m-1"]}, {"part": "TextEnd", "said": "text"},
          {"part": "ToolCallDelta", "said": "{}"}, {"part": "ToolCall", "said": ["f", False]},
          {"part": "Finish", "said": "tool_calls"}, {"part": "Usage", "said": [1, 2]},
          {"part": "ProviderError", "said": "over"}, {"part": "Unread"}]),
    Case("Holds", "MessageStream.holds_tool_calls", "/chat/completions", b"no such tool for you"),
    Case("TakesBack", "DialectError", "/twice/chat/completions", b"interceptor_failed", [{"event": "exchange"}]),
    Case("Finishes", "MessageStream.finish", "/chat/completions", rb'(?s)cut here.*"finish_reason":"length".*\[DONE\]\n\n$'),
    Case("OpensBoth", "MessageInterceptor.open_stream MessageInterceptor.wants_json MessageInterceptor.wants_dialect "
         "MessageStream.on_event MessageStream.on_complete", "/chat/completions", b'"content":"A"', [{"event": "reached"}]),
    Case("Reads", "OpenAIChatReader AnthropicReader OpenAIResponsesReader Reader Made", "/stream",
         rb'data: \[\[true,"Hi",true\],\[true,"Hi",true\],\[true,"Hi",true\]\]'),
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
    directory: Path, url: str, *, use: str, route: str = "", upstream: str = "", others: str = ""
) -> Path:
    """A configuration beside the file of `AUTHORS`."""
    (directory / "authors.py").write_text(AUTHORS)
    (directory / "weirpool.yaml").write_text(
        f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{url}"]{upstream}}}]
  routes: [{{path: /, upstream: up, interceptors: [i{others}]{route}}}]
  limits: {{max_event_bytes: 256}}
  leak_detection: paranoid
interceptors:
  - {{name: i, use: "./authors.py:{use}"}}
  - {{name: sets, use: "./authors.py:SetsName"}}
log: {{level: error}}
"""
    )
    return directory / "weirpool.yaml"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.use}-{case.items.split()[0]}")
async def test_what_an_author_writes(
    case: Case, tmp_path: Path, log: list[dict[str, object]]
) -> None:
    """The class is named in YAML; the client and the log show what it does."""
    route = f", dialect: {case.dialect}"
    async with open_upstream(upstream) as up:
        config = check_config(str(written(tmp_path, up.url, use=case.use, route=route))).require()
        async with open_proxy(config) as proxy:
            with trio.fail_after(10):
                method = "GET" if case.body is None else "POST"
                answer = await fetch(
                    proxy.port,
                    f"/r{case.path}",
                    method=method,
                    headers=case.headers,
                    body=case.body,
                )
                while proxy.worker.live:
                    await trio.sleep(0.001)
    assert answer.status == case.status
    shown = b"".join(b"%s: %s\n" % field for field in answer.headers) + b"\n" + answer.body
    assert re.search(case.seen, shown, re.DOTALL), shown
    for fields in case.logged:
        assert any(fields.items() <= line.items() for line in log), (fields, log)


async def test_metrics_of_a_file(tmp_path: Path) -> None:
    """`Interceptor.collectors`: the counter is on the page, with the interceptor's name."""
    async with open_upstream(upstream) as up:
        config = check_config(str(written(tmp_path, up.url, use="Counts"))).require()
        async with open_proxy(config) as proxy:
            await fetch(proxy.port, "/r/stream")
            page = (await fetch(proxy.port, "/metrics")).body
    assert b'\nreached_total{interceptor="i"} 1.0\n' in page


DECLARED = {
    "Interceptor.needs_state Interceptor.sets_state": (
        {"use": "NeedsName", "others": ", sets"}, 2, 'error: .*"i" needs request.state["name"]'
    ),
    "Interceptor.uses_state": (
        {"use": "UsesName", "others": ", sets"}, 0, 'warning: .*"i" uses request.state["name"], which "sets" sets only after it'
    ),
    "Interceptor.sets_headers": (
        {"use": "SetsHeader", "upstream": ", headers: {remove: [x-word]}"}, 2, 'error: .*"i" sets x-word, which headers.remove'
    ),
    "Interceptor.wants_dialect": ({"use": "WantsDialect"}, 0, "warning: .*without a dialect"),
    "LoadError": ({"use": "WrongOption", "options": "red"}, 2, "error: .*interceptors[0].options.colour: must be a colour"),
}  # fmt: skip


@pytest.mark.parametrize("items", DECLARED)
def test_what_an_author_declares(
    items: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`weirpool check` compares it with the configuration."""
    arguments, status, printed = DECLARED[items]
    given = dict(arguments)
    options = given.pop("options", None)
    file = written(tmp_path, "http://127.0.0.1:9", **given)
    if options is not None:
        text = file.read_text().replace(
            f'{given["use"]}"}}', f'{given["use"]}", options: {{colour: {options}}}}}'
        )
        file.write_text(text)
    assert main(["check", str(file)]) == status
    error = capsys.readouterr().err
    assert re.search(re.escape(printed).replace(r"\.\*", ".*"), error), error


def loaded(directory: Path, use: str) -> Any:
    (directory / "authors.py").write_text(AUTHORS)
    return load_interceptor(f"{directory / 'authors.py'}:{use}", {})


def test_what_the_test_of_an_author_gets(tmp_path: Path) -> None:
    """`interceptors.testing` with classes of a file: output and failures."""
    result = run_chain([loaded(tmp_path, "Needles")], [STREAM])
    assert isinstance(result, ChainResult)
    assert result.output == b"data: one\n\ndata: found two\n\n"
    failures: dict[str, type[InterceptorError]] = {
        "Fails": HookError,
        "Aborts": StreamAborted,
        "MustSee": EventTooLarge,
    }
    for use, failure in failures.items():
        assert (
            type(
                run_chain(
                    [loaded(tmp_path, use)],
                    [LARGE],
                    max_event_bytes=256 if use == "MustSee" else 1024,
                ).failure
            )
            is failure
        )
    assert run_json([loaded(tmp_path, "SeesJson")], b'{"a":1}') == b'{"is_body":true,"was":{"a":1}}'
    request = Request(method="POST", headers={"x-word": "word"}, body=b"hello")
    answered = run_request([loaded(tmp_path, "Answers")], request)
    assert answered is not None
    assert (answered.body, answered.headers["x-answered"]) == (b"HELLO", "word")
    head = ResponseHead(200, [(b"content-type", b"text/event-stream")], request)
    replaced = run_response([loaded(tmp_path, "Replaces")], head)
    assert replaced is not None
    assert replaced.body == b'{"was":"text/event-stream","for":"/"}'
