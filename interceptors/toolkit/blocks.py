"""State that an interceptor keeps for each text of an answer, bounded by `MAX_ENDED`.

Some servers continue a text after its end, so that state outlives the end. A text that continues
after `MAX_ENDED` others have ended aborts the stream: its state is gone.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ..dialects import Block
from ..errors import Abort

__all__ = ["MAX_ENDED", "PerBlock"]

T = TypeVar("T")

MAX_ENDED = 256
"""State is kept for so many texts that have ended."""


class PerBlock(Generic[T]):
    """One value for each open text, and for the last `MAX_ENDED` that have ended."""

    __slots__ = ("_ended", "_forgotten", "_values")

    def __init__(self) -> None:
        self._values: dict[Block, T] = {}
        self._ended: dict[Block, None] = {}
        self._forgotten: set[int] = set()

    def get(self, block: Block) -> T | None:
        """The value of a text, None for a new one. Raises `Abort` if the value was dropped."""
        value = self._values.get(block)
        if value is None and self._forgotten and hash(block) in self._forgotten:
            raise Abort(f"a text continues after its end and after the ends of {MAX_ENDED} others")
        return value

    def set(self, block: Block, value: T) -> None:
        """Keep a value for an open text."""
        self._values[block] = value
        if self._ended:
            self._ended.pop(block, None)

    def end(self, block: Block) -> None:
        """Record that a text has ended. It may continue."""
        if block not in self._values:
            return
        self._ended.pop(block, None)
        self._ended[block] = None
        if len(self._ended) > MAX_ENDED:
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._values[oldest]
            self._forgotten.add(hash(oldest))
