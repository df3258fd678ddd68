"""What a worker gives back to a server that may have lost its data. Sans I/O.

A call changes nothing where the server has as much. Keys are the server's, with their prefix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from interceptors.store import Reservation

from .scripts import RESTORE_BUCKETS, RESTORE_RESERVED, RESTORE_WINDOWS, Call

__all__ = ["places_of", "restore_buckets", "restore_reserved", "restore_windows"]

_BATCH = 500


def restore_buckets(buckets: Sequence[tuple[str, float]]) -> Iterator[Call]:
    """Of keys, and the least microseconds until each is full."""
    for at in range(0, len(buckets), _BATCH):
        keys, left = zip(*buckets[at : at + _BATCH], strict=True)
        yield RESTORE_BUCKETS, keys, [math.floor(item) for item in left]


def restore_windows(windows: Sequence[tuple[str, tuple[int, int, int]]]) -> Iterator[Call]:
    """Of keys, and the number, length in ms and least use of each window."""
    for at in range(0, len(windows), _BATCH):
        keys, found = zip(*windows[at : at + _BATCH], strict=True)
        yield RESTORE_WINDOWS, keys, [number for item in found for number in item]


def restore_reserved(owner: str, owner_key: str, prefix: str, held: Sequence[Reservation]) -> Call:
    """Of reservations whose settlement no answer has confirmed. `prefix`: of windows.

    One call, because it must be whole: afterwards the server has lost nothing.
    """
    keys, args = [owner_key], list[Any]([owner])
    for item in held:
        keys += [f"{prefix}{window.key}" for window in item.windows]
        args += [item.id, item.amount, len(item.windows), *places_of(item)]
    return RESTORE_RESERVED, keys, args


def places_of(reservation: Reservation) -> list[int]:
    """The number and the length in ms of each window."""
    places: list[int] = []
    for window, state in zip(reservation.windows, reservation.states, strict=True):
        places += [state.number, round(window.length_s * 1000)]
    return places
