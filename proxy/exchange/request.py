"""The client's request as everything in this package reads it: made once, from the ASGI scope.

Routing, policies, interceptors and the upstream call use this one reading. It knows no route.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ..downstream import Scope, raw_target
from ..errors import RequestRefused
from ..http import Host, Target, read_target, request_host
from ..http.headers import (
    HeaderList,
    TrustedProxies,
    one_spelling,
    received_request,
    refuse_two_lengths,
)

__all__ = ["ClientRequest", "not_supported", "read_request"]

_EARLY_HINT = "http.response.early_hint"
_NO_TARGET = Target(raw=b"", path=b"", query=b"", normal="", authority=None)


class ClientRequest(msgspec.Struct, frozen=True):
    """One request, without its body."""

    method: str
    target: Target
    headers: HeaderList
    """Names in lower case, without fields of the hop except `Transfer-Encoding`. `Host` is the
    authority of an absolute-form target.
    """
    first: Mapping[bytes, bytes]
    """The first value of each of them."""
    http_version: str
    is_http2: bool
    scheme: str
    client: str | None
    """The peer's address in its one spelling; None if the server does not give it."""
    host: Host | None
    early_hints: bool
    """The ASGI server can send 103 responses."""
    fault: RequestRefused | None
    """Why the target, the host or the framing is not acceptable; None for a good request. A request
    with an unreadable target matches no route.
    """

    @property
    def announces_body(self) -> bool:
        """Whether the head has a framing header. Over HTTP/2 a body needs none."""
        return b"content-length" in self.first or b"transfer-encoding" in self.first


def read_request(scope: Scope, trusted: TrustedProxies) -> ClientRequest:
    """Read the head of a request. Does not raise: `fault` is what is wrong with it."""
    peer = scope.get("client")
    client = None if peer is None else peer[0]
    if client is not None and client.startswith(":"):
        client = one_spelling(client)
    is_trusted = bool(trusted.networks) and client in trusted
    headers = received_request(scope["headers"], trusted=is_trusted)
    version: str = scope["http_version"]
    target, host, fault = _NO_TARGET, None, None
    try:
        target = _target_of(scope)
        named, host = request_host(headers, target.authority, version)
        if target.authority is not None:
            headers = [(b"host", named), *(item for item in headers if item[0] != b"host")]
        if b"transfer-encoding" in dict(headers):
            refuse_two_lengths(headers, version)
    except RequestRefused as refusal:
        fault = refusal.with_traceback(None)
    return ClientRequest(
        method=scope["method"],
        target=target,
        headers=headers,
        first=dict(reversed(headers)),
        http_version=version,
        is_http2=version == "2",
        scheme=scope["scheme"],
        client=client,
        host=host,
        early_hints=_EARLY_HINT in (scope.get("extensions") or ()),
        fault=fault,
    )


def _target_of(scope: Scope) -> Target:
    raw = raw_target(scope)
    if scope["method"] == "CONNECT" and not raw.startswith(b"/"):
        raise not_supported()  # its target is an authority, which matches no route
    target = read_target(raw)
    if target.authority is not None and scope["http_version"] == "2":
        # RFC 9113, section 8.3.1
        raise RequestRefused(400, "bad_request", "the request target must be a path")
    return target


def not_supported() -> RequestRefused:
    """The refusal of CONNECT, which is also how HTTP/2 opens a WebSocket."""
    return RequestRefused(501, "not_supported", "CONNECT and WebSocket are not supported")
