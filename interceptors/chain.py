"""The chain of a route: its interceptors in their order, compiled once, for requests, response
heads and streams.

It lives as long as the process; `stream.StreamChain` is its part of one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from pools import BufferPool, BufferScope, PooledOutput

from .api import AsyncStreamInterceptor, Interceptor, StreamContext, StreamInterceptor
from .checks import check_stream
from .hooks import Owner
from .message import Request, Response, ResponseHead, address
from .stream import EventCounts, Part, StreamChain

__all__ = ["Chain", "EventCounts", "Part", "StreamChain", "enter_lifespans"]


class Chain:
    """A route's interceptors under their configured names. Chains may share an `Owner`."""

    __slots__ = (
        "_bodies",
        "_heads",
        "_requests",
        "_streams",
        "owners",
        "sees_heads",
        "sees_json",
        "sees_requests",
        "sees_responses",
        "sees_streams",
        "wants_body",
    )

    def __init__(self, interceptors: Sequence[Owner | tuple[str, Interceptor]] = ()) -> None:
        self.owners = tuple(
            item if isinstance(item, Owner) else Owner(*item) for item in interceptors
        )
        asked = [owner for owner in self.owners if _overrides(owner, "on_request")]
        self._requests = tuple(owner for owner in asked if not owner.interceptor.wants_body)
        self._bodies = tuple(owner for owner in asked if owner.interceptor.wants_body)
        self._heads = tuple(owner for owner in self.owners if _overrides(owner, "on_response"))
        self._streams = tuple(owner for owner in self.owners if _overrides(owner, "open_stream"))
        self.wants_body = any(owner.interceptor.wants_body for owner in self.owners)
        """Whether the body must be collected between `on_request_head` and `on_request_body`."""
        self.sees_requests = bool(asked)
        """Whether `on_request` does anything."""
        self.sees_heads = bool(self._heads)
        """Whether `on_response` does anything."""
        self.sees_streams = bool(self._streams)
        """Whether some interceptor may see events, so that bodies must arrive uncompressed."""
        self.sees_responses = self.sees_heads or self.sees_streams
        """Whether some interceptor sees responses, so their content headers must be consistent."""
        self.sees_json = any(owner.interceptor.wants_json for owner in self._streams)
        """Whether some interceptor may want the body of an `application/json` response."""

    async def on_request(
        self, request: Request, show_body: Callable[[], None] | None = None
    ) -> Response | None:
        """`on_request_head`, `show_body`, then `on_request_body`, for a request with its body."""
        answer = await self.on_request_head(request)
        if show_body is not None:
            show_body()
        if answer is not None:
            address(request, answer)
            return answer
        return await self.on_request_body(request)

    async def on_request_head(self, request: Request) -> Response | None:
        """Show a request to interceptors without `wants_body`, in order, up to the first answer.

        Call it once the head has come: a request can be refused before its body is read. Raises
        `InterceptorError`.
        """
        return await self._ask("on_request", self._requests, request, request)

    async def on_request_body(self, request: Request) -> Response | None:
        """As `on_request_head`, for the interceptors with `wants_body`, once the body is set."""
        return await self._ask("on_request", self._bodies, request, request)

    async def on_response(self, head: ResponseHead) -> Response | None:
        """Show a response's head to all, in order, up to the first that replaces the response.
        Raises `InterceptorError`.
        """
        return await self._ask("on_response", self._heads, head, head.request)

    async def _ask(
        self, hook: str, owners: tuple[Owner, ...], about: Any, request: Request
    ) -> Response | None:
        for owner in owners:
            request.asked = owner
            try:
                answer = await owner.call(hook, getattr(owner.interceptor, hook)(about))
                if isinstance(answer, Response):
                    answer.made_by = owner
                    return answer
                if answer is not None:
                    raise owner.wrong(hook, answer, "a Response or None")
            except Exception as error:
                problem = owner.failed(hook, error)
                if problem is not None:
                    raise problem from error
        return None

    def open_stream(
        self,
        request: Request,
        pool: BufferPool,
        scope: BufferScope,
        max_event_bytes: int,
        *,
        json: bool = False,
    ) -> StreamChain:
        """Open every interceptor's part of one stream, or, with `json`, of one JSON body.

        The caller must `aclose()` the result. Raises nothing: a failed interceptor with `on_error`
        `abort` sets `failure`.
        """
        stream = StreamChain(PooledOutput(pool, scope), max_event_bytes)
        for owner in self._streams:
            if json and not owner.interceptor.wants_json:
                continue
            request.asked = owner
            began = perf_counter()
            try:
                context = StreamContext(request, stream.emitter(owner), owner, is_body=json)
                member = owner.interceptor.open_stream(context)
                if member is None:
                    continue
                if not isinstance(member, (StreamInterceptor, AsyncStreamInterceptor)):
                    raise owner.wrong(
                        "open_stream",
                        member,
                        "a StreamInterceptor, an AsyncStreamInterceptor or None",
                    )
                check_stream(member)
                stream.add(owner, owner.interceptor._opened(member, context))
            except Exception as error:
                problem = owner.failed("open_stream", error)
                if problem is not None:
                    problem.__cause__ = error
                    stream.failure = problem
                    break
            finally:
                owner.note("open_stream", perf_counter() - began)
        return stream


def _overrides(owner: Owner, hook: str) -> bool:
    return getattr(type(owner.interceptor), hook) is not getattr(Interceptor, hook)


async def enter_lifespans(owners: Sequence[Owner], stack: AsyncExitStack) -> None:
    """Enter every interceptor's `lifespan`, in order; `stack` leaves them in the opposite one.
    Raises what they raise.
    """
    for owner in owners:
        await stack.enter_async_context(owner.interceptor.lifespan())
