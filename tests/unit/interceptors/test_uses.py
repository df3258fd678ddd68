"""What a store's answers show of limits: the newest, of the keys asked last, until they are over."""

from __future__ import annotations

import pytest

from interceptors import Window
from interceptors.memory import MemoryEngine
from interceptors.store import Store
from interceptors.uses import MOST_KEYS


async def test_the_newest_use_of_each_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("interceptors.uses.time.time", lambda: now)
    store = Store(MemoryEngine(), "own")
    for _ in range(3):
        await store.take("ann", rate_per_s=0.1, burst=10)
    made = await store.reserve(5, [Window("day", 20, 86400.0, number=7), Window("min", 9, 60.0)])
    await store.settle(made, 4)
    await store.spend(1, [Window("day", 20, 86400.0, number=7)])
    found = {use.key: use for use in store._uses.read()}
    assert [(key, use.used, use.limit) for key, use in found.items()] == [
        ("ann", 3, 10),
        ("min", 5, 9),
        ("day", 5, 20),
    ]
    assert found["ann"].until == pytest.approx(1030, abs=1)
    assert found["min"].until is not None
    assert found["min"].until <= 1060
    assert found["day"].until is None  # its end is the caller's
    now += 61
    assert [use.key for use in store._uses.read()] == ["day"]
    now += 90_000
    assert list(store._uses.read()) == []
    for number in range(MOST_KEYS + 5):
        await store.take(str(number), rate_per_s=0.001, burst=10)
    kept = [use.key for use in store._uses.read()]
    assert kept == [str(number) for number in range(5, MOST_KEYS + 5)]
