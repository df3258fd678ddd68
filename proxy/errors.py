"""This package's error families, and how each looks from outside.

- `ConfigError`: the configuration is wrong; names the path of the mistake.
- `RequestRefused`: the client's request gets an answer of ours instead of the upstream's.
- `UpstreamFailure`: the upstream could not be reached or broke the protocol. Subclasses are httpx exceptions as well, so that
  the transport keeps httpx's contract.
- `ClientGone`, `SendStalled`: the client's side of a stream ended it.
"""

from __future__ import annotations

import httpx

from interceptors import Outcome

__all__ = [
    "ClientGone",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimedOut",
    "DnsFailed",
    "PoolTimedOut",
    "ProtocolFailure",
    "ReadFailed",
    "ReadTimedOut",
    "RequestRefused",
    "SendStalled",
    "TlsFailed",
    "Truncated",
    "UpstreamFailure",
    "WriteTimedOut",
]


class ConfigError(Exception):
    """The configuration is wrong. `errors` holds a line for each mistake, with its path."""

    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class RequestRefused(Exception):
    """A request that is not forwarded. `kind` and `message` go into the answer's JSON body."""

    def __init__(self, status: int, kind: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


class ClientGone(Exception):
    """The client's connection broke while we wrote to it."""


class SendStalled(Exception):
    """The client took nothing for the whole `send` deadline."""


class UpstreamFailure(Exception):
    """Base of what can go wrong upstream. Its message names the endpoint, never a path, a header or a body."""

    kind = "upstream_error"
    status = 502
    outcome = Outcome.UPSTREAM_ERROR


class DnsFailed(UpstreamFailure, httpx.ConnectError):
    kind = "upstream_dns_failed"


class ConnectFailed(UpstreamFailure, httpx.ConnectError):
    kind = "upstream_connect_failed"


class TlsFailed(UpstreamFailure, httpx.ConnectError):
    kind = "upstream_tls_failed"


class ConnectTimedOut(UpstreamFailure, httpx.ConnectTimeout):
    kind = "upstream_connect_timeout"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class PoolTimedOut(UpstreamFailure, httpx.PoolTimeout):
    """No connection of the origin became free in time (`max_connections`)."""

    kind = "upstream_connections_exhausted"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class WriteTimedOut(UpstreamFailure, httpx.WriteTimeout):
    kind = "upstream_write_timeout"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class ReadTimedOut(UpstreamFailure, httpx.ReadTimeout):
    kind = "upstream_read_timeout"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class ReadFailed(UpstreamFailure, httpx.ReadError):
    """The connection broke: reset, or closed before a head came."""

    kind = "upstream_connection_lost"


class ProtocolFailure(UpstreamFailure, httpx.RemoteProtocolError):
    """What the upstream sent is not HTTP as we accept it."""

    kind = "upstream_protocol_error"


class Truncated(ProtocolFailure):
    """The connection ended before the body did."""

    kind = "upstream_truncated"
