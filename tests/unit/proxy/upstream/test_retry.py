"""When a request may be sent once more, and the budget that retries are paid from."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import (
    ConnectFailed,
    ConnectTimedOut,
    NoEndpoint,
    PoolFull,
    PoolTimedOut,
    ProtocolFailure,
    ReadFailed,
    ReadTimedOut,
    TlsFailed,
    UpstreamFailure,
    WriteTimedOut,
)
from proxy.upstream.retry import INITIAL_RETRIES, MAX_SAVED_RETRIES, RetryBudget, may_resend


class Piecewise(httpx.AsyncByteStream):
    """A body that comes from the client, and cannot be had twice."""


def request(method: str, *, in_memory: bool = True) -> httpx.Request:
    return httpx.Request(
        method, "http://h", stream=httpx.ByteStream(b"x") if in_memory else Piecewise()
    )


def failed(kind: type[UpstreamFailure], *, unsent: bool) -> UpstreamFailure:
    failure = kind("it failed")
    failure.unsent = unsent
    return failure


LATE = [ReadFailed, ReadTimedOut, WriteTimedOut, ProtocolFailure]
METHODS = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"]


@pytest.mark.parametrize(
    "kind", [ConnectFailed, ConnectTimedOut, TlsFailed, ReadFailed, WriteTimedOut]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_what_has_not_left_may_go_again(
    kind: type[UpstreamFailure], method: str, in_memory: bool
) -> None:
    assert may_resend(request(method, in_memory=in_memory), failed(kind, unsent=True))


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_idempotent_may_go_again_with_a_body_in_memory(
    kind: type[UpstreamFailure], method: str
) -> None:
    """RFC 9110, section 9.2.2."""
    assert may_resend(request(method), failed(kind, unsent=False))
    assert not may_resend(request(method, in_memory=False), failed(kind, unsent=False))


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "SEARCH", ""])
def test_anything_else_that_may_have_left_never_goes_twice(
    kind: type[UpstreamFailure], method: str
) -> None:
    """It may cost money. Methods are case-sensitive, and an unknown one may mean anything."""
    sent = httpx.Request("POST", "http://h", stream=httpx.ByteStream(b"x"))
    sent.method = method
    assert not may_resend(sent, failed(kind, unsent=False))


@pytest.mark.parametrize("kind", [NoEndpoint, PoolFull, PoolTimedOut])
def test_our_own_limits_are_no_reason_to_try_again(kind: type[UpstreamFailure]) -> None:
    assert not may_resend(request("GET"), failed(kind, unsent=True))


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
