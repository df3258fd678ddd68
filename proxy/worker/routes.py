"""The route table: the configuration of each path, compiled once, so that an exchange only looks it
up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import msgspec

from interceptors.chain import Chain
from interceptors.dialects.answers import is_decided_by_path
from interceptors.dialects.mcp_sessions import SessionBook
from interceptors.hooks import Owner
from interceptors.observing import owner_of
from interceptors.paths import fold_path, normal_path

from ..config import (
    Config,
    Heartbeat,
    Limits,
    Reconnect,
    Upstream,
    load_interceptors,
)
from ..config import Route as RouteSettings
from ..config import Timeouts as TimeoutSettings
from ..dialects import DIALECTS, Dialect
from ..errors import ConfigError, RequestRefused
from ..http import DEFAULT_PORTS, HostList, other_readings, stays_under
from ..http.headers import HeaderSettings
from ..http.place import Place
from ..upstream import (
    Balancer,
    CallTimeouts,
    Checks,
    Endpoint,
    Endpoints,
    Http1Transport,
    Resolver,
    RetryPolicy,
)
from .sessions import Sessions

__all__ = ["Route", "RouteTable", "Timeouts"]

_MAX_KNOWN = 256
_MAX_KNOWN_BYTES = 256


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The timeouts of a route in seconds; infinity for null in the configuration."""

    connect: float
    write: float
    first_byte: float
    idle: float
    send: float
    total: float

    @classmethod
    def of(cls, settings: TimeoutSettings) -> Timeouts:
        """Convert the settings: null becomes infinity."""
        return cls(
            **{
                name: math.inf if value is None else float(value)
                for name, value in msgspec.structs.asdict(settings).items()
            }
        )


@dataclass(frozen=True, slots=True)
class Route:
    """A compiled route."""

    name: str
    """The path prefix: the route's name in logs and metrics."""
    prefix: bytes
    """The prefix normalised by `normal_path`."""
    upstream: str
    transport: Balancer
    sessions: SessionBook
    """The MCP sessions of the upstream."""
    headers: HeaderSettings
    places: Mapping[Endpoint, Place]
    """The place of the route in each endpoint's URL space."""
    chain: Chain
    timeouts: Timeouts
    call_timeouts: CallTimeouts
    limits: Limits
    retry: RetryPolicy
    heartbeat: Heartbeat
    reconnect: Reconnect
    listening: frozenset[str]
    """Methods whose event streams have no idle deadline."""
    max_streams: int | None
    """The route's own limit; it applies besides the worker's."""
    clients: str
    """The scope of `max_streams_per_client`: the route's name if it has its own limit, else "",
    shared by all such routes.
    """
    dialect: Dialect
    strip_prefix: bool
    allowed_hosts: HostList | None
    allowed_origins: frozenset[str] | None

    bases: tuple[bytes, ...]
    """The endpoints' own paths, if any."""
    observer: Owner | None
    """With `telemetry.genai`: counts the time and the unread parts of its observers."""

    def matches(self, path: str) -> bool:
        """Whether a normal path lies under the prefix: /v1 covers /v1 and /v1/x, but not /v10 or
        /V1.
        """
        return _covers(self.prefix.decode(), path)

    def target(self, target: bytes) -> bytes:
        """Return the request target for the upstream: the client's, byte for byte. The endpoint's
        own path is put before it later.

        Raises `RequestRefused` (400) if the prefix must be stripped and is spelt differently in the
        request, or if the target leaves the own path of an endpoint.
        """
        if self.strip_prefix:
            if not self.matches(target.partition(b"?")[0].decode("latin-1")):
                raise RequestRefused(400, "bad_request", "this path must be spelt as its route is")
            base, path = self.prefix.rstrip(b"/"), target.partition(b"?")[0]
            target = target[len(base) :]
            if not target.startswith(b"/"):
                target = b"/" + target
            inner = normal_path(target.partition(b"?")[0])
            if normal_path(path) not in (base + inner, base if inner == b"/" else None):
                raise RequestRefused(
                    400,
                    "bad_request",
                    "the dot segments of this path lead through the prefix of its route",
                )
        if self.bases:
            path = target.partition(b"?")[0]
            if not all(stays_under(base, path) for base in self.bases):
                raise RequestRefused(
                    400,
                    "bad_request",
                    "this path leads out of the path that the upstream's endpoint has",
                )
        return target


class RouteTable:
    """All routes; the longest matching prefix wins."""

    def __init__(
        self,
        config: Config,
        kept: Mapping[str, Balancer] | None = None,
        sessions: Sessions | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """`kept`: transports to reuse, by upstream. `sessions`, `resolver`: the worker's. Raises
        `ConfigError` if an interceptor or a CA file cannot be loaded.
        """
        self._sessions = sessions = sessions or Sessions()
        self.timeouts = Timeouts.of(config.reverse_proxy.timeouts)
        """The timeouts of requests without a route."""
        self.transports: dict[str, Balancer] = dict(kept or {})
        self.owners = interceptors = load_interceptors(config)
        """The interceptors by their configured names."""
        self.observers: dict[str, Owner] = {}
        """By dialect, with `telemetry.genai`."""
        upstreams = {upstream.name: upstream for upstream in config.reverse_proxy.upstreams}
        for index, upstream in enumerate(config.reverse_proxy.upstreams):
            if upstream.name in self.transports:
                continue
            try:
                transport = Http1Transport(
                    resolver,
                    max_connections=upstream.max_connections,
                    tls=upstream.uses_tls,
                    ca_file=upstream.ca_file,
                    tls_server_name=upstream.tls_server_name,
                )
            except OSError as error:  # ssl.SSLError is one
                raise ConfigError(f"reverse_proxy.upstreams[{index}].ca_file: {error}") from error
            self.transports[upstream.name] = _balancer(config, upstream, transport, sessions)
        routes = [
            self._compile(config, settings, upstreams[settings.upstream], interceptors)
            for settings in config.reverse_proxy.routes
        ]
        self.routes = tuple(sorted(routes, key=lambda route: len(route.prefix), reverse=True))
        by_prefix: dict[str, list[Route]] = {}
        for route in self.routes:
            by_prefix.setdefault(fold_path(route.prefix.decode()), []).append(route)
        self._by_prefix = tuple(
            sorted(by_prefix.items(), key=lambda item: len(item[0]), reverse=True)
        )
        self._known: dict[bytes, Route] = {}  # routes of paths that have been asked for

    def interceptors(self) -> dict[str, list[str]]:
        """The names of each route's interceptors."""
        return {route.name: [owner.name for owner in route.chain.owners] for route in self.routes}

    def find(self, path: str, raw: bytes = b"") -> Route | None:
        """Return the route of a normal path.

        Matching ignores case, and the longest prefix wins: a path that an upstream may take for a
        route's path gets that route's checks. Of prefixes that differ in case only, one must match
        exactly. `raw`, the path as received, must lead to the same route in the reading of servers
        that decode `%2f` or remove `;parameters` before they resolve dot segments. Raises
        `RequestRefused` (400) otherwise.
        """
        route = self._known.get(raw)
        if route is not None:
            return route
        route = self._find(path)
        if route is None or not raw:
            return route
        if not all(self._find(item) is route for item in other_readings(raw)):
            raise RequestRefused(
                400,
                "bad_request",
                "servers read this path in several ways, and not all are of one route",
            )
        if len(raw) <= _MAX_KNOWN_BYTES:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[raw] = route
        return route

    def _find(self, path: str) -> Route | None:
        folded = fold_path(path)
        for prefix, routes in self._by_prefix:
            if not _covers(prefix, folded):
                continue
            if len(routes) == 1:
                return routes[0]
            for route in routes:
                if route.matches(path):
                    return route
            raise RequestRefused(
                400,
                "bad_request",
                "this path must be spelt as its route is: several differ in case only",
            )
        return None

    def _compile(
        self,
        config: Config,
        settings: RouteSettings,
        upstream: Upstream,
        interceptors: Mapping[str, Owner],
    ) -> Route:
        url = httpx.URL(upstream.endpoints[0])
        rules = _set_headers(upstream)
        retry = config.retry_of(settings)
        timeouts = Timeouts.of(config.timeouts_of(settings))
        host = {"upstream": url.netloc, "preserve": None}.get(upstream.host, upstream.host.encode())
        prefix, transport = normal_path(settings.path.encode()), self.transports[upstream.name]
        dialect = DIALECTS[settings.dialect]
        owners = [interceptors[name] for name in settings.interceptors]
        observer = self._observer(dialect) if config.telemetry.genai else None
        places = {
            endpoint: _place(endpoint, prefix, settings.strip_prefix, host)
            for endpoint in transport.endpoints.all
        }
        return Route(
            name=settings.path,
            prefix=prefix,
            upstream=upstream.name,
            transport=transport,
            sessions=self._sessions.book_of(upstream.name),
            headers=HeaderSettings(
                host=host,
                set=tuple(rules.items()),
                removed=frozenset(rules)
                | {name.lower().encode() for name in upstream.headers.remove},
                prefix=prefix.rstrip(b"/") if settings.strip_prefix else b"",
            ),
            places=places,
            bases=tuple({endpoint.base for endpoint in transport.endpoints.all if endpoint.base}),
            chain=Chain(dialect.surround(owners, places, transport.sessions)),
            timeouts=timeouts,
            call_timeouts=CallTimeouts(
                connect_s=timeouts.connect,
                write_s=timeouts.write,
                first_byte_s=timeouts.first_byte,
            ),
            limits=config.limits_of(settings),
            retry=RetryPolicy(retry.max_attempts, retry.budget),
            clients=settings.path if "max_streams_per_client" in settings.limits else "",
            heartbeat=config.heartbeat_of(settings),
            reconnect=config.reconnect_of(settings),
            listening=frozenset(
                dialect.listening if settings.listening is None else settings.listening
            ),
            max_streams=settings.limits.get("max_streams"),
            dialect=dialect,
            strip_prefix=settings.strip_prefix,
            allowed_hosts=None
            if settings.allowed_hosts is None
            else HostList(settings.allowed_hosts),
            allowed_origins=_lowered(settings.allowed_origins),
            observer=observer,
        )

    def _observer(self, dialect: Dialect) -> Owner | None:
        """Whom the observers of a dialect are counted for; None for one that names no API."""
        name = dialect.name
        if not is_decided_by_path(name) and name not in self.observers:
            self.observers[name] = owner_of(name)
        return self.observers.get(name)


def _covers(prefix: str, path: str) -> bool:
    """Whether a path lies under a prefix, by whole segments."""
    return path.startswith(prefix) and (
        prefix.endswith("/") or path[len(prefix) : len(prefix) + 1] in ("", "/")
    )


def _place(endpoint: Endpoint, prefix: bytes, strip_prefix: bool, host: bytes | None) -> Place:
    """`host`: the Host header sent to the endpoint; None: the client's."""
    own = (
        endpoint.host
        if endpoint.url.port
        else endpoint.host + b":%d" % DEFAULT_PORTS[endpoint.url.scheme]
    )
    return Place(
        prefix=prefix.decode().rstrip("/"),
        strip_prefix=strip_prefix,
        base=endpoint.base.decode(),
        authorities=frozenset(item.decode().lower() for item in (own, endpoint.host, host) if item),
    )


def _balancer(
    config: Config, upstream: Upstream, transport: Http1Transport, sessions: Sessions
) -> Balancer:
    health = config.reverse_proxy.health
    endpoints = Endpoints(
        [Endpoint(url) for url in upstream.endpoints],
        consecutive_failures=health.consecutive_failures,
        consecutive_breaks=health.consecutive_breaks,
        eject_s=health.eject,
        max_eject_s=health.max_eject,
        gone_after_s=health.max_eject if health.gone_after is None else health.gone_after,
        checked=health.check_path is not None,
    )
    checks = None
    if health.check_path is not None:
        checks = Checks(
            health.check_path, health.check_interval, list(_set_headers(upstream).items())
        )
    return Balancer(
        upstream.name,
        transport,
        endpoints,
        host=upstream.host,
        checks=checks,
        sessions=sessions.of(config, upstream, endpoints),
    )


def _set_headers(upstream: Upstream) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode() for name, value in upstream.headers.set.items()}


def _lowered(items: list[str] | None) -> frozenset[str] | None:
    return None if items is None else frozenset(item.lower() for item in items)
