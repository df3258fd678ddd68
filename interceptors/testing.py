"""Try interceptors without a network: run scripted bytes through a chain, in any chunks, and look at what leaves.

    result = run_chain([Redact(patterns=["secret"])], [b'data: "sec', b'ret"\\n\\n'])
    assert result.output == b'data: "[redacted]"\\n\\n'

Nothing is kept: a lease that is not back at the end is an `AssertionError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from pools import Pools

from .api import Interceptor, Outcome, ResponseHead, StreamContext
from .chain import Chain, EventCounts
from .errors import InterceptorError

__all__ = ["ChainResult", "run_chain"]


@dataclass(frozen=True, slots=True)
class ChainResult:
    output: bytes
    counts: EventCounts
    failure: InterceptorError | None
    """Why the stream was ended before its end, or None."""


def run_chain(
    interceptors: Sequence[Interceptor],
    chunks: Iterable[bytes],
    *,
    context: StreamContext | None = None,
    head: ResponseHead | None = None,
    max_event_bytes: int = 1 << 20,
) -> ChainResult:
    """Open a stream of `interceptors`, feed it `chunks` as they would arrive, end it. Must not be called inside Trio.

    Raises `HookError` when `open_stream` or `on_start` of an interceptor that says `abort` fails.
    """
    context = context or StreamContext(route="/", method="GET", path="/", headers=(), client=None)
    head = head or ResponseHead(200, ((b"content-type", b"text/event-stream"),))
    chain = Chain([(type(item).__name__, item) for item in interceptors])
    return trio.run(_run, chain, list(chunks), context, head, max_event_bytes)


async def _run(
    chain: Chain, chunks: list[bytes], context: StreamContext, head: ResponseHead, max_event_bytes: int
) -> ChainResult:
    pools = Pools(leak_detection="paranoid")
    output = bytearray()
    async with pools.open_scope() as scope:
        stream = chain.open_stream(context, pools.json, scope, max_event_bytes)
        outcome = Outcome.INTERCEPTED
        try:
            stream.start(head)
            pending = bytearray()
            for index in range(len(chunks) + 1):
                final = index == len(chunks)
                pending += b"" if final else chunks[index]
                parts, at = stream.process(pending, 0, len(pending), final=final)
                output += b"".join(parts)
                del parts[:], pending[:at]
                stream.release_parts()
                if stream.failure is not None:
                    break
            else:
                outcome = Outcome.COMPLETED
        finally:
            stream.close(outcome)
    kept = {stats.pool: stats.in_use for stats in pools.statistics() if stats.in_use}
    assert not kept, f"leases were not given back: {kept}"
    return ChainResult(bytes(output), stream.counts, stream.failure)
