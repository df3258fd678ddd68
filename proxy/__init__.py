"""Weirpool: a streaming reverse proxy for Server-Sent Events, programmable in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import Config, load_config
from .errors import ConfigError

if TYPE_CHECKING:
    from .server.app import Weirpool

__all__ = ["Config", "ConfigError", "create_app", "load_config"]


def create_app(config: Config | None = None) -> Weirpool:
    """Make the app: from `config`, or from the file that `WEIRPOOL_CONFIG` names. Raises
    `ConfigError`. See `proxy.server.app`.
    """
    from .server import app  # here: small commands need none of it

    return app.create_app(config)
