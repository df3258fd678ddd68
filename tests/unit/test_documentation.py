"""Every Python and YAML block of the documentation runs as its reader would run it."""

from __future__ import annotations

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
MORE_YAML = [
    *("docs/configuration.md", "docs/configure.md", "docs/endpoints.md"),
    *("docs/mcp_proxy.md", "docs/security.md"),
]
YAML = [
    block
    for block in [*BLOCKS, *(block for page in MORE_YAML for block in blocks_of(page))]
    if block.language == "yaml"
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's working directory, from which Python imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLM_API_KEY", "key")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def run_page(page: str, directory: Path) -> ModuleType:
    """Write the page's files and run its other Python blocks, in order, as one module."""
    files_of(page, directory)
    module = sys.modules["page"] = ModuleType("page")
    module.__file__ = str(directory / "page.py")  # so that the fixture removes it
    for block in blocks_of(page):
        if block.language == "python" and block.file is None:
            # A failure shows the page's line number.
            code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
            exec(code, vars(module))
    return module


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, directory: Path) -> None:
    assert len([block for block in blocks_of(page) if block.language == "python"]) >= 2
    run_page(page, directory)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_blocks_pass_the_check(block: Block, directory: Path) -> None:
    files_of(block.page, directory)
    (directory / "weirpool.yaml").write_text(block.text, encoding="utf-8")
    checked = check_config("weirpool.yaml")
    assert [str(error) for error in checked.errors] == []
    assert [str(warning) for warning in checked.warnings if "dialect" in warning.message] == []


def test_interceptors_of_the_page_load(directory: Path) -> None:
    page = run_page("docs/interceptors.md", directory)
    names = [
        name
        for name, value in vars(page).items()
        if isinstance(value, type) and value.__module__ == "page" and issubclass(value, Interceptor)
    ]
    assert len(names) >= 5
    for name in names:
        load_interceptor(f"page:{name}", {})


def test_the_page_of_interceptors_names_every_public_name() -> None:
    page = (ROOT / "docs/interceptors.md").read_text(encoding="utf-8")
    assert [name for name in interceptors.__all__ if not re.search(rf"\b{name}\b", page)] == []


def test_every_block_has_a_known_language() -> None:
    """So that no Python or YAML block escapes these tests; blocks without one are drawings."""
    assert {block.language for block in BLOCKS} <= {"python", "yaml", "sh", ""}
    for block in BLOCKS:
        assert block.language or "-->" in block.text, f"{block}: not a drawing"
