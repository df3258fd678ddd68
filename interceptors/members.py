"""`Members`: the interceptors that take part in one stream, and their `on_start`, `on_complete` and
`on_end`. `event_hooks` calls `on_event`. This module must not know events' bytes.
"""

from __future__ import annotations

from typing import Any

import trio

from .api import AsyncStreamInterceptor, Outcome, StreamInterceptor
from .event import Event
from .hooks import Owner
from .message import ResponseHead

__all__ = ["Member", "Members"]

Member = StreamInterceptor | AsyncStreamInterceptor


class Members:
    """The members of one stream, in the chain's order, each with its ordinal."""

    __slots__ = ("_completers", "all", "ordinal")

    def __init__(self) -> None:
        self.all: list[tuple[Owner, Member]] = []
        self._completers: list[tuple[Owner, Member, int]] = []
        self.ordinal = 0
        """The ordinal of the member that is added next."""

    def add(self, owner: Owner, stream: Member) -> None:
        """Append a member."""
        is_async = isinstance(stream, AsyncStreamInterceptor)
        base = AsyncStreamInterceptor if is_async else StreamInterceptor
        if type(stream).on_complete is not base.on_complete:
            self._completers.append((owner, stream, self.ordinal))
        self.all.append((owner, stream))

    async def start(self, head: ResponseHead) -> None:
        """Run `on_start`. Raises `InterceptorError`."""
        for owner, stream in self.all:
            try:
                if isinstance(stream, AsyncStreamInterceptor):
                    await owner.call("on_start", stream.on_start(head))
                else:
                    with owner.timed("on_start"):
                        stream.on_start(head)
            except Exception as error:
                problem = owner.failed("on_start", error)
                if problem is not None:
                    raise problem from error

    @property
    def has_completers(self) -> bool:
        """Whether some `on_complete` has not run yet."""
        return bool(self._completers)

    def skip_complete(self) -> None:
        """Run no `on_complete`."""
        self._completers.clear()

    async def complete_next(self) -> tuple[list[Event], int]:
        """Run the next `on_complete`: the events it adds, and the member's ordinal. Raises
        `InterceptorError`.
        """
        owner, stream, ordinal = self._completers.pop(0)
        try:
            if isinstance(stream, AsyncStreamInterceptor):
                result: Any = await owner.call("on_complete", stream.on_complete())
            else:
                with owner.timed("on_complete"):
                    result = stream.on_complete()
            events = [] if result is None else [result] if isinstance(result, Event) else result
            if not isinstance(events, (list, tuple)) or not all(
                isinstance(item, Event) for item in events
            ):
                raise owner.wrong("on_complete", result, "an Event, a list of Events or None")
        except Exception as error:
            owner.fail("on_complete", error)
            return [], ordinal
        for item in events:
            item.made_by = owner
        return list(events), ordinal

    async def end(self, outcome: Outcome) -> None:
        """Run every `on_end`, shielded from cancellation. Logs an exception and runs the others."""
        for owner, stream in self.all:
            try:
                if isinstance(stream, AsyncStreamInterceptor):
                    if type(stream).on_end is not AsyncStreamInterceptor.on_end:
                        with trio.CancelScope(shield=True):
                            await owner.call("on_end", stream.on_end(outcome))
                else:
                    with owner.timed("on_end"):
                        stream.on_end(outcome)
            except Exception as error:
                owner.failed("on_end", error)
