"""The last reload of the configuration, for `/status` and the metrics: when, whether it succeeded,
and the errors.

With several workers the supervisor reads the file first. A `Notice` is memory in which its result
reaches the workers; each worker adds its own result.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Notice", "Reload", "Reloads", "failed", "latest"]

_BYTES = 1 << 17
_MOST_ERRORS = 50
_MOST_TEXT = 400


class Reload(msgspec.Struct, frozen=True):
    """One attempt. Texts have paths and messages, never a value that may be secret."""

    at: float
    """Seconds since 1970."""
    ok: bool
    errors: list[str] = []
    changed: list[str] = []
    """Paths whose new value is in force."""
    needs_restart: list[str] = []
    """Paths whose new value needs a new process."""


class Notice:
    """The supervisor's last result, in memory that it shares with its workers.

    There are two places, and a count whose lowest bit names the valid one: a reader never sees half
    a result, unless two more are written while it reads.
    """

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 8 + 2 * _BYTES)

    def put(self, reload: Reload) -> None:
        """Replace the result. For the supervisor."""
        data = msgspec.msgpack.encode(reload)
        turn = self._map[0] + 1 & 0xFF
        start = 8 + turn % 2 * _BYTES
        self._map[start : start + 4 + len(data)] = len(data).to_bytes(4, "big") + data
        self._map[0] = turn  # last

    def get(self) -> Reload | None:
        """The last result; None before the first."""
        start = 8 + self._map[0] % 2 * _BYTES
        size = int.from_bytes(self._map[start : start + 4], "big")
        if not size:
            return None
        return msgspec.msgpack.decode(self._map[start + 4 : start + 4 + size], type=Reload)


class Reloads:
    """The results that one worker knows."""

    def __init__(self, notice: Notice | None = None) -> None:
        """`notice`: the supervisor's."""
        self._notice = notice
        self._own: Reload | None = None
        self.succeeded_at = time.time()
        """When this worker last took over a configuration, in seconds since 1970; at first, its
        start.
        """

    def succeed(self, changed: Sequence[str], needs_restart: Sequence[str]) -> None:
        """This worker has taken over a configuration."""
        self.succeeded_at = time.time()
        self._own = Reload(
            self.succeeded_at, True, changed=list(changed), needs_restart=list(needs_restart)
        )

    def fail(self, errors: Iterable[object]) -> None:
        """This worker keeps its configuration."""
        self._own = failed(errors)

    @property
    def last(self) -> Reload | None:
        """The last result: the supervisor's if it has failed since this worker's own."""
        notice = None if self._notice is None else self._notice.get()
        return latest([self._own, None if notice is None or notice.ok else notice])

    @property
    def ok(self) -> bool:
        """Whether the last reload, if there was one, has succeeded."""
        last = self.last
        return last is None or last.ok


def failed(errors: Iterable[object]) -> Reload:
    """The result of an attempt that has failed now."""
    texts = [str(error)[:_MOST_TEXT] for error in errors]
    return Reload(time.time(), False, errors=texts[:_MOST_ERRORS])


def latest(reloads: Iterable[Reload | None]) -> Reload | None:
    """The newest of several."""
    return max(
        (item for item in reloads if item is not None), key=lambda item: item.at, default=None
    )
