"""Which endpoint of an upstream takes the next request: the least busy one that is in service. Sans
I/O; the caller tells the time.

An endpoint is *up*, *ejected* until a time, or *due*: ejected, and its time is over.
`consecutive_failures` in a row eject it for `eject_s` seconds, and each ejection lasts twice as
long as the one before, up to `max_eject_s`. It lasts `eject_s` again for one that has stayed up for
as long as it was out last, and while no other endpoint is up: a long ejection keeps requests on
those that answer, and when none does it would only prolong the outage. A due endpoint gets one
request at a time, its *probe*: an answer lets it back, a failure ejects it again. Checks
(`health.check_path`) count by themselves: as many in a row that fail eject, and one that succeeds
lets a due endpoint back; where there are checks, a request is a probe only when no other endpoint
can take it.

An endpoint is *gone* when it has been out for longer than `gone_after_s` without one answer or good
check: its sessions should be given up. It stays an endpoint, and an answer to its probe lets it
back.

Invariants, whatever is told and in whatever order:

- `outstanding` of an endpoint is the number of its turns that have not ended, and never negative;
- `choose` never gives an endpoint whose time is not over, and never a second probe while one is
  under way;
- what becomes of a turn that was no probe says nothing about an endpoint that was ejected
  meanwhile.

It must not know HTTP, sockets, retries or sessions.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import httpx

from ..http import DEFAULT_PORTS, origin_port
from .origin import Origin

__all__ = [
    "Endpoint",
    "EndpointState",
    "Endpoints",
    "NoneInService",
    "Turn",
    "place_of",
    "server_of",
]


def place_of(url: httpx.URL) -> str:
    """Where an endpoint is, however its URL is spelt (RFC 3986, sections 6.2.2.1 and 6.2.3).
    Without credentials.
    """
    host = url.raw_host.decode("ascii").lower()
    with suppress(ValueError):  # a name
        host = str(ipaddress.ip_address(host))
    path = url.raw_path.rstrip(b"/").decode("ascii")
    return f"{url.scheme}://{host} {url.port or DEFAULT_PORTS.get(url.scheme)}{path}"


def server_of(url: httpx.URL) -> Origin:
    """Where a connection to this URL goes. Raises `ValueError` for a scheme without a known port."""
    port = origin_port(url.scheme, url.port)
    if port is None:
        raise ValueError(f"{url.scheme!r} is neither http nor https")
    return Origin(url.scheme, url.raw_host.decode("ascii"), port)


class NoneInService(Exception):
    """Every endpoint is ejected, or has its probe under way."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("no endpoint is in service")
        self.retry_after_s = retry_after_s
        """Seconds until the first of them may be asked again; 0 when a probe is what it waits for.
        """


class Endpoint:
    """One place where an upstream can be reached, and how it has been lately. Compared by identity."""

    __slots__ = (
        "back_since",
        "base",
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
        "retries",
        "server",
        "url",
    )

    def __init__(self, url: str) -> None:
        self.url = httpx.URL(url)
        self.server = server_of(self.url)
        """Where its connections go."""
        self.base: bytes = self.url.raw_path.rstrip(b"/")
        """Its own path, without a slash at the end; request targets come behind it."""
        self.host: bytes = self.url.netloc
        """Its Host header (RFC 9110, section 7.2)."""
        self.name = str(self.url).rstrip("/")
        """In logs and metrics."""
        self.origin = f"{self.url.scheme}://{self.url.netloc.decode()}"
        """As its URL has it (RFC 6454, section 6.2), without a path and without credentials."""
        self.place = place_of(self.url)
        """What identifies it in every configuration."""
        self.outstanding = 0
        """Turns that have not ended."""
        self.failures = 0
        """In a row."""
        self.check_failures = 0
        """In a row, of checks."""
        self.ejected_until: float | None = None
        self.ejected_for = 0.0
        """Seconds of the last ejection."""
        self.quiet_since = float("-inf")
        """Of one that is out: when it was ejected first, or has last answered since."""
        self.back_since = float("-inf")
        """When the last ejection was over, by an answer."""
        self.probing = False
        self.ejections = 0
        self.failed = 0
        """Failures in all, of requests and checks."""
        self.retries = 0
        """Attempts that it got because one before had failed, there or elsewhere."""

    def resume(self, before: Endpoint, latest: float) -> None:
        """Go on from how the same endpoint was in the configuration before. `latest`: its ejection
        ends then at the latest.
        """
        for name in _HEALTH:
            setattr(self, name, getattr(before, name))
        if self.ejected_until is not None:
            self.ejected_until = min(self.ejected_until, latest)

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"


_HEALTH = (
    *(
        "back_since",
        "check_failures",
        "ejected_for",
        "ejected_until",
        "ejections",
        "failed",
        "failures",
    ),
    *("quiet_since", "retries"),
)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """A snapshot of one endpoint."""

    endpoint: str
    state: Literal["up", "ejected", "probing"]
    outstanding: int
    failures: int
    """In all, of requests and checks."""
    ejections: int
    retries: int


class Turn:
    """One attempt at an endpoint, and the exchange that may come of it. Tell what became of it, and
    in any case `end` it.
    """

    __slots__ = ("_ended", "_owner", "_settled", "endpoint", "probe")

    def __init__(self, owner: Endpoints, endpoint: Endpoint, *, probe: bool) -> None:
        self.endpoint = endpoint
        self.probe = probe
        self._owner = owner
        self._settled = False
        self._ended = False
        endpoint.outstanding += 1
        endpoint.probing = endpoint.probing or probe

    def succeed(self, now: float) -> bool:
        """It has answered. Whether that has let it back. Only the first verdict counts."""
        if self._settled:
            return False
        self._settle()
        return self._owner._succeeded(self.endpoint, now, probe=self.probe)

    def fail(self, now: float) -> bool:
        """It has failed. Whether that has ejected it. Only the first verdict counts."""
        if self._settled:
            return False
        self._settle()
        return self._owner._failed(self.endpoint, now, probe=self.probe)

    def end(self) -> None:
        """The exchange is over, or was given up without a verdict. Safe to call again."""
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
        eject_s: float = 10,
        max_eject_s: float = 300,
        gone_after_s: float = math.inf,
        checked: bool = False,
    ) -> None:
        """At least one endpoint. `checked`: there are checks, so that no request need be risked to
        find out who is back.
        """
        self.all = tuple(endpoints)
        self._by_place = {endpoint.place: endpoint for endpoint in self.all}
        self._gone_after_s = gone_after_s
        self._consecutive_failures = consecutive_failures
        self._eject_s = eject_s
        self._max_eject_s = max_eject_s
        # Before those that are up: by being the least busy, one with old streams that go on would
        # not get its probe.
        self._rank_of_due = 2 if checked else 0
        self._next = 0  # where to begin to look, so that ties go round

    def resume(self, before: Endpoints, now: float) -> None:
        """Go on from how these endpoints were before a reload, as far as they were there."""
        for endpoint in self.all:
            was = before.at(endpoint.place)
            if was is not None:
                endpoint.resume(was, now + self._max_eject_s)

    def at(self, place: str) -> Endpoint | None:
        """The endpoint at a place; None when there is none, or no longer."""
        return self._by_place.get(place)

    def is_gone(self, endpoint: Endpoint, now: float) -> bool:
        """Whether it has been out of service without a break for longer than the limit."""
        return (
            endpoint.ejected_until is not None and now - endpoint.quiet_since > self._gone_after_s
        )

    def choose(self, now: float, tried: Collection[Endpoint] = ()) -> Turn:
        """A turn at a due endpoint, as its probe, or else at the least busy one that is up; ties go
        round. Checked: the other way.

        `tried` are taken only when no other can be. Raises `NoneInService`.
        """
        best: Endpoint | None = None
        best_rank = (2, 0, 0)  # worse than any: what is tried ranks 1 at most
        count, start = len(self.all), self._next
        for step in range(count):
            endpoint = self.all[(start + step) % count]
            if endpoint.ejected_until is not None and (
                endpoint.probing or now < endpoint.ejected_until
            ):
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
        """A turn at this endpoint, whatever its state: for who can be served by no other. A due one
        takes it as its probe.
        """
        due = (
            endpoint.ejected_until is not None
            and now >= endpoint.ejected_until
            and not endpoint.probing
        )
        return Turn(self, endpoint, probe=due)

    def check_succeeded(self, endpoint: Endpoint, now: float) -> bool:
        """A check was answered well. Whether that has let the endpoint back; its time must be over."""
        endpoint.check_failures = 0
        if endpoint.ejected_until is None or now < endpoint.ejected_until:
            endpoint.quiet_since = now
            return False
        self._let_back(endpoint, now)
        return True

    def check_failed(self, endpoint: Endpoint, now: float) -> bool:
        """A check failed. Whether that has ejected the endpoint; one that is out just stays out."""
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
        """A snapshot of each. One whose time is over is still ejected, until something lets it
        back.
        """
        return tuple(
            EndpointState(
                endpoint=item.name,
                state="up"
                if item.ejected_until is None
                else "probing"
                if item.probing
                else "ejected",
                outstanding=item.outstanding,
                failures=item.failed,
                ejections=item.ejections,
                retries=item.retries,
            )
            for item in self.all
        )

    def _succeeded(self, endpoint: Endpoint, now: float, *, probe: bool) -> bool:
        if endpoint.ejected_until is None:
            endpoint.failures = 0
        elif probe:
            self._let_back(endpoint, now)
            return True
        else:
            endpoint.quiet_since = now
        return False

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

    def _eject(self, endpoint: Endpoint, now: float) -> None:
        was_out = endpoint.ejected_until is not None
        if not was_out:
            endpoint.quiet_since = now
        lasted = not was_out and now - endpoint.back_since >= endpoint.ejected_for
        alone = all(item.ejected_until is not None for item in self.all if item is not endpoint)
        endpoint.ejected_for = (
            self._eject_s if lasted or alone else min(2 * endpoint.ejected_for, self._max_eject_s)
        )
        endpoint.ejected_until = now + endpoint.ejected_for
        endpoint.ejections += 1
        endpoint.failures = endpoint.check_failures = 0

    def _let_back(self, endpoint: Endpoint, now: float) -> None:
        endpoint.ejected_until = None
        endpoint.back_since = now
        endpoint.failures = endpoint.check_failures = 0
