"""Where no byte code may be beside the sources (`PYTHONDONTWRITEBYTECODE`), it is in the user's
cache: compiling everything again is half of the time of a collection, and most of that of a
command's start.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["forget_temporary", "keep"]


def keep() -> None:
    """For this process and those that it starts."""
    if not sys.dont_write_bytecode:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(cache / "weirpool" / "byte-code")
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def forget_temporary() -> None:
    """Remove the byte code of temporary directories that are gone."""
    if sys.pycache_prefix is not None:
        sources = Path(tempfile.gettempdir()).resolve()
        _forget(Path(sys.pycache_prefix, *sources.parts[1:]), sources)


def _forget(cached: Path, sources: Path) -> None:
    with suppress(OSError):
        for item in cached.iterdir():
            if item.is_dir() and (sources / item.name).is_dir():
                _forget(item, sources / item.name)
            elif item.is_dir():
                shutil.rmtree(item, ignore_errors=True)
