"""Counters in memory that outlives their worker.

With several workers, the supervisor makes one `CounterMemory` for each before it forks. All
processes share it: a replacement continues its predecessor's counters, even after SIGKILL, and the
others can read those of a worker that does not answer. A single worker's memory is its own.

The memory has a header, one block of cells for each route, the routes' names, and two areas for the
last published bytes. A cell is an aligned float64, so neither a kill nor a reader in another
process sees half a value. Only the worker writes, except the cells that a method of the supervisor
names. It does not know what a cell counts: see `tally.py`.
"""

from __future__ import annotations

import mmap
import time
from array import array
from collections.abc import Iterator, MutableSequence
from enum import IntEnum

__all__ = ["HEADER_CELLS", "Cells", "CounterMemory", "State"]

Cells = MutableSequence[float]

HEADER_CELLS = 32
"""Cells before the blocks: some are used here, the rest, from `FIRST_FREE` on, by their owners."""
FIRST_FREE = 8

_MOST_ROUTES = 2048
_NAMES_BYTES = 1 << 18
_PUBLISHED_BYTES = 1 << 22
_ROUTES, _NAMED, _TURN, _SIZE, _STATE, _SEEN_AT, _ADMITTED = 0, 1, 2, 3, 5, 6, 7  # header cells


class State(IntEnum):
    """What a worker does."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    GONE = 3
    """The process has ended."""


class CounterMemory:
    """The counters of one worker and its predecessors. Pages that are never used cost no memory."""

    def __init__(self, block: int, most_published: int = _PUBLISHED_BYTES) -> None:
        """`block`: cells of a route. `most_published`: bytes that `publish` accepts."""
        self._block = block
        self._most_published = most_published
        cells = 8 * (HEADER_CELLS + block * _MOST_ROUTES)
        names = cells + _NAMES_BYTES
        self._map = memoryview(mmap.mmap(-1, names + 2 * most_published))
        self._names = self._map[cells:names]
        self._published = [
            self._map[start : start + most_published] for start in (names, names + most_published)
        ]
        self.cells: Cells = self._map[:cells].cast("d")  # type: ignore[assignment]  # indexed only

    def block_of(self, route: str) -> tuple[Cells, int]:
        """The cells of a route, and where its block starts; a new block is all 0.

        When the memory is full, the block is the process's own and ends with it.
        """
        for number, name in enumerate(self.routes()):
            if name == route:
                return self.cells, self._start(number)
        data, cells = route.encode(), self.cells
        number, end = int(cells[_ROUTES]), int(cells[_NAMED])
        if number == _MOST_ROUTES or end + 4 + len(data) > _NAMES_BYTES:
            return array("d", bytes(8 * self._block)), 0
        self._names[end : end + 4] = len(data).to_bytes(4, "big")
        self._names[end + 4 : end + 4 + len(data)] = data
        cells[_NAMED] = end + 4 + len(data)
        cells[_ROUTES] = number + 1  # last: the name is complete now
        return cells, self._start(number)

    def routes(self) -> Iterator[str]:
        """The names of the routes in the memory, in the order of their blocks."""
        at = 0
        for _ in range(int(self.cells[_ROUTES])):
            size = int.from_bytes(self._names[at : at + 4], "big")
            yield bytes(self._names[at + 4 : at + 4 + size]).decode()
            at += 4 + size

    def _start(self, number: int) -> int:
        return HEADER_CELLS + number * self._block

    def publish(self, data: bytes) -> bool:
        """Replace the published bytes. Returns False, and changes nothing, if they are too many."""
        if len(data) > self._most_published:
            return False
        turn = int(self.cells[_TURN]) + 1
        self._published[turn % 2][: len(data)] = data
        self.cells[_SIZE + turn % 2] = len(data)
        self.cells[_TURN] = turn  # last: a kill before leaves the previous bytes in place
        return True

    def published(self) -> bytes:
        """The bytes published last, by this worker or a predecessor; empty if there are none."""
        turn = int(self.cells[_TURN])
        return bytes(self._published[turn % 2][: int(self.cells[_SIZE + turn % 2])])

    @property
    def state(self) -> State:
        """The worker's state."""
        return State(int(self.cells[_STATE]))

    @state.setter
    def state(self, state: State) -> None:
        self.cells[_STATE] = state

    def seen(self) -> None:
        """Record that the worker's event loop runs."""
        self.cells[_SEEN_AT] = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the last `seen`."""
        return time.monotonic() - self.cells[_SEEN_AT]

    @property
    def admitted(self) -> int:
        """Exchanges that count against the limits."""
        return int(self.cells[_ADMITTED])

    @admitted.setter
    def admitted(self, count: int) -> None:
        self.cells[_ADMITTED] = count

    def end(self) -> None:
        """Record that the process has ended. For the supervisor, too."""
        self.state = State.GONE
        self.admitted = 0
