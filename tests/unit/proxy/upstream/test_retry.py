"""When a request may be sent once more, and the budget that retries are paid from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    ConnectFailed,
    NoEndpoint,
    PoolFull,
    PoolTimedOut,
    ProtocolFailure,
    ReadFailed,
    Sent,
    UpstreamFailure,
    WriteTimedOut,
)
from proxy.upstream.retry import INITIAL_RETRIES, MAX_SAVED_RETRIES, RetryBudget, may_resend


async def pieces() -> AsyncIterator[bytes]:
    """A body from the client, which cannot be read twice."""
    yield b"x"


def failed(kind: type[UpstreamFailure], sent: Sent) -> UpstreamFailure:
    failure = kind("it failed")
    failure.sent = sent
    return failure


@pytest.mark.parametrize("kind", [ConnectFailed, ReadFailed, WriteTimedOut, ProtocolFailure])
@pytest.mark.parametrize("sent", Sent)
@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "get", ""]
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_request_is_resent_only_if_it_cannot_be_carried_out_twice(
    kind: type[UpstreamFailure], sent: Sent, method: str, in_memory: bool
) -> None:
    """Nothing of it was sent, or its method is idempotent (RFC 9110, section 9.2.2; case-sensitive)
    and its body can be repeated.
    """
    idempotent = method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
    expected = sent is Sent.NOTHING or (idempotent and in_memory)
    assert may_resend(method, b"x" if in_memory else pieces(), failed(kind, sent)) is expected


@pytest.mark.parametrize("kind", [NoEndpoint, PoolFull, PoolTimedOut])
def test_own_limits_are_not_retried(kind: type[UpstreamFailure]) -> None:
    assert not may_resend("GET", b"", failed(kind, Sent.NOTHING))


def test_a_budget_of_nothing_allows_none() -> None:
    budget = RetryBudget(0)
    for _ in range(1000):
        budget.deposit()
    assert not budget.withdraw()


def test_a_budget_begins_with_a_few_and_saves_no_more_than_it_may() -> None:
    budget = RetryBudget(0.2)
    assert [budget.withdraw() for _ in range(INITIAL_RETRIES + 1)] == [True] * INITIAL_RETRIES + [
        False
    ]
    for _ in range(5):
        assert not budget.withdraw()
        budget.deposit()
    assert budget.withdraw()
    for _ in range(100_000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(2 * MAX_SAVED_RETRIES)) == MAX_SAVED_RETRIES


@given(share=st.floats(0, 1), requests=st.lists(st.integers(0, 3), max_size=400))
def test_retries_never_exceed_their_share(share: float, requests: list[int]) -> None:
    """However requests and retries come: at most the initial allowance and the share of the
    requests so far.
    """
    budget = RetryBudget(share)
    retries = 0
    for count, wanted in enumerate(requests, 1):
        budget.deposit()
        retries += sum(budget.withdraw() for _ in range(wanted))
        assert retries <= (INITIAL_RETRIES if share else 0) + share * count + 1e-6
