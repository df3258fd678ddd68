"""Interceptors made of functions, and the ways to drive a chain of them, for the tests beside this."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    Interceptor,
    Needs,
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
OLD = b"data: old\n\n"


def head() -> ResponseHead:
    return ResponseHead(200, [(b"content-type", b"text/event-stream")])


# Interceptors


class Hook(Interceptor):
    """An interceptor whose one hook is a function; also for JSON bodies."""

    wants_json = True

    def __init__(self, on_event: OnEvent, on_error: Any = "abort", needs: Needs = None) -> None:
        self.hook = on_event
        self.on_error = on_error
        self.needs = needs

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _HookStream(self.hook, self.needs)


class _HookStream(StreamInterceptor):
    def __init__(self, hook: OnEvent, needs: Needs) -> None:
        self.hook = hook
        self.needs = needs

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


def keep(event: Event) -> Event:
    return event


def drop(event: Event) -> None:
    return None


def upper(event: Event) -> Event:
    return event.replace(event.data.upper())


def fail(event: Event) -> Event:
    raise KeyError("in the hook")


# Driving a chain


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


async def emitted(stream: StreamChain) -> bytes:
    """What leaves of one emitted event."""
    return b"".join(_leave(stream, await stream.take_emitted()))


async def feed(
    stream: StreamChain,
    chunks: Iterable[bytes],
    after: Callable[[int], Awaitable[bytes]] | None = None,
) -> bytes:
    """What leaves of a stream until it ends or fails. Each window is overwritten when it has been
    processed: an event or a view that outlives it shows. `after` adds bytes after a chunk.
    """
    output, left, arriving = b"", b"", [*chunks, b""]
    for index, chunk in enumerate(arriving):
        window = bytearray(b"##" + left + chunk + OLD)
        at, end, final = 2, len(window) - len(OLD), index == len(arriving) - 1
        while True:
            parts, at = stream.process(window, at, end, final=final)
            output += b"".join(_leave(stream, parts))
            if not stream.awaiting:
                break
            await stream.run_async()
            if stream.failure is not None:
                break
        left = bytes(window[at:end])
        window[:] = b"!" * len(window)
        window.clear()  # BufferError if something still has a view of it
        if stream.failure is None and not stream.ended and after is not None:
            output += await after(index)
        if stream.failure is not None or stream.ended:
            return output
    if stream.completes:
        output += b"".join(_leave(stream, await stream.complete()))
    return output


def _leave(stream: StreamChain, parts: list[Any]) -> list[bytes]:
    sent = [bytes(part) for part in parts]
    for part in parts:
        assert isinstance(part, memoryview)
        part.release()
    stream.release_parts()
    return sent


# Streams


def next_block(stream: bytes) -> tuple[bytes, bool]:
    """The lines up to the first empty one, read naively, and whether the empty one is there."""
    match = re.match(rb"(?:[^\r\n]+(?>\r\n|\r|\n))*+(?>\r\n|\r|\n)", stream)
    return (stream, False) if match is None else (match[0], True)


def is_comment(block: bytes) -> bool:
    """Whether a block has no line but comments and empty ones."""
    return all(line[:1] in (b"", b":") for line in re.split(rb"[\r\n]+", block))


def splits(stream: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two at every position."""
    yield [stream]
    yield [stream[i : i + 1] for i in range(len(stream))]
    for i in range(1, len(stream)):
        yield [stream[:i], stream[i:]]


# What became of it


def counted(counts: Any) -> tuple[int, int, int, int]:
    return counts.passed, counts.changed, counts.dropped, counts.added


def errors(logs: Iterable[Any]) -> list[tuple[str, str, str]]:
    """The interceptor and hook that failed, and its `on_error`."""
    return [
        (log["interceptor"], log["hook"], log["on_error"])
        for log in logs
        if log["event"] == "interceptor_failed"
    ]
