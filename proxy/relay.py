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
    HOOK = auto()
    """An interceptor must be awaited."""
    SAY = auto()
    """What has left ends with a whole event, and an interceptor has something to say."""
    WRITE = auto()
    """The client has not taken everything; `writer.drain()` first."""
    NOTHING = auto()
    """The response is over: `failure` tells whether it is whole."""


# An enum's members are found through its metaclass, which costs more than a global.
_READ, _TURN, _HOOK, _SAY, _WRITE, _NOTHING = Need.READ, Need.TURN, Need.HOOK, Need.SAY, Need.WRITE, Need.NOTHING


class Relay:
    """Moves one body. Make it when both heads are done; it takes nothing over but the leases it borrows."""

    __slots__ = (
        "_awaits",
        "_body",
        "_carried",
        "_carry",
        "_chain",
        "_half_full",
        "_moving",
        "_pools",
        "_scope",
        "_speaker",
        "_splits",
        "_sse",
        "_stopped",
        "_tail",
        "_writer",
        "failure",
        "first_read",
        "last_read",
        "wants_large",
    )

    def __init__(
        self, body: UpstreamBody, writer: Writer, chain: StreamChain | None, pools: Pools, scope: BufferScope, *, sse: bool
    ) -> None:
        """`chain`: without one, or when none of its hooks sees events, bytes pass unparsed. `sse`: windows come from the pool for
        events.
        """
        self._body = body
        self._writer = writer
        self._speaker = chain  # whose tasks may have something to say
        self._chain = chain = chain if chain is not None and chain.wants_events else None
        self._awaits = chain is not None and chain.is_async
        self._stopped = (0, 0)  # what an async hook has stopped, in the lease of the unfinished event
        self._moving: trio.CancelScope | None = None
        self._pools = pools
        self._scope = scope
        self._sse = sse
        self._carry: Lease | None = None  # an event that is not whole yet lies at its beginning
        self._carried = 0
        self._half_full = pools.sse_event.size // 2
        # Chunks that nobody wants to see may leave with the framing that they came in.
        self._splits = chain is None and body.chunked and writer.synchronous
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
    def _may_speak(self) -> bool:
        """Whether an interceptor may say something here. A CR behind an LF is most likely half a CRLF."""
        return self.at_boundary and (self._chain is not None or not self._tail.endswith(b"\n\r"))

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
        if self._splits:
            return self._pass_chunks(window, now)
        carry = self._carry
        if carry is None and self._awaits:
            # What an async hook sees must stay where it is, whoever uses the window meanwhile.
            carry = self._carry = self._scope.acquire(
                self._pools.http_response if self.wants_large else self._pools.sse_event
            )
        if carry is None:
            buffer, at = window, 0
        elif self.wants_large and not self._awaits and self._carried <= len(window) // 2:
            # More comes at once than the rest of that small buffer takes: the window does, behind a copy of what is there.
            buffer, at = window, self._carried
            buffer[:at] = carry.buffer[:at]
        else:
            buffer, at = self._room(carry), self._carried
        span = self._body.receive(buffer, at)
        if span is None:
            if carry is not None and not at:
                self._keep(buffer, 0, 0)
            return _READ
        first, last = span
        self._note(last - first, now)
        if self._chain is None:
            all_sent = first == last or self._pass(buffer, first, last)
        else:
            all_sent = self._intercept(self._chain, buffer, 0 if at else first, last)
        return self.next_need() if all_sent else _WRITE

    def _note(self, size: int, now: float) -> None:
        """Bytes of the body have come."""
        if size:
            self.last_read = now
            if self.first_read is None:
                self.first_read = now
        if self._sse:
            # Read into a larger window as long as more comes at once than half fills the small one.
            self.wants_large = size > self._half_full

    def next_need(self) -> Need:
        """What is needed when everything has been sent."""
        body, chain = self._body, self._speaker
        if self.failure is not None:
            return _NOTHING
        if chain is not None and chain.awaiting:
            return _HOOK
        if body.complete or (chain is not None and chain.ended):
            return _NOTHING
        if chain is not None and chain.emitted and self._may_speak:
            return _SAY
        return _TURN if body.pending else _READ

    async def run(self, hub: Hub | None, *, idle_s: float | None, send_s: float | None) -> None:
        """Move the body to its end: through the hub, or without one in the calling task.

        `idle_s` bounds the silence of upstream, `send_s` each wait for the client. Raises `UpstreamFailure`, `ClientGone`,
        `SendStalled`, and the `InterceptorError` that ended the stream; everything before it has then been sent.
        """
        if self._speaker is not None:
            self._speaker.on_emit = self._interrupt
        self.last_read = trio.current_time()
        # What came with the head goes at once: often that is all.
        need = self._pump_once() if self._body.pending else Need.READ
        while True:
            if need is Need.WRITE:
                last = self.failure is None and self._body.complete and (self._chain is None or not self._chain.awaiting)
                if last and not self._writer.synchronous and not self._has_to_say and not self._completes:
                    return  # `finish` takes it along
                began = trio.current_time()
                await self._drain(send_s)
                self.last_read += trio.current_time() - began  # upstream was not silent, it was not read
                need = self.next_need()
            elif need is Need.HOOK:
                began = trio.current_time()
                need = await self._await_hooks()
                self.last_read += trio.current_time() - began
            elif self._has_to_say:
                need = await self._say()
            elif need is Need.NOTHING:
                if self.failure is not None:
                    raise self.failure
                if not self._completes:
                    return
                assert self._speaker is not None
                need = self._speak(await self._speaker.complete())
            else:
                need = await self._move(need, hub, idle_s)

    @property
    def _has_to_say(self) -> bool:
        speaker = self._speaker
        return speaker is not None and speaker.emitted and self.failure is None and not speaker.ended and self._may_speak

    @property
    def _completes(self) -> bool:
        """Whether interceptors are to be asked, at the end of upstream's stream, what they have left to say."""
        speaker = self._speaker
        return speaker is not None and speaker.completes and not speaker.ended and self._body.complete and self._may_speak

    async def _await_hooks(self) -> Need:
        """Await the hooks that have stopped the window's events, and go on with those."""
        chain, carry = self._chain, self._carry
        assert chain is not None
        assert carry is not None
        await chain.run_async()
        self.failure = chain.failure
        if self.failure is not None:
            return _NOTHING
        all_sent = self._intercept(chain, carry.buffer, *self._stopped)
        return self.next_need() if all_sent else _WRITE

    async def _say(self) -> Need:
        """Send one event that an interceptor has emitted."""
        assert self._speaker is not None
        return self._speak(await self._speaker.take_emitted())

    def _speak(self, parts: list[Part]) -> Need:
        """Send what interceptors have added."""
        speaker = self._speaker
        assert speaker is not None
        self.failure = speaker.failure
        try:
            all_sent = self._writer.write(parts) if parts else True
        finally:
            _release(parts)
            speaker.release_parts()
        return self.next_need() if all_sent else _WRITE

    def _interrupt(self) -> None:
        """An interceptor has something to say: let the stream's task come back from where it waits."""
        if self._moving is not None:
            self._moving.cancel()

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
        while True:
            # One deadline for many reads: only when it fires is it compared with the last read.
            deadline = self.last_read + idle_s if idle_s is not None else float("inf")
            with trio.CancelScope(deadline=deadline) as self._moving:
                while need is Need.READ or need is Need.TURN:
                    if need is Need.TURN or self._body.pending:
                        await trio.lowlevel.checkpoint()
                        need = self._pump_once()
                    elif hub is not None:
                        need = await hub.move(self)
                    else:
                        await self._body.wait_readable()
                        need = self._pump_once()
                self._moving = None
                return need
            self._moving = None
            if self._has_to_say:
                return _SAY
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
            self._remember(buffer, first, last)
        part = memoryview(buffer)[first:last]
        try:
            return self._writer.write((part,))
        finally:
            part.release()

    def _pass_chunks(self, buffer: bytearray, now: float) -> Need:
        """A pump of chunks that nobody wants to see: those that came whole leave as they are."""
        body = self._body
        split = body.receive_split(buffer)
        if split is None:
            return _READ
        lead, wire, behind, first, last, size = split
        self._note(size, now)
        all_sent = True
        if size:
            view = memoryview(buffer)
            if wire == 0 and first == last:
                message: tuple[Part, ...] = (view[:behind],)
            else:
                message = (
                    *((b"%x\r\n" % lead, view[:lead], b"\r\n") if lead else ()),
                    *((view[wire:behind],) if wire < behind else ()),
                    *((b"%x\r\n" % (last - first), view[first:last], b"\r\n") if first < last else ()),
                )
            if self._sse:
                if lead:
                    self._remember(buffer, 0, lead)
                if wire < behind:
                    self._tail = buffer[behind - 6 : behind - 2]  # a whole chunk is not smaller
                if first < last:
                    self._remember(buffer, first, last)
            try:
                all_sent = self._writer.write_chunks(message, size)
            finally:
                for part in message:
                    if type(part) is memoryview:
                        part.release()
                view.release()
        if not all_sent:
            return _WRITE
        if body.complete or self._speaker is not None:
            return self.next_need()
        return _TURN if body.pending else _READ

    def _remember(self, buffer: bytearray, first: int, last: int) -> None:
        """The last bytes that left, which tell whether an event has ended."""
        self._tail = buffer[last - 4 : last] if last - first >= 4 else (self._tail + buffer[first:last])[-4:]

    def _intercept(self, chain: StreamChain, buffer: bytearray, start: int, last: int) -> bool:
        """Whole events through the chain; what is left stays behind for the next read."""
        parts, rest = chain.process(buffer, start, last, final=self._body.complete)
        self.failure = chain.failure
        try:
            all_sent = self._writer.write(parts) if parts else True
        finally:
            _release(parts)
            chain.release_parts()
        if chain.awaiting:
            self._stopped = rest, last
        else:
            self._keep(buffer, rest, rest if self.failure is not None or chain.ended else last)
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
        buffer.extend(bytes(len(buffer)))  # too large for any pool: doubled, and discarded when it is given back
        return buffer


def _release(parts: list[Part]) -> None:
    """Let go of the buffers now, not when the garbage collector gets to it: they are about to move on."""
    for part in parts:
        if isinstance(part, memoryview):
            part.release()
    parts.clear()
