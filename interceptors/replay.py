"""`replay`: a route that plays a tape (see `record`) instead of asking its upstream.

interceptors:
  - name: replay
    use: interceptors.replay:Replay
    options: {path: tapes/20261125T010203-1a2b3c4d.jsonl, speed: instant}
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from .api import Interceptor, Outcome
from .errors import Abort, LoadError
from .event import Event
from .message import Request, Response
from .tape import Tape, read_tape

__all__ = ["Options", "Replay"]


@dataclass(frozen=True)
class Options:
    path: str
    """The tape."""
    speed: float | Literal["real", "instant"] = "real"
    """`real`, `instant`, or how many times faster than real."""


class Replay(Interceptor):
    """Answers every request with the tape. A tape whose stream broke breaks again, at the same place."""

    def __init__(self, options: Options) -> None:
        speed = options.speed
        if isinstance(speed, str):
            speed = math.inf if speed == "instant" else 1.0
        if not speed > 0:
            raise LoadError(f"speed is {speed}, expected real, instant, or a number greater than 0", "speed")
        self._speed = speed
        self._path = Path(options.path)
        self._tape: Tape | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        data = await trio.to_thread.run_sync(self._path.read_bytes)
        try:
            self._tape = read_tape(data.splitlines())
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None
        yield

    async def on_request(self, request: Request) -> Response | None:
        assert self._tape is not None, "the lifespan has read it"
        return Response(status=self._tape.status, events=self._play(self._tape))

    async def _play(self, tape: Tape) -> AsyncIterator[Event]:
        began = trio.current_time()
        for at, event in tape.events:
            await trio.sleep_until(began + at / self._speed)
            yield event
        await trio.sleep_until(began + tape.ended_at / self._speed)
        if tape.outcome is not Outcome.COMPLETED:
            raise Abort(f"the recorded stream ended with {tape.outcome.value if tape.outcome else 'the recording'}")
