"""Hypercorn's log when Hypercorn runs the app: its lines join the process's other lines."""

from __future__ import annotations

import hypercorn.config as hypercorn_config
from hypercorn.config import Config
from hypercorn.logging import Logger

__all__ = ["share_log"]


class _SharedLogger(Logger):
    """Hypercorn's logger without a handler for standard error: its records reach the root logger's
    handlers.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if (
            config.errorlog == "-"
            and config.logconfig is None
            and config.logconfig_dict is None
            and self.error_logger is not None
        ):
            self.error_logger.handlers.clear()


def share_log() -> None:
    """Let servers of this process log through the root logger, unless their configuration names
    another place. Process-wide.
    """
    if Config.logger_class is Logger:
        Config.logger_class = _SharedLogger
        vars(hypercorn_config)["Logger"] = (
            _SharedLogger  # compared, to find out whether statsd may take its place
        )
