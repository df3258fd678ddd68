"""Where the store is: the URL of `store.url`, parsed once. Knows no client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Address", "address_of", "address_problem"]

_SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True, "unix": False}
_FORMS = "valkey://[user:password@]host[:port][/database], valkeys:// for TLS, or unix:///path"


@dataclass(frozen=True, slots=True)
class Address:
    """A server of Valkey or Redis."""

    host: str
    """Empty for a Unix socket."""
    port: int
    path: str
    """The Unix socket; empty for TCP."""
    tls: bool
    database: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The server, without credentials, for logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix://{self.path}" if self.path else f"{host}:{self.port}"


def address_of(url: str) -> Address:
    """Parse a URL. Raises `ValueError` with what is wrong, without a part of the URL, which can hold
    a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"must be {_FORMS}") from error
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"must be {_FORMS}")
    database = parts.path.strip("/")
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        if parts.hostname or not parts.path.startswith("/"):
            raise ValueError("must have an absolute path: unix:///run/valkey.sock")
    elif not parts.hostname:
        raise ValueError(f"has no host: must be {_FORMS}")
    elif parts.query or parts.fragment:
        raise ValueError(f"must have no query and no fragment: {_FORMS}")
    if not (database or "0").isdecimal():
        raise ValueError("the database must be a whole number, such as valkey://host/1")
    is_unix = parts.scheme == "unix"
    return Address(
        host="" if is_unix else parts.hostname or "",
        port=port or 6379,
        path=unquote(parts.path) if is_unix else "",
        tls=_SCHEMES[parts.scheme],
        database=int(database or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def address_problem(url: str) -> str | None:
    """What is wrong with a URL, or None."""
    try:
        address_of(url)
    except ValueError as error:
        return str(error)
    return None
