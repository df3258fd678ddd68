"""Which hooks a test run called: a run that calls none proves nothing about its interceptors.

`testing` owns the run and issues the warning. This wraps hooks to record their calls; it changes no
result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from .api import AsyncStreamInterceptor, Interceptor, StreamInterceptor
from .dialects import MessageInterceptor, MessageStream
from .dialects.answers import readers_for
from .dialects.mcp_hooks import McpInterceptor
from .event import Event
from .hooks import Owner
from .message import Request
from .stream import StreamChain
from .watcher import Watcher

__all__ = ["Calls"]

T = TypeVar("T")

_STREAMS = (StreamInterceptor, AsyncStreamInterceptor)


class _OnEvent(Watcher):
    """Records calls of the `on_event` of some owners."""

    def __init__(self, called: set[str], owners: set[Owner]) -> None:
        self._called = called
        self._owners = owners

    def called(self, owner: Owner, event: Event, result: Any, seconds: float) -> None:
        if owner in self._owners:
            self._called.add("on_event")


class Calls:
    """The hooks that one run called, and the responses that no reader recognised."""

    def __init__(self, owners: Sequence[Owner], request: Request) -> None:
        self.request = request
        self.called: set[str] = set()
        self.unrecognised: list[str] = []
        self.owners = owners

    def note(self, hook: str, function: Callable[..., T]) -> Callable[..., T]:
        """Wrap a hook to record its calls."""

        def noting(*arguments: Any) -> T:
            self.called.add(hook)
            return function(*arguments)

        return noting

    def note_overridden(self, hook: str, answered: bool) -> None:
        """Count `on_request` or `on_response` as called where an interceptor overrides it."""
        for owner in self.owners:
            item = owner.interceptor
            base = McpInterceptor if isinstance(item, McpInterceptor) else Interceptor
            if answered or getattr(type(item), hook) is not getattr(base, hook):
                self.called.add(hook)

    @contextmanager
    def of_messages(self) -> Iterator[None]:
        """Record calls of the marked methods of MCP interceptors, for the time of the run."""
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
        """Record calls of the hooks of an opened stream."""
        on_event: set[Owner] = set()
        for owner, member in stream.members:
            if isinstance(owner.interceptor, McpInterceptor):
                continue  # its streams call marked methods
            for name in ("on_start", "on_end"):  # called for every stream
                if all(getattr(type(member), name) is not getattr(base, name) for base in _STREAMS):
                    self.called.add(name)
            if isinstance(member, MessageStream) and member._driver is not None:
                member._driver.watch(self.note)
            else:
                on_event.add(owner)
        stream.watch(_OnEvent(self.called, on_event))
        if not readers_for(self.request.dialect, self.request.path):
            members = {owner for owner, _ in stream.members}
            self.unrecognised += [
                f"{owner.name} recognised no dialect: the request has dialect "
                f"{self.request.dialect!r} and path {self.request.path!r}. Give one of an LLM API: "
                "request=Request(dialect='openai'), or "
                "request=Request(path='/v1/chat/completions')"
                for owner in self.owners
                if isinstance(owner.interceptor, MessageInterceptor) and owner not in members
            ]

    def note_unrecognised(self, stream: StreamChain) -> None:
        """Record the responses that ended before a reader was found for them."""
        for owner, member in stream.members:
            side = member._driver if isinstance(member, MessageStream) else None
            if side is not None and side.reader is None:
                self.unrecognised.append(
                    f"{owner.name} recognised no answer of an LLM in what it was shown"
                )

    def problem(self, hook: str | None) -> str | None:
        """Why the run proves nothing; None if it called a hook.

        `hook`: the only hook of the run, if it is not a stream.
        """
        if self.unrecognised:
            return "; ".join(self.unrecognised)
        if self.called or not self.owners:
            return None
        none = f"no hook of {', '.join(owner.name for owner in self.owners)} was called"
        if hook is not None:
            return f"{none}: {hook} is not overridden, or no method is marked for the messages"
        return (
            f"{none}: open_stream is not overridden or returned None, the body is JSON and "
            "wants_json is not set, or what was shown has nothing that a hook is for (see needs, "
            "and the marks of methods)"
        )
