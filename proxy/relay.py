"""The relay: upstream bytes -> events -> interceptors -> downstream, for one response.

`pump()` is the step, one synchronous function: read once, frame, run the interceptors, write, and say what is needed next. Who
waits is another matter: the hub where there is one, else the stream's own task. Invariants:

- between two steps a relay holds a lease only for an event that is not whole yet; an idle stream holds no buffer;
- upstream is read only when everything written before has left: a slow client slows upstream, and memory stays bounded;
- what one read brought leaves in one write.

It knows neither HTTP heads nor outcomes.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING

import trio

from interceptors import InterceptorError
from interceptors.chain import Part, StreamChain
from pools import BufferScope, Lease, Pools

from .downstream import Writer
from .errors import ReadTimedOut, SendStalled
from .upstream import UpstreamBody

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["Need", "Relay"]

_AT_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)\Z")  # a line's end, and an empty line
_LEAST_ROOM = 1024  # read no less than this behind an unfinished event


class Need(Enum):
    """What a step needs before the next one."""

    READ = auto()
    """Upstream has nothing more for now."""
    TURN = auto()
    """There may be more at once, of which no readiness will tell; let the others have a turn."""
    WRITE = auto()
    """The client has not taken everything; `writer.drain()` first."""
    NOTHING = auto()
    """The response is over: `failure` tells whether it is whole."""


# An enum's members are found through its metaclass, which costs more than a global.
_READ, _TURN, _WRITE, _NOTHING = Need.READ, Need.TURN, Need.WRITE, Need.NOTHING


class Relay:
    """Moves one body. Make it when both heads are done; it takes nothing over but the leases it borrows."""

    def __init__(
        self, body: UpstreamBody, writer: Writer, chain: StreamChain | None, pools: Pools, scope: BufferScope, *, sse: bool
    ) -> None:
        """`chain`: None passes bytes through unparsed. `sse`: windows come from the pool for events."""
        self._body = body
        self._writer = writer
        self._chain = chain
        self._pools = pools
        self._scope = scope
        self._sse = sse
        self._carry: Lease | None = None  # an event that is not whole yet lies at its beginning
        self._carried = 0
        self._half_full = pools.sse_event.size // 2
        self.wants_large = not sse
        """Whether the next pump wants a window of `http_response` rather than `sse_event`."""
        self._tail = bytearray(b"\n\n")
        self.first_read: float | None = None
        """Trio's time of the first bytes of the body."""
        self.last_read = 0.0
        """Trio's time of the last bytes from upstream."""
        self.failure: InterceptorError | None = None

    @property
    def at_boundary(self) -> bool:
        """Whether what has left ends with a whole event, so that something else may be said."""
        return self._chain is not None or _AT_BOUNDARY.search(self._tail) is not None

    @property
    def runs_hooks(self) -> bool:
        """Whether a pump runs interceptors."""
        return self._chain is not None

    def fileno(self) -> int:
        """The upstream socket's descriptor; -1 once it is closed."""
        return self._body.connection.sock.fileno()

    def pump(self, window: bytearray, now: float) -> Need:
        """One step, in a borrowed window that may be reused as soon as this returns. Never blocks. `now`: Trio's time.

        Raises `UpstreamFailure` and `ClientGone`.
        """
        carry = self._carry
        if carry is None:
            buffer, at = window, 0
        else:
            buffer, at = self._room(carry), self._carried
        span = self._body.receive(buffer, at)
        if span is None:
            return _READ
        first, last = span
        size = last - first
        if size:
            self.last_read = now
            if self.first_read is None:
                self.first_read = now
        if self._sse:
            # Read into a larger window as long as more comes at once than half fills the small one.
            self.wants_large = size > self._half_full
        if self._chain is None:
            all_sent = not size or self._pass(buffer, first, last)
        else:
            all_sent = self._intercept(self._chain, buffer, 0 if at else first, last)
        return self.next_need() if all_sent else _WRITE

    def next_need(self) -> Need:
        """What is needed when everything has been sent."""
        body = self._body
        if body.complete or self.failure is not None:
            return _NOTHING
        return _TURN if body.pending else _READ

    async def run(self, hub: Hub | None, *, idle_s: float | None, send_s: float | None) -> None:
        """Move the body to its end: through the hub, or without one in the calling task.

        `idle_s` bounds the silence of upstream, `send_s` each wait for the client. Raises `UpstreamFailure`, `ClientGone`,
        `SendStalled`, and the `InterceptorError` that ended the stream; everything before it has then been sent.
        """
        # What came with the head goes at once: often that is all.
        need = self._pump_once() if self._body.pending else Need.READ
        while True:
            if need is Need.WRITE:
                if self._body.complete and self.failure is None and not self._writer.synchronous:
                    return  # `finish` takes it along
                await self._drain(send_s)
                need = self.next_need()
            if need is Need.NOTHING:
                if self.failure is not None:
                    raise self.failure
                return
            need = await self._move(need, hub, idle_s)

    async def _drain(self, send_s: float | None) -> None:
        """Wait until the client has taken everything. Raises `SendStalled` when it takes nothing for `send_s`."""
        all_sent = False
        while not all_sent:
            if send_s is None:
                all_sent = await self._writer.drain()
                continue
            with trio.move_on_after(send_s) as scope:
                all_sent = await self._writer.drain()
            if scope.cancelled_caught:
                raise SendStalled

    async def _move(self, need: Need, hub: Hub | None, idle_s: float | None) -> Need:
        """Pump whenever upstream is readable, until something else is needed."""
        self.last_read = trio.current_time()
        while True:
            # One deadline for many reads: only when it fires is it compared with the last read.
            deadline = self.last_read + idle_s if idle_s is not None else float("inf")
            with trio.CancelScope(deadline=deadline):
                while need is Need.READ or need is Need.TURN:
                    if need is Need.TURN or self._body.pending:
                        await trio.lowlevel.checkpoint()
                        need = self._pump_once()
                    elif hub is not None:
                        need = await hub.move(self)
                    else:
                        await self._body.wait_readable()
                        need = self._pump_once()
                return need
            # Perhaps it was not upstream that stood still, but this process: look once more before saying so.
            need = self._pump_once()
            if idle_s is not None and need is Need.READ and trio.current_time() >= self.last_read + idle_s:
                raise ReadTimedOut(f"{self._body.connection.origin}: silent for {idle_s} s")

    def _pump_once(self) -> Need:
        """Borrow a window, pump, give it back."""
        pool = self._pools.http_response if self.wants_large else self._pools.sse_event
        lease = self._scope.acquire(pool)
        try:
            return self.pump(lease.buffer, trio.current_time())
        finally:
            self._scope.release(lease)

    def _pass(self, buffer: bytearray, first: int, last: int) -> bool:
        """Bytes nobody wants to see: on they go, and only their last few are remembered."""
        if self._sse:
            self._tail = buffer[last - 4 : last] if last - first >= 4 else (self._tail + buffer[first:last])[-4:]
        part = memoryview(buffer)[first:last]
        try:
            return self._writer.write((part,))
        finally:
            part.release()

    def _intercept(self, chain: StreamChain, buffer: bytearray, start: int, last: int) -> bool:
        """Whole events through the chain; what is left stays behind for the next read."""
        parts, rest = chain.process(buffer, start, last, final=self._body.complete)
        self.failure = chain.failure
        try:
            all_sent = self._writer.write(parts) if parts else True
        finally:
            _release(parts)
            chain.release_parts()
        self._keep(buffer, rest, last if self.failure is None else rest)
        return all_sent

    def _keep(self, buffer: bytearray, rest: int, last: int) -> None:
        """Keep `buffer[rest:last]`, the beginning of an event, in a lease of its own; or let that lease go."""
        size = last - rest
        carry = self._carry
        if not size:
            if carry is not None:
                self._carry = None
                self._carried = 0
                self._scope.release(carry)
            return
        if carry is None:
            pool = self._pools.sse_event if size <= self._pools.sse_event.size // 2 else self._pools.http_response
            carry = self._carry = self._scope.acquire(pool)
        if buffer is not carry.buffer or rest:
            target = carry.buffer
            if len(target) < size:
                target.extend(bytes(size - len(target)))
            with memoryview(buffer) as source, memoryview(target) as view:
                view[:size] = source[rest:last]
        self._carried = size

    def _room(self, carry: Lease) -> bytearray:
        """The buffer of an unfinished event, with room to read on: its own, a larger one, or its own grown."""
        buffer = carry.buffer
        if len(buffer) - self._carried >= _LEAST_ROOM:
            return buffer
        if carry.pool is self._pools.sse_event:
            larger = self._scope.acquire(self._pools.http_response)
            target = larger.buffer
            if len(target) < self._carried + _LEAST_ROOM:
                target.extend(bytes(self._carried + _LEAST_ROOM))
            target[: self._carried] = buffer[: self._carried]
            self._carry = larger
            self._scope.release(carry)
            return target
        buffer.extend(bytes(len(buffer)))  # too large for any pool: doubled, and discarded when it is given back
        return buffer


def _release(parts: list[Part]) -> None:
    """Let go of the buffers now, not when the garbage collector gets to it: they are about to move on."""
    for part in parts:
        if isinstance(part, memoryview):
            part.release()
    parts.clear()
