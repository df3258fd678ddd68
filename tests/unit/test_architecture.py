"""The house: which package may import which, checked on every module."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pools", "interceptors", "proxy")
MAY_IMPORT = {"pools": set(), "interceptors": {"pools"}, "proxy": {"interceptors", "pools"}}
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    """proxy -> interceptors -> pools, and proxy -> pools; never back."""
    package = path.relative_to(ROOT).parts[0]
    wrong = (imported(path) & set(PACKAGES)) - MAY_IMPORT[package] - {package}
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_nobody_imports_httpcore() -> None:
    """The upstream transport is ours: no httpcore underneath."""
    assert not [path for path in MODULES if "httpcore" in imported(path)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    """A module's head says what it owns."""
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_only_one_package_knows_hypercorns_insides() -> None:
    """The private path through Hypercorn is in downstream/hypercorn and nowhere else."""
    insides = ("hypercorn.protocol", "hypercorn.trio.t", "hypercorn.app_wrappers", "h11._")
    knowing = {
        path.parent.relative_to(ROOT)
        for path in MODULES
        if any(name in path.read_text() for name in insides)
    }
    assert knowing == {Path("proxy/downstream/hypercorn")}


def test_every_package_is_in_the_distribution() -> None:
    """A folder of modules that `pyproject.toml` does not name would be there in a clone and missing
    where it is installed.
    """
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(
        {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    )
