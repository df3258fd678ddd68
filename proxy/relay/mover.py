"""`Mover`: waits for what a relay's steps need, in the stream's own task: upstream (through the
hub, where there is one), the client, async hooks. Meanwhile it sends heartbeats.

Every wait of a relay is here, with its deadline. This module must not touch bytes of the body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from ..hub import Hub, Need
from .heartbeat import with_heartbeats
from .step import Relay

__all__ = ["Mover"]

T = TypeVar("T")


class Mover:
    """Moves one relay. `run` moves its body to the end; call it again for another body."""

    __slots__ = (
        "_flush",
        "_flushing",
        "_heartbeat_s",
        "_hub",
        "_idle_s",
        "_in_hook",
        "_moving",
        "relay",
    )

    def __init__(
        self,
        relay: Relay,
        hub: Hub | None,
        *,
        idle_s: float,
        flush: Callable[[], Awaitable[None]],
        heartbeat_s: float | None = None,
    ) -> None:
        """`idle_s` limits the silence of upstream; `flush` waits until the client has taken what
        was written. After `heartbeat_s` without a write to the client a heartbeat is sent, between
        two events; only for event streams of unknown length that are not encoded.
        """
        self.relay = relay
        self._hub = hub
        self._idle_s = idle_s
        self._flush = flush
        self._heartbeat_s = heartbeat_s
        self._moving: trio.CancelScope | None = None
        self._in_hook = False
        self._flushing: trio.Event | None = None  # a heartbeat beside a hook is being flushed

    def run(self) -> Awaitable[None]:
        """Move the body to its end, when awaited: through the hub, or in the calling task.

        Raises `UpstreamFailure`, `ClientGone`, `SendStalled`, and the `InterceptorError` that ended
        the stream; everything before it was sent.
        """
        relay = self.relay
        if relay.chain is not None:
            relay.chain.queue.on_emit = self._interrupt
        relay.last_read = relay.last_write = trio.current_time()
        # Not a coroutine itself: that would keep one more frame for the stream's lifetime.
        if self._heartbeat_s is None or not relay.awaits:
            return self._run()
        return with_heartbeats(
            self._run, self._heartbeat_s, partial(self._send_heartbeat_in_hook, self._heartbeat_s)
        )

    async def complete(self) -> None:
        """Run `on_complete` after a stream that could not resume. Raises as `run`."""
        relay = self.relay
        await self._send_emitted()  # those emitted while there was no connection
        if relay.may_complete and await self._complete() is Need.WRITE:
            await self._flush()
        await self._send_emitted()
        if relay.failure is not None:
            raise relay.failure

    async def _run(self) -> None:
        relay = self.relay
        # What came with the head is sent at once: often that is all.
        need = relay.pump_once() if relay.body.pending else Need.READ
        while True:
            if need is Need.WRITE:
                if relay.ends_in_finish:
                    return
                began = trio.current_time()
                await self._flush()
                relay.last_write = trio.current_time()
                relay.last_read += relay.last_write - began  # upstream was not read meanwhile
                need = relay.next_need()
            elif need is Need.HOOK:
                began = trio.current_time()
                need = await self._await_hooks()
                relay.last_read += trio.current_time() - began
            elif relay.has_emitted:
                need = await self._emit()
            elif need is Need.END:
                if relay.failure is not None:
                    raise relay.failure
                if not (relay.is_over and relay.may_complete):
                    return
                need = await self._complete()
            else:
                need = await self._move(need)

    async def _move(self, need: Need) -> Need:
        """Pump whenever upstream is readable, until something else is needed."""
        relay, hub, idle_s = self.relay, self._hub, self._idle_s
        while True:
            # One deadline for many reads: compared with the last read and write when it fires.
            idle_at = relay.last_read + idle_s
            heartbeat_at = self._heartbeat_at()
            with trio.CancelScope(deadline=min(idle_at, heartbeat_at)) as self._moving:
                while need is Need.READ or need is Need.TURN:
                    if need is Need.TURN or relay.body.pending:
                        await trio.lowlevel.checkpoint()
                        need = relay.pump_once()
                    elif hub is not None:
                        need = await hub.move(relay)
                    else:
                        await relay.body.wait_readable()
                        need = relay.pump_once()
                self._moving = None
                return need
            self._moving = None
            if relay.has_emitted:
                return Need.EMIT
            now = trio.current_time()
            if now >= heartbeat_at:
                if now >= self._heartbeat_at() and not relay.send_heartbeat(now):
                    return Need.WRITE
                if now < idle_at:
                    continue
            # This process may have stood still, not upstream: read once more before failing.
            need = relay.pump_once()
            if need is Need.READ and trio.current_time() >= relay.last_read + idle_s:
                raise relay.body.silent(idle_s)

    def _interrupt(self) -> None:
        """An interceptor has emitted an event: end the wait of the stream's task."""
        if self._moving is not None:
            self._moving.cancel()

    async def _complete(self) -> Need:
        assert self.relay.chain is not None
        return self.relay.write_parts(await self._in_hooks(self.relay.chain.complete))

    async def _send_emitted(self) -> None:
        """Send what interceptors have emitted."""
        while self.relay.has_emitted:
            if await self._emit() is Need.WRITE:
                await self._flush()

    async def _emit(self) -> Need:
        """Send one event that an interceptor has emitted."""
        assert self.relay.chain is not None
        return self.relay.write_parts(await self._in_hooks(self.relay.chain.take_emitted))

    async def _await_hooks(self) -> Need:
        """Await the hooks at which the last step has stopped, and continue with its events."""
        assert self.relay.chain is not None
        await self._in_hooks(self.relay.chain.run_async)
        return self.relay.proceed()

    async def _in_hooks(self, step: Callable[[], Awaitable[T]]) -> T:
        """Await hooks. Heartbeats may be sent meanwhile; the last is flushed when this returns."""
        self._in_hook = True
        result = await step()
        self._in_hook = False
        if self._flushing is not None:
            await self._flushing.wait()
        return result

    def _heartbeat_at(self) -> float:
        """When the next heartbeat is due."""
        if self._heartbeat_s is None:
            return float("inf")
        return self.relay.last_left + self._heartbeat_s

    async def _send_heartbeat_in_hook(self, heartbeat_s: float) -> float:
        """Send a heartbeat if one is due beside a hook; the seconds until the next check."""
        now = trio.current_time()
        if self._in_hook and now >= self._heartbeat_at() and not self.relay.send_heartbeat(now):
            self._flushing = trio.Event()
            await self._flush()
            self._flushing.set()
            self._flushing = None
        due_s = self._heartbeat_at() - now
        return due_s if due_s > 0 else heartbeat_s
