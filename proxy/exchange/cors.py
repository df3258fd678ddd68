"""CORS on routes with `allowed_origins`: the headers that let a page of an allowed origin read a
response. Sans I/O.

The proxy's own answers (refusals, interceptors' answers, preflights) allow the origin. A response
of the upstream keeps its CORS headers; the ids of the session and of the request are exposed where
it allows the origin.
Rules: Fetch, "CORS protocol". `Admission` refuses other origins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from interceptors import Response

from ..http.headers import HeaderList, find_header

__all__ = ["Cors", "origins_of"]

_ALLOW_ORIGIN = b"access-control-allow-origin"
_ALLOW_CREDENTIALS = b"access-control-allow-credentials"
_EXPOSE = b"access-control-expose-headers"
_EXPOSED = b"Mcp-Session-Id, WWW-Authenticate, Retry-After"
_SESSION = b"mcp-session-id"
_PREFLIGHT_MAX_AGE_S = 600


def origins_of(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Every `Origin` of a request, unchanged."""
    return [value for name, value in headers if name == b"origin"]


class Cors:
    """What a page of one allowed origin may read. Use `of`, which checks the origin."""

    __slots__ = ("_origin",)

    def __init__(self, origin: bytes) -> None:
        self._origin = origin

    @classmethod
    def of(
        cls, allowed_origins: Collection[str] | None, headers: Sequence[tuple[bytes, bytes]]
    ) -> Cors | None:
        """For a request with these headers; None if the route has no `allowed_origins`, or the
        request not exactly one origin of them.
        """
        if allowed_origins is None:
            return None
        origins = origins_of(headers)
        if len(origins) != 1 or origins[0].decode("latin-1").lower() not in allowed_origins:
            return None
        return cls(origins[0])

    def grant(self, headers: HeaderList, request_id: bytes | None = None) -> HeaderList:
        """The headers of an answer of the proxy, with those that let the page read it. Headers that
        an interceptor exposes stay exposed. `request_id`: the header with the request's id.

        `Access-Control-Allow-Credentials` stays only if the answer itself allows this origin. With
        another origin or `*` it gave the page nothing, and must not start to once the origin is
        replaced (Fetch, "CORS check").
        """
        allowed = [value.strip() for value in _values(headers, _ALLOW_ORIGIN)] == [self._origin]
        varies = _values(headers, b"vary")
        if not _lists(varies, b"origin"):
            varies.append(b"Origin")
        exposed = [_EXPOSED] if request_id is None else [_EXPOSED, _written(request_id)]
        replaced = {_ALLOW_ORIGIN, _EXPOSE, b"vary", *(() if allowed else (_ALLOW_CREDENTIALS,))}
        return [
            *(item for item in headers if item[0].lower() not in replaced),
            (_ALLOW_ORIGIN, self._origin),
            (_EXPOSE, b", ".join([*exposed, *_values(headers, _EXPOSE)])),
            (b"vary", b", ".join(varies)),
        ]

    def expose(self, headers: HeaderList, request_id: bytes | None = None) -> HeaderList:
        """The headers of an upstream's response. `Mcp-Session-Id` and the header `request_id` are
        exposed if the response has them and allows the origin.
        """
        allowed = [value.strip() for value in _values(headers, _ALLOW_ORIGIN)]
        if allowed not in ([self._origin], [b"*"]):
            return headers
        names = [
            name
            for name in (_SESSION, request_id)
            if name is not None and _values(headers, name) and not _exposes(headers, name)
        ]
        if not names:
            return headers
        exposed = [value for value in _values(headers, _EXPOSE) if value.strip()]
        return [
            *(item for item in headers if item[0].lower() != _EXPOSE),
            (_EXPOSE, b", ".join([*exposed, *map(_written, names)])),
        ]

    def answer_preflight(self, asked: Sequence[tuple[bytes, bytes]]) -> Response:
        """The answer to a preflight with these headers: everything it asks for is allowed. `grant`
        adds the rest.
        """
        method = find_header(asked, b"access-control-request-method") or b""
        headers = [(b"access-control-allow-methods", method)]
        names = b", ".join(filter(None, _values(asked, b"access-control-request-headers")))
        if names:
            headers.append((b"access-control-allow-headers", names))
        headers += [
            (b"access-control-max-age", b"%d" % _PREFLIGHT_MAX_AGE_S),
            (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        return Response(status=204, headers=headers)


def _written(name: bytes) -> bytes:
    """A header's name as people write it."""
    return b"-".join([part.capitalize() for part in name.split(b"-")])


def _exposes(headers: HeaderList, name: bytes) -> bool:
    exposed = _values(headers, _EXPOSE)
    if _lists(exposed, name):
        return True
    # With credentials `*` is a plain name: Fetch, "CORS-exposed header-name list".
    credentials = [value.strip() for value in _values(headers, _ALLOW_CREDENTIALS)]
    return _lists(exposed, b"*") and b"true" not in credentials


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """The values of a header; names may be in any case."""
    return [value for key, value in headers if key.lower() == name]


def _lists(values: Iterable[bytes], item: bytes) -> bool:
    """Whether comma-separated lists have an item, in any case."""
    return any(part.strip().lower() == item for value in values for part in value.split(b","))
