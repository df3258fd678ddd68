"""The first reason for an end counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from interceptors import Outcome
from proxy.errors import ClientGone, ProtocolFailure, RequestRefused, SendStalled
from proxy.exchange.ending import Ending

Note = Callable[[Ending], None]
REFUSAL, FAILURE = RequestRefused(413, "too_large", "too large"), ProtocolFailure("broken")


def fail(error: Exception) -> Note:
    return lambda ending: ending.fail(error, "/")


def left(ending: Ending) -> None:
    ending.stop(Outcome.CLIENT_DISCONNECTED)


def drained(ending: Ending) -> None:
    ending.stop(Outcome.DRAINING)


def complete(ending: Ending) -> None:
    ending.complete(Outcome.COMPLETED)


def nothing(ending: Ending) -> None:
    """No task has noted a reason."""


@pytest.mark.parametrize(
    ("first", "then", "outcome", "failure"),
    [
        (fail(REFUSAL), fail(FAILURE), Outcome.REFUSED, REFUSAL),
        (fail(FAILURE), left, Outcome.UPSTREAM_ERROR, FAILURE),
        (fail(FAILURE), drained, Outcome.UPSTREAM_ERROR, FAILURE),
        (fail(FAILURE), complete, Outcome.UPSTREAM_ERROR, FAILURE),
        (left, fail(FAILURE), Outcome.CLIENT_DISCONNECTED, None),
        (left, drained, Outcome.CLIENT_DISCONNECTED, None),
        (left, fail(ClientGone()), Outcome.CLIENT_DISCONNECTED, None),
        (drained, fail(SendStalled()), Outcome.DRAINING, None),
        (complete, fail(FAILURE), Outcome.COMPLETED, None),
        (nothing, nothing, Outcome.DRAINING, None),
    ],
)
def test_the_first_reason_counts(
    first: Note, then: Note, outcome: Outcome, failure: Exception | None
) -> None:
    ending = Ending()
    first(ending)
    then(ending)
    assert ending.settle(deadline_passed=False, client_timed_out=False) is outcome
    assert ending.failure is failure
    assert ending.whole is (first is complete)


def test_a_stall_is_more_exact_than_a_disconnect() -> None:
    """The kernel reports its deadline to one caller; the others see a disconnect."""
    ending = Ending()
    left(ending)
    ending.fail(stall := SendStalled(), "/")
    assert (ending.outcome, ending.failure) == (Outcome.SEND_STALLED, stall)
    reported = Ending()
    left(reported)
    settled = reported.settle(deadline_passed=False, client_timed_out=True)
    assert settled is Outcome.SEND_STALLED


def test_the_total_deadline_leaves_no_reason() -> None:
    assert Ending().settle(deadline_passed=True, client_timed_out=False) is Outcome.UPSTREAM_TIMEOUT


def test_an_unexpected_exception_is_an_internal_error() -> None:
    """It is logged, and the client learns nothing of it."""
    ending = Ending()
    with capture_logs() as log:
        ending.fail(ZeroDivisionError("secret"), "/a")
    assert ending.outcome is Outcome.INTERNAL_ERROR
    assert isinstance(ending.failure, RequestRefused)
    assert "secret" not in str(ending.failure)
    (line,) = log
    assert (line["event"], line["route"]) == ("internal_error", "/a")
