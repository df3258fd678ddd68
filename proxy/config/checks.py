"""Checks that types cannot express: names, references between sections, values with a grammar.

Each check yields `Mistake`s. `bad` names the paths whose value was wrong already and was replaced
by a stand-in: no check reports a consequence of a stand-in.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import httpx

from interceptors.paths import normal_path
from interceptors.values import Mistake, nearest

from ..store import address_problem
from ..upstream.origin import place_of
from .grammar import (
    endpoint_problem,
    header_name_problem,
    header_value_problem,
    host_problem,
    id_header_problem,
    is_check_path,
    network_problem,
    origin_problem,
    prefix_problem,
    server_name_problem,
)
from .schema import Config, HeaderRules, Heartbeat, Reconnect, Route, Upstream

__all__ = ["mistakes_of", "warnings_of"]


def mistakes_of(config: Config, bad: Collection[str] = ()) -> Iterator[Mistake]:
    """Yield the errors of a configuration whose types are right."""
    proxy = config.reverse_proxy
    yield from _repeated(
        [item.name for item in proxy.upstreams], "reverse_proxy.upstreams", "upstream"
    )
    for index, upstream in enumerate(proxy.upstreams):
        yield from _of_upstream(upstream, f"reverse_proxy.upstreams[{index}]")
    yield from _hosts(config.admin.hosts, "admin.hosts")
    if config.admin.inspect and config.admin.token is None and config.admin.port is None:
        yield Mistake(
            "admin.inspect",
            "shows what clients and upstreams send, but everybody can reach the pages",
            "set admin.token, such as ${WEIRPOOL_ADMIN_TOKEN}, or admin.port",
        )
    yield from _repeated([item.name for item in config.interceptors], "interceptors", "interceptor")
    yield from _of_paths(proxy.routes)
    yield from _of_names(config, bad)
    for index, route in enumerate(proxy.routes):
        yield from _of_route(config, route, f"reverse_proxy.routes[{index}]")
    yield from _heartbeat(proxy.heartbeat, "reverse_proxy")
    yield from _backoff(proxy.reconnect, "reverse_proxy")
    yield from _of_health(config)
    yield from _of_store(config)
    name = config.log.request_id_header
    if name is not None and (problem := id_header_problem(name)):
        yield Mistake("log.request_id_header", problem)
    for index, network in enumerate(proxy.trusted_proxies):
        if problem := network_problem(network):
            yield Mistake(f"reverse_proxy.trusted_proxies[{index}]", problem)


def _repeated(names: Sequence[str], path: str, noun: str) -> Iterator[Mistake]:
    for index, name in enumerate(names):
        if name in names[:index]:
            problem = f"another {noun} has the name {name!r}"
            yield Mistake(f"{path}[{index}].name", problem, shows_value=False)


def _of_paths(routes: Sequence[Route]) -> Iterator[Mistake]:
    prefixes: dict[bytes, str] = {}
    for index, route in enumerate(routes):
        path = f"reverse_proxy.routes[{index}].path"
        if problem := prefix_problem(route.path):
            yield Mistake(path, problem)
        elif (prefix := normal_path(route.path.encode())) in prefixes:
            yield Mistake(path, f"another route has the path {prefixes[prefix]!r}")
        else:
            prefixes[prefix] = route.path


def _of_names(config: Config, bad: Collection[str]) -> Iterator[Mistake]:
    """Routes must name upstreams and interceptors that exist."""
    upstreams = [item.name for item in config.reverse_proxy.upstreams]
    interceptors = [item.name for item in config.interceptors]
    # A name may be that of an entry whose own name is wrong: then only a close misspelling counts.
    has_all_upstreams = not _any_below(bad, "reverse_proxy.upstreams", ".name")
    has_all_interceptors = not _any_below(bad, "interceptors", ".name")
    for index, route in enumerate(config.reverse_proxy.routes):
        path, name = f"reverse_proxy.routes[{index}]", route.upstream
        if name not in upstreams and (has_all_upstreams or nearest(name, upstreams)):
            yield _unknown(f"{path}.upstream", "upstream", name, upstreams)
        for number, name in enumerate(route.interceptors):
            if name not in interceptors and (has_all_interceptors or nearest(name, interceptors)):
                yield _unknown(f"{path}.interceptors[{number}]", "interceptor", name, interceptors)


def _of_route(config: Config, route: Route, path: str) -> Iterator[Mistake]:
    yield from _hosts(route.allowed_hosts or (), f"{path}.allowed_hosts")
    for number, origin in enumerate(route.allowed_origins or ()):
        if problem := origin_problem(origin):
            yield Mistake(f"{path}.allowed_origins[{number}]", problem, shows_value=False)
    if "max_collected_bytes" in route.limits:
        problem = "applies to the whole worker and belongs under reverse_proxy.limits"
        yield Mistake(f"{path}.limits.max_collected_bytes", problem, shows_value=False)
    if route.heartbeat.get("early"):
        yield from _heartbeat(config.heartbeat_of(route), path)
    if route.reconnect:
        yield from _backoff(config.reconnect_of(route), path)


def _of_health(config: Config) -> Iterator[Mistake]:
    health = config.reverse_proxy.health
    if health.max_eject < health.eject:
        problem = f"must not be less than eject ({health.eject:g})"
        yield Mistake("reverse_proxy.health.max_eject", problem)
    path = health.check_path
    if path is not None and not is_check_path(path):
        yield Mistake(
            "reverse_proxy.health.check_path",
            'must start with "/" and have no space: percent-encode it',
            f'did you mean "/{path}"?' if is_check_path(f"/{path}") else "",
        )


def _of_store(config: Config) -> Iterator[Mistake]:
    store = config.store
    if store.url is not None and (problem := address_problem(store.url)):
        yield Mistake("store.url", problem, shows_value=False)  # it may have a password
    if store.ca_file is not None and store.url is not None:
        yield from _ca_file(store.ca_file, "store.ca_file")
    for name in ("username", "password", "ca_file"):
        if store.url is None and getattr(store, name) is not None:
            yield Mistake(f"store.{name}", "requires store.url", shows_value=False)


def _of_upstream(upstream: Upstream, path: str) -> Iterator[Mistake]:
    yield from _endpoints(upstream, path)
    if upstream.ca_file is not None:
        yield from _ca_file(upstream.ca_file, f"{path}.ca_file")
    if upstream.tls_server_name is not None:
        problem = server_name_problem(upstream.tls_server_name)
        if problem is None and not upstream.uses_tls:
            problem = "no endpoint of this upstream is https"
        if problem is not None:
            yield Mistake(f"{path}.tls_server_name", problem)
    if problem := host_problem(upstream.host, "upstream, preserve, or "):
        yield Mistake(f"{path}.host", problem)
    yield from _header_rules(upstream.headers, f"{path}.headers")


def _endpoints(upstream: Upstream, path: str) -> Iterator[Mistake]:
    places: set[str] = set()
    for number, endpoint in enumerate(upstream.endpoints):
        where, problem = f"{path}.endpoints[{number}]", endpoint_problem(endpoint)
        if problem is not None:
            yield Mistake(where, problem, shows_value=False)  # it may have a credential
        elif (place := place_of(httpx.URL(endpoint))) in places:
            yield Mistake(where, "this endpoint is listed twice", shows_value=False)
        else:
            places.add(place)


def _ca_file(file: str, path: str) -> Iterator[Mistake]:
    if not Path(file).is_file():
        yield Mistake(path, f"there is no file {file!r}", shows_value=False)
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:  # ssl.SSLError is one
        yield Mistake(path, f"must be a file of PEM certificates: {error}")


def _header_rules(rules: HeaderRules, path: str) -> Iterator[Mistake]:
    lowered = [name.lower() for name in rules.set]
    for name, value in rules.set.items():
        where = f"{path}.set.{name}"
        if lowered.count(name.lower()) > 1:
            yield Mistake(where, "this header is set twice", shows_value=False)
        if problem := header_name_problem(name, "set") or header_value_problem(value):
            yield Mistake(where, problem, shows_value=False)
    for number, name in enumerate(rules.remove):
        if problem := header_name_problem(name, "removed"):
            yield Mistake(f"{path}.remove[{number}]", problem, shows_value=False)


def _hosts(hosts: Collection[str], path: str) -> Iterator[Mistake]:
    for number, host in enumerate(hosts):
        if problem := host_problem(host):
            yield Mistake(f"{path}[{number}]", problem)


def _heartbeat(settings: Heartbeat, path: str) -> Iterator[Mistake]:
    if settings.early and settings.interval is None:
        yield Mistake(f"{path}.heartbeat.early", "requires heartbeat.interval")


def _backoff(settings: Reconnect, path: str) -> Iterator[Mistake]:
    if settings.initial_backoff > settings.max_backoff:
        yield Mistake(f"{path}.reconnect.initial_backoff", "must not be more than max_backoff")


def _unknown(path: str, noun: str, name: str, known: Collection[str]) -> Mistake:
    near = nearest(name, known)
    if near is not None:
        hint = f'did you mean "{near}"?'
    elif known:
        hint = "there is " + ", ".join(f'"{item}"' for item in dict.fromkeys(known))
    else:
        hint = "there is none"
    return Mistake(path, f'no {noun} has the name "{name}"', hint, shows_value=False)


def _any_below(bad: Collection[str], path: str, end: str) -> bool:
    """Whether a list, one of its entries, or the key `end` of an entry is wrong."""
    parent = path.rpartition(".")[0]
    entry = re.compile(rf"{re.escape(path)}(\[\d+\]({re.escape(end)})?)?")
    return any(entry.fullmatch(item) or item == parent for item in bad)


def warnings_of(config: Config, bad: Collection[str] = ()) -> Iterator[Mistake]:
    """Yield what is valid but probably not intended."""
    yield from _unused(config, bad)
    for index, route in enumerate(config.reverse_proxy.routes):
        for number, name in enumerate(route.interceptors):
            if name in route.interceptors[:number]:
                where = f"reverse_proxy.routes[{index}].interceptors[{number}]"
                problem = f"{name!r} is listed twice and runs twice"
                yield Mistake(where, problem, shows_value=False)
    yield from _shadowed(config)


def _unused(config: Config, bad: Collection[str]) -> Iterator[Mistake]:
    """Interceptors and upstreams without a route."""
    proxy = config.reverse_proxy
    if any(item == "reverse_proxy" or item.startswith("reverse_proxy.routes") for item in bad):
        return
    for path, noun, names, used in (
        (
            "interceptors",
            "interceptor",
            [entry.name for entry in config.interceptors],
            {name for route in proxy.routes for name in route.interceptors},
        ),
        (
            "reverse_proxy.upstreams",
            "upstream",
            [upstream.name for upstream in proxy.upstreams],
            {route.upstream for route in proxy.routes},
        ),
    ):
        # An unknown name is probably a misspelling of an entry that would seem unused.
        if used <= set(names):
            for index, name in enumerate(names):
                if name not in used:
                    problem = f"no route uses the {noun} {name!r}"
                    yield Mistake(f"{path}[{index}]", problem, shows_value=False)


def _shadowed(config: Config) -> Iterator[Mistake]:
    """Routes that another route, or an admin page, takes requests from."""
    admin = config.admin
    pages = {admin.prefix + page for page in admin.pages} if admin.port is None else set()
    paths = {normal_path(item.path.encode()): item.path for item in config.reverse_proxy.routes}
    for index, route in enumerate(config.reverse_proxy.routes):
        path, own = f"reverse_proxy.routes[{index}].path", normal_path(route.path.encode())
        if not own.endswith(b"/") and own + b"/" in paths:
            yield Mistake(
                path,
                f"the route {paths[own + b'/']!r} shadows this one: it only gets requests for"
                f" {route.path!r} itself",
            )
        if own.decode("latin-1") in pages:
            yield Mistake(
                path,
                "an admin page shadows this path",
                "set admin.port or admin.prefix to move the pages",
            )
