"""From a file to a checked configuration: YAML, references, types, names, interceptors.

Runs the checks of the other modules in order and gives each mistake its place in the file. A wrong
value is replaced by a stand-in so that the rest is still checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import msgspec.inspect as mi
import structlog

from interceptors.refusals import error_format
from interceptors.values import Checker, Mistake, join, nearest

from ..errors import ConfigError, Problem
from .checks import mistakes_of, warnings_of
from .expand import Expansion, expand
from .grammar import endpoint_problem
from .schema import Config, ReverseProxy, Route, Upstream
from .source import Source, read_yaml
from .wiring import load_all, wiring_mistakes, wiring_warnings

__all__ = [
    "Checked",
    "check_config",
    "load_config",
    "log_warnings",
    "parse_config",
    "single_upstream",
]

_MCP_BODY_BYTES = 4194304
"""The default of `max_request_body_bytes` with `dialect: mcp`, whose bodies are collected and
decoded.
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of checking a file."""

    config: Config | None
    """None if there are errors."""
    problems: tuple[Problem, ...]
    """Errors and warnings, in file order."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def require(self) -> Config:
        """Return the configuration. Raises `ConfigError` with every error."""
        if self.config is None:
            raise ConfigError(*self.errors)
        return self.config


def check_config(path: str | os.PathLike[str]) -> Checked:
    """Check a configuration file and load its interceptors, which imports their modules. Blocks.
    Reports every problem in the result.
    """
    file = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return Checked(None, (Problem("", _unreadable(error), file=file),))
    try:
        reading = _Reading(text, Path(path).parent)
        reading.check_interceptors()
    except ConfigError as error:
        return Checked(None, tuple(replace(problem, file=file) for problem in error.problems))
    problems = tuple(replace(problem, file=file) for problem in reading.problems())
    return Checked(
        None if any(problem.severity == "error" for problem in problems) else reading.config,
        problems,
    )


def log_warnings(warnings: Iterable[Problem]) -> None:
    """Log each warning as a `config_warning` line."""
    for warning in warnings:
        structlog.get_logger("proxy").warning(
            "config_warning", path=warning.path, message=warning.text
        )


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file and its interceptors. Raises `ConfigError`. Blocks on
    files and imports.
    """
    return check_config(path).require()


def parse_config(text: str) -> Config:
    """Check a configuration in YAML without loading its interceptors. Raises `ConfigError` with
    every error.
    """
    reading = _Reading(text, Path.cwd())
    problems = reading.problems()
    return Checked(None if problems else reading.config, problems).require()


def single_upstream(url: str) -> Config:
    """Return the configuration of `weirpool serve --upstream URL`: one route to one upstream.
    Raises `ConfigError`.
    """
    problem = endpoint_problem(url)
    if problem is not None:
        raise ConfigError(f"--upstream: {problem}")
    upstream = Upstream(name="upstream", endpoints=[url])
    return Config(
        reverse_proxy=ReverseProxy(
            upstreams=[upstream], routes=[Route(path="/", upstream="upstream")]
        )
    )


def _unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    return str(error.strerror if isinstance(error, OSError) else error)


class _Reading:
    """One configuration text and its mistakes so far."""

    def __init__(self, text: str, directory: Path) -> None:
        """Raises `ConfigError` if the text is not YAML."""
        self._directory = directory
        self._source: Source = read_yaml(text)
        self._expansion = Expansion(directory)
        if self._source.tree is None:
            raise ConfigError("this is empty: it must have the key `reverse_proxy`")
        tree = expand(self._source.tree, self._expansion)
        self._checker = _ConfigChecker()
        for item in self._expansion.mistakes:
            self._checker.bad.add(item.path)
        self.config: Config = _with_files_of(
            self._checker.check(mi.type_info(Config), self._checker.settle(tree)), directory
        )
        self._errors: list[Mistake] = [
            Mistake(path, "this key stands here twice", shows_value=False)
            for path in self._source.duplicates
        ]
        self._warnings: list[Mistake] = []
        self._errors += self._expansion.mistakes
        unset = {item.path for item in self._expansion.mistakes}
        self._errors += [item for item in self._checker.mistakes if item.path not in unset]
        self._add(mistakes_of(self.config, self._checker.bad))
        if "reverse_proxy.limits.max_request_body_bytes" not in self._source.places:
            for route in self.config.reverse_proxy.routes:
                if error_format(route.dialect).is_json_rpc:
                    route.limits.setdefault("max_request_body_bytes", _MCP_BODY_BYTES)

    def check_interceptors(self) -> None:
        """Load the interceptors and check that they can work together."""
        entries = [
            msgspec.structs.replace(entry, use=str(self._directory.resolve() / entry.use))
            if ".py:" in entry.use
            else entry
            # an interceptor's file is relative to the configuration
            for entry in self.config.interceptors
        ]
        self.config = msgspec.structs.replace(self.config, interceptors=entries)
        loaded, mistakes = load_all(self.config, self._checker.bad)
        self._add(mistakes)
        self._add(wiring_mistakes(self.config, loaded))
        self._warnings += wiring_warnings(self.config, loaded, self._source.places.keys())
        self._warnings += [
            item
            for item in warnings_of(self.config, self._checker.bad)
            if self._is_right(item.path)
        ]

    def _add(self, mistakes: Iterable[Mistake]) -> None:
        """Add mistakes, except consequences of a stand-in."""
        self._errors += [item for item in mistakes if self._is_right(item.path)]

    def _is_right(self, path: str) -> bool:
        """Whether neither the value at a path nor one that contains it is a stand-in."""
        while path and path not in self._checker.bad:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return not path

    def problems(self) -> tuple[Problem, ...]:
        """Every problem, in file order."""
        found = [self._problem(item, "error") for item in self._errors]
        found += [self._problem(item, "warning") for item in self._warnings]
        return tuple(sorted(found, key=lambda problem: (problem.line or 0, problem.column or 0)))

    def _problem(self, item: Mistake, severity: Literal["error", "warning"]) -> Problem:
        path = self._checker.written(item.path)
        place = self._source.place_of(path)
        is_there = place is not None and path in self._source.places
        at_key = is_there and item.message.startswith(("unknown", "a key"))
        mask = self._expansion.mask
        return Problem(
            path,
            mask(item.message, path),
            "" if self._expansion.is_short(path) else mask(item.hint, path),
            severity,
            place.text if place is not None and is_there and item.shows_value else None,
            None if place is None else place.key_line if at_key else place.line,
            None if place is None else place.key_column if at_key else place.column,
        )


def _with_files_of(config: Config, directory: Path) -> Config:
    """Return the configuration with absolute paths of files."""
    proxy = config.reverse_proxy
    upstreams = [
        item
        if item.ca_file is None
        else msgspec.structs.replace(item, ca_file=str(directory.resolve() / item.ca_file))
        for item in proxy.upstreams
    ]
    store = config.store
    if store.ca_file is not None:
        ca_file = str(directory.resolve() / store.ca_file)
        store = msgspec.structs.replace(store, ca_file=ca_file)
    return msgspec.structs.replace(
        config,
        reverse_proxy=msgspec.structs.replace(proxy, upstreams=upstreams),
        store=store,
    )


class _ConfigChecker(Checker):
    """A checker that knows where each configuration key belongs."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, list[str]] = {}
        self._index(mi.type_info(Config), "")

    def build(self, kind: Any, values: dict[str, Any]) -> Any:
        return kind.cls(**values) if isinstance(kind, mi.StructType) else values

    def allows_text_of(self, path: str) -> bool:
        return path not in ("secret", "admin.token") and not any(
            part in path for part in (".options", ".headers.set", ".endpoints")
        )

    def belongs(self, key: str, path: str) -> str:
        here = _pattern(path)
        places = [place for place in self._places.get(key, ()) if place != here]
        below = [place for place in places if here and place.startswith(f"{here}.")]
        if below:
            return _belongs([f"{path}{place[len(here) :]}" for place in below])
        if (
            not places
            and nearest(key, self._known_at(here)) is None
            and (near := nearest(key, self._places, 0.8)) is not None
        ):
            return f"did you mean `{near}`, {_under(self._places[near])}?"
        return _belongs(places)

    def settle(self, tree: Any) -> Any:
        """Return the tree with misplaced values moved to where they belong, so that they are
        checked too.
        """
        if not isinstance(tree, dict):
            return tree
        settled = dict(tree)
        self._settle(settled, settled, mi.type_info(Config), "")
        return settled

    def written(self, path: str) -> str:
        """Return the path at which a value stands in the file."""
        for target in sorted(self.moved, key=len, reverse=True):
            if path == target or path.startswith((f"{target}.", f"{target}[")):
                return self.moved[target] + path[len(target) :]
        return path

    def _settle(self, root: dict[Any, Any], tree: dict[Any, Any], kind: mi.Type, path: str) -> None:
        fields = {field.encode_name: field for field in getattr(kind, "fields", ())}
        for key, value in list(tree.items()):
            if key in fields:
                inner = fields[key].type
                if isinstance(inner, mi.StructType) and isinstance(value, dict):
                    tree[key] = dict(value)
                    self._settle(root, tree[key], inner, join(path, key))
                continue
            places = [place for place in self._places.get(str(key), ()) if "[" not in place]
            if len(places) == 1:
                self._graft(root, key, value, places[0], path)

    def _graft(self, root: dict[Any, Any], key: str, value: Any, place: str, path: str) -> None:
        at = root
        for part in place.split(".") if place else ():
            inner = at.setdefault(part, {})
            if not isinstance(inner, dict):
                return
            at = inner
        if key not in at:
            at[key] = value
            self.moved[join(place, key)] = join(path, key)

    def _index(self, kind: mi.Type, path: str) -> None:
        while isinstance(kind, mi.Metadata):
            record = (kind.extra or {}).get("record")
            kind = mi.type_info(record) if record is not None else kind.type
        if isinstance(kind, mi.ListType):
            self._index(kind.item_type, f"{path}[]")
        elif isinstance(kind, mi.StructType):
            for field in kind.fields:
                self._places.setdefault(field.encode_name, []).append(path)
                self._index(field.type, join(path, field.encode_name))

    def _known_at(self, here: str) -> Sequence[str]:
        return [key for key, places in self._places.items() if here in places]


def _pattern(path: str) -> str:
    """Return a path with `[]` for each index."""
    parts = path.split("[")
    return parts[0] + "".join(f"[]{part.partition(']')[2]}" for part in parts[1:])


def _belongs(places: Sequence[str]) -> str:
    return f"it belongs {_under(places)}" if places else ""


def _under(places: Sequence[str]) -> str:
    named = [f"under `{place}`" if place else "at the top level" for place in places[:3]]
    return " or ".join(named)
