"""The relay of whole events: through the interceptors that see them, and over several connections
where the stream can resume.

An unfinished event waits at the beginning of a separate lease. Only an event above the
limit that no interceptor needs leaves in pieces.
"""

from __future__ import annotations

import trio

from interceptors.chain import StreamChain
from pools import BufferScope, Lease, Pools

from ..downstream import Writer
from ..hub import Need
from ..upstream import UpstreamBody
from .resume import Resume
from .step import Relay, release_parts

__all__ = ["EventRelay"]

_LEAST_ROOM = 1024  # the least to read after an unfinished event
_READ, _WRITE, _END = Need.READ, Need.WRITE, Need.END


class EventRelay(Relay):
    """Implements `Relay` for events: with a chain that sees them, with a `Resume`, or with both."""

    __slots__ = (
        *("_awaits", "_carried", "_carry", "_hooked", "_noted", "_passes", "_resume"),
        "_stopped",
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
        resume: Resume | None,
    ) -> None:
        super().__init__(body, writer, chain, pools, scope, sse=sse)
        self._hooked = chain = chain if chain is not None and chain.wants_events else None
        self._awaits = chain is not None and chain.is_async
        self._resume = resume
        self._passes = False  # not an event stream, and no interceptor sees it
        self._carry: Lease | None = None  # holds an unfinished event at its beginning
        self._carried = 0
        self._noted = 0  # events whose times are counted
        # The arguments of `_intercept` where an async hook has stopped it.
        self._stopped: tuple[int, int, int | None, int] = (0, 0, None, 0)

    @property
    def at_boundary(self) -> bool:
        return not self._passes if self._hooked is None else self._hooked.at_boundary

    @property
    def between_events(self) -> bool:
        return not self._passes if self._hooked is None else self._hooked.between_events

    @property
    def last_left(self) -> float:
        return self.last_write

    @property
    def runs_hooks(self) -> bool:
        return self._hooked is not None

    @property
    def awaits(self) -> bool:
        return self._awaits

    @property
    def is_over(self) -> bool:
        return self.body.complete and (
            self._resume is None or not self._resume.can_resume(clean=True)
        )

    @property
    def ends_in_finish(self) -> bool:
        return self._resume is None and super().ends_in_finish

    def note_own_write(self) -> None:
        if self._hooked is not None:
            self._hooked.wrote_before_body = True

    def continue_with(self, body: UpstreamBody) -> None:
        self._keep(bytearray(), 0, 0)
        super().continue_with(body)

    def pump(self, window: bytearray, now: float) -> Need:
        carry = self._carry
        if carry is None and self._awaits:
            # An async hook's event must stay in place while other streams use the window.
            carry = self._carry = self._scope.acquire(
                self._pools.http_response if self.wants_large else self._pools.sse_event
            )
        if carry is None:
            buffer, at = window, 0
        elif self.wants_large and not self._awaits and self._carried <= len(window) // 2:
            # More arrives at once than the small buffer has room for: read into the window, after
            # a copy of what is there.
            buffer, at = window, self._carried
            buffer[:at] = carry.buffer[:at]
        else:
            buffer, at = self._room(carry), self._carried
        span = self.body.receive(buffer, at)
        if span is None:
            if carry is not None and not at:
                self._keep(buffer, 0, 0)
            return _READ
        first, last = span
        self._note(last - first, now)
        if self._observe is not None:
            self._observe(buffer, first, last, now)
        if self._resume is not None:
            all_sent = self._take(self._resume, buffer, 0 if at else first, last)
        elif self._hooked is None:
            all_sent = self._pass(buffer, 0 if at else first, last)
        else:
            all_sent = self._intercept(self._hooked, buffer, 0 if at else first, last)
        return self.next_need() if all_sent else _WRITE

    def proceed(self) -> Need:
        chain, carry = self._hooked, self._carry
        assert chain is not None
        assert carry is not None
        self.failure = chain.failure
        if self.failure is not None:
            return _END
        sent_before = self.writer.bytes_sent
        all_sent = self._intercept(chain, carry.buffer, *self._stopped)
        if self.writer.bytes_sent > sent_before:
            self.last_write = trio.current_time()
        return self.next_need() if all_sent else _WRITE

    def _take(self, resume: Resume, buffer: bytearray, start: int, end: int) -> bool:
        """Pass on whole events that the client does not have yet, through the chain if there is
        one. The rest stays for the next read.
        """
        first, last, rest = resume.take(buffer, start, end)
        if resume.failure is not None:
            end = rest
        if resume.is_body:
            self._resume = None
            if self._hooked is not None:
                return self._intercept(self._hooked, buffer, first, end)
            self._passes = True
            last = rest = end
        if self._hooked is not None:
            return self._intercept(self._hooked, buffer, first, last, rest, end)
        self.failure = resume.failure
        all_sent = self._pass(buffer, first, last)
        self._keep(buffer, rest, end)
        return all_sent

    def _pass(self, buffer: bytearray, first: int, last: int) -> bool:
        """Pass on bytes that no interceptor sees."""
        if first == last:
            return True
        self.last_write = self.last_read
        if self._copy is not None:
            self._copy(buffer, first, last)
        part = memoryview(buffer)[first:last]
        try:
            return self.writer.write((part,))
        finally:
            part.release()

    def _intercept(
        self,
        chain: StreamChain,
        buffer: bytearray,
        start: int,
        last: int,
        after: int | None = None,
        end: int = 0,
    ) -> bool:
        """Pass events through the chain. The rest stays for the next read: with `after` that is
        `buffer[after:end]`, and the chain gets whole events only.
        """
        parts, rest = chain.process(buffer, start, last, final=self.body.complete and after is None)
        self.failure = chain.failure
        if self.gaps is not None and (total := chain.counts.total) > self._noted:
            self.gaps.note(total - self._noted, self.last_read)
            self._noted = total
        all_sent = True
        try:
            if parts:
                self.last_write = self.last_read
                all_sent = self.writer.write(parts)
        finally:
            release_parts(parts)
            chain.release_parts()
        if chain.awaiting:
            self._stopped = rest, last, after, end
            return all_sent
        if after is not None:
            assert self._resume is not None
            self.failure = self.failure or self._resume.failure
            rest, last = after, end
        self._keep(buffer, rest, rest if self.failure is not None or chain.ended else last)
        return all_sent

    def _keep(self, buffer: bytearray, rest: int, last: int) -> None:
        """Keep `buffer[rest:last]`, an unfinished event, in a separate lease; release that lease if
        the slice is empty.
        """
        size = last - rest
        carry = self._carry
        if not size:
            if carry is not None:
                self._carry = None
                self._carried = 0
                self._scope.release(carry)
            return
        if carry is None:
            pool = (
                self._pools.sse_event
                if size <= self._pools.sse_event.size // 2
                else self._pools.http_response
            )
            carry = self._carry = self._scope.acquire(pool)
        if buffer is not carry.buffer or rest:
            target = carry.buffer
            if len(target) < size:
                target.extend(bytes(size - len(target)))
            with memoryview(buffer) as source, memoryview(target) as view:
                view[:size] = source[rest:last]
        self._carried = size

    def _room(self, carry: Lease) -> bytearray:
        """A buffer that holds the unfinished event and has room to read: its own, a larger one, or
        its own grown.
        """
        buffer = carry.buffer
        is_small = carry.pool is self._pools.sse_event
        if len(buffer) - self._carried >= _LEAST_ROOM and not (is_small and self.wants_large):
            return buffer
        if is_small:
            larger = self._scope.acquire(self._pools.http_response)
            target = larger.buffer
            if len(target) < self._carried + _LEAST_ROOM:
                target.extend(bytes(self._carried + _LEAST_ROOM))
            target[: self._carried] = buffer[: self._carried]
            self._carry = larger
            self._scope.release(carry)
            return target
        buffer.extend(bytes(len(buffer)))  # above every pool's size: discarded on return
        return buffer
