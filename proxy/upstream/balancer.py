"""One upstream with its endpoints: which endpoint a call goes to, and whether it is retried.

The endpoint gives scheme, host, port, the path in front of the target, and, where the upstream's
`host` is "upstream", the Host header.

These count as an endpoint's failure: no connection, no TLS, a request not accepted in time, a
response whose head is malformed, incomplete or late, and one that breaks off or goes silent after
its head (see `endpoints` for what follows from it). These do not: any whole response, whatever its
status; a kept connection that turned out to be closed; a request that
cannot be written; a client that leaves; and this proxy's own limits (`max_connections`,
descriptors, memory, local ports).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial

import structlog
import trio

from ..errors import NoEndpoint, ReadFailed, UpstreamFailure
from ..http.head import BadRequest
from ..hub import current_time
from .body import UpstreamBody
from .call import CallTimeouts, UpstreamCall, UpstreamResponse
from .connections import PoolState
from .endpoints import Endpoint, Endpoints, EndpointState, NoneInService, Turn
from .http1 import Http1Transport
from .retry import may_resend
from .sessions import UpstreamSessions

__all__ = ["Balancer", "Checks"]


class Checks:
    """`health.check_path`: a GET of `target` every `interval_s` seconds."""

    __slots__ = ("headers", "interval_s", "target")

    def __init__(
        self, target: str, interval_s: float, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """`headers`: sent besides Host; lower-case names."""
        self.target = target.encode()
        self.interval_s = interval_s
        named = {name for name, _ in headers}
        defaults = [(b"user-agent", b"weirpool"), (b"accept", b"*/*")]
        self.headers = [header for header in defaults if header[0] not in named] + list(headers)


class Balancer:
    """The endpoints of one upstream, on one transport. Belongs to one Trio loop."""

    def __init__(
        self,
        name: str,
        transport: Http1Transport,
        endpoints: Endpoints,
        *,
        host: str = "upstream",
        checks: Checks | None = None,
        sessions: UpstreamSessions | None = None,
    ) -> None:
        """`host`: the Host header as configured: `upstream`, `preserve` or a literal."""
        self.endpoints = endpoints
        self._name = name
        self._transport = transport
        self._host = host
        self._checks = checks
        self.sessions = sessions or UpstreamSessions(name, endpoints)

    async def call(self, call: UpstreamCall) -> UpstreamResponse:
        """Send a call to an endpoint, and to others if it is retried; return when a response's head
        has arrived. Its body must be closed.

        Raises as `Http1Transport.call`, and at once `NoEndpoint` when every endpoint is ejected and
        `SessionGone` when the session is unknown or its endpoint is gone. The timeouts apply to each
        attempt. Cancellation leaks no connection and no turn.
        """
        now = current_time()
        session = self.sessions.of(call, now)
        tied, sent = session.endpoint, session.call
        try:
            turn = self.endpoints.choose(now) if tied is None else self.endpoints.pin(tied, now)
        except NoneInService as error:
            failure = NoEndpoint(f"{self._name}: every endpoint is ejected")
            failure.retry_after_s = max(1, math.ceil(error.retry_after_s))
            raise failure from None
        if call.retry is not None:
            call.retry.budget.deposit()
        tried: list[Endpoint] = []
        while True:
            call.endpoint = sent.endpoint = endpoint = turn.endpoint
            try:
                response = await self._transport.call(
                    sent,
                    endpoint,
                    target=endpoint.base + sent.target,
                    host=endpoint.host if self._host == "upstream" else None,
                    new_connection=bool(tried),
                )
                break
            except UpstreamFailure as failure:
                self._note_failure(turn, failure)
                turn.end()
                tried.append(endpoint)
                again = self._next_turn(call, failure, tied, tried)
                if again is None:
                    raise
                if call.on_retry is not None:
                    call.on_retry(endpoint, failure)
                turn = again
            except BaseException:
                turn.end()
                raise
        responses = endpoint.responses
        responses[response.status] = responses.get(response.status, 0) + 1
        if turn.succeed(current_time()):
            self._log_back(endpoint)
        response.body.on_close = partial(self._end, turn, response.body)
        self.sessions.note(call.method, session, response)
        return response

    async def maintain(self) -> None:
        """Close idle connections in time, and check the endpoints' health, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._transport.maintain)
            if self._checks is not None:
                for endpoint in self.endpoints.all:
                    nursery.start_soon(self._keep_checking, endpoint, self._checks)

    async def aclose(self) -> None:
        """Close idle connections. Those on loan belong to their responses."""
        await self._transport.aclose()

    def statistics(self) -> tuple[PoolState, ...]:
        """A snapshot of each origin's connections."""
        return self._transport.statistics()

    def endpoint_states(self) -> tuple[EndpointState, ...]:
        """A snapshot of each endpoint."""
        return self.endpoints.states()

    # Choosing

    def _next_turn(
        self,
        call: UpstreamCall,
        failure: UpstreamFailure,
        tied: Endpoint | None,
        tried: Collection[Endpoint],
    ) -> Turn | None:
        """A turn for a retry, paid from the budget; None if the call must not be retried, or no
        endpoint or budget is left.
        """
        policy = call.retry
        if (
            policy is None
            or len(tried) >= policy.max_attempts
            or not may_resend(call.method, call.body, failure)
        ):
            return None
        now = current_time()
        try:
            turn = (
                self.endpoints.pin(tied, now)
                if tied is not None
                else self.endpoints.choose(now, tried)
            )
        except NoneInService:
            return None
        if not policy.budget.withdraw():
            turn.end()
            return None
        turn.endpoint.retries += 1
        return turn

    # What came of it

    def _note_failure(self, turn: Turn, failure: UpstreamFailure) -> None:
        if failure.own_limit or (failure.reused and isinstance(failure, ReadFailed)):
            return  # the server may close a kept connection at any time
        if turn.fail(current_time()):
            self._log_ejected(turn.endpoint, str(failure))

    def _end(self, turn: Turn, body: UpstreamBody) -> None:
        """A response is over: whole, broken off, or no longer wanted."""
        failure = body.failure
        if failure is None:
            if body.complete:
                turn.completed()
        elif not failure.own_limit and turn.broke(current_time()):
            self._log_ejected(turn.endpoint, str(failure))
        turn.end()

    def _log_ejected(self, endpoint: Endpoint, error: str) -> None:
        structlog.get_logger("proxy").warning(
            "endpoint_ejected",
            upstream=self._name,
            endpoint=endpoint.name,
            seconds=endpoint.ejected_for,
            error=error,
        )

    def _log_back(self, endpoint: Endpoint) -> None:
        structlog.get_logger("proxy").info(
            "endpoint_back", upstream=self._name, endpoint=endpoint.name
        )

    # Checks

    async def _keep_checking(self, endpoint: Endpoint, checks: Checks) -> None:
        while True:
            began = current_time()
            await self._check(endpoint, checks)
            await trio.sleep_until(began + checks.interval_s)

    async def _check(self, endpoint: Endpoint, checks: Checks) -> None:
        """One check, within its interval. Raises nothing but `Cancelled`."""
        problem = await self._problem_of(endpoint, checks)
        now = current_time()
        if problem is None:
            return
        if not problem:
            if self.endpoints.check_succeeded(endpoint, now):
                self._log_back(endpoint)
        elif self.endpoints.check_failed(endpoint, now):
            self._log_ejected(endpoint, problem)

    async def _problem_of(self, endpoint: Endpoint, checks: Checks) -> str | None:
        """What is wrong with an endpoint; "" for nothing, None if this proxy lacks resources."""
        host = endpoint.host if self._host in ("upstream", "preserve") else self._host.encode()
        call = UpstreamCall(
            "GET",
            checks.target,
            [(b"host", host), *checks.headers],
            # A third of the time for the queue for a connection, which is not the endpoint's fault.
            timeouts=CallTimeouts(connect_s=checks.interval_s / 3),
        )
        with trio.move_on_after(checks.interval_s):
            try:
                response = await self._transport.call(call, endpoint)
            except (UpstreamFailure, BadRequest) as error:
                if isinstance(error, UpstreamFailure) and error.own_limit:
                    return None
                return f"check: {error}"
            response.body.close()
            return "" if 200 <= response.status < 400 else f"check: status {response.status}"
        return f"check: no response within {checks.interval_s} s"
