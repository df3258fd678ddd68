"""The client's request as everything in this package reads it, made once from its head; and its
admission: its route, and every check that needs only its head.

Routing, policies, interceptors and the upstream call use this one reading. Nothing is opened before
a request is admitted. The order of the checks decides which error a client gets; it is part of the
documented behaviour.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from interceptors import Outcome
from interceptors.preflight import is_preflight

from ..downstream import ClientStream
from ..errors import RequestRefused
from ..http import Host, Target, read_target, request_host
from ..http.headers import (
    HeaderList,
    TrustedProxies,
    client_of,
    one_spelling,
    received_request,
    refuse_two_lengths,
    take_request_id,
)
from ..worker.routes import Route
from ..worker.worker import Worker
from .cors import Cors, origins_of
from .refusal import refusal_of

__all__ = ["Admission", "ClientRequest", "read_request"]

_NO_TARGET = Target(raw=b"", path=b"", query=b"", normal="", authority=None)


class ClientRequest(msgspec.Struct, frozen=True):
    """One request, without its body."""

    method: str
    target: Target
    headers: HeaderList
    """Names in lower case, without fields of the hop except `Transfer-Encoding`. `Host` is the
    authority of an absolute-form target.
    """
    content_length: bytes | None
    has_transfer_encoding: bool
    has_via: bool
    http_version: str
    is_http2: bool
    scheme: str
    peer: str | None
    """The address of the connection's other end in its one spelling; None if the server does not
    give it.
    """
    client: str | None
    """The client's address: the peer's, or the one that a trusted proxy has reported."""
    request_id: str
    """Joins the log lines of the exchange: taken over from the client, or made here."""
    request_id_header: bytes | None
    """The field that has the id, in the request and in its response; None: no field."""
    host: Host | None
    unchecked: bool
    """As that of `RequestHead`."""
    fault: RequestRefused | None
    """Why the target, the host or the framing is not acceptable; None for a good request. A request
    with an unreadable target matches no route.
    """

    @property
    def announces_body(self) -> bool:
        """Whether the head has a framing header. Over HTTP/2 a body needs none."""
        return self.content_length is not None or self.has_transfer_encoding

    @property
    def client_name(self) -> str | None:
        """What log lines call the client, as long as no interceptor knows its name."""
        return self.client

    @property
    def path(self) -> str:
        """The path as servers interpret it, without the query."""
        return self.target.normal


def read_request(
    stream: ClientStream, trusted: TrustedProxies, request_id_header: bytes | None = None
) -> ClientRequest:
    """Read the head of a request. Does not raise: `fault` is what is wrong with it."""
    head, peer = stream.head, stream.peer
    if peer is not None and peer.startswith(":"):
        peer = one_spelling(peer)
    is_trusted = bool(trusted.networks) and peer in trusted
    headers = received_request(head.headers, trusted=is_trusted, request_id=request_id_header)
    client = client_of(peer, headers, trusted) if is_trusted else peer
    version, raw = head.version, head.target
    first_values = dict(reversed(headers))
    headers, request_id = take_request_id(headers, first_values, request_id_header)
    target, host, fault = _NO_TARGET, None, head.fault
    try:
        if fault is not None:
            raise fault
        if head.method == "CONNECT" and not raw.startswith(b"/"):
            raise _not_supported()  # its target is an authority, which matches no route
        target = read_target(raw)
        if target.authority is not None and version == "2":  # RFC 9113, section 8.3.1
            target = _NO_TARGET
            raise RequestRefused(400, "bad_request", "the request target must be a path")
        named, host = request_host(headers, target.authority, version)
        if target.authority is not None:
            headers = [(b"host", named), *(item for item in headers if item[0] != b"host")]
        if b"transfer-encoding" in first_values:
            refuse_two_lengths(headers, version)
    except RequestRefused as refusal:
        fault = refusal.with_traceback(None)
    return ClientRequest(
        method=head.method,
        target=target,
        headers=headers,
        content_length=first_values.get(b"content-length"),
        has_transfer_encoding=b"transfer-encoding" in first_values,
        has_via=b"via" in first_values,
        http_version=version,
        is_http2=version == "2",
        scheme=stream.scheme,
        peer=peer,
        client=client,
        request_id=request_id,
        request_id_header=request_id_header,
        host=host,
        unchecked=head.unchecked,
        fault=fault,
    )


def _not_supported() -> RequestRefused:
    """The refusal of CONNECT, which is also how HTTP/2 opens a WebSocket."""
    return RequestRefused(501, "not_supported", "CONNECT and WebSocket are not supported")


class Admission(msgspec.Struct, eq=False):
    """The decision on one request. `decide` fills it in; what is known stays if it raises."""

    route: Route | None = None
    """None: no route matches."""
    cors: Cors | None = None
    """For a request of an allowed origin; None otherwise."""
    is_preflight: bool = False
    """A CORS preflight that the proxy itself answers."""
    counted: bool = False
    """The exchange counts against the limits of streams."""
    client_place: tuple[str, str] | None = None
    """Where the client's streams are counted; None where they are not limited."""

    def decide(self, worker: Worker, request: ClientRequest) -> Route:
        """Find the route and check the request. Never blocks. Raises `RequestRefused`."""
        target = request.target
        self.route = route = worker.generations.current.routes.find(target.normal, target.path)
        if route is not None and route.allowed_origins is not None:
            self.cors = Cors.of(route.allowed_origins, request.headers)
        if request.fault is not None:
            raise request.fault
        if route is None:
            raise RequestRefused(404, "no_route", "no route matches this path")
        if route.allowed_hosts is not None and request.host not in route.allowed_hosts:
            raise RequestRefused(403, "host_not_allowed", "this Host is not allowed here")
        if route.allowed_origins is not None:
            _check_origin(route.allowed_origins, request)
        if request.has_via and worker.via.lists(request.headers):
            raise RequestRefused(
                508,
                "loop_detected",
                "this request has passed this proxy before: an endpoint leads back to it",
            )
        if request.method == "CONNECT":
            raise _not_supported()
        self.is_preflight = self.cors is not None and is_preflight(request.method, request.headers)
        if not self.is_preflight:
            # A preflight passes at a limit: without it the page could not read the 503.
            self._take_place(worker, route, request)
        return route

    def _take_place(self, worker: Worker, route: Route, request: ClientRequest) -> None:
        if worker.draining:
            raise refusal_of(None, Outcome.DRAINING)
        if worker.is_full(route):
            raise RequestRefused(
                503, "too_many_streams", "this server is at its limit of streams", retry_after_s=1
            )
        if route.limits.max_streams_per_client is not None:
            self.client_place = worker.client_place(route, request.client)
            if worker.is_client_full(route, self.client_place):
                raise RequestRefused(
                    429,
                    "too_many_client_streams",
                    "this client is at its limit of streams",
                    retry_after_s=1,
                )
        self.counted = True


def _check_origin(allowed: Collection[str], request: ClientRequest) -> None:
    """A request without `Origin` is not cross-origin, and passes."""
    for origin in origins_of(request.headers):
        if origin.decode("latin-1").lower() not in allowed:
            raise RequestRefused(403, "origin_not_allowed", "this Origin is not allowed here")
