"""`replay`: answer every request of a route with a tape that `record` made, as if it were the
upstream.

    interceptors:
      - name: replay
        use: replay
        options: {path: tapes/20260101T120000.000000Z-1a2b3c4d.jsonl, speed: real}

The tape is read and checked when the process begins to serve. What an exchange did that did not end
`completed` is done again, too: the stream breaks off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
import trio

from interceptors import Abort, Event, Interceptor, InterceptorError, Outcome, Request, Response

from .record import TapeHeader, TapeLine

__all__ = ["Replay", "ReplayOptions", "Tape", "read_tape"]

T = TypeVar("T")


class Tape(NamedTuple):
    """A tape, read and checked."""

    status: int
    headers: dict[str, str]
    events: tuple[tuple[float, Event], ...]
    """Each with its time, in seconds since the head."""
    ends_at: float
    outcome: Outcome | None
    """None when something of it was lost, its end in any case."""


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which tape, and how fast."""

    path: Annotated[str, msgspec.Meta(min_length=1)]
    speed: Literal["real", "instant"] | Annotated[float, msgspec.Meta(gt=0)] = "real"
    """`real`, `instant`, or how many times as fast as it was."""


class Replay(Interceptor):
    """Answers with its tape; the upstream sees nothing, and interceptors behind it neither."""

    sets_state = ()

    def __init__(self, options: ReplayOptions) -> None:
        self._path = options.path
        self._speed = (
            {"real": 1.0, "instant": inf}[options.speed]
            if isinstance(options.speed, str)
            else options.speed
        )
        self._tape: Tape | None = None

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Reads the tape in a thread. Raises `InterceptorError` for one that cannot be read."""
        self._tape = await trio.to_thread.run_sync(read_tape, self._path)
        yield

    async def on_request(self, request: Request) -> Response:
        tape = self._tape
        assert tape is not None  # the lifespan was entered
        return Response(status=tape.status, headers=tape.headers, events=self._play(tape))

    async def _play(self, tape: Tape) -> AsyncIterator[Event]:
        began = trio.current_time()
        for at, event in tape.events:
            await trio.sleep_until(began + at / self._speed)  # a checkpoint in any case
            yield event
        await trio.sleep_until(began + tape.ends_at / self._speed)
        if tape.outcome is not Outcome.COMPLETED:
            raise Abort(f"the recorded stream ended here: {tape.outcome or 'the rest is lost'}")


def read_tape(path: str) -> Tape:
    """Read and check a whole tape. Blocks. Raises `InterceptorError`, with the number of the line
    that is wrong.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InterceptorError(
            f"cannot read the tape {path!r}: {error.strerror or error}"
        ) from error
    if not lines[-1]:
        lines.pop()  # behind the last line's end
    header = _decode(path, 1, lines[0] if lines else b"", TapeHeader)
    events: list[tuple[float, Event]] = []
    at, outcome = 0.0, None
    for number, text in enumerate(lines[1:], start=2):
        line = _decode(path, number, text, TapeLine)
        if outcome is not None:
            raise _wrong(path, number, "a line behind the tape's end")
        if line.at < at:
            raise _wrong(
                path, number, f"its time {line.at} is before that of the line before, {at}"
            )
        at, outcome = line.at, line.end
        if outcome is None:
            try:
                events.append(
                    (at, Event(line.data, event=line.event, id=line.id, retry=line.retry))
                )
            except ValueError as error:
                raise _wrong(path, number, str(error)) from None
    return Tape(header.status, header.headers, tuple(events), at, outcome)


def _decode(path: str, number: int, text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _wrong(
            path, number, f"no {'tape header' if kind is TapeHeader else 'line of a tape'}: {error}"
        ) from None


def _wrong(path: str, number: int, problem: str) -> InterceptorError:
    return InterceptorError(f"{path}:{number}: {problem}")
