"""Where a command finds a proxy's admin pages, from `--url` and `--token`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

__all__ = ["CONNECT_S", "TOKEN_VARIABLE", "Place", "read_place"]

TOKEN_VARIABLE = "WEIRPOOL_ADMIN_TOKEN"

CONNECT_S = 5.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PAGES = (
    "/status",
    "/status/stream",
    "/dashboard",
    "/metrics",
    "/inspect",
    "/inspect/stream",
)


@dataclass(frozen=True, slots=True)
class Place:
    """A proxy, and how to ask it."""

    url: str
    """Of the admin pages, without a slash at the end."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_local: bool = False

    def options(self, silence_s: float) -> dict[str, Any]:
        """Settings of an httpx client. `silence_s`: how long the proxy may send nothing."""
        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        # A proxy of the environment cannot reach this machine's loopback.
        return {"headers": self.headers, "timeout": timeout, "trust_env": not self.is_local}


def read_place(url: str, token: str | None) -> Place:
    """Return the place of a `--url`. Raises `ValueError`."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"--url: {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"--url: {url!r} is not a URL such as http://127.0.0.1:9000")
    if "@" in parts.netloc:
        raise ValueError("--url: a user name or password is not supported: use --token")
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("--token: must be visible ASCII characters, without spaces")
    path = parts.path.rstrip("/")
    for page in sorted(_PAGES, key=len, reverse=True):
        if path.endswith(page):
            path = path.removesuffix(page)
            break
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return Place(f"{parts.scheme}://{parts.netloc}{path}", headers, host in _LOOPBACK)
