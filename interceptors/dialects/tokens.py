"""Token counts in every spelling of the providers. One table for all dialects: servers mix them.

A count of 0 never replaces another: some servers repeat a report with zeros, or have the fields of
two APIs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from .parts import Tokens

__all__ = ["COUNTS", "merge_counts", "read_counts", "read_number"]

COUNTS = ("input", "output", "cached", "cache_written", "reasoning")
"""The names of the counts, as in `Usage`."""

_MOST = 1 << 53
"""Larger counts are ignored: floats are not exact above."""

# OpenAI chat and responses, Anthropic, and besides: `prompt_cache_hit_tokens` of DeepSeek,
# `cached_tokens` of Moonshot, `reasoning_tokens` of Perplexity and SGLang.
_PLACES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "input": (("prompt_tokens",), ("input_tokens",)),
    "output": (("completion_tokens",), ("output_tokens",)),
    "cached": (
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("cached_tokens",),
        ("prompt_cache_hit_tokens",),
        ("cache_read_input_tokens",),
    ),
    "cache_written": (
        ("prompt_tokens_details", "cache_write_tokens"),
        ("input_tokens_details", "cache_write_tokens"),
        ("prompt_tokens_details", "cache_creation_tokens"),
        ("cache_creation_input_tokens",),
    ),
    "reasoning": (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "thinking_tokens"),
        ("reasoning_tokens",),
    ),
}


def read_counts(usage: dict[str, Any]) -> dict[str, Tokens]:
    """The counts of a report, by the names of `COUNTS`."""
    counts: dict[str, Tokens] = {}
    for kind, places in _PLACES.items():
        for place in places:
            value: Any = usage.get(place[0])
            if len(place) == 2:
                value = value.get(place[1]) if isinstance(value, dict) else None
            if value is None:
                continue
            tokens = read_number(value)
            if tokens is not None and not counts.get(kind):
                counts[kind] = tokens
    return counts


def merge_counts(counts: dict[str, Tokens], later: Mapping[str, Tokens | None]) -> None:
    """Update `counts` with a later report: what it has replaces what was there, except that 0 never
    replaces a count.
    """
    for kind, tokens in later.items():
        if tokens or (tokens is not None and kind not in counts):
            counts[kind] = tokens


def read_number(value: Any) -> Tokens | None:
    """A count: a whole number, or a float, or digits in a string. None for anything else."""
    if type(value) is int and 0 <= value < _MOST:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 17:
        value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not isfinite(value)
        or not 0 <= value < _MOST
    ):
        return None
    return int(value) if value == int(value) else value
