"""What the documentation shows, runs: every block of Python and of YAML on its pages, as its reader
would have it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.pages import PAGES, ROOT, Block, blocks_of, files_of

import interceptors
from interceptors import Interceptor
from interceptors.loader import load_interceptor
from proxy.config import check_config

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
YAML = [
    block
    for block in [
        *BLOCKS,
        *blocks_of("docs/configure.md"),
        *blocks_of("docs/endpoints.md"),
        *blocks_of("docs/mcp_proxy.md"),
        *blocks_of("docs/security.md"),
    ]
    if block.language == "yaml"
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader works: a directory of its own, from which Python imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLM_API_KEY", "key")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_page(page: str, directory: Path) -> ModuleType:
    """Write the page's files, run its other Python from top to bottom, as one module."""
    files_of(page, directory)
    module = sys.modules["page"] = ModuleType("page")
    module.__file__ = str(directory / "page.py")  # so that it goes with the others
    for block in blocks_of(page):
        if block.language == "python" and block.file is None:
            # Numbered as on the page, so that a failure shows the page's own line.
            code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
            exec(code, vars(module))
    return module


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_and_its_assertions_hold(page: str, directory: Path) -> None:
    """From top to bottom in one namespace, with the files that the page tells its reader to write."""
    blocks = [block for block in blocks_of(page) if block.language == "python"]
    assert len(blocks) >= 2
    run_page(page, directory)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_configuration_of_a_page_is_accepted(block: Block, directory: Path) -> None:
    """As `weirpool check` takes it: it parses, and its interceptors load, from the page's own files
    where they are of that page.
    """
    files_of(block.page, directory)
    (directory / "weirpool.yaml").write_text(block.text, encoding="utf-8")
    checked = check_config("weirpool.yaml")
    assert [str(error) for error in checked.errors] == []
    assert [str(warning) for warning in checked.warnings if "dialect" in warning.message] == []


def test_the_interceptors_of_the_page_load_as_a_configuration_loads_them(
    directory: Path,
) -> None:
    """None has a hook that would be refused at start."""
    page = run_page("docs/interceptors.md", directory)
    classes = [
        value
        for value in vars(page).values()
        if isinstance(value, type) and value.__module__ == page.__name__
    ]
    names = [value.__name__ for value in classes if issubclass(value, Interceptor)]
    assert len(names) >= 5
    for name in names:
        load_interceptor(f"{page.__name__}:{name}", {})


def test_every_public_name_is_on_the_page_of_interceptors() -> None:
    """An author finds there all that an author needs; of the rest, which only the proxy meets,
    these are all.
    """
    page = (ROOT / "docs/interceptors.md").read_text(encoding="utf-8")
    unmentioned = {name for name in interceptors.__all__ if not re.search(rf"\b{name}\b", page)}
    assert unmentioned == set()


def test_every_block_says_its_language() -> None:
    """So that none escapes these tests; and Python on the pages is Python."""
    assert {block.language for block in BLOCKS} <= {"python", "yaml", "sh", ""}
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text)
        elif not block.language:
            assert "-->" in block.text, f"{block}: no drawing"
