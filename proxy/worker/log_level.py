"""The level of the log while the process runs: as configured, or as changed by a signal or a page.

A change is a number in the memory of each worker, 0 for the configured level, so that all workers
follow it, and a replacement starts with it. Any process of the group may write it. Each process
compares it with its own level ten times a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from ..config import LogLevel
from .counters import CounterMemory
from .logs import output as _output
from .logs import set_level

__all__ = ["LEVELS", "CurrentLevel"]

LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)


class CurrentLevel:
    """One process's view of the level. Belongs to one thread."""

    def __init__(
        self, memories: Sequence[CounterMemory], own: CounterMemory, configured: LogLevel
    ) -> None:
        """`memories`: of all workers. `own`: the one to follow."""
        self.configured: LogLevel = configured
        self._memories = memories
        self._own = own
        self._applied = 0

    @property
    def name(self) -> LogLevel:
        """The level of this process."""
        return LEVELS[self._applied - 1] if self._applied else self.configured

    def change(self, level: LogLevel) -> None:
        """Change the level of all workers, until the next reload."""
        number = 0 if level == self.configured else LEVELS.index(level) + 1
        for memory in self._memories:
            memory.log_level = number
        self.follow()

    def switch(self) -> None:
        """Change to debug, and from there back to the configured level."""
        self.follow()
        self.change(self.configured if self.name == "debug" else "debug")

    def follow(self) -> None:
        """Apply the change that a process of the group has made, if any."""
        number = self._own.log_level
        if number != self._applied:
            self._applied = number
            set_level(self.name)
            _output.write("info", "log_level_changed", log_level=self.name)

    def configure(self, level: LogLevel) -> None:
        """Apply the level of a configuration that was read again."""
        changed = level != self.configured or self._applied
        self.configured, self._applied, self._own.log_level = level, 0, 0
        if changed:
            set_level(level)
