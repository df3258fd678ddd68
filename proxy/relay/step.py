"""What every relay is: one synchronous step after another, `pump()`, and what else may be said
between two of them.

A step reads once, frames, runs the interceptors, writes, and says what is needed next. Invariants:

- between two steps a relay holds a lease only for an event that is not whole yet; an idle stream
  holds no buffer;
- upstream is read only when everything written before has left: a slow client slows upstream, and
  memory stays bounded;
- what one read brought leaves in one write.

Nothing here awaits, and nothing here knows of deadlines, HTTP heads or outcomes: who waits is
another matter (`mover`, the hub).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto

import trio

from interceptors import InterceptorError
from interceptors.chain import Part, StreamChain
from pools import BufferScope, Pools

from ..downstream import Writer
from ..upstream import UpstreamBody
from .heartbeat import PING

__all__ = ["Need", "Relay", "release_parts"]


class Need(Enum):
    """What a step needs before the next one."""

    READ = auto()
    """Upstream has nothing more for now."""
    TURN = auto()
    """There may be more at once, of which no readiness will tell; let the others have a turn."""
    HOOK = auto()
    """An interceptor must be awaited."""
    EMIT = auto()
    """What has left ends with a whole event, and an interceptor has something to say."""
    WRITE = auto()
    """The client has not taken everything; `writer.drain()` first."""
    END = auto()
    """The response is over: `failure` tells whether it is whole."""


# An enum's members are found through its metaclass, which costs more than a global.
_READ, _TURN, _HOOK, _EMIT, _WRITE, _END = (
    Need.READ,
    Need.TURN,
    Need.HOOK,
    Need.EMIT,
    Need.WRITE,
    Need.END,
)


class Relay(ABC):
    """Moves one body, a step at a time. What is public is for who waits, too; a hub needs `pump`
    and little more.
    """

    __slots__ = (
        "_half_full",
        "_pools",
        "_scope",
        "_sse",
        "body",
        "chain",
        "failure",
        "first_read",
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
        """`chain`: the chain, if there is one, whose interceptors may have something to say
        whether they see events or not.
        """
        self.body = body
        self.writer = writer
        self.chain = chain
        self._pools = pools
        self._scope = scope
        self._sse = sse
        self._half_full = pools.sse_event.size // 2
        self.wants_large = not sse
        """Whether the next pump wants a window of `http_response` rather than `sse_event`."""
        self.first_read: float | None = None
        """Trio's time of the first bytes of the body."""
        self.last_read = 0.0
        """Trio's time of the last bytes from upstream, put off by as long as the mover has then
        waited for somebody else.
        """
        self.last_write = 0.0
        """Trio's time of the last write; of bytes that pass unparsed, not every one is noted:
        `last_left`.
        """
        self.failure: InterceptorError | None = None

    @abstractmethod
    def pump(self, window: bytearray, now: float) -> Need:
        """One step, in a borrowed window that may be reused as soon as this returns. Never blocks.
        `now`: Trio's time.

        Raises `UpstreamFailure` and `ClientGone`.
        """

    @abstractmethod
    def note_own_write(self) -> None:
        """Something of ours leaves: if it is before the first byte of the body, a BOM there would
        belong to a line.
        """

    def proceed(self) -> Need:
        """Go on with the events that an async hook has stopped; it has been awaited. Raises as
        `pump`.
        """
        raise NotImplementedError("no hook stops what nobody sees")

    def continue_with(self, body: UpstreamBody) -> None:
        """Let the next step move another body, in which the stream goes on; what was not whole of
        the last one is forgotten.
        """
        self.body = body

    @property
    @abstractmethod
    def at_boundary(self) -> bool:
        """Whether what has left ends with a whole event, so that something else may be said."""

    @property
    @abstractmethod
    def between_events(self) -> bool:
        """Whether an interceptor may say something here."""

    @property
    @abstractmethod
    def last_left(self) -> float:
        """Trio's time when something last left for the client."""

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
        """Whether upstream's stream has ended, and will not go on in another body."""
        return self.body.complete

    @property
    def has_emitted(self) -> bool:
        """Whether an interceptor has something to say, and may."""
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
        """Whether interceptors are to be asked what they have left to say, if the stream is over."""
        chain = self.chain
        return chain is not None and chain.completes and not chain.ended and self.between_events

    @property
    def ends_in_finish(self) -> bool:
        """Whether what was written last is the end of the body, and the writer's `finish` can take
        it along.
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
        """What is needed when everything has been sent."""
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
        """Send what interceptors have added; what is needed next. Raises `ClientGone`."""
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
        """Send a heartbeat, if what has left ends with a whole event: otherwise nothing can be said
        before upstream goes on.

        False: it must leave through `drain` first. Raises `ClientGone`.
        """
        self.last_write = now
        if not self.between_events:
            return True
        self.note_own_write()
        return self.writer.write((PING,))

    def _note(self, size: int, now: float) -> None:
        """Bytes of the body have come."""
        if size:
            self.last_read = now
            if self.first_read is None:
                self.first_read = now
        if self._sse:
            # Read into a larger window as long as more comes at once than half fills the small one.
            self.wants_large = size > self._half_full


def release_parts(parts: list[Part]) -> None:
    """Let go of the buffers now, not when the garbage collector gets to it: they are about to move
    on.
    """
    for part in parts:
        if isinstance(part, memoryview):
            part.release()
    parts.clear()
