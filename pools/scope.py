"""The buffer scope of an exchange: what is borrowed inside it is given back when it ends, however
it ends.

A scope gives its leases back without awaiting anything, so neither cancellation nor a deadline can
come between.
"""

from __future__ import annotations

from types import TracebackType

from .buffers import BufferPool, Lease
from .errors import ScopeClosed

__all__ = ["BufferScope"]


class BufferScope:
    """An async context manager that owns leases.

    `acquire` borrows into it, `release` gives one back early, leaving it gives back the rest.
    Entering and leaving never block and are no checkpoints: it is an async context manager so that
    a scope can only be opened inside a task.
    """

    __slots__ = ("_leases", "_open")

    def __init__(self) -> None:
        self._leases: list[Lease] = []  # as a rule one or two; an empty list is small
        self._open = False

    async def __aenter__(self) -> BufferScope:
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._open = False
        while self._leases:
            lease = self._leases.pop()
            if not lease.returned:
                lease.release()

    def acquire(self, pool: BufferPool) -> Lease:
        """Borrow from `pool` until the scope ends at the latest. Raises `ScopeClosed` outside the
        `async with` block.
        """
        if not self._open:
            raise ScopeClosed
        lease = pool.acquire()
        self._leases.append(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """Give a lease of this scope back now. Raises `LeaseReturned` when that was done before."""
        if lease in self._leases:
            self._leases.remove(lease)
        lease.release()

    @property
    def leases(self) -> int:
        """How many leases the scope holds."""
        return len(self._leases)
