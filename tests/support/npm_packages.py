"""Installs what `npm/package-lock.json` names, once a user and lock file. `.ci/run` runs this file;
it needs no package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["SCRIPTS", "CannotInstall", "install"]

SCRIPTS = Path(__file__).parent / "npm"


class CannotInstall(Exception):
    """What is missing."""


def install() -> None:
    """Put the packages into the user's cache, and a symbolic link `node_modules` to them beside the
    scripts.

    :raises CannotInstall: there is no node or npm, or npm failed.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        raise CannotInstall("Node.js with npm")
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weirpool"
    directory = cache / f"npm-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as parent:
            new = Path(parent, "new")
            new.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SCRIPTS / name, new)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            try:
                subprocess.run(
                    command, cwd=new, check=True, capture_output=True, text=True, timeout=300
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise CannotInstall(
                    f"set of MCP clients from npm: {error}\n{error.stderr}"
                ) from error
            try:
                new.rename(directory)
            except OSError:  # another test run was faster
                if not directory.exists():
                    raise
    link = SCRIPTS / "node_modules"
    target = directory / "node_modules"
    if link.is_symlink() and link.readlink() != target:
        link.unlink()
    if not link.exists():
        link.symlink_to(target)


if __name__ == "__main__":
    install()
