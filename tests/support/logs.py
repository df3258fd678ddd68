"""The content of a log, without what depends on how busy the machine is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["without_times"]


def without_times(logs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the warnings of hooks that took long."""
    return [line for line in logs if line["event"] != "interceptor_slow"]
