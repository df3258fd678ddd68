"""Try interceptors without a network: scripted requests, heads, events in any chunks, JSON bodies; and look at what leaves.

    result = run_chain([Redact(patterns=["secret"])], [b'data: "sec', b'ret"\\n\\n'])
    assert result.output == b'data: "[redacted]"\\n\\n'

Nothing is kept: a lease that is not back at the end is an `AssertionError`. Each function runs Trio, and so cannot be called in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from pools import Pools

from .api import Interceptor, Outcome
from .chain import Chain, enter_lifespans
from .errors import InterceptorError
from .hooks import Owner
from .message import Request, Response, ResponseHead
from .stream import EventCounts, Part, StreamChain

__all__ = ["ChainResult", "run_chain", "run_json", "run_request", "run_response"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChainResult:
    output: bytes
    counts: EventCounts
    failure: InterceptorError | None
    """Why the stream was ended before its end, or None."""
    ended: bool = False
    """A hook has ended the stream with `End`."""


def run_request(interceptors: Sequence[Interceptor], request: Request) -> Response | None:
    """Show `request` to all `on_request` hooks, which may change it: first to those that do not want its body.

    The answer, if one gives it. Raises `InterceptorError`.
    """

    async def run(chain: Chain, pools: Pools) -> Response | None:
        hidden = _hide_body(request)
        try:
            return await chain.on_request(
                request, show_body=hidden if chain.wants_body or request.dialect == "mcp" else None
            )
        finally:
            hidden()

    return _run_trio(interceptors, request, run)


def run_response(interceptors: Sequence[Interceptor], head: ResponseHead) -> Response | None:
    """Show `head` to all `on_response` hooks, which may change it. What replaces the response. Raises `InterceptorError`."""

    async def run(chain: Chain, pools: Pools) -> Response | None:
        return await chain.on_response(head)

    return _run_trio(interceptors, head.request, run)


def run_json(
    interceptors: Sequence[Interceptor],
    body: bytes,
    *,
    request: Request | None = None,
    head: ResponseHead | None = None,
    max_event_bytes: int = 1 << 20,
) -> bytes:
    """Show an `application/json` body to those that say `wants_json`. The body that leaves. Raises `InterceptorError`."""
    request = request or Request()
    json_head = head or ResponseHead(200, [(b"content-type", b"application/json")], request)

    async def run(chain: Chain, pools: Pools) -> bytes:
        async def script(stream: StreamChain) -> bytes:
            buffer = bytearray(body)
            if len(buffer) > max_event_bytes:
                stream.begin_large_body(buffer, len(buffer))
                return body
            changed = await stream.process_body(buffer)
            return body if changed is None else changed

        return await _in_stream(chain, pools, request, json_head, script, json=True, max_event_bytes=max_event_bytes)

    return _run_trio(interceptors, request, run)


def run_chain(
    interceptors: Sequence[Interceptor],
    chunks: Iterable[bytes],
    *,
    request: Request | None = None,
    head: ResponseHead | None = None,
    max_event_bytes: int = 1 << 20,
) -> ChainResult:
    """Open a stream of `interceptors`, feed it `chunks` as they would arrive, end it.

    What tasks of theirs emit leaves when all of them are waiting for something. Raises `InterceptorError` when `open_stream` or
    `on_start` of an interceptor that says `abort` fails.
    """
    request = request or Request()
    stream_head = head or ResponseHead(200, [(b"content-type", b"text/event-stream")], request)
    arriving = list(chunks)

    async def run(chain: Chain, pools: Pools) -> ChainResult:
        async def script(stream: StreamChain) -> ChainResult:
            output = bytearray()
            pending = bytearray()
            for index in range(len(arriving) + 1):
                final = index == len(arriving)
                pending += b"" if final else arriving[index]
                await _feed(stream, pending, output, final=final)
                if stream.failure is not None or stream.ended:
                    break
            if stream.completes and stream.failure is None and not stream.ended:
                output += b"".join(await stream.complete())
                stream.release_parts()
            return ChainResult(bytes(output), stream.counts, stream.failure, stream.ended)

        return await _in_stream(chain, pools, request, stream_head, script, max_event_bytes=max_event_bytes)

    return _run_trio(interceptors, request, run)


async def _feed(stream: StreamChain, pending: bytearray, output: bytearray, *, final: bool) -> None:
    """Process what is there, until no hook is to be awaited; then let tasks run, and take what they have emitted."""

    def leave(parts: list[Part]) -> None:
        output.extend(b"".join(parts))
        parts.clear()
        stream.release_parts()

    at = 0
    while True:
        parts, at = stream.process(pending, at, len(pending), final=final)
        leave(parts)
        if not stream.awaiting:
            break
        await stream.run_async()
        if stream.failure is not None:
            return
    del pending[:at]
    await wait_all_tasks_blocked()  # tasks that the interceptors have started
    while stream.emitted and stream.failure is None and not stream.ended:
        leave(await stream.take_emitted())
        await wait_all_tasks_blocked()


async def _in_stream(
    chain: Chain,
    pools: Pools,
    request: Request,
    head: ResponseHead,
    script: Callable[[StreamChain], Awaitable[T]],
    *,
    max_event_bytes: int = 1 << 20,
    json: bool = False,
) -> T:
    async with pools.open_scope() as scope:
        stream = chain.open_stream(request, pools.json, scope, max_event_bytes, json=json)
        outcome = Outcome.INTERCEPTED
        try:
            if stream.failure is not None:
                raise stream.failure
            await stream.start(head)
            result = await script(stream)
            if stream.failure is None and not stream.ended:
                outcome = Outcome.COMPLETED
            return result
        finally:
            await stream.aclose(outcome)


def _run_trio(interceptors: Sequence[Interceptor], request: Request, run: Callable[[Chain, Pools], Awaitable[T]]) -> T:
    async def main() -> T:
        pools = Pools(leak_detection="paranoid")
        chain = Chain([Owner(type(item).__name__, item) for item in interceptors])
        problems: list[Exception] = []
        results: list[T] = []

        async def run_task(owner: Owner, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
            problem = await owner.run_task(async_fn, args)
            if problem is not None:
                problems.append(problem)

        async with AsyncExitStack() as stack:
            await enter_lifespans(chain.owners, stack)
            async with trio.open_nursery() as nursery:
                request.spawn = lambda owner, async_fn, args: nursery.start_soon(run_task, owner, async_fn, args)
                try:
                    results.append(await run(chain, pools))
                except Exception as error:
                    problems.insert(0, error)  # raised below, outside of the nursery, which would wrap it in a group
                nursery.cancel_scope.cancel()
        kept = {stats.pool: stats.in_use for stats in pools.statistics() if stats.in_use}
        assert not kept, f"leases were not given back: {kept}"
        if problems:
            raise problems[0]
        return results[0]

    # On routes of `dialect: mcp` the proxy itself collects the body.
    collected = request.dialect == "mcp" or any(item.wants_body for item in interceptors)
    with nullcontext() if collected else _passing_unread(request):
        return trio.run(main)


@contextmanager
def _passing_unread(request: Request) -> Iterator[None]:
    """As behind a proxy, no interceptor may ask for a body that nobody wants, unless one has replaced it."""
    show = _hide_body(request)
    try:
        yield
    finally:
        show()


def _hide_body(request: Request) -> Callable[[], None]:
    """Let nobody ask for the body until what is returned is called."""
    try:
        body = request.body
    except RuntimeError:  # that is how it was made
        body = None
    if not request.body_replaced:
        request.set_body(None)

    def show() -> None:
        if not request.body_replaced:
            request.set_body(body)

    return show
