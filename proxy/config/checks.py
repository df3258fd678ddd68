"""What the schema alone cannot check: references between parts, and values with a grammar."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from ..errors import ConfigError
from ..http import DEFAULT_PORTS, is_target, parse_host
from ..upstream.endpoints import place_of
from ..upstream.origin import address_family, server_name, to_a_labels
from .schema import Config, Heartbeat, Limits, Reconnect, Retry, Timeouts

__all__ = ["convert", "endpoint_problem", "mistakes_of"]


def convert(tree: Any, kind: type[Any], path: str) -> Any:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        # msgspec says "message - at `$.a.b[2]`", "message - at `key` in `$.a`", or only "message" at the top.
        message, _, where = str(error).partition(" - at ")
        full = (path + where.removeprefix("`key` in ").strip("`").removeprefix("$")).lstrip(".")
        raise ConfigError(f"{full}: {message}" if full else message) from None


def mistakes_of(config: Config) -> Iterator[str]:
    """What only shows when the parts are seen together, and what a later version will support."""
    proxy = config.reverse_proxy
    upstreams: set[str] = set()
    for index, upstream in enumerate(proxy.upstreams):
        path = f"reverse_proxy.upstreams[{index}]"
        if upstream.name in upstreams:
            yield f"{path}.name: another upstream is called {upstream.name!r}"
        upstreams.add(upstream.name)
        places: set[str] = set()
        for number, endpoint in enumerate(upstream.endpoints):
            problem = endpoint_problem(endpoint)
            if problem is not None:
                yield f"{path}.endpoints[{number}]: {problem}"
            elif (place := place_of(httpx.URL(endpoint))) in places:
                yield f"{path}.endpoints[{number}]: this endpoint is listed twice"
            else:
                places.add(place)
        if upstream.ca_file is not None and not Path(upstream.ca_file).is_file():
            yield f"{path}.ca_file: there is no file {upstream.ca_file!r}"
        if upstream.tls_server_name is not None:
            problem = _server_name_problem(upstream.tls_server_name)
            if problem is None and not upstream.uses_tls:
                problem = "no endpoint of this upstream is https"
            if problem is not None:
                yield f"{path}.tls_server_name: {problem}"
        if parse_host(upstream.host) is None:
            yield f"{path}.host: expected upstream, preserve, or {_HOST_FORM}"
        lowered = [name.lower() for name in upstream.headers.set]
        for name, value in upstream.headers.set.items():
            if lowered.count(name.lower()) > 1:
                yield f"{path}.headers.set.{name}: this header is set twice"
            if not _TOKEN.fullmatch(name):
                yield f"{path}.headers.set: {name!r} is not a header name"
            elif name.lower() in _FRAMING:
                yield f"{path}.headers.set.{name}: this header belongs to the connection and cannot be set"
            elif not _is_field_value(value):
                yield f"{path}.headers.set.{name}: the value holds characters that a header cannot hold"
        for number, name in enumerate(upstream.headers.remove):
            if not _TOKEN.fullmatch(name):
                yield f"{path}.headers.remove[{number}]: {name!r} is not a header name"
            elif name.lower() in _FRAMING:
                yield f"{path}.headers.remove[{number}]: {name!r} belongs to the connection and cannot be removed"

    for number, host in enumerate(config.admin.hosts):
        if parse_host(host) is None:
            yield f"admin.hosts[{number}]: {_HOST_FORM}"

    names: set[str] = set()
    for index, entry in enumerate(config.interceptors):
        if entry.name in names:
            yield f"interceptors[{index}].name: another interceptor is called {entry.name!r}"
        names.add(entry.name)

    prefixes: set[str] = set()
    for index, route in enumerate(proxy.routes):
        path = f"reverse_proxy.routes[{index}]"
        if route.path in prefixes:
            yield f"{path}.path: another route has the path {route.path!r}"
        prefixes.add(route.path)
        if "?" in route.path or not is_target(route.path.encode()):
            yield f"{path}.path: {route.path!r} can match no request: it has to be ASCII without a space, ?, # or backslash"
        if route.upstream not in upstreams:
            yield f'{path}.upstream: no upstream is called "{route.upstream}"'
        for number, name in enumerate(route.interceptors):
            if name not in names:
                yield f'{path}.interceptors[{number}]: no interceptor is called "{name}"'
        for number, host in enumerate(route.allowed_hosts or ()):
            if parse_host(host) is None:
                yield f"{path}.allowed_hosts[{number}]: {_HOST_FORM}"
        for number, origin in enumerate(route.allowed_origins or ()):
            problem = _origin_problem(origin)
            if problem is not None:
                yield f"{path}.allowed_origins[{number}]: {problem}"
        kinds: tuple[tuple[str, type[Any], dict[str, Any]], ...] = (
            ("timeouts", Timeouts, route.timeouts),
            ("limits", Limits, route.limits),
            ("heartbeat", Heartbeat, route.heartbeat),
            ("reconnect", Reconnect, route.reconnect),
            ("retry", Retry, route.retry),
        )
        for key, kind, own in kinds:
            try:
                convert(own, kind, f"{path}.{key}")
            except ConfigError as error:
                yield from error.errors
            else:
                if "max_collected_bytes" in own:
                    yield f"{path}.limits.max_collected_bytes: holds for the whole worker, and belongs to reverse_proxy.limits"
                if key == "heartbeat" and own.get("early") and _is_early_for_nothing(config.heartbeat_of(route)):
                    yield f"{path}.heartbeat.early: nothing goes out without an interval"
                if key == "reconnect" and own and _backs_off_too_far(config.reconnect_of(route)):
                    yield f"{path}.reconnect.initial_backoff: more than max_backoff"

    if _is_early_for_nothing(proxy.heartbeat):
        yield "reverse_proxy.heartbeat.early: nothing goes out without an interval"
    if _backs_off_too_far(proxy.reconnect):
        yield "reverse_proxy.reconnect.initial_backoff: more than max_backoff"
    if proxy.health.max_eject < proxy.health.eject:
        yield f"reverse_proxy.health.max_eject: less than eject ({proxy.health.eject:g})"
    if proxy.health.check_path is not None and not _TARGET.fullmatch(proxy.health.check_path):
        yield "reverse_proxy.health.check_path: expected a path that begins with / and holds no space; percent-encode it"
    for index, network in enumerate(proxy.trusted_proxies):
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError as error:
            yield f"reverse_proxy.trusted_proxies[{index}]: {error}"


def _is_early_for_nothing(settings: Heartbeat) -> bool:
    return settings.early and settings.interval is None


def _backs_off_too_far(settings: Reconnect) -> bool:
    return settings.initial_backoff > settings.max_backoff


_TARGET = re.compile(r"/[!\"$-~]*")  # the same, with a query
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]*)([/?#]\S*)?")
_HOST_FORM = "a host name or address, with or without a port, such as api.example.com or [::1]:8000"
_FRAMING = frozenset(["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive"])


def _is_field_value(value: str) -> bool:
    """RFC 9110, section 5.5, as ASCII: visible characters, with spaces and tabs inside."""
    return value == value.strip() and all(0x20 <= ord(char) < 0x7F or char == "\t" for char in value)


def endpoint_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
        host = httpx.URL(url).raw_host.decode("ascii")
        if host and address_family(host) is None:
            to_a_labels(host)
    except (ValueError, httpx.InvalidURL):
        return "not a URL with a host that can be looked up: expected an address, or a name of letters, digits, - and _ (IDNA 2008)"
    if parts.username is not None or "?" in url or "#" in url or port == 0:
        return "an endpoint is a scheme, a host, a port and a path, and nothing else (a credential belongs into headers.set)"
    if parts.scheme not in ("http", "https") or not host or url != url.strip():
        return f"{url!r} is not an http:// or https:// URL"
    if not re.fullmatch(r"[\x21-\x7e]*", parts.path):
        return f"{url!r} has a path that cannot be sent; percent-encode it"
    return None


def _server_name_problem(name: str) -> str | None:
    try:
        server_name(name)
    except ValueError:
        return (
            f"{name!r} is neither a host name nor an address: expected one such as backend.example, without scheme and port"
        )
    return None


def _origin_problem(origin: str) -> str | None:
    """Why no request can have this `Origin` (RFC 6454, section 6.2: what a browser writes has no path, and no default port)."""
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
