"""Interceptors as authors write them, with every public name of the plug-in API.

`integration/test_reach_authors.py` names each class in a configuration and runs it; two type checkers
read the file (`unit/interceptors/test_surface.py`), and `assert_type` shows them the types.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, assert_type

import trio
from prometheus_client import Counter

import interceptors
import interceptors.testing as testing

# fmt: off
from interceptors import (  # isort: skip
    Abort, AsyncStreamInterceptor, End, Event, EventResult, EventTooLarge, Headers, HookError, Interceptor,
    InterceptorError, LoadError, Needs, NotJson, OnError, Outcome, Request, Response, ResponseHead, StaleEvent,
    StreamAborted, StreamContext, StreamInterceptor, StreamOver,
    Bucket, LogEntry, OnStoreError, Reservation, Store, StoreUnavailable, Window, WindowState,
)
from interceptors.dialects import (  # isort: skip
    AnthropicReader, Block, Finish, Kind, Made, MessageInterceptor, MessageStream, OpenAIChatReader,
    OpenAIResponsesReader, Part, ProviderError, Reader, TextDelta, TextEnd, ToolCall, ToolCallDelta, Unread, Usage,
)
from interceptors.dialects.mcp import INVALID_PARAMS, McpError, McpMessage  # isort: skip
from interceptors.dialects.mcp_hooks import (  # isort: skip
    McpInterceptor, on_mcp_notification, on_mcp_request, on_mcp_response,
)
from interceptors.testing import (  # isort: skip
    ChainResult, NothingCalled, run_chain, run_json, run_request, run_response,
)
# fmt: on

# Requests and heads


class Answers(Interceptor):
    wants_body = True

    async def on_request(self, request: Request) -> Response | None:
        headers: Headers = Headers({"x-answered": request.headers["x-word"]})
        return Response(request.body.upper(), headers=headers)


class Changes(Interceptor):
    """Everything that can be read and set of a request and of a response's head."""

    on_error: OnError = "skip"
    hook_timeout_s = None

    async def on_request(self, request: Request) -> None:
        assert_type((request.query, request.raw_path), tuple[bytes, bytes])
        assert_type((request.headers, request.state), tuple[Headers, dict[str, Any]])
        assert_type((request.client, request.dialect), tuple[str | None, str])
        flags = request.has_body, request.body_replaced, request.is_preflight
        assert_type(flags, tuple[bool, bool, bool])
        request.method = "POST"
        request.path = "/r" + request.path.removeprefix(request.route)
        request.query = b"a=b"
        request.headers["x-word"] = "set before"
        request.replace_body(json={"n": 1})
        request.log.info("seen", path=request.path)
        request.start_soon(self.tell, request, 3)
        raise ValueError("x")

    async def tell(self, request: Request, times: int) -> None: ...

    async def on_response(self, head: ResponseHead) -> None:
        assert_type(head.request, Request)
        head.status = 201
        head.headers["x-seen"] = "yes"


class Refuses(Interceptor):
    async def on_request(self, request: Request) -> Response:
        headers = {"retry-after": "1"}
        return request.refuse(403, "not_here", f"not {request.method}", headers=headers)


class Replaces(Interceptor):
    async def on_response(self, head: ResponseHead) -> Response:
        return Response(json={"was": head.media_type, "for": head.request.path})


class Lives(Interceptor):
    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None, None]:
        self.word = "alive"
        yield

    async def on_response(self, head: ResponseHead) -> None:
        head.headers["x-word"] = self.word


class Counts(Interceptor):
    def __init__(self) -> None:
        self.counter = Counter("reached", "Requests that were seen.", registry=None)

    def collectors(self) -> list[Counter]:
        return [self.counter]

    async def on_request(self, request: Request) -> None:
        self.counter.inc()


class TooSlow(Interceptor):
    hook_timeout_s = 0.01

    async def on_request(self, request: Request) -> None:
        await trio.sleep_forever()


class WrongOption(Interceptor):
    def __init__(self, colour: str) -> None:
        raise LoadError("must be a colour", "colour", "did you mean blue?")


class SetsName(Interceptor):
    sets_state = ("name",)

    async def on_request(self, request: Request) -> None:
        request.state["name"] = "ann"


class NeedsName(Interceptor):
    needs_state = ("name",)


class UsesName(Interceptor):
    uses_state = ("name",)


class SetsHeader(Interceptor):
    sets_headers = ("x-word",)


class WantsDialect(Interceptor):
    wants_dialect = True


# Streams


class Stream(StreamInterceptor):
    def __init__(self, context: StreamContext) -> None:
        self.context = context


class Streams(Interceptor):
    """Opens `Hooks` of a subclass."""

    Hooks: type[Stream] = Stream

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return self.Hooks(context)


class SeesJson(Interceptor):
    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        return SeesJsonStream() if context.is_body else None


class SeesJsonStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        return event.replace(json={"is_body": event.is_body, "was": event.json()})


class Needles(Streams):
    class Hooks(Stream):
        needs: Needs = (b"two",)

        def on_event(self, event: Event) -> EventResult:
            return event.replace("found " + event.data)


class Whole(Streams):
    class Hooks(Stream):
        def on_start(self, head: ResponseHead) -> None:
            self.seen = [f"start {head.status}"]

        def on_event(self, event: Event) -> None:
            self.seen.append(event.data)

        def on_complete(self) -> Event:
            return Event(json=self.seen)

        def on_end(self, outcome: Outcome) -> None:
            name: str = outcome  # it is text
            completed = outcome is Outcome.COMPLETED
            self.context.log.info("reached_end", completed=completed, name=name)


class AsyncWhole(Interceptor):
    def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
        return AsyncWholeStream(context)


class AsyncWholeStream(AsyncStreamInterceptor):
    needs = re.compile(rb"two")

    def __init__(self, context: StreamContext) -> None:
        self.context = context

    async def on_start(self, head: ResponseHead) -> None:
        self.seen = [f"start {head.status}"]

    async def on_event(self, event: Event) -> EventResult:
        await trio.lowlevel.checkpoint()
        self.seen.append(event.data)
        return event

    async def on_complete(self) -> Sequence[Event]:
        return [Event(json=self.seen)]

    async def on_end(self, outcome: Outcome) -> None:
        try:
            assert_type(await self.context.emit(Event("late")), None)
        except StreamOver:
            self.context.log.info("reached_end", completed=outcome is Outcome.COMPLETED, over=True)


class MustSee(Streams):
    class Hooks(Stream):
        def on_event(self, event: Event) -> Event:
            return event.replace("seen")


class LetsPass(Streams):
    class Hooks(MustSee.Hooks):
        passes_unseen = True


class AsyncLetsPass(Interceptor):
    def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
        return AsyncLetsPassStream()


class AsyncLetsPassStream(AsyncStreamInterceptor):
    passes_unseen = True

    async def on_event(self, event: Event) -> Event:
        return event.replace("seen")


class Returns(Streams):
    """One kind of result after the other."""

    class Hooks(Stream):
        count = 0

        def on_event(self, event: Event) -> EventResult:
            assert_type((event.raw, event.unknown), tuple[bytes, str])
            fields = event.event, event.id, event.retry
            assert_type(fields, tuple[str | None, str | None, int | None])
            self.count += 1
            if self.count > 1:
                return End(event, Event(data="the last"))
            changed = event.replace("changed", event="e", id="1", retry=5)
            return (event, changed.replace(event=None, id=None, retry=None), Event(json=[1]))


class Aborts(Streams):
    class Hooks(Stream):
        def on_event(self, event: Event) -> EventResult:
            raise Abort("enough of this")


class Fails(Streams):
    class Hooks(Stream):
        def on_event(self, event: Event) -> EventResult:
            raise ValueError("a secret")


class ReadsJson(Streams):
    class Hooks(Stream):
        def on_event(self, event: Event) -> EventResult:
            try:
                event.json()
            except NotJson as error:
                both: tuple[InterceptorError, ValueError] = (error, error)
                return event.replace(f"NotJson {both[0].__class__.__name__}")
            return event


class Keeps(Streams):
    class Hooks(Stream):
        kept: Event | None = None

        def on_event(self, event: Event) -> EventResult:
            kept, self.kept = self.kept, event
            try:
                return event if kept is None else event.replace(kept.data)
            except StaleEvent:
                return event.replace("stale")


class Later(Interceptor):
    """A response of events, which a task could make."""

    async def on_request(self, request: Request) -> Response:
        async def later() -> AsyncIterator[Event]:
            yield Event("a")

        return Response(events=later())


# LLM messages


class Said(MessageStream):
    """Every part, as a line of the log."""

    sees_other_texts = True

    def __init__(self, context: StreamContext) -> None:
        self.context = context

    def say(self, part: Part, said: object) -> None:
        assert isinstance(part.block, Block)
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
        self.say(unread, None)


class Says(MessageInterceptor):
    wants_json = False
    wants_dialect = False

    def open_messages(self, context: StreamContext) -> MessageStream:
        return Said(context)

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        context.log.info("reached", opened=context.path)
        return super().open_stream(context)


class Holds(MessageInterceptor):
    def open_messages(self, context: StreamContext) -> MessageStream:
        return HoldsStream()


class HoldsStream(MessageStream):
    holds_tool_calls = True

    def on_tool_call(self, call: ToolCall) -> None:
        if call.name == "f":
            call.refuse("no such tool for you")
        else:
            call.arguments = f'{{"n": {len(call.arguments)}}}'


class Finishes(MessageInterceptor):
    def open_messages(self, context: StreamContext) -> MessageStream:
        return FinishesStream()


class FinishesStream(MessageStream):
    def on_text_delta(self, delta: TextDelta) -> None:
        self.finish("length", f"cut at {delta.text}")


class Reads(Streams):
    """Readers alone."""

    class Hooks(Stream):
        def on_event(self, event: Event) -> EventResult:
            chat = {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}
            text = {"type": "text", "text": "Hi"}
            block = {"type": "content_block_start", "index": 0, "content_block": text}
            places = {"item_id": "i", "output_index": 0, "content_index": 0}
            item = {"type": "response.output_text.delta", **places, "delta": "Hi"}
            found: list[object] = []
            readers: list[Reader] = [OpenAIChatReader(), AnthropicReader(), OpenAIResponsesReader()]
            messages: list[dict[str, Any]] = [chat, block, item]
            for reader, message in zip(readers, messages, strict=True):
                parts = reader.read(message, message.get("type"))
                part = next(part for part in parts if isinstance(part, TextDelta))
                made: Made = reader.make_delta(part.block, "!")
                found.append([part.text, type(made).__name__])
            return event.replace(json=found)


# MCP messages


class Mcp(McpInterceptor):
    strict = True

    @on_mcp_request("tools/call")
    def denies(self, message: McpMessage) -> McpError:
        return McpError(INVALID_PARAMS, f"not {message.name}")

    @on_mcp_notification()
    def drops(self, message: McpMessage) -> None:
        message.drop()

    @on_mcp_response("tools/list")
    def renames(self, message: McpMessage) -> None:
        message.result["tools"] = [{"name": "renamed"}]


class LaxMcp(McpInterceptor):
    wants_json = True
    wants_body = True

    async def on_request(self, request: Request) -> Response | None:
        request.headers["x-word"] = "asked"
        return await super().on_request(request)

    async def on_response(self, head: ResponseHead) -> Response | None:
        head.headers["x-answered"] = "answered"
        return await super().on_response(head)

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        context.log.info("reached", opened=context.method)
        return super().open_stream(context)


# What is not run


def types(context: StreamContext, request: Request, head: ResponseHead) -> list[Response]:
    every: Needs = None
    found: Needs = re.compile(rb"a|b")
    print(every, found, interceptors.__all__, testing.__all__)
    assert_type(End(Event()).events, tuple[Event, ...])
    assert_type((context.request, context.headers), tuple[Request, Headers])
    assert_type((context.route, context.dialect, context.client), tuple[str, str, str | None])
    assert_type((context.state, request.json()), tuple[dict[str, Any], Any])
    assert_type(context.start_soon(trio.sleep, 1), None)
    shared = [context.store, Answers().store]
    assert_type(shared, list[Store])
    text = Response("text", status=200, headers={"x-a": "b"})
    assert_type((text.status, text.headers, text.body), tuple[int, Headers, bytes])
    result = run_chain([Whole()], [b"data: a\n"], request=request, head=head, max_event_bytes=100)
    assert_type(result, ChainResult)
    assert_type((result.output, result.ended), tuple[bytes, bool])
    assert_type((result.failure, result.counts.total), tuple[InterceptorError | None, int])
    assert_type(NothingCalled("why").args, tuple[Any, ...])
    assert_type(run_request([Answers()], request), Response | None)
    assert_type(run_response([Replaces()], head), Response | None)
    assert_type(run_json([SeesJson()], b"{}", request=request, head=head), bytes)
    return [
        Response(b"bytes", headers=[(b"x-a", b"b"), (b"x-a", b"c")]),
        Response(json=None, headers=Headers({"x-a": "b"})),
        Response(events=[Event("a"), Event("b")]),
    ]


async def shares(store: Store) -> None:
    policy: OnStoreError = "open"
    window = Window("ann/hour", 10, 3600.0, sliding=True, number=None)
    assert_type(await store.take("ann", rate_per_s=1.0, burst=2, on_error=policy), Bucket)
    held = await store.reserve(1, [window], force=False)
    assert_type((held, held.allowed, held.refused), tuple[Reservation, bool, int | None])
    assert_type((await store.spend(0, [window])).states, tuple[WindowState, ...])
    assert_type(await store.settle(held, 1), bool)
    assert_type(await store.put("k", b"v", keep_s=1, only_new=True), bool)
    assert_type((await store.get("k"), await store.remove("k")), tuple[bytes | None, bool])
    assert_type(await store.append("log", 1, 1, [b"a"], keep_s=1), bool)
    assert_type(await store.read("log", after="1-1"), list[LogEntry])
    assert_type((await store.last_id("log"), await store.now()), tuple[str | None, float])
    await store.publish("log", b"stop")
    async with store.subscribe("log") as messages:
        assert_type(await messages.receive(), bytes)
    assert_type(StoreUnavailable("why", "timeout").kind, str)


def errors(error: InterceptorError | Abort) -> None:
    match error:
        case Abort():
            assert_type(error.reason, str)
        case StreamAborted():
            assert_type((error.reason, error.interceptor), tuple[str, str])
        case HookError():
            assert_type((error.interceptor, error.hook), tuple[str, str])
        case LoadError():
            assert_type((error.option, error.errors), tuple[str, tuple[LoadError, ...]])
        case EventTooLarge():
            assert_type(error.max_event_bytes, int)
        case _:
            print(error)
