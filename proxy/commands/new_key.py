"""`weirpool new-key NAME`: generate a client's key for `api_keys`, and its line for the
configuration.
"""

from __future__ import annotations

import json
import re
import secrets
import string

import yaml

from interceptors.api_keys import hash_key

from ..errors import ConfigError

__all__ = ["PREFIX", "new_key"]

PREFIX = "wp_"
"""The start of every key, by which people and secret scanners recognise one."""

_ALPHABET = string.ascii_letters + string.digits  # selected as one word by editors and shells
_LENGTH = 43  # 62 ** 43 > 2 ** 256
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def new_key(name: str) -> tuple[str, str]:
    """Return a key of 256 random bits, and the line of YAML for `options.keys`. Raises
    `ConfigError` for an invalid name.
    """
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"the client's name must be printable text, not {name!r}")
    if "${" in name:
        raise ConfigError("the client's name must not contain ${")
    key = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    plain = _PLAIN.fullmatch(name) is not None and yaml.safe_load(name) == name
    return key, f'{name if plain else json.dumps(name, ensure_ascii=False)}: "{hash_key(key)}"'
