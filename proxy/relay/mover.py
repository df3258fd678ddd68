"""The mover: waits for what a relay's steps need, in the stream's own task: upstream (in the hub,
where there is one), the client, interceptors. Meanwhile it sees to heartbeats.

Whatever awaits is here, with its deadlines; nothing here touches a byte of the body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from ..errors import ReadTimedOut
from .heartbeat import with_heartbeats
from .hub import Hub
from .step import Need, Relay

__all__ = ["Mover"]

T = TypeVar("T")


class Mover:
    """Moves one relay. `run` moves the body that it has to its end, and may be called again when it
    has got another one.
    """

    __slots__ = (
        "_beating",
        "_flush",
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
        was written. After
        `heartbeat_s` of silence towards the client a heartbeat goes out, between two events; only for
        event streams of unknown length that are not encoded.
        """
        self.relay = relay
        self._hub = hub
        self._idle_s = idle_s
        self._flush = flush
        self._heartbeat_s = heartbeat_s
        self._moving: trio.CancelScope | None = None
        self._in_hook = False
        self._beating: trio.Event | None = (
            None  # while a heartbeat, beside an async hook, is on its way to a slow client
        )

    def run(self) -> Awaitable[None]:
        """Move the body to its end, when awaited: through the hub, or without one in the calling
        task.

        Raises `UpstreamFailure`, `ClientGone`, `SendStalled`, and the `InterceptorError` that ended
        the stream; everything before it has then been sent.
        """
        relay = self.relay
        if relay.chain is not None:
            relay.chain.on_emit = self._interrupt
        relay.last_read = relay.last_write = trio.current_time()
        # No coroutine of its own: one more frame would be there for as long as the stream.
        if self._heartbeat_s is None or not relay.awaits:
            return self._run()
        return with_heartbeats(
            self._run, self._heartbeat_s, partial(self._beat_beside_hook, self._heartbeat_s)
        )

    async def complete(self) -> None:
        """Ask interceptors what they have left to say: the stream was to go on, and has turned out
        to be over. Raises as `run`.
        """
        relay = self.relay
        await self._say_all()  # while there was no connection, nobody asked
        if relay.may_complete and await self._complete() is Need.WRITE:
            await self._drain()
        await self._say_all()
        if relay.failure is not None:
            raise relay.failure

    async def _run(self) -> None:
        relay = self.relay
        # What came with the head goes at once: often that is all.
        need = relay.pump_once() if relay.body.pending else Need.READ
        while True:
            if need is Need.WRITE:
                if relay.ends_in_finish:
                    return
                began = trio.current_time()
                await self._drain()
                relay.last_write = trio.current_time()
                relay.last_read += (
                    relay.last_write - began
                )  # upstream was not silent, it was not read
                need = relay.next_need()
            elif need is Need.HOOK:
                began = trio.current_time()
                need = await self._await_hooks()
                relay.last_read += trio.current_time() - began
            elif relay.has_emitted:
                need = await self._say()
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
            # One deadline for many reads: only when it fires is it compared with the last read, and
            # the last write.
            idle_at = relay.last_read + idle_s
            beat_at = self._beat_at()
            with trio.CancelScope(deadline=min(idle_at, beat_at)) as self._moving:
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
            if now >= beat_at:
                if now >= self._beat_at() and not relay.send_heartbeat(now):
                    return Need.WRITE
                if now < idle_at:
                    continue
            # Perhaps it was not upstream that stood still, but this process: look once more before
            # saying so.
            need = relay.pump_once()
            if need is Need.READ and trio.current_time() >= relay.last_read + idle_s:
                raise ReadTimedOut(f"{relay.body.connection.origin}: silent for {idle_s} s")

    def _interrupt(self) -> None:
        """An interceptor has something to say: let the stream's task come back from where it waits."""
        if self._moving is not None:
            self._moving.cancel()

    async def _drain(self) -> None:
        await self._flush()

    async def _complete(self) -> Need:
        assert self.relay.chain is not None
        return self.relay.write_parts(await self._in_hooks(self.relay.chain.complete))

    async def _say_all(self) -> None:
        """Send what interceptors have emitted."""
        while self.relay.has_emitted:
            if await self._say() is Need.WRITE:
                await self._drain()

    async def _say(self) -> Need:
        """Send one event that an interceptor has emitted."""
        assert self.relay.chain is not None
        return self.relay.write_parts(await self._in_hooks(self.relay.chain.take_emitted))

    async def _await_hooks(self) -> Need:
        """Await the hooks that have stopped the window's events, and go on with those."""
        assert self.relay.chain is not None
        await self._in_hooks(self.relay.chain.run_async)
        return self.relay.proceed()

    async def _in_hooks(self, step: Callable[[], Awaitable[T]]) -> T:
        """Await something of the chain's, beside which heartbeats may go out; the last of them has
        left when this returns.
        """
        self._in_hook = True
        result = await step()
        self._in_hook = False
        if self._beating is not None:
            await self._beating.wait()
        return result

    def _beat_at(self) -> float:
        """When the next heartbeat is due."""
        return (
            float("inf") if self._heartbeat_s is None else self.relay.last_left + self._heartbeat_s
        )

    async def _beat_beside_hook(self, heartbeat_s: float) -> float:
        """Send a heartbeat if one is due while an async hook is awaited. When to look again, in
        seconds.
        """
        now = trio.current_time()
        if self._in_hook and now >= self._beat_at() and not self.relay.send_heartbeat(now):
            self._beating = trio.Event()
            await self._drain()
            self._beating.set()
            self._beating = None
        due_s = self._beat_at() - now
        return due_s if due_s > 0 else heartbeat_s
