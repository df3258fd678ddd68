"""Run interceptors without a network: on requests, heads, events in chunks and JSON bodies.

    result = run_chain([Redact(patterns=["secret"])], [b'data: "sec', b'ret"\\n\\n'])
    assert result.output == b'data: "[redacted]"\\n\\n'

The chain is the one of the proxy, and the loader's checks apply (`LoadError`). A run that leaks a
buffer or never awaits a coroutine is an `AssertionError`. A run that calls no hook warns with
`NothingCalled`. Each function starts its own Trio run, so it cannot be called from async code.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from pools import Pools

from .api import Interceptor, Outcome
from .called import Calls
from .chain import Chain, enter_lifespans
from .checks import check_interceptor, check_settings
from .errors import InterceptorError, LoadError
from .hooks import Owner
from .memory import MemoryEngine
from .message import Request, Response, ResponseHead, forget_body
from .refusals import error_format
from .store import Store
from .stream import EventCounts, Part, StreamChain

__all__ = ["ChainResult", "NothingCalled", "run_chain", "run_json", "run_request", "run_response"]

T = TypeVar("T")

_Run = Callable[[Chain, Pools, Calls], Awaitable[T]]


class NothingCalled(UserWarning):
    """A run called no hook, or found no LLM answer, so its result proves nothing.

    Where a test intends that, expect the warning: `pytest.warns(NothingCalled)`.
    """


@dataclass(frozen=True, slots=True)
class ChainResult:
    """The result of `run_chain`."""

    output: bytes
    """What the client gets."""
    counts: EventCounts
    """Events passed, changed, dropped and added."""
    failure: InterceptorError | None
    """The error that ended the stream, or None."""
    ended: bool = False
    """Whether a hook ended the stream with `End`."""


def run_request(interceptors: Sequence[Interceptor], request: Request) -> Response | None:
    """Call all `on_request` hooks with `request`, which they may change.

    As in the proxy, hooks without `wants_body` are called first. Returns the response that one of
    them gave, or None. Raises `InterceptorError`.
    """

    async def run(chain: Chain, pools: Pools, calls: Calls) -> Response | None:
        show = _hide_body(request)
        try:
            collects = chain.wants_body or error_format(request.dialect).is_json_rpc
            return await chain.on_request(request, show_body=show if collects else None)
        finally:
            show()

    return _run_trio(interceptors, request, run, hook="on_request")


def run_response(interceptors: Sequence[Interceptor], head: ResponseHead) -> Response | None:
    """Call all `on_response` hooks with `head`, which they may change.

    Returns the response that replaces the upstream's, or None. Raises `InterceptorError`.
    """

    async def run(chain: Chain, pools: Pools, calls: Calls) -> Response | None:
        return await chain.on_response(head)

    return _run_trio(interceptors, head.request, run, hook="on_response")


def run_json(
    interceptors: Sequence[Interceptor],
    body: bytes,
    *,
    request: Request | None = None,
    head: ResponseHead | None = None,
    max_event_bytes: int = 1 << 20,
) -> bytes:
    """Show an `application/json` body to the interceptors with `wants_json`.

    Returns the body that the client gets. Raises `InterceptorError`.
    """
    request = request or Request()
    json_head = head or ResponseHead(200, [(b"content-type", b"application/json")], request)

    async def script(stream: StreamChain) -> bytes:
        buffer = bytearray(body)
        if len(buffer) > max_event_bytes:
            stream.begin_large_body(buffer, len(buffer))
            return body
        changed = await stream.process_body(buffer)
        return body if changed is None else changed

    run = _in_stream(request, json_head, script, max_event_bytes, json=True)
    return _run_trio(interceptors, request, run)


def run_chain(
    interceptors: Sequence[Interceptor],
    chunks: Iterable[bytes],
    *,
    request: Request | None = None,
    head: ResponseHead | None = None,
    max_event_bytes: int = 1 << 20,
) -> ChainResult:
    """Open a stream, feed it `chunks` as if they arrived one by one, and end it.

    Events that tasks emit are added once all tasks wait for something. A failed `on_event` is in
    `ChainResult.failure`. Raises `InterceptorError` if `open_stream` or `on_start` fails.
    """
    request = request or Request()
    stream_head = head or ResponseHead(200, [(b"content-type", b"text/event-stream")], request)
    arriving = list(chunks)

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

    run = _in_stream(request, stream_head, script, max_event_bytes)
    return _run_trio(interceptors, request, run)


async def _feed(stream: StreamChain, pending: bytearray, output: bytearray, *, final: bool) -> None:
    """Process `pending`, await async hooks, then let tasks run and take what they emitted."""

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
    await wait_all_tasks_blocked()
    while stream.emitted and stream.failure is None and not stream.ended:
        leave(await stream.take_emitted())
        await wait_all_tasks_blocked()


def _in_stream(
    request: Request,
    head: ResponseHead,
    script: Callable[[StreamChain], Awaitable[T]],
    max_event_bytes: int,
    *,
    json: bool = False,
) -> _Run[T]:
    """A run that opens a stream, plays `script` and ends the stream."""

    async def run(chain: Chain, pools: Pools, calls: Calls) -> T:
        async with pools.open_scope() as scope:
            stream = chain.open_stream(request, pools.json, scope, max_event_bytes, json=json)
            calls.watch(stream)
            outcome = Outcome.INTERCEPTED
            try:
                if stream.failure is not None:
                    raise stream.failure
                await stream.start(head)
                with nullcontext() if json else _forgotten_body(request):
                    result = await script(stream)
                if stream.failure is None and not stream.ended:
                    outcome = Outcome.COMPLETED
                    calls.note_unrecognised(stream)
                return result
            finally:
                await stream.aclose(outcome)

    return run


class _TestedOwner(Owner):
    """As in the proxy, but a `LoadError` counts whatever `on_error` is."""

    __slots__ = ()

    def failed(self, hook: str, error: Exception) -> InterceptorError | None:
        return error if isinstance(error, LoadError) else super().failed(hook, error)


def _run_trio(
    interceptors: Sequence[Interceptor], request: Request, run: _Run[T], hook: str | None = None
) -> T:
    """Run and check what `NothingCalled` warns of. `hook`: the one that is run, if not a stream."""
    for item in interceptors:
        check_interceptor(type(item))
        check_settings(item)
    owners = [_TestedOwner(type(item).__name__, item) for item in interceptors]
    calls = Calls(owners, request)
    # With `dialect: mcp` the proxy itself collects the body.
    collects = error_format(request.dialect).is_json_rpc or any(
        item.wants_body for item in interceptors
    )
    with (
        nullcontext() if collects else _passing_unread(request),
        calls.of_messages(),
        _awaiting_all(),
    ):
        result = trio.run(_run_in_exchange, owners, request, run, calls)
    if hook is not None:
        calls.note_overridden(hook, answered=result is not None)
    is_cut = isinstance(result, ChainResult) and (result.failure is not None or result.ended)
    problem = None if is_cut else calls.problem(hook)
    if problem is not None:
        warnings.warn(problem, NothingCalled, stacklevel=3)
    return result


async def _run_in_exchange(
    owners: Sequence[Owner], request: Request, run: _Run[T], calls: Calls
) -> T:
    """Run with the lifespans entered and tasks possible. Raises the first problem."""
    pools = Pools(leak_detection="paranoid")
    chain = Chain(owners)
    problems: list[Exception] = []
    results: list[T] = []

    async def run_task(
        owner: Owner, async_fn: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        problem = await owner.run_task(async_fn, args)
        if problem is not None:
            problems.append(problem)

    async with AsyncExitStack() as stack:
        for owner in chain.owners:  # a new one for each run: times are of Trio's clock
            owner.use_store(Store(MemoryEngine(), owner.name))
        await enter_lifespans(chain.owners, stack)
        async with trio.open_nursery() as nursery:
            request.spawn = lambda owner, async_fn, args: nursery.start_soon(
                run_task, owner, async_fn, args
            )
            try:
                results.append(await run(chain, pools, calls))
            except Exception as error:
                problems.insert(0, error)  # raised outside the nursery, which would wrap it
            nursery.cancel_scope.cancel()
    kept = {stats.pool: stats.in_use for stats in pools.statistics() if stats.in_use}
    assert not kept, f"leases were not given back: {kept}"
    if problems:
        raise problems[0]
    return results[0]


@contextmanager
def _awaiting_all() -> Iterator[None]:
    """Turn Python's warning about a coroutine that was never awaited into an `AssertionError`."""
    dropped: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def look(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category is RuntimeWarning and str(message).endswith("was never awaited"):
                dropped.append(str(message))
            else:
                show(message, category, *place, **more)

        warnings.filterwarnings("always", message=r".* was never awaited", category=RuntimeWarning)
        warnings.showwarning = look
        yield
    assert not dropped, f"a hook did not await what it called: {'; '.join(dropped)}"


@contextmanager
def _passing_unread(request: Request) -> Iterator[None]:
    """As in the proxy without `wants_body`: reading the body raises, unless one replaced it."""
    show = _hide_body(request)
    try:
        yield
    finally:
        show()


@contextmanager
def _forgotten_body(request: Request) -> Iterator[None]:
    """As in the proxy after the response head is sent: reading the body raises."""
    body = request._body
    forget_body(request)
    try:
        yield
    finally:
        request.set_body(body)


def _hide_body(request: Request) -> Callable[[], None]:
    """Hide the body until the returned function is called."""
    try:
        body = request.body
    except RuntimeError:  # the request was created without one
        body = None
    if not request.body_replaced:
        request.set_body(None)

    def show() -> None:
        if not request.body_replaced:
            request.set_body(body)

    return show
