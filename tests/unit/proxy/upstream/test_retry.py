"""When a request may be sent once more, and the budget that retries are paid from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import errors
from proxy.errors import Sent, UpstreamFailure
from proxy.upstream.retry import INITIAL_RETRIES, MAX_SAVED_RETRIES, RetryBudget, may_resend

IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")


async def pieces() -> AsyncIterator[bytes]:
    """A body from the client, which cannot be read twice."""
    yield b"x"


def failed(kind: type[UpstreamFailure], sent: Sent) -> UpstreamFailure:
    failure = kind("it failed")
    failure.sent = sent
    return failure


def test_a_request_is_resent_only_if_it_cannot_be_carried_out_twice() -> None:
    """Nothing of it was sent, or its method is idempotent (RFC 9110, section 9.2.2; case-sensitive)
    and its body can be repeated: it is in memory, or nothing of it has been taken.
    """
    kinds = (errors.ConnectFailed, errors.ReadFailed, errors.WriteTimedOut, errors.ProtocolFailure)
    methods = (*IDEMPOTENT, "POST", "PATCH", "CONNECT", "get", "")
    for kind, sent, method, body in product(kinds, Sent, methods, (b"x", pieces())):
        expected = sent is Sent.NOTHING or (
            method in IDEMPOTENT and (body == b"x" or sent is Sent.HEAD)
        )
        assert may_resend(method, body, failed(kind, sent)) is expected, (kind, sent, method)
    for own_limit in (errors.NoEndpoint, errors.PoolFull, errors.PoolTimedOut):
        assert not may_resend("GET", b"", failed(own_limit, Sent.NOTHING))


def test_a_budget_starts_with_a_few_and_saves_no_more_than_it_may() -> None:
    """One with a share of 0 allows none."""
    budget = RetryBudget(0.2)
    initial = [budget.withdraw() for _ in range(INITIAL_RETRIES + 1)]
    assert initial == [True] * INITIAL_RETRIES + [False]
    for _ in range(5):
        assert not budget.withdraw()
        budget.deposit()
    assert budget.withdraw()
    none = RetryBudget(0)
    for _ in range(1000):
        budget.deposit()
        none.deposit()
    assert sum(budget.withdraw() for _ in range(2 * MAX_SAVED_RETRIES)) == MAX_SAVED_RETRIES
    assert not none.withdraw()


@settings(max_examples=40)
@given(share=st.floats(0, 1), requests=st.lists(st.integers(0, 3), max_size=200))
def test_retries_never_exceed_their_share(share: float, requests: list[int]) -> None:
    """The initial allowance, and the share of the requests so far."""
    budget, retries = RetryBudget(share), 0
    for count, wanted in enumerate(requests, 1):
        budget.deposit()
        retries += sum(budget.withdraw() for _ in range(wanted))
        assert retries <= (INITIAL_RETRIES if share else 0) + share * count + 1e-6
