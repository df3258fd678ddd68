"""The parts to send in place of one window: slices of the window for unchanged bytes, slices of the
output's leases for what was written.

Adjacent bytes of one buffer are one part. Parts are views, taken when everything is written: a
buffer that has a view cannot grow. This module must not know events or hooks.
"""

from __future__ import annotations

from pools import PooledOutput

__all__ = ["Part", "Parts", "Piece"]

Part = memoryview | bytes
Piece = tuple[bytearray, int, int]
"""`(buffer, start, end)`"""


class Parts:
    """The parts of one window, collected from its start to its end."""

    __slots__ = ("_opened", "_output", "_pieces", "_written", "buffer", "unsent")

    def __init__(self, buffer: bytearray, start: int, output: PooledOutput) -> None:
        self.buffer = buffer
        self._output = output
        self._pieces: list[Piece] = []
        self._written = buffer  # the output's buffer that the open piece is in
        self._opened = -1  # where the open piece begins; -1: no open piece
        self.unsent = start
        """Where the unchanged bytes of the window begin that are in no part yet."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is sent so far, besides what `unsent` may add."""
        return not self._pieces and self._opened < 0

    def replace(self, at: int, end: int, start: int) -> None:
        """Send the output from `start` on in place of the window's `[at:end]`. Call `close` before
        writing anything to the output that is not a part.
        """
        if at > self.unsent or start == 0 or self._opened < 0:
            # Something is between this and what was written before, or a new buffer has begun.
            if self._opened >= 0:
                self._append((self._written, self._opened, start or len(self._written)))
            if at > self.unsent:
                self._append((self.buffer, self.unsent, at))
            self._written, self._opened = self._output.buffer, start
        self.unsent = end

    def replace_by(self, at: int, end: int, pieces: list[Piece]) -> None:
        """Send pieces of the output, or nothing, in place of the window's `[at:end]`."""
        self.close()
        if at > self.unsent:
            self._append((self.buffer, self.unsent, at))
        for piece in pieces:
            self._append(piece)
        self.unsent = end

    def close(self) -> None:
        """What the output gets next need not be a part."""
        if self._opened >= 0:
            self._append((self._written, self._opened, len(self._written)))
            self._opened = -1

    def take(self, end: int, view: memoryview) -> list[Part]:
        """All parts, with the unchanged bytes up to `end`. `view` is one of the window."""
        unsent, pieces = self.unsent, self._pieces
        if not pieces:
            if self._opened < 0:
                return [view[unsent:end]] if end > unsent else []
            if end == unsent:
                return [memoryview(self._written)[self._opened :]]
        self.close()
        if end > unsent:
            self._append((self.buffer, unsent, end))
        return [memoryview(buffer)[first:last] for buffer, first, last in pieces]

    def _append(self, piece: Piece) -> None:
        pieces = self._pieces
        if pieces and pieces[-1][2] == piece[1] and pieces[-1][0] is piece[0]:
            piece = (piece[0], pieces.pop()[1], piece[2])
        pieces.append(piece)
