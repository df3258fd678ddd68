"""CORS on routes with `allowed_origins`: what lets a page of an allowed origin read what comes
through this route. Sans I/O.

Answers of Weirpool (refusals, interceptors' answers, preflights) allow the origin. A server's
answer keeps its own CORS headers; the session's id is exposed where the server allows the origin.
Rules: Fetch, "CORS protocol". Refusing other origins is the exchange's task.
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
    """Every `Origin` of a request, as it came."""
    return [value for name, value in headers if name == b"origin"]


class Cors:
    """What one request's allowed origin may read."""

    __slots__ = ("_origin",)

    def __init__(self, origin: bytes) -> None:
        """Use `of`, which checks the origin."""
        self._origin = origin

    @classmethod
    def of(
        cls, allowed_origins: Collection[str] | None, headers: Sequence[tuple[bytes, bytes]]
    ) -> Cors | None:
        """For a request with these headers; None where the route has no `allowed_origins`, or
        allows none or another origin.
        """
        if allowed_origins is None:
            return None
        origins = origins_of(headers)
        if len(origins) != 1 or origins[0].decode("latin-1").lower() not in allowed_origins:
            return None
        return cls(origins[0])

    def grant(self, headers: HeaderList) -> HeaderList:
        """The headers of an answer that Weirpool makes, with those that let the page read it. What
        an interceptor exposes stays.

        `Access-Control-Allow-Credentials` stays only where the answer itself has allowed this
        origin: beside another origin or `*` it allowed the page nothing, and must not begin to when
        the origin is replaced (Fetch, "CORS check").
        """
        allowed = [value.strip() for name, value in headers if name.lower() == _ALLOW_ORIGIN] == [
            self._origin
        ]
        exposed = [value for name, value in headers if name.lower() == _EXPOSE]
        varies = [value for name, value in headers if name.lower() == b"vary"]
        replaced = (_ALLOW_ORIGIN, _EXPOSE, b"vary", *(() if allowed else (_ALLOW_CREDENTIALS,)))
        kept = [item for item in headers if item[0].lower() not in replaced]
        return [
            *kept,
            (_ALLOW_ORIGIN, self._origin),
            (_EXPOSE, b", ".join([_EXPOSED, *exposed])),
            (b"vary", b", ".join([*varies, *([] if _lists(varies, b"origin") else [b"Origin"])])),
        ]

    def expose_session(self, headers: HeaderList) -> HeaderList:
        """The headers of the server's answer. `Mcp-Session-Id` is exposed where the server sends it
        and allows the origin.
        """
        allowed = [value.strip() for name, value in headers if name == _ALLOW_ORIGIN]
        if allowed not in ([self._origin], [b"*"]) or not any(
            name == _SESSION for name, _ in headers
        ):
            return headers
        exposed = [value for name, value in headers if name == _EXPOSE]
        # With credentials `*` is a name like any other: Fetch, "CORS-exposed header-name list".
        with_credentials = any(
            name == _ALLOW_CREDENTIALS and value.strip() == b"true" for name, value in headers
        )
        if _lists(exposed, _SESSION) or (_lists(exposed, b"*") and not with_credentials):
            return headers
        return [
            *(item for item in headers if item[0] != _EXPOSE),
            (
                _EXPOSE,
                b", ".join([*(value for value in exposed if value.strip()), b"Mcp-Session-Id"]),
            ),
        ]

    def answer_preflight(self, asked: Sequence[tuple[bytes, bytes]]) -> Response:
        """The answer to a preflight with these headers: what the page asks for is allowed. `grant`
        adds the rest.
        """
        headers = [
            (
                b"access-control-allow-methods",
                find_header(asked, b"access-control-request-method") or b"",
            )
        ]
        names = b", ".join(
            [value for name, value in asked if name == b"access-control-request-headers" and value]
        )
        if names:
            headers.append((b"access-control-allow-headers", names))
        headers += [
            (b"access-control-max-age", b"%d" % _PREFLIGHT_MAX_AGE_S),
            (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        return Response(status=204, headers=headers)


def _lists(values: Iterable[bytes], item: bytes) -> bool:
    """Whether comma-separated lists have an item, in any case."""
    return any(part.strip().lower() == item for value in values for part in value.split(b","))
