"""`/status/stream`: the state once a second, as server-sent events, computed once for all clients.

Nothing is computed without a client. A client that reads slowly gets the newest state next and
misses those before. It does not know what the state is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog
import trio

__all__ = ["MOST_WATCHERS", "StatusStream"]

MOST_WATCHERS = 16
_INTERVAL_S = 1.0
_CLOSE_S = 1.0
_RETRY = b"retry: 1000\n\n"


class StatusStream:
    """The newest state, and the clients that wait for the next one."""

    def __init__(self, compute: Callable[[], Awaitable[bytes]], over: Callable[[], bool]) -> None:
        """`compute`: returns the JSON, on one line. `over`: whether streams must end."""
        self._compute = compute
        self._over = over
        self._watchers = 0
        self._wanted = trio.Event()
        self._news = trio.Event()
        self._left = trio.Event()
        self._event = b""
        self._number = 0
        self._made_at = float("-inf")

    @property
    def full(self) -> bool:
        """Whether no further client can watch."""
        return self._watchers >= MOST_WATCHERS

    async def run(self) -> None:
        """Compute while a client watches, until cancelled."""
        while True:
            await self._wanted.wait()
            deadline = trio.current_time() + _INTERVAL_S
            try:
                state = await self._compute()
            except Exception:
                structlog.get_logger("proxy").error("internal_error", exc_info=True)
            else:
                self._event = b"event: status\ndata: " + state + b"\n\n"
                self._made_at = trio.current_time()
            self._tell()
            await trio.sleep_until(deadline)
            if not self._watchers:
                self._wanted = trio.Event()

    async def aclose(self) -> None:
        """End all streams. Waits at most `_CLOSE_S` for their clients."""
        self._over = lambda: True
        self._tell()
        with trio.move_on_after(_CLOSE_S):
            while self._watchers:
                await self._left.wait()

    def _tell(self) -> None:
        self._number += 1
        self._news.set()
        self._news = trio.Event()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the newest state at once, then each new one. Ends at once if it is `full`."""
        if self.full:
            return
        self._watchers += 1
        self._wanted.set()
        try:
            yield _RETRY
            seen = self._number
            if trio.current_time() - self._made_at < _INTERVAL_S:
                yield self._event
            while not self._over():
                if self._number == seen:
                    await self._news.wait()
                    continue
                seen = self._number
                yield self._event
        finally:
            self._watchers -= 1
            self._left.set()
            self._left = trio.Event()
