"""The errors of this package; nothing here knows who borrows buffers, or why."""

from __future__ import annotations

__all__ = ["LeaseReturned", "PoolError", "ScopeClosed"]


class PoolError(Exception):
    """Base of every error that `pools` raises."""


class LeaseReturned(PoolError):
    """A lease was used, or given back, after it had been given back."""

    def __init__(self, pool: str) -> None:
        super().__init__(f"this lease of pool {pool!r} was already given back; borrow a new one")


class ScopeClosed(PoolError):
    """A buffer was asked of a scope that is not open: its exchange has ended, or has not begun."""

    def __init__(self) -> None:
        super().__init__("this buffer scope is not open; borrow inside its `async with` block")
