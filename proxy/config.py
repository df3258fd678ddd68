"""The configuration: YAML -> frozen typed settings. Every error names its path, and nothing is silently ignored.

Three passes: YAML with PyYAML's safe loader (a duplicate key is an error), `${VAR}` from the environment (an unset one is an
error), then msgspec structs that forbid unknown keys. What only makes sense together is checked last, all mistakes at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import httpx
import msgspec
import yaml
from msgspec import Meta, Struct

from .errors import ConfigError
from .upstream.endpoints import place_of

__all__ = ["Config", "load_config", "parse_config", "single_upstream"]

Name = Annotated[str, Meta(min_length=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Count = Annotated[int, Meta(ge=1)]
Header = dict[str, str]
Method = Annotated[str, Meta(pattern="^[A-Z]+$")]


class _Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class HeaderRules(_Settings, frozen=True):
    set: Header = {}
    remove: list[str] = []


class Upstream(_Settings, frozen=True):
    name: Name
    endpoints: Annotated[list[str], Meta(min_length=1)]
    host: str = "upstream"
    ca_file: str | None = None
    headers: HeaderRules = HeaderRules()
    max_connections: Count = 10000


class Timeouts(_Settings, frozen=True):
    """Seconds; None: no limit."""

    connect: Seconds | None = 10
    write: Seconds | None = 30
    first_byte: Seconds | None = 120
    idle: Seconds | None = 300
    send: Seconds | None = 30
    total: Seconds | None = None


class Limits(_Settings, frozen=True):
    max_event_bytes: Annotated[int, Meta(ge=64)] = 1048576
    max_request_body_bytes: Annotated[int, Meta(ge=0)] = 16777216
    max_streams: Count = 10000
    max_streams_per_client: Count | None = None


class Heartbeat(_Settings, frozen=True):
    """`interval`: seconds of silence before a comment line; None: none. `early`: also before the upstream has answered."""

    interval: Seconds | None = None
    early: bool = False


class Reconnect(_Settings, frozen=True):
    """`max_attempts`: in a row, without an event between them. Backoffs in seconds."""

    enabled: bool = False
    max_attempts: Count = 5
    initial_backoff: Seconds = 1
    max_backoff: Seconds = 60


class Retry(_Settings, frozen=True):
    max_attempts: Count = 2
    budget: Annotated[float, Meta(ge=0, le=1)] = 0.2


class Health(_Settings, frozen=True):
    consecutive_failures: Count = 5
    eject: Seconds = 10
    max_eject: Seconds = 300
    gone_after: Seconds | None = None
    """Sessions of an endpoint that is out of service for longer, without a break, get 404. None: `max_eject`."""
    check_path: str | None = None
    check_interval: Seconds = 10


class Route(_Settings, frozen=True):
    path: Annotated[str, Meta(pattern="^/")]
    upstream: str
    interceptors: list[str] = []
    dialect: Literal["openai", "anthropic", "mcp", "generic", "abort"] = "generic"
    timeouts: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    heartbeat: dict[str, Any] = {}
    reconnect: dict[str, Any] = {}
    retry: dict[str, Any] = {}
    allowed_hosts: list[str] | None = None
    allowed_origins: list[str] | None = None
    strip_prefix: bool = False
    listening: list[Method] | None = None
    """Methods whose event streams `timeouts.idle` does not cut; None: GET with `dialect: mcp`, otherwise none."""


class BufferPoolSize(_Settings, frozen=True):
    size: Annotated[int, Meta(ge=1024, le=16777216)]
    max_pooled: Annotated[int, Meta(ge=0)]


class BufferPools(_Settings, frozen=True):
    sse_event: BufferPoolSize = BufferPoolSize(size=4096, max_pooled=1000)
    http_response: BufferPoolSize = BufferPoolSize(size=16384, max_pooled=500)
    json: BufferPoolSize = BufferPoolSize(size=8192, max_pooled=500)


class ReverseProxy(_Settings, frozen=True):
    upstreams: list[Upstream]
    routes: Annotated[list[Route], Meta(min_length=1)]
    buffer_pools: BufferPools = BufferPools()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    heartbeat: Heartbeat = Heartbeat()
    reconnect: Reconnect = Reconnect()
    retry: Retry = Retry()
    health: Health = Health()
    trusted_proxies: list[str] = []
    leak_detection: Literal["none", "sampled", "paranoid"] = "none"


class InterceptorEntry(_Settings, frozen=True):
    name: Name
    use: Name
    options: dict[str, Any] = {}


class Reporting(_Settings, frozen=True):
    interval: Seconds = 60


class Drain(_Settings, frozen=True):
    timeout: Annotated[float, Meta(ge=0)] = 30
    delay: Annotated[float, Meta(ge=0)] = 0


class Admin(_Settings, frozen=True):
    prefix: Annotated[str, Meta(pattern="^(/.*[^/])?$")] = ""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    host: Annotated[str, Meta(pattern=r"^[0-9A-Fa-f.:]+$")] = "127.0.0.1"
    """Where `port` listens: an address, not a name."""


class Log(_Settings, frozen=True):
    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Settings, frozen=True):
    """The whole configuration, checked."""

    reverse_proxy: ReverseProxy
    interceptors: list[InterceptorEntry] = []
    reporting: Reporting = Reporting()
    drain: Drain = Drain()
    admin: Admin = Admin()
    log: Log = Log()

    def timeouts_of(self, route: Route) -> Timeouts:
        """The timeouts of a route: its own where it has some, else the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.timeouts, **route.timeouts)

    def limits_of(self, route: Route) -> Limits:
        """The limits of a route: its own where it has some, else the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.limits, **route.limits)

    def retry_of(self, route: Route) -> Retry:
        """The retries of a route: its own where it has some, else the common ones."""
        return msgspec.structs.replace(self.reverse_proxy.retry, **route.retry)

    def heartbeat_of(self, route: Route) -> Heartbeat:
        """The heartbeat of a route: its own where it has one, else the common one."""
        return msgspec.structs.replace(self.reverse_proxy.heartbeat, **route.heartbeat)

    def reconnect_of(self, route: Route) -> Reconnect:
        """How a route reconnects: its own way where it has one, else the common one."""
        return msgspec.structs.replace(self.reverse_proxy.reconnect, **route.reconnect)


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file. Raises `ConfigError`; blocks on the file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{os.fspath(path)}: not UTF-8 ({error.reason} at byte {error.start})") from error
    config = parse_config(text)
    entries = [
        msgspec.structs.replace(entry, use=str(Path(path).parent.resolve() / entry.use)) if ".py:" in entry.use else entry
        for entry in config.interceptors  # files of interceptors lie relative to the configuration's
    ]
    return msgspec.structs.replace(config, interceptors=entries)


def parse_config(text: str) -> Config:
    """Check a configuration in YAML. Raises `ConfigError` with every mistake that could be told."""
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 (a subclass of the safe loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from None
    try:
        tree = _expand(tree, "")
    except RecursionError:
        raise ConfigError("a YAML alias holds itself") from None
    config: Config = _convert(tree, Config, "")
    mistakes = list(_mistakes(config))
    if mistakes:
        raise ConfigError(*mistakes)
    return config


def single_upstream(url: str) -> Config:
    """The configuration behind `weirpool serve --upstream URL`: everything to one upstream. Raises `ConfigError`."""
    problem = _endpoint_problem(url)
    if problem is not None:
        raise ConfigError(f"--upstream: {problem}")
    upstream = Upstream(name="upstream", endpoints=[url])
    return Config(reverse_proxy=ReverseProxy(upstreams=[upstream], routes=[Route(path="/", upstream="upstream")]))


class _Loader(yaml.SafeLoader):
    """The safe loader, with duplicate keys refused: YAML 1.2, section 3.2.1.3, and PyYAML takes the last one."""


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} occurs twice", key_node.start_mark
                )
            seen.add(key_node.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _expand(tree: Any, path: str) -> Any:
    """Replace `${VAR}` in every string value."""
    if isinstance(tree, dict):
        return {key: _expand(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_expand(value, f"{path}[{index}]") for index, value in enumerate(tree)]
    if not isinstance(tree, str):
        return tree

    def value_of(match: re.Match[str]) -> str:
        try:
            return os.environ[match[1]]
        except KeyError:
            raise ConfigError(f"{path}: the environment variable {match[1]} is not set") from None

    return _VARIABLE.sub(value_of, tree)


def _convert(tree: Any, kind: type[Any], path: str) -> Any:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        # msgspec says "message - at `$.a.b[2]`", "message - at `key` in `$.a`", or only "message" at the top.
        message, _, where = str(error).partition(" - at ")
        full = (path + where.removeprefix("`key` in ").strip("`").removeprefix("$")).lstrip(".")
        raise ConfigError(f"{full}: {message}" if full else message) from None


def _mistakes(config: Config) -> Iterator[str]:
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
            problem = _endpoint_problem(endpoint)
            if problem is not None:
                yield f"{path}.endpoints[{number}]: {problem}"
            elif (place := place_of(httpx.URL(endpoint))) in places:
                yield f"{path}.endpoints[{number}]: this endpoint is listed twice"
            else:
                places.add(place)
        if upstream.ca_file is not None and not Path(upstream.ca_file).is_file():
            yield f"{path}.ca_file: there is no file {upstream.ca_file!r}"
        if not upstream.host or not _is_field_value(upstream.host):
            yield f"{path}.host: expected upstream, preserve, or a host name"
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
        if not _RAW_PATH.fullmatch(route.path):
            yield f"{path}.path: {route.path!r} can match no request: a path has no space, query or fragment, and is ASCII"
        if route.upstream not in upstreams:
            yield f'{path}.upstream: no upstream is called "{route.upstream}"'
        for number, name in enumerate(route.interceptors):
            if name not in names:
                yield f'{path}.interceptors[{number}]: no interceptor is called "{name}"'
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
                _convert(own, kind, f"{path}.{key}")
            except ConfigError as error:
                yield from error.errors
            else:
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


_RAW_PATH = re.compile(r"/[!-\"$->@-~]*")  # visible ASCII but for ? and #
_TARGET = re.compile(r"/[!\"$-~]*")  # the same, with a query
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]*)([/?#]\S*)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FRAMING = frozenset(["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive"])


def _is_field_value(value: str) -> bool:
    """RFC 9110, section 5.5, as ASCII: visible characters, with spaces and tabs inside."""
    return value == value.strip() and all(0x20 <= ord(char) < 0x7F or char == "\t" for char in value)


def _endpoint_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
        host = httpx.URL(url).host
        host.encode("idna")
    except (ValueError, httpx.InvalidURL):  # UnicodeError, of an impossible name, is a ValueError
        return "not a URL with a host that can be looked up"
    if parts.username is not None or "?" in url or "#" in url or port == 0:
        return "an endpoint is a scheme, a host, a port and a path, and nothing else (a credential belongs into headers.set)"
    if parts.scheme not in ("http", "https") or not host or url != url.strip():
        return f"{url!r} is not an http:// or https:// URL"
    if not re.fullmatch(r"[\x21-\x7e]*", parts.path):
        return f"{url!r} has a path that cannot be sent; percent-encode it"
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
    if scheme in _DEFAULT_PORTS:
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
