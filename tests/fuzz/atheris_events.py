"""Coverage-guided fuzzing of the event framing, through a chain as it runs in the proxy. Needs the
extra `fuzz`.

    python tests/fuzz/atheris_events.py [-max_total_time=60] [a directory for the corpus]

Whatever bytes come, in whatever pieces: events, or `EventTooLarge`, and nothing else is raised;
every lease comes back; what a hook passes keeps its bytes; what it writes anew is not larger
than what came, but for the lines that it takes; and the cuts change nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

with atheris.instrument_imports(include=["interceptors"]):
    from interceptors import (
        Event,
        EventTooLarge,
        Interceptor,
        Outcome,
        Request,
        ResponseHead,
        StreamContext,
        StreamInterceptor,
    )
    from interceptors.chain import Chain
    from interceptors.hooks import Owner
from atheris_body import pieces_of  # noqa: E402

from pools import Pools  # noqa: E402

__all__: list[str] = []

_MAX_EVENT_BYTES = 512
POOLS = Pools()


class _Passing(StreamInterceptor):
    def on_event(self, event: Event) -> Any:
        assert len(event.raw) <= _MAX_EVENT_BYTES
        return event


class _Rewriting(StreamInterceptor):
    def on_event(self, event: Event) -> Any:
        return event.replace(data=event.data)


class _Opens(Interceptor):
    def __init__(self, stream_class: type[StreamInterceptor]) -> None:
        self._stream_class = stream_class

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return self._stream_class()


@dataclass
class Result:
    output: bytes
    failure: Exception | None


def run(stream_class: type[StreamInterceptor], pieces: list[bytes]) -> Result:
    """What leaves a chain of one interceptor. Without Trio, which would take longer than everything
    else: nothing awaits here.
    """
    try:
        _run(stream_class, pieces).send(None)
    except StopIteration as stopped:
        result: Result = stopped.value
        assert result.failure is None or isinstance(result.failure, EventTooLarge), result.failure
        return result
    raise AssertionError("a chain of synchronous hooks has awaited something")


async def _run(stream_class: type[StreamInterceptor], pieces: list[bytes]) -> Result:
    output, pending = bytearray(), bytearray()
    interceptor = _Opens(stream_class)
    chain = Chain([Owner("fuzzed", interceptor)])
    request = Request()
    async with POOLS.open_scope() as scope:
        stream = chain.open_stream(request, POOLS.json, scope, _MAX_EVENT_BYTES)
        await stream.start(ResponseHead(200, [(b"content-type", b"text/event-stream")], request))
        for index in range(len(pieces) + 1):
            pending += pieces[index] if index < len(pieces) else b""
            parts, rest = stream.process(pending, 0, len(pending), final=index == len(pieces))
            output += b"".join(parts)
            for part in parts:
                if isinstance(part, memoryview):
                    part.release()
            stream.release_parts()
            if stream.failure is not None:
                break
            del pending[:rest]
        failure = stream.failure
        await stream.aclose(Outcome.COMPLETED if failure is None else Outcome.UPSTREAM_ERROR)
    assert [stats.in_use for stats in POOLS.statistics()] == [0, 0, 0]
    return Result(bytes(output), failure)


def one_input(data: bytes) -> None:
    """One stream: the sizes of its pieces, its bytes."""
    if len(data) < 5:
        return
    wire = data[4:]
    cut = pieces_of(wire, data[:4])
    passed = run(_Passing, cut)
    if passed.failure is None:
        assert passed.output == wire
    else:
        assert wire.startswith(passed.output)
    rewritten = run(_Rewriting, cut)
    assert (
        len(rewritten.output) <= 8 * len(wire) + 64
    )  # U+FFFD is three bytes, and each line gets its `data: `
    if passed.failure is None and rewritten.failure is None:
        assert run(_Rewriting, [wire]).output == rewritten.output


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
