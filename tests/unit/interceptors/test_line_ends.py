"""The cost of line ends: empty lines and comments cost what any other bytes cost, whatever hooks
want, and pass unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from unit.interceptors.scripted import Hook, keep

from interceptors import Request, StreamContext, StreamInterceptor
from interceptors.chain import Chain
from interceptors.hooks import Owner
from interceptors.sse import parse_fields, unknown_lines
from pools import Pools

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
    """64 KiB of line ends or comments are not looked at one by one, also for hooks with `needs`."""
    pools = Pools()
    buffer = bytearray(before + fill * (WINDOW // len(fill)))
    async with pools.open_scope() as scope:
        stream = Chain([Owner("hook", hook)]).open_stream(Request(), pools.json, scope, 1 << 20)
        calls = count_calls(stream.process, buffer, 0, len(buffer))
        stream.release_parts()
        assert stream.failure is None
        assert calls < 200


@pytest.mark.parametrize("line", [b"x\n", b"x\r", b"x: y\r\n", b":\n"])
def test_lines_inside_an_event_are_read_together(line: bytes) -> None:
    """An event may have many thousands of unknown lines."""
    block = b"data: a\n" + line * 20000 + b"\n"
    assert count_calls(parse_fields, block) < 20
    assert count_calls(unknown_lines, block) < 20
