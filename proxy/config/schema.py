"""The shape of the configuration: frozen typed settings with their defaults and their meaning.

The docstring of a field is the only text about its key: `reference` turns it into
the JSON Schema and docs/configuration.md. Unknown keys are forbidden. The settings of the process are
in `process`. This module reads no file and checks nothing that involves two keys (`checks`).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .fields import (
    BYTES,
    LEAST_SECRET,
    AffinityMode,
    Count,
    Dialect,
    Header,
    LeakDetection,
    Method,
    Name,
    Seconds,
    Settings,
    form,
    in_order,
)
from .process import Admin, Drain, Log, Reporting, Store, Telemetry

__all__ = [
    "LEAST_SECRET",
    "Admin",
    "BufferPoolSize",
    "BufferPools",
    "Config",
    "Drain",
    "HeaderRules",
    "Health",
    "Heartbeat",
    "InterceptorEntry",
    "Limits",
    "Log",
    "Reconnect",
    "Reporting",
    "Retry",
    "ReverseProxy",
    "Route",
    "SessionAffinity",
    "Store",
    "Telemetry",
    "Timeouts",
    "Upstream",
]


class HeaderRules(Settings, frozen=True):
    """Request headers that the proxy sets and removes after the last interceptor."""

    set: Header = {}
    """Headers to set, by name. Each replaces the client's."""
    remove: list[str] = []
    """Names of headers to remove."""


class SessionAffinity(Settings, frozen=True):
    """How requests of an MCP session find the endpoint that made it."""

    mode: Annotated[AffinityMode, in_order(AffinityMode)] = "auto"
    """`table`: each worker remembers the endpoints of its sessions. `id`: the session id that the
    client gets names the endpoint, signed with `secret`; every worker and every server with this
    secret can read it. `auto`: `id` with several workers or a `secret`, else `table`.
    """


class Upstream(Settings, frozen=True):
    """A server, or several equivalent servers, that requests are forwarded to."""

    name: Name
    """The name that routes refer to."""
    endpoints: Annotated[list[str], Meta(min_length=1)]
    """URLs of equivalent servers: scheme, host, port and path. A request goes to the endpoint in
    service with the fewest live exchanges.
    """
    host: str = "upstream"
    """The Host header: `upstream` sends the endpoint's host, `preserve` the client's, anything else
    is sent literally.
    """
    ca_file: str | None = None
    """A PEM file of CA certificates to verify with. null: the system's. A relative path starts at
    the configuration's directory.
    """
    tls_server_name: str | None = None
    """The name that TLS sends (SNI) and verifies, or the address that it verifies. null: the
    endpoint's host.
    """
    headers: HeaderRules = HeaderRules()
    max_connections: Count = 10000
    """Connections of each worker, over all endpoints. Further requests wait, up to
    `timeouts.connect`.
    """
    session_affinity: SessionAffinity = SessionAffinity()

    @property
    def uses_tls(self) -> bool:
        """Whether an endpoint is https."""
        return any(url.lower().startswith("https:") for url in self.endpoints)


class Timeouts(Settings, frozen=True):
    """Deadlines of an exchange. null: no deadline."""

    connect: Seconds | None = 10
    """From the request for a connection to its end: the wait for a free one, DNS, TCP and TLS."""
    write: Seconds | None = 30
    """Each wait for the upstream to accept bytes of the request."""
    first_byte: Seconds | None = 120
    """From the end of the request to the head of the response."""
    idle: Seconds | None = 300
    """Silence of the upstream inside a response, and of the client inside its request. Does not end
    listening streams (`routes[].listening`).
    """
    send: Seconds | None = 30
    """Each wait for the client to accept bytes."""
    total: Seconds | None = None
    """The whole exchange, retries and reconnections included."""


class Limits(Settings, frozen=True):
    """Bounds on what one client or one event can use."""

    max_event_bytes: Annotated[int, Meta(ge=64, extra=BYTES)] = 1048576
    """The largest event, or JSON body, that interceptors can see. Without interceptors events of
    any size pass.
    """
    max_request_body_bytes: Annotated[int, Meta(ge=0, extra=BYTES)] = 16777216
    """The largest request body; a larger one gets 413. With `dialect: mcp` the default is
    4194304.
    """
    max_streams: Count = 10000
    """Exchanges at a time: of each worker, and under a route also of that route."""
    max_streams_per_client: Count | None = None
    """Exchanges at a time of one client address (IPv6: one /64). null: no limit."""
    max_collected_bytes: Count = 67108864
    """Bytes of request bodies that a worker holds for interceptors, over all routes. Not allowed
    under a route.
    """


class Heartbeat(Settings, frozen=True):
    """Comment lines that keep a silent event stream open."""

    interval: Seconds | None = None
    """Silence towards the client after which a comment line is sent. null: never."""
    early: bool = False
    """Also before the upstream has answered: the client then gets status 200 and the head of an
    event stream. Requires `interval`.
    """


class Reconnect(Settings, frozen=True):
    """Resumption of an event stream whose upstream connection broke."""

    enabled: bool = False
    """Resume streams with `Last-Event-ID`."""
    max_attempts: Count = 5
    """Attempts in a row without a new event."""
    initial_backoff: Seconds = 1
    """The wait before the first attempt. The actual wait is random, up to twice this."""
    max_backoff: Seconds = 60
    """The longest wait: each attempt doubles the wait up to this."""


class Retry(Settings, frozen=True):
    """Attempts after a request failed before any response head arrived."""

    max_attempts: Count = 2
    """Attempts in total. 1: no retry."""
    budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """The share of a route's requests that can be retries."""


class Health(Settings, frozen=True):
    """When an endpoint is ejected (taken out of service), and when it returns."""

    consecutive_failures: Count = 5
    """Failures in a row that eject an endpoint."""
    consecutive_breaks: Count | None = 5
    """Responses in a row that break off or go silent after their head, and that eject an endpoint if
    another one is in service. null: never.
    """
    eject: Seconds = 10
    """How long the first ejection lasts. Each further one lasts twice as long as the one before."""
    max_eject: Seconds = 300
    """The longest ejection."""
    gone_after: Seconds | None = None
    """Out of service for longer than this, an endpoint loses its sessions: their requests get 404.
    null: `max_eject`.
    """
    check_path: str | None = None
    """The target of health checks. null: no checks."""
    check_interval: Seconds = 10
    """The time between two checks of an endpoint, and the deadline of a check."""


class Route(Settings, frozen=True):
    """Which requests go to which upstream, through which interceptors."""

    path: Annotated[str, Meta(pattern="^/", extra=form('start with "/"', lambda text: f"/{text}"))]
    """The path prefix. Matches whole segments, in any case; the longest match wins."""
    upstream: str
    """The name of an upstream."""
    interceptors: list[str] = []
    """Names of interceptors, in the order in which they run."""
    dialect: Annotated[Dialect, in_order(Dialect)] = "generic"
    """What answers mean and how errors look. `abort` is `generic` without error events."""
    timeouts: Annotated[dict[str, Any], Meta(extra={"record": Timeouts})] = {}
    """Overrides of `reverse_proxy.timeouts`, key by key."""
    limits: Annotated[dict[str, Any], Meta(extra={"record": Limits})] = {}
    """Overrides of `reverse_proxy.limits`, key by key."""
    heartbeat: Annotated[dict[str, Any], Meta(extra={"record": Heartbeat})] = {}
    """Overrides of `reverse_proxy.heartbeat`, key by key."""
    reconnect: Annotated[dict[str, Any], Meta(extra={"record": Reconnect})] = {}
    """Overrides of `reverse_proxy.reconnect`, key by key."""
    retry: Annotated[dict[str, Any], Meta(extra={"record": Retry})] = {}
    """Overrides of `reverse_proxy.retry`, key by key."""
    allowed_hosts: list[str] | None = None
    """Accepted Host headers; any other gets 403. null: all."""
    allowed_origins: list[str] | None = None
    """Accepted Origin headers; any other gets 403. Pages of these origins can read every answer.
    null: all.
    """
    strip_prefix: bool = False
    """Remove `path` from the target before forwarding."""
    listening: list[Method] | None = None
    """Methods whose event streams `timeouts.idle` does not end. null: `[GET]` with `dialect: mcp`,
    else `[]`.
    """


class BufferPoolSize(Settings, frozen=True):
    """The buffers of one pool."""

    size: Annotated[int, Meta(ge=1024, le=16777216, extra=BYTES)]
    """The size of a buffer."""
    max_pooled: Annotated[int, Meta(ge=0)]
    """Idle buffers to keep."""


class BufferPools(Settings, frozen=True):
    """The pools that a worker borrows its buffers from."""

    sse_event: BufferPoolSize = BufferPoolSize(size=4096, max_pooled=1000)
    http_response: BufferPoolSize = BufferPoolSize(size=16384, max_pooled=500)
    json: BufferPoolSize = BufferPoolSize(size=8192, max_pooled=500)


class ReverseProxy(Settings, frozen=True):
    """Upstreams, routes, and the defaults of routes."""

    upstreams: list[Upstream]
    """The upstreams."""
    routes: Annotated[list[Route], Meta(min_length=1)]
    """The routes."""
    buffer_pools: BufferPools = BufferPools()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    heartbeat: Heartbeat = Heartbeat()
    reconnect: Reconnect = Reconnect()
    retry: Retry = Retry()
    health: Health = Health()
    max_total_streams: Count | None = None
    """Exchanges at a time of all workers together. null: no limit but `limits.max_streams` of each
    worker.
    """
    max_client_connections: Count | None = None
    """Open client connections of each worker. null: half of its limit of open files, less a
    reserve.
    """
    trusted_proxies: list[str] = []
    """Addresses or networks of proxies whose `Forwarded` and `X-Forwarded-*` headers are
    believed.
    """
    leak_detection: Annotated[LeakDetection, in_order(LeakDetection)] = "none"
    """For which buffer leases to record the place in the code: `none`, `sampled` (some) or
    `paranoid` (all).
    """


class InterceptorEntry(Settings, frozen=True):
    """A configured interceptor."""

    name: Name
    """The name that routes refer to."""
    use: Name
    """The class: `package.module:Class`, `./file.py:Class` relative to this file, or the name of an
    entry point (the built-ins have one each).
    """
    options: dict[str, Any] = {}
    """The options of the class."""


class Config(Settings, frozen=True):
    """The whole configuration."""

    reverse_proxy: ReverseProxy
    interceptors: list[InterceptorEntry] = []
    """The interceptors."""
    store: Store = Store()
    reporting: Reporting = Reporting()
    drain: Drain = Drain()
    admin: Admin = Admin()
    log: Log = Log()
    telemetry: Telemetry = Telemetry()
    secret: Annotated[str, Meta(min_length=LEAST_SECRET)] | None = None
    """Signs session ids (`session_affinity`). null: the environment variable `WEIRPOOL_SECRET`, or
    else a random secret at each start.
    """

    def timeouts_of(self, route: Route) -> Timeouts:
        """The timeouts of a route: its overrides over the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.timeouts, **route.timeouts)

    def limits_of(self, route: Route) -> Limits:
        """The limits of a route: its overrides over the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.limits, **route.limits)

    def retry_of(self, route: Route) -> Retry:
        """The retries of a route: its overrides over the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.retry, **route.retry)

    def heartbeat_of(self, route: Route) -> Heartbeat:
        """The heartbeat of a route: its overrides over the common one."""
        return msgspec.structs.replace(self.reverse_proxy.heartbeat, **route.heartbeat)

    def reconnect_of(self, route: Route) -> Reconnect:
        """The reconnection of a route: its overrides over the common one."""
        return msgspec.structs.replace(self.reverse_proxy.reconnect, **route.reconnect)
