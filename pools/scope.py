"""The buffer scope of an exchange: it releases every lease that was borrowed inside it.

It releases without awaiting, so cancellation and deadlines cannot interrupt it.
"""

from __future__ import annotations

import msgspec

from .buffers import BufferPool, Lease
from .errors import ScopeClosed

__all__ = ["BufferScope"]


class BufferScope(msgspec.Struct, eq=False):
    """An async context manager that owns leases.

    Entering and leaving never block and are not checkpoints. It is async so that a scope can only
    be opened inside a task.
    """

    _leases: list[Lease] = []  # msgspec makes one for each scope
    _open: bool = False

    async def __aenter__(self) -> BufferScope:
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        while self._leases:
            lease = self._leases.pop()
            if not lease.returned:
                lease.release()

    def acquire(self, pool: BufferPool) -> Lease:
        """Borrow from `pool`, at most until the scope ends.

        Raises `ScopeClosed` outside of the `async with` block.
        """
        if not self._open:
            raise ScopeClosed
        lease = pool.acquire()
        self._leases.append(lease)
        return lease

    def release(self, lease: Lease) -> None:
        """Release a lease before the scope ends. Raises `LeaseReturned` if it was released."""
        if lease in self._leases:
            self._leases.remove(lease)
        lease.release()

    @property
    def leases(self) -> int:
        """The number of leases that the scope holds."""
        return len(self._leases)
