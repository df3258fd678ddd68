"""Interceptors made of functions, and the ways to drive a chain of them, for the tests beside this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    Interceptor,
    Outcome,
    Request,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain, StreamChain
from pools import Pools

OnEvent = Callable[[Event], Any]
BOM = b"\xef\xbb\xbf"


def head() -> ResponseHead:
    return ResponseHead(200, [(b"content-type", b"text/event-stream")])


# --- interceptors
# -------------------------------------------------------------------------------------------------------


class Hook(Interceptor):
    """An interceptor whose one hook is a function; also for JSON bodies."""

    wants_json = True

    def __init__(self, on_event: OnEvent, on_error: Any = "abort") -> None:
        self.hook = on_event
        self.on_error = on_error

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _HookStream(self.hook)


class _HookStream(StreamInterceptor):
    def __init__(self, hook: OnEvent) -> None:
        self.hook = hook

    def on_event(self, event: Event) -> Any:
        return self.hook(event)


class AsyncHook(Interceptor):
    """The same, awaiting: `before` is awaited first, and what `on_event` returns, if that can be."""

    wants_json = True

    def __init__(
        self,
        on_event: OnEvent,
        on_error: Any = "abort",
        before: Callable[[], Awaitable[object]] | None = None,
        hook_timeout_s: float | None = 30.0,
    ) -> None:
        self.hook = on_event
        self.on_error = on_error
        self.before = before
        self.hook_timeout_s = hook_timeout_s

    def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
        return _AsyncHookStream(self)


class _AsyncHookStream(AsyncStreamInterceptor):
    def __init__(self, interceptor: AsyncHook) -> None:
        self.interceptor = interceptor

    async def on_event(self, event: Event) -> Any:
        if self.interceptor.before is not None:
            await self.interceptor.before()
        result = self.interceptor.hook(event)
        return await result if isinstance(result, Awaitable) else result


class Life(Interceptor):
    """An interceptor that records every call, and fails where the test wants it."""

    def __init__(
        self, name: str, calls: list[Any], fails_in: str = "", on_error: Any = "abort"
    ) -> None:
        self.name, self.calls, self.fails_in, self.on_error = name, calls, fails_in, on_error

    def note(self, hook: str, value: Any = None) -> None:
        self.calls.append((self.name, hook) if value is None else (self.name, hook, value))
        if self.fails_in == hook:
            raise KeyError(hook)

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        self.note("open_stream")
        return _LifeStream(self)


class _LifeStream(StreamInterceptor):
    def __init__(self, life: Life) -> None:
        self.life = life

    def on_start(self, head: ResponseHead) -> None:
        self.life.note("on_start")

    def on_event(self, event: Event) -> Event:
        self.life.note("on_event")
        return event

    def on_end(self, outcome: Outcome) -> None:
        self.life.note("on_end", outcome)


class AsyncLife(Life):
    """The same, with async hooks."""

    def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
        self.note("open_stream")
        return _AsyncLifeStream(self)


class _AsyncLifeStream(AsyncStreamInterceptor):
    def __init__(self, life: Life) -> None:
        self.life = life

    async def on_start(self, head: ResponseHead) -> None:
        self.life.note("on_start")

    async def on_event(self, event: Event) -> Event:
        self.life.note("on_event")
        return event

    async def on_end(self, outcome: Outcome) -> None:
        self.life.note("on_end", outcome)


def keep(event: Event) -> Event:
    return event


def drop(event: Event) -> None:
    return None


def upper(event: Event) -> Event:
    return event.replace(event.data.upper())


def fail(event: Event) -> Event:
    raise KeyError("in the hook")


# --- driving them
# -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_chain(
    *interceptors: tuple[str, Interceptor],
    max_event_bytes: int = 1 << 20,
    pools: Pools | None = None,
    request: Request | None = None,
    json: bool = False,
) -> AsyncIterator[StreamChain]:
    """A stream of these, closed at the end. Raises the error of a member that does not open, as the
    proxy does.
    """
    pools = pools or Pools()
    async with pools.open_scope() as scope:
        chain = Chain(interceptors)
        stream = chain.open_stream(
            request or Request(path="/v1"), pools.json, scope, max_event_bytes, json=json
        )
        outcome = Outcome.COMPLETED
        try:
            if stream.failure is not None:
                outcome = Outcome.INTERCEPTED
                raise stream.failure
            yield stream
        finally:
            await stream.aclose(outcome)


def send(
    stream: StreamChain, window: bytearray, *, final: bool = False
) -> tuple[list[bytes], bytes]:
    """The parts as bytes, one by one, and what is left in the window."""
    parts, at = stream.process(window, 0, len(window), final=final)
    return _leave(stream, parts), bytes(window[at:])


async def say(stream: StreamChain) -> bytes:
    """What leaves of one emitted event."""
    return b"".join(_leave(stream, await stream.take_emitted()))


async def feed(stream: StreamChain, chunks: Iterable[bytes]) -> bytes:
    """What leaves of a stream until it ends or fails, its async hooks awaited as they come."""
    output, window, arriving = b"", bytearray(), list(chunks)
    for index in range(len(arriving) + 1):
        final = index == len(arriving)
        window += b"" if final else arriving[index]
        at, awaiting = 0, True
        while awaiting:
            parts, at = stream.process(window, at, len(window), final=final)
            output += b"".join(_leave(stream, parts))
            awaiting = stream.awaiting
            if awaiting:
                await stream.run_async()
            if stream.failure is not None or (stream.ended and not awaiting):
                return output
        del window[:at]
    return output


def _leave(stream: StreamChain, parts: list[Any]) -> list[bytes]:
    sent = [bytes(part) for part in parts]
    for part in parts:
        assert isinstance(part, memoryview)
        part.release()
    stream.release_parts()
    return sent


def splits(stream: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two at every position."""
    yield [stream]
    yield [stream[i : i + 1] for i in range(len(stream))]
    for i in range(1, len(stream)):
        yield [stream[:i], stream[i:]]


# --- looking at what became of it
# ---------------------------------------------------------------------------------------


def counted(counts: Any) -> tuple[int, int, int, int]:
    return counts.passed, counts.changed, counts.dropped, counts.added


def errors(logs: Iterable[Any]) -> list[tuple[str, str, str]]:
    """The interceptor and hook that failed, and its summary."""
    return [
        (log["interceptor"], log["hook"], log["on_error"])
        for log in logs
        if log["event"] == "interceptor_failed"
    ]
