"""The times between the events of a stream."""

from __future__ import annotations

import pytest

from proxy.relay.gaps import GAP_BOUNDS, EventGaps


@pytest.mark.parametrize(
    ("reads", "gaps"),
    [
        ([(1, 5.0)], []),
        ([(3, 5.0)], [0.0, 0.0]),
        ([(1, 5.0), (1, 5.5)], [0.5]),
        ([(2, 5.0), (2, 5.002), (1, 105.0)], [0.0, 0.002, 0.0, 99.998]),
    ],
)
def test_what_one_read_brought_came_at_once(
    reads: list[tuple[int, float]], gaps: list[float]
) -> None:
    """`reads`: events, and when they came."""
    cells = [0.0] * (len(GAP_BOUNDS) + 3)
    counted = EventGaps(cells, 1)
    for count, now in reads:
        counted.note(count, now)
    assert cells[0] == 0
    assert cells[1] == pytest.approx(sum(gaps))
    below = [sum(gap <= bound + 1e-9 for gap in gaps) for bound in GAP_BOUNDS]
    assert [sum(cells[2 : 3 + number]) for number in range(len(GAP_BOUNDS))] == below
    assert sum(cells[2:]) == len(gaps)
