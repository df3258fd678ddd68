"""Admission: the route of a request, and every check that needs only its head.

Nothing is opened before a request is admitted. The order of the checks decides which error a client
gets; it is part of the documented behaviour.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from interceptors import Outcome
from interceptors.message import is_preflight

from ..errors import RequestRefused
from ..worker.routes import Route
from ..worker.worker import Worker
from .cors import Cors, origins_of
from .refusal import refusal_of
from .request import ClientRequest, not_supported

__all__ = ["Admission"]


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
        if b"via" in request.first and worker.via.lists(request.headers):
            raise RequestRefused(
                508,
                "loop_detected",
                "this request has passed this proxy before: an endpoint leads back to it",
            )
        if request.method == "CONNECT":
            raise not_supported()
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
            self.client_place = worker.client_place(route, request.client, request.headers)
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
