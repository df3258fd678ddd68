"""Every public name of `interceptors`, used as an author does; `assert_type` checks each type.

Two type checkers read this (`unit/interceptors/test_surface.py`). It is never run.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, assert_type

import httpx

import interceptors
import interceptors.testing as testing
from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    EventResult,
    EventTooLarge,
    Headers,
    HookError,
    Interceptor,
    InterceptorError,
    LoadError,
    Needs,
    NotJson,
    OnError,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StaleEvent,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
    StreamOver,
)
from interceptors.testing import (
    ChainResult,
    NothingCalled,
    run_chain,
    run_json,
    run_request,
    run_response,
)

# A whole interceptor


@dataclass
class Options:
    most: int = 1000
    words: Sequence[str] = ()


class Whole(Interceptor):
    on_error = "skip"
    wants_body = True
    wants_json = True
    hook_timeout_s = 5.0

    def __init__(self, options: Options) -> None:
        self.options = options

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None, None]:
        async with httpx.AsyncClient() as self.client:
            yield

    async def on_request(self, request: Request) -> Response | None:
        assert_type(request.method, str)
        assert_type(request.path, str)
        assert_type(request.raw_path, bytes)
        assert_type(request.query, bytes)
        assert_type(request.headers, Headers)
        assert_type(request.headers.get_list("accept"), list[str])
        assert_type(request.route, str)
        assert_type(request.client, str | None)
        assert_type(request.state, dict[str, Any])
        assert_type(request.body, bytes)
        assert_type(request.body_replaced, bool)
        assert_type(request.has_body, bool)
        assert_type(request.is_preflight, bool)
        assert_type(request.json(), Any)
        assert_type(request.log, Any)
        request.state["seen"] = 1
        request.method = "POST"
        request.path = "/v2" + request.path
        request.query = b"a=b"
        request.headers["x-team"] = "blue"
        del request.headers["x-internal"]
        request.log.info("seen", path=request.path)
        request.start_soon(self.tell, request, 3)
        if request.path == "/text":
            request.replace_body("text")
        elif request.path == "/bytes":
            request.replace_body(b"bytes")
        else:
            request.replace_body(json={"n": 1})
        if request.path == "/refused":
            return request.refuse(403, "not_here", "not here", headers={"retry-after": "1"})
        if request.path == "/answer":
            return Response(status=403, json={"error": "not here"})
        return None

    async def on_response(self, head: ResponseHead) -> Response | None:
        assert_type(head.status, int)
        assert_type(head.headers, Headers)
        assert_type(head.media_type, str)
        assert_type(head.request, Request)
        if head.status == 404:
            return Response("gone", status=410)
        head.status = 201
        head.headers["x-seen"] = "yes"
        return None

    def open_stream(
        self, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor | None:
        assert_type(context.request, Request)
        assert_type(context.route, str)
        assert_type(context.method, str)
        assert_type(context.path, str)
        assert_type(context.headers, Headers)
        assert_type(context.client, str | None)
        assert_type(context.state, dict[str, Any])
        assert_type(context.log, Any)
        assert_type(context.is_body, bool)
        if context.path == "/out":
            return None
        context.start_soon(self.tick, context)
        return Limit(context, self.options.most) if context.method == "GET" else Moderate(context)

    async def tell(self, request: Request, times: int) -> None: ...

    async def tick(self, context: StreamContext) -> None:
        try:
            assert_type(await context.emit(Event(event="tick", data="")), None)
        except StreamOver:
            return


class Limit(StreamInterceptor):
    needs = (b"error", b"usage")
    passes_unseen = True

    def __init__(self, context: StreamContext, most: int) -> None:
        self.context = context
        self.left = most
        self.kept: list[Event] = []

    def on_start(self, head: ResponseHead) -> None:
        assert_type(head.status, int)

    def on_event(self, event: Event) -> EventResult:
        assert_type(event.data, str)
        assert_type(event.raw, bytes)
        assert_type(event.event, str | None)
        assert_type(event.id, str | None)
        assert_type(event.retry, int | None)
        assert_type(event.is_body, bool)
        assert_type(event.json(), Any)
        assert_type(event.detach(), Event)
        assert_type(event.replace(), Event)
        self.kept.append(event.detach())
        match event.data:
            case "drop":
                return None
            case "same":
                return event
            case "text":
                return event.replace("text", event="e", id="1", retry=5)
            case "fewer":
                return event.replace(event=None, id=None, retry=None)
            case "json":
                return event.replace(json=None)
            case "several":
                return [event, Event("more"), Event(json=[1], event="e", id="1", retry=5)]
            case "tuple":
                return (event, Event())
            case "end":
                return End(event, Event(data="[DONE]"))
            case "silent":
                return End()
            case _:
                raise Abort("the model has failed")

    def on_end(self, outcome: Outcome) -> None:
        name: str = outcome  # it is text
        if outcome is Outcome.COMPLETED:
            self.context.log.info("whole", outcome=name)


class Moderate(AsyncStreamInterceptor):
    needs = re.compile(rb'"(?:error|refusal)"')

    def __init__(self, context: StreamContext) -> None:
        self.context = context

    async def on_start(self, head: ResponseHead) -> None:
        await self.context.emit(Event("hello"))

    async def on_event(self, event: Event) -> EventResult:
        return event

    async def on_complete(self) -> Event:
        return Event("goodbye")

    async def on_end(self, outcome: Outcome) -> None: ...


class Selective(StreamInterceptor):
    """`needs` set on the object, and a hook with a narrower result."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.needs = words or None

    def on_event(self, event: Event) -> list[Event]:
        return [event, event]


class Narrow(Interceptor):
    """Hooks with narrower results."""

    on_error: OnError = "abort"
    hook_timeout_s = None

    async def on_request(self, request: Request) -> None: ...

    async def on_response(self, head: ResponseHead) -> Response:
        return Response()

    def open_stream(self, context: StreamContext) -> Selective:
        return Selective([b"a"])


# Answers


async def later() -> AsyncIterator[Event]:
    yield Event("a")


def answers() -> list[Response]:
    text = Response("text", status=200, headers={"x-a": "b"})
    assert_type(text.status, int)
    assert_type(text.headers, Headers)
    assert_type(text.body, bytes)
    return [
        text,
        Response(),
        Response(b"bytes", headers=[(b"x-a", b"b"), (b"x-a", b"c")]),
        Response(json=None, headers=Headers({"x-a": "b"})),
        Response(events=[Event("a"), Event("b")]),
        Response(events=later()),
    ]


# Values


def values() -> None:
    every: Needs = None
    some: Needs = (b"a", b"b")
    found: Needs = re.compile(rb"a|b")
    skip: OnError = "skip"
    dropped: EventResult = None
    print(every, some, found, skip, dropped)
    assert_type(End(Event()).events, tuple[Event, ...])
    assert_type(interceptors.__all__, list[str])
    assert_type(testing.__all__, list[str])
    outcomes = [
        Outcome.COMPLETED,
        Outcome.CLIENT_DISCONNECTED,
        Outcome.UPSTREAM_ERROR,
        Outcome.UPSTREAM_TIMEOUT,
        Outcome.SEND_STALLED,
        Outcome.INTERCEPTED,
        Outcome.REFUSED,
        Outcome.INTERNAL_ERROR,
        Outcome.DRAINING,
    ]
    assert_type(outcomes, list[Outcome])


def errors(event: Event) -> None:
    try:
        event.json()
    except NotJson as error:
        value_error: ValueError = error
        print(value_error)
    except StaleEvent as error:
        base: InterceptorError = error
        print(base)
    except Abort as abort:
        assert_type(abort.reason, str)
    except StreamAborted as error:
        assert_type(error.reason, str)
        assert_type(error.interceptor, str)
    except HookError as error:
        assert_type(error.interceptor, str)
        assert_type(error.hook, str)
    except LoadError as error:
        assert_type(error.option, str)
    except EventTooLarge as error:
        assert_type(error.max_event_bytes, int)


# Without a network


def without_a_network() -> None:
    request = Request(
        method="POST",
        path="/a",
        raw_path=b"/%61",
        query=b"q",
        headers=[(b"a", b"b")],
        body=b"{}",
        route="/",
        client="127.0.0.1",
        has_body=True,
    )
    head = ResponseHead(200, Headers({"content-type": "text/event-stream"}), request)
    result = run_chain(
        [Narrow(), Whole(Options())],
        [b"data: a\n", b"\n"],
        request=request,
        head=head,
        max_event_bytes=100,
    )
    assert_type(result, ChainResult)
    assert_type(NothingCalled("why").args, tuple[Any, ...])
    assert_type(result.output, bytes)
    assert_type(result.failure, InterceptorError | None)
    assert_type(result.ended, bool)
    assert_type(result.counts.passed, int)
    assert_type(result.counts.changed, int)
    assert_type(result.counts.dropped, int)
    assert_type(result.counts.added, int)
    assert_type(result.counts.total, int)
    assert_type(run_request([Narrow()], request), Response | None)
    assert_type(run_response([Narrow()], head), Response | None)
    assert_type(run_json([Narrow()], b"{}", request=request, head=ResponseHead(200, [])), bytes)
