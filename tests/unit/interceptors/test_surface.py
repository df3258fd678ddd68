"""The public API of `interceptors`: names, signatures and types. No change is an accident.

`surface/signatures.txt` lists it. mypy and pyright, both strict, must accept `surface/authors.py` and
reject each marked line of `surface/wrong.py`, with the packages of an editable install and of a wheel.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from collections.abc import Callable, Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.required import lacking

import interceptors
import interceptors.testing

ROOT = Path(__file__).parents[3]
SURFACE = ROOT / "tests" / "surface"
PACKAGES = ("pools", "interceptors", "proxy")

PUBLIC = re.compile(r"interceptors\.((api|errors|event|message|needs|testing)\.|[A-Z]\w*$)")
"""The modules of the API. How a chain runs (`chain`, `stream`, `hooks`) is not part of it."""

MODULES: list[Any] = [interceptors, interceptors.testing]


class Plain(str):
    """An annotation, which is kept as text, without its quotes."""

    __repr__ = str.__str__


def signature(value: Any) -> inspect.Signature:
    found = inspect.signature(value)
    parameters = [
        item if item.annotation is item.empty else item.replace(annotation=Plain(item.annotation))
        for item in found.parameters.values()
    ]
    return found.replace(parameters=parameters, return_annotation=Plain(found.return_annotation))


def describe_class(cls: type) -> Iterator[str]:
    """The public members that a class adds to its bases."""
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {cls.__name__}" + (f"({bases})" if bases else "")
    if issubclass(cls, Enum):
        yield from (f"    {name} = {item.value!r}" for name, item in cls.__members__.items())
        return
    own = vars(cls)
    if "__init__" in own:
        yield f"    __init__{signature(cls)}"
    public = {
        name
        for name in own.keys() | own.get("__annotations__", {}).keys()
        if not name.startswith("_")
    }
    for name in sorted(public):
        value, hint = own.get(name), own.get("__annotations__", {}).get(name)
        if isinstance(value, property):
            settable = "" if value.fset is None else " (may be set)"
            yield f"    {name}: {signature(value.fget).return_annotation}{settable}"
        elif inspect.isfunction(value):
            yield f"    {'async ' * inspect.iscoroutinefunction(value)}{name}{signature(value)}"
        elif hint is None or inspect.ismemberdescriptor(value):
            yield f"    {name}" + (f": {hint}" if hint else "")
        else:
            yield f"    {name}: {hint}" + (f" = {value!r}" if name in own else "")


def describe() -> str:
    lines: list[str] = []
    for module in MODULES:
        for name in sorted(module.__all__):
            value = getattr(module, name)
            if inspect.isclass(value) and value.__module__.split(".")[0] == "interceptors":
                lines += describe_class(value)
            elif inspect.isfunction(value):
                lines.append(f"{name}{signature(value)}")
            else:
                lines.append(f"{name} = {value}")
    return "\n".join(
        "\n".join(textwrap.wrap(line, 120, subsequent_indent=" " * 8)) for line in lines
    )


def test_the_public_names_and_signatures_are_these() -> None:
    """A change here is a change for every author, and needs a line in CHANGELOG.md."""
    assert describe() == (SURFACE / "signatures.txt").read_text().strip()


def test_every_public_name_has_a_docstring_and_is_used_by_the_authors() -> None:
    tree = ast.parse((SURFACE / "authors.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            assert name in used, f"{name} is not in surface/authors.py"
            ours = getattr(value, "__module__", "").startswith("interceptors")
            assert inspect.getdoc(value) or not ours, f"{name} has no docstring"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree, to be installed. Its parent is for what the tests write."""
    for checker in ("mypy", "pyright"):
        if find_spec(checker) is None:
            lacking(checker, "WEIRPOOL_REQUIRE_CHECKERS")
    tree = tmp_path_factory.mktemp("surface") / "tree"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    return tree


def environment(home: Path) -> tuple[Path, Path]:
    """The interpreter and the packages of a new environment, with this one's dependencies."""
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
    site = Path(paths["purelib"])
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Path(paths["scripts"]) / "python", site


def run(
    directory: Path, *arguments: str, fails: bool = True, environment: dict[str, str] | None = None
) -> str:
    """The output of a module of this environment. `fails`: it may exit with another status."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | (environment or {}),
    )
    assert fails or done.returncode == 0, done.stdout + done.stderr
    return done.stdout or done.stderr


def check(directory: Path, errors_of: Callable[[], Iterator[tuple[str, int, str]]]) -> None:
    """No error in the authors' file; of the wrong uses exactly the marked lines."""
    for name in ("authors.py", "wrong.py"):
        shutil.copy(SURFACE / name, directory)
    lines = (SURFACE / "wrong.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# expect-error")}
    found = {(name, number): message for name, number, message in errors_of()}
    unnoticed = expected - {number for name, number in found if name == "wrong.py"}
    assert {number: lines[number - 1] for number in unnoticed} == {}
    right = {
        place: message
        for place, message in found.items()
        if place[0] != "wrong.py" or place[1] not in expected
    }
    assert right == {}
    assert len(expected) >= 40


def test_mypy_checks_an_editable_install(tree: Path, tmp_path: Path) -> None:
    python, _ = environment(tmp_path / "environment")
    install = f"pip --quiet --python={python} install --no-deps --editable {tree}"
    run(tmp_path, *install.split(), fails=False)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-trio_util.*]\nignore_missing_imports = true\n"
    )

    def errors() -> Iterator[tuple[str, int, str]]:
        options = "--no-error-summary --hide-error-context --no-pretty"
        command = (
            f"mypy --cache-dir=cache {options} --python-executable={python} authors.py wrong.py"
        )
        printed = run(tmp_path, *command.split(), environment={"MYPYPATH": ""})
        for line in printed.splitlines():
            match = re.fullmatch(r"(.*?):(\d+): (error|note): (.*)", line)
            assert match, printed
            if match[3] == "error":
                yield match[1], int(match[2]), match[4]

    check(tmp_path, errors)


def test_pyright_checks_a_wheel(tree: Path, tmp_path: Path) -> None:
    """It finds `py.typed`, and infers no type of a public name."""
    python, site = environment(tmp_path / "environment")
    run(tmp_path, *f"pip wheel --quiet --no-deps --wheel-dir . {tree}".split(), fails=False)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert [package for package in PACKAGES if not (site / package / "py.typed").is_file()] == []
    settings = {"include": ["authors.py", "wrong.py"], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    def errors() -> Iterator[tuple[str, int, str]]:
        printed = run(tmp_path, "pyright", "--outputjson", "--pythonpath", str(python))
        report = json.loads(printed)
        assert report["summary"]["filesAnalyzed"] >= 2, printed
        for item in report["generalDiagnostics"]:
            line = item["range"]["start"]["line"] + 1
            yield Path(item["file"]).name, line, item["message"]

    check(tmp_path, errors)
    path = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}  # here no --pythonpath
    command = "pyright --outputjson --ignoreexternal --verifytypes interceptors"
    completeness = json.loads(run(tmp_path, *command.split(), environment=path))["typeCompleteness"]
    public = [item for item in completeness["symbols"] if PUBLIC.match(item["name"])]
    assert {item["name"]: item["diagnostics"] for item in public if not item["isTypeKnown"]} == {}
    assert len(public) > 100
