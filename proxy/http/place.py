"""How a route maps the upstream's URL references to the client's. Sans I/O.

It knows paths, prefixes and authorities, but no header, no event and no exchange.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from interceptors.paths import normal_path, without_dots

from .target import DEFAULT_PORTS, parse_host

__all__ = ["ClientSide", "Place"]

_REFERENCE = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*+))?([^?#]*+)(.*)", re.DOTALL
)  # RFC 3986, appendix B


@dataclass(frozen=True, slots=True)
class ClientSide:
    """How the client of one request reaches this proxy."""

    path: str
    """The path that the client requests."""
    hosts: tuple[str, ...]
    """Host headers received and sent: the server may use any of them as its own name."""
    asked: str | None = None
    """The path after interceptors have changed it; None for `path`."""
    origin: str | None = None
    """Scheme and host of the client's URL, for absolute references; None if unknown."""
    outer: str = ""
    """The prefix that trusted proxies have stripped, without a slash at its end."""


@dataclass(frozen=True, slots=True)
class Place:
    """One route to one endpoint: maps the endpoint's references to the client's."""

    prefix: str
    """The route's prefix, without a slash at its end."""
    strip_prefix: bool
    base: str
    """The endpoint's own path, without a slash at its end."""
    authorities: frozenset[str]
    """Names that the upstream may use for itself, in lower case: its URL's host and port, and the
    Host header that it receives.
    """

    def client_view(self, reference: str, *, path: str, host: str) -> str:
        """A URL reference rewritten so that the client reaches the same resource on this route.

        `path`: the path that the client requested; `host`: its Host header, which the upstream may
        have received. A reference is unchanged if it is correct already, names another origin, or
        cannot be reached by a request on this route.
        """
        target = self._local_target(reference, ClientSide(path, (host,)), exact=True)
        if target is None or _leaves_host(target) or not _under(self.prefix, target):
            return reference
        return (
            reference
            if _is_relative(reference) and _resolved(path, reference) == target
            else target
        )

    def public_reference(self, reference: str, client: ClientSide) -> str:
        """The reference for a response header, with which the client reaches the same resource
        through this proxy.

        An absolute URL of the upstream's origin becomes a path, and so does a path that the client
        would resolve to another resource. Anything else is unchanged: a correct reference, another
        origin, and what no request can reach.
        """
        target = self._local_target(reference, client)
        if target is None:
            return reference
        if _is_relative(reference):
            if reference.startswith("/") and not self.strip_prefix and not self.base:
                return reference
            if _resolved(client.outer + client.path, reference) == client.outer + target:
                return reference
        public = client.outer + target
        if _is_url_of(reference, client.origin, public):
            return reference
        if _leaves_host(public):  # the client would read the path as another host's URL
            return reference if client.origin is None else client.origin + public
        return public

    def public_url(self, reference: str, client: ClientSide) -> str:
        """As `public_reference`, but as an absolute URL with the client's scheme and host."""
        target = self._local_target(reference, client) if reference else None
        if (
            target is None
            or client.origin is None
            or _is_url_of(reference, client.origin, client.outer + target)
        ):
            return reference
        return client.origin + client.outer + target

    def _local_target(
        self, reference: str, client: ClientSide, *, exact: bool = False
    ) -> str | None:
        """The path, query and fragment under which this proxy serves a reference; None if it does
        not.

        An endpoint's own path can be reached only with a slash at its end. `exact`: None for a
        reference without that slash.
        """
        scheme, authority, path, rest = _parts(reference)
        if scheme or authority is not None:
            if scheme not in ("", *DEFAULT_PORTS) or not self._is_own(authority, scheme, client):
                return None
            path = path or "/"
        target: str | None
        if path.startswith("/"):
            path = without_dots(path)
            target = self._from_server_with_prefix(path, client.outer) or self._from_server(
                path, exact=exact
            )
        else:
            asked = client.path if client.asked is None else client.asked
            server_path = self.base + (
                asked[len(self.prefix) :] or "/" if self.strip_prefix else asked
            )
            target = self._from_server(_merged(server_path, path), exact=exact)
        if target is None or (
            self.strip_prefix and not _under(self.prefix, target)
        ):  # %2e%2e leads out of it
            return None
        return target + rest

    def _from_server_with_prefix(self, path: str, outer: str) -> str | None:
        """The path at this proxy of a path with the stripped prefix, which the server may know from
        X-Forwarded-Prefix; None for other paths.
        """
        known = self.prefix if self.strip_prefix else ""
        if outer and _starts(path, outer + known):
            path = path[len(outer) :]
        elif not known or not _starts(path, known):
            return None
        own = path[len(known) :]
        return known + (own[len(self.base) :] if _starts(own, self.base) else own) or "/"

    def _from_server(self, path: str, *, exact: bool) -> str | None:
        """The path at this proxy of a path at the endpoint; None if no request can reach it."""
        if not _starts(path, self.base) or (exact and self.base and path == self.base):
            return None
        path = path[len(self.base) :]
        return (self.prefix + path if self.strip_prefix else path) or "/"

    def _is_own(self, authority: str | None, scheme: str, client: ClientSide) -> bool:
        """Whether an authority is a name of the upstream, or one that the client has used."""
        named = parse_host(authority or "")
        if named is None:
            return False
        implied = {DEFAULT_PORTS[scheme]} if scheme else set(DEFAULT_PORTS.values())
        ports = implied if named.port is None else {named.port}
        for item in (*self.authorities, *client.hosts):
            own = parse_host(item)
            if (
                own is not None
                and own.name == named.name
                and not ports.isdisjoint(implied if own.port is None else {own.port})
            ):
                return True
        return False


def _resolved(path: str, reference: str) -> str:
    """The target of a relative reference in a document at `path` (RFC 3986, section 5.2)."""
    if not _is_relative(reference):
        return reference
    _, _, own, rest = _parts(reference)
    return _merged(path, own) + rest


def _parts(reference: str) -> tuple[str, str | None, str, str]:
    """Scheme in lower case, authority (None without `//`), path, and query with fragment."""
    match = _REFERENCE.fullmatch(reference)
    assert match is not None
    return (match[1] or "").lower(), match[2], match[3], match[4]


def _is_relative(reference: str) -> bool:
    scheme, authority, _, _ = _parts(reference)
    return not scheme and authority is None


def _is_url_of(reference: str, origin: str | None, target: str) -> bool:
    """Whether an absolute URL is this target at this origin."""
    if origin is None:
        return False
    scheme, authority, path, rest = _parts(reference)
    its_scheme, its_authority, _, _ = _parts(origin)
    return (
        scheme == its_scheme
        and parse_host(authority or "") == parse_host(its_authority or "")
        and path + rest == target
    )


def _merged(path: str, relative: str) -> str:
    """A relative path resolved in a document at `path` (RFC 3986, section 5.2.3)."""
    if not relative:
        return path
    return without_dots(
        relative if relative.startswith("/") else path[: path.rfind("/") + 1] + relative
    )


def _starts(path: str, prefix: str) -> bool:
    """Whether a path lies under a prefix, by whole segments."""
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")


def _leaves_host(target: str) -> bool:
    """Whether clients read a path as a reference to another host: browsers drop tabs and line ends,
    and read a backslash as a slash (WHATWG URL, "basic URL parser").
    """
    return re.match(r"/[\t\r\n]*[/\\]", target) is not None


def _under(prefix: str, target: str) -> bool:
    path = normal_path(_parts(target)[2].encode("utf-8", "replace"))
    return path.startswith(prefix.encode()) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")
