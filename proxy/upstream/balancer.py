"""One upstream with its endpoints: which endpoint a call goes to, whether it is retried, and which
endpoint a session is tied to.

The endpoint gives scheme, host, port, the path in front of the target, and, where the upstream's
`host` is "upstream", the Host header.

These count as an endpoint's failure: no connection, no TLS, a request not accepted in time, and a
response whose head is malformed, incomplete or late. These do not: any response, whatever its
status; a failure after the head; a kept connection that turned out to be closed; a request that
cannot be written; a client that leaves; and this proxy's own limits (`max_connections`,
descriptors, memory, local ports).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import structlog
import trio
from msgspec.structs import replace

from ..errors import NoEndpoint, ReadFailed, SessionGone, UpstreamFailure
from ..http.head import BadRequest
from .affinity import Affinity
from .call import CallTimeouts, Fields, UpstreamCall, UpstreamResponse
from .connections import PoolState
from .endpoints import Endpoint, Endpoints, EndpointState, NoneInService, Turn
from .http1 import Http1Transport
from .retry import may_resend
from .session_ids import SessionIds, has_mark, without_mark

__all__ = ["Balancer", "Checks"]

_SESSION = b"mcp-session-id"
_SESSION_LENGTH = len(_SESSION)


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


class _Session(NamedTuple):
    """The session of a call."""

    key: bytes | None
    """In the table; None if the session's id names the endpoint."""
    endpoint: Endpoint | None
    """That the call must go to; None for any."""
    call: UpstreamCall
    """As the endpoint gets it: with its own id of the session."""


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
        sessions: Affinity | None = None,
        ids: SessionIds | None = None,
    ) -> None:
        """`host`: the Host header as configured: `upstream`, `preserve` or a literal. `sessions`:
        the table, shared with the balancers of other configurations. `ids`: None for the table
        alone.
        """
        self.endpoints = endpoints
        self._name = name
        self._transport = transport
        self._host = host
        self._checks = checks
        self._sessions = Affinity() if sessions is None else sessions
        self._ids = SessionIds(b"", name, (), signs=False) if ids is None else ids

    async def call(self, call: UpstreamCall) -> UpstreamResponse:
        """Send a call to an endpoint, and to others if it is retried; return when a response's head
        has arrived. Its body must be closed.

        Raises as `Http1Transport.call`, and at once `NoEndpoint` when every endpoint is ejected and
        `SessionGone` when the session is unknown or its endpoint is gone. The timeouts apply to each
        attempt. Cancellation leaks no connection and no turn.
        """
        now = trio.current_time()
        session = self._session_of(call, now)
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
                turn = again
            except BaseException:
                turn.end()
                raise
        if turn.succeed(trio.current_time()):
            self._log_back(endpoint)
        response.body.on_close = turn.end
        self._note_session(call.method, session, response, turn)
        return response

    def mark(self, uri: bytes, endpoint: Endpoint) -> bytes | None:
        """What to put after `uri`, which ends with `session_ids.PARAMETER`, so that calls whose
        `session` is the result go only to this endpoint; None if the table is used instead.
        """
        return self._ids.mark(uri, endpoint) if self._ids.signs else None

    def remember(self, key: bytes, endpoint: Endpoint) -> None:
        """Tie a session to an endpoint: calls whose `session` is `key` go only there."""
        self._sessions.remember(key, endpoint.place, trio.current_time())

    def find(self, key: bytes) -> Endpoint | None:
        """The endpoint of a session; None if the session is unknown or expired, or its endpoint is
        no longer configured.
        """
        place = self._sessions.find(key, trio.current_time())
        return None if place is None else self.endpoints.at(place)

    def hold(self, key: bytes) -> None:
        """Note that a stream of the session is open: it does not expire until `release`."""
        self._sessions.hold(key)

    def release(self, key: bytes) -> None:
        """Note that the stream has ended."""
        self._sessions.release(key, trio.current_time())

    def forget(self, key: bytes) -> None:
        """End a session."""
        self._sessions.forget(key)

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
        now = trio.current_time()
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
        if turn.fail(trio.current_time()):
            self._log_ejected(turn.endpoint, str(failure))

    def _session_of(self, call: UpstreamCall, now: float) -> _Session:
        """The session of a call. Raises `SessionGone`."""
        uri, header = call.session, _session_id(call.headers)
        if uri is None and header is None:
            return _Session(None, None, call)
        session = self._named_by_id(call, uri, header)
        if session is None:
            place, key = None, header
            if uri is not None and (place := self._sessions.find(uri, now)) is not None:
                key = uri
            elif header is not None:
                place = self._sessions.find(header, now)
            if place is None:
                if self._ids.signs and (header or (uri is not None and has_mark(uri))):
                    raise SessionGone(f"{self._name}: this upstream has no such session")
                return _Session(key, None, call)
            endpoint = self.endpoints.at(place)
            if endpoint is None:
                raise SessionGone(f"{self._name}: the session's endpoint is no longer configured")
            session = _Session(key, endpoint, call)
        assert session.endpoint is not None
        if self.endpoints.is_gone(session.endpoint, now):
            raise SessionGone(
                f"{self._name}: the session's endpoint, {session.endpoint.origin},"
                " is out of service for too long"
            )
        return session

    def _named_by_id(
        self, call: UpstreamCall, uri: bytes | None, header: bytes | None
    ) -> _Session | None:
        """The session whose id names its endpoint, whatever the mode is now; None for others."""
        if uri is not None and (named := self._ids.open_uri(uri)) is not None:
            return _Session(None, named, replace(call, target=without_mark(call.target, uri)))
        opened = self._ids.open(header) if header is not None else None
        if opened is None:
            return None
        endpoint, own = opened
        headers = [(name, own if _is_session(name) else value) for name, value in call.headers]
        return _Session(None, endpoint, replace(call, headers=headers))

    def _note_session(
        self, method: str, session: _Session, response: UpstreamResponse, turn: Turn
    ) -> None:
        """MCP, 2025-03-26 and later, "Session Management": a response's head opens a session; 404
        means that the session does not exist.
        """
        success, key = 200 <= response.status < 300, session.key
        opened = _session_id(response.headers)
        if opened is not None and not self._seal(session, opened, response) and success:
            self.remember(opened, turn.endpoint)
        if key is None:
            return
        if response.status == 404 or (method == "DELETE" and success):
            self.forget(key)
        elif success:
            self._sessions.renew(key, trio.current_time())
            self._sessions.hold(key)
            response.body.on_close = partial(self._end, turn, key)

    def _seal(self, session: _Session, opened: bytes, response: UpstreamResponse) -> bool:
        """Replace the server's id in a response by one that names the endpoint. False where the
        table is used.
        """
        # A session keeps the kind of id that its client has.
        signs = self._ids.signs if session.endpoint is None else session.key is None
        sealed = self._ids.seal(opened, response.endpoint) if signs else None
        if sealed is None:
            return False
        response.headers = [
            (name, sealed if _is_session(name) else value) for name, value in response.headers
        ]
        return True

    def _end(self, turn: Turn, session: bytes) -> None:
        turn.end()
        self.release(session)

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
            began = trio.current_time()
            await self._check(endpoint, checks)
            await trio.sleep_until(began + checks.interval_s)

    async def _check(self, endpoint: Endpoint, checks: Checks) -> None:
        """One check, within its interval. Raises nothing but `Cancelled`."""
        problem = await self._problem_of(endpoint, checks)
        now = trio.current_time()
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


def _session_id(headers: Fields) -> bytes | None:
    for name, value in headers:
        if len(name) == _SESSION_LENGTH and name.lower() == _SESSION:
            return value
    return None


def _is_session(name: bytes) -> bool:
    return len(name) == _SESSION_LENGTH and name.lower() == _SESSION
