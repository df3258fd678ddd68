"""Where a route stands between its clients and its upstream: the client's view of the URL references that the upstream sends.

Sans I/O. It knows no header, no event and no exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from interceptors.paths import normal_path

__all__ = ["Place", "resolved"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a route stands between its clients and its upstream: what turns the upstream's references into the client's."""

    prefix: str
    """The route's, without a slash at its end."""
    strip_prefix: bool
    base: str
    """The endpoint's own path, without a slash at its end."""
    authorities: frozenset[str]
    """How the upstream may call itself, in lower case: its URL's host and port, and the Host header that it gets."""

    def client_view(self, reference: str, *, path: str, host: str) -> str:
        """A URL reference of the upstream's, such that a client that resolves it comes to this route and so to the same resource.

        `path`: what the client asked for; `host`: its Host header, for an upstream that has been told it. What resolves rightly
        already, another origin, and what no request on this route can reach stay as they are.
        """
        try:
            parts = urlsplit(reference)
            authority = parts.netloc.lower()
        except ValueError:
            return reference
        absolute = bool(parts.scheme or parts.netloc)
        if absolute and (parts.scheme not in ("", "http", "https") or authority not in self.authorities | {host.lower()}):
            return reference
        upstream_path = self.base + (path[len(self.prefix) :] or "/" if self.strip_prefix else path)
        path_of_it = parts.path or ("/" if absolute else "")
        target = resolved(upstream_path, parts._replace(scheme="", netloc="", path=path_of_it).geturl())
        if not target.startswith(self.base + "/"):
            return reference
        target = target[len(self.base) :]
        if self.strip_prefix:
            target = self.prefix + target
        if target.startswith("//") or not _under(self.prefix, target):  # another host's, for a client; another route's
            return reference
        return reference if not absolute and resolved(path, reference) == target else target


def resolved(path: str, reference: str) -> str:
    """What a reference without an origin means in a document at that path (RFC 3986, section 5.2)."""
    origin = "http://h"
    return urljoin(origin + path, reference).removeprefix(origin)


def _under(prefix: str, target: str) -> bool:
    path = normal_path(target.partition("?")[0].encode("utf-8", "replace"))
    return path.startswith(prefix.encode()) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")
