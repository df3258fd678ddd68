"""Reloading the configuration file: reading, comparing, logging.

Each attempt logs one `reload` line: `ok` with the changed paths, or the errors with theirs; never a
value, which may be secret. A file with any error changes nothing. Settings of the process (`FIXED`)
keep their value, and the line lists them.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import structlog
import trio

from ..config import FIXED, Config, check_config, log_warnings
from ..errors import ConfigError
from ..worker.reloads import Notice, Reload, failed
from ..worker.worker import Worker

__all__ = ["changed_paths", "check_reload", "reload_worker"]

_NO_FILE = "no configuration file to read again: the process was started with --upstream"


async def reload_worker(worker: Worker, file: str | None) -> None:
    """Read `file` again and apply it to new exchanges. Logs the result; raises nothing.

    Blocks the worker while it compiles: milliseconds, and the time of interceptors' `__init__`.
    """
    log = structlog.get_logger("proxy")
    if file is None:
        log.warning("reload", ok=False, errors=[_NO_FILE])
        worker.reloads.fail([_NO_FILE])
        return
    before = worker.config
    try:
        checked = await trio.to_thread.run_sync(check_config, file)
        config = checked.require()
        await worker.reload(config)
    except Exception as error:
        worker.reloads.fail(_log_failure(error))
        return
    if worker.siblings is None:  # otherwise the supervisor has logged them
        log_warnings(checked.warnings)
    changed = changed_paths(before, config)
    applied = [path for path in changed if not _is_fixed(path)]
    needs_restart = [path for path in changed if _is_fixed(path)]
    worker.reloads.succeed(applied, needs_restart)
    log.info(
        "reload",
        ok=True,
        changed=applied,
        needs_restart=needs_restart,
        routes=[route.name for route in worker.routes.routes],
    )


def check_reload(file: str | None, notice: Notice) -> Config | None:
    """Return the configuration for new workers, or None after logging its errors. Workers find the
    result in `notice`.
    """
    if file is None:
        structlog.get_logger("proxy").warning("reload", ok=False, errors=[_NO_FILE])
        notice.put(failed([_NO_FILE]))
        return None
    try:
        checked = check_config(file)
        config = checked.require()
    except Exception as error:
        notice.put(failed(_log_failure(error)))
        return None
    notice.put(Reload(time.time(), ok=True))
    log_warnings(checked.warnings)
    return config


def changed_paths(before: Config, after: Config) -> list[str]:
    """Return the paths at which two configurations differ; for lists of different lengths the
    list's path.
    """
    found: list[str] = []
    _compare(msgspec.to_builtins(before), msgspec.to_builtins(after), "", found)
    return found


def _compare(before: Any, after: Any, path: str, found: list[str]) -> None:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            where = f"{path}.{key}" if path else str(key)
            if key in before and key in after:
                _compare(before[key], after[key], where, found)
            else:
                found.append(where)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            _compare(*pair, f"{path}[{index}]", found)
    elif before != after:
        found.append(path)


def _is_fixed(path: str) -> bool:
    return any(path == fixed or path.startswith((f"{fixed}.", f"{fixed}[")) for fixed in FIXED)


def _log_failure(error: Exception) -> list[str]:
    """Log the errors and return them."""
    log = structlog.get_logger("proxy")
    if isinstance(error, ConfigError):
        errors = list(error.errors)
        log.error("reload", ok=False, errors=errors)
    else:
        errors = [f"{type(error).__name__}: {error}"]
        log.error("reload", ok=False, errors=errors, exc_info=error)
    return errors
