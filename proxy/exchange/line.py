"""The `exchange` line of the log, and which exchanges count as failures there.

`docs/monitoring.md` describes its fields. It never has a query, a credential or a part of a body.
Text that the client chooses is cut.
"""

from __future__ import annotations

from typing import Any

from interceptors import HookError, Outcome

from ..errors import ClientGone, SendStalled
from ..http.headers import find_header, upstream_id
from ..worker.logs import LONGEST_PATH, hides_content
from .context import Progress
from .ending import Ending
from .refusal import refusal_of
from .request import ClientRequest

__all__ = ["error_type_of", "exchange_line", "interceptor_of", "is_failure"]

_LONGEST_AGENT = 256
_COMPLETED = Outcome.COMPLETED  # reading an enum member is slower than reading a global
_ENDED_BY_PROXY = (Outcome.UPSTREAM_TIMEOUT, Outcome.DRAINING)
_TOO_MANY = 429


def is_failure(ending: Ending, status: int | None, progress: Progress) -> bool:
    """Whether an exchange is logged as a warning: everything but a response or an answer of an
    interceptor that is complete, and a client that has left; of responses also 429 and 5xx, of
    answers 4xx and 5xx.
    """
    outcome = ending.outcome
    if outcome is _COMPLETED:
        return status is not None and (status >= 500 or status == _TOO_MANY)
    if outcome is Outcome.CLIENT_DISCONNECTED:
        return False
    if outcome is Outcome.INTERCEPTED and ending.failure is None and progress.answered_by:
        return status is None or status >= 400
    return True


def interceptor_of(ending: Ending, progress: Progress) -> str | None:
    """The interceptor that answered, failed, or ended the stream; None if none did."""
    name: str | None = getattr(ending.failure, "interceptor", None)
    if name is None and ending.outcome is Outcome.INTERCEPTED:
        name = progress.interceptor
    return name


def error_type_of(ending: Ending, status: int | None, progress: Progress) -> str | None:
    """The error type of an exchange, as its client gets it, or else its outcome. None if the client
    has a complete response, or an answer of an interceptor that is not an error.
    """
    outcome, failure = ending.outcome, ending.failure
    assert outcome is not None
    if outcome is Outcome.COMPLETED:
        return None
    if isinstance(failure, ClientGone | SendStalled):
        return outcome.value
    if failure is not None or outcome in _ENDED_BY_PROXY:
        return refusal_of(failure, outcome).kind
    if outcome is Outcome.INTERCEPTED and not is_failure(ending, status, progress):
        return None
    return progress.answered_kind or outcome.value


def exchange_line(
    request: ClientRequest, progress: Progress, ending: Ending, status: int | None
) -> dict[str, Any]:
    """The fields that follow from the request and its ending."""
    shown, upstream, counts = progress.request, progress.upstream, progress.counts
    endpoint = None if upstream is None else upstream.endpoint
    agent, first_byte_s = find_header(request.headers, b"user-agent"), progress.first_byte_s
    assert ending.outcome is not None
    line: dict[str, Any] = {
        "request_id": request.request_id,
        "endpoint": None if endpoint is None else endpoint.origin,
        "client": request.client if shown is None else shown.client_name,
        "method": request.method,
        "path": request.path[:LONGEST_PATH],
        "user_agent": None if agent is None else agent[:_LONGEST_AGENT].decode("latin-1"),
        "status": status,
        "outcome": ending.outcome.value,
        "events": None if counts is None else counts.total,
        "time_to_first_byte": None if first_byte_s is None else round(first_byte_s, 6),
    }
    failure = ending.failure
    if failure is not None and not isinstance(failure, ClientGone | SendStalled):
        line["error"] = str(failure)
        if isinstance(failure, HookError) and hides_content():
            line["error"] = failure.summary
    for name, value in (
        ("error_type", error_type_of(ending, status, progress)),
        ("interceptor", interceptor_of(ending, progress)),
        ("upstream_request_id", _upstream_id(progress)),
    ):
        if value is not None:
            line[name] = value
    return line


def _upstream_id(progress: Progress) -> str | None:
    value = progress.upstream_request_id
    return None if value is None else upstream_id(value)
