"""Which package may import which, checked on every module."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

from bench.house import LIMITS, measure
from support.required import lacking

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {"pools": set(), "interceptors": {"pools"}, "proxy": {"interceptors", "pools"}}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
LAYERS = [
    {"errors", "keepalive", "version"},
    {"http", "hub"},
    {"upstream", "downstream", "store", "telemetry"},
    {"config"},
    {"dialects", "inspector"},
    {"relay"},
    {"worker"},
    {"exchange"},
    {"server"},
    {"commands", "healthcheck"},
]
"""The packages of `proxy`, lowest first: a module imports from its own package and from lower layers."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


@cache
def imported(name: str) -> set[str]:
    """What a module imports, for types too: a module by its name, and all else by its module's."""
    path, found = NAMES[name], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - (path.name == "__init__.py")
                package = name.split(".")
                base = ".".join([*package[: len(package) - up], *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in NAMES else base)
    return found - {name}


def reachable(name: str) -> set[str]:
    """Every module of the project that a module imports, directly or not."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for target in (imported(waiting.pop()) & set(NAMES)) - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def layer_of(name: str) -> int | None:
    """The layer of a module of `proxy`; None for the package itself and `python -m proxy`."""
    package, _, part = name.partition(".")
    if package != "proxy" or part in ("", "__main__"):
        return None
    return next(at for at, layer in enumerate(LAYERS) if part.split(".")[0] in layer)


def test_packages_and_layers_import_only_lower_ones() -> None:
    """proxy -> interceptors -> pools, and proxy -> pools; within `proxy` as `LAYERS` says."""
    wrong = []
    for name in NAMES:
        package, layer = name.split(".")[0], layer_of(name)
        for target in imported(name):
            other = target.split(".")[0]
            if other in MAY_IMPORT and other != package and other not in MAY_IMPORT[package]:
                wrong.append((name, target))
            elif target in NAMES and layer is not None and other == "proxy":
                above = layer_of(target)
                same = name.split(".")[:2] == target.split(".")[:2]
                if above is not None and above >= layer and not same:
                    wrong.append((name, target))
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    assert [name for name in NAMES if name in reachable(name)] == []


def test_no_module_imports_httpcore() -> None:
    """The upstream transport is ours."""
    assert [name for name in NAMES if "httpcore" in {item[:8] for item in imported(name)}] == []


def test_every_module_has_a_head() -> None:
    """A module's head states what it owns."""
    assert [
        name for name in NAMES if not ast.get_docstring(ast.parse(NAMES[name].read_text()))
    ] == []


def test_only_one_module_uses_hypercorns_private_names() -> None:
    private = (
        "hypercorn.protocol",
        "hypercorn.trio.t",
        "hypercorn.trio.r",
        "hypercorn.app_wrappers",
        "h11._",
    )
    users = {
        path.relative_to(ROOT)
        for path in MODULES
        if any(name in path.read_text() for name in private)
    }
    assert users == {Path("proxy/downstream/server.py")}


def test_functions_and_modules_are_small() -> None:
    if importlib.util.find_spec("radon") is None:
        lacking("radon (the extra `lint`)", "WEIRPOOL_REQUIRE_CHECKERS")
    sizes = measure(ROOT, MODULES)
    assert [
        (kind, *item)
        for kind, limit in LIMITS.items()
        for item in getattr(sizes, kind)
        if item[0] > limit
    ] == []


def test_every_package_is_in_the_distribution() -> None:
    """A folder that `pyproject.toml` does not name is there in a clone and missing once installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(
        {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    )


def test_serve_does_not_load_the_bench() -> None:
    code = "import sys, proxy.commands.cli; print([m for m in sys.modules if 'bench' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_proxy_is_imported_without_epoll() -> None:
    """As on macOS, whose `select` has none of these names; its connections are Hypercorn's then."""
    script = (
        "import select, trio\n"
        "for name in [name for name in dir(select) if name.lower().startswith('epoll')]:\n"
        "    delattr(select, name)\n"
        "import proxy.downstream, proxy.hub, proxy.exchange.exchange\n"
        "assert not proxy.hub.Hub.available()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
