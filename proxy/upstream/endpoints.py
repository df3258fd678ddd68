"""Chooses the endpoint of an upstream for each request: the least busy one in service. Sans I/O;
the caller passes the time.

An endpoint is *up*, *ejected* until a time, or *due*: ejected, and that time has passed.

- `consecutive_failures` in a row eject it for `eject_s` seconds. Each further ejection lasts twice
  as long, up to `max_eject_s`; but `eject_s` again if the endpoint has been up for as long as it
  was out, or if no other endpoint is up, where a long ejection would only prolong the outage.
- A due endpoint gets one request at a time, its *probe*: a response restores it, a failure ejects
  it again.
- Checks (`health.check_path`) are counted separately, with the same threshold; a success restores a
  due endpoint. With checks, a request is a probe only if no other endpoint can take it.
- A response that breaks off after its head is counted apart, because its head was a success:
  `consecutive_breaks` in a row eject the endpoint, but never the last one in service. Responses that
  began before the last break do not count: the restart of a server breaks many at once.
- An endpoint is *gone* after `gone_after_s` without a response or a successful check. Its sessions
  should be ended; a successful probe still restores it.

Invariants, in any order of events:

- `outstanding` is the number of an endpoint's turns that have not ended;
- `choose` never returns an endpoint before its ejection has ended, nor a second probe;
- a turn that began before an ejection does not change it.

It knows no HTTP, sockets, retries or sessions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import httpx

from .origin import place_of, server_of

__all__ = ["Endpoint", "EndpointState", "Endpoints", "NoneInService", "Turn"]


class NoneInService(Exception):
    """Every endpoint is ejected, or has its probe under way."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("no endpoint is in service")
        self.retry_after_s = retry_after_s
        """Seconds until the first ejection ends; 0 if only a running probe can restore one."""


class Endpoint:
    """One endpoint of an upstream with its health. Compared by identity."""

    __slots__ = (
        "back_since",
        "base",
        "breaks",
        "broke_at",
        "check_failures",
        "ejected_for",
        "ejected_until",
        "ejections",
        "failed",
        "failures",
        "host",
        "name",
        "origin",
        "outstanding",
        "place",
        "probing",
        "quiet_since",
        "responses",
        "retries",
        "server",
        "url",
    )

    def __init__(self, url: str) -> None:
        self.url = httpx.URL(url)
        self.server = server_of(self.url)
        """Where its connections go."""
        self.base: bytes = self.url.raw_path.rstrip(b"/")
        """Its own path without a slash at the end; it is put before request targets."""
        self.host: bytes = self.url.netloc
        """Its Host header (RFC 9110, section 7.2)."""
        self.name = str(self.url).rstrip("/")
        """In logs and metrics."""
        self.origin = f"{self.url.scheme}://{self.url.netloc.decode()}"
        """Scheme and authority of its URL (RFC 6454, section 6.2), without credentials."""
        self.place = place_of(self.url)
        """Identifies it across configurations."""
        self.outstanding = 0
        """Turns that have not ended."""
        self.failures = 0
        """Failed requests in a row."""
        self.check_failures = 0
        """Failed checks in a row."""
        self.breaks = 0
        """Responses in a row that broke off after their head."""
        self.broke_at = float("-inf")
        """When the last one did that counted."""
        self.ejected_until: float | None = None
        self.ejected_for = 0.0
        """Seconds of the last ejection."""
        self.quiet_since = float("-inf")
        """While ejected: when it was first ejected, or has last responded since."""
        self.back_since = float("-inf")
        """When it was last restored."""
        self.probing = False
        self.ejections = 0
        self.failed = 0
        """Total failures of requests and checks, and responses that broke off."""
        self.responses: dict[int, int] = {}
        """Responses by status."""
        self.retries = 0
        """Attempts it received as retries of a failed one, here or elsewhere."""

    def resume(self, before: Endpoint, latest: float) -> None:
        """Take over the health from the previous configuration. `latest`: when its ejection ends at
        the latest.
        """
        for name in _HEALTH:
            setattr(self, name, getattr(before, name))
        if self.ejected_until is not None:
            self.ejected_until = min(self.ejected_until, latest)

    def can_serve(self, now: float) -> bool:
        """Whether it is up, or due without a running probe."""
        return self.ejected_until is None or (not self.probing and now >= self.ejected_until)

    @property
    def state(self) -> Literal["up", "ejected", "probing"]:
        if self.ejected_until is None:
            return "up"
        return "probing" if self.probing else "ejected"

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"


_HEALTH = (
    *("back_since", "breaks", "broke_at", "check_failures", "ejected_for", "ejected_until"),
    *("ejections", "failed", "failures", "quiet_since", "responses", "retries"),
)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """A snapshot of one endpoint."""

    endpoint: str
    state: Literal["up", "ejected", "probing"]
    outstanding: int
    failures: int
    """Total, of requests and checks."""
    ejections: int
    retries: int
    responses: Mapping[int, int]
    """By status."""


class Turn:
    """One attempt at an endpoint and the exchange that follows. Report `succeed` or `fail`, after
    `succeed` also `completed` or `broke`, and always `end` it.
    """

    __slots__ = ("_answered_at", "_ended", "_owner", "_settled", "endpoint", "probe")

    def __init__(self, owner: Endpoints, endpoint: Endpoint, *, probe: bool) -> None:
        self.endpoint = endpoint
        self.probe = probe
        self._owner = owner
        self._settled = False
        self._ended = False
        self._answered_at = 0.0
        endpoint.outstanding += 1
        endpoint.probing = endpoint.probing or probe

    def succeed(self, now: float) -> bool:
        """Report a response; return whether it has restored the endpoint. Only the first report
        counts.
        """
        if self._settled:
            return False
        self._settled = True
        self._answered_at = now
        endpoint = self.endpoint
        if self.probe:
            endpoint.probing = False
        if endpoint.ejected_until is None:
            endpoint.failures = 0
        elif self.probe:
            self._owner._restore(endpoint, now)
            return True
        else:
            endpoint.quiet_since = now
        return False

    def fail(self, now: float) -> bool:
        """Report a failure; return whether it ejected the endpoint. The first report counts."""
        if self._settled:
            return False
        self._settle()
        return self._owner._failed(self.endpoint, now, probe=self.probe)

    def completed(self) -> None:
        """Report that the response was whole."""
        self.endpoint.breaks = 0

    def broke(self, now: float) -> bool:
        """Report that the response broke off; return whether that ejected the endpoint."""
        return self._owner._broke(self.endpoint, now, self._answered_at)

    def end(self) -> None:
        """End the exchange, also without a report. Safe to call again."""
        if not self._ended:
            self._ended = True
            self.endpoint.outstanding -= 1
            if not self._settled:
                self._settle()

    def _settle(self) -> None:
        self._settled = True
        if self.probe:
            self.endpoint.probing = False


class Endpoints:
    """The endpoints of one upstream."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        consecutive_failures: int = 5,
        consecutive_breaks: int | None = None,
        eject_s: float = 10,
        max_eject_s: float = 300,
        gone_after_s: float = math.inf,
        checked: bool = False,
    ) -> None:
        """At least one endpoint. `checked`: health checks run, so that requests are not needed as
        probes.
        """
        self.all = tuple(endpoints)
        self._by_place = {endpoint.place: endpoint for endpoint in self.all}
        self._gone_after_s = gone_after_s
        self._consecutive_failures = consecutive_failures
        self._consecutive_breaks = consecutive_breaks
        self._eject_s = eject_s
        self._max_eject_s = max_eject_s
        # Without checks, due endpoints come first: one with old open streams is not the least busy,
        # and would get no probe.
        self._rank_of_due = 2 if checked else 0
        self._next = 0  # where to start, so that ties rotate

    def resume(self, before: Endpoints, now: float) -> None:
        """Take over the health of endpoints that existed before a reload."""
        for endpoint in self.all:
            was = before.at(endpoint.place)
            if was is not None:
                endpoint.resume(was, now + self._max_eject_s)

    def at(self, place: str) -> Endpoint | None:
        """The endpoint at a place; None if none is configured."""
        return self._by_place.get(place)

    def is_gone(self, endpoint: Endpoint, now: float) -> bool:
        """Whether it has been out of service for longer than `gone_after_s` without a break."""
        return (
            endpoint.ejected_until is not None and now - endpoint.quiet_since > self._gone_after_s
        )

    def choose(self, now: float, tried: Collection[Endpoint] = ()) -> Turn:
        """A turn at a due endpoint, as its probe, or else at the least busy one that is up; with
        checks, in the opposite order. Ties rotate. `tried` are the last resort. Raises
        `NoneInService`.
        """
        if len(self.all) == 1 and self.all[0].ejected_until is None:
            return Turn(self, self.all[0], probe=False)
        best: Endpoint | None = None
        chosen = 0
        best_rank = (2, 0, 0)  # worse than any
        count, start = len(self.all), self._next
        for step in range(count):
            endpoint = self.all[(start + step) % count]
            if endpoint.ejected_until is not None and not endpoint.can_serve(now):
                continue
            rank = (
                int(endpoint in tried),
                1 if endpoint.ejected_until is None else self._rank_of_due,
                endpoint.outstanding,
            )
            if rank < best_rank:
                best, best_rank = endpoint, rank
                chosen = (start + step) % count
        if best is None:
            waits = [
                item.ejected_until - now
                for item in self.all
                if item.ejected_until is not None and not item.probing
            ]
            raise NoneInService(max(0.0, min(waits)) if waits else 0.0)
        self._next = (chosen + 1) % count
        return Turn(self, best, probe=best.ejected_until is not None)

    def pin(self, endpoint: Endpoint, now: float) -> Turn:
        """A turn at this endpoint, whatever its state, for a request that only it can serve. It is
        the probe of a due endpoint.
        """
        due = endpoint.ejected_until is not None and endpoint.can_serve(now)
        return Turn(self, endpoint, probe=due)

    def check_succeeded(self, endpoint: Endpoint, now: float) -> bool:
        """Note a successful check; return whether it restored the endpoint, which must be due."""
        endpoint.check_failures = 0
        if endpoint.ejected_until is None or now < endpoint.ejected_until:
            endpoint.quiet_since = now
            return False
        self._restore(endpoint, now)
        return True

    def check_failed(self, endpoint: Endpoint, now: float) -> bool:
        """Note a failed check; return whether it has ejected the endpoint."""
        endpoint.failed += 1
        endpoint.check_failures += 1
        if (
            endpoint.ejected_until is not None
            or endpoint.check_failures < self._consecutive_failures
        ):
            return False
        self._eject(endpoint, now)
        return True

    def states(self) -> tuple[EndpointState, ...]:
        """A snapshot of each. A due endpoint counts as ejected until it is restored."""
        return tuple(
            EndpointState(
                endpoint=item.name,
                state=item.state,
                outstanding=item.outstanding,
                failures=item.failed,
                ejections=item.ejections,
                retries=item.retries,
                responses=item.responses,
            )
            for item in self.all
        )

    def _failed(self, endpoint: Endpoint, now: float, *, probe: bool) -> bool:
        endpoint.failed += 1
        if endpoint.ejected_until is None:
            endpoint.failures += 1
            if endpoint.failures < self._consecutive_failures:
                return False
        elif not probe:
            return False
        self._eject(endpoint, now)
        return True

    def _broke(self, endpoint: Endpoint, now: float, answered_at: float) -> bool:
        endpoint.failed += 1
        if (
            self._consecutive_breaks is None
            or endpoint.ejected_until is not None
            or answered_at < endpoint.broke_at
        ):
            return False
        endpoint.breaks += 1
        endpoint.broke_at = now
        if endpoint.breaks < self._consecutive_breaks or self._is_last(endpoint):
            return False
        self._eject(endpoint, now)
        return True

    def _is_last(self, endpoint: Endpoint) -> bool:
        """Whether no other endpoint is up."""
        return all(item.ejected_until is not None for item in self.all if item is not endpoint)

    def _eject(self, endpoint: Endpoint, now: float) -> None:
        was_out = endpoint.ejected_until is not None
        if not was_out:
            endpoint.quiet_since = now
        lasted = not was_out and now - endpoint.back_since >= endpoint.ejected_for
        alone = self._is_last(endpoint)
        endpoint.ejected_for = (
            self._eject_s if lasted or alone else min(2 * endpoint.ejected_for, self._max_eject_s)
        )
        endpoint.ejected_until = now + endpoint.ejected_for
        endpoint.ejections += 1
        endpoint.failures = endpoint.check_failures = endpoint.breaks = 0

    def _restore(self, endpoint: Endpoint, now: float) -> None:
        endpoint.ejected_until = None
        endpoint.back_since = now
        endpoint.failures = endpoint.check_failures = endpoint.breaks = 0
