"""`replay`: answer every request of a route from a tape of `record`, in place of the upstream.

    interceptors:
      - name: replay
        use: replay
        options: {path: tapes/20260101T120000.000000Z-1a2b3c4d.jsonl, speed: real}

The tape is read and checked at start. If the recorded exchange did not end `completed`, the stream
is aborted where it ended.
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
    """A checked tape."""

    status: int
    headers: dict[str, str]
    events: tuple[tuple[float, Event], ...]
    """Each with its time in seconds since the head."""
    ends_at: float
    outcome: Outcome | None
    """None if lines were lost, and with them the end."""


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which tape, and its speed."""

    path: Annotated[str, msgspec.Meta(min_length=1)]
    speed: Literal["real", "instant"] | Annotated[float, msgspec.Meta(gt=0)] = "real"
    """`real`, `instant`, or a factor: 2 is twice as fast."""


class Replay(Interceptor):
    """Answers from its tape. The upstream and later interceptors see nothing."""

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
        """Read the tape in a thread. Raises `InterceptorError` if that fails."""
        self._tape = await trio.to_thread.run_sync(read_tape, self._path)
        yield

    async def on_request(self, request: Request) -> Response:
        tape = self._tape
        assert tape is not None  # set by `lifespan`
        return Response(status=tape.status, headers=tape.headers, events=self._play(tape))

    async def _play(self, tape: Tape) -> AsyncIterator[Event]:
        began = trio.current_time()
        for at, event in tape.events:
            await trio.sleep_until(began + at / self._speed)  # always a checkpoint
            yield event
        await trio.sleep_until(began + tape.ends_at / self._speed)
        if tape.outcome is not Outcome.COMPLETED:
            raise Abort(f"the recorded stream ended here: {tape.outcome or 'the rest was lost'}")


def read_tape(path: str) -> Tape:
    """Read and check a tape. Blocks. Raises `InterceptorError` with the number of a wrong line."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InterceptorError(
            f"cannot read the tape {path!r}: {error.strerror or error}"
        ) from error
    if not lines[-1]:
        lines.pop()  # after the last line end
    header = _decode(path, 1, lines[0] if lines else b"", TapeHeader)
    events: list[tuple[float, Event]] = []
    at, outcome = 0.0, None
    for number, text in enumerate(lines[1:], start=2):
        line = _decode(path, number, text, TapeLine)
        if outcome is not None:
            raise _wrong(path, number, "a line after the end of the tape")
        if line.at < at:
            raise _wrong(
                path, number, f"the time {line.at} is before that of the previous line, {at}"
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
            path, number, f"not a {'tape header' if kind is TapeHeader else 'tape line'}: {error}"
        ) from None


def _wrong(path: str, number: int, problem: str) -> InterceptorError:
    return InterceptorError(f"{path}:{number}: {problem}")
