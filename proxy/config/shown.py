"""The configuration in force as plain data that may be shown: credentials are `***`.

Hidden are keys that hold credentials, values of headers that the proxy sets, the user part of URLs,
options with a name like a credential's, and every text that came from a reference (`${...}`).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from interceptors.values import join

from .expand import is_from_reference
from .schema import Config

__all__ = ["FIXED", "HIDDEN", "in_force", "shown"]

HIDDEN = "***"

FIXED = (
    "reverse_proxy.buffer_pools",
    "reverse_proxy.leak_detection",
    "reporting",
    "admin",
    "store",
)
"""Settings that need a new process."""

_CREDENTIALS = re.compile(
    r"secret|admin\.token|store\.password|reverse_proxy\.upstreams\[\d+\]\.headers\.set\..*"
)
_CREDENTIAL_NAMES = re.compile(
    r"key|token|secret|passw|credential|auth|cookie|private|signature|^upstream$", re.IGNORECASE
)
_USER = re.compile(r"(\w://)[^/?#@\s]*@")


def in_force(started: Config, current: Config) -> Config:
    """The current configuration, with the settings that only a new process takes from its start."""
    proxy = msgspec.structs.replace(
        current.reverse_proxy,
        buffer_pools=started.reverse_proxy.buffer_pools,
        leak_detection=started.reverse_proxy.leak_detection,
    )
    whole = {name: getattr(started, name) for name in FIXED if "." not in name}
    return msgspec.structs.replace(current, reverse_proxy=proxy, **whole)


def shown(config: Config) -> dict[str, Any]:
    """All keys with their values, defaults included, without credentials."""
    tree: dict[str, Any] = _shown(msgspec.to_builtins(config), "", hidden=False)
    return tree


def _shown(value: Any, path: str, *, hidden: bool) -> Any:
    if isinstance(value, dict):
        in_options = re.match(r"interceptors\[\d+\]\.options", path) is not None
        return {
            key: _shown(
                item,
                join(path, key),
                hidden=hidden or (in_options and _CREDENTIAL_NAMES.search(str(key)) is not None),
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_shown(item, f"{path}[{index}]", hidden=hidden) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    if hidden or _CREDENTIALS.fullmatch(path) or is_from_reference(value, path):
        return HIDDEN
    return _USER.sub(rf"\1{HIDDEN}@", value)
