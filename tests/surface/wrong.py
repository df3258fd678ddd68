"""Mistakes of authors: a type checker must report exactly the marked lines."""

from __future__ import annotations

import re

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    EventResult,
    Interceptor,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.testing import run_chain, run_request


class ReturnsText(StreamInterceptor):
    def on_event(self, event: Event) -> EventResult:
        return event.data  # expect-error


class SaysItReturnsText(StreamInterceptor):
    def on_event(self, event: Event) -> str:  # expect-error
        return event.data


class ReturnsTexts(StreamInterceptor):
    def on_event(self, event: Event) -> EventResult:
        return [event, "more"]  # expect-error


class AwaitsInASyncStream(StreamInterceptor):
    async def on_event(self, event: Event) -> EventResult:  # expect-error
        return event


class AsyncStartOfASyncStream(StreamInterceptor):
    async def on_start(self, head: ResponseHead) -> None: ...  # expect-error


class SyncInAnAsyncStream(AsyncStreamInterceptor):
    def on_event(self, event: Event) -> EventResult:  # expect-error
        return event


class SyncEndOfAnAsyncStream(AsyncStreamInterceptor):
    def on_end(self, outcome: Outcome) -> None: ...  # expect-error


class TakesTooMuch(StreamInterceptor):
    def on_event(self, event: Event, context: StreamContext) -> EventResult:  # expect-error
        return event


class NeedsText(StreamInterceptor):
    needs = ("error",)  # expect-error


class NeedsAPatternOfText(StreamInterceptor):
    needs = re.compile("error")  # expect-error


class SyncRequest(Interceptor):
    def on_request(self, request: Request) -> Response | None:  # expect-error
        return None


class AnswersWithText(Interceptor):
    async def on_request(self, request: Request) -> Response | None:
        return "no"  # expect-error


class OpensAClass(Interceptor):
    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return StreamInterceptor  # expect-error


class OpensAsync(Interceptor):
    async def open_stream(self, context: StreamContext) -> StreamInterceptor:  # expect-error
        return StreamInterceptor()


class OnErrorIsUnknown(Interceptor):
    on_error = "ignore"  # expect-error


class TimeoutIsText(Interceptor):
    hook_timeout_s = "30"  # expect-error


class LifespanIsNoContext(Interceptor):
    async def lifespan(self) -> None: ...  # expect-error


def events(event: Event) -> None:
    Event(data=3)  # expect-error
    Event(data=b"bytes")  # expect-error
    Event("text", "type")  # expect-error
    Event(retry="5")  # expect-error
    Event(id=5)  # expect-error
    Event(text="a")  # expect-error
    event.replace(data=b"a")  # expect-error
    event.replace(retry=0.5)  # expect-error
    event.data = "other"  # expect-error
    event.event = "other"  # expect-error
    print(event.text)  # expect-error
    End("bye")  # expect-error
    End([event])  # expect-error
    Abort(403)  # expect-error
    Abort()  # expect-error


def requests(request: Request) -> None:
    request.method = b"GET"  # expect-error
    request.path = b"/"  # expect-error
    request.raw_path = b"/"  # expect-error
    request.body = b"other"  # expect-error
    request.replace_body({"a": 1})  # expect-error
    request.start_soon(print, "a")  # expect-error
    request.refuse("no")  # expect-error
    request.is_preflight = True  # expect-error


def answers() -> None:
    Response(403, "no")  # expect-error
    Response(status="403")  # expect-error
    Response(events=["a"])  # expect-error
    Response(headers={"a": 1})  # expect-error


async def emits(context: StreamContext) -> None:
    await context.emit("text")  # expect-error
    await context.emit(event=Event("a"), at=1)  # expect-error
    context.path = "/"  # expect-error
    context.start_soon(context.emit(Event("a")))  # expect-error


def runs() -> None:
    run_chain([Interceptor], [b"data: a\n\n"])  # expect-error
    run_chain([Interceptor()], ["data: a\n\n"])  # expect-error
    run_request([Interceptor()], "/path")  # expect-error
