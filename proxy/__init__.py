"""Weirpool: a streaming reverse proxy for Server-Sent Events, programmable in Python."""

from .app import create_app
from .config import Config, load_config
from .errors import ConfigError

__all__ = ["Config", "ConfigError", "create_app", "load_config"]
