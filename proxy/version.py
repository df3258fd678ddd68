"""The installed version of Weirpool."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version"]


def installed_version() -> str | None:
    """The version of the installed distribution; None in a bare source tree."""
    try:
        return version("weirpool")
    except PackageNotFoundError:
        return None
