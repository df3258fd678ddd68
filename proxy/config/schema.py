"""The configuration's shape: frozen typed settings, with their defaults. Unknown keys are
forbidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

__all__ = [
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
    "Timeouts",
    "Upstream",
]


def _form(form: str, fix: Callable[[str], str] | None = None) -> dict[str, Any]:
    """For `Meta(pattern=...)`: what the pattern asks for, behind "must", and how to make a right
    value of a wrong one.
    """
    return {"form": form, "fix": fix}


def _in_order(choices: Any) -> Meta:
    """For messages: the choices as they are written, which msgspec would sort."""
    return Meta(extra={"choices": get_args(choices)})


Dialect = Literal["openai", "anthropic", "mcp", "generic", "abort"]
LeakDetection = Literal["none", "sampled", "paranoid"]
LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
_BYTES = {"unit": "bytes"}
Name = Annotated[str, Meta(min_length=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000, extra={"unit": "seconds"})]
Duration = Annotated[float, Meta(ge=0, le=31_536_000, extra={"unit": "seconds"})]
Count = Annotated[int, Meta(ge=1)]
Header = dict[str, str]
Method = Annotated[
    str, Meta(pattern=r"^[A-Z]+\Z", extra=_form("be a method in capitals, such as GET", str.upper))
]


class _Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class HeaderRules(_Settings, frozen=True):
    set: Header = {}
    remove: list[str] = []


class Upstream(_Settings, frozen=True):
    name: Name
    endpoints: Annotated[list[str], Meta(min_length=1)]
    host: str = "upstream"
    ca_file: str | None = None
    tls_server_name: str | None = None
    """The name that TLS sends (SNI) and verifies, or the address that it verifies; None: each
    endpoint's host.
    """
    headers: HeaderRules = HeaderRules()
    max_connections: Count = 10000

    @property
    def uses_tls(self) -> bool:
        """Whether an endpoint is https."""
        return any(url.lower().startswith("https:") for url in self.endpoints)


class Timeouts(_Settings, frozen=True):
    """Seconds; None: no limit."""

    connect: Seconds | None = 10
    write: Seconds | None = 30
    first_byte: Seconds | None = 120
    idle: Seconds | None = 300
    send: Seconds | None = 30
    total: Seconds | None = None


class Limits(_Settings, frozen=True):
    max_event_bytes: Annotated[int, Meta(ge=64, extra=_BYTES)] = 1048576
    max_request_body_bytes: Annotated[int, Meta(ge=0, extra=_BYTES)] = 16777216
    """On a route with `dialect: mcp` 4 MiB, unless a value is given (`load`)."""
    max_streams: Count = 10000
    max_streams_per_client: Count | None = None
    max_collected_bytes: Count = 67108864
    """Of all request bodies that a worker holds for interceptors. Not of a route."""


class Heartbeat(_Settings, frozen=True):
    """`interval`: seconds of silence before a comment line; None: none. `early`: also before the
    upstream has answered.
    """

    interval: Seconds | None = None
    early: bool = False


class Reconnect(_Settings, frozen=True):
    """`max_attempts`: in a row, without an event between them. Backoffs in seconds."""

    enabled: bool = False
    max_attempts: Count = 5
    initial_backoff: Seconds = 1
    max_backoff: Seconds = 60


class Retry(_Settings, frozen=True):
    max_attempts: Count = 2
    budget: Annotated[float, Meta(ge=0, le=1)] = 0.2


class Health(_Settings, frozen=True):
    consecutive_failures: Count = 5
    eject: Seconds = 10
    max_eject: Seconds = 300
    gone_after: Seconds | None = None
    """Sessions of an endpoint that is out of service for longer, without a break, get 404. None:
    `max_eject`.
    """
    check_path: str | None = None
    check_interval: Seconds = 10


class Route(_Settings, frozen=True):
    path: Annotated[str, Meta(pattern="^/", extra=_form('start with "/"', lambda text: f"/{text}"))]
    upstream: str
    interceptors: list[str] = []
    dialect: Annotated[Dialect, _in_order(Dialect)] = "generic"
    timeouts: Annotated[dict[str, Any], Meta(extra={"record": Timeouts})] = {}
    limits: Annotated[dict[str, Any], Meta(extra={"record": Limits})] = {}
    heartbeat: Annotated[dict[str, Any], Meta(extra={"record": Heartbeat})] = {}
    reconnect: Annotated[dict[str, Any], Meta(extra={"record": Reconnect})] = {}
    retry: Annotated[dict[str, Any], Meta(extra={"record": Retry})] = {}
    allowed_hosts: list[str] | None = None
    allowed_origins: list[str] | None = None
    strip_prefix: bool = False
    listening: list[Method] | None = None
    """Methods whose event streams `timeouts.idle` does not cut; None: GET with `dialect: mcp`,
    otherwise none.
    """


class BufferPoolSize(_Settings, frozen=True):
    size: Annotated[int, Meta(ge=1024, le=16777216, extra=_BYTES)]
    max_pooled: Annotated[int, Meta(ge=0)]


class BufferPools(_Settings, frozen=True):
    sse_event: BufferPoolSize = BufferPoolSize(size=4096, max_pooled=1000)
    http_response: BufferPoolSize = BufferPoolSize(size=16384, max_pooled=500)
    json: BufferPoolSize = BufferPoolSize(size=8192, max_pooled=500)


class ReverseProxy(_Settings, frozen=True):
    upstreams: list[Upstream]
    routes: Annotated[list[Route], Meta(min_length=1)]
    buffer_pools: BufferPools = BufferPools()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    heartbeat: Heartbeat = Heartbeat()
    reconnect: Reconnect = Reconnect()
    retry: Retry = Retry()
    health: Health = Health()
    max_client_connections: Count | None = None
    """Of a worker; None: half of its limit of open files, less a reserve."""
    trusted_proxies: list[str] = []
    leak_detection: Annotated[LeakDetection, _in_order(LeakDetection)] = "none"


class InterceptorEntry(_Settings, frozen=True):
    name: Name
    use: Name
    options: dict[str, Any] = {}


class Reporting(_Settings, frozen=True):
    interval: Seconds = 60


class Drain(_Settings, frozen=True):
    timeout: Duration = 30
    delay: Duration = 0


class Admin(_Settings, frozen=True):
    prefix: Annotated[
        str,
        Meta(
            pattern=r"^(/.*[^/])?\Z",
            extra=_form(
                'be empty, or start with "/" and not end with "/"',
                lambda text: f"/{text.strip('/')}",
            ),
        ),
    ] = ""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    host: Annotated[
        str,
        Meta(
            pattern=r"^[0-9A-Fa-f.:]+\Z",
            extra=_form("be an IP address, such as 127.0.0.1", {"localhost": "127.0.0.1"}.get),
        ),
    ] = "127.0.0.1"
    """Where `port` listens: an address, not a name."""
    hosts: list[str] = []
    """Names for which `/metrics` and `/status` are served on `port`, besides addresses and
    `localhost`.
    """


class Log(_Settings, frozen=True):
    format: Annotated[LogFormat, _in_order(LogFormat)] = "json"
    level: Annotated[LogLevel, _in_order(LogLevel)] = "info"


class Config(_Settings, frozen=True):
    """The whole configuration, checked."""

    reverse_proxy: ReverseProxy
    interceptors: list[InterceptorEntry] = []
    reporting: Reporting = Reporting()
    drain: Drain = Drain()
    admin: Admin = Admin()
    log: Log = Log()

    def timeouts_of(self, route: Route) -> Timeouts:
        """The timeouts of a route: its own where it has some, else the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.timeouts, **route.timeouts)

    def limits_of(self, route: Route) -> Limits:
        """The limits of a route: its own where it has some, else the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.limits, **route.limits)

    def retry_of(self, route: Route) -> Retry:
        """The retries of a route: its own where it has some, else the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.retry, **route.retry)

    def heartbeat_of(self, route: Route) -> Heartbeat:
        """The heartbeat of a route: its own where it has one, else the common one."""
        return msgspec.structs.replace(self.reverse_proxy.heartbeat, **route.heartbeat)

    def reconnect_of(self, route: Route) -> Reconnect:
        """How a route reconnects: its own way where it has one, else the common one."""
        return msgspec.structs.replace(self.reverse_proxy.reconnect, **route.reconnect)
