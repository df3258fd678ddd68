"""The cost of line ends: empty lines and comments cost what any other bytes cost, whatever hooks
want, and pass unchanged.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from unit.interceptors.scripted import Hook, keep

from interceptors import Event, Request, StreamContext, StreamInterceptor
from interceptors.chain import Chain
from interceptors.hooks import Owner
from interceptors.sse import find_block_end, find_silence, is_silent, parse_fields, unknown_lines
from interceptors.testing import run_chain
from pools import Pools
from proxy.config import Reconnect
from proxy.dialects import GENERIC
from proxy.relay.resume import Resume

WINDOW = 1 << 16
FILLS = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\r",
    b"\r\r\n",
    b":\n\n",
    b":\r\r",
    b": ping\r\n\r\n",
    b":a\n:b\r\n\n\r",
]


class Needy(Hook):
    """The hook declares what it needs, so the chain may skip the rest."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        stream = super().open_stream(context)
        assert stream is not None
        stream.needs = (b"needle",)
        return stream


def count_calls(function: Callable[..., Any], *args: Any) -> int:
    """How many calls, of Python and of C, a function makes: a cost that no other process disturbs."""
    calls = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("before", [b"", b"data: x\n\n"])
@pytest.mark.parametrize("hook", [Hook(keep), Needy(keep)])
async def test_a_window_of_line_ends_is_a_few_calls(hook: Hook, before: bytes, fill: bytes) -> None:
    """64 KiB of line ends or comments are not looked at one by one, also for hooks that say what
    they need.
    """
    pools = Pools()
    buffer = bytearray(before + fill * (WINDOW // len(fill)))
    async with pools.open_scope() as scope:
        stream = Chain([Owner("hook", hook)]).open_stream(Request(), pools.json, scope, 1 << 20)
        calls = count_calls(stream.process, buffer, 0, len(buffer))
        stream.release_parts()
        assert stream.failure is None
        assert calls < 200


@pytest.mark.parametrize("fill", FILLS)
def test_a_stream_that_may_be_resumed_looks_at_line_ends_together(fill: bytes) -> None:
    """The same of the framing that takes out what a client has had."""
    resume = Resume(Reconnect(), GENERIC, 1 << 20)
    buffer = bytearray(fill * (WINDOW // len(fill)))
    assert count_calls(resume.take, buffer, 0, len(buffer)) < 200


@pytest.mark.parametrize("max_event_bytes", [7, 100, 1 << 20])
def test_line_ends_pass_and_count_the_same_however_they_are_cut(max_event_bytes: int) -> None:
    """Events, comments and empty lines of every kind: the same bytes, counts and events, whole and
    in pieces of any size.
    """
    chance = random.Random(16)
    pieces = [*FILLS, b"data: x\n\n", b"data: y\r\n\r\n", b"data: z\r\r", b"::\n"]
    for _ in range(60):
        text = (
            b"".join(chance.choice(pieces) for _ in range(chance.randrange(1, 12)))
            + b"data: end\n\n"
        )
        seen: list[list[str]] = []

        def look(event: Event, seen: list[list[str]] = seen) -> Event:
            seen[-1].append(event.data)
            return event

        results = []
        for size in (len(text), 1, 2, 3, 7):
            seen.append([])
            chunks = [text[at : at + size] for at in range(0, len(text), size)]
            result = run_chain([Hook(look)], chunks, max_event_bytes=max_event_bytes)
            results.append((result.output, result.counts, type(result.failure), seen[-1]))
        assert all(result == results[0] for result in results), text
        if max_event_bytes > 100:
            assert results[0][0] == text


def test_silence_is_the_silent_blocks() -> None:
    """One search finds what block by block finds, and as many."""
    chance = random.Random(4)
    for _ in range(3000):
        text = bytearray(
            b"".join(
                chance.choices(
                    [b"\n", b"\r", b":", b"a", b"\r\n", b"\n\n"], k=chance.randrange(1, 14)
                )
            )
        )
        start = chance.randrange(len(text))
        at, blocks = start, 0
        while (behind := find_block_end(text, at, len(text), at)) >= 0 and is_silent(
            text, at, behind
        ):
            at, blocks = behind, blocks + 1
        assert find_silence(text, start, len(text), 1 << 20) == (at, blocks), (bytes(text), start)


def test_no_more_than_one_event_is_looked_at_together() -> None:
    """A comment above the limit is an event above the limit, in a window of many, too."""
    comment = b":" + b"x" * 200 + b"\n\n"
    result = run_chain([Hook(keep)], [b"\n" * 500 + comment + b"data: x\n\n"], max_event_bytes=100)
    assert result.failure is not None
    assert re.fullmatch(rb"\n*", result.output)


@pytest.mark.parametrize("line", [b"x\n", b"x\r", b"x: y\r\n", b":\n"])
def test_lines_inside_an_event_are_read_together(line: bytes) -> None:
    """An event may have many thousands of lines that nobody understands."""
    block = b"data: a\n" + line * 20000 + b"\n"
    assert count_calls(parse_fields, block) < 20
    assert count_calls(unknown_lines, block) < 20
