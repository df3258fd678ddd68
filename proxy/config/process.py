"""The settings of a process: reports, drain, the store, the admin pages and the log."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from interceptors import OnStoreError

from .fields import (
    Count,
    Duration,
    ExchangeField,
    LocalStore,
    LogFormat,
    LogLevel,
    Seconds,
    Settings,
    form,
    in_order,
)

__all__ = ["PAGES", "Admin", "Drain", "Log", "Reporting", "Store", "Telemetry"]

PAGES = (
    "/metrics",
    "/healthz",
    "/readyz",
    "/status",
    "/status/stream",
    "/log-level",
    "/dashboard",
    "/dashboard/dashboard.css",
    "/dashboard/dashboard.js",
    "/dashboard/icon.svg",
)
"""The paths of the admin pages, after `admin.prefix`."""
INSPECT_PAGES = ("/inspect", "/inspect/stream", "/inspect/inspect.css", "/inspect/inspect.js")
"""Those that `admin.inspect` adds."""


class Reporting(Settings, frozen=True):
    """The periodic report of the buffer pools in the log."""

    interval: Seconds = 60
    """The time between two reports."""


class Drain(Settings, frozen=True):
    """What happens after SIGTERM."""

    timeout: Duration = 30
    """How long live exchanges can continue once the listeners are closed."""
    delay: Duration = 0
    """How long listeners stay open while `/readyz` already answers 503."""


class Store(Settings, frozen=True):
    """State that workers and machines share: limits, budgets, sessions, logs."""

    url: str | None = None
    """The server, Valkey or Redis 7.0 or newer: `valkey://[user:password@]host[:port][/database]`,
    `valkeys://` for TLS (`redis://` and `rediss://` mean the same), or `unix:///path`. null: in
    memory, see `local`.
    """
    username: str | None = None
    """The user (ACL), if the URL names none."""
    password: str | None = None
    """The password, if the URL has none."""
    ca_file: str | None = None
    """A PEM file of CA certificates to verify the server with. null: the system's. A relative path
    starts at the configuration's directory.
    """
    prefix: str = "weirpool:"
    """The beginning of every key and channel. Proxies with the same prefix share their state."""
    timeout: Annotated[float, Meta(gt=0, le=30, extra={"unit": "seconds"})] = 0.25
    """The longest wait for an answer of the store."""
    on_error: Annotated[OnStoreError, in_order(OnStoreError)] = "local"
    """What limits do while the store is away. `local`: each worker counts alone, with its share of
    the limit. `open`: everything is allowed. `closed`: requests that need the store get 503.
    """
    local: Annotated[LocalStore, in_order(LocalStore)] = "auto"
    """With several workers and no `url`. `auto`: they share a `valkey-server` or `redis-server` that
    the supervisor starts, if one is on PATH. `off`: each worker counts alone, with its share.
    """


class Admin(Settings, frozen=True):
    """The pages `/dashboard`, `/status`, `/status/stream`, `/metrics`, `/healthz` and `/readyz`."""

    prefix: Annotated[
        str,
        Meta(
            pattern=r"^(/.*[^/])?\Z",
            extra=form(
                'be empty, or start with "/" and not end with "/"',
                lambda text: f"/{text.strip('/')}",
            ),
        ),
    ] = ""
    """The path before the pages."""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """A separate port for the pages, of all workers. null: the pages are on the proxy's port and
    shadow an upstream's.
    """
    host: Annotated[
        str,
        Meta(
            pattern=r"^[0-9A-Fa-f.:]+\Z",
            extra=form("be an IP address, such as 127.0.0.1", {"localhost": "127.0.0.1"}.get),
        ),
    ] = "127.0.0.1"
    """The address that `port` listens on."""
    hosts: list[str] = []
    """Host headers for which `port` serves all pages but the probes, besides addresses and
    `localhost`.
    """
    token: (
        Annotated[
            str,
            Meta(pattern=r"^[!-~]{16,}\Z", extra=form("be at least 16 visible ASCII characters")),
        ]
        | None
    ) = None
    """The bearer token that `/status`, `/status/stream`, `/inspect/stream` and `/log-level` require,
    and that `/dashboard` and `/inspect` ask for. null: none. `/metrics`, `/healthz` and `/readyz`
    never require it.
    """
    inspect: bool = False
    """Whether `/inspect` shows the events of live streams, which are content: see docs/inspector.md.
    Requires `token` or `port`.
    """

    @property
    def pages(self) -> tuple[str, ...]:
        """The paths of the pages, after `prefix`."""
        return PAGES + INSPECT_PAGES if self.inspect else PAGES


class Log(Settings, frozen=True):
    """The log on standard error."""

    format: Annotated[LogFormat, in_order(LogFormat)] = "json"
    """`json`: one JSON object a line. `console`: for a terminal."""
    level: Annotated[LogLevel, in_order(LogLevel)] = "info"
    """The least severe level that is logged. `debug` can log content of requests and answers. It
    [can be changed](monitoring.md#change-the-level) while the process runs.
    """
    fields: list[Annotated[ExchangeField, in_order(ExchangeField)]] | None = None
    """The fields of the `exchange` line, besides `event`, `level`, `timestamp`, `pid` and `sample`,
    and those of them that other lines of an exchange get. null: all.
    """
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """The share of successful exchanges (`completed`, with a status below 400) that are logged.
    Failures are always logged.
    """
    request_id_header: str | None = "x-request-id"
    """The header that has the id of a request. A client's id is taken over; without one, Weirpool
    makes it. The upstream and the client get it. null: no header, and each request gets a new id
    for the log.
    """


class Telemetry(Settings, frozen=True):
    """What is measured of calls of models and of MCP servers, by OpenTelemetry's names."""

    genai: bool = False
    """Read the model, the tokens and the time of the first token on routes with `dialect: openai` or
    `anthropic`, and the method on routes with `dialect: mcp`, for metrics and spans. Requests of
    these routes ask for answers without content coding.
    """
    max_label_values: Count = 100
    """How many values of a label the metrics of `genai` show, such as models; further ones are
    `other`.
    """
