"""What an author of interceptors writes: `Interceptor`, one per process, and an object for each
stream.

The order of a route's list is the order in which requests *and* events pass: what the first
interceptor returns, the second sees.

    request   client  -> first.on_request  -> second.on_request  -> upstream response  client <-
    second.on_response <- first.on_response <- upstream     (the first is asked first, here, too)
    events    client <-  second.on_event   <- first.on_event     <- upstream
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from .errors import StreamOver
from .event import Event
from .message import Headers, Request, Response, ResponseHead, start_task
from .needs import Needs

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
    """Returned from `on_event`: these events leave, and the stream ends there, whole for the
    client. Upstream is left unread.
    """

    __slots__ = ("events",)

    def __init__(self, *events: Event) -> None:
        self.events: tuple[Event, ...] = events


EventResult = Event | Sequence[Event] | End | None
"""What `on_event` returns: the event (itself, or a replacement), several, None to drop it, or
`End`.
"""


class Outcome(StrEnum):
    """How an exchange ended. Each has exactly one, in its log line, its metric and `on_end`."""

    COMPLETED = "completed"
    CLIENT_DISCONNECTED = "client_disconnected"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    SEND_STALLED = "send_stalled"
    INTERCEPTED = "intercepted"
    REFUSED = "refused"
    INTERNAL_ERROR = "internal_error"
    DRAINING = "draining"


Emit = Callable[[Event], Awaitable[None]]


class StreamContext:
    """What a stream's interceptor knows of its exchange, and what it can do besides answering its
    hooks.
    """

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
        """Whether the response is a JSON body, which comes as one event. False for a response that
        is an event stream, or calls itself one: whether it then is one, each event tells with
        `Event.is_body`.
        """
        self.request: Request = request
        """The request, as it went upstream. Its body is there only for interceptors that say
        `wants_body`.
        """
        self._emit = emit

    @property
    def route(self) -> str:
        """The route's path prefix."""
        return self.request.route

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def dialect(self) -> str:
        """The route's dialect, as `Request.dialect`."""
        return self.request.dialect

    @property
    def path(self) -> str:
        """The request's path, as `Request.path`."""
        return self.request.path

    @property
    def headers(self) -> Headers:
        """The request's headers. Credentials among them: keep them out of logs."""
        return self.request.headers

    @property
    def client(self) -> str | None:
        """The client's address."""
        return self.request.client

    @property
    def state(self) -> dict[str, Any]:
        """Shared by every interceptor of this exchange, from `on_request` on."""
        return self.request.state

    @property
    def log(self) -> Any:
        """A structlog logger that names the route and the interceptor."""
        log = self.request.log
        return log if self._owner is None else log.bind(interceptor=self._owner.name)

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task that ends with the stream: cancelled when that is over, its failure treated as
        a hook's.
        """
        start_task(self.request, self._owner, async_fn, args)

    def note_unread(self, reason: str, event_type: str | None = None, *, count: int = 1) -> None:
        """Something in the stream is not as its dialect has it, and passed unread: count it, and
        log the first of each stream.

        `reason` names fields; it must not show content.
        """
        if self._owner is not None:
            self._owner.unread_parts += count
        if not self.state.get(_UNREAD):
            self.state[_UNREAD] = True
            self.log.warning("unread_part", event_type=event_type, reason=reason)

    async def emit(self, event: Event) -> None:
        """Send an event of one's own, from a task, between two of upstream's. Later interceptors
        see it as they see any.

        Waits while many are on their way to a slow client; a checkpoint. Raises `StreamOver` when
        the stream has ended.
        """
        if self._emit is None:
            raise StreamOver
        await self._emit(event)


class StreamInterceptor:
    """One stream. Override what you need; a hook that is not overridden costs nothing.

    The hooks are synchronous: they run between two reads of the proxy, so they must not block, and
    nothing can be cancelled half way through one. Whoever must await something uses
    `AsyncStreamInterceptor`. Any hook may raise `Abort`.
    """

    needs: Needs = None
    """Which events `on_event` is for, as an attribute of the class or, set before `open_stream`
    returns, of the object.

    None: every event. A tuple of byte strings: events whose bytes, as they came, hold one of them;
    `()`: none at all. A compiled pattern of bytes: events in which it is found. Whatever lies
    between is searched at once and leaves untouched, which costs far less than a call for each
    event. It is a promise, not a filter: events that another interceptor made are shown all the
    same. Mind that JSON may write a character in several ways, and that anchors and lookarounds see
    neighbouring events.
    """

    passes_unseen: bool = False
    """What becomes of what `on_event` is for and cannot be shown: an event or JSON body above
    `limits.max_event_bytes`, a response that is encoded although identity was asked for. False: the
    stream ends with an error, because this interceptor must not miss it. True: it passes unseen and
    unchanged, at any size, unless another interceptor needs it. An attribute of the class or of the
    object, as `needs`.
    """

    def on_start(self, head: ResponseHead) -> None:
        """The stream begins."""

    def on_event(self, event: Event) -> EventResult:
        """One event: return it, a replacement, several, None to drop it, or `End`. Comments pass by
        without a call.
        """
        return event

    def on_complete(self) -> Event | Sequence[Event] | None:
        """Upstream has ended its stream, whole: the last occasion to add events, which later
        interceptors see as they see any.

        Not called for a stream that ends in any other way, or in the middle of an event; `on_end`
        is.
        """
        return None

    def on_end(self, outcome: Outcome) -> None:
        """The stream is over. Called exactly once for every stream that `open_stream` was called
        for, however it ended.
        """


class AsyncStreamInterceptor:
    """One stream, for hooks that must await something. As `StreamInterceptor`, but what is not
    async there is here.

    Upstream is not read while one awaits, and what was ready before it has left. Each call has the
    interceptor's `hook_timeout_s`.
    """

    needs: Needs = None
    """As in `StreamInterceptor`."""

    passes_unseen: bool = False
    """As in `StreamInterceptor`."""

    async def on_start(self, head: ResponseHead) -> None:
        """The stream begins."""

    async def on_event(self, event: Event) -> EventResult:
        """One event. It stays valid while this awaits."""
        return event

    async def on_complete(self) -> Event | Sequence[Event] | None:
        """Upstream has ended its stream, whole: the last occasion to add events."""
        return None

    async def on_end(self, outcome: Outcome) -> None:
        """The stream is over. Runs shielded from cancellation, so that it can close what it opened."""


class Interceptor:
    """One per process. Subclass it; `__init__` takes the options that the configuration may set, by
    their names and types, or one parameter `options`, a dataclass or msgspec Struct of them.
    """

    on_error: OnError = "abort"
    """What an exception in a hook does: `abort` ends the exchange with an error, `skip` logs it and goes on as if the hook had
    done nothing."""

    wants_body: bool = False
    """Whether `on_request` needs the request's body, which is then collected first, up to the limit
    (413 beyond).
    """

    wants_json: bool = False
    """Whether `open_stream` is also for `application/json` responses, whose whole body then comes
    as one event.
    """

    wants_dialect: bool = False
    """Whether what this interceptor can see depends on the route's `dialect`. The configuration check then warns of a route that
    does not set one."""

    sets_state: tuple[str, ...] | None = None
    """The keys of `request.state` that `on_request` sets. None: not declared. The configuration check compares it with what the
    interceptors after it need."""

    needs_state: tuple[str, ...] = ()
    """The keys of `request.state` without which `on_request` fails: an earlier interceptor of the route must set them. An
    attribute of the class or, set in `__init__`, of the object, as all of these."""

    uses_state: tuple[str, ...] = ()
    """The keys of `request.state` that `on_request` uses if an earlier interceptor has set them."""

    sets_headers: tuple[str, ...] = ()
    """The request headers that `on_request` sets for the upstream. A rule of the upstream's `headers` for one of them is an error:
    it would win."""

    hook_timeout_s: float | None = 30.0
    """Seconds that each call of an async hook may take; None: any time. Longer is a failure of the
    hook.
    """

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """Entered when the process begins to serve and left when it has served, for clients, files,
        connections to databases.
        """
        return nullcontext()

    def collectors(self) -> Iterable[Collector]:
        """Metrics of one's own (`prometheus_client.Counter(..., registry=None)` and the like), for
        the proxy's `/metrics`.

        Asked once, at start. The proxy adds the label `interceptor`, so that a class may serve
        under several names.
        """
        return ()

    async def on_request(self, request: Request) -> Response | None:
        """A request has come: look at it, change it, or answer it by returning a `Response`; the
        upstream then sees nothing.
        """
        return None

    async def on_response(self, head: ResponseHead) -> Response | None:
        """The upstream's response begins, of any kind: look at its head, change it, or replace the
        response.
        """
        return None

    def open_stream(
        self, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor | None:
        """An object for one stream, or None to stay out of it. Called when an event stream's head
        has arrived.
        """
        return None

    def _opened(
        self, stream: StreamInterceptor | AsyncStreamInterceptor, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor:
        """What the chain takes instead of what `open_stream` has returned."""
        return stream
