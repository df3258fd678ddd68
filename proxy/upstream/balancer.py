"""One upstream and its endpoints: which of them a request goes to, whether it is tried again, and
what its sessions are tied to.

An `httpx.AsyncBaseTransport` like the `UpstreamTransport` below it. The request's URL is not used:
the endpoint gives scheme, host, port, the path that the target comes behind, and, where the
upstream's `host` is "upstream", the Host header. Beside those of the transport, request extensions
are

- `retry`: the route's `RetryPolicy`; without one, a request is tried once;
- `affinity`: what may name the session that the request belongs to, as bytes. Where no session has
  that name, and without one, the value of its `Mcp-Session-Id` does.

The response's extension `endpoint` is the `Endpoint` that answered. The request's own is the one
that was asked last, also when the request fails; without it none was asked.

What counts as an endpoint's failure: no connection, no TLS, a request not taken in time, and no
whole and acceptable head of a response, in time or at all. What does not: any response, whatever
its status; what breaks after the head; a kept connection that turned out to be closed; a request
that cannot be sent; a client that leaves; and what is ours (`max_connections`, descriptors, memory,
local ports).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial

import httpx
import structlog
import trio

from ..errors import NoEndpoint, SessionGone, UpstreamFailure
from .affinity import Affinity
from .connections import PoolState
from .endpoints import Endpoint, Endpoints, EndpointState, NoneInService, Turn
from .response import UpstreamBody
from .retry import RetryPolicy, may_resend
from .transport import UpstreamTransport

__all__ = ["Balancer", "Checks"]

_SESSION = b"mcp-session-id"
_SESSION_LENGTH = len(_SESSION)


class Checks:
    """What `health.check_path` asks for: a GET of `target`, every `interval_s` seconds, with these
    headers besides Host.
    """

    __slots__ = ("headers", "interval_s", "target")

    def __init__(
        self, target: str, interval_s: float, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """`headers`: lower-case names."""
        self.target = target.encode()
        self.interval_s = interval_s
        named = {name for name, _ in headers}
        ours = [(b"user-agent", b"weirpool"), (b"accept", b"*/*")]
        self.headers = [header for header in ours if header[0] not in named] + list(headers)


class Balancer(httpx.AsyncBaseTransport):
    """The endpoints of one upstream, on one transport. Belongs to one Trio loop."""

    def __init__(
        self,
        name: str,
        transport: UpstreamTransport,
        endpoints: Endpoints,
        *,
        host: str = "upstream",
        checks: Checks | None = None,
        sessions: Affinity | None = None,
    ) -> None:
        """`host`: the Host header, as the configuration says it: upstream, preserve, or a literal.
        `sessions`: what is known of them already, and is shared with the balancers of other
        configurations.
        """
        self.endpoints = endpoints
        self._name = name
        self._transport = transport
        self._host = host
        self._checks = checks
        self._sessions = Affinity() if sessions is None else sessions

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to an endpoint, perhaps to another; returns when a response's head has
        come. Its stream must be closed.

        Raises as `UpstreamTransport` does, at once `NoEndpoint` when every endpoint is ejected, and
        `SessionGone` when that of the request's session is gone. `connect` and `read` of its
        timeouts hold for each attempt. Cancelled at any point it leaves nothing behind.
        """
        target = request.extensions.get("target") or request.url.raw_path
        policy: RetryPolicy | None = request.extensions.get("retry")
        headers = request.headers.raw
        session, tied = self._session_of(request, headers)
        turn = self._first_turn(tied)
        if policy is not None:
            policy.budget.deposit()
        attempt = 1
        tried: list[Endpoint] = []
        while True:
            request.extensions["endpoint"] = endpoint = turn.endpoint
            try:
                response = await self._transport.send(
                    request,
                    endpoint.url,
                    endpoint.base + target,
                    self._headers_for(endpoint, headers),
                    fresh=attempt > 1,
                )
            except UpstreamFailure as failure:
                self._note_failure(turn, failure)
                turn.end()
                tried.append(endpoint)
                again = None
                if (
                    policy is not None
                    and attempt < policy.max_attempts
                    and may_resend(request, failure)
                ):
                    again = self._next_turn(tied, tried, policy)
                if again is None:
                    raise
                turn = again
                attempt += 1
            except BaseException:
                turn.end()
                raise
            else:
                break
        if turn.succeed(trio.current_time()):
            self._say_back(endpoint)
        assert isinstance(response.stream, UpstreamBody)
        response.stream.on_close = turn.end
        self._note_session(request.method, session, response, turn)
        response.extensions["endpoint"] = endpoint
        return response

    def remember(self, key: bytes, endpoint: Endpoint) -> None:
        """Tie a session to an endpoint: requests whose extension `affinity` is `key` go there, and
        nowhere else.
        """
        self._sessions.remember(key, endpoint.place, trio.current_time())

    def find(self, key: bytes) -> Endpoint | None:
        """The endpoint that a session is tied to; None when the session is not known, or no longer,
        or its endpoint not listed.
        """
        place = self._sessions.find(key, trio.current_time())
        return None if place is None else self.endpoints.at(place)

    def hold(self, key: bytes) -> None:
        """A stream of the session is open: until `release`, the session does not age."""
        self._sessions.hold(key)

    def release(self, key: bytes) -> None:
        """That stream has ended."""
        self._sessions.release(key, trio.current_time())

    def forget(self, key: bytes) -> None:
        """The session has ended."""
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

    def _first_turn(self, tied: Endpoint | None) -> Turn:
        now = trio.current_time()
        if tied is not None:
            return self.endpoints.pin(tied, now)
        try:
            return self.endpoints.choose(now)
        except NoneInService as error:
            failure = NoEndpoint(f"{self._name}: every endpoint is ejected")
            failure.unsent = True
            failure.retry_after_s = max(1, math.ceil(error.retry_after_s))
            raise failure from None

    def _next_turn(
        self, tied: Endpoint | None, tried: Collection[Endpoint], policy: RetryPolicy
    ) -> Turn | None:
        """The turn of a retry, paid for from the budget; None when there is no endpoint, or no
        retry left.
        """
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

    def _headers_for(
        self, endpoint: Endpoint, headers: list[tuple[bytes, bytes]]
    ) -> Sequence[tuple[bytes, bytes]]:
        if self._host != "upstream":
            return headers
        return [
            (name, endpoint.host if name.lower() == b"host" else value) for name, value in headers
        ]

    # What came of it

    def _note_failure(self, turn: Turn, failure: UpstreamFailure) -> None:
        if failure.ours or failure.stale:
            return
        if turn.fail(trio.current_time()):
            self._say_ejected(turn.endpoint, str(failure))

    def _session_of(
        self, request: httpx.Request, headers: list[tuple[bytes, bytes]]
    ) -> tuple[bytes | None, Endpoint | None]:
        """The session that a request belongs to, and the endpoint that it is tied to, if any.
        Raises `SessionGone`.
        """
        key, place = request.extensions.get("affinity"), None
        now = trio.current_time()
        if key is not None:
            place = self._sessions.find(key, now)
        if place is None:
            key = _session_id(headers)
            place = self._sessions.find(key, now) if key is not None else None
        if place is None:
            return key, None
        endpoint = self.endpoints.at(place)
        if endpoint is None:
            raise SessionGone(f"{self._name}: the session's endpoint is no longer configured")
        if self.endpoints.is_gone(endpoint, now):
            raise SessionGone(
                f"{self._name}: the session's endpoint, {endpoint.origin}, is out of service for too long"
            )
        return key, endpoint

    def _note_session(
        self, method: str, session: bytes | None, response: httpx.Response, turn: Turn
    ) -> None:
        """MCP, 2025-03-26 and later, "Session Management": a response's head makes a session; 404
        says that there is none.
        """
        if response.is_success:
            made = _session_id(response.headers.raw)
            if made is not None:
                self.remember(made, turn.endpoint)
        if session is None:
            return
        if response.status_code == 404 or (method == "DELETE" and response.is_success):
            self.forget(session)
        elif response.is_success:
            assert isinstance(response.stream, UpstreamBody)
            self._sessions.renew(session, trio.current_time())
            self._sessions.hold(session)
            response.stream.on_close = partial(self._end, turn, session)

    def _end(self, turn: Turn, session: bytes) -> None:
        turn.end()
        self.release(session)

    def _say_ejected(self, endpoint: Endpoint, error: str) -> None:
        structlog.get_logger("proxy").warning(
            "endpoint_ejected",
            upstream=self._name,
            endpoint=endpoint.name,
            seconds=endpoint.ejected_for,
            error=error,
        )

    def _say_back(self, endpoint: Endpoint) -> None:
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
        host = endpoint.host if self._host in ("upstream", "preserve") else self._host.encode()
        headers = [(b"host", host), *checks.headers]
        # A third of the time may go by in the queue for a connection, which is not the endpoint's
        # fault.
        timeouts = {"connect": checks.interval_s / 3, "write": None, "read": None}
        request = httpx.Request(
            "GET", endpoint.url, headers=headers, extensions={"timeout": timeouts}
        )
        problem = f"check: no response within {checks.interval_s} s"
        with trio.move_on_after(checks.interval_s):
            try:
                response = await self._transport.send(request, endpoint.url, checks.target, headers)
            except (UpstreamFailure, httpx.LocalProtocolError) as error:
                if isinstance(error, UpstreamFailure) and error.ours:
                    return
                problem = f"check: {error}"
            else:
                assert isinstance(response.stream, UpstreamBody)
                response.stream.close()
                problem = (
                    ""
                    if 200 <= response.status_code < 400
                    else f"check: status {response.status_code}"
                )
        now = trio.current_time()
        if not problem:
            if self.endpoints.check_succeeded(endpoint, now):
                self._say_back(endpoint)
        elif self.endpoints.check_failed(endpoint, now):
            self._say_ejected(endpoint, problem)


def _session_id(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if len(name) == _SESSION_LENGTH and name.lower() == _SESSION:
            return value
    return None
