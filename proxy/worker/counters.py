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
from collections.abc import Mapping, MutableSequence
from enum import IntEnum

__all__ = ["FIRST_FREE", "HEADER_CELLS", "Cells", "CounterMemory", "State"]

Cells = MutableSequence[float]

FIRST_FREE = 11
"""The first cell of the header that is not used here."""
HEADER_CELLS = 32

_MOST_ROUTES = 2048
_NAMES_BYTES = 1 << 18
# The header; _SIZE has two cells.
_ROUTES, _STOPPING, _TURN, _SIZE, _STATE, _SEEN_AT = 0, 1, 2, 3, 5, 6
_ADMITTED, _RELOADED_AT, _LOG_LEVEL, _DIED = 7, 8, 9, 10


class State(IntEnum):
    """What a worker does."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    GONE = 3
    """The process has ended."""


class CounterMemory:
    """The counters of one worker and its predecessors. Pages that are never used cost no memory."""

    def __init__(self, block: int, most_published: int) -> None:
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
        self._routes: dict[str, int] = {}  # read from the names, as far as `_names_end`
        self._names_end = 0

    def block_of(self, route: str) -> tuple[Cells, int]:
        """The cells of a route, and where its block starts; a new block is all 0.

        When the memory is full, the block is the process's own and ends with it.
        """
        if route not in self.routes():
            data, number, end = route.encode(), len(self._routes), self._names_end
            if number == _MOST_ROUTES or end + 4 + len(data) > _NAMES_BYTES:
                return array("d", bytes(8 * self._block)), 0
            self._names[end : end + 4] = len(data).to_bytes(4, "big")
            self._names[end + 4 : end + 4 + len(data)] = data
            self.cells[_ROUTES] = number + 1  # last: the name is complete now
        return self.cells, HEADER_CELLS + self.routes()[route] * self._block

    def routes(self) -> Mapping[str, int]:
        """The names of the routes in the memory, with the numbers of their blocks."""
        while len(self._routes) < self.cells[_ROUTES]:
            start = self._names_end + 4
            self._names_end = start + int.from_bytes(self._names[start - 4 : start], "big")
            self._routes[str(self._names[start : self._names_end], "utf-8")] = len(self._routes)
        return self._routes

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
    def reloaded_at(self) -> float:
        """When the last finished reload began, whether it succeeded or not, by `time.monotonic`; 0:
        none has.
        """
        return self.cells[_RELOADED_AT]

    @reloaded_at.setter
    def reloaded_at(self, at: float) -> None:
        self.cells[_RELOADED_AT] = at

    @property
    def log_level(self) -> int:
        """The changed level of the log: see `log_level`. Any process of the group writes it."""
        return int(self.cells[_LOG_LEVEL])

    @log_level.setter
    def log_level(self, number: int) -> None:
        self.cells[_LOG_LEVEL] = number

    @property
    def admitted(self) -> int:
        """Exchanges that count against the limits."""
        return int(self.cells[_ADMITTED])

    @admitted.setter
    def admitted(self, count: int) -> None:
        self.cells[_ADMITTED] = count

    @property
    def stopping(self) -> bool:
        """Whether the supervisor ends all workers."""
        return bool(self.cells[_STOPPING])

    def stop(self) -> None:
        """Record that all workers end. For the supervisor."""
        self.cells[_STOPPING] = 1.0

    def end(self) -> None:
        """Record that the process has ended. For the supervisor."""
        self.state = State.GONE
        self.admitted = 0

    @property
    def died(self) -> int:
        """Processes that ended without being stopped."""
        return int(self.cells[_DIED])

    def count_death(self) -> None:
        """Count such a process. For the supervisor."""
        self.cells[_DIED] += 1.0
