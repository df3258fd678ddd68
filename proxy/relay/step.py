"""`Relay`: moves one response body in synchronous steps, `pump()`.

A step reads once, frames, runs the interceptors, writes, and returns what is needed next.
Invariants:

- between two steps a relay holds a lease only for an unfinished event; an idle stream holds none;
- upstream is read only after everything before was sent, so a slow client slows upstream;
- what one read brought leaves in one write.

Nothing here awaits; `mover` and `hub` wait. This module must not know deadlines, HTTP heads or
outcomes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from interceptors import InterceptorError
from interceptors.chain import Part, StreamChain
from pools import BufferScope, Pools

from ..downstream import Writer
from ..hub import Need
from ..upstream import UpstreamBody
from .gaps import EventGaps
from .heartbeat import PING

__all__ = ["Copy", "Need", "Observe", "Relay", "release_parts"]


Copy = Callable[[bytearray | bytes, int, int], None]
"""Takes a copy of `buffer[first:last]`, which passes unseen by hooks."""

Observe = Callable[[bytearray | bytes, int, int, float], None]
"""Reads `buffer[first:last]`, which has arrived at a time of Trio's."""

# Reading an enum member is slower than reading a global.
_READ, _TURN, _HOOK, _EMIT, _WRITE, _END = (
    Need.READ,
    Need.TURN,
    Need.HOOK,
    Need.EMIT,
    Need.WRITE,
    Need.END,
)


class Relay(ABC):
    """Moves one body, a step at a time."""

    __slots__ = (
        "_copy",
        "_half_full",
        "_observe",
        "_pools",
        "_scope",
        "_sse",
        "body",
        "chain",
        "failure",
        "first_read",
        "gaps",
        "last_read",
        "last_write",
        "wants_large",
        "writer",
    )

    def __init__(
        self,
        body: UpstreamBody,
        writer: Writer,
        chain: StreamChain | None,
        pools: Pools,
        scope: BufferScope,
        *,
        sse: bool,
    ) -> None:
        """`chain`: its interceptors may emit events even if none of them sees any."""
        self.body = body
        self.writer = writer
        self.chain = chain
        self._pools = pools
        self._scope = scope
        self._sse = sse
        self._half_full = pools.sse_event.size // 2
        self._copy: Copy | None = None
        self._observe: Observe | None = None
        self.wants_large = not sse
        """Whether the next pump wants a window of `http_response` rather than `sse_event`."""
        self.first_read: float | None = None
        """Trio's time of the first bytes of the body."""
        self.last_read = 0.0
        """Trio's time of the last bytes from upstream. The mover adds the time it waited for the
        client or for hooks since.
        """
        self.last_write = 0.0
        """Trio's time of the last write; not noted for unparsed bytes, see `last_left`."""
        self.failure: InterceptorError | None = None
        self.gaps: EventGaps | None = None
        """Where the times between events are counted, if interceptors see events."""

    @abstractmethod
    def pump(self, window: bytearray, now: float) -> Need:
        """One step, in a borrowed window that the caller may reuse afterwards. Never blocks. `now`:
        Trio's time.

        Raises `UpstreamFailure` and `ClientGone`.
        """

    @abstractmethod
    def note_own_write(self) -> None:
        """Call this before writing proxy bytes. If the body has not started, its BOM must then be
        dropped.
        """

    def proceed(self) -> Need:
        """Continue with the events at which an async hook has stopped a step, after awaiting the
        hook. Raises as `pump`.
        """
        raise NotImplementedError("bytes that no hook sees do not stop")

    def observe(self, observe: Observe) -> None:
        """Give `observe` all bytes of the body, before hooks. It must not raise."""
        self._observe = observe

    def copy_to(self, copy: Copy | None) -> None:
        """Give `copy` the bytes that no hook sees, from now on; None: stop. It must not raise."""
        self._copy = copy

    def continue_with(self, body: UpstreamBody) -> None:
        """Continue the stream in another body. An unfinished event of the last one is discarded."""
        self.body = body

    @property
    @abstractmethod
    def at_boundary(self) -> bool:
        """Whether the bytes sent so far end with a whole event, so that an error event may follow."""

    @property
    @abstractmethod
    def between_events(self) -> bool:
        """Whether an added event or a heartbeat may be sent here."""

    @property
    @abstractmethod
    def last_left(self) -> float:
        """Trio's time when something was last sent to the client."""

    @property
    def runs_hooks(self) -> bool:
        """Whether a pump runs interceptors."""
        return False

    @property
    def awaits(self) -> bool:
        """Whether a pump may stop for an async hook."""
        return False

    @property
    def is_over(self) -> bool:
        """Whether upstream's stream has ended, and cannot resume in another body."""
        return self.body.complete

    @property
    def has_emitted(self) -> bool:
        """Whether an interceptor has emitted an event that can be sent now."""
        chain = self.chain
        return (
            chain is not None
            and chain.emitted
            and self.failure is None
            and not chain.ended
            and self.between_events
        )

    @property
    def may_complete(self) -> bool:
        """Whether `on_complete` must run, if the stream is over."""
        chain = self.chain
        return chain is not None and chain.completes and not chain.ended and self.between_events

    @property
    def ends_in_finish(self) -> bool:
        """Whether the last write is the end of the body, so that the writer's `finish` can send
        both at once.
        """
        chain = self.chain
        if (
            self.failure is not None
            or not self.body.complete
            or (chain is not None and chain.awaiting)
        ):
            return False
        return not self.writer.synchronous and not self.has_emitted and not self.may_complete

    def fileno(self) -> int:
        """The upstream socket's descriptor; -1 once it is closed."""
        return self.body.connection.sock.fileno()

    def next_need(self) -> Need:
        """What is needed next, once everything is sent."""
        body, chain = self.body, self.chain
        if self.failure is not None:
            return _END
        if chain is not None and chain.awaiting:
            return _HOOK
        if body.complete or (chain is not None and chain.ended):
            return _END
        if chain is not None and chain.emitted and self.between_events:
            return _EMIT
        return _TURN if body.pending else _READ

    def pump_once(self) -> Need:
        """Borrow a window, pump, give it back."""
        pool = self._pools.http_response if self.wants_large else self._pools.sse_event
        lease = self._scope.acquire(pool)
        try:
            return self.pump(lease.buffer, trio.current_time())
        finally:
            self._scope.release(lease)

    def write_parts(self, parts: list[Part]) -> Need:
        """Send events that interceptors have added. Returns what is needed next. Raises
        `ClientGone`.
        """
        chain = self.chain
        assert chain is not None
        if self.first_read is None:
            self.note_own_write()
        self.failure = chain.failure
        try:
            all_sent = self.writer.write(parts) if parts else True
        finally:
            release_parts(parts)
            chain.release_parts()
        self.last_write = trio.current_time()
        return self.next_need() if all_sent else _WRITE

    def send_heartbeat(self, now: float) -> bool:
        """Send a heartbeat, unless an event is unfinished. Raises `ClientGone`.

        False: the client has not taken it; flush the writer.
        """
        self.last_write = now
        if not self.between_events:
            return True
        self.note_own_write()
        return self.writer.write((PING,))

    def _note(self, size: int, now: float) -> None:
        """Note that bytes of the body have arrived."""
        if size:
            self.last_read = now
            if self.first_read is None:
                self.first_read = now
        if self._sse:
            # Read into a larger window while one read more than half fills the small one.
            self.wants_large = size > self._half_full


def release_parts(parts: list[Part]) -> None:
    """Release the views now: a buffer with a view cannot be reused."""
    for part in parts:
        if isinstance(part, memoryview):
            part.release()
    parts.clear()
