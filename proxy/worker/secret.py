"""The secret that signs what clients bring back: where it comes from, and a log line if it is random.

In order: `secret` of the configuration, the environment variable `WEIRPOOL_SECRET`, or a random one.
The random one is `multiprocessing`'s authkey: children get it when they are forked or spawned, so
that the workers of one `weirpool serve`, and of one Hypercorn, share it.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import NamedTuple

import structlog

from interceptors.refusals import error_format

from ..config import LEAST_SECRET, Config, Upstream
from ..errors import ConfigError

__all__ = [
    "ENVIRONMENT",
    "Secret",
    "log_random_secret",
    "new_random_secret",
    "secret_of",
    "signs_ids",
]

ENVIRONMENT = "WEIRPOOL_SECRET"

_MEANING = (
    "session ids are signed with a random secret: they end when this server ends, and other servers"
    f" refuse them; set `secret` or {ENVIRONMENT} to keep them"
)


class Secret(NamedTuple):
    """A key for HMAC."""

    key: bytes
    is_random: bool


def new_random_secret() -> None:
    """Replace the random secret of this process, for itself and for the children it will have."""
    multiprocessing.current_process().authkey = os.urandom(32)


def secret_of(config: Config) -> Secret:
    """The secret of this process. Raises `ConfigError` for a short one in the environment."""
    given = config.secret or os.environ.get(ENVIRONMENT)
    if not given:
        return Secret(bytes(multiprocessing.current_process().authkey), is_random=True)
    if len(given) < LEAST_SECRET:
        raise ConfigError(f"{ENVIRONMENT} must have at least {LEAST_SECRET} characters")
    return Secret(given.encode("utf-8", "surrogateescape"), is_random=False)


def signs_ids(upstream: Upstream, secret: Secret, workers: int) -> bool:
    """Whether new sessions of an upstream get an id that names the endpoint (`session_affinity`)."""
    mode = upstream.session_affinity.mode
    return mode == "id" or (mode == "auto" and (workers > 1 or not secret.is_random))


def log_random_secret(config: Config, workers: int) -> None:
    """Log what a random secret means, if MCP sessions depend on it. Raises as `secret_of`."""
    secret = secret_of(config)
    proxy = config.reverse_proxy
    in_use = {item.upstream for item in proxy.routes if error_format(item.dialect).is_json_rpc}
    if secret.is_random and any(
        item.session_affinity.mode == "id"
        or (item.name in in_use and signs_ids(item, secret, workers))
        for item in proxy.upstreams
    ):
        structlog.get_logger("proxy").info("random_secret", message=_MEANING)
