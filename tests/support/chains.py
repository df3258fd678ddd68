"""The chains of interceptors through which a client must see what it sees without a proxy. A new
built-in goes into `_built_ins`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from interceptors import Event, Interceptor, StreamContext, StreamInterceptor
from interceptors.api_keys import hash_key
from proxy.config import Config, parse_config

__all__ = ["CHAINS", "KEY", "Idle", "Inspecting", "built_ins", "config_of", "yaml_of"]

KEY = "sk-test-0123456789"
"""The key that clients send, and that the upstream gets."""


class Idle(Interceptor):
    """Is there for every stream and JSON body, and looks at nothing."""

    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return StreamInterceptor()


class Inspecting(Interceptor):
    """Looks at every event and at JSON bodies, and changes nothing."""

    wants_json = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _InspectingStream()


class _InspectingStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        assert event.data is not None
        return event


def _built_ins(directory: Path, header: str, *, mcp: bool = False) -> dict[str, dict[str, Any]]:
    """Options with which every built-in lets everything pass."""
    upstream = {
        "upstream": f"Bearer {KEY}" if header == "authorization" else KEY,
        "upstream_header": header,
    }
    return {
        "api_keys": {"keys": {"ann": hash_key(KEY)}, **upstream},
        "rate_limit": {"requests_per_minute": 1_000_000, "burst": 1_000_000},
        "budget": {"limits": [{"requests": 1_000_000_000, "per": "hour"}]},
        "audit": {
            "path": str(directory / "audit.jsonl"),
            "events": "data",
            "body": True,
            "query": True,
        },
        "redact": {"patterns": ["matches[ ]nothing [0-9]{20}"]},
        "usage": {},
        "record": {"directory": str(directory / "tapes")},
        "guard": {"patterns": ["matches[ ]nothing either"]},
        **({"mcp_policy": {"tools": {"deny": ["no such tool"]}}} if mcp else {}),
    }


def built_ins() -> set[str]:
    """The built-ins that the chain `built-ins` has."""
    return set(_built_ins(Path(), "authorization", mcp=True))


def _chains(directory: Path, header: str, *, mcp: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The entries of each chain, in the order of the route."""
    idle, inspecting = (
        {"name": cls.__name__, "use": f"{__name__}:{cls.__name__}"} for cls in (Idle, Inspecting)
    )
    every = {
        name: {"name": name, "use": name, "options": options}
        for name, options in _built_ins(directory, header, mcp=mcp).items()
    }
    return {
        "none": [],
        "idle": [idle],
        "inspecting": [inspecting],
        "redact": [every["redact"]],
        "built-ins": [*every.values(), idle, inspecting],
    }


CHAINS = list(_chains(Path(), "authorization"))


def config_of(url: str, chain: str, directory: Path, **given: Any) -> Config:
    """A configuration with one route to `url` after this chain; its files lie in `directory`."""
    return parse_config(yaml_of(url, chain, directory, **given))


def yaml_of(
    url: str,
    chain: str,
    directory: Path,
    *,
    header: str = "authorization",
    dialect: str = "generic",
    mcp: bool = False,
) -> str:
    """The same, as it is written. `header` and `mcp` as for `_built_ins`."""
    entries = _chains(directory, header, mcp=mcp)[chain]
    names = [entry["name"] for entry in entries]
    return yaml.safe_dump(
        {
            "reverse_proxy": {
                "upstreams": [{"name": "up", "endpoints": [url]}],
                "routes": [
                    {"path": "/", "upstream": "up", "interceptors": names, "dialect": dialect}
                ],
                "leak_detection": "paranoid",
            },
            "interceptors": entries,
            "drain": {"timeout": 1},
            "log": {"level": "error"},
        }
    )
