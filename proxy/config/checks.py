"""What the schema alone cannot check: names and references between parts, and values with a
grammar.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from interceptors.paths import normal_path
from interceptors.tokens import is_token
from interceptors.values import Mistake, nearest

from ..http import DEFAULT_PORTS, is_target, parse_host
from ..upstream.endpoints import place_of
from ..upstream.origin import address_family, server_name, to_a_labels
from .schema import Config, Heartbeat, Reconnect, Upstream

__all__ = ["endpoint_problem", "mistakes_of", "warnings_of"]

_OWN_PAGES = ("/metrics", "/healthz", "/readyz", "/status")


def mistakes_of(config: Config, bad: Collection[str] = ()) -> Iterator[Mistake]:
    """What only shows when the parts are seen together. `bad`: paths where a stand-in stands for a
    value that is wrong.
    """
    proxy = config.reverse_proxy
    upstreams: dict[str, int] = {}
    for index, upstream in enumerate(proxy.upstreams):
        path = f"reverse_proxy.upstreams[{index}]"
        if upstream.name in upstreams:
            yield Mistake(
                f"{path}.name", f"another upstream is called {upstream.name!r}", shows_value=False
            )
        upstreams.setdefault(upstream.name, index)
        yield from _mistakes_of_upstream(upstream, path)

    for number, host in enumerate(config.admin.hosts):
        if parse_host(host) is None:
            yield Mistake(f"admin.hosts[{number}]", f"must be {_HOST_FORM}")

    names: dict[str, int] = {}
    for index, entry in enumerate(config.interceptors):
        if entry.name in names:
            yield Mistake(
                f"interceptors[{index}].name",
                f"another interceptor is called {entry.name!r}",
                shows_value=False,
            )
        names.setdefault(entry.name, index)

    has_all_upstreams = not _any_below(bad, "reverse_proxy.upstreams", ".name")
    has_all_names = not _any_below(bad, "interceptors", ".name")
    prefixes: dict[bytes, str] = {}
    for index, route in enumerate(proxy.routes):
        path = f"reverse_proxy.routes[{index}]"
        if "?" in route.path or not is_target(route.path.encode()):
            yield Mistake(
                f"{path}.path",
                "can match no request: it must be ASCII without a space, ?, # or backslash",
            )
        elif (prefix := normal_path(route.path.encode())) in prefixes:
            yield Mistake(f"{path}.path", f"another route has the path {prefixes[prefix]!r}")
        else:
            prefixes[prefix] = route.path
        if route.upstream not in upstreams and (
            has_all_upstreams or nearest(route.upstream, upstreams)
        ):
            yield _unknown(f"{path}.upstream", "upstream", route.upstream, upstreams)
        for number, name in enumerate(route.interceptors):
            if name not in names and (has_all_names or nearest(name, names)):
                yield _unknown(f"{path}.interceptors[{number}]", "interceptor", name, names)
        for number, host in enumerate(route.allowed_hosts or ()):
            if parse_host(host) is None:
                yield Mistake(f"{path}.allowed_hosts[{number}]", f"must be {_HOST_FORM}")
        for number, origin in enumerate(route.allowed_origins or ()):
            problem = _origin_problem(origin)
            if problem is not None:
                yield Mistake(f"{path}.allowed_origins[{number}]", problem, shows_value=False)
        if "max_collected_bytes" in route.limits:
            worker_wide = "holds for the whole worker, and belongs to reverse_proxy.limits"
            yield Mistake(f"{path}.limits.max_collected_bytes", worker_wide, shows_value=False)
        if route.heartbeat.get("early") and _is_early_for_nothing(config.heartbeat_of(route)):
            yield Mistake(f"{path}.heartbeat.early", "requires heartbeat.interval")
        if route.reconnect and _backs_off_too_far(config.reconnect_of(route)):
            yield Mistake(f"{path}.reconnect.initial_backoff", "must not be more than max_backoff")

    if _is_early_for_nothing(proxy.heartbeat):
        yield Mistake("reverse_proxy.heartbeat.early", "requires heartbeat.interval")
    if _backs_off_too_far(proxy.reconnect):
        yield Mistake(
            "reverse_proxy.reconnect.initial_backoff", "must not be more than max_backoff"
        )
    if proxy.health.max_eject < proxy.health.eject:
        yield Mistake(
            "reverse_proxy.health.max_eject",
            f"must not be less than eject ({proxy.health.eject:g})",
        )
    if proxy.health.check_path is not None and not _TARGET.fullmatch(proxy.health.check_path):
        is_close = _TARGET.fullmatch(f"/{proxy.health.check_path}")
        yield Mistake(
            "reverse_proxy.health.check_path",
            'must start with "/" and hold no space: percent-encode it',
            f'did you mean "/{proxy.health.check_path}"?' if is_close else "",
        )
    for index, network in enumerate(proxy.trusted_proxies):
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            yield Mistake(
                f"reverse_proxy.trusted_proxies[{index}]",
                "must be an address or a network, such as 10.0.0.1 or 10.0.0.0/8",
            )


def warnings_of(config: Config, bad: Collection[str] = ()) -> Iterator[Mistake]:
    """What is probably not meant. `bad`: paths where a stand-in stands for a value that is wrong."""
    proxy = config.reverse_proxy
    are_routes_right = not any(
        item == "reverse_proxy" or item.startswith("reverse_proxy.routes") for item in bad
    )
    used = {name for route in proxy.routes for name in route.interceptors}
    # A name that nothing has is probably that of an entry which would seem unused.
    is_complete = are_routes_right and used <= {entry.name for entry in config.interceptors}
    for index, entry in enumerate(config.interceptors):
        if entry.name not in used and is_complete:
            yield Mistake(
                f"interceptors[{index}]",
                f"no route uses the interceptor {entry.name!r}",
                shows_value=False,
            )
    asked = {route.upstream for route in proxy.routes}
    is_complete = are_routes_right and asked <= {upstream.name for upstream in proxy.upstreams}
    for index, upstream in enumerate(proxy.upstreams):
        if upstream.name not in asked and is_complete:
            yield Mistake(
                f"reverse_proxy.upstreams[{index}]",
                f"no route uses the upstream {upstream.name!r}",
                shows_value=False,
            )
    paths = {normal_path(route.path.encode()): route.path for route in proxy.routes}
    pages = (
        {config.admin.prefix + page for page in _OWN_PAGES} if config.admin.port is None else set()
    )
    for index, route in enumerate(proxy.routes):
        for number, name in enumerate(route.interceptors):
            if name in route.interceptors[:number]:
                where = f"reverse_proxy.routes[{index}].interceptors[{number}]"
                yield Mistake(where, f"{name!r} is listed twice, and runs twice", shows_value=False)
        path, own = f"reverse_proxy.routes[{index}].path", normal_path(route.path.encode())
        if not own.endswith(b"/") and own + b"/" in paths:
            other = paths[own + b"/"]
            yield Mistake(
                path,
                f"the route {other!r} shadows this one: only requests for {route.path!r} itself come here",
            )
        if own.decode("latin-1") in pages:
            yield Mistake(
                path,
                "a page of the proxy's own shadows this path",
                "set admin.port or admin.prefix to move the pages",
            )


def _mistakes_of_upstream(upstream: Upstream, path: str) -> Iterator[Mistake]:
    places: set[str] = set()
    for number, endpoint in enumerate(upstream.endpoints):
        problem = endpoint_problem(endpoint)
        if problem is not None:
            yield Mistake(
                f"{path}.endpoints[{number}]", problem, shows_value=False
            )  # it may hold a credential
        elif (place := place_of(httpx.URL(endpoint))) in places:
            yield Mistake(
                f"{path}.endpoints[{number}]", "this endpoint is listed twice", shows_value=False
            )
        else:
            places.add(place)
    if upstream.ca_file is not None:
        if not Path(upstream.ca_file).is_file():
            yield Mistake(
                f"{path}.ca_file", f"there is no file {upstream.ca_file!r}", shows_value=False
            )
        else:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(upstream.ca_file)
            except OSError as error:  # ssl.SSLError is one
                yield Mistake(f"{path}.ca_file", f"must be a file of certificates in PEM: {error}")
    if upstream.tls_server_name is not None:
        problem = _server_name_problem(upstream.tls_server_name)
        if problem is None and not upstream.uses_tls:
            problem = "no endpoint of this upstream is https"
        if problem is not None:
            yield Mistake(f"{path}.tls_server_name", problem)
    if parse_host(upstream.host) is None:
        yield Mistake(f"{path}.host", f"must be upstream, preserve, or {_HOST_FORM}")
    lowered = [name.lower() for name in upstream.headers.set]
    for name, value in upstream.headers.set.items():
        where = f"{path}.headers.set.{name}"
        if lowered.count(name.lower()) > 1:
            yield Mistake(where, "this header is set twice", shows_value=False)
        if not is_token(name):
            yield Mistake(where, f"{name!r} is not a header name", shows_value=False)
        elif name.lower() in _FRAMING:
            yield Mistake(
                where, "this header belongs to the connection and cannot be set", shows_value=False
            )
        elif not _is_field_value(value):
            yield Mistake(
                where, "the value holds characters that a header cannot hold", shows_value=False
            )
    for number, name in enumerate(upstream.headers.remove):
        if not is_token(name):
            yield Mistake(
                f"{path}.headers.remove[{number}]",
                f"{name!r} is not a header name",
                shows_value=False,
            )
        elif name.lower() in _FRAMING:
            yield Mistake(
                f"{path}.headers.remove[{number}]",
                f"{name!r} belongs to the connection and cannot be removed",
                shows_value=False,
            )


def _unknown(path: str, what: str, name: str, known: Collection[str]) -> Mistake:
    near = nearest(name, known)
    listed = ", ".join(f'"{item}"' for item in known)
    hint = (
        f'did you mean "{near}"?'
        if near is not None
        else f"there is {listed}"
        if known
        else "there is none"
    )
    return Mistake(path, f'no {what} is called "{name}"', hint, shows_value=False)


def _any_below(bad: Collection[str], path: str, end: str) -> bool:
    """Whether a list, an entry of it, or what ends so in an entry, is wrong."""
    parent = path.rpartition(".")[0]
    entry = re.compile(rf"{re.escape(path)}(\[\d+\]({re.escape(end)})?)?")
    return any(entry.fullmatch(item) or item == parent for item in bad)


def _is_early_for_nothing(settings: Heartbeat) -> bool:
    return settings.early and settings.interval is None


def _backs_off_too_far(settings: Reconnect) -> bool:
    return settings.initial_backoff > settings.max_backoff


_TARGET = re.compile(r"/[!\"$-~]*")  # visible ASCII but for #
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]*)([/?#]\S*)?")
_HOST_FORM = "a host name or address, with or without a port, such as api.example.com or [::1]:8000"
_FRAMING = frozenset(
    [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
    ]
)


def _is_field_value(value: str) -> bool:
    """RFC 9110, section 5.5, as ASCII: visible characters, with spaces and tabs inside."""
    return value == value.strip() and all(
        0x20 <= ord(char) < 0x7F or char == "\t" for char in value
    )


def endpoint_problem(url: str) -> str | None:
    shown = repr(url) if "@" not in url else "this"  # a credential goes into no message
    try:
        parts = urlsplit(url)
        port = re.search(r":([0-9]+)$", parts.netloc)
        if port is not None and not 0 < int(port[1][:9]) < 65536:
            return "the port must be from 1 to 65535"
        host = httpx.URL(url).raw_host.decode("ascii")
        if host and address_family(host) is None:
            to_a_labels(host)
    except (ValueError, httpx.InvalidURL):
        return "not a URL with a host that can be looked up: expected an address, or a name of letters, digits, - and _ (IDNA 2008)"
    if parts.username is not None or "?" in url or "#" in url:
        return "an endpoint is a scheme, a host, a port and a path, and nothing else (a credential belongs in headers.set)"
    if parts.scheme not in ("http", "https") or not host or url != url.strip():
        lacks_scheme = not re.search("://|@", url) and endpoint_problem(f"http://{url}") is None
        hint = f': did you mean "http://{url}"?' if lacks_scheme else ""
        return f"{shown} is not an http:// or https:// URL{hint}"
    if not re.fullmatch(r"[\x21-\x7e]*", parts.path):
        return f"{shown} has a path that cannot be sent; percent-encode it"
    return None


def _server_name_problem(name: str) -> str | None:
    try:
        server_name(name)
    except ValueError:
        return f"{name!r} is neither a host name nor an address: expected one such as backend.example, without scheme and port"
    return None


def _origin_problem(origin: str) -> str | None:
    """Why no request can have this `Origin` (RFC 6454, section 6.2: what a browser writes has no
    path, and no default port).
    """
    if origin.lower() == "null":
        return None
    if "*" in origin:
        return "an origin is compared whole, without wildcards: list each, or leave allowed_origins out to allow all"
    found = _ORIGIN.fullmatch(origin)
    problem = "expected an origin as browsers send it, such as https://app.example.com or http://localhost:3000, or null"
    if found is None:
        return problem
    scheme, authority, path = found[1].lower(), found[2].lower(), found[3]
    written = f"{scheme}://{authority}"
    if scheme in DEFAULT_PORTS:
        try:
            url = httpx.URL(written)
        except (ValueError, httpx.InvalidURL):
            return problem
        if not url.host:
            return problem
        written = f"{scheme}://{url.netloc.decode('ascii')}"
    if path is not None or written != origin.lower():
        return f"browsers send an origin without a path and without its scheme's own port, and names in ASCII: write {written!r}"
    return None
