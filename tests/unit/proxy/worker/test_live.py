"""The list of open exchanges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from proxy.worker.live import describe_live


def exchange(age: int) -> Any:
    return SimpleNamespace(started_at=-age, describe=lambda: {"age": age})


def test_only_the_oldest_thousand_are_listed() -> None:
    """Oldest first, with the total, so that a busy worker's page stays small."""
    shown = describe_live([exchange(age) for age in range(1500)])
    assert shown["total"] == 1500
    assert [item["age"] for item in shown["oldest"]] == list(range(1499, 499, -1))
