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
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from interceptors import InterceptorError
from interceptors.chain import Part, StreamChain
from interceptors.sse import BOM
from pools import BufferScope, Lease, Pools

from .downstream import Writer
from .errors import ReadTimedOut, SendStalled
from .heartbeat import PING, while_beating
from .resume import Resume
from .upstream import UpstreamBody

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["Need", "Relay"]

T = TypeVar("T")

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
        "_beat_s",
        "_beating",
        "_body",
        "_bom",
        "_carried",
        "_carry",
        "_chain",
        "_half_full",
        "_in_hook",
        "_last_write",
        "_moving",
        "_pools",
        "_resume",
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
        self,
        body: UpstreamBody,
        writer: Writer,
        chain: StreamChain | None,
        pools: Pools,
        scope: BufferScope,
        *,
        sse: bool,
        preceded: bool = False,
        resume: Resume | None = None,
    ) -> None:
        """`chain`: without one, or when none of its hooks sees events, bytes pass unparsed. `sse`: windows come from the pool for
        events. `preceded`: a comment has left already, before the first byte of the body. `resume`: only whole events leave,
        without those that the client has had already; when the body has ended, `go_on` may be called.
        """
        self._body = body
        self._writer = writer
        self._speaker = chain  # whose tasks may have something to say
        self._chain = chain = chain if chain is not None and chain.wants_events else None
        self._awaits = chain is not None and chain.is_async
        self._resume = resume
        self._stopped: tuple[int, int, int | None, int] = (
            0,
            0,
            None,
            0,
        )  # as `_intercept` takes it, where an async hook has stopped
        self._moving: trio.CancelScope | None = None
        self._pools = pools
        self._scope = scope
        self._sse = sse
        self._carry: Lease | None = None  # an event that is not whole yet lies at its beginning
        self._carried = 0
        self._half_full = pools.sse_event.size // 2
        # Chunks that nobody wants to see may leave with the framing that they came in.
        self._splits = chain is None and resume is None and body.chunked and writer.synchronous
        self.wants_large = not sse
        """Whether the next pump wants a window of `http_response` rather than `sse_event`."""
        self._tail = bytearray(b"\n\n")
        self._bom: bytes | None = None  # what has come of a BOM that must not pass
        self._beat_s: float | None = None
        self._in_hook = False
        self._beating: trio.Event | None = None  # while a heartbeat, beside an async hook, is on its way to a slow client
        self._last_write = 0.0  # Trio's time; when bytes pass unparsed, what was read last may have left later
        self.first_read: float | None = None
        """Trio's time of the first bytes of the body."""
        self.last_read = 0.0
        """Trio's time of the last bytes from upstream."""
        self.failure: InterceptorError | None = None
        if preceded:
            self._drop_bom()

    @property
    def at_boundary(self) -> bool:
        """Whether what has left ends with a whole event, so that something else may be said."""
        return self._leaves_whole or _AT_BOUNDARY.search(self._tail) is not None

    @property
    def _may_speak(self) -> bool:
        """Whether an interceptor may say something here. A CR behind an LF is most likely half a CRLF."""
        return self.at_boundary and (self._leaves_whole or not self._tail.endswith(b"\n\r"))

    @property
    def _leaves_whole(self) -> bool:
        """Whether whole events leave; an unfinished one waits here."""
        return self._chain is not None or self._resume is not None

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
        if self._resume is not None:
            all_sent = self._take(self._resume, buffer, 0 if at else first, last)
        elif self._chain is None:
            all_sent = (first == last and not self._bom) or self._pass(buffer, first, last)
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

    async def run(self, hub: Hub | None, *, idle_s: float | None, send_s: float | None, beat_s: float | None = None) -> None:
        """Move the body to its end: through the hub, or without one in the calling task.

        `idle_s` bounds the silence of upstream, `send_s` each wait for the client. After `beat_s` of silence towards the client a
        heartbeat goes out, between two events; only for event streams of unknown length that are not encoded. Raises
        `UpstreamFailure`, `ClientGone`, `SendStalled`, and the `InterceptorError` that ended the stream; everything before it has
        then been sent.
        """
        if self._speaker is not None:
            self._speaker.on_emit = self._interrupt
        self._beat_s = beat_s
        self.last_read = self._last_write = trio.current_time()
        if beat_s is None or not self._awaits:
            await self._run(hub, idle_s, send_s)
        else:
            await while_beating(
                partial(self._run, hub, idle_s, send_s), beat_s, partial(self._beat_beside_hook, beat_s, send_s)
            )

    def go_on(self, body: UpstreamBody) -> None:
        """Let the next `run` move another body, in which the stream goes on; what was not whole of the last one is forgotten."""
        self._keep(bytearray(), 0, 0)
        self._body = body

    async def _run(self, hub: Hub | None, idle_s: float | None, send_s: float | None) -> None:
        # What came with the head goes at once: often that is all.
        need = self._pump_once() if self._body.pending else Need.READ
        while True:
            if need is Need.WRITE:
                last = self.failure is None and self._body.complete and (self._chain is None or not self._chain.awaiting)
                goes_on = self._resume is not None or self._has_to_say or self._completes
                if last and not self._writer.synchronous and not goes_on:
                    return  # `finish` takes it along
                began = trio.current_time()
                await self._drain(send_s)
                self._last_write = trio.current_time()
                self.last_read += self._last_write - began  # upstream was not silent, it was not read
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
                need = await self._complete()
            else:
                need = await self._move(need, hub, idle_s)

    @property
    def _has_to_say(self) -> bool:
        speaker = self._speaker
        return speaker is not None and speaker.emitted and self.failure is None and not speaker.ended and self._may_speak

    @property
    def _completes(self) -> bool:
        """Whether interceptors are to be asked, at the end of upstream's stream, what they have left to say."""
        is_over = self._body.complete and (self._resume is None or not self._resume.wants_more(clean=True))
        return is_over and self._may_complete

    @property
    def _may_complete(self) -> bool:
        speaker = self._speaker
        return speaker is not None and speaker.completes and not speaker.ended and self._may_speak

    async def complete(self, send_s: float | None) -> None:
        """Ask interceptors what they have left to say: the stream was to go on, and has turned out to be over. Raises as `run`."""
        if self._may_complete and await self._complete() is _WRITE:
            await self._drain(send_s)
        if self.failure is not None:
            raise self.failure

    async def _complete(self) -> Need:
        assert self._speaker is not None
        return self._speak(await self._in_hooks(self._speaker.complete))

    async def _await_hooks(self) -> Need:
        """Await the hooks that have stopped the window's events, and go on with those."""
        chain, carry = self._chain, self._carry
        assert chain is not None
        assert carry is not None
        await self._in_hooks(chain.run_async)
        self.failure = chain.failure
        if self.failure is not None:
            return _NOTHING
        sent_before = self._writer.bytes_sent
        all_sent = self._intercept(chain, carry.buffer, *self._stopped)
        if self._writer.bytes_sent > sent_before:
            self._last_write = trio.current_time()
        return self.next_need() if all_sent else _WRITE

    async def _in_hooks(self, step: Callable[[], Awaitable[T]]) -> T:
        """Await something of the chain's, beside which heartbeats may go out; the last of them has left when this returns."""
        self._in_hook = True
        result = await step()
        self._in_hook = False
        if self._beating is not None:
            await self._beating.wait()
        return result

    async def _say(self) -> Need:
        """Send one event that an interceptor has emitted."""
        assert self._speaker is not None
        return self._speak(await self._in_hooks(self._speaker.take_emitted))

    def _speak(self, parts: list[Part]) -> Need:
        """Send what interceptors have added."""
        speaker = self._speaker
        assert speaker is not None
        if self.first_read is None:
            self._drop_bom()
        self.failure = speaker.failure
        try:
            all_sent = self._writer.write(parts) if parts else True
        finally:
            _release(parts)
            speaker.release_parts()
        self._last_write = trio.current_time()
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
            # One deadline for many reads: only when it fires is it compared with the last read, and the last write.
            idle_at = self.last_read + idle_s if idle_s is not None else float("inf")
            beat_at = self._beat_at()
            with trio.CancelScope(deadline=min(idle_at, beat_at)) as self._moving:
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
            now = trio.current_time()
            if now >= beat_at:
                if now >= self._beat_at() and not self._beat(now):
                    return _WRITE
                if now < idle_at:
                    continue
            # Perhaps it was not upstream that stood still, but this process: look once more before saying so.
            need = self._pump_once()
            if idle_s is not None and need is Need.READ and trio.current_time() >= self.last_read + idle_s:
                raise ReadTimedOut(f"{self._body.connection.origin}: silent for {idle_s} s")

    def _beat_at(self) -> float:
        """When the next heartbeat is due. A write that nobody noted happened with the last read."""
        if self._beat_s is None:
            return float("inf")
        last = self._last_write if self._leaves_whole else max(self._last_write, self.last_read)
        return last + self._beat_s

    def _beat(self, now: float) -> bool:
        """Send a heartbeat, if what has left ends with a whole event: otherwise nothing can be said before upstream goes on.

        False: it must leave through `drain` first. Raises `ClientGone`.
        """
        self._last_write = now
        if not self._may_speak:
            return True
        if self._chain is not None or self.first_read is None:
            self._drop_bom()
        return self._writer.write((PING,))

    async def _beat_beside_hook(self, beat_s: float, send_s: float | None) -> float:
        """Send a heartbeat if one is due while an async hook is awaited. When to look again, in seconds."""
        now = trio.current_time()
        if self._in_hook and now >= self._beat_at() and not self._beat(now):
            self._beating = trio.Event()
            await self._drain(send_s)
            self._beating.set()
            self._beating = None
        due_s = self._beat_at() - now
        return due_s if due_s > 0 else beat_s

    def _drop_bom(self) -> None:
        """Something leaves before the first byte of the body: where that is no longer the first, a BOM would belong to a line."""
        if self._chain is not None:
            self._chain.preceded = True
        elif self._bom is None and self._sse and self._resume is None:
            self._bom = b""
            self._splits = False

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
            if self._bom is not None:
                return self._pass_without_bom(bytes(buffer[first:last]))
            self._remember(buffer, first, last)
        part = memoryview(buffer)[first:last]
        try:
            return self._writer.write((part,))
        finally:
            part.release()

    def _pass_without_bom(self, data: bytes) -> bool:
        """The first bytes behind a heartbeat, until it is known whether they are a BOM."""
        assert self._bom is not None
        self._bom += data
        if len(self._bom) < len(BOM) and BOM.startswith(self._bom) and not self._body.complete:
            return True
        data = self._bom.removeprefix(BOM)
        self._bom = None
        self._splits = self._body.chunked and self._writer.synchronous
        if not data:
            return True
        self._remember(bytearray(data), 0, len(data))
        return self._writer.write((data,))

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

    def _take(self, resume: Resume, buffer: bytearray, start: int, end: int) -> bool:
        """Whole events that the client has not had yet, to the chain if there is one; what is left stays for the next read."""
        first, last, rest = resume.take(buffer, start, end)
        if resume.failure is not None:
            end = rest
        if self._chain is not None:
            return self._intercept(self._chain, buffer, first, last, rest, end)
        self.failure = resume.failure
        all_sent = True
        if first < last:
            self._last_write = self.last_read
            part = memoryview(buffer)[first:last]
            try:
                all_sent = self._writer.write((part,))
            finally:
                part.release()
        self._keep(buffer, rest, end)
        return all_sent

    def _intercept(
        self, chain: StreamChain, buffer: bytearray, start: int, last: int, behind: int | None = None, end: int = 0
    ) -> bool:
        """Whole events through the chain; what is left stays behind for the next read. With `behind`, that is `buffer[behind:end]`,
        and the chain gets nothing but whole events.
        """
        parts, rest = chain.process(buffer, start, last, final=self._body.complete and behind is None)
        self.failure = chain.failure
        all_sent = True
        try:
            if parts:
                self._last_write = self.last_read
                all_sent = self._writer.write(parts)
        finally:
            _release(parts)
            chain.release_parts()
        if chain.awaiting:
            self._stopped = rest, last, behind, end
            return all_sent
        if behind is not None:
            assert self._resume is not None
            self.failure = self.failure or self._resume.failure
            rest, last = behind, end
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
