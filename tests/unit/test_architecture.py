"""The house: which package may import which, checked on every module."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pools", "interceptors", "proxy")
MAY_IMPORT = {"pools": set(), "interceptors": {"pools"}, "proxy": {"interceptors", "pools"}}
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

LAYERS = (
    ("errors", "keepalive"),
    ("http",),
    ("upstream", "downstream"),
    ("config",),
    ("dialects",),
    ("relay",),
    ("worker",),
    ("exchange",),
    ("server",),
    ("commands", "healthcheck"),
)
"""The packages of `proxy`, lowest first: a module imports from its own package and from lower layers."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def targets(name: str) -> set[str]:
    """Our modules that a module imports, imports for types included."""
    path, found = NAMES[name], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in NAMES else base)
    return (found & set(NAMES)) - {name}


GRAPH = {name: targets(name) for name in NAMES}


def reachable(name: str) -> set[str]:
    """Every module that a module imports, directly or not."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for target in GRAPH[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def layer_of(name: str) -> int | None:
    """Where a module of `proxy` stands; None for the package itself and `python -m proxy`."""
    parts = name.split(".")
    if parts[0] != "proxy" or len(parts) == 1 or parts[1] == "__main__":
        return None
    return next(at for at, layer in enumerate(LAYERS) if parts[1] in layer)


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


def test_no_module_imports_httpcore() -> None:
    """The upstream transport is ours: no httpcore underneath."""
    assert not [path for path in MODULES if "httpcore" in imported(path)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_has_a_head(path: Path) -> None:
    """A module's head states what it owns."""
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


def test_no_circles() -> None:
    """No module imports itself through others, not even for types."""
    assert not {name for name in GRAPH if name in reachable(name)}


def test_serve_does_not_load_the_bench() -> None:
    """The benchmark is out of the runtime's way."""
    code = "import sys, proxy.commands.cli; print([m for m in sys.modules if 'bench' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


UPWARD: set[tuple[str, str]] = set()


def test_no_arrow_points_up() -> None:
    """Within `proxy` a module imports from its own package and from lower layers only."""
    wrong = set()
    for name in GRAPH:
        own = layer_of(name)
        for target in GRAPH[name]:
            other = layer_of(target)
            if own is None or other is None or name.split(".")[1] == target.split(".")[1]:
                continue
            if other >= own:
                wrong.add((name, target))
    assert wrong <= UPWARD
