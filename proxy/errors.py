"""The error families of the proxy.

- `ConfigError`: the configuration is wrong; names the path of each mistake.
- `RequestRefused`: the proxy answers the request itself.
- `ProxyDefect`: one of the proxy's own interceptors failed.
- `UpstreamFailure`: the upstream could not be reached or broke the protocol.
- `ClientGone`, `SendStalled`: the client's side ended a stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from interceptors import HookError, InterceptorError, Outcome, StreamAborted

__all__ = [
    "ClientGone",
    "ConfigError",
    "ConnectFailed",
    "ConnectTimedOut",
    "DnsFailed",
    "EncodedResponse",
    "NoEndpoint",
    "NotAStream",
    "NotResumed",
    "OutOfResources",
    "PoolFull",
    "PoolTimedOut",
    "Problem",
    "ProtocolFailure",
    "ProxyDefect",
    "ReadFailed",
    "ReadTimedOut",
    "RequestRefused",
    "SendStalled",
    "Sent",
    "SessionGone",
    "StartError",
    "TlsFailed",
    "Truncated",
    "UpstreamFailure",
    "WriteTimedOut",
    "interceptor_failed",
    "outcome_of",
]


def outcome_of(failure: Exception) -> Outcome:
    """Return the outcome of an exchange that a failure has ended."""
    if isinstance(failure, HookError | StreamAborted):
        return Outcome.INTERCEPTED
    if isinstance(
        failure, UpstreamFailure | ClientGone | SendStalled | RequestRefused | ProxyDefect
    ):
        return failure.outcome
    return Outcome.UPSTREAM_ERROR  # an event that is too large


@dataclass(frozen=True, slots=True)
class Problem:
    """An error or a warning about the configuration."""

    path: str
    """Such as `reverse_proxy.routes[0].path`; "" for the whole configuration."""
    message: str
    hint: str = ""
    """What to write instead, if known."""
    severity: Literal["error", "warning"] = "error"
    value: str | None = None
    """The value as written in the file, with its references. None if absent or possibly secret."""
    line: int | None = None
    column: int | None = None
    """From 1."""
    file: str | None = None

    @property
    def text(self) -> str:
        """Everything except the place."""
        hint = f": {self.hint}" if self.hint else ""
        value = f" (got {self.value})" if self.value is not None else ""
        return f"{self.message}{hint}{value}"

    def __str__(self) -> str:
        """The line for a log: with the path, or the place if there is no path."""
        if self.path:
            return f"{self.path}: {self.text}"
        if self.line is not None:
            return f"line {self.line}, column {self.column}: {self.text}"
        return f"{self.file}: {self.text}" if self.file is not None else self.text

    @property
    def located(self) -> str:
        """The line for a terminal in the format of compilers, which editors recognise."""
        if self.file is None:
            return str(self)
        place = f"{self.file}:{self.line}:{self.column}" if self.line is not None else self.file
        return f"{place}: {self.severity}: {f'{self.path}: ' if self.path else ''}{self.text}"


class ConfigError(Exception):
    """The configuration is wrong. `problems` has every mistake, `errors` a line for each."""

    def __init__(self, *problems: str | Problem) -> None:
        self.problems = tuple(
            Problem("", item) if isinstance(item, str) else item for item in problems
        )
        self.errors = tuple(str(item) for item in self.problems)
        super().__init__("\n".join(self.errors))


class StartError(ConfigError):
    """The process cannot start to serve, for example because a port is taken."""


class RequestRefused(Exception):
    """A request that the proxy answers itself. `kind` and `message` go into the answer's body."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        retry_after_s: int | None = None,
        *,
        outcome: Outcome = Outcome.REFUSED,
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s


def interceptor_failed(message: str) -> RequestRefused:
    """Return the refusal for a message that cannot be sent as an interceptor has left it."""
    return RequestRefused(502, "interceptor_failed", message, outcome=Outcome.INTERCEPTED)


class ProxyDefect(InterceptorError):
    """One of the proxy's own interceptors failed."""

    outcome = Outcome.INTERNAL_ERROR


class ClientGone(Exception):
    """The client's connection broke during a write."""

    outcome = Outcome.CLIENT_DISCONNECTED


class SendStalled(Exception):
    """The client accepted nothing for the whole `send` deadline."""

    outcome = Outcome.SEND_STALLED


class Sent(Enum):
    """How much of a request had been written when it failed."""

    NOTHING = "nothing"
    HEAD = "head"
    """Some or all of the head; nothing of the body has been taken from its source."""
    BODY = "body"
    """The head and a part of the body."""
    ALL = "all"


class UpstreamFailure(Exception):
    """Base of upstream failures. The message is for the log: it names the endpoint, never a path, a
    header or a body.
    """

    kind = "upstream_error"
    public = "the upstream failed"
    """The text for clients."""
    status = 502
    outcome = Outcome.UPSTREAM_ERROR
    retry_after_s: int | None = None
    sent: Sent = Sent.ALL
    """How much of the request had been written; set by `http1` and `balancer`."""
    reused: bool = False
    """Whether the connection had carried a request before, so that the server may have closed it.
    """
    own_limit = False
    """A limit of this proxy or its machine: it does not count against the endpoint, and is not
    retried.
    """


class NoEndpoint(UpstreamFailure):
    """Every endpoint of the upstream is ejected; none was tried."""

    kind = "no_endpoint"
    public = "no endpoint of the upstream is in service"
    status = 503
    sent = Sent.NOTHING
    own_limit = True


class SessionGone(UpstreamFailure):
    """The session's endpoint is gone, or its id is not one that this upstream's sessions have; no
    endpoint was tried. After 404 a client starts a new session (MCP, "Session Management").
    """

    kind = "session_gone"
    public = "this session has ended or is not known here: start a new one"
    status = 404
    sent = Sent.NOTHING


class DnsFailed(UpstreamFailure):
    kind = "upstream_dns_failed"
    public = "the upstream's name cannot be resolved"


class ConnectFailed(UpstreamFailure):
    kind = "upstream_connect_failed"
    public = "the upstream cannot be reached"


class TlsFailed(UpstreamFailure):
    kind = "upstream_tls_failed"
    public = "TLS with the upstream failed"


class ConnectTimedOut(UpstreamFailure):
    kind = "upstream_connect_timeout"
    public = "the upstream did not accept a connection in time"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class _OwnLimit(UpstreamFailure):
    """A temporary limit of this proxy or its machine."""

    status = 503
    outcome = Outcome.REFUSED
    retry_after_s = 1
    own_limit = True


class PoolTimedOut(_OwnLimit):
    """No connection to the upstream became free in time (`max_connections`)."""

    kind = "upstream_connections_exhausted"
    public = "all connections to the upstream are in use"


class PoolFull(_OwnLimit):
    """All connections to the upstream are in use, and the queue for one is full."""

    kind = "upstream_connections_exhausted"
    public = "all connections to the upstream are in use"


class OutOfResources(_OwnLimit):
    """No descriptor, memory, local port or thread is left (EMFILE, ENFILE, ENOBUFS, ENOMEM,
    EADDRNOTAVAIL).
    """

    kind = "out_of_resources"
    public = "this server has no resources left for a connection to the upstream"


class WriteTimedOut(UpstreamFailure):
    kind = "upstream_write_timeout"
    public = "the upstream did not accept the request in time"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class ReadTimedOut(UpstreamFailure):
    kind = "upstream_read_timeout"
    public = "the upstream did not answer in time"
    status = 504
    outcome = Outcome.UPSTREAM_TIMEOUT


class ReadFailed(UpstreamFailure):
    """The connection was reset, or closed before a head arrived."""

    kind = "upstream_connection_lost"
    public = "the connection to the upstream broke"


class ProtocolFailure(UpstreamFailure):
    """The upstream's bytes are not acceptable HTTP."""

    kind = "upstream_protocol_error"
    public = "the upstream's response is not acceptable HTTP"


class EncodedResponse(ProtocolFailure):
    """The response is encoded although identity was requested and an interceptor must read it."""

    public = (
        "the upstream's response is compressed although an uncompressed one was requested,"
        " and an interceptor must read it"
    )

    def __init__(self, upstream: str) -> None:
        super().__init__(
            f"{upstream}: the response is encoded although identity was requested,"
            " and an interceptor must read it"
        )


class NotAStream(UpstreamFailure):
    """The answer is not an event stream, but an early heartbeat has started one."""

    kind = "upstream_not_a_stream"

    def __init__(self, upstream: str, status: int) -> None:
        super().__init__(
            f"{upstream}: answered {status} without an event stream,"
            " after an early heartbeat had started one"
        )
        self.public = (
            f"the upstream has answered with status {status}, and not with an event stream"
        )


class NotResumed(UpstreamFailure):
    """The answer does not continue the event stream."""

    kind = "upstream_not_resumed"

    def __init__(self, upstream: str, status: int) -> None:
        super().__init__(
            f"{upstream}: answered {status} without a plain event stream"
            " to an attempt to resume one"
        )
        self.public = (
            f"the upstream's stream broke, and the attempt to resume it got status {status}"
        )


class Truncated(ProtocolFailure):
    """The connection ended before the body."""

    kind = "upstream_truncated"
    public = "the upstream's response ended too early"
