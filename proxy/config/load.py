"""The configuration: YAML -> frozen typed settings. Every error names its path, and nothing is silently ignored.

Three passes: YAML with PyYAML's safe loader (a duplicate key is an error), `${VAR}` from the environment (an unset one is an
error), then msgspec structs that forbid unknown keys. What only makes sense together is checked last, all mistakes at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ..errors import ConfigError
from .checks import convert, endpoint_problem, mistakes_of
from .schema import Config, ReverseProxy, Route, Upstream

__all__ = ["load_config", "parse_config", "single_upstream"]

_MCP_BODY_BYTES = 4194304
"""The default of `max_request_body_bytes` with `dialect: mcp`, whose bodies are collected and decoded."""


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
    config: Config = convert(tree, Config, "")
    mistakes = list(mistakes_of(config))
    if mistakes:
        raise ConfigError(*mistakes)
    if "max_request_body_bytes" not in (tree["reverse_proxy"].get("limits") or {}):
        for route in config.reverse_proxy.routes:
            if route.dialect == "mcp":
                route.limits.setdefault("max_request_body_bytes", _MCP_BODY_BYTES)
    return config


def single_upstream(url: str) -> Config:
    """The configuration behind `weirpool serve --upstream URL`: everything to one upstream. Raises `ConfigError`."""
    problem = endpoint_problem(url)
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
