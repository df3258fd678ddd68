"""`api_keys`: clients authenticate with the proxy's keys, and the upstream gets its own credential.

    interceptors:
      - name: keys
        use: api_keys
        options:
          keys: {ann: "sha256:9f86...", ci: ["sha256:60303a...", "sha256:fd61a0..."]}
          teams: {blue: [ann]}
          upstream: "Bearer ${LLM_API_KEY}"

A client's key never reaches the upstream, a log or an answer; the configuration has only hashes.
`request.state["client_key"]` has the client's name for later interceptors, `request.state["team"]`
that of its team.

A key is a long random string, so that one SHA-256 is enough: slow hashes protect passwords, and
would cost each request milliseconds of the event loop.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from interceptors import Interceptor, OnError, Request, Response

from .errors import refuse_options
from .tokens import is_token

__all__ = ["ApiKeys", "ApiKeysOptions", "hash_key"]

_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_VISIBLE = re.compile(r"[!-~]+")
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
# Fields of the connection, of framing and of routing cannot carry a credential.
_NOT_FORWARDED = frozenset(
    [
        *(
            "connection",
            "content-length",
            "expect",
            "host",
            "http2-settings",
            "keep-alive",
            "te",
            "trailer",
        ),
        *(
            "proxy-authenticate",
            "proxy-authentication-info",
            "proxy-authorization",
            "proxy-connection",
        ),
        *("transfer-encoding", "upgrade", "via"),
    ]
)
# RFC 6750, section 2.1. Schemes ignore case: RFC 9110, section 11.1.
_BEARER = re.compile(rb"bearer +([^ ]+) *", re.IGNORECASE)


def hash_key(key: str) -> str:
    """The hash of a key for the configuration: `sha256:` and 64 hexadecimal digits.

    Raises `ValueError` for a key that is empty or has a space or a character that is not ASCII.
    """
    if not _VISIBLE.fullmatch(key):
        raise ValueError("a key must be one or more visible ASCII characters, without spaces")
    return f"sha256:{sha256(key.encode()).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class ApiKeysOptions:
    """The options of `ApiKeys`."""

    keys: dict[str, str | list[str]]
    """The hash of each client's key by the client's name; a list of hashes while keys rotate."""
    teams: dict[str, list[str]] = field(default_factory=dict)
    """The clients of each team. A client has one team, or none."""
    upstream: str | None = field(default=None, repr=False)
    """The upstream's credential, as a whole header value. None: no credential."""
    upstream_header: str = "authorization"
    """The header for `upstream`."""
    header: str | None = None
    """The header of a client's key. None: `Authorization: Bearer <key>` or `x-api-key: <key>`, and
    both are removed. With a header other than `authorization`, the client's `Authorization` and
    `x-api-key` go upstream unchanged.
    """


class ApiKeys(Interceptor):
    """Answers 401 without a valid key, otherwise swaps it for the upstream's credential.

    Raises `ValueError` for wrong options. Errors never quote a value that could be a key.
    """

    on_error: OnError = "abort"  # fail closed
    sets_state: tuple[str, ...] = ("client_key",)

    def __init__(self, options: ApiKeysOptions) -> None:
        mistakes: list[str] = []
        self._clients = _clients_by_hash(options.keys, mistakes)
        self._teams = _teams_by_client(options.teams, options.keys, mistakes)
        if self._teams:
            self.sets_state = ("client_key", "team")
        if options.upstream is not None and not _HEADER_VALUE.fullmatch(options.upstream):
            mistakes.append(
                "upstream: expected a header value, in ASCII and without a space at its end "
                "(is a variable empty?)"
            )
        for option, name in (
            ("upstream_header", options.upstream_header),
            ("header", options.header),
        ):
            if name is not None and not is_token(name):
                mistakes.append(f"{option}: expected a header name, without a value")
        if options.upstream_header.lower() in _NOT_FORWARDED:
            mistakes.append(
                f"upstream_header: {options.upstream_header!r} belongs to the connection and does "
                "not go upstream"
            )
        if options.header is not None and options.header.lower() in _NOT_FORWARDED:
            mistakes.append(
                f"header: {options.header!r} belongs to the connection: interceptors do not see it"
            )
        refuse_options(mistakes)
        self._upstream = options.upstream
        self._upstream_header = options.upstream_header.lower()
        self.sets_headers = () if options.upstream is None else (self._upstream_header,)
        header = None if options.header is None else options.header.lower()
        # No bearer challenge for another header: MCP clients would start to fetch a token.
        self._is_bearer = header in (None, "authorization")
        self._where = "" if options.header is None else f" (header {options.header})"
        # RFC 6750, section 3; for `ApiKey`, which is not registered, RFC 9110, section 11.6.1.
        self._challenge = (
            'Bearer realm="weirpool"'
            if self._is_bearer
            else f'ApiKey realm="weirpool", header="{header}"'
        )
        self._read = ("authorization", "x-api-key") if header is None else (header,)
        # With a separate header, `Authorization` and `x-api-key` are the server's. Otherwise remove
        # both: a client may send its key in both.
        self._removed = (
            self._read if header not in (None, "authorization") else ("authorization", "x-api-key")
        )

    async def on_request(self, request: Request) -> Response | None:
        """Answer 401, or swap the credentials and set `state["client_key"]` and `state["team"]`.

        A CORS preflight passes without a key; every credential is removed from it.
        """
        if request.is_preflight:
            self._remove_keys(request)
            for name in self.sets_headers:
                request.headers.pop(name, None)
            return None
        presented = set(self._presented(request))
        if not presented:
            # RFC 6750, section 3.1: without a key, the challenge has no error.
            return self._refuse(
                request, "missing_api_key", f"this request needs an API key{self._where}"
            )
        if len(presented) > 1:
            return self._refuse(
                request, "invalid_api_key", f"this request has more than one API key{self._where}"
            )
        client = self._client_of(presented.pop())
        if client is None:
            return self._refuse(
                request, "invalid_api_key", f"this API key is not valid{self._where}"
            )
        self._remove_keys(request)
        if self._upstream is not None:
            request.headers[self._upstream_header] = self._upstream
        request.state["client_key"] = client
        if client in self._teams:
            request.state["team"] = self._teams[client]
        return None

    def _refuse(self, request: Request, kind: str, message: str) -> Response:
        challenge = self._challenge
        if self._is_bearer and kind == "invalid_api_key":
            challenge += ', error="invalid_token"'
        return request.refuse(401, kind, message, headers={"www-authenticate": challenge})

    def _remove_keys(self, request: Request) -> None:
        for name in self._removed:
            request.headers.pop(name, None)
        for name in [
            name
            for name in request.headers
            if "_" in name and name.lower().replace("_", "-") in self._removed
        ]:
            # CGI reads it as the other name: RFC 3875, section 4.1.18.
            request.headers.pop(name, None)

    def _presented(self, request: Request) -> Iterator[bytes]:
        """Every key in the request's headers, as bytes."""
        for raw_name, value in request.headers.raw:
            name = raw_name.lower().decode("latin-1")
            if name not in self._read:
                continue
            if name != "authorization":
                if value.strip():
                    yield value.strip()
            elif bearer := _BEARER.fullmatch(value.strip()):
                yield bearer[1]

    def _client_of(self, key: bytes) -> str | None:
        """The client of a key, None if it is unknown. Constant time for unknown keys."""
        digest = sha256(key).digest()
        found = None
        for known, client in self._clients:
            if hmac.compare_digest(known, digest):
                found = client  # no break: compare every entry
        return found


def _clients_by_hash(
    keys: dict[str, str | list[str]], mistakes: list[str]
) -> tuple[tuple[bytes, str], ...]:
    """Each hash with its client's name. Adds texts that start with an option path to `mistakes`."""
    if not keys:
        mistakes.append("keys: must have at least one client")
    clients: dict[bytes, str] = {}
    for client, hashes in keys.items():
        if not client:
            mistakes.append("keys: a client's name is empty")
        if not hashes:
            mistakes.append(
                f"keys.{client}: the list of hashes is empty; to exclude a client, remove its name"
            )
            continue
        for index, text in enumerate([hashes] if isinstance(hashes, str) else hashes):
            path = f"keys.{client}" if isinstance(hashes, str) else f"keys.{client}[{index}]"
            match = _HASH.fullmatch(text)
            if match is None:
                mistakes.append(
                    f'{path}: expected "sha256:" and 64 hexadecimal digits; '
                    "`weirpool new-key` makes a key and its hash"
                )
                continue
            digest = bytes.fromhex(match[1])
            if digest in clients:
                mistakes.append(f"{path}: duplicate key: already assigned to {clients[digest]!r}")
            clients.setdefault(digest, client)
    return tuple(clients.items())


def _teams_by_client(
    teams: dict[str, list[str]], keys: dict[str, str | list[str]], mistakes: list[str]
) -> dict[str, str]:
    """Each client with its team. Adds texts that start with an option path to `mistakes`."""
    found: dict[str, str] = {}
    for team, clients in teams.items():
        if not team:
            mistakes.append("teams: a team's name is empty")
        for index, client in enumerate(clients):
            path = f"teams.{team}[{index}]"
            if client not in keys:
                mistakes.append(f"{path}: {client!r} is not a client of `keys`")
            elif client in found:
                mistakes.append(f"{path}: {client!r} is in the team {found[client]!r} already")
            found.setdefault(client, team)
    return found
