"""What an interceptor keeps of each text of an answer, bounded: of texts that have ended, only of
the last ones.

Some servers end a text and go on with it, so what is kept outlives the end. One that goes on after
many others have ended cannot be judged with what came before, and is refused.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ..dialects import Block
from ..errors import Abort

__all__ = ["MAX_ENDED", "PerBlock"]

T = TypeVar("T")

MAX_ENDED = 256
"""So many texts that have ended are kept."""


class PerBlock(Generic[T]):
    """One value for each text; all of open ones, and those of the last `MAX_ENDED` that have ended."""

    __slots__ = ("_ended", "_forgotten", "_values")

    def __init__(self) -> None:
        self._values: dict[Block, T] = {}
        self._ended: dict[Block, None] = {}
        self._forgotten: set[int] = set()

    def get(self, block: Block) -> T | None:
        """The value of a text; None for a new one. Raises `Abort` for one whose value was dropped."""
        value = self._values.get(block)
        if value is None and self._forgotten and hash(block) in self._forgotten:
            raise Abort(f"a text goes on after its end, and after the ends of {MAX_ENDED} others")
        return value

    def set(self, block: Block, value: T) -> None:
        """The text is open."""
        self._values[block] = value
        if self._ended:
            self._ended.pop(block, None)

    def end(self, block: Block) -> None:
        """The text has ended, and may go on."""
        if block not in self._values:
            return
        self._ended.pop(block, None)
        self._ended[block] = None
        if len(self._ended) > MAX_ENDED:
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._values[oldest]
            self._forgotten.add(hash(oldest))
