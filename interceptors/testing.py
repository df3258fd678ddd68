"""Try interceptors without a network: scripted requests, heads, events in any chunks, JSON bodies;
and look at what leaves.

    result = run_chain([Redact(patterns=["secret"])], [b'data: "sec', b'ret"\\n\\n'])
    assert result.output == b'data: "[redacted]"\\n\\n'

The classes pass the checks of the loader first: a `LoadError` otherwise. Nothing is kept: a lease
that is not back at the end is an `AssertionError`, and so is a coroutine that was never awaited.
The warning `NothingCalled` is for a run that shows nothing. Each function runs Trio, and so cannot
be called in it.
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

from .api import AsyncStreamInterceptor, Interceptor, Outcome, StreamInterceptor
from .chain import Chain, enter_lifespans
from .checks import check_interceptor, check_settings
from .dialects import MessageInterceptor, MessageStream
from .dialects.answers import readers_for
from .dialects.mcp_hooks import McpInterceptor
from .errors import InterceptorError, LoadError
from .hooks import Owner
from .message import Request, Response, ResponseHead, forget_body
from .refusals import error_format
from .stream import EventCounts, Part, StreamChain

__all__ = ["ChainResult", "NothingCalled", "run_chain", "run_json", "run_request", "run_response"]

T = TypeVar("T")


class NothingCalled(UserWarning):
    """A run called no hook, or recognised no answer of an LLM: its result says nothing about the
    interceptors.

    Where that is what a test is about, let it expect the warning: `pytest.warns(NothingCalled)`.
    """


@dataclass(frozen=True, slots=True)
class ChainResult:
    output: bytes
    counts: EventCounts
    failure: InterceptorError | None
    """Why the stream was ended before its end, or None."""
    ended: bool = False
    """A hook has ended the stream with `End`."""


def run_request(interceptors: Sequence[Interceptor], request: Request) -> Response | None:
    """Show `request` to all `on_request` hooks, which may change it: first to those that do not
    want its body.

    The answer, if one gives it. Raises `InterceptorError`.
    """

    async def run(chain: Chain, pools: Pools, calls: _Calls) -> Response | None:
        hidden = _hide_body(request)
        try:
            return await chain.on_request(
                request,
                show_body=hidden
                if chain.wants_body or error_format(request.dialect).is_json_rpc
                else None,
            )
        finally:
            hidden()

    return _run_trio(interceptors, request, run, hook="on_request")


def run_response(interceptors: Sequence[Interceptor], head: ResponseHead) -> Response | None:
    """Show `head` to all `on_response` hooks, which may change it. What replaces the response.
    Raises `InterceptorError`.
    """

    async def run(chain: Chain, pools: Pools, calls: _Calls) -> Response | None:
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
    """Show an `application/json` body to those that say `wants_json`. The body that leaves. Raises
    `InterceptorError`.
    """
    request = request or Request()
    json_head = head or ResponseHead(200, [(b"content-type", b"application/json")], request)

    async def run(chain: Chain, pools: Pools, calls: _Calls) -> bytes:
        async def script(stream: StreamChain) -> bytes:
            buffer = bytearray(body)
            if len(buffer) > max_event_bytes:
                stream.begin_large_body(buffer, len(buffer))
                return body
            changed = await stream.process_body(buffer)
            return body if changed is None else changed

        return await _in_stream(
            chain,
            pools,
            calls,
            request,
            json_head,
            script,
            json=True,
            max_event_bytes=max_event_bytes,
        )

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

    What tasks of theirs emit leaves when all of them are waiting for something. Raises
    `InterceptorError` when `open_stream` or `on_start` of an interceptor that says `abort` fails.
    """
    request = request or Request()
    stream_head = head or ResponseHead(200, [(b"content-type", b"text/event-stream")], request)
    arriving = list(chunks)

    async def run(chain: Chain, pools: Pools, calls: _Calls) -> ChainResult:
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

        return await _in_stream(
            chain, pools, calls, request, stream_head, script, max_event_bytes=max_event_bytes
        )

    return _run_trio(interceptors, request, run)


async def _feed(stream: StreamChain, pending: bytearray, output: bytearray, *, final: bool) -> None:
    """Process what is there, until no hook is to be awaited; then let tasks run, and take what they
    have emitted.
    """

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
    calls: _Calls,
    request: Request,
    head: ResponseHead,
    script: Callable[[StreamChain], Awaitable[T]],
    *,
    max_event_bytes: int = 1 << 20,
    json: bool = False,
) -> T:
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


_STREAMS = (StreamInterceptor, AsyncStreamInterceptor)


class _Calls:
    """Which hooks a run has called."""

    def __init__(self, owners: Sequence[Owner], request: Request) -> None:
        self.request = request
        self.called: set[str] = set()
        self.unrecognised: list[str] = []
        self.owners = owners

    def note(self, hook: str, function: Callable[..., T]) -> Callable[..., T]:
        def noting(*arguments: Any) -> T:
            self.called.add(hook)
            return function(*arguments)

        return noting

    @contextmanager
    def of_messages(self) -> Iterator[None]:
        """Note the marked methods of interceptors for MCP: set on the object, and taken away again."""
        marked = [
            (item, hook.name)
            for item in (owner.interceptor for owner in self.owners)
            if isinstance(item, McpInterceptor)
            for hooks in item._hooks.values()
            for hook in hooks
        ]
        for item, name in marked:
            vars(item)[name] = self.note(name, getattr(type(item), name).__get__(item))
        try:
            yield
        finally:
            for item, name in marked:
                vars(item).pop(name, None)

    def watch(self, stream: StreamChain) -> None:
        """Note the hooks of the streams that were opened."""
        for owner, member in stream.members:
            if isinstance(owner.interceptor, McpInterceptor):
                continue  # its streams call marked methods
            for name in ("on_start", "on_end"):  # these are called for every stream
                if all(getattr(type(member), name) is not getattr(base, name) for base in _STREAMS):
                    self.called.add(name)
            if isinstance(member, MessageStream) and member._dialect_side is not None:
                member._dialect_side.watch(self.note)
            else:
                stream.watch(owner, self.note)
        for owner in self.owners:
            takes_part = any(member_owner is owner for member_owner, _ in stream.members)
            is_answer = readers_for(self.request.dialect, self.request.path)
            if (
                isinstance(owner.interceptor, MessageInterceptor)
                and not takes_part
                and not is_answer
            ):
                self.unrecognised.append(
                    f"{owner.name} recognised no dialect: the request has dialect {self.request.dialect!r} and path "
                    f"{self.request.path!r}. Give one of an LLM API: request=Request(dialect='openai'), or "
                    "request=Request(path='/v1/chat/completions')"
                )

    def note_unrecognised(self, stream: StreamChain) -> None:
        """Note answers that ended before a reader was found for them."""
        for owner, member in stream.members:
            side = member._dialect_side if isinstance(member, MessageStream) else None
            if side is not None and side.reader is None:
                self.unrecognised.append(
                    f"{owner.name} recognised no answer of an LLM in what it was shown"
                )

    def problem(self, hook: str | None) -> str | None:
        """Why the run shows nothing; None where it called a hook."""
        names = ", ".join(owner.name for owner in self.owners)
        if self.unrecognised:
            return "; ".join(self.unrecognised)
        if self.called or not self.owners:
            return None
        if hook is not None:
            return f"no hook of {names} was called: {hook} is not overridden, or no method is marked for the messages"
        return (
            f"no hook of {names} was called: open_stream is not overridden or returned None, the body is JSON and wants_json is "
            "not set, or what was shown has nothing that a hook is for (see needs, and the marks of methods)"
        )


class _TestedOwner(Owner):
    """As in the proxy, but a class that the loader would refuse is refused whatever its `on_error`."""

    __slots__ = ()

    def failed(self, hook: str, error: Exception) -> InterceptorError | None:
        return error if isinstance(error, LoadError) else super().failed(hook, error)


def _run_trio(
    interceptors: Sequence[Interceptor],
    request: Request,
    run: Callable[[Chain, Pools, _Calls], Awaitable[T]],
    hook: str | None = None,
) -> T:
    """`hook`: the one that is run, if it is of the interceptor itself and not of its streams."""
    for item in interceptors:
        check_interceptor(type(item))
        check_settings(item)
    owners = [_TestedOwner(type(item).__name__, item) for item in interceptors]
    calls = _Calls(owners, request)

    async def main() -> T:
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
            await enter_lifespans(chain.owners, stack)
            async with trio.open_nursery() as nursery:
                request.spawn = lambda owner, async_fn, args: nursery.start_soon(
                    run_task, owner, async_fn, args
                )
                try:
                    results.append(await run(chain, pools, calls))
                except Exception as error:
                    problems.insert(
                        0, error
                    )  # raised below, outside of the nursery, which would wrap it in a group
                nursery.cancel_scope.cancel()
        kept = {stats.pool: stats.in_use for stats in pools.statistics() if stats.in_use}
        assert not kept, f"leases were not given back: {kept}"
        if problems:
            raise problems[0]
        return results[0]

    # With a dialect of JSON-RPC the proxy itself collects the body.
    collected = error_format(request.dialect).is_json_rpc or any(
        item.wants_body for item in interceptors
    )
    with (
        nullcontext() if collected else _passing_unread(request),
        calls.of_messages(),
        _awaiting_all(),
    ):
        result = trio.run(main)
    if hook is not None:
        for item in interceptors:
            base = McpInterceptor if isinstance(item, McpInterceptor) else Interceptor
            if result is not None or getattr(type(item), hook) is not getattr(base, hook):
                calls.called.add(hook)
    is_cut = isinstance(result, ChainResult) and (result.failure is not None or result.ended)
    problem = None if is_cut else calls.problem(hook)
    if problem is not None:
        warnings.warn(problem, NothingCalled, stacklevel=3)
    return result


@contextmanager
def _awaiting_all() -> Iterator[None]:
    """A coroutine that is never awaited, which Python only warns of, is an `AssertionError`."""
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
    """As in the proxy, no interceptor may ask for a body that none declares with `wants_body`,
    unless one has replaced it.
    """
    show = _hide_body(request)
    try:
        yield
    finally:
        show()


@contextmanager
def _forgotten_body(request: Request) -> Iterator[None]:
    """As behind a proxy, where the head of the response has left."""
    body = request._body
    forget_body(request)
    try:
        yield
    finally:
        request.set_body(body)


def _hide_body(request: Request) -> Callable[[], None]:
    """Refuse access to the body until what is returned is called."""
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
