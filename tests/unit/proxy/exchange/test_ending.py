"""The first reason for an end counts."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from interceptors import Outcome
from proxy.errors import ClientGone, ProtocolFailure, RequestRefused, SendStalled
from proxy.exchange.ending import Ending

REFUSAL, FAILURE = RequestRefused(413, "too_large", "too large"), ProtocolFailure("broken")
STALL, GONE = SendStalled(), ClientGone()
COMPLETED, LEFT, DRAINED = Outcome.COMPLETED, Outcome.CLIENT_DISCONNECTED, Outcome.DRAINING


def note(ending: Ending, reason: Any) -> None:
    if isinstance(reason, Exception):
        ending.fail(reason, "/")
    elif reason is COMPLETED:
        ending.complete(reason)
    elif reason is not None:
        ending.stop(reason)


@pytest.mark.parametrize(
    ("reasons", "settled", "outcome", "failure"),
    [
        ([REFUSAL, FAILURE], {}, Outcome.REFUSED, REFUSAL),
        ([FAILURE, LEFT], {}, Outcome.UPSTREAM_ERROR, FAILURE),
        ([FAILURE, DRAINED], {}, Outcome.UPSTREAM_ERROR, FAILURE),
        ([FAILURE, COMPLETED], {}, Outcome.UPSTREAM_ERROR, FAILURE),
        ([LEFT, FAILURE], {}, LEFT, None),
        ([LEFT, DRAINED], {}, LEFT, None),
        ([LEFT, GONE], {}, LEFT, None),
        ([DRAINED, STALL], {}, DRAINED, None),
        ([COMPLETED, FAILURE], {}, COMPLETED, None),
        ([], {}, DRAINED, None),  # the server's own cancellation
        ([], {"deadline_passed": True}, Outcome.UPSTREAM_TIMEOUT, None),
        # The kernel reports its deadline to one caller; the others see a disconnect.
        ([LEFT, STALL], {}, Outcome.SEND_STALLED, STALL),
        ([LEFT], {"client_timed_out": True}, Outcome.SEND_STALLED, None),
    ],
)
def test_the_first_reason_counts(
    reasons: list[Any], settled: dict[str, bool], outcome: Outcome, failure: Exception | None
) -> None:
    ending = Ending()
    for reason in reasons:
        note(ending, reason)
    times = {"deadline_passed": False, "client_timed_out": False} | settled
    assert ending.settle(**times) is outcome
    assert ending.failure is failure
    assert ending.whole is (outcome is COMPLETED)


def test_an_unexpected_exception_is_an_internal_error() -> None:
    """It is logged, and the client learns nothing of it."""
    ending = Ending()
    with capture_logs() as log:
        ending.fail(ZeroDivisionError("secret"), "/a")
    assert ending.outcome is Outcome.INTERNAL_ERROR
    assert isinstance(ending.failure, RequestRefused)
    assert "secret" not in str(ending.failure)
    assert [(line["event"], line["route"]) for line in log] == [("internal_error", "/a")]
