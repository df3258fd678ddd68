"""The options of `budget`: limits, prices, and the windows of time that they count in.

Knows no requests and no store.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from fnmatch import fnmatchcase
from typing import Literal, TypeVar
from zoneinfo import ZoneInfo

import msgspec

__all__ = ["BudgetOptions", "Limit", "Period", "Price", "option_mistakes", "period_at"]

T = TypeVar("T")

MILLION = 1_000_000
_HOUR_S = 3600.0
_MOST = 10**15  # in millionths: an exact double
_UNITS: tuple[Literal["tokens", "requests", "cost"], ...] = ("tokens", "requests", "cost")


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit in windows of time. Exactly one of `tokens`, `requests` and `cost` is set."""

    per: Literal["minute", "hour", "day", "month"]
    by: Literal["all", "client_key", "team", "route", "model"] = "all"
    """What has a budget of its own. `all`: everything that passes this interceptor."""
    tokens: int | dict[str, int] | None = None
    """Input and output. A number, or a number for each name: globs, the first that fits counts."""
    requests: int | dict[str, int] | None = None
    cost: float | dict[str, float] | None = None
    """In the currency of `prices`."""
    soft: bool = False
    """Only log and count what goes beyond it."""

    @property
    def unit(self) -> Literal["tokens", "requests", "cost"]:
        return next((unit for unit in _UNITS if getattr(self, unit) is not None), "requests")

    @property
    def name(self) -> str:
        """The limit in metrics, log lines and header fields."""
        return f"{self.by}/{self.unit}/{self.per}" + ("/soft" if self.soft else "")

    def of(self, name: str) -> int | None:
        """The limit for a name: tokens, requests, or millionths of the currency. None: no limit."""
        given = getattr(self, self.unit)
        if isinstance(given, Mapping):
            # A model's name is in lower case, also if the configuration has it as it is sold.
            given = {glob.lower() if self.by == "model" else glob: n for glob, n in given.items()}
        amount = first_match(given, name) if isinstance(given, Mapping) else given
        return None if amount is None else round(amount * (MILLION if self.unit == "cost" else 1))


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prices of a model: a currency for a million tokens."""

    input: float
    output: float
    cached: float | None = None
    """Input tokens read from a cache. None: as `input`."""
    cache_written: float | None = None
    """Input tokens written to a cache. None: as `input`."""

    def of(self, plain: float, cached: float, cache_written: float, output: float) -> int:
        """The cost of tokens in millionths, rounded up. `plain`: input without the cache."""
        cached_price = self.input if self.cached is None else self.cached
        written_price = self.input if self.cache_written is None else self.cache_written
        cost = plain * self.input + cached * cached_price + cache_written * written_price
        # Prices such as 0.1 have no exact double: a rounding error must not cost a millionth.
        return math.ceil(round(cost + output * self.output, 6))


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """The options of `Budget`."""

    limits: list[Limit]
    prices: dict[str, Price] = field(default_factory=dict)
    """By the model that a request names: globs, in any case; the first that fits counts."""
    time_zone: str = "UTC"
    """Where days and months begin, such as `Europe/Berlin`."""
    reserve_tokens: int = 1000
    """Output tokens that a request reserves, unless its `max_tokens` is lower."""
    on_store_error: Literal["local", "open", "closed"] = "local"
    """What to do while the store is away."""


class Period(msgspec.Struct, frozen=True):
    """A window of time."""

    number: int | None
    """None: by the store's clock."""
    length_s: float
    """The longest one of its kind."""
    left_s: float
    """Seconds until its end."""


def first_match(globs: Mapping[str, T], name: str) -> T | None:
    """The value of the first glob that matches a name."""
    return next((value for glob, value in globs.items() if fnmatchcase(name, glob)), None)


def period_at(per: str, now: float, zone: tzinfo) -> Period:
    """The window of a limit. `now`: seconds since 1970."""
    if per in ("minute", "hour"):
        length_s = _HOUR_S if per == "hour" else 60.0
        return Period(None, length_s, length_s - now % length_s)
    today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "day":
        end, number, length_s = today + timedelta(days=1), today.toordinal(), 25 * _HOUR_S
    else:
        end = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
        number, length_s = today.year * 12 + today.month, (31 * 24 + 1) * _HOUR_S
    return Period(number, length_s, end.timestamp() - now)


def zone_of(name: str) -> tzinfo | None:
    """A time zone; None if it is unknown."""
    if name == "UTC":
        return UTC  # also on a machine without a time zone database
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
        return None


def option_mistakes(options: BudgetOptions) -> Iterator[str]:
    """Texts that start with an option path."""
    if not options.limits:
        yield "limits: must have at least one limit"
    if not 1 <= options.reserve_tokens <= MILLION:
        yield "reserve_tokens: expected a whole number from 1 to 1000000"
    if zone_of(options.time_zone) is None:
        yield (
            f"time_zone: {options.time_zone!r} is not in this machine's time zone database: "
            "expected a name such as Europe/Berlin"
        )
    names: dict[str, int] = {}
    for index, limit in enumerate(options.limits):
        path = f"limits[{index}]"
        units = [unit for unit in _UNITS if getattr(limit, unit) is not None]
        if len(units) != 1:
            yield f"{path}: expected exactly one of tokens, requests and cost"
            continue
        yield from _amount_mistakes(f"{path}.{limit.unit}", getattr(limit, limit.unit))
        if limit.name in names:
            yield f"{path}: the same budget as limits[{names[limit.name]}]: write one mapping by name"
        names.setdefault(limit.name, index)
        if limit.unit == "cost" and not options.prices:
            yield f"{path}.cost: requires `prices`"
    for glob, price in options.prices.items():
        for name in ("input", "output", "cached", "cache_written"):
            if not 0 <= (getattr(price, name) or 0) <= MILLION:
                yield f"prices.{glob}.{name}: expected a number from 0 to 1000000"


def _amount_mistakes(path: str, given: float | Mapping[str, float]) -> Iterator[str]:
    if not given and isinstance(given, Mapping):
        yield f"{path}: the mapping is empty"
    items = given.items() if isinstance(given, Mapping) else [("", given)]
    for glob, amount in items:
        if not 0 <= amount * MILLION <= _MOST:
            yield f"{f'{path}.{glob}'.rstrip('.')}: expected a number from 0 to {_MOST // MILLION}"
