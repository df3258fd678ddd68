"""How an exchange ended: outcome, failure, and whether the client has the whole response.

The first reason counts. Tasks of the exchange note reasons here; when its nursery is closed, one
place reports to the client and one place counts and logs. It knows no task and no socket.
"""

from __future__ import annotations

import msgspec
import structlog

from interceptors import InterceptorError, Outcome

from ..errors import ClientGone, RequestRefused, SendStalled, UpstreamFailure, outcome_of

__all__ = ["Ending"]

_EXPECTED = (UpstreamFailure, RequestRefused, InterceptorError, ClientGone, SendStalled)


class Ending(msgspec.Struct, eq=False):
    """Set once, by the first of its methods that is called."""

    outcome: Outcome | None = None
    """None while the exchange runs."""
    failure: Exception | None = None
    """The exception that ended it; None for endings without one: a client that left, a drain, a
    deadline.
    """
    whole: bool = False
    """The client has the whole response, and its end."""

    def complete(self, outcome: Outcome) -> bool:
        """The response has ended. Returns whether that is how the exchange ended."""
        if self.outcome is None:
            self.outcome, self.whole = outcome, True
        return self.whole

    def fail(self, failure: Exception, route: str) -> None:
        """An exception ended the exchange. One that is a bug of the proxy is logged."""
        if not isinstance(failure, _EXPECTED):
            structlog.get_logger("proxy").error("internal_error", route=route, exc_info=failure)
            failure = RequestRefused(
                500, "internal_error", "the proxy failed", outcome=Outcome.INTERNAL_ERROR
            )
        # Its frames hold the body, which may be large, until the client has its answer.
        failure.__traceback__ = None
        if self.outcome is None:
            self.outcome, self.failure = outcome_of(failure), failure
        elif self.outcome is Outcome.CLIENT_DISCONNECTED and isinstance(failure, SendStalled):
            self.outcome, self.failure = Outcome.SEND_STALLED, failure

    def stop(self, outcome: Outcome) -> None:
        """The exchange ended without an exception."""
        if self.outcome is None:
            self.outcome = outcome

    def settle(self, *, deadline_passed: bool, client_timed_out: bool) -> Outcome:
        """The outcome, once no task of the exchange is left. `client_timed_out`: the kernel gave
        the client up because it acknowledged nothing.
        """
        if self.outcome is None:
            # Only the total deadline and the server's own cancellation leave no reason.
            self.outcome = Outcome.UPSTREAM_TIMEOUT if deadline_passed else Outcome.DRAINING
        elif client_timed_out and self.outcome is Outcome.CLIENT_DISCONNECTED:
            # The kernel reports ETIMEDOUT to one caller only; others just see a disconnect.
            self.outcome = Outcome.SEND_STALLED
        return self.outcome
