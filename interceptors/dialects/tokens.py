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
# `cached_tokens` of Moonshot, `reasoning_tokens` of Perplexity and SGLang. Of several places of a
# count, the first that is not 0 has it.
_PLACES = (
    ("input", "prompt_tokens", ""),
    ("input", "input_tokens", ""),
    ("output", "completion_tokens", ""),
    ("output", "output_tokens", ""),
    ("cached", "prompt_tokens_details", "cached_tokens"),
    ("cached", "input_tokens_details", "cached_tokens"),
    ("cached", "cached_tokens", ""),
    ("cached", "prompt_cache_hit_tokens", ""),
    ("cached", "cache_read_input_tokens", ""),
    ("cache_written", "prompt_tokens_details", "cache_write_tokens"),
    ("cache_written", "input_tokens_details", "cache_write_tokens"),
    ("cache_written", "prompt_tokens_details", "cache_creation_tokens"),
    ("cache_written", "cache_creation_input_tokens", ""),
    ("reasoning", "completion_tokens_details", "reasoning_tokens"),
    ("reasoning", "output_tokens_details", "reasoning_tokens"),
    ("reasoning", "output_tokens_details", "thinking_tokens"),
    ("reasoning", "reasoning_tokens", ""),
)
_PLACES_IN: dict[str, list[tuple[int, str, str, str]]] = {}  # by the name of a report's member
for _number, _place in enumerate(_PLACES):
    _PLACES_IN.setdefault(_place[1], []).append((_number, *_place))


def read_counts(usage: dict[str, Any]) -> dict[str, Tokens]:
    """The counts of a report, by the names of `COUNTS`."""
    counts: dict[str, Tokens] = {}
    found = [place for name in usage if name in _PLACES_IN for place in _PLACES_IN[name]]
    for _, kind, name, inner in sorted(found):
        value: Any = usage[name]
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if value is None or counts.get(kind):
            continue
        tokens = read_number(value)
        if tokens is not None:
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
