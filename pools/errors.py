"""The exceptions of this package."""

from __future__ import annotations

__all__ = ["LeaseReturned", "PoolError", "ScopeClosed"]


class PoolError(Exception):
    """Base class of every error that `pools` raises."""


class LeaseReturned(PoolError):
    """A lease was used or released after it was released."""

    def __init__(self, pool: str) -> None:
        super().__init__(f"this lease of pool {pool!r} was already released: borrow a new one")


class ScopeClosed(PoolError):
    """A buffer was borrowed through a scope that is not open."""

    def __init__(self) -> None:
        super().__init__("this buffer scope is not open: borrow inside its `async with` block")
