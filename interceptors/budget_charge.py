"""What a call reserves of budgets, and what it costs: estimates, amounts in each unit, places.

Knows no hooks and no store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import trio

from interceptors import Reservation, Window

from .budget_limits import Limit, Period, Price

__all__ = ["Charge", "Place", "Use", "estimate_body", "estimate_bytes", "size_of"]

_BYTES_PER_TOKEN = 4
_LONG_WORD = 1000
"""A longer text without a space, in ASCII, is an encoded image or file."""
_ENCODED_BYTES = 1000 * _BYTES_PER_TOKEN


class Use(NamedTuple):
    """Tokens of a call. `plain`: input that has nothing to do with a cache."""

    plain: float = 0
    cached: float = 0
    cache_written: float = 0
    output: float = 0


class Place(NamedTuple):
    """A limit that applies to a request."""

    limit: Limit
    name: str
    amount: int
    """The limit in whole units."""
    period: Period

    @property
    def window(self) -> Window:
        key = f"{self.limit.name}/{self.name}"
        return Window(key, self.amount, self.period.length_s, number=self.period.number)


@dataclass(slots=True, eq=False)
class Charge:
    """What one request has reserved."""

    input_estimate: int
    price: Price | None
    held: list[tuple[Reservation, list[Place]]] = field(default_factory=list)
    status: int = 0
    """Of the upstream's response; 0 without one."""
    is_read: trio.Event = field(default_factory=trio.Event)
    """A stream settles it."""
    is_settled: bool = False

    def amount(self, unit: str, use: Use) -> int:
        """Tokens in the unit of a limit."""
        if unit == "requests":
            return 1
        if unit == "tokens":
            return math.ceil(sum(use))
        return 0 if self.price is None else self.price.of(*use)


def estimate_bytes(size: int) -> int:
    """Tokens of a text of so many bytes."""
    return math.ceil(size / _BYTES_PER_TOKEN)


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def estimate_body(body: bytes) -> int:
    """Tokens of a request's texts: one for each 4 bytes, 1000 for an encoded image or file."""
    try:
        found = [msgspec.json.decode(body)]
    except (msgspec.DecodeError, RecursionError):
        return estimate_bytes(len(body))
    total = 0
    while found:
        item = found.pop()
        if isinstance(item, str):
            is_encoded = len(item) > _LONG_WORD and item.isascii() and " " not in item[:_LONG_WORD]
            total += _ENCODED_BYTES if is_encoded else size_of(item)
        elif isinstance(item, dict):
            found += item
            found += item.values()
        elif isinstance(item, list):
            found += item
    return estimate_bytes(total)
