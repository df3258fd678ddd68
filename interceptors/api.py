"""The classes that authors subclass: `Interceptor`, one per process, and one object per stream.

Requests, response heads and events pass the interceptors in the order of the route's list. The
second interceptor sees what the first one returned.

    request    client ->  first.on_request   ->  second.on_request   ->  upstream
    head       client <-  second.on_response <-  first.on_response   <-  upstream
    events     client <-  second.on_event    <-  first.on_event      <-  upstream

This module defines the contract only. `chain` and `stream` call the hooks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from .errors import StreamOver
from .event import Event
from .memory import MemoryEngine
from .message import Headers, Request, Response, ResponseHead
from .needs import Needs
from .store import Store
from .tasks import start_task

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

__all__ = [
    "AsyncStreamInterceptor",
    "End",
    "EventResult",
    "Interceptor",
    "OnError",
    "Outcome",
    "StreamContext",
    "StreamInterceptor",
]

OnError = Literal["abort", "skip"]

_UNREAD = "stream.unread"


class End:
    """Return this from `on_event` to send `events` and end the stream.

    The client sees a complete stream. The rest of the upstream response is not read.
    """

    __slots__ = ("events",)

    def __init__(self, *events: Event) -> None:
        self.events: tuple[Event, ...] = events


EventResult = Event | Sequence[Event] | End | None
"""What `on_event` returns.

- an `Event`: the same event, or a replacement;
- a sequence of events: all of them, in order;
- None: drop the event;
- `End(*events)`: send these and end the stream.
"""


class Outcome(StrEnum):
    """How an exchange ended: the same value in `on_end`, the log line and the metric."""

    COMPLETED = "completed"
    CLIENT_DISCONNECTED = "client_disconnected"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    SEND_STALLED = "send_stalled"
    INTERCEPTED = "intercepted"
    REFUSED = "refused"
    INTERNAL_ERROR = "internal_error"
    DRAINING = "draining"

    __hash__ = str.__hash__  # as that of the equal string, and without a call of Python


Emit = Callable[[Event], Awaitable[None]]


class StreamContext:
    """The exchange, as the interceptor of one of its streams sees it."""

    __slots__ = ("_emit", "_owner", "is_body", "request")

    def __init__(
        self,
        request: Request,
        emit: Emit | None = None,
        owner: Any = None,
        *,
        is_body: bool = False,
    ) -> None:
        self._owner = owner
        self.is_body: bool = is_body
        """Whether the response is a JSON body, shown as one event.

        False for a response with the media type of an event stream. If its body turns out to be
        JSON, `Event.is_body` is true for that event.
        """
        self.request: Request = request
        """The request, as sent upstream.

        Its body is readable with `wants_body`, and only until the response head is sent.
        """
        self._emit = emit

    @property
    def route(self) -> str:
        """The route's path prefix."""
        return self.request.route

    @property
    def method(self) -> str:
        """The request's method, as the client sent it."""
        return self.request.method

    @property
    def dialect(self) -> str:
        """The route's dialect: see `Request.dialect`."""
        return self.request.dialect

    @property
    def path(self) -> str:
        """The request's path, normalised: see `Request.path`."""
        return self.request.path

    @property
    def headers(self) -> Headers:
        """The request's headers. They include credentials: keep them out of logs."""
        return self.request.headers

    @property
    def client(self) -> str | None:
        """The client's IP address, None if the client connected over a Unix socket."""
        return self.request.client

    @property
    def state(self) -> dict[str, Any]:
        """A dict that all interceptors of this exchange share, from `on_request` on."""
        return self.request.state

    @property
    def log(self) -> Any:
        """A structlog logger, bound to the route and the interceptor's name."""
        log = self.request.log
        return log if self._owner is None else log.bind(interceptor=self._owner.name)

    @property
    def store(self) -> Store:
        """The interceptor's part of the store that workers share: see `Interceptor.store`."""
        owner: Interceptor | None = None if self._owner is None else self._owner.interceptor
        return Store(MemoryEngine(), "") if owner is None else owner.store

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task `async_fn(*args)`. It is cancelled when the stream ends.

        If the task raises, `on_error` applies as for a hook. Never blocks. Raises `TypeError` if
        `async_fn` is a coroutine: pass the function and its arguments.
        """
        start_task(self.request, self._owner, async_fn, args)

    def note_unread(self, reason: str, event_type: str | None = None, *, count: int = 1) -> None:
        """Count parts of the stream that passed unread because they do not fit the dialect.

        The first one of each stream is logged as `unread_part`. `reason` names fields; it must not
        contain content.
        """
        if self._owner is not None:
            self._owner.unread_parts += count
        if not self.state.get(_UNREAD):
            self.state[_UNREAD] = True
            self.log.warning("unread_part", event_type=event_type, reason=reason)

    async def emit(self, event: Event) -> None:
        """Send an event between two upstream events. Call it from a task, not from a hook.

        Later interceptors see the event as they see any other. Waits while the queue to a slow
        client is full; always a checkpoint. Raises `StreamOver` once the stream has ended.
        """
        if self._emit is None:
            raise StreamOver
        await self._emit(event)


class StreamInterceptor:
    """One stream, with synchronous hooks. A hook that is not overridden costs nothing.

    Hooks run on the event loop: they must not block. They cannot be cancelled. To await something,
    subclass `AsyncStreamInterceptor`, or start a task with `context.start_soon`. Any hook may raise
    `Abort`. Every other exception is handled according to `Interceptor.on_error`.
    """

    needs: Needs = None
    """Which events `on_event` is called for.

    - None: every event;
    - a tuple of byte strings: events whose raw bytes contain at least one of them;
    - `()`: no event;
    - a compiled bytes pattern: events in which it is found.

    Other events are forwarded without a call, which is much cheaper. This is an optimisation, not a
    filter: events that another interceptor returned are always shown. JSON can escape a character
    in several ways. Anchors and lookarounds of a pattern also see neighbouring events. Set it on
    the class, or on the object before `open_stream` returns.
    """

    passes_unseen: bool = False
    """What happens to an event that `on_event` should see and cannot.

    This applies to an event or a JSON body above `limits.max_event_bytes`, and to a response with a
    Content-Encoding (the proxy asks for identity). False: the stream ends with an error. True: the
    event is forwarded unchanged at any size, unless another interceptor must see it. Set it on the
    class, or on the object before `open_stream` returns.
    """

    def on_start(self, head: ResponseHead) -> None:
        """The stream begins. `head` shows what the client gets."""

    def on_event(self, event: Event) -> EventResult:
        """Handle one event. Return it, a replacement, several events, None to drop it, or `End`.

        The event is valid until this returns: keep `event.detach()`, not the event. Comments in
        the stream are forwarded without a call.
        """
        return event

    def on_complete(self) -> Event | Sequence[Event] | None:
        """The upstream ended its stream completely. Return events to append, or None.

        Later interceptors see these events as they see any other. Not called if the stream ends in
        any other way or inside an event; use `on_end` for cleanup.
        """
        return None

    def on_end(self, outcome: Outcome) -> None:
        """The stream ended, for any reason. Called exactly once per object of `open_stream`."""


class AsyncStreamInterceptor:
    """One stream, with async hooks. Otherwise the same as `StreamInterceptor`.

    While a hook awaits, the proxy does not read from the upstream; events that were ready before
    have been sent. Each call is limited to `Interceptor.hook_timeout_s` and is cancelled if the
    exchange ends, except `on_end`.
    """

    needs: Needs = None
    """Which events `on_event` is called for: see `StreamInterceptor.needs`."""

    passes_unseen: bool = False
    """What happens to events that cannot be shown: see `StreamInterceptor.passes_unseen`."""

    async def on_start(self, head: ResponseHead) -> None:
        """The stream begins. `head` shows what the client gets."""

    async def on_event(self, event: Event) -> EventResult:
        """Handle one event; see `StreamInterceptor.on_event`. It stays valid while this awaits."""
        return event

    async def on_complete(self) -> Event | Sequence[Event] | None:
        """The upstream ended its stream completely. Return events to append, or None."""
        return None

    async def on_end(self, outcome: Outcome) -> None:
        """The stream ended, for any reason. Runs shielded from cancellation."""


class Interceptor:
    """Base class of all interceptors. The proxy creates one object per process.

    The parameters of `__init__` are the options that the configuration may set; their annotations
    are the accepted types. Alternatively, `__init__` takes one parameter `options`, annotated with
    a dataclass or a msgspec Struct. Report a wrong option with a `ValueError` whose text starts
    with its path: `ValueError("patterns[0]: ...")`.

    The settings below are attributes of the class, or of the object if `__init__` sets them.
    """

    on_error: OnError = "abort"
    """What an exception in a hook does.

    "abort" ends the exchange with an error. "skip" logs the exception and continues as if the hook
    had done nothing.
    """

    wants_body: bool = False
    """Whether `on_request` reads the request's body.

    The proxy then collects the body first, up to `limits.max_request_body_bytes`, and refuses a
    larger one with 413.
    """

    wants_json: bool = False
    """Whether `open_stream` is also called for `application/json` responses.

    The whole body is then shown as one event with `is_body` set.
    """

    wants_dialect: bool = False
    """Whether this interceptor depends on the route's `dialect`.

    `weirpool check` then warns about a route that does not set one.
    """

    sets_state: tuple[str, ...] | None = None
    """The keys of `request.state` that `on_request` sets; None if not declared.

    `weirpool check` compares them with what later interceptors need.
    """

    needs_state: tuple[str, ...] = ()
    """The keys of `request.state` that `on_request` requires from an earlier interceptor."""

    uses_state: tuple[str, ...] = ()
    """The keys of `request.state` that `on_request` uses if an earlier interceptor set them."""

    sets_headers: tuple[str, ...] = ()
    """The request headers that `on_request` sets.

    A rule in the upstream's `headers` for the same name is a configuration error: the rule would
    override the interceptor.
    """

    hook_timeout_s: float | None = 30.0
    """Seconds that one call of an async hook may take; None for no limit.

    A longer call is cancelled and handled as an exception: see `on_error`.
    """

    _store: Store | None = None

    @property
    def store(self) -> Store:
        """This interceptor's part of the store that workers and machines share.

        Set before `lifespan` is entered. Its keys are those of the configured name, and outlive a
        reload. In `testing`, and without a configured store, it is this process's memory.
        """
        if self._store is None:
            self._store = Store(MemoryEngine(), type(self).__name__)
        return self._store

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """Return an async context manager that opens and closes clients, files or connections.

        The proxy enters it before it serves and leaves it after the last exchange.
        """
        return nullcontext()

    def collectors(self) -> Iterable[Collector]:
        """Return Prometheus collectors for the proxy's `/metrics`. Called once, at start.

        Create them without a registry: `prometheus_client.Counter(..., registry=None)`. The proxy
        adds the label `interceptor`, so one class can serve under several names. With several
        workers, values are added; `collect` is called about ten times a second and must be cheap.
        """
        return ()

    async def on_request(self, request: Request) -> Response | None:
        """Inspect or change a request before it is sent upstream.

        Return a `Response` to answer it instead; the upstream then gets no request. Cancelled if
        the client disconnects.
        """
        return None

    async def on_response(self, head: ResponseHead) -> Response | None:
        """Inspect or change the head of any upstream response.

        Return a `Response` to replace the whole response. Cancelled if the client disconnects.
        """
        return None

    def open_stream(
        self, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor | None:
        """Return an object that handles one stream, or None to skip it. Must not block.

        Called when the head of an event stream has arrived, and with `wants_json` for JSON
        responses.
        """
        return None

    def _opened(
        self, stream: StreamInterceptor | AsyncStreamInterceptor, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor:
        """Return what the chain uses in place of the result of `open_stream`."""
        return stream
