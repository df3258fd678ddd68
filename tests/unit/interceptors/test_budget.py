"""Windows and prices of budgets: what no test over a socket can wait for."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from interceptors.budget_charge import estimate_body
from interceptors.budget_limits import Limit, Price, period_at

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("per", "at", "left_s", "previous"),
    [
        ("minute", "2026-06-30 23:59:50", 10, None),
        ("hour", "2026-06-30 23:59:50", 10, None),
        ("day", "2026-06-30 23:00:00", 3600, "2026-06-29 00:00:00"),
        ("day", "2026-03-29 00:00:00", 23 * 3600, "2026-03-28 23:59:59"),  # the clock goes forward
        ("day", "2026-10-25 00:00:00", 25 * 3600, "2026-10-24 00:00:00"),
        ("month", "2026-12-31 23:59:00", 60, "2026-11-30 12:00:00"),
        ("month", "2027-01-01 00:00:00", 31 * 86400, "2026-12-31 23:59:59"),
        ("month", "2026-02-28 00:00:00", 86400, "2026-01-31 00:00:00"),
        ("month", "2026-10-01 00:00:00", 31 * 86400 + 3600, "2026-09-30 00:00:00"),
    ],
)
def test_a_window_ends_with_its_calendar(
    per: str, at: str, left_s: float, previous: str | None
) -> None:
    """Its number is one above that of the window before."""
    period, before = (
        period_at(per, datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp(), BERLIN)
        for text in (at, previous or at)
    )
    assert period.left_s == left_s <= period.length_s
    assert period.number == (None if before.number is None else before.number + 1)


def test_a_cost_is_rounded_up_once() -> None:
    price = Price(input=0.1, output=0.7, cached=0.01)
    assert price.of(30, 0, 0, 0) == 3
    assert price.of(30, 0, 10, 0) == 4
    assert price.of(0, 101, 0, 0) == 2
    assert [Limit(per="day", cost={"a*": 0.5}).of(name) for name in ("ab", "b")] == [500_000, None]
    assert Limit(per="day", by="model", tokens={"GPT*": 7}).of("gpt-9") == 7


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"a":"1234567"}', 2),
        ('{"a":"\u00e4\u00f6\u00fc"}'.encode(), 2),
        (b'{"data":"%s"}' % (b"A" * 100_000), 1001),
        (b'{"text":"%s"}' % (b"word " * 8_000), 10_001),
        (b"compressed", 3),
    ],
)
def test_an_estimate_of_the_input(body: bytes, tokens: int) -> None:
    assert estimate_body(body) == tokens
